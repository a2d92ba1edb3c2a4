"""Stopping in good order."""

import logging
import signal
from types import FrameType, TracebackType
from typing import Any, Self

log = logging.getLogger("anabranch.stop")


class StopOnSignal:
    """True once SIGINT or SIGTERM came. A second one ends the process at once, as without this."""

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __call__(self) -> bool:
        """Whether to stop."""
        return self._asked

    def ask(self) -> None:
        """Stop as if a signal had come."""
        self._asked = True

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        log.info("%s: finishing the batch, then a snapshot. Once more ends at once.", signal.Signals(number).name)
        self._asked = True
        for caught, handler in self._before.items():
            signal.signal(caught, handler)
