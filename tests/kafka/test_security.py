"""SASL and TLS against Apache Kafka with both on: everything that talks to it, and what is told when it says no."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any, Self

import pytest

from contracts.events import Event
from contracts.records import Record
from contracts.settings import KafkaSettings
from streamer.broker import BrokerError, create_topics
from streamer.deadletter import KafkaDeadLetters
from streamer.publish import EventPublisher
from streamer.simulator import ShopSimulator, SimulatorSettings
from streamer.sources.topic import open_topic

pytestmark = pytest.mark.kafka

ROOT = Path(__file__).parents[2]
WAYS = (
    ("SASL_SSL", "SCRAM-SHA-512"),
    ("SASL_SSL", "PLAIN"),
    ("SASL_PLAINTEXT", "SCRAM-SHA-256"),
    ("SSL", None),
)
SMALL = """
[features]
users = 1000
items = 1000
pairs = 1024
values = 1024
[embedding]
max_mib = 1.0
[model]
width = 4
experts = 2
expert_layers = [8, 6]
[metrics]
port = 0
"""


def _settings(
    broker: Any, topic: str, protocol: str = "SASL_SSL", mechanism: str | None = "PLAIN", **more: object
) -> KafkaSettings:
    """What reaches the secured broker by this way; ``more`` changes it."""
    login = broker.login
    values: dict[str, object] = {
        "bootstrap_servers": broker.servers[protocol],
        "topic": topic,
        "group": topic,
        "session_timeout": "1s",
        "security_protocol": protocol,
    }
    if mechanism is not None:
        values |= {"sasl_mechanism": mechanism, "sasl_username": login.user, "sasl_password": login.password}
    if protocol.endswith("SSL"):
        values["ssl_cafile"] = login.cafile
    if protocol == "SSL":
        values |= {"ssl_certfile": login.certfile, "ssl_keyfile": login.keyfile}
        values["ssl_key_password"] = login.key_password
    return KafkaSettings.model_validate({**values, **more})


def _event(n: int) -> Event:
    return Event(event_id=str(n), type="click", user_id=n, item_id=n, ts_ms=n)


def _read(settings: KafkaSettings) -> list[Record]:
    records: list[Record] = []
    with open_topic(settings) as source:
        while not source.caught_up():
            records += source.poll(100)
    return records


@pytest.mark.parametrize(("protocol", "mechanism"), WAYS)
def test_topics_events_and_dead_letters_come_through(
    secured_kafka: Any, topic: str, protocol: str, mechanism: str | None
) -> None:
    settings = _settings(secured_kafka, topic, protocol, mechanism)
    create_topics(settings, {topic: 1})
    with EventPublisher(settings, topic) as publisher:
        for n in range(5):
            publisher.publish(_event(n))
    with KafkaDeadLetters(settings) as sink:
        sink.send(Record(topic, 0, 7, None, b"bad"), "not_json", "")
        sink.flush(10)
    for client in ("kafka-python", "confluent"):
        assert len(_read(_settings(secured_kafka, topic, protocol, mechanism, client=client))) == 5
        dead = _settings(secured_kafka, settings.dead_letters, protocol, mechanism, client=client, group=client)
        assert [record.value for record in _read(dead)] == [b"bad"]


@pytest.mark.parametrize("client", ["kafka-python", "confluent"])
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_wrong_password_is_told_at_once_and_not_shown(
    secured_kafka: Any, topic: str, client: str, mechanism: str
) -> None:
    settings = _settings(secured_kafka, topic, "SASL_SSL", mechanism, client=client, sasl_password="not-the-password")
    with pytest.raises(
        BrokerError, match=rf"refuses user `alice` by {mechanism}: .*Check kafka\.sasl_username"
    ) as told:
        open_topic(settings)
    assert "not-the-password" not in str(told.value)


def test_a_password_may_be_in_a_file(secured_kafka: Any, topic: str, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(secured_kafka.login.password + "\n")
    create_topics(_settings(secured_kafka, topic, sasl_password="", sasl_password_file=file), {topic: 1})
    file.unlink()
    with pytest.raises(BrokerError, match=rf"kafka\.sasl_password_file {file} cannot be read: No such file"):
        create_topics(_settings(secured_kafka, topic, sasl_password="", sasl_password_file=file), {topic: 1})


def test_a_certificate_that_nobody_vouches_for_is_refused(secured_kafka: Any, topic: str) -> None:
    for client in ("kafka-python", "confluent"):
        with pytest.raises(BrokerError, match=r"certificate .* is not trusted: .*Set kafka\.ssl_cafile"):
            open_topic(_settings(secured_kafka, topic, ssl_cafile=None, client=client))


def test_a_certificate_of_another_host_is_refused_unless_names_do_not_matter(secured_kafka: Any, topic: str) -> None:
    by_number = secured_kafka.servers["SASL_SSL"].replace("localhost", "127.0.0.1")
    with pytest.raises(BrokerError, match=r"not valid for '127\.0\.0\.1'\. .*name the broker as its certificate does"):
        create_topics(_settings(secured_kafka, topic, bootstrap_servers=by_number), {topic: 1})
    create_topics(_settings(secured_kafka, topic, bootstrap_servers=by_number, ssl_check_hostname=False), {topic: 1})
    for client in ("kafka-python", "confluent"):
        changes = {"bootstrap_servers": by_number, "ssl_check_hostname": False, "client": client}
        assert _read(_settings(secured_kafka, topic, **changes)) == []


def test_a_client_without_a_certificate_is_told_what_to_set(secured_kafka: Any, topic: str) -> None:
    with pytest.raises(BrokerError, match=r"ends the TLS session: .*Set kafka\.ssl_certfile"):
        create_topics(_settings(secured_kafka, topic, "SSL", None, ssl_certfile=None, ssl_keyfile=None), {topic: 1})


def test_a_key_without_its_password_is_told_and_asks_nobody(secured_kafka: Any, topic: str) -> None:
    with pytest.raises(BrokerError, match=r"TLS cannot be set up from .*client\.key: .*ssl_key_password"):
        create_topics(_settings(secured_kafka, topic, "SSL", None, ssl_key_password=""), {topic: 1})


def test_a_listener_without_tls_is_told_apart_from_a_broker_that_is_absent(secured_kafka: Any, topic: str) -> None:
    plain = secured_kafka.servers["PLAINTEXT"]
    with pytest.raises(BrokerError, match=r"nothing listens there by SASL_SSL.*kafka\.security_protocol"):
        create_topics(_settings(secured_kafka, topic, bootstrap_servers=plain), {topic: 1}, timeout_ms=300)


class _Learn:
    """`anabranch learn` as a process over SASL_SSL, or another way; passwords by the environment, or in a file."""

    def __init__(self, broker: Any, topic: str, folder: Path, *options: str, **kafka: str) -> None:
        self.folder = folder
        login = broker.login
        protocol = kafka.pop("security_protocol", "SASL_SSL")
        lines = {
            "bootstrap_servers": broker.servers[protocol],
            "topic": topic,
            "group": topic,
            "session_timeout": "1s",
            "security_protocol": protocol,
            **({"sasl_username": login.user} if protocol.startswith("SASL") else {}),
            "ssl_cafile": login.cafile.as_posix(),
            **kafka,
        }
        passwords = {name: lines.pop(name, "") for name in ("sasl_password", "ssl_key_password")}
        config = folder / "settings.toml"
        config.write_text(
            SMALL
            + f'[snapshot]\ndirectory = "{(folder / "snapshots").as_posix()}"\nevery = "1s"\n[kafka]\n'
            + "".join(f'{key} = "{value}"\n' for key, value in lines.items())
        )
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        for name, password in passwords.items():
            if password:
                environment[f"ANABRANCH__KAFKA__{name.upper()}"] = password
        self._output = folder / "output.txt"
        with self._output.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cli.main", "learn", "-c", str(config), *options],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )

    @property
    def output(self) -> str:
        return self._output.read_text()

    def metrics_after(self, n_events: int) -> str:
        """What Prometheus is told once so many events are consumed."""
        deadline, metrics = time.monotonic() + 60, ""
        while sum(map(float, re.findall(r"(?m)^anabranch_events_consumed_total\S* (\S+)$", metrics))) < n_events:
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, f"{self.output}\n{metrics}"
            time.sleep(0.1)
            if url := re.search(r"Metrics on (http://\S+/metrics)", self.output):
                with urllib.request.urlopen(url[1], timeout=10) as reply:
                    metrics = reply.read().decode()
        return metrics

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def everything_written(self) -> bytes:
        """Output and snapshots; the settings file is the test's own."""
        files = [self._output, *(path for path in (self.folder / "snapshots").rglob("*") if path.is_file())]
        return b"\0".join(path.read_bytes() for path in files)


@pytest.fixture
def shop(secured_kafka: Any, topic: str) -> int:
    """A topic of simulated events; how many."""
    settings = _settings(secured_kafka, topic)
    create_topics(settings, {topic: 2})
    with EventPublisher(settings, topic) as publisher:
        for event in ShopSimulator(SimulatorSettings(seed=1, events=1500, n_users=200, n_items=100)).events():
            publisher.publish(event)
    return publisher.n_sent


def test_learn_reads_by_scram_and_its_password_is_nowhere(
    secured_kafka: Any, topic: str, shop: int, tmp_path: Path
) -> None:
    password = secured_kafka.login.password
    with _Learn(secured_kafka, topic, tmp_path, sasl_mechanism="SCRAM-SHA-512", sasl_password=password) as learn:
        metrics = learn.metrics_after(shop)
        learn.process.send_signal(signal.SIGTERM)
        assert learn.process.wait(30) == 0, learn.output
    assert list((tmp_path / "snapshots").glob("v*/manifest.json"))
    assert password not in metrics
    assert password.encode() not in learn.everything_written()


def test_learn_reads_by_plain_with_the_password_in_a_file(
    secured_kafka: Any, topic: str, shop: int, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    file.write_text(secured_kafka.login.password)
    options = {"sasl_mechanism": "PLAIN", "sasl_password_file": file.as_posix(), "client": "kafka-python"}
    report = str(tmp_path / "report.json")
    with _Learn(secured_kafka, topic, tmp_path, "--until-end", "--json", report, **options) as learn:
        assert learn.process.wait(60) == 0, learn.output
    assert f"Stopped after {shop} events" in learn.output
    written = learn.everything_written() + (tmp_path / "report.json").read_bytes()
    assert secured_kafka.login.password.encode() not in written


def _certificate(login: Any) -> dict[str, str]:
    return {
        "security_protocol": "SSL",
        "ssl_certfile": login.certfile.as_posix(),
        "ssl_keyfile": login.keyfile.as_posix(),
    }


@pytest.mark.parametrize("client", ["kafka-python", "confluent"])
def test_learn_reads_by_a_certificate_and_the_password_of_its_key_is_nowhere(
    client: str, secured_kafka: Any, topic: str, shop: int, tmp_path: Path
) -> None:
    login, key = secured_kafka.login, _certificate(secured_kafka.login)
    with _Learn(secured_kafka, topic, tmp_path, **key, client=client, ssl_key_password=login.key_password) as learn:
        metrics = learn.metrics_after(shop)
        learn.process.send_signal(signal.SIGTERM)
        assert learn.process.wait(30) == 0, learn.output
    written = learn.everything_written()
    assert b"Settings from the environment: ANABRANCH__KAFKA__SSL_KEY_PASSWORD" in written
    assert list((tmp_path / "snapshots").glob("v*/manifest.json"))
    assert login.key_password not in metrics
    assert login.key_password.encode() not in written


def test_learn_with_a_wrong_key_password_ends_with_one_line_that_does_not_show_it(
    secured_kafka: Any, topic: str, tmp_path: Path
) -> None:
    key = _certificate(secured_kafka.login)
    with _Learn(secured_kafka, topic, tmp_path, **key, ssl_key_password="wrong-but-secret") as learn:
        assert learn.process.wait(30) == 1, learn.output
    assert re.search(r"TLS cannot be set up from [^\n]*\n\Z", learn.output)
    assert "Traceback" not in learn.output
    assert b"wrong-but-secret" not in learn.everything_written()


def test_learn_with_a_wrong_password_ends_with_one_line_that_does_not_show_it(
    secured_kafka: Any, topic: str, tmp_path: Path
) -> None:
    options = {"sasl_mechanism": "SCRAM-SHA-512", "sasl_password": "wrong-but-secret"}
    with _Learn(secured_kafka, topic, tmp_path, **options) as learn:
        assert learn.process.wait(30) == 1, learn.output
    assert re.search(r"refuses user `alice` by SCRAM-SHA-512: [^\n]*\n\Z", learn.output)
    assert "Traceback" not in learn.output
    assert b"wrong-but-secret" not in learn.everything_written()
