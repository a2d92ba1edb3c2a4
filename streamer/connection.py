"""The way to a broker: wait until it listens, make a client, and say plainly why that is not possible."""

import logging
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any, TypeVar

from kafka.errors import KafkaError

from contracts.settings import KafkaSettings
from streamer.login import LoginRefusedError, log_in
from streamer.security import PasswordFileError, tls_context

logger = logging.getLogger(__name__)
T = TypeVar("T")

FIRST_LOG_SECONDS = 1.0
LOG_EVERY_SECONDS = 5.0
PROBE_SECONDS = 2.0


class BrokerError(RuntimeError):
    """A broker cannot be started or reached, or lacks a topic; the message names it and the way out."""


class StopAskedError(Exception):
    """The process was asked to stop before a broker or a topic was there: nothing was read, nothing is lost."""


def never() -> bool:
    """Nobody asks to stop."""
    return False


def reached_by(kafka: str | KafkaSettings) -> KafkaSettings:
    """Settings of a broker that needs no more than its servers' names."""
    return KafkaSettings(bootstrap_servers=kafka) if isinstance(kafka, str) else kafka


def connect(make: Callable[[int], T], settings: KafkaSettings, timeout_ms: int, stop: Callable[[], bool] = never) -> T:
    """What ``make`` returns (a Kafka client), once a broker answers; a log line tells that it waits.

    A client that cannot connect leaves its thread behind, and does not say why. So one is made only when a broker was
    seen to listen and, where it asks for that, to let us in.

    :param make: gets the milliseconds that are left.
    :raises BrokerError: no broker after ``timeout_ms``, one of us does not trust the other, or an address that is none.
    :raises StopAskedError: ``stop`` said so while it waited.
    """
    servers = settings.bootstrap_servers
    addresses = [_address(server) for server in servers.split(",")]
    context = _context(settings)
    start_seconds = time.monotonic()
    told_seconds = start_seconds + FIRST_LOG_SECONDS - LOG_EVERY_SECONDS
    while not any(_welcomes(address, settings, context) for address in addresses):
        if stop():
            raise StopAskedError(f"Asked to stop while waiting for a Kafka broker at `{servers}`.")
        now_seconds = time.monotonic()
        if now_seconds - start_seconds >= timeout_ms / 1000:
            protocol = settings.security_protocol
            raise absent(
                servers, timeout_ms, "nothing listens there" + (f" by {protocol}" if protocol != "PLAINTEXT" else "")
            )
        if now_seconds - told_seconds >= LOG_EVERY_SECONDS:
            logger.warning("waiting for a Kafka broker at %s", servers)
            told_seconds = now_seconds
        time.sleep(0.1)
    left_ms = timeout_ms - int((time.monotonic() - start_seconds) * 1000)
    try:
        return make(max(left_ms, 1_000))
    except PasswordFileError as error:
        raise BrokerError(str(error)) from error
    except KafkaError as error:
        raise absent(servers, timeout_ms, f"{type(error).__name__}: {error}") from error


def refused(settings: KafkaSettings, why: str) -> BrokerError:
    """What to tell when the broker does not take the user."""
    return BrokerError(
        f"The Kafka broker at `{settings.bootstrap_servers}` refuses user `{settings.sasl_username}` by "
        f"{settings.sasl_mechanism}: {why.rstrip('.')}. Check kafka.sasl_username, the password and "
        "kafka.sasl_mechanism."
    )


def absent(bootstrap_servers: str, timeout_ms: int, why: str) -> BrokerError:
    """What to tell when no broker can be talked to."""
    return BrokerError(
        f"No Kafka broker answers at `{bootstrap_servers}` after {timeout_ms / 1000:.1f} s ({why}). Start one "
        "(`anabranch broker`), or set kafka.bootstrap_servers and kafka.security_protocol."
    )


def listens(address: tuple[str, int]) -> bool:
    """Whether a connection can be made."""
    try:
        socket.create_connection(address, timeout=PROBE_SECONDS).close()
    except OSError:
        return False
    return True


def close_producer(producer: Any, timeout_s: float) -> None:
    """Close a ``KafkaProducer`` within the time, whether or not its broker is still there."""
    try:
        producer.close(timeout=timeout_s)
    except KafkaError as error:
        logger.warning("closing with records that were not stored: %s", error)
        # kafka-python 3.0.12 gives up here before it stops its thread, and tries again when collected.
        producer._sender.force_close()
        producer._sender.join(timeout_s)
        producer.close(timeout=timeout_s)


def _welcomes(address: tuple[str, int], settings: KafkaSettings, context: ssl.SSLContext | None) -> bool:
    """Whether this broker listens and lets us in.

    :raises BrokerError: it says that it does not, or its certificate is not to be trusted: waiting does not help.
    """
    where = f"{address[0]}:{address[1]}"
    try:
        with socket.create_connection(address, timeout=PROBE_SECONDS) as plain:
            if settings.security_protocol == "PLAINTEXT":
                return True
            with context.wrap_socket(plain, server_hostname=address[0]) if context else plain as connection:
                log_in(connection, settings)
    except LoginRefusedError as error:
        raise refused(settings, str(error)) from error
    except PasswordFileError as error:
        raise BrokerError(str(error)) from error
    except ssl.SSLCertVerificationError as error:
        raise BrokerError(
            f"The certificate of the Kafka broker at {where} is not trusted: {error.verify_message.rstrip('.')}. Set "
            "kafka.ssl_cafile to the authority that signed it"
            + (", or name the broker as its certificate does." if settings.ssl_check_hostname else ".")
        ) from error
    except OSError as error:
        if isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or ""):
            raise BrokerError(
                f"The Kafka broker at {where} ends the TLS session: {error.reason}. Set kafka.ssl_certfile and "
                "kafka.ssl_keyfile to a certificate that it trusts."
            ) from error
        return False
    return True


def _context(settings: KafkaSettings) -> ssl.SSLContext | None:
    try:
        return tls_context(settings)
    except OSError as error:  # SSLError is one
        files = [settings.ssl_cafile, settings.ssl_certfile, settings.ssl_keyfile]
        raise BrokerError(
            f"TLS cannot be set up from {', '.join(str(path) for path in files if path)}: {error}. Give readable PEM "
            "files as kafka.ssl_cafile, ssl_certfile and ssl_keyfile, and ssl_key_password where the key has one."
        ) from error


def _address(server: str) -> tuple[str, int]:
    host, colon, port = server.strip().rpartition(":")
    if not host or not colon or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise BrokerError(f"Bootstrap servers are host:port, separated by commas; found `{server.strip()}`.")
    return host.strip("[]"), int(port)
