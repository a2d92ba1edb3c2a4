"""The join: named cases, and any sequence of events against a model that keeps every exposure in a list."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from contracts.records import Partition
from contracts.settings import Task
from streamer.join import LABELLED, LATE, ORPHAN, Joiner, advance, delay_bounds_ms, expose, label

P0, P1 = ("events", 0), ("events", 1)
WINDOWS_MS = (0, 10, 30, 10, 10)  # the exposure's own task waits for nothing
DELAYS = ("wait", "wait", "fnc_in_loss", "fnc_in_loss", "delay_head")
WAIT_MS = 4  # of the delay head
CLICK, PURCHASE, SHARE, CART = 1, 2, 3, 4
OUTCOMES = (CLICK, PURCHASE, SHARE, CART)
USER, OTHER = 1 << 40, 2 << 40


class Driven(Joiner):
    """A joiner that is given its events one by one, each with just the room that it needs."""

    def advance(self, partition: Partition, time_ms: int) -> None:
        self.reserve(0)
        advance(self.state, self.partition(partition), time_ms)

    def expose(self, partition: Partition, time_ms: int, user: int, item: int, request: int) -> int:
        place = self.partition(partition)
        self.reserve(1)
        return int(expose(self.state, place, time_ms, user, item, request))

    def label(self, task: int, time_ms: int, user: int, item: int, request: int) -> str:
        self.reserve(1)
        found = label(self.state, task, time_ms, user, item, request)
        return {LABELLED: "labelled", LATE: "late", ORPHAN: "orphan"}[int(found)]


def _joiner(lateness_ms: int = 0, max_open: int = 1000, delays: tuple[str, ...] = DELAYS) -> Driven:
    tasks = [
        Task.model_validate({"name": f"t{n}", "window": f"{window_ms}ms", "delay": delay, "wait": f"{WAIT_MS}ms"})
        for n, (window_ms, delay) in enumerate(zip(WINDOWS_MS, delays, strict=True))
    ]
    return Driven(tasks, OUTCOMES, lateness_ms, max_open)


Became = tuple[int, set[int], set[int], set[int], set[int]]
"""Slot, labels, tasks whose label is final, tasks to learn from now, positives more; labels only of these tasks."""


def _taken(joiner: Joiner) -> list[Became]:
    matured = joiner.take_matured()
    return [
        (
            slot,
            *(
                {task for task in OUTCOMES if mask & 1 << task}
                for mask in (labels & (known | learn), known, learn, late)
            ),
        )
        for slot, labels, known, learn, late in zip(*(column.tolist() for column in matured), strict=True)
    ]


def _final(joiner: Joiner) -> list[tuple[int, set[int], set[int]]]:
    """Slot, labels and tasks of the windows that closed."""
    return [(slot, labels, known) for slot, labels, known, *_ in _taken(joiner) if known]


def test_an_outcome_labels_its_exposure_and_each_window_closes_for_itself() -> None:
    joiner = _joiner()
    slot = joiner.expose(P0, 100, USER, 2, 0)
    assert joiner.label(CLICK, 104, USER, 2, 0) == "labelled"
    joiner.advance(P0, 110)
    assert _final(joiner) == []
    joiner.advance(P0, 111)
    assert _final(joiner) == [(slot, {CLICK}, {CLICK, SHARE, CART})]
    assert joiner.label(PURCHASE, 130, USER, 2, 0) == "labelled"
    joiner.advance(P0, 131)
    assert _final(joiner) == [(slot, {PURCHASE}, {PURCHASE})]
    assert joiner.n_open == 0


def test_an_outcome_at_the_end_of_its_window_counts_and_one_later_is_late() -> None:
    joiner = _joiner(lateness_ms=20)
    joiner.expose(P0, 100, USER, 2, 0)
    assert joiner.label(CLICK, 110, USER, 2, 0) == "labelled"
    assert joiner.label(SHARE, 111, USER, 2, 0) == "late"


def test_a_late_click_labels_the_exposure_it_belongs_to() -> None:
    """The request is named: not the latest exposure of the pair gets the label."""
    joiner = _joiner()
    first = joiner.expose(P0, 100, USER, 2, 1 << 50)
    second = joiner.expose(P0, 105, USER, 2, 2 << 50)
    joiner.label(CLICK, 106, USER, 2, 1 << 50)
    joiner.advance(P0, 200)
    labels = {slot: labels for slot, labels, known in _final(joiner) if CLICK in known}
    assert labels == {first: {CLICK}, second: set()}


def test_without_a_request_the_latest_exposure_of_user_and_item_is_labelled() -> None:
    joiner = _joiner(lateness_ms=50)
    joiner.expose(P0, 100, USER, 2, 0)
    latest = joiner.expose(P0, 105, USER, 2, 0)
    joiner.expose(P0, 103, USER, 2, 0)  # later in the stream, earlier in time
    joiner.expose(P0, 106, USER, 3, 0)
    joiner.expose(P0, 106, OTHER, 2, 0)
    assert joiner.label(CLICK, 107, USER, 2, 0) == "labelled"
    joiner.advance(P0, 500)
    assert [slot for slot, labels, _ in _final(joiner) if labels] == [latest]


def test_an_unknown_request_falls_back_on_the_pair() -> None:
    joiner = _joiner()
    joiner.expose(P0, 100, USER, 2, 1 << 50)
    assert joiner.label(CLICK, 101, USER, 2, 9 << 50) == "labelled"


def test_the_same_request_with_another_item_is_no_match() -> None:
    joiner = _joiner()
    joiner.expose(P0, 100, USER, 2, 1 << 50)
    assert joiner.label(CLICK, 101, USER, 3, 1 << 50) == "orphan"


def test_an_outcome_before_every_exposure_of_the_pair_is_an_orphan() -> None:
    joiner = _joiner()
    joiner.expose(P0, 100, USER, 2, 0)
    assert joiner.label(CLICK, 99, USER, 2, 0) == "orphan"


def test_an_event_out_of_order_within_the_lateness_still_labels() -> None:
    joiner = _joiner(lateness_ms=15)
    joiner.expose(P0, 100, USER, 2, 0)
    joiner.advance(P0, 125)
    assert joiner.label(CLICK, 109, USER, 2, 0) == "labelled"
    joiner.advance(P0, 126)
    assert joiner.label(CLICK, 109, USER, 2, 0) == "late"


def test_a_partition_that_is_ahead_closes_no_window_of_another() -> None:
    joiner = _joiner()
    joiner.expose(P0, 100, USER, 2, 0)
    joiner.advance(P1, 10_000)
    assert _final(joiner) == []
    assert joiner.label(CLICK, 105, USER, 2, 0) == "labelled"


def test_a_slot_is_used_again_once_and_only_after_its_labels_were_taken() -> None:
    joiner = _joiner()
    first = joiner.expose(P0, 100, USER, 2, 0)
    joiner.advance(P0, 200)
    second = joiner.expose(P0, 200, USER, 3, 0)
    assert second != first
    for _ in range(2):
        _final(joiner)
    third, fourth = (joiner.expose(P0, 200, USER, item, 0) for item in (4, 5))
    assert third == first
    assert len({second, third, fourth}) == 3


def test_beyond_the_cap_the_oldest_exposure_is_given_up_unlabelled() -> None:
    joiner = _joiner(max_open=2)
    joiner.expose(P0, 100, USER, 1, 0)
    kept = [joiner.expose(P1, 90 + n, USER, 2 + n, 0) for n in range(2)]
    assert (joiner.n_open, joiner.n_evicted) == (2, 1)
    assert joiner.label(CLICK, 101, USER, 2, 0) == "orphan"
    joiner.expose(P0, 101, USER, 9, 0)
    assert joiner.label(CLICK, 102, USER, 3, 0) == "orphan"
    assert joiner.label(CLICK, 102, USER, 1, 0) == "labelled"
    joiner.close_all()
    assert not {slot for slot, *_ in _final(joiner)} & set(kept)


def test_an_exposure_from_long_ago_closes_at_the_next_event() -> None:
    joiner = _joiner()
    joiner.advance(P0, 10_000)
    for n in range(3):
        joiner.expose(P0, 10_000, USER, 1 + n, 0)
    old = joiner.expose(P0, 5, USER, 9, 0)
    joiner.advance(P0, 10_001)
    assert {slot for slot, *_ in _final(joiner)} == {old}


def test_at_the_end_of_a_log_every_open_window_closes_as_it_stands() -> None:
    joiner = _joiner()
    slot = joiner.expose(P0, 100, USER, 2, 0)
    joiner.label(PURCHASE, 101, USER, 2, 0)
    joiner.close_all()
    assert _final(joiner) == [(slot, set(), {CLICK, SHARE, CART}), (slot, {PURCHASE}, {PURCHASE})]
    assert joiner.n_open == 0


def test_a_label_is_learned_once_at_its_outcome_or_at_the_end_of_its_window() -> None:
    """As each task's ``delay`` says; every window's end is told for measuring."""
    joiner = _joiner()
    slot = joiner.expose(P0, 100, USER, 2, 0)
    for task in (CLICK, SHARE, SHARE):
        assert joiner.label(task, 105, USER, 2, 0) == "labelled"
    assert _taken(joiner) == [(slot, {SHARE}, set(), {SHARE}, {SHARE})]
    joiner.advance(P0, 500)
    assert _taken(joiner) == [
        (slot, set(), set(), {CART}, set()),
        (slot, {CLICK, SHARE}, {CLICK, SHARE, CART}, {CLICK}, set()),
        (slot, set(), {PURCHASE}, set(), set()),
    ]


@pytest.mark.parametrize("delay", ["delay_head", "es_dfm"])
def test_behind_a_wait_an_outcome_is_one_positive_more_and_before_it_the_examples_label(delay: str) -> None:
    joiner = _joiner(delays=(*DELAYS[:-1], delay))
    early, late = joiner.expose(P0, 100, USER, 2, 0), joiner.expose(P0, 100, USER, 3, 0)
    joiner.label(CART, 104, USER, 2, 0)
    assert _taken(joiner) == []
    joiner.advance(P0, 105)
    assert _taken(joiner) == [(early, {CART}, set(), {CART}, set()), (late, set(), set(), {CART}, set())]
    for _ in range(2):
        assert joiner.label(CART, 106, USER, 3, 0) == "labelled"
    assert _taken(joiner) == [(late, {CART}, set(), {CART}, {CART})]
    joiner.advance(P0, 111)
    assert [(slot, labels, learn) for slot, labels, _, learn, _ in _taken(joiner)] == [
        (early, {CART}, {CLICK}),
        (late, {CART}, {CLICK}),
    ]


# -- any sequence, against a model


@dataclass
class Exposure:
    partition: Partition
    time_ms: int
    arrival: int
    slot: int
    user: int
    item: int
    request: int
    labels: set[int]
    waiting: set[int]
    learned: bool = False
    """By the task with a delay head."""


def _age(exposure: Exposure) -> tuple[int, int]:
    return exposure.time_ms, exposure.arrival


class Model:
    """Every exposure in one list, searched from end to end."""

    def __init__(self, lateness_ms: int, max_open: int) -> None:
        self.lateness_ms, self.max_open = lateness_ms, max_open
        self.newest_ms: dict[Partition, int] = {}
        self.exposures: list[Exposure] = []
        self.held: dict[tuple[str, int, int], Exposure] = {}
        self.matured: list[Became] = []
        self.n_evicted = 0

    @property
    def open(self) -> list[Exposure]:
        return [exposure for exposure in self.exposures if exposure.waiting]

    def advance(self, partition: Partition, time_ms: int) -> None:
        if time_ms <= self.newest_ms.get(partition, -1):
            return
        self.newest_ms[partition] = time_ms
        for exposure in self.open:
            for window_ms in sorted({WAIT_MS, *WINDOWS_MS[1:]}):
                closed = {task for task in exposure.waiting if WINDOWS_MS[task] == window_ms}
                waited = {CART} if window_ms == WAIT_MS and not exposure.learned else set()
                if (
                    closed | waited
                    and exposure.partition == partition
                    and exposure.time_ms + window_ms < time_ms - self.lateness_ms
                ):
                    learn = {task for task in closed if DELAYS[task] == "wait"} | waited
                    told = exposure.labels & (closed | waited)
                    self.matured.append((exposure.slot, told, closed, learn, set()))
                    exposure.waiting -= closed
                    exposure.learned |= bool(waited)

    def expose(self, exposure: Exposure) -> None:
        if len(self.open) >= self.max_open:
            # Of one partition's exposures of the same time the one that came first; of two partitions' the lower slot.
            waiting = {exposure.partition: exposure for exposure in sorted(self.open, key=_age, reverse=True)}
            oldest = min(waiting.values(), key=lambda other: (other.time_ms, other.slot))
            oldest.waiting = set()
            self.n_evicted += 1
        self.exposures.append(exposure)
        # A key finds the newest exposure that has it, and nothing any more once that one is closed.
        for key in self._keys(exposure.user, exposure.item, exposure.request):
            held = self.held.get(key)
            if held is None or not held.waiting or held.time_ms <= exposure.time_ms:
                self.held[key] = exposure

    def _keys(self, user: int, item: int, request: int) -> list[tuple[str, int, int]]:
        return [("request", request, item)] * bool(request) + [("pair", user, item)]

    def label(self, task: int, time_ms: int, user: int, item: int, request: int) -> str:
        *by_request, by_pair = [self.held.get(key) for key in self._keys(user, item, request)]
        found = next((one for one in by_request if one and one.waiting), None)
        if found is None:
            if by_pair is None or not by_pair.waiting or by_pair.time_ms > time_ms:
                return "orphan"
            found = by_pair
        if task not in found.waiting or time_ms - found.time_ms > WINDOWS_MS[task]:
            return "late"
        if task not in found.labels and (DELAYS[task] == "fnc_in_loss" or (task == CART and found.learned)):
            self.matured.append((found.slot, {task}, set(), {task}, {task}))
        found.labels.add(task)
        return "labelled"


USERS = (USER, OTHER, 3 << 40)
ITEMS = (5, 6)
STEP = st.tuples(
    st.sampled_from(["expose", "expose", "label", "label", "label", "take", "restart"]),
    st.integers(-12, 30),  # event time, relative to the newest one
    st.sampled_from(USERS),
    st.sampled_from(ITEMS),
    st.sampled_from([0, 1 << 50, 2 << 50]),
    st.sampled_from(OUTCOMES),
)


@profile(deadline=None, max_examples=300)
@given(st.lists(STEP, max_size=60), st.sampled_from([0, 8]), st.sampled_from([3, 1000]))
def test_any_sequence_of_events_is_joined_as_by_a_list_of_exposures(
    steps: list[tuple[str, int, int, int, int, int]], lateness_ms: int, max_open: int
) -> None:
    """Out of order, repeated, late, in two partitions (keyed by user), evicted, saved and restored anywhere."""
    joiner, model = _joiner(lateness_ms, max_open), Model(lateness_ms, max_open)
    newest_ms = 100
    for arrival, (what, step_ms, user, item, request, task) in enumerate(steps):
        time_ms = newest_ms + step_ms
        newest_ms = max(newest_ms, time_ms)
        partition = P1 if user == USERS[0] else P0
        if what in ("take", "restart"):
            assert sorted(map(repr, _taken(joiner))) == sorted(map(repr, model.matured))
            model.matured = []
            if what == "restart":
                saved = joiner.save()
                joiner = _joiner(lateness_ms, max_open)
                joiner.restore(*saved)
            continue
        joiner.advance(partition, time_ms)
        model.advance(partition, time_ms)
        if what == "expose":
            slot = joiner.expose(partition, time_ms, user, item, request)
            model.expose(Exposure(partition, time_ms, arrival, slot, user, item, request, set(), set(OUTCOMES)))
            others = [exposure.slot for exposure in model.open[:-1]] + [slot for slot, *_ in model.matured]
            assert slot not in others
        else:
            assert joiner.label(task, time_ms, user, item, request) == model.label(task, time_ms, user, item, request)
        assert joiner.n_open == len(model.open) <= max_open
        assert joiner.n_evicted == model.n_evicted
        assert joiner.n_matured == len(model.matured)
    joiner.close_all()
    for partition in (P0, P1):
        model.advance(partition, 1 << 50)
    assert sorted(map(repr, _taken(joiner))) == sorted(map(repr, model.matured))


def test_the_delay_of_each_first_outcome_is_counted_also_where_it_comes_too_late_for_its_task() -> None:
    joiner = _joiner()
    for item, (task, delay_ms) in enumerate([(CLICK, 0), (CLICK, 9), (CLICK, 20), (PURCHASE, 29)], start=1):
        joiner.expose(P0, 1_000, USER, item, 0)
        joiner.label(task, 1_000 + delay_ms, USER, item, 0)
    joiner.label(PURCHASE, 1_030, USER, 4, 0)  # a second purchase of the same exposure
    joiner.label(PURCHASE, 1_030, OTHER, 4, 0)  # nobody's
    bounds_ms = delay_bounds_ms()
    for task, delays_ms in ((CLICK, [0, 9, 20]), (PURCHASE, [29]), (SHARE, [])):
        cells = [cell for cell, count in enumerate(joiner.state.delays[task].tolist()) for _ in range(count)]
        assert len(cells) == len(delays_ms)
        for cell, delay_ms in zip(cells, delays_ms, strict=True):
            assert (0 if cell == 0 else bounds_ms[cell - 1]) <= delay_ms < bounds_ms[cell]
