"""The table of `make bench-quality`: every method on one stream, a memory knows what it ought to."""

import gzip
from importlib.util import find_spec

import numpy as np
import pytest
from river.facto import FMClassifier
from river.optim import SGD, AdaGrad

from benchmarks.quality.__main__ import logs, run
from benchmarks.quality.methods import FactorisationMachine, Memory, Popularity, River
from contracts.batch import Layout, Rows

LAYOUT = Layout(
    tasks=("buy",),
    fields=("user_id", "item_id", "item.category"),
    slots=(1, 1, 1),
    dense=(
        "user buy:60s",
        "user x item buy:60s",
        "user x item buy:3600s",
        "user x item recency",
        "user x item.category buy:3600s",
        "item buy:60s",
        "item buy:3600s",
        "item covisits sum",
        "item covisits cosine sum",
        "item covisits cosine max",
        "item covisits cosine latest",
    ),
    event_types=("buy",),
    history_length=1,
)


def rows(*dense):
    n = len(dense)
    columns = np.zeros((n, len(LAYOUT.dense)), np.float32)
    for row, values in enumerate(dense):
        for name, value in values.items():
            columns[row, LAYOUT.dense.index(name)] = value
    return Rows(np.ones((n, 3), np.int64), np.zeros((n, 1, 1), np.int64), columns, np.zeros(n, np.float32))


def test_popularity_is_the_slowest_counter_of_the_item_and_nothing_else():
    given = rows({"item buy:3600s": 2.0}, {"item buy:60s": 9.0}, {"user x item buy:3600s": 9.0})
    assert Popularity(LAYOUT).scores(given, 0).tolist() == [2.0, 0.0, 0.0]


def test_the_memory_puts_what_the_user_bought_before_its_category_before_what_is_popular():
    given = rows({"item buy:3600s": 5.0}, {"user x item.category buy:3600s": 1.0}, {"user x item buy:3600s": 1.0}, {})
    assert np.argsort(-Memory(LAYOUT).scores(given, 0)).tolist() == [2, 1, 0, 3]


def test_all_methods_rank_the_same_events_of_a_log(tmp_path):
    (tmp_path / "taobao").mkdir()
    rng = np.random.default_rng(0)
    with gzip.open(tmp_path / "taobao" / "UserBehavior.csv.gz", "wt") as file:
        for n in range(900):
            user = int(rng.integers(30))
            # Everyone stays within ten items of three hundred: whoever remembers wins.
            item = user * 37 % 1_000 + int(rng.integers(10))
            kind = ("pv", "pv", "cart", "fav", "buy")[int(rng.integers(5))]
            file.write(f"{user},{item},{item % 7},{kind},{1_511_658_000 + 30 * n}\n")
    [log] = logs(tmp_path, tmp_path / "none")
    found, n_events = run(log, 0, 1 << 60)
    assert n_events == 900
    for task in range(4):
        assert len({metrics[task]["events"] for metrics in found.values()}) == 1
        assert found["popularity"][task]["events"] > 20
    memory = next(metrics for name, metrics in found.items() if name.startswith("memory"))
    assert memory[0]["hr@10"] > 0.8 > 2 * found["popularity"][0]["hr@10"]
    first_words = {name.split(",")[0].split()[0] for name in found}
    vowpal = {"Vowpal"} if find_spec("vowpalwabbit") else set()
    assert first_words == {"popularity", "memory", "River", "Anabranch"} | vowpal


@pytest.mark.parametrize(
    "model", [River.logistic_regression(LAYOUT), River.factorisation_machine(LAYOUT, 0)], ids=lambda model: model.name
)
def test_river_learns_the_labels_that_are_known(model):
    good, bad = rows({"item buy:60s": 1.0}), rows({"user buy:60s": 1.0})
    before = model.scores(good, 0) - model.scores(bad, 0)
    for _ in range(20):
        for given, label in ((good, 1.0), (bad, 0.0)):
            model.learn(_batch(given, label))
    assert (model.scores(good, 0) - model.scores(bad, 0) > before + 0.25).all()


def test_the_factorisation_machine_is_rivers_own_but_for_rounding():
    ours, rivers = (
        kind(4, weight_optimizer=AdaGrad(0.1), latent_optimizer=SGD(0.1), seed=3)
        for kind in (FactorisationMachine, FMClassifier)
    )
    rng = np.random.default_rng(0)
    for _ in range(50):
        # In one order: a latent vector is drawn when its feature is first met.
        x = {name: float(rng.normal()) for name in "abcdefgh" if rng.random() < 0.6} | {"always": 1.0}
        assert ours.predict_proba_one(x)[True] == pytest.approx(rivers.predict_proba_one(x)[True], rel=1e-9)
        for model in (ours, rivers):
            model.learn_one(x, x.get("a", 0.0) * x.get("b", 1.0) > 0)
    assert abs(ours.predict_proba_one({"a": 1.0, "b": 1.0})[True] - 0.5) > 0.01


def _batch(given, label):
    from types import SimpleNamespace

    return SimpleNamespace(rows=given, known=np.array([[True]]), labels=np.array([[label]], np.float32))
