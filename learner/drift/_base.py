"""What every drift detector promises; a detector is the class ``Detector`` of its module."""

from collections.abc import Mapping
from typing import Any, Protocol


class DriftDetector(Protocol):
    """Watches one number per mini-batch, a task's mean prequential log-loss, for a change of its mean.

    1. A detector is made without arguments: its settings are its module's own, from ALGORITHMS §7.
    2. Both directions count: a loss that falls (the model still learns, or labels became rarer) is a change too.
    3. A non-finite value is left out: one broken batch must not blind the detector for good.
    4. ``restore(state())`` on a new detector goes on exactly where the old one stood.
    """

    @property
    def n_detections(self) -> int:
        """Changes found so far, over the whole life including restores."""

    def update(self, value: float) -> bool:
        """Take one value; true where the mean has changed."""

    def state(self) -> dict[str, Any]:
        """Everything the future depends on, as plain msgpack types."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state`.

        :raises ValueError: not a state of this detector.
        """
