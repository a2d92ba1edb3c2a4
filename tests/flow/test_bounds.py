"""Everything has a cap: what goes at one is counted by cause, and no event is dropped silently."""

import pytest

from contracts.events import Event

START_MS = 1_735_689_600_000
MAX_OPEN, CAPACITY = 300, 32
CAPS = {
    "ANABRANCH__EVENTS__MAX_OPEN": str(MAX_OPEN),
    "ANABRANCH__EVENTS__DEDUPLICATE_MAX": "500",
    "ANABRANCH__FEATURES__USERS": str(CAPACITY),
    "ANABRANCH__FEATURES__ITEMS": "64",
    "ANABRANCH__FEATURES__RECENT_ITEMS": "16",
    "ANABRANCH__FEATURES__PAIRS": "1024",
    "ANABRANCH__FEATURES__VALUES": "1024",
    "ANABRANCH__FEATURES__COVISITS": "1024",
    "ANABRANCH__EMBEDDING__MAX_MIB": "0.25",
    "ANABRANCH__EMBEDDING__ADMIT_AFTER": "1",
}


def view(number, user, item, kind="content_view"):
    return Event(
        event_id=f"{kind}-{number}-{user}-{item}",
        type=kind,
        user_id=user,
        item_id=item,
        ts_ms=START_MS + number,
        item={"category": f"c{item}"},
    )


def one_user_with_all_events(n_events):
    return [view(n, "the-one", f"i{n}", ("content_view", "click")[n % 2]) for n in range(n_events)]


def one_item_with_all_events(n_events):
    return [view(n_events + n, f"u{n}", "the-one") for n in range(n_events)]


@pytest.mark.slow
def test_one_user_and_one_item_with_all_events_stay_under_every_cap_and_what_goes_is_counted(
    embedded_broker, topic, flow, produce, stream_of
):
    n_each = 4_000
    events = one_user_with_all_events(n_each) + one_item_with_all_events(n_each)
    stream = stream_of(embedded_broker, topic, events)
    flow.configure(stream)
    produce(stream, events)
    with flow.start("learn", "-c", flow.config, environment=CAPS) as run:
        run.until(lambda: run.consumed() == len(events))  # none is missing: dropped ones would be
        told = run.metrics()
        run.stop()
    assert told["anabranch_joiner_open_keys"] == MAX_OPEN
    n_views = sum(event.type == "content_view" for event in events)
    assert told["anabranch_joiner_evicted_total"] == n_views - MAX_OPEN
    assert told["anabranch_deduplicate_ended_early_total"] > 0
    assert told["anabranch_embedding_evicted_total"] > 0
    assert told["anabranch_embedding_bytes"] <= 0.25 * (1 << 20)
    assert told["anabranch_joiner_orphans_total"] == n_each // 2, "each click is of an item that was not shown"
    newest = flow.newest().groups["profiles"]
    assert len(newest["users.row"]) <= CAPACITY
    assert 0 < len(newest["covisits.entry"]) <= 1_024
    for what in ("users", "items", "pairs", "values", "covisits"):
        assert told[f"anabranch_state_evicted_total {what}"] > 0, what
