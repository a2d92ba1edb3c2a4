"""Anabranch's own commands as child processes, for `demo`."""

import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

_STOP_SECONDS = 15.0
_TAIL_LINES = 15


class ChildError(RuntimeError):
    """A child ended before it should; the message holds the end of its log."""


class Child:
    """`anabranch NAME -c FILE` until the context ends: SIGTERM, then SIGKILL if it does not listen.

    :param log: where its output goes.
    """

    def __init__(self, name: str, settings: Path, log: Path) -> None:
        self._name = name
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                [sys.executable, "-m", "cli.main", name, "-c", str(settings)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C goes to the whole foreground group: the parent stops its children in order instead.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def check(self) -> None:
        """See that it still runs.

        :raises ChildError: it has ended.
        """
        code = self._process.poll()
        if code is not None:
            tail = "\n".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:])
            raise ChildError(f"`anabranch {self._name}` ended with code {code}:\n{tail}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
