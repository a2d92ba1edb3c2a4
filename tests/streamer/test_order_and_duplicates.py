"""Any stream against plain dictionaries: late, early, doubled, from the future, over two partitions and restarts."""

import random
from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from prometheus_client import CollectorRegistry

from contracts.batch import Barrier
from contracts.events import Event
from contracts.records import Record
from contracts.settings import Settings
from streamer.deadletter import MemoryDeadLetters
from streamer.decode import EventDecoder
from streamer.metrics import StreamMetrics
from streamer.pipeline import Ingest
from streamer.sources.memory import MemorySource

pytestmark = pytest.mark.slow

START_MS = 1_700_000_000_000
NOW_MS = START_MS + 10_000_000
"""The wall clock: what is more than ten minutes ahead of it is from the future."""
LATENESS_MS, HORIZON_MS = 5_000, 60_000
WINDOWS_MS = {"click": 20_000, "purchase": 90_000}
TASKS = ("content_view", "click", "purchase")
N_PARTITIONS = 2
SETTINGS = Settings.model_validate(
    {
        "tasks": [
            {"name": "content_view"},
            {"name": "click", "window": "20s", "delay": "wait"},
            {"name": "purchase", "window": "90s"},
        ],
        "features": {"users": 64, "items": 64, "history_length": 2, "recent_items": 32, "pairs": 1024, "values": 1024},
        "batch": {"max_rows": 9, "min_rows": 3, "span": "10s"},
        "snapshot": {"every_events": 7, "every": "365d"},
        "events": {"lateness": "5s", "deduplicate": "60s", "max_future": "10m"},
    }
)


class Reference:
    """What should become of each event, in dictionaries."""

    def __init__(self):
        self.counts = Counter()
        self.exposures = []  # {"labels": {task}, "final": {task: label}}, in the order of the stream
        self.newest_ms = {}
        self.by_request, self.by_pair = {}, {}
        self.young, self.old, self.since_ms = set(), set(), None

    def take(self, event, partition):
        if event.ts_ms > NOW_MS + 600_000:
            self.counts["future"] += 1
        elif self.was_seen(event):
            self.counts["duplicate"] += 1
        else:
            self.counts["events"] += 1
            self.advance(partition, event.ts_ms)
            if event.type == "content_view":
                self.expose(event, partition)
            else:
                self.counts[f"{self.label(event)} {event.type}"] += 1

    def was_seen(self, event):
        """Two generations: an id is known for the horizon at least, twice as long at most."""
        if event.event_id in self.young | self.old:
            return True
        if self.since_ms is None:
            self.since_ms = event.ts_ms
        if event.ts_ms - self.since_ms >= HORIZON_MS:
            self.young, self.old, self.since_ms = set(), self.young, event.ts_ms
        self.young.add(event.event_id)
        return False

    def advance(self, partition, time_ms):
        """An event newer than all of its partition closes windows; an exposure that comes too late waits for one."""
        if time_ms <= self.newest_ms.get(partition, -1):
            return
        self.newest_ms[partition] = time_ms
        for exposure in self.exposures:
            if exposure["partition"] == partition:
                for task in TASKS[1:]:
                    end_ms = exposure["time_ms"] + WINDOWS_MS[task]
                    if task not in exposure["final"] and end_ms < self.newest_ms[partition] - LATENESS_MS:
                        exposure["final"][task] = task in exposure["labels"]
                if len(exposure["final"]) == 2:
                    for known in (self.by_request, self.by_pair):
                        for key in [key for key, one in known.items() if one is exposure]:
                            del known[key]

    def expose(self, event, partition):
        exposure = {"partition": partition, "time_ms": event.ts_ms, "labels": set(), "final": {}}
        self.exposures.append(exposure)
        for known, key in (
            (self.by_request, event.request_id and (event.request_id, event.item_id)),
            (self.by_pair, (event.user_id, event.item_id)),
        ):
            if key and (key not in known or known[key]["time_ms"] <= event.ts_ms):
                known[key] = exposure

    def label(self, event):
        exposure = self.by_request.get((event.request_id, event.item_id))
        if exposure is None:
            exposure = self.by_pair.get((event.user_id, event.item_id))
            if exposure is None or exposure["time_ms"] > event.ts_ms:
                return "orphan"
        if event.type in exposure["final"] or event.ts_ms - exposure["time_ms"] > WINDOWS_MS[event.type]:
            return "late"
        exposure["labels"].add(event.type)
        return "labelled"


class Driven:
    """The real ingest, given records piece by piece, stopped and resumed at will."""

    def __init__(self):
        self.records = {("events", number): [] for number in range(N_PARTITIONS)}
        self.barrier = None
        self.counts = Counter()
        self.exposures = []
        self.in_slot = {}
        self.learned = Counter()

    def give(self, pieces):
        """A run from the last barrier on: reads what is there, in the order of the partitions; then it is stopped."""
        for event, partition in pieces:
            records = self.records["events", partition]
            records.append(Record("events", partition, len(records), None, msgspec.json.encode(event)))
        source = MemorySource(self.records)
        registry = CollectorRegistry()
        decoder = EventDecoder(SETTINGS, None, lambda: NOW_MS)
        ingest = Ingest(
            SETTINGS,
            source,
            decoder,
            MemoryDeadLetters(),
            StreamMetrics(registry),
            lambda: self.all_read(ingest),
            lambda: 0,
        )
        if self.barrier is not None:
            ingest.restore(self.barrier.groups, self.barrier.state)
            source.seek(self.barrier.offsets)
        for piece in ingest.stream():
            if isinstance(piece, Barrier):
                self.barrier = piece
                piece.release()
            else:
                self.see(piece)
        self.counts["events"], self.counts["future"] = ingest.n_events, ingest.n_rejected
        self.counts["duplicate"] += int(registry.get_sample_value("anabranch_events_duplicate_total") or 0)
        for task in WINDOWS_MS:
            for what, name in (("orphan", "joiner_orphans"), ("late", "labels_late")):
                found = registry.get_sample_value(f"anabranch_{name}_total", {"task": task})
                self.counts[f"{what} {task}"] += int(found or 0)

    def all_read(self, ingest):
        return all(ingest.offsets.get(one, 0) == len(records) for one, records in self.records.items())

    def see(self, batch):
        for slot in batch.slot[batch.slot >= 0].tolist():
            self.in_slot[slot] = {}
            self.exposures.append(self.in_slot[slot])
        for row, slot in enumerate(batch.matured_slot.tolist()):
            for task, name in enumerate(TASKS):
                if batch.matured_known[row, task]:
                    assert name not in self.in_slot[slot], "a label is final once"
                    self.in_slot[slot][name] = bool(batch.matured_labels[row, task])
                if batch.matured_learn[row, task] and batch.matured_labels[row, task]:
                    self.learned[name] += 1


def an_event(number, type_, who, what, request, time_ms):
    return Event(
        event_id=f"e{number}",
        type=type_,
        user_id=who,
        item_id=what,
        ts_ms=time_ms,
        request_id=f"r{request}" if request else None,
    )


class OrderAndDuplicates(RuleBasedStateMachine):
    """Each rule writes records and lets a run read them; each run is resumed from the barrier of the one before."""

    @initialize()
    def start(self):
        self.reference, self.driven = Reference(), Driven()
        self.sent = []
        self.time_ms = START_MS

    def send(self, events):
        """Partition by partition: that is the order in which a poll returns them."""
        pieces = sorted(events, key=lambda piece: piece[1])
        for event, partition in pieces:
            self.reference.take(event, partition)
        self.driven.give(pieces)
        self.sent += [event for event, _ in pieces]
        reference, driven = self.reference, self.driven
        expected = {name: n for name, n in reference.counts.items() if not name.startswith("labelled")}
        assert {name: n for name, n in driven.counts.items() if n} == {name: n for name, n in expected.items() if n}

    events = st.lists(
        st.tuples(
            st.sampled_from(TASKS),
            st.integers(1, 3),  # user
            st.integers(1, 2),  # item
            st.integers(0, 4),  # request, 0: none
            st.integers(-12_000, 12_000),  # against the time that the stream has come to
            st.integers(0, N_PARTITIONS - 1),
        ),
        min_size=1,
        max_size=12,
    )

    @rule(events=events, ahead_ms=st.sampled_from([0, 20_000, 70_000, 140_000]))
    def some_events(self, events, ahead_ms):
        """In any order, within the lateness and beyond it."""
        self.time_ms += ahead_ms
        self.send(
            [
                (an_event(len(self.sent) + at, type_, who, what, request, self.time_ms + offset_ms), partition)
                for at, (type_, who, what, request, offset_ms, partition) in enumerate(events)
            ]
        )

    @rule(which=st.lists(st.integers(0, 1 << 20), min_size=1, max_size=4), partition=st.integers(0, N_PARTITIONS - 1))
    def some_again(self, which, partition):
        """Delivered again, in whichever partition."""
        if self.sent:
            self.send([(self.sent[index % len(self.sent)], partition) for index in which])

    @rule(type_=st.sampled_from(TASKS), ahead_ms=st.integers(600_001, 1 << 40), partition=st.integers(0, 1))
    def one_from_the_future(self, type_, ahead_ms, partition):
        """A broken clock: were it taken, it would close every window."""
        self.send([(an_event(len(self.sent), type_, 1, 1, 0, NOW_MS + ahead_ms), partition)])

    def teardown(self):
        """The stream goes on until every window is closed; then each exposure has the labels that it should have."""
        if not hasattr(self, "driven"):
            return
        n_exposures, self.time_ms = len(self.reference.exposures), self.time_ms + 200_000
        for step in range(2):  # the second time, batches are full and carry what the first one closed
            views = [an_event(f"{step}-{n}", "content_view", 99, n, 0, self.time_ms) for n in range(20)]
            self.send([(view, partition) for partition in range(N_PARTITIONS) for view in views[partition::2]])
        expected = self.reference.exposures[:n_exposures]
        assert self.driven.exposures[:n_exposures] == [exposure["final"] for exposure in expected]
        assert all(len(exposure["final"]) == len(WINDOWS_MS) for exposure in expected)
        positives = Counter(task for exposure in expected for task in exposure["labels"])
        assert {task: self.driven.learned[task] for task in WINDOWS_MS} == {
            task: positives[task] for task in WINDOWS_MS
        }


OrderAndDuplicates.TestCase.settings = profile(max_examples=50, stateful_step_count=15, deadline=None)
TestOrderAndDuplicates = OrderAndDuplicates.TestCase


@given(seed=st.integers(0, 1 << 32))
@profile(max_examples=30, deadline=None)
def test_a_shuffle_within_the_lateness_changes_no_label(seed):
    """As long as each outcome comes behind its exposure: one that comes before it finds none, and is an orphan."""
    chance = random.Random(seed)
    stream = []
    for request in range(1, 25):
        shown_ms = START_MS + chance.randrange(120_000)
        stream.append(an_event(f"v{request}", "content_view", request % 5, request % 3, request, shown_ms))
        for task, window_ms in WINDOWS_MS.items():
            if chance.random() < 0.6:
                time_ms = shown_ms + chance.randrange(2 * LATENESS_MS, window_ms)
                stream.append(an_event(f"{task}{request}", task, request % 5, request % 3, request, time_ms))
    in_order = sorted(stream, key=lambda event: event.ts_ms)
    shuffled = sorted(stream, key=lambda event: event.ts_ms + chance.uniform(0, LATENESS_MS))
    ends = []
    for events in (in_order, shuffled):
        driven, reference = Driven(), Reference()
        closing = [an_event(f"end{n}", "content_view", 99, n, 0, START_MS + 400_000 + n) for n in range(30)]
        cut = chance.randrange(len(events))
        for part in (events[:cut], events[cut:], closing[:15], closing[15:]):
            driven.give([(event, 0) for event in part])
            for event in part:
                reference.take(event, 0)
        shown = [event.request_id for event in events if event.type == "content_view"]
        ends.append(dict(zip(shown, driven.exposures, strict=False)))
        assert driven.counts["late click"] == driven.counts["late purchase"] == driven.counts["orphan click"] == 0
    assert ends[0] == ends[1]
    labels = Counter(task for final in ends[0].values() for task, label in final.items() if label)
    assert labels == Counter(event.type for event in stream if event.type != "content_view")
