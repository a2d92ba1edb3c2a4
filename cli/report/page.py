"""The page itself: sections of plots and tables in one HTML file that asks the network for nothing."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from cli._report import difference_cells, verdict
from cli.report import plots
from cli.report.findings import Findings
from contracts.settings import FieldSpec

_METRICS = {"ne": "NE", "auc": "AUC", "log_loss": "log-loss", "calibration": "calibration", "f1": "F1"}
_FIELDS_TOLD = 10


@dataclass(frozen=True)
class Table:
    """Cells are text; columns ``texts`` are words, not numbers."""

    columns: list[str]
    rows: list[list[str]]
    texts: tuple[int, ...] = (0,)
    folded: str = ""
    """What to click on to see it; empty: it is seen."""


@dataclass(frozen=True)
class Section:
    """A heading, a sentence on how to read it, plots and tables."""

    id: str
    title: str
    text: str
    plots: list[Markup] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


def render(found: Findings) -> str:
    """The page, as HTML. Names of tasks, fields and variants come from users: all text is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("cli.report").joinpath("page.html").read_text(encoding="utf-8"))
    return template.render(
        found=found,
        report=found.report,
        compare=found.report.get("compare", {}),
        sections=list(_sections(found)),
        count=_count,
    )


def _sections(found: Findings) -> Iterator[Section]:
    yield _data(found)
    yield _quality(found)
    yield _calibration(found)
    if "compare" in found.report:
        yield _comparison(found)
    yield _gates(found)
    yield _importances(found)
    yield _delays(found)


def _data(found: Findings) -> Section:
    tasks = [
        [
            task.name,
            task.event_type,
            plots.duration(task.window_ms) if task.event_type in _waiting(found) else "–",
            _count(told["examples"]),
            _count(told["positives"]),
            _share(told["positives"], told["examples"]),
        ]
        for task in found.settings.tasks
        if (told := found.report["tasks"][task.name])
    ]
    fields: tuple[FieldSpec, ...] = found.settings.fields
    return Section(
        "data",
        "Data",
        f"Read in {found.settings.mode} mode. A task's labels are those that became known; sampled items count among "
        "its negatives.",
        tables=[
            Table(["task", "event", "window", "labels", "positive", "share"], tasks, (0, 1)),
            Table(["field", "kind"], [[one.source, one.kind] for one in fields], (0, 1)),
        ],
    )


def _quality(found: Findings) -> Section:
    rows: list[list[str]] = []
    for task, told in found.report["tasks"].items():
        parts = {"all": told["all"], "last half": told["last_half"]}
        if told.get("oracle"):
            parts["oracle, last half"] = told["oracle"]["last_half"]
        for part, metrics in parts.items():
            rows.append([task if part == "all" else "", part, *(_number(metrics.get(name)) for name in _METRICS)])
    return Section(
        "quality",
        "Quality over time",
        "Each stretch of the stream by the scores it had before it was learned. Normalised entropy below 1 beats a "
        "constant that knows the stretch's base rate; an AUC of 0.5 is chance. Examples whose window was open when the "
        "log ended come last, with the labels they had by then.",
        [plots.curves(found.curves, "ne"), plots.curves(found.curves, "auc")],
        [Table(["task", "part", *_METRICS.values()], rows, (0, 1))],
    )


def _calibration(found: Findings) -> Section:
    drawn = [
        plots.reliability(points, task, colour)
        for colour, (task, points) in enumerate(found.reliability.items())
        if points
    ]
    text = (
        "The last half of the stream in order of score, cut into parts with equally many positives: on the dashed line "
        "what was predicted happened as often. Bars are 95 % of the sampling error."
    )
    missing = [task for task, points in found.reliability.items() if not points]
    return Section("calibration", "Calibration", text + _too_few(missing), drawn)


def _comparison(found: Findings) -> Section:
    compare = found.report["compare"]
    rows: list[list[str]] = []
    notes: dict[str, None] = {}
    for variant, tasks in compare.items():
        for task, told in tasks.items():
            first = task == next(iter(tasks))
            for part in ("all", "last_half"):
                one = told["difference"][part]
                cells = [cell for name in ("ne", "auc") for cell in difference_cells(one[name])]
                names = [variant if first else "", task] if part == "all" else ["", ""]
                rows.append([*names, part.replace("_", " "), *cells, verdict(one["ne"])])
                if "note" in one:
                    notes[f"{task}, {part.replace('_', ' ')}: {one['note']}."] = None
    text = (
        f"Each variant minus {found.report['model']} on the same examples; the bar holds the true difference 19 times "
        "in 20, by a paired bootstrap over blocks of time. Plots: the last half of the stream. "
    )
    return Section(
        "comparison",
        "Comparison",
        text + " ".join(notes),
        [plots.differences(compare, task, "last_half") for task in found.report["tasks"]],
        [Table(["variant", "task", "part", "ΔNE", "interval", "ΔAUC", "interval", "NE is"], rows, (0, 1, 2))],
    )


def _gates(found: Findings) -> Section:
    if found.gates is None:
        return Section("experts", "Use of experts", f"The model {found.report['model']} has no gates.")
    tasks = list(found.report["tasks"])
    rows = [
        [task, *(f"{weight:.3f}" for weight in weights), f"{entropy:.3f}"]
        for task, weights, entropy in zip(tasks, found.gates.weights, found.gates.entropies, strict=True)
    ]
    return Section(
        "experts",
        "Use of experts",
        "How much of what a task sees comes from each expert, on the last labelled examples. Entropy 1: all alike, as "
        "at the start; 0: one expert alone.",
        [plots.gates(found.gates, tasks)],
        [Table(["task", *found.gates.names, "entropy"], rows)],
    )


def _importances(found: Findings) -> Section:
    tasks = list(found.report["tasks"])
    told = {task: ones for task, ones in found.importances.items() if ones}
    rows = [
        [task, one.field, f"{one.ne:+.4f}", f"{2 * one.error:.4f}"]
        for task, ones in told.items()
        for one in ones[:_FIELDS_TOLD]
    ]
    tables = [Table(["task", "field", "NE lost", "±"], rows, (0, 1), folded="As a table")] if rows else []
    if found.field_gates:
        ranked = sorted(found.field_gates.items(), key=lambda one: -one[1])
        tables.append(Table(["embedding", "gate, 1 at first"], [[name, f"{gate:.3f}"] for name, gate in ranked]))
    counts = ", ".join(f"{task} {_count(n)}" for task, n in found.n_inspected.items())
    return Section(
        "fields",
        "Importance of fields",
        "Normalised entropy that the final model loses on the last labelled examples when one field's values are "
        f"shuffled among them ({counts or 'none'}), ± two standard errors. Fields that say the same cover for each "
        "other." + _too_few([task for task in tasks if task not in told]),
        [plots.importances(ones, task, tasks.index(task)) for task, ones in told.items()],
        tables,
    )


def _delays(found: Findings) -> Section:
    if not found.delays:
        return Section("delays", "Delay of labels", "No outcome was joined to an exposure.")
    windows = {task.name: task.window_ms for task in found.settings.tasks}
    rows = [
        [
            task,
            _count(delays.n_outcomes),
            *(plots.duration(float(delays.within_ms[(delays.share >= share).argmax()])) for share in (0.5, 0.9, 0.99)),
            plots.duration(windows[task]),
        ]
        for task, delays in found.delays.items()
    ]
    return Section(
        "delays",
        "Delay of labels",
        "How long after its exposure an outcome came, of outcomes whose exposure was still open. A window that the "
        "curve has not levelled out before cuts positives off.",
        [plots.delays(found.delays, list(found.report["tasks"]))],
        [Table(["task", "outcomes", "half within", "90 %", "99 %", "window"], rows)],
    )


def _waiting(found: Findings) -> set[str]:
    """Event types that an exposure waits for."""
    settings = found.settings
    return set(settings.event_types) - {settings.events.exposure} if settings.mode == "exposure" else set()


def _too_few(tasks: list[str]) -> str:
    return f" Too few positives for {', '.join(tasks)}." if tasks else ""


def _count(number: int) -> str:
    return f"{number:,}"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else "–"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
