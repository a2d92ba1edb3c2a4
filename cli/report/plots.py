"""The plots, as SVG that takes its text colour from the page around it, light or dark."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from cli.report.findings import Delays, Gates
from learner.inspection import Importance
from learner.prequential import CurvePoint

_INK = "#010203"
"""Stands for the page's text colour until the SVG is written."""
_COLOURS = ["#3b82c4", "#d9702b", "#2f9e76", "#b565b0", "#c79a1e", "#cf5468", "#6f7bd9", "#5a9bab"]
"""Of even lightness, to be read on white and on black."""
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "anabranch",
    "text.parse_math": False,  # a field may be called `$x$`
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "figure.constrained_layout.use": True,
    **{f"{part}.color": _INK for part in ("text", "xtick", "ytick", "grid")},
    **{f"axes.{part}": _INK for part in ("edgecolor", "labelcolor", "titlecolor")},
    "grid.alpha": 0.15,
    "axes.grid": True,
    "axes.axisbelow": True,
}
_MOST_FIELDS = 14
_WIDE = 50
"""More than so many times the lower end: a logarithmic axis names powers of ten only."""
_UNITS_MS = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1_000, "s"), (1, "ms")]
_TICKS_MS = [1, 10, 100, *(s * 1_000 for s in (1, 10)), *(m * 60_000 for m in (1, 10)), 3_600_000, 6 * 3_600_000]
_TICKS_MS += [d * 86_400_000 for d in (1, 7, 30, 365)]


def curves(by_task: Mapping[str, Sequence[CurvePoint]], metric: str) -> Markup:
    """The learning curves: ``ne`` or ``auc`` of each stretch of the stream."""
    name, neutral = {"ne": ("Normalised entropy", 1.0), "auc": ("AUC", 0.5)}[metric]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        seen: list[float] = []
        axes.axhline(neutral, color=_INK, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.6)
        for colour, (task, points) in _coloured(by_task):
            values = [np.nan if (value := getattr(point, metric)) is None else value for point in points]
            if not np.isnan(values).all():
                examples = [point.examples for point in points]
                axes.plot(examples, values, color=colour, label=task, marker="o", markersize=2.2)
                seen += values
        if metric == "ne" and seen:
            # A first stretch that knows nothing yet must not flatten all the others.
            axes.set_ylim(top=min(np.nanmax(seen) * 1.03, max(np.nanquantile(seen, 0.9) * 1.1, 1.2)))
        axes.set_title(name)
        axes.set_xlabel("labels of the task so far")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        if axes.get_legend_handles_labels()[0]:
            axes.legend()

    return _svg(f"{name} over the stream, by task", (5.2, 3.2), draw)


def reliability(points: Sequence[Mapping[str, Any]], task: str, colour: int) -> Markup:
    """Predicted and observed probability, both axes logarithmic, with the sampling error of the latter."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        predicted, observed = (np.array([point[name] for point in points]) for name in ("predicted", "observed"))
        error = 1.96 / np.sqrt([point["positives"] for point in points])  # of a logarithm, for rare positives
        ends = (min(predicted.min(), observed.min()) / 1.6, min(max(predicted.max(), observed.max()) * 1.6, 1.0))
        axes.plot(ends, ends, color=_INK, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.6)
        spread = np.abs(observed * np.exp(np.stack([-error, error])) - observed)
        axes.errorbar(predicted, observed, spread, color=_colour(colour), marker="o", markersize=4, elinewidth=0.9)
        axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="predicted", ylabel="observed", title=task)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5) if ends[1] < _WIDE * ends[0] else (1,)))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))

    return _svg(f"Calibration of {task}", (3.2, 3.0), draw)


def differences(compare: Mapping[str, Mapping[str, Any]], task: str, part: str) -> Markup:
    """Each variant's ΔNE with its interval."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axvline(0, color=_INK, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.6)
        for row, tasks in enumerate(compare.values()):
            found = tasks[task]["difference"][part]["ne"]
            if found["value"] is None:
                continue
            told_apart = found["low"] is not None and (found["low"] > 0 or found["high"] < 0)
            colour = _COLOURS[0] if told_apart and found["value"] < 0 else _COLOURS[1] if told_apart else "#8a8a8a"
            if found["low"] is not None:
                axes.plot([found["low"], found["high"]], [row, row], color=colour, linewidth=2)
            axes.plot(found["value"], row, "o", color=colour, markersize=6)
        axes.set_yticks(range(len(compare)), list(compare))
        axes.set_ylim(len(compare) - 0.5, -0.5)
        axes.set_title(task)
        axes.set_xlabel("← better\u2003ΔNE\u2003worse →")
        axes.xaxis.set_major_locator(MaxNLocator(5))

    return _svg(f"Difference of each variant for {task}", (5.2, 0.9 + 0.36 * len(compare)), draw)


def gates(found: Gates, tasks: Sequence[str]) -> Markup:
    """Each task's mean weights, stacked."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        left = np.zeros(len(tasks))
        for column, name in enumerate(found.names):
            weights = found.weights[:, column]
            axes.barh(range(len(tasks)), weights, left=left, color=_colour(column), height=0.62, label=name)
            for row, weight in enumerate(weights):
                if weight > 0.06:
                    axes.text(left[row] + weight / 2, row, f"{weight:.2f}", color="white", ha="center", va="center")
            left += weights
        axes.set_yticks(range(len(tasks)), list(tasks))
        axes.set(xlim=(0, 1), xlabel="mean weight of the gate")
        axes.grid(visible=False)
        axes.invert_yaxis()
        figure.legend(loc="outside upper left", ncols=5)

    return _svg("Use of experts, by task", (7.2, 1.1 + 0.42 * len(tasks)), draw)


def importances(found: Sequence[Importance], task: str, colour: int) -> Markup:
    """The fields that matter most, with twice the standard error."""
    shown = [one for one in found if one.ne > 0][:_MOST_FIELDS] or list(found[:_MOST_FIELDS])

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.barh(
            range(len(shown)),
            [one.ne for one in shown],
            xerr=[2 * one.error for one in shown],
            color=_colour(colour),
            error_kw={"ecolor": _INK, "elinewidth": 0.9, "alpha": 0.7},
            height=0.66,
        )
        axes.set_yticks(range(len(shown)), [one.field for one in shown])
        axes.grid(axis="y", visible=False)
        axes.invert_yaxis()
        axes.set(title=task, xlabel="NE lost without it")
        axes.xaxis.set_major_locator(MaxNLocator(4))

    return _svg(f"Importance of fields for {task}", (5.2, 0.9 + 0.22 * len(shown)), draw)


def delays(by_task: Mapping[str, Delays], tasks: Sequence[str]) -> Markup:
    """How many of a task's outcomes have come within a time of their exposure."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for task, found in by_task.items():
            axes.step(found.within_ms, found.share, where="post", color=_colour(tasks.index(task)), label=task)
        axes.set(xscale="log", ylim=(0, 1.02), xlabel="time since the exposure", ylabel="share of outcomes")
        lowest = min(found.within_ms[np.argmax(found.share > 0)] for found in by_task.values())
        highest = max(found.within_ms[-1] for found in by_task.values())
        axes.set_xlim(lowest / 1.5, highest * 1.5)
        axes.set_xticks([tick for tick in _TICKS_MS if lowest / 1.5 <= tick <= highest * 1.5])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: duration(value)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
        axes.legend()

    return _svg("Share of outcomes by time since their exposure", (6.4, 3.2), draw)


def duration(time_ms: float) -> str:
    """With the largest unit that fits: ``1.5 h``."""
    size, unit = next(((size, unit) for size, unit in _UNITS_MS if time_ms >= size), _UNITS_MS[-1])
    return f"{time_ms / size:.3g} {unit}"


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]


def _coloured(by_task: Mapping[str, Any]) -> list[tuple[str, tuple[str, Any]]]:
    return [(_colour(index), item) for index, item in enumerate(by_task.items())]


def _svg(title: str, size: tuple[float, float], draw: Callable[[Figure], None]) -> Markup:
    """An `svg` element with a name for those who do not see it.

    :param size: width and height in inches of 72 units.
    """
    with rc_context(_STYLE):  # type: ignore[arg-type]  # a literal type of 300 names
        figure = Figure(figsize=size)
        draw(figure)
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = written.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], count=1, flags=re.DOTALL)
    text = text.replace(_INK, "currentColor")
    rem = 5 * size[0]  # an inch is five letters' width or more: text stays near the page's own size
    label = f'role="img" aria-label="{escape(title)}" style="flex-basis: {rem:.0f}rem; max-width: {1.35 * rem:.0f}rem"'
    return Markup(text.replace("<svg", f"<svg {label}", 1))  # noqa: S704 - matplotlib escapes the text that it draws
