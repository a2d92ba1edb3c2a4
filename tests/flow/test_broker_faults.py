"""Brokers, members of the group and records come and go while `anabranch learn` learns from Apache Kafka."""

import re
import time
from datetime import UTC, datetime

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(300)]

N_EVENTS = 3_000
CLIENTS = ("kafka-python", "confluent")


def client(name):
    return {"ANABRANCH__KAFKA__CLIENT": name}


def learned(run, n_events):
    """Wait until so many are consumed, then stop it well."""
    run.until(lambda: run.consumed() >= n_events)
    run.stop()


@pytest.mark.parametrize("gone_seconds", [10, pytest.param(60, marks=pytest.mark.matrix)])
def test_a_broker_that_is_gone_for_a_while_costs_time_and_nothing_else(
    gone_seconds, apache_broker, topic, tmp_path, flow_in, undisturbed, produce, stream_of, same_state
):
    """Both clients at once: the processes live on and tell, then learn what comes after, under a new leader epoch."""
    (reference, expected), half = undisturbed, N_EVENTS // 2
    stream = stream_of(apache_broker.bootstrap_servers, topic, reference.events)
    produce(stream, stream.events[:half])
    flows = [flow_in(tmp_path / name) for name in CLIENTS]
    runs = []
    try:
        for name, flow in zip(CLIENTS, flows, strict=True):
            flow.configure(stream)
            # Kafka's own least: shorter than this a loaded machine loses its members without any fault.
            patient = {**client(name), "ANABRANCH__KAFKA__SESSION_TIMEOUT": "6s"}
            runs.append(flow.start("learn", "-c", flow.config, environment=patient))
        for run in runs:
            run.until(lambda run=run: run.consumed() == half)
            assert run.metrics()["anabranch_broker_connected"] == 1
        apache_broker.halt()
        gone = time.monotonic()
        for run in runs:
            run.until(lambda run=run: run.metrics()["anabranch_broker_connected"] == 0)
        time.sleep(max(0.0, gone + gone_seconds - time.monotonic()))
        apache_broker.start()
        produce(stream, stream.events[half:])
        for run, flow in zip(runs, flows, strict=True):
            learned(run, N_EVENTS)
            same_state(flow.newest(), expected, topic, reference.topic)
        assert len(apache_broker.leader_epochs(topic)) == 2
    finally:
        for run in runs:
            run.__exit__()
        if not apache_broker.running:
            apache_broker.start()


@pytest.mark.parametrize("name", CLIENTS)
def test_a_member_that_joins_and_leaves_the_group_again_and_again_changes_nothing(
    name, apache_kafka, topic, flow, undisturbed, produce, stream_of, load, same_state
):
    reference, expected = undisturbed
    stream = stream_of(apache_kafka, topic, reference.events)
    produce(stream, stream.events[:100])
    flow.configure(stream)
    group = re.search('group = "(.*)"', flow.config.read_text())[1]
    n_taken = 0

    with flow.start("learn", "-c", flow.config, environment=client(name)) as run:
        run.until(lambda: run.consumed() >= 100)
        loader = load(stream, 100, N_EVENTS)
        patience = time.monotonic() + 60
        while loader.is_alive() or n_taken < 3:  # under load first; a slow machine takes its turns later, too
            assert time.monotonic() < patience, f"{n_taken} takes"
            # Its name comes first: with one partition it is this member that gets it.
            member = KafkaConsumer(
                topic,
                bootstrap_servers=apache_kafka,
                group_id=group,
                client_id="aaa",
                session_timeout_ms=1_000,
                heartbeat_interval_ms=100,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
            )
            deadline = time.monotonic() + 1
            while time.monotonic() < deadline and not member.assignment():
                member.poll(50)
            n_taken += bool(member.assignment())
            member.close()
        loader.join()
        learned(run, N_EVENTS)
    assert re.search(rf"gave back {topic}\[0\]\n(.*\n)*?.* assigned {topic}\[0\] from [1-9]", run.output)
    same_state(flow.newest(), expected, topic, reference.topic)


def test_a_replay_from_a_time_then_records_that_are_gone_then_skipped(
    apache_kafka, topic, flow, make, produce, stream_of
):
    """A learner without its records ends with a way out; told to skip, it counts what it did not see."""
    stream = stream_of(apache_kafka, topic, make(N_EVENTS, seed=7))
    produce(stream, stream.events[:600])
    time.sleep(0.1)
    moment = datetime.now(UTC).isoformat()
    time.sleep(0.1)
    produce(stream, stream.events[600:1_000])
    flow.configure(stream)
    flow.learn_to_the_end("--from", moment)
    assert flow.newest().manifest.n_events == 400
    assert flow.newest().manifest.offsets == {topic: {"0": 1_000}}

    produce(stream, stream.events[1_000:])
    admin = KafkaAdminClient(bootstrap_servers=apache_kafka)
    admin.delete_records({TopicPartition(topic, 0): 1_600})
    admin.close()
    with flow.learn() as run:
        assert run.wait() == 1
        last = run.output.strip().splitlines()[-1]
    assert f"{topic}[0]: wants offset 1000, the broker has 1600 to {N_EVENTS}" in last
    assert 'kafka.missing_offsets = "skip"' in last

    skip = {"ANABRANCH__KAFKA__MISSING_OFFSETS": "skip"}
    with flow.start("learn", "-c", flow.config, environment=skip) as run:
        run.until(lambda: run.consumed() == N_EVENTS - 1_600)
        run.until(lambda: run.metrics().get("anabranch_offsets_skipped_total") == 600)
        run.stop()
    assert flow.newest().manifest.offsets == {topic: {"0": N_EVENTS}}
    assert flow.newest().manifest.n_events == 400 + N_EVENTS - 1_600


def test_a_topic_that_was_made_anew_with_more_records_is_refused_not_read_from_the_old_offset(
    apache_kafka, topic, flow, make, produce, stream_of
):
    stream = stream_of(apache_kafka, topic, make(900, seed=7))
    produce(stream, stream.events[:400])
    flow.configure(stream)
    flow.learn_to_the_end()
    made_from = flow.newest().manifest.topic_ids[topic]
    admin = KafkaAdminClient(bootstrap_servers=apache_kafka)
    admin.delete_topics([topic])
    while topic in admin.list_topics():
        time.sleep(0.05)
    admin.close()
    produce(stream, stream.events)
    with flow.learn("--until-end") as run:
        assert run.wait() == 1, run.output
        line = rf"Topic `{topic}` is not the one that the snapshot was made from: its id was {made_from}, the broker"
        assert re.search(line + ".*`learn --allow-other-topic`", run.output)
    assert flow.newest().manifest.offsets == {topic: {"0": 400}}
    # As if it were a copy that kept the offsets; the snapshot behind it is the new topic's.
    flow.learn_to_the_end("--allow-other-topic")
    assert flow.newest().manifest.offsets == {topic: {"0": 900}}
    assert flow.newest().manifest.topic_ids[topic] != made_from
    flow.learn_to_the_end()
