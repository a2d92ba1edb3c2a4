"""The benchmark of the architectures: differences are of the same stream, intervals those of Student's t."""

import numpy as np
import pytest

from benchmarks.quality.architectures import RIVALS, table
from benchmarks.quality.multitask import interval, shop_report
from cli._variants import variants
from contracts.settings import load_settings


def test_the_default_beside_itself_differs_by_nothing_and_beside_another_by_something():
    itself, other = "model.name=mmoe", "shared_bottom"
    report = shop_report(0, 3_000, [itself, other])
    for task in ("content_view", "click"):  # so short a log has no purchase yet
        found = report["tasks"][task]["all"]
        assert report["compare"][itself][task]["all"] == found
        assert report["compare"][other][task]["all"]["ne"] != found["ne"]


def test_the_table_tells_mean_and_interval_of_each_task():
    def report(ne):
        compare = {name: {"buy": {"all": {"ne": ne}}} for name in RIVALS}
        return {"tasks": {"buy": {"all": {"ne": 0.5}}}, "compare": compare}

    made = table("two shops", RIVALS, [report(0.6), report(0.8)], is_ranked=False)
    assert list(made.columns[0].cells) == [f"{name}, ΔNE" for name in RIVALS]
    assert set(made.columns[1].cells) == {"+0.2000 (-1.0706, +1.4706)"}  # t of one degree of freedom: 12.706


def test_an_interval_is_students():
    mean, low, high = interval(np.array([1.0, 2.0, 3.0]))
    assert mean == 2.0
    assert high - mean == pytest.approx(4.303 / 3**0.5, abs=1e-3)
    assert mean - low == pytest.approx(high - mean)


def test_every_rival_is_another_network():
    made = variants(load_settings(None, {}), RIVALS)
    assert list(made) == list(RIVALS)
    assert len({one.model.model_dump_json() for one in made.values()}) == len(RIVALS)
