"""Page–Hinkley: the sum of deviations from the running mean, against its own extreme.

Page, "Continuous inspection schemes", Biometrika 41, 1954; the implementation is river's, two-sided.
"""

import math
from collections.abc import Mapping
from typing import Any

from river.drift import PageHinkley

DELTA = 0.005
"""Deviations smaller than this are no change."""
THRESHOLD = 50.0
ALPHA = 0.9999

_NUMBERS = ("_sum_increase", "_sum_decrease", "_min_increase", "_max_decrease")


class Detector:
    """Slow and steady: a loss that stays 0.3 above its mean is found after some 170 batches."""

    def __init__(self) -> None:
        self._test = _new()
        self._n_detections = 0

    @property
    def n_detections(self) -> int:
        """Changes found so far."""
        return self._n_detections

    def update(self, value: float) -> bool:
        """Take one value; true where the mean has changed. A non-finite value is left out."""
        if not math.isfinite(value):
            return False
        self._test.update(value)
        changed = bool(self._test.drift_detected)
        self._n_detections += changed
        return changed

    def state(self) -> dict[str, Any]:
        """The running mean and the sums, as numbers."""
        return {
            **{name.lstrip("_"): float(getattr(self._test, name)) for name in _NUMBERS},
            "n": float(self._test._x_mean.n),
            "mean": float(self._test._x_mean.get()),
            "changed": bool(self._test.drift_detected),
            "n_detections": self._n_detections,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state`.

        :raises ValueError: not a state of this detector.
        """
        wanted = [*(name.lstrip("_") for name in _NUMBERS), "n", "mean", "changed", "n_detections"]
        bad = [name for name in wanted if not isinstance(state.get(name), int | float)]
        if bad:
            raise ValueError(f"A Page–Hinkley state holds numbers named {', '.join(wanted)}; check {', '.join(bad)}.")
        test = _new()
        for name in _NUMBERS:
            setattr(test, name, float(state[name.lstrip("_")]))
        test._x_mean.n = float(state["n"])
        test._x_mean._mean = float(state["mean"])
        test._drift_detected = bool(state["changed"])
        self._test, self._n_detections = test, int(state["n_detections"])


def _new() -> Any:
    make: Any = PageHinkley  # river is untyped
    return make(delta=DELTA, threshold=THRESHOLD, alpha=ALPHA)
