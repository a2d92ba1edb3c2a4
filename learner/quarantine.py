"""Batches that could not be learned, kept for a look at them: one safetensors file each, the newest few."""

import contextlib
import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from contracts.batch import Batch, Bools, Float32s, Layout, Rows

REASONS = ("score", "loss", "gradient")
"""What was not finite, in the order in which a step comes to it."""
_ABSURD = 100.0
"""Dense columns are of about unit scale, clipped or logarithms; what lies beyond is named as a suspect."""
_PARTIAL = ".partial"

log = logging.getLogger("anabranch.learner")


class NotFiniteError(ArithmeticError):
    """A number of a step is NaN or infinite: which one, and the dense columns that may have caused it."""

    def __init__(self, reason: str, suspects: tuple[str, ...]) -> None:
        cause = f"suspect: {', '.join(suspects)}" if suspects else "no dense column is suspect"
        super().__init__(f"its {reason} is not finite ({cause})")
        self.reason = reason
        self.suspects = suspects


def require_finite(reason: str, finite: bool, dense: Float32s, layout: Layout) -> None:
    """Go on, or say what is wrong.

    :param dense: shape ``[N, D]``, of the rows that were scored or learned.
    :raises NotFiniteError: not ``finite``.
    """
    if not finite:
        absurd: Bools = np.logical_not((np.abs(dense) < _ABSURD).all(0))  # NaN is not below
        raise NotFiniteError(reason, tuple(name for name, one in zip(layout.dense, absurd, strict=True) if one))


class Quarantine:
    """A folder of skipped batches.

    :param keep: files to keep; 0: none is written.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        self._directory = directory
        self._keep = keep

    def put(self, batch: Batch, matured: Rows, error: NotFiniteError, number: int) -> Path | None:
        """Write the batch's columns, then delete the oldest files beyond ``keep``.

        A failure is logged: a disk that is full must not end the learning.

        :param matured: features of ``batch.matured_slot``, as they were kept.
        :param number: batches skipped so far, this one included; with the batch's time, the file's name. A run that
            resumes and comes to the same batch again writes the same file.
        :returns: the file; None where there is none.
        """
        if not self._keep:
            return None
        path = self._directory / f"{batch.first_event_ms}-{number:06d}-{error.reason}.safetensors"
        content = safetensors.numpy.save(
            _columns(batch) | {f"matured_rows.{name}": array for name, array in _columns(matured).items()},
            {"reason": error.reason, "suspects": ", ".join(error.suspects)},
        )
        beside = path.with_name(path.name + _PARTIAL)
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            beside.write_bytes(content)
            beside.replace(path)
            for old in sorted(self._directory.glob("*.safetensors"), key=lambda one: one.stat().st_mtime_ns)[
                : -self._keep
            ]:
                old.unlink()
        except OSError as failure:
            log.warning("The skipped batch cannot be kept in %s: %s", path, failure)
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
            return None
        return path


def _columns(record: Any) -> dict[str, NDArray[Any]]:
    """The arrays of a dataclass by name, those of a dataclass inside it behind its name."""
    found: dict[str, NDArray[Any]] = {}
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, np.ndarray):
            found[field.name] = np.ascontiguousarray(value)
        elif isinstance(value, Rows):
            found |= {f"{field.name}.{name}": array for name, array in _columns(value).items()}
    return found
