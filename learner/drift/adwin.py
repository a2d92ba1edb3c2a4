"""ADWIN: a window that grows while its mean holds and drops its older part when the mean has changed.

Bifet and Gavaldà, "Learning from time-changing data with adaptive windowing", SDM 2007; the implementation is
river's, whose window lives in compiled code.
"""

import math
from collections.abc import Mapping
from typing import Any

from river.drift import ADWIN

DELTA = 0.002
CLOCK = 32

_STATE = {"window": bytes, "changed": bool, "n_detections": int}


class Detector:
    """Finds both abrupt and gradual changes; looks for one every ``CLOCK`` values."""

    def __init__(self) -> None:
        self._adwin = _new()
        self._n_detections = 0

    @property
    def n_detections(self) -> int:
        """Changes found so far."""
        return self._n_detections  # river's own count starts anew with the window after each change

    def update(self, value: float) -> bool:
        """Take one value; true where the mean has changed. A non-finite value is left out."""
        if not math.isfinite(value):
            return False
        self._adwin.update(value)
        changed = bool(self._adwin.drift_detected)
        self._n_detections += changed
        return changed

    def state(self) -> dict[str, Any]:
        """The window as bytes (bincode: numbers only, nothing that could run), and two small numbers."""
        return {
            "window": self._adwin._helper.__getstate__(),
            "changed": bool(self._adwin.drift_detected),
            "n_detections": self._n_detections,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state`.

        :raises ValueError: not a state of this detector.
        """
        wrong = [name for name, kind in _STATE.items() if not isinstance(state.get(name), kind)]
        if wrong:
            raise ValueError(
                f"An ADWIN state holds {', '.join(_STATE)}; missing or of another type: {', '.join(wrong)}."
            )
        window = state["window"]
        _probe(window)
        adwin = _new()
        adwin._helper.__setstate__(window)
        adwin._drift_detected = state["changed"]
        self._adwin, self._n_detections = adwin, state["n_detections"]


def _new() -> Any:
    make: Any = ADWIN  # river is untyped
    return make(delta=DELTA, clock=CLOCK)


def _probe(window: bytes) -> None:
    """Take the bytes into a throw-away window and work it once, since compiled code tells of bad ones only by panic."""
    trial = _new()
    try:
        trial._helper.__setstate__(window)
        intact = trial._helper.__getstate__() == window
        for _ in range(CLOCK):
            trial.update(0.0)
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # Rust's panic is no `Exception` and has no importable name
            raise
        raise ValueError(f"An ADWIN window of {len(window)} bytes cannot be read: {error}") from None
    if not intact:
        raise ValueError(f"An ADWIN window of {len(window)} bytes cannot be read: it holds more than a window.")
