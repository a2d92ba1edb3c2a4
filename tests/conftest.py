"""Fixtures that every folder may use: brokers and topic names."""

import contextlib
import importlib.util
import os
import re
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

with warnings.catch_warnings():
    # kafka-python reads its schemas at import by functions that Python 3.11 deprecates (and 3.13 took back in).
    warnings.filterwarnings("ignore", "(read|open)_text is deprecated", DeprecationWarning)
    from streamer.broker import EmbeddedBroker

REQUIRE_KAFKA = "ANABRANCH_REQUIRE_KAFKA"

# A test folder is no package (tests/streamer would shadow streamer), so this helper is loaded by its path.
_SPEC = importlib.util.spec_from_file_location("apache_kafka_for_tests", Path(__file__).parent / "kafka" / "apache.py")
assert _SPEC is not None
assert _SPEC.loader is not None
_APACHE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_APACHE)


def pytest_configure(config: pytest.Config) -> None:
    # kafka-python forgets to close a socket that fails to connect: tests that stop a broker meet that.
    config.addinivalue_line("filterwarnings", "ignore:unclosed <socket:ResourceWarning")


@pytest.fixture(scope="session")
def embedded_broker() -> Iterator[str]:
    """Bootstrap servers of an embedded broker, one for the session."""
    with EmbeddedBroker() as broker:
        yield broker.bootstrap_servers


@pytest.fixture(scope="session")
def apache_broker() -> Iterator[Any]:
    """Apache Kafka, one for the session. Who halts it starts it again. A test that asks for it is marked `kafka`."""
    with _started() as broker:
        yield broker


@pytest.fixture(scope="session")
def apache_kafka(apache_broker: Any) -> str:
    """Its bootstrap servers."""
    return str(apache_broker.bootstrap_servers)


@pytest.fixture(scope="session")
def secured_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Apache Kafka with SASL and TLS; its certificate is for `localhost`. A test that asks for it is marked `kafka`.

    ``.servers[protocol]`` and ``.login``, see `tests/kafka/apache.py`.
    """
    with _started(_APACHE.Login.made_in(tmp_path_factory.mktemp("login"))) as broker:
        yield broker


@pytest.fixture(scope="module")
def two_brokers() -> Iterator[tuple[Any, Any]]:
    """Two brokers of Apache Kafka in one cluster, whose only controller is in the first: the second may be halted."""
    with _started() as first, _started(beside=first) as second:
        yield first, second


@pytest.fixture(params=["embedded", pytest.param("apache", marks=pytest.mark.kafka)])
def broker(request: pytest.FixtureRequest) -> str:
    """Bootstrap servers of each broker in turn."""
    name = "embedded_broker" if request.param == "embedded" else "apache_kafka"
    return str(request.getfixturevalue(name))


@pytest.fixture(scope="session")
def alert_commands() -> list[str]:
    """The shell commands that docs/operations.md prints for alerts, in order; a row of the page broken is one line."""
    page = (Path(__file__).parents[1] / "docs" / "operations.md").read_text(encoding="utf-8")
    section = page.partition("## When an alert fires\n")[2].replace("\n", " ")
    return re.findall(r"`((?:docker compose|kafka-[a-z-]+\.sh|anabranch|python|ANABRANCH__\S+) [^`]+)`", section)


@pytest.fixture(scope="session")
def alert_command(alert_commands: list[str]) -> Callable[[str], str]:
    """The one of them that begins like this."""

    def command(begin: str) -> str:
        (found,) = {one for one in alert_commands if one.startswith(begin)}
        return found

    return command


@pytest.fixture
def topic() -> str:
    """A name that no other test uses; the topic is not created."""
    return f"test-{uuid.uuid4().hex[:12]}"


@contextlib.contextmanager
def _a_user_whom_rights_concern() -> Iterator[None]:
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65_534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@pytest.fixture(scope="session")
def as_a_user_whom_rights_concern() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Root reads everything; in this context it is nobody."""
    return _a_user_whom_rights_concern


class _started:  # noqa: N801 - reads as what it is
    def __init__(self, login: Any = None, beside: Any = None) -> None:
        self._login, self._beside = login, beside

    def __enter__(self) -> Any:
        if missing := _APACHE.why_not():
            if os.environ.get(REQUIRE_KAFKA) == "1":
                pytest.fail(f"{REQUIRE_KAFKA}=1, but {missing}")
            pytest.skip(missing)
        self._broker = _APACHE.ApacheKafka(self._login, self._beside)
        return self._broker.start()

    def __exit__(self, *_: object) -> None:
        self._broker.stop()
