"""`anabranch evaluate`: prequential evaluation of a log, without Kafka, on the learner's own code."""

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from contracts.events import Event
    from contracts.settings import Settings
    from streamer.feed import Feed
    from streamer.mapping import Mapping

_LOOKED_AT = 1000
_COMMON = 0.5
_COMMON_SHARE = 0.2


def command(
    input: Annotated[Path, typer.Argument(help="JSON lines, CSV, TSV (each also `.gz`) or Parquet.")],  # noqa: A002 - the argument's name
    mapping: Annotated[
        str | None, typer.Option("--mapping", "-m", help="A ready mapping's name or a TOML file; none: canonical JSON.")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="Settings (TOML).")] = None,
    mode: Annotated[str | None, typer.Option(help="`exposure` or `implicit`.")] = None,
    task: Annotated[
        list[str] | None, typer.Option("--task", help="An event type to predict; repeatable. Others are passed over.")
    ] = None,
    window: Annotated[
        list[str] | None, typer.Option("--window", help="Attribution window of a task, `TASK=30m`; repeatable.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Architecture, a module of learner/models.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights and samples.")] = None,
    ranking: Annotated[
        float | None,
        typer.Option(
            help="Share of events to rank among 99 others; 0: none. By default a fifth of the events of a type that is "
            "commoner than all others, and all of the rest.",
            min=0,
            max=1,
        ),
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            help="Learn variants on the same stream in the same pass and tell the differences with their intervals: "
            "models, balancings, `section.key=value`; `+` joins several settings of one variant, a comma variants. "
            "`single_task`: what sharing is worth."
        ),
    ] = None,
    json: Annotated[
        str | None, typer.Option("--json", help="Write the report as one JSON object to a file; `-`: standard output.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Write one self-contained HTML page: plots and tables."),
    ] = None,
    format: Annotated[  # noqa: A002 - the option's name
        str | None, typer.Option(help="jsonl, csv, tsv or parquet, where the suffix does not say.")
    ] = None,
) -> None:
    """Learn a log from its first row to its last, and tell how well each event was predicted before it was learned.

    The same code as `learn`, without Kafka. Examples whose attribution window is still open at the end of the log are
    counted with the labels they have by then.

    Without `-c`, a mapping's recommended settings apply, and attributes seen in the first rows become fields.
    """
    from cli._inputs import fail, settings_and_mapping
    from cli._variants import variants
    from contracts.settings import SettingsError
    from streamer.feed import IngestProcessError
    from streamer.process import start_feed
    from streamer.sources.file import STDIN, FileSourceError

    overrides: dict[str, Any] = {key: value for key, value in (("mode", mode), ("seed", seed)) if value is not None} | (
        {"model": {"name": model}} if model else {}
    )
    if report is not None:
        _check_can_draw(report)
    try:
        settings, how = settings_and_mapping(config, mapping, overrides)
        settings = _with_tasks(settings, task or [], window or [])
        # Standard input belongs to this process. Any other process imports while this one looks and imports, too.
        with start_feed(1 if str(input) == STDIN else settings.processes) as feed:
            settings = look(settings, how, input, format, ranking)
            told = _evaluate(settings, how, input, format, feed, variants(settings, compare or []), report)
    except (SettingsError, FileSourceError, IngestProcessError, ValueError) as error:
        fail(error)

    from cli._report import write_report

    write_report(told, json)


def _check_can_draw(page: Path) -> None:
    """Before a long run, not behind it."""
    from importlib.util import find_spec

    from cli._inputs import fail

    if missing := [name for name in ("jinja2", "matplotlib") if find_spec(name) is None]:
        fail(f"--report draws with {' and '.join(missing)}, not installed here: pip install 'anabranch[report]'.")
    if not page.parent.is_dir():
        fail(f"--report {page}: there is no folder {page.parent}. Make it, or name another.")


def _with_tasks(settings: "Settings", types: list[str], windows: list[str]) -> "Settings":
    """The settings with only these tasks, and with these attribution windows."""
    from contracts.settings import SettingsError, Task, parse_duration_ms

    tasks = [entry.model_dump(by_alias=True) for entry in settings.tasks]
    if types:
        known = {entry["event"] or entry["name"]: entry for entry in tasks}
        tasks = [known.get(name, Task(name=name).model_dump(by_alias=True)) for name in types]
    for entry in windows:
        name, _, text = entry.partition("=")
        chosen = [one for one in tasks if one["name"] == name]
        if not text or not chosen:
            raise SettingsError(
                f"--window is TASK=DURATION with a task of the run ({', '.join(one['name'] for one in tasks)}); "
                f"found `{entry}`."
            )
        chosen[0]["window"] = parse_duration_ms(text)
    for one in tasks:
        one |= {name: f"{one[name]}ms" for name in ("window", "wait")}
    ignore = settings.events.model_copy(update={"ignore": ("*",)}) if types else settings.events
    return settings.model_copy(update={"tasks": tuple(Task.model_validate(one) for one in tasks), "events": ignore})


def look(
    settings: "Settings", how: "Mapping | None", path: Path, format_: str | None, ranking: float | None
) -> "Settings":
    """Settle what the log's first rows tell: fields, where none are declared, and how much to rank."""
    from streamer.inference import describe, infer_fields

    events = _first_events(settings, how, path, format_)
    if not settings.fields:
        fields = infer_fields(events, _LOOKED_AT)
        if fields:
            sys.stderr.write(f"No fields are declared; seen in the first rows and used:\n{describe(fields)}\n")
        settings = settings.model_copy(update={"fields": fields})
    ranked = [
        task
        for task in settings.tasks
        if settings.mode == "implicit" or (task.event_type == settings.events.exposure and settings.negatives.exposure)
    ]
    if ranking is None:
        counts = Counter(event.type for event in events)
        shares = {
            task.name: _COMMON_SHARE if counts[task.event_type] > _COMMON * counts.total() else 1.0 for task in ranked
        }
        shares |= settings.evaluation.ranking
    else:
        shares = {task.name: ranking for task in ranked} if ranking else {}
    evaluation = settings.evaluation.model_copy(update={"ranking": shares})
    return settings.model_copy(update={"evaluation": evaluation})


def _first_events(settings: "Settings", how: "Mapping | None", path: Path, format_: str | None) -> "list[Event]":
    from cli._inputs import open_log, wall_clock_ms
    from contracts.records import BadRecordError
    from streamer.decode import EventDecoder

    decoder = EventDecoder(settings, how, wall_clock_ms)
    events: list[Event] = []
    n_read = 0
    with open_log(path, how, format_) as source:
        while not source.ended and n_read < _LOOKED_AT:
            for record in source.poll(0):
                n_read += 1
                try:
                    events += decoder.decode(record)
                except BadRecordError:
                    continue
    return events


def _evaluate(
    settings: "Settings",
    how: "Mapping | None",
    path: Path,
    format_: str | None,
    feed: "Feed",
    compared: "dict[str, Settings]",
    page: Path | None,
) -> dict[str, Any]:
    import time
    from functools import partial

    from prometheus_client import CollectorRegistry

    from cli._assembly import assemble_behind
    from cli._ingest import log_inputs
    from cli._progress import Share
    from contracts.batch import Batch
    from learner.inspection import LastRows
    from learner.metrics import LearnerMetrics

    registry = CollectorRegistry()
    feed.open(settings.unsaved(), partial(log_inputs, settings, how, path, format_), registry, lambda: False)
    metrics = LearnerMetrics(registry, settings.evaluation.detector)
    assembly = assemble_behind(settings, feed, metrics, variants=compared)
    if page is not None:
        assembly.last_rows = LastRows(assembly.trainer, seed=settings.seed)
    started = time.perf_counter()
    with Share("evaluated") as share:

        def progress(batch: Batch) -> None:
            share.advance(batch.n_events, feed.standing.progress)

        assembly.run(progress)
    assembly.close_open_windows()
    report = assembly.report(time.perf_counter() - started, settings.model.name)
    if page is not None and assembly.last_rows is not None:
        from cli.report.findings import find
        from cli.report.page import render

        page.write_text(render(find(path.name, settings, assembly, assembly.last_rows, report)), encoding="utf-8")
    for reason, count, row, detail in feed.rejected():
        sys.stderr.write(f"rejected {count:,} × {reason}, first at row {row}: {detail}\n")
    return report
