"""A learner with a name in its group (`kafka.instance`): back at once after SIGKILL, and alone under that name."""

import pytest

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(params=["kafka-python", "confluent"])
def named(request):
    """The group would wait for a dead member for longer than these tests do."""
    return {
        "ANABRANCH__KAFKA__CLIENT": request.param,
        "ANABRANCH__KAFKA__INSTANCE": "learner",
        "ANABRANCH__KAFKA__SESSION_TIMEOUT": "5m",
        "ANABRANCH__PROCESSES": "1",
    }


def test_after_a_kill_the_next_run_goes_on_without_waiting_for_the_dead_member_and_an_older_run_is_fenced_off(
    apache_kafka, topic, flow, tmp_path, flow_in, make, produce, stream_of, named
):
    stream = stream_of(apache_kafka, topic, make(1_000))
    produce(stream, stream.events[:300])
    flow.configure(stream)

    def learn(where):
        return where.start("learn", "-c", where.config, environment=named)

    with learn(flow) as killed:
        killed.until(lambda: killed.consumed() == 300)
        killed.kill()
    with learn(flow) as back:
        back.until(lambda: back.consumed() == 300)
        other = flow_in(tmp_path / "other")
        other.config.write_text(flow.config.read_text().replace(str(flow.snapshots), str(other.snapshots)))
        with learn(other) as newer:
            newer.until(lambda: newer.consumed() == 300)
            produce(stream, stream.events[300:])  # enough for a snapshot, at which kafka-python hears of it
            assert back.wait() == 1
            newer.until(lambda: newer.consumed() == len(stream.events))
            newer.stop()
    assert "Another process reads" in back.output
    assert "Traceback" not in back.output
