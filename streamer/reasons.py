"""From an error of msgspec to the bounded reason of a bad record."""

import re

import msgspec

from contracts.records import BadRecordError


def explain(error: Exception) -> BadRecordError:
    """The bad record behind an error of msgspec, whose message names the JSON path."""
    text = str(error)
    if not isinstance(error, msgspec.ValidationError):
        return BadRecordError("not_json", f"Not JSON that can be read: {text}.")
    if text.startswith("Number out of range"):
        return BadRecordError("non_finite", f"{text}: a number must be finite.")
    if text.startswith("Object missing required field") or "length >= 1" in text:
        return BadRecordError("missing_field", text)
    if "length <= " in text or text.startswith("Integer value out of range"):
        return BadRecordError("too_long", text)
    if re.search(r"<= \d+ - at `\$\.ts_ms`", text):
        return BadRecordError("future", f"{text}; event time is in milliseconds since the epoch.")
    return BadRecordError("wrong_type", text)
