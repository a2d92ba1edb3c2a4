"""The soak in short: what a learner holds stays as it is through a kill, and a leak shows."""

import itertools
import signal
import sys
import threading

import pytest
from rich.console import Console

from benchmarks.flatness import Bound, Sample, judge, share_moved, table
from benchmarks.soak import BOUNDS, soak
from streamer.broker import create_topics
from streamer.publish import EventPublisher
from streamer.simulator import ShopSimulator, SimulatorSettings

# Tighter than over weeks: for seconds between full tables and a full directory nothing has a reason to grow.
HELD = BOUNDS | {
    "resident memory, MiB": Bound(0.04, 0.0),
    "descriptors": Bound(0.0, 2.0),
    "threads": Bound(0.0, 1.5),
    "snapshot directory, files": Bound(0.0, 20.0),  # a version has eighteen
    "snapshot directory, MiB": Bound(0.2, 0.0),
}
del HELD["NE, purchase"]  # too few in hours of event time to be measured
N_FILLED, FED_PER_SECOND, WARM_UP_SECONDS = 60_000, 3_000, 1.0
LEAKING = (
    sys.executable,
    "-c",
    """
import threading, time
from learner.trainer import Trainer
step = Trainer.step
def leak(kept=[]):
    while True:
        kept.append((bytearray(b"x" * 2_000_000), open("/dev/null")))
        time.sleep(0.02)
def begin(self, batch):  # once the stream is on: what a start takes is no growth
    Trainer.step = step
    threading.Thread(target=leak, daemon=True).start()
    step(self, batch)
Trainer.step = begin
from cli.main import app
app()
""",
)


def line(level, slope, n_lives=1, step=0.0):
    return [
        Sample(life, float(age), 100.0 * life + age, 0.0, {"it": level + step * life + slope * age})
        for life in range(n_lives)
        for age in range(10, 100, 10)
    ]


@pytest.mark.parametrize(
    ("samples", "is_flat"),
    [
        (line(100, 0.0, 3), True),
        (line(100, 0.01, 3), True),
        (line(100, 0.2, 1), False),
        (line(100, 0.2, 3), False),  # a leak that each restart ends
        (line(100, 0.0, 3, step=10.0), False),  # what stays behind at each restart
        (line(100, -0.5, 3), True),
    ],
)
def test_what_grows_within_a_life_or_from_life_to_life_is_not_flat(samples, is_flat):
    (verdict,) = judge(samples, 0.0, {"it": Bound(0.05, 0.0)})
    assert verdict.is_flat == is_flat


def test_too_few_samples_are_no_verdict():
    with pytest.raises(ValueError, match="0 samples of it behind the warm-up"):
        judge(line(100, 0.0), 1_000.0, {"it": Bound(0.05, 0.0)})


@pytest.fixture
def fed(embedded_broker, topic):
    """A topic with what fills the tables, to which events come all the time."""
    create_topics(embedded_broker, {topic: 1})
    events = ShopSimulator(SimulatorSettings(events=10_000_000, rate=5.0, n_users=1_000, n_items=1_000)).events()
    stopped = threading.Event()

    def feed():
        with EventPublisher(embedded_broker, topic, FED_PER_SECOND) as publisher:
            for event in itertools.takewhile(lambda _: not stopped.is_set(), events):
                publisher.publish(event)

    with EventPublisher(embedded_broker, topic) as publisher:
        for event in itertools.islice(events, N_FILLED):
            publisher.publish(event)
    feeding = threading.Thread(target=feed)
    feeding.start()
    yield topic
    stopped.set()
    feeding.join()


@pytest.mark.slow
def test_a_learner_that_is_fed_killed_and_goes_on_holds_no_more_than_before_and_one_that_leaks_is_found(
    embedded_broker, fed, tmp_path
):
    quick = {"look_seconds": 0.2, "every_seconds": 1.0, "delta_seconds": 0.3, "session_timeout": "1s"}
    # The first life fills tables and the snapshot directory.
    lives = [(3.5, signal.SIGKILL), (3.5, signal.SIGTERM), (3.5, signal.SIGKILL)]
    good = [sample for sample in soak(embedded_broker, fed, tmp_path, lives, **quick) if sample.life > 0]
    leaking = soak(embedded_broker, fed, tmp_path, [(3.5, signal.SIGKILL)], command=LEAKING, **quick)
    verdicts = [judge(samples, WARM_UP_SECONDS, HELD) for samples in (good, leaking)]
    for one in verdicts:
        Console(width=120).print(table(one))
    assert share_moved(good) > 0.5, "it learns from look to look"
    grown, leaked = ({verdict.name for verdict in one if not verdict.is_flat} for one in verdicts)
    assert grown == set()
    assert leaked >= {"resident memory, MiB", "descriptors"}
