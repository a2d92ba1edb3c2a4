"""The event: what happened, to whom, with what, when (DESIGN §2)."""

from typing import Annotated

import msgspec
from msgspec import Meta

MAX_ID_LENGTH = 256
MAX_TEXT_LENGTH = 4096
MAX_ATTRIBUTES = 128

Id = Annotated[str, Meta(min_length=1, max_length=MAX_ID_LENGTH)] | int
Text = Annotated[str, Meta(max_length=MAX_TEXT_LENGTH)]
Scalar = Text | int | float | bool | None
Attribute = Scalar | list[Scalar]
Attributes = Annotated[dict[Annotated[str, Meta(max_length=MAX_ID_LENGTH)], Attribute], Meta(max_length=MAX_ATTRIBUTES)]


class Event(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """One event of the stream. Unknown JSON fields are ignored; a missing or ill-typed one names its path.

    ``ts_ms`` is event time, milliseconds since the epoch. ``request_id`` ties an exposure to its outcomes.
    ``truth`` is written by the simulator only: the probability of each task's label, for the oracle in `evaluate`.
    """

    event_id: Id
    type: Annotated[str, Meta(min_length=1, max_length=64)]
    user_id: Id
    item_id: Id
    ts_ms: Annotated[int, Meta(ge=0, le=1 << 53)]
    request_id: Annotated[str, Meta(max_length=MAX_ID_LENGTH)] | None = None
    context: Attributes = {}
    item: Attributes = {}
    user: Attributes = {}
    value: float | None = None
    truth: dict[str, float] | None = None
