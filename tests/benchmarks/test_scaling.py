"""Rate and memory over events and ids: which points make a curve, and the plot of them."""

from xml.etree import ElementTree as ET

import pytest

from benchmarks.bench_scaling import LONG, _figures, _series, plot
from benchmarks.pipeline import Run


def made(points):
    return {point: [Run(50_000.0 + n, {}, 800.0 + n) for n in range(2)] for point in points}


def test_the_long_form_goes_to_ten_million_events_and_ids() -> None:
    (_, over_events), (_, over_ids) = _series(made(LONG))
    assert [point.n_events for point in over_events] == [100_000, 1_000_000, 10_000_000]
    assert [point.n_ids for point in over_ids] == [10_000, 100_000, 1_000_000, 10_000_000]
    assert len(_figures(made(LONG))) == 2 * len(LONG)


def test_the_plot_is_an_svg_with_both_axes_and_the_same_figures_give_the_same_file(tmp_path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: make bench")
    for name in ("a.svg", "b.svg"):
        plot(made(LONG), tmp_path / name)
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert text == (tmp_path / "b.svg").read_text(encoding="utf-8")
    assert ET.fromstring(text).tag.endswith("svg")
    assert "distinct ids" in text
