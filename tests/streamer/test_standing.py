"""What becomes of offsets that the broker does not have, whichever client tells of it."""

import pytest

from contracts.settings import KafkaSettings
from streamer.sources._standing import OffsetsLostError, Standing


def standing(missing_offsets: str, offset: int) -> Standing:
    made = Standing(KafkaSettings.model_validate({"missing_offsets": missing_offsets}), frozenset({0}))
    made.seek({("events", 0): offset})
    return made


def test_an_error_about_a_partition_that_was_taken_away_meanwhile_is_not_ours() -> None:
    """The fetch failed, then the group moved the partition: whoever has it next finds out."""
    for missing_offsets in ("fail", "skip"):
        assert standing(missing_offsets, 1000).miss([], "requested offset not available") == []


def test_deleted_records_end_the_stream_or_are_counted() -> None:
    with pytest.raises(OffsetsLostError, match=r"events\[0\]: wants offset 1000, the broker has 1600 to 3000"):
        standing("fail", 1000).miss([(0, 1600, 3000)], "why")
    skipping = standing("skip", 1000)
    assert skipping.miss([(0, 1600, 3000)], "why") == [0]
    assert skipping.skipped == {("events", 0): 600}
    assert skipping.next == {("events", 0): 1600}


def test_an_error_that_no_range_explains_is_told_as_it_came() -> None:
    with pytest.raises(OffsetsLostError, match="log truncated"):
        standing("skip", 1000).miss([(0, 0, 3000)], "log truncated")
