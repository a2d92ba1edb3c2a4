"""The scoring worker follows a learner at work."""

import httpx
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_the_worker_swaps_to_newer_versions_while_the_learner_goes_on(
    embedded_broker, topic, flow, make, produce, stream_of
):
    events = make(3_000)
    stream = stream_of(embedded_broker, topic, events)
    flow.configure(stream, every_events=500)
    produce(stream, events[:800])
    item_ids = sorted({event.item_id for event in events})[:20]
    seen = {}

    with flow.start("serve", "-c", flow.config) as serve, flow.learn() as learn:
        url = serve.said(r"(http://127\.0\.0\.1:\d+)")[1]
        with httpx.Client(base_url=url, timeout=30) as client:

            def reached(n_events):
                assert learn.process.poll() is None, learn.output
                if client.get("/readyz").status_code != 200:
                    return False
                reply = client.post("/v1/score", json={"user_id": events[0].user_id, "items": item_ids})
                assert reply.status_code == 200, reply.text
                model = client.get("/v1/model").json()
                seen[model["model_version"]] = model["n_events"]
                return model["n_events"] >= n_events

            serve.until(lambda: reached(500))
            produce(stream, events[800:])
            serve.until(lambda: reached(2_500))
        for process in (learn, serve):
            process.process.terminate()
            assert process.wait() == 0, process.output
    assert len(seen) >= 2
    assert list(seen) == sorted(seen)
    assert list(seen.values()) == sorted(seen.values())


def test_between_two_snapshots_deltas_move_weights_and_profiles_on(
    embedded_broker, topic, flow, make, produce, stream_of
):
    events = make(3_000)
    stream = stream_of(embedded_broker, topic, events)
    flow.configure(stream, every_events=1_500)
    produce(stream, events[:1_700])
    known = {event.user_id for event in events[:1_700]}
    newcomer = next(event.user_id for event in events if event.user_id not in known)
    asked = {"user_id": newcomer, "items": sorted({event.item_id for event in events})[:20]}
    seen = []

    with (
        flow.start("serve", "-c", flow.config) as serve,
        flow.start("learn", "-c", flow.config, environment={"ANABRANCH__SNAPSHOT__DELTA_SECONDS": "0.01"}) as learn,
    ):
        url = serve.said(r"(http://127\.0\.0\.1:\d+)")[1]
        with httpx.Client(base_url=url, timeout=30) as client:

            def reached(version, delta, fallback):
                assert learn.process.poll() is None, learn.output
                if client.get("/readyz").status_code != 200:
                    return False
                reply = client.post("/v1/score", json=asked)
                assert reply.status_code == 200, reply.text
                model = client.get("/v1/model").json()
                standing, found = (model["model_version"], model["delta"]), reply.json()["fallback"]
                seen.append((standing, model["event_time_ms"], found))
                return standing >= (version, delta) and found == fallback

            serve.until(lambda: reached(1, 0, "content"))
            produce(stream, events[1_700:])  # too few for a second snapshot
            serve.until(lambda: reached(1, 1, "personalised"))
        for process in (learn, serve):
            process.process.terminate()
            assert process.wait() == 0, process.output
    assert [standing for standing, *_ in seen] == sorted(standing for standing, *_ in seen)
    assert seen[-1][0][0] == 1
    assert seen[-1][1] > seen[0][1], "the served model's newest event"
    assert "No further delta" not in serve.output
