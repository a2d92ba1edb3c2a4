"""Each rival, on a small log: the same examples as ours, measured the same way."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers import vowpal_wabbit
from benchmarks.peers._result import Rival
from benchmarks.peers.joined import Joined
from benchmarks.peers.ready_batches import ReadyBatches
from benchmarks.peers.river_linear import River
from benchmarks.peers.torch_loop import TorchLoop
from benchmarks.pipeline import write_log
from benchmarks.workloads import quiet_shop_events, quiet_shop_settings

EVENTS = 3_000


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rivals") / "shop.jsonl"
    write_log(path, quiet_shop_events(EVENTS))
    return path


@pytest.fixture(scope="module")
def joined(log: Path) -> Joined:
    return Joined.of(log, quiet_shop_settings())


def test_rivals_get_our_examples_with_the_outcomes_that_followed(joined: Joined) -> None:
    events = list(quiet_shop_events(EVENTS))
    views = [event for event in events if event.type == "content_view"]
    assert joined.n_events == EVENTS
    for name in ("click", "purchase"):
        assert len(joined.tasks[name].rows) == len(views)
        assert joined.tasks[name].labels.sum() == sum(event.type == name for event in events)
    seen = {str(event.request_id) + str(event.item_id) for event in events if event.type == "click"}
    rows, labels = joined.in_order("click")
    assert np.all(np.diff(rows) > 0)
    assert [str(view.request_id) + str(view.item_id) in seen for view in views] == (labels > 0).tolist()


def test_ne_does_not_depend_on_which_order_a_rival_learned_in(joined: Joined) -> None:
    labels = joined.in_order("click")[1]
    good, bad = joined.ne("click", labels * 8 - 4), joined.ne("click", 4 - labels * 8)
    assert good is not None
    assert bad is not None
    assert good < 0.2 < 1 < bad


def test_our_learner_is_measured_on_as_many_examples_as_rivals_are(log: Path, joined: Joined) -> None:
    result = ReadyBatches(log, quiet_shop_settings()).run()
    assert result.ne.keys() == joined.tasks.keys()
    assert result.events_per_second > 0


@pytest.mark.parametrize("name", ["river", "river, our features", "torch", "vw", "vw, our features"])
def test_a_rival_learns_all_tasks(name: str, joined: Joined, tmp_path: Path) -> None:
    rival: Rival
    if "our features" in name:
        joined = joined.with_behaviour()
        assert joined.numbers.shape[1] > 50
    if name.startswith("river"):
        rival = River(joined)
    elif name == "torch":
        rival = TorchLoop(joined, 1)
    elif missing := vowpal_wabbit.why_not():
        pytest.skip(missing)
    else:
        rival = vowpal_wabbit.VowpalWabbit(joined, tmp_path, vowpal_wabbit.LOW_RANK)
    result = rival.run()
    assert result.events_per_second > 0
    assert result.ne.keys() == joined.tasks.keys()
    # Little can be learned from so little, but scores that belong to other rows would be far above.
    assert result.ne["content_view"] is not None
    assert 0.5 < result.ne["content_view"] < 2


def test_a_missing_rival_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert "pip install" in vowpal_wabbit.why_not()
