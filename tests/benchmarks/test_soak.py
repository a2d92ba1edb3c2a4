"""The soak in short: what a learner holds stays as it is through a kill, and a leak shows."""

import signal
import sys

import pytest

from benchmarks.flatness import Bound, Sample, judge
from benchmarks.soak import BOUNDS, soak
from streamer.broker import create_topics
from streamer.publish import EventPublisher
from streamer.simulator import ShopSimulator, SimulatorSettings

# In half a minute buffers still grow a little, and few events tell little of the quality; the leak is of another size.
HELD = BOUNDS | {"resident memory, MiB": Bound(0.15, 0.0)}
HELD["snapshot directory, MiB"] = Bound(1.0, 4.0)  # exposures that wait become more for two hours of event time
HELD |= {name: Bound(0.25, 0.0) for name in BOUNDS if name.startswith("NE")}
del HELD["NE, purchase"]  # too few in an hour or three of event time to be measured
LEAKING = """
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
"""


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
def filled(embedded_broker, topic):
    create_topics(embedded_broker, {topic: 1})
    with EventPublisher(embedded_broker, topic) as publisher:
        for event in ShopSimulator(SimulatorSettings(events=60_000, rate=5.0, n_users=1_000, n_items=1_000)).events():
            publisher.publish(event)
    return topic


@pytest.mark.slow
def test_a_learner_that_is_killed_and_goes_on_holds_no_more_than_before_and_one_that_leaks_is_found(
    embedded_broker, filled, tmp_path
):
    quick = {"look_seconds": 0.25, "every_seconds": 1.0, "delta_seconds": 0.3, "session_timeout": "1s"}
    found = {}
    for name, command, lives in (
        ("good", None, [(3.0, signal.SIGKILL), (6.0, signal.SIGTERM)]),
        ("leaking", (sys.executable, "-c", LEAKING), [(6.0, signal.SIGKILL)]),
    ):
        folder = tmp_path / name
        folder.mkdir()
        run = {} if command is None else {"command": command}
        found[name] = judge(soak(embedded_broker, filled, folder, lives, **quick, **run), 1.5, HELD)
    assert [verdict.name for verdict in found["good"] if not verdict.is_flat] == []
    leaks = {verdict.name for verdict in found["leaking"] if not verdict.is_flat}
    assert leaks >= {"resident memory, MiB", "descriptors"}
