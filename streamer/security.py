"""SASL and TLS as each client spells them."""

import ssl
from typing import Any

from contracts.settings import KafkaSettings


class PasswordFileError(ValueError):
    """`kafka.sasl_password_file` cannot be read, or holds nothing."""


def tls_context(settings: KafkaSettings) -> ssl.SSLContext | None:
    """How this client speaks TLS; None where it does not.

    :raises OSError: a certificate or key cannot be read, or is none.
    """
    if not settings.security_protocol.endswith("SSL"):
        return None
    context = ssl.create_default_context(cafile=settings.ssl_cafile)
    context.check_hostname = settings.ssl_check_hostname
    if settings.ssl_certfile is not None:
        # A password in any case: without one OpenSSL would ask for it at the terminal.
        context.load_cert_chain(
            settings.ssl_certfile, settings.ssl_keyfile, settings.ssl_key_password.get_secret_value()
        )
    return context


def kafka_python_options(settings: KafkaSettings) -> dict[str, Any]:
    """What a kafka-python client is given besides its servers.

    :raises PasswordFileError: the password is in a file that cannot be read.
    """
    options: dict[str, Any] = {"security_protocol": settings.security_protocol}
    if settings.sasl_mechanism is not None:
        options["sasl_mechanism"] = settings.sasl_mechanism
        options["sasl_plain_username"] = settings.sasl_username
        options["sasl_plain_password"] = password(settings)
    if (context := tls_context(settings)) is not None:
        options["ssl_context"] = context
    return options


def confluent_options(settings: KafkaSettings) -> dict[str, str]:
    """The same for librdkafka.

    :raises PasswordFileError: the password is in a file that cannot be read.
    """
    options: dict[str, str] = {"security.protocol": settings.security_protocol}
    if settings.sasl_mechanism is not None:
        options["sasl.mechanism"] = settings.sasl_mechanism
        options["sasl.username"] = settings.sasl_username
        options["sasl.password"] = password(settings)
    if settings.security_protocol.endswith("SSL"):
        options["ssl.endpoint.identification.algorithm"] = "https" if settings.ssl_check_hostname else "none"
        for name, path in (
            ("ssl.ca.location", settings.ssl_cafile),
            ("ssl.certificate.location", settings.ssl_certfile),
            ("ssl.key.location", settings.ssl_keyfile),
        ):
            if path is not None:
                options[name] = str(path)
        if settings.ssl_key_password.get_secret_value():
            options["ssl.key.password"] = settings.ssl_key_password.get_secret_value()
    return options


def password(settings: KafkaSettings) -> str:
    """The password itself, for a client.

    :raises PasswordFileError: it is in a file that cannot be read, or that is empty.
    """
    path = settings.sasl_password_file
    if path is None:
        return settings.sasl_password.get_secret_value()
    try:
        found = path.read_text(encoding="utf-8").removesuffix("\n").removesuffix("\r")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise PasswordFileError(
            f"kafka.sasl_password_file {path} cannot be read: {why}. Give a readable file."
        ) from error
    if not found:
        raise PasswordFileError(f"kafka.sasl_password_file {path} is empty. Write the password into it.")
    return found
