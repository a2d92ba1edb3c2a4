"""Stopped or killed while the watchdog holds snapshots back, `anabranch learn` goes on from the last good one."""

import shlex

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

N_EVENTS = 6_000
# So that the watchdog, which looks at every fiftieth batch, looks every few hundred events.
SMALL = {f"ANABRANCH__BATCH__{name}_ROWS": "16" for name in ("MIN", "MAX")}
# What was good enough before is not from some moment on.
EASY, STRICT = ({**SMALL, "ANABRANCH__SNAPSHOT__HOLD_ABOVE_NE": ne} for ne in ("5", "0.001"))
STRICT["ANABRANCH__SNAPSHOT__HOLD_AFTER"] = "1s"


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_learner_that_ends_while_snapshots_are_held_goes_on_from_the_last_good_one(
    end, embedded_broker, topic, tmp_path, flow_in, flow, make, produce, stream_of, same_state
):
    stream = stream_of(embedded_broker, topic, make(N_EVENTS, seed=9))
    produce(stream, stream.events[:2_000])
    for one in (flow, calm := flow_in(tmp_path / "calm")):
        one.configure(stream, every_events=400)
        with one.start("learn", "-c", one.config, environment=EASY) as run:
            run.until(lambda run=run: run.consumed() >= 2_000)
            run.stop()
    good = flow.newest()
    assert good.manifest.n_events == 2_000
    assert good.states["learner"]["watchdog"]["since_ms"], "its watch began: it was good once"

    produce(stream, stream.events[2_000:])
    with flow.start("learn", "-c", flow.config, environment=STRICT) as run:
        run.said("Snapshots are held back at")
        run.until(lambda: run.consumed() >= N_EVENTS - 2_000)
        assert run.metrics()["anabranch_snapshot_held"] >= 1
        run.stop() if end == "stop" else run.kill()
    held = flow.newest()
    assert held.manifest.n_events < N_EVENTS
    for one in (flow, calm):
        with one.start("learn", "-c", one.config, environment=EASY) as run:
            version, n_events = run.said(r"Learning `.*: snapshot v(\d+), (\d+) events").groups()
            if one is flow:
                assert (int(version), int(n_events)) == (held.manifest.version, held.manifest.n_events)
            run.until(lambda run=run, n=int(n_events): run.consumed() >= N_EVENTS - n)
            run.stop()
    assert flow.newest().manifest.n_events == N_EVENTS
    same_state(flow.newest(), calm.newest())


def test_without_a_limit_the_model_is_accepted_as_it_is(
    embedded_broker, topic, flow, make, produce, stream_of, alert_command
):
    stream = stream_of(embedded_broker, topic, make(N_EVENTS, seed=9))
    produce(stream, stream.events[:2_000])
    flow.configure(stream, every_events=400)
    with flow.start("learn", "-c", flow.config, environment=EASY) as run:
        run.until(lambda: run.consumed() >= 2_000)
        run.stop()
    produce(stream, stream.events[2_000:])
    with flow.start("learn", "-c", flow.config, environment=STRICT) as run:
        run.said("Snapshots are held back at")
        run.stop()
    setting, program, *arguments = shlex.split(alert_command("ANABRANCH__"))
    assert program == "anabranch"
    name, _, value = setting.partition("=")
    assert name in STRICT
    with flow.start(*arguments, environment={**STRICT, name: value}, folder=flow.folder) as run:
        n_events = int(run.said(r"Learning `.*: snapshot v\d+, (\d+) events")[1])
        assert n_events < N_EVENTS
        run.until(lambda: run.consumed() >= N_EVENTS - n_events)
        run.stop()
    assert flow.newest().manifest.n_events == N_EVENTS
