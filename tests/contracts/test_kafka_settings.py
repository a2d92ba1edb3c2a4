"""SASL and TLS settings: what must go together, and that a secret is never shown."""

import copy
import pickle
from pathlib import Path

import pytest
from pydantic import ValidationError

from contracts.settings import KafkaSettings, Settings, SettingsError, load_settings

SECRET = "hush-7d1f"
LOGIN = {
    "security_protocol": "SASL_SSL",
    "sasl_mechanism": "SCRAM-SHA-512",
    "sasl_username": "alice",
    "sasl_password": SECRET,
}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"security_protocol": "SASL_SSL"}, "SASL_SSL needs sasl_mechanism and sasl_username; set it too"),
        ({**LOGIN, "sasl_username": ""}, "security_protocol SASL_SSL needs sasl_username; set it too"),
        ({**LOGIN, "sasl_password": ""}, "needs sasl_password .* or sasl_password_file; found neither, give one"),
        ({**LOGIN, "sasl_password_file": "/run/secrets/kafka"}, "found both, give one"),
        ({**LOGIN, "security_protocol": "SSL"}, "sasl_mechanism, .* need security_protocol SASL_SSL .*; found SSL"),
        ({"sasl_mechanism": "PLAIN"}, "sasl_mechanism need security_protocol SASL_SSL .*; found PLAINTEXT"),
        ({"ssl_cafile": "ca.pem"}, "ssl_cafile need security_protocol SSL or SASL_SSL; found PLAINTEXT"),
        ({"security_protocol": "SSL", "ssl_certfile": "c.pem"}, "ssl_certfile c.pem needs ssl_keyfile too"),
        ({"security_protocol": "SSL", "ssl_keyfile": "k.pem"}, "ssl_keyfile k.pem needs ssl_certfile too"),
        ({**LOGIN, "sasl_mechanism": "GSSAPI"}, r"sasl_mechanism.*'PLAIN', 'SCRAM-SHA-256' or 'SCRAM-SHA-512'"),
        ({"security_protocol": "TLS"}, r"security_protocol.*found 'TLS'"),
    ],
)
def test_settings_that_do_not_fit_say_rule_value_and_way_out(values: dict[str, str], told: str) -> None:
    with pytest.raises(SettingsError, match=rf"(?s)kafka.*{told}") as caught:
        load_settings(None, {"kafka": values})
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        LOGIN,
        {**LOGIN, "security_protocol": "SASL_PLAINTEXT"},
        {"security_protocol": "SSL"},
        {"security_protocol": "SSL", "ssl_certfile": "c.pem", "ssl_keyfile": "k.pem", "ssl_key_password": SECRET},
    ],
)
def test_settings_that_fit_are_taken(values: dict[str, str]) -> None:
    assert KafkaSettings.model_validate(values).security_protocol == values["security_protocol"]


def test_a_secret_is_shown_nowhere_and_changes_no_fingerprint() -> None:
    settings = load_settings(None, {"kafka": {**LOGIN, "ssl_cafile": "ca.pem"}})
    shown = f"{settings} {settings!r} {settings.model_dump()} {settings.model_dump_json()} {vars(settings)}"
    assert SECRET not in shown
    assert settings.kafka.sasl_password.get_secret_value() == SECRET
    assert settings.fingerprint() == Settings().fingerprint()


def test_a_copy_for_another_process_keeps_the_secret() -> None:
    settings = load_settings(None, {"kafka": LOGIN})
    for other in (copy.deepcopy(settings), pickle.loads(pickle.dumps(settings))):
        assert other.kafka.sasl_password.get_secret_value() == SECRET


@pytest.mark.parametrize("password", ["hush", "12345", "null", "[1]", '"quoted"', "a\\b{c}", " spaced "])
def test_a_password_from_the_environment_is_taken_as_it_stands(password: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LOGIN.items():
        monkeypatch.setenv(f"ANABRANCH__KAFKA__{name.upper()}", value)
    monkeypatch.setenv("ANABRANCH__KAFKA__SASL_PASSWORD", password)
    assert load_settings().kafka.sasl_password.get_secret_value() == password


@pytest.mark.parametrize(
    "lines",
    [
        f'sasl_pasword = "{SECRET}"',
        f'password = "{SECRET}"',
        f'sasl_password = ["{SECRET}"]',
        f'sasl = {{ password = "{SECRET}" }}',
        f'sasl_password = "{SECRET}"\nsecurity_protocol = "SASL_SSL"',
        f'sasl_password = {{ value = "{SECRET}" }}',
        f'ssl_key_password = ["{SECRET}"]',
    ],
)
def test_an_error_about_a_secret_does_not_show_it(lines: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(f"[kafka]\n{lines}\n")
    with pytest.raises(SettingsError, match="kafka") as caught:
        load_settings(path)
    assert SECRET not in str(caught.value)
    assert isinstance(caught.value.__cause__, ValidationError)
    assert SECRET not in str(caught.value.__cause__), "a traceback would show it"
