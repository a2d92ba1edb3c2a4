"""A learner that is slow, stands still or is frozen until Kafka throws it out, while a burst comes on Apache Kafka."""

import os
import signal
import time

import msgspec
import pytest
from confluent_kafka import Producer
from kafka import KafkaProducer

from benchmarks.open_exposures import resident_mib
from streamer.broker import create_topics

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(300)]

CLIENTS = ("kafka-python", "confluent")
N_EVENTS, N_BEFORE, N_ROWS, N_POLLED = 6_000, 500, 64, 100
SETTINGS = {"ANABRANCH__BATCH__MAX_ROWS": str(N_ROWS), "ANABRANCH__KAFKA__SESSION_TIMEOUT": "2s"}
PADDING = b"x" * 16_000
BATCHES_AHEAD = 8  # the ring, and one on either side of it
MOST_READ = N_BEFORE + BATCHES_AHEAD * N_ROWS + N_POLLED
MOST_GROWN_MIB = 64  # librdkafka reads 32 MiB ahead and then a fetch of 8; the rest is the allocator's
SLOW_PER_SECOND = 60  # events that a learner takes which is slowed down
BURST_PER_SECOND, BURST_SECONDS, TIMES = 24 * SLOW_PER_SECOND, 2.5, 20
N_WARM = 3_500  # events after which tables, buffers and the copies for snapshots have their size
SLOW = f"""
import pathlib, sys, time
from learner.trainer import Trainer
step, slowed, due = Trainer.step, pathlib.Path(sys.argv.pop(1)), 0.0
def slow(self, batch):
    global due
    due = max(due, time.monotonic()) + batch.n_events / {SLOW_PER_SECOND}
    step(self, batch)
    if slowed.exists():
        time.sleep(max(0.0, due - time.monotonic()))
    else:
        due = 0.0
Trainer.step = slow
from cli.main import app
app()
"""
STALLING = """
import pathlib, sys, time
from learner.trainer import Trainer
step, stall = Trainer.step, pathlib.Path(sys.argv.pop(1))
def stalling(self, batch):
    while stall.exists():
        time.sleep(0.01)
    step(self, batch)
Trainer.step = stalling
from cli.main import app
app()
"""


def family(run):
    return [run.process.pid, *run.children()]


def family_mib(run):
    return sum(map(resident_mib, family(run)))


def burst(stream, begin, end):
    """As fast as Kafka takes them: twenty times and more what comes on an ordinary day."""
    create_topics(stream.servers, {stream.topic: 1})
    producer = KafkaProducer(bootstrap_servers=stream.servers, enable_idempotence=False)
    for event in stream.events[begin:end]:
        producer.send(stream.topic, msgspec.json.encode(event)[:-1] + b',"padding":"' + PADDING + b'"}')
    producer.flush()
    producer.close()


def burst_of(stream, begin, end, per_second):
    """At a rate; how many a second Kafka had taken at the end."""
    producer = Producer({"bootstrap.servers": stream.servers, "linger.ms": 5})
    start = time.monotonic()
    for n, event in enumerate(stream.events[begin:end]):
        time.sleep(max(0.0, start + n / per_second - time.monotonic()))
        producer.produce(stream.topic, msgspec.json.encode(event)[:-1] + b',"padding":"' + PADDING + b'"}')
        producer.poll(0)
    assert producer.flush(60) == 0
    return (end - begin) / (time.monotonic() - start)


def lag(run):
    return run.metrics().get("anabranch_consumer_lag_messages", 0)


@pytest.fixture
def learners(tmp_path, flow_in):
    """Starts a learner by each client, in two processes, on a stream; they end with the test."""
    runs, flows = [], [flow_in(tmp_path / name) for name in CLIENTS]

    def start(stream, *program):
        for name, flow in zip(CLIENTS, flows, strict=True):
            flow.configure(stream, every_events=3_000, max_poll_records=N_POLLED)
            how = {**SETTINGS, "ANABRANCH__KAFKA__CLIENT": name, "ANABRANCH__PROCESSES": "2"}
            runs.append(flow.start("learn", "-c", flow.config, environment=how, program=("-c", *program)))
        return runs, flows

    yield start
    for run in runs:
        run.__exit__()


@pytest.fixture
def as_in_calm(tmp_path, flow_in, same_state):
    """Learns all of a stream undisturbed, and holds the flows' newest snapshots against it."""

    def compare(flows, stream):
        calm = flow_in(tmp_path / "calm")
        calm.configure(stream, every_events=3_000, max_poll_records=N_POLLED)
        with calm.start("learn", "-c", calm.config, environment=SETTINGS) as run:
            run.until(lambda: run.consumed() >= len(stream.events))
            run.stop()
        for flow in flows:
            assert flow.newest().manifest.n_events == len(stream.events)
            same_state(flow.newest(), calm.newest())

    return compare


def test_a_burst_waits_in_kafka_while_the_learner_stands_still_and_is_learned_once_by_a_member_thrown_out_meanwhile(
    apache_kafka, topic, tmp_path, learners, make, stream_of, n_members, as_in_calm
):
    """Both clients at once, each in two processes; 96 MB come in, of which few are held."""
    stream = stream_of(apache_kafka, topic, make(N_EVENTS, seed=3))
    burst(stream, 0, N_BEFORE)
    stall = tmp_path / "stall"
    runs, flows = learners(stream, STALLING, stall)
    for run in runs:
        run.until(lambda run=run: run.consumed() == N_BEFORE)
    stall.touch()
    before = [family_mib(run) for run in runs]
    for end in (N_EVENTS // 2, N_EVENTS):
        burst(stream, end - N_EVENTS // 2 or N_BEFORE, end)
        for run in runs:
            run.until(lambda run=run, end=end: lag(run) >= end - MOST_READ)
    for name, run, mib in zip(CLIENTS, runs, before, strict=True):
        grown = family_mib(run) - mib
        print(f"{name}: {run.consumed()} of {N_EVENTS} events read, lag {lag(run):.0f}, {grown:+.1f} MiB resident")
        assert run.consumed() <= MOST_READ
        assert grown <= MOST_GROWN_MIB, name

    for run in runs:
        for pid in family(run):
            os.kill(pid, signal.SIGSTOP)
    for flow in flows:
        deadline = time.monotonic() + 60
        while n_members(apache_kafka, f"group-{flow.folder.name}-{topic}"):
            assert time.monotonic() < deadline, "it should be missed"
            time.sleep(0.2)
    stall.unlink()
    for run in runs:
        for pid in family(run):
            os.kill(pid, signal.SIGCONT)
    for run in runs:
        run.until(lambda run=run: run.consumed() >= N_EVENTS)
        run.stop()
    as_in_calm(flows, stream)


def test_a_burst_at_twenty_times_what_the_learner_sustains_is_lag_for_a_while_and_nothing_else(
    apache_kafka, topic, tmp_path, learners, make, stream_of, as_in_calm
):
    """Both clients at once. What they sustain is measured while they catch up, by each one's own clock."""
    n_events = N_WARM + round(BURST_PER_SECOND * BURST_SECONDS)
    stream = stream_of(apache_kafka, topic, make(n_events, seed=5)[:n_events])
    burst(stream, 0, N_WARM)
    slowed = tmp_path / "slowed"
    runs, flows = learners(stream, SLOW, slowed)
    for run in runs:
        run.until(lambda run=run: run.consumed() == N_WARM and lag(run) == 0)
        run.said("Snapshot v00000001")
    slowed.touch()
    before = [family_mib(run) for run in runs]
    burst_per_second = burst_of(stream, N_WARM, n_events, BURST_PER_SECOND)
    seen = [[] for _ in runs]
    while not all(samples and samples[-1][1] == n_events for samples in seen):
        for run, samples in zip(runs, seen, strict=True):
            assert run.process.poll() is None, run.output
            told = run.metrics()
            n_read, behind = told["anabranch_events_consumed_total"], told["anabranch_consumer_lag_messages"]
            samples.append((time.monotonic(), n_read, behind, family_mib(run)))
            assert len(samples) < 1_000, samples[-1]
        time.sleep(0.2)
    for name, samples, mib in zip(CLIENTS, seen, before, strict=True):
        # While there was lag, each batch waited for the one before.
        waiting = [sample for sample in samples if sample[2] > 0]
        (first_s, first_read, *_), (last_s, last_read, *_) = waiting[0], waiting[-1]
        sustained = (last_read - first_read) / (last_s - first_s)
        most, grown = max(sample[2] for sample in samples), max(sample[3] for sample in samples) - mib
        print(
            f"{name}: {burst_per_second:.0f} events a second against {sustained:.0f}, "
            f"{burst_per_second / sustained:.1f} times; lag up to {most:.0f}, {grown:+.1f} MiB resident"
        )
        assert last_s - first_s > 20, "long enough to measure a rate"
        assert burst_per_second / sustained >= TIMES
        assert most > (n_events - N_WARM) / 2
        falling = [sample[2] for sample in samples]
        falling = falling[falling.index(most) :]
        # From quarter to quarter: in between the end of a partition is as of the fetch before.
        quarters = falling[:: max(len(falling) // 4, 1)]
        assert quarters == sorted(set(quarters), reverse=True), "it falls all the time"
        assert grown <= MOST_GROWN_MIB, name
    for run in runs:
        run.until(lambda run=run: lag(run) == 0)
        run.stop()
    as_in_calm(flows, stream)
