"""`anabranch check`: the settings, and a log's first rows, read aloud."""

from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from contracts.events import Event
    from contracts.records import Record
    from contracts.settings import Settings
    from streamer.mapping import Mapping

_ROWS_COUNTED = 1_000
_RAW_SHOWN = 400


def command(
    input: Annotated[Path | None, typer.Argument(help="A log whose first rows are to be read.")] = None,  # noqa: A002 - the argument's name
    config: Annotated[Path | None, typer.Option("--config", "-c", help="Settings (TOML).")] = None,
    mapping: Annotated[
        str | None, typer.Option("--mapping", "-m", help="A ready mapping's name or a TOML file; none: canonical JSON.")
    ] = None,
    rows: Annotated[int, typer.Option(help="Rows to show.", min=0)] = 10,
    format: Annotated[  # noqa: A002 - the option's name
        str | None, typer.Option(help="jsonl, csv, tsv or parquet, where the suffix does not say.")
    ] = None,
) -> None:
    """Read settings, a mapping and a log's first rows aloud, before anything runs on them.

    Exit code 1 if something is wrong with the settings or the mapping, or if no row of the log could be read.
    """
    from rich.console import Console

    from cli._inputs import fail, open_log
    from contracts.settings import SettingsError
    from streamer.sources.file import FileSourceError

    console = Console(highlight=False)
    errors: list[str] = []
    settings, how = _load(config, mapping, errors)
    if settings is not None:
        errors += _unknown_components(settings)
        _print_settings(console, settings, how)
    if errors or settings is None:
        fail("\n".join(errors))
    if input is None:
        return
    try:
        with open_log(input, how, format) as source:
            records: list[Record] = []
            while not source.ended and len(records) < max(rows, _ROWS_COUNTED):
                records += source.poll(0)
    except (FileSourceError, SettingsError) as error:
        fail(error)
    reading = _read(records[: max(rows, _ROWS_COUNTED)], settings, how)
    _print_reading(console, reading, rows)
    if not settings.fields:
        _suggest_fields(console, reading)
    if reading.rows and not reading.events and reading.rejected:
        fail("No row could be read. Give a --mapping that fits the log, or declare its event types.")


@dataclass
class _Reading:
    """What became of the first rows."""

    rows: list[tuple[bytes, "list[Event] | str"]] = field(default_factory=list)
    types: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    @property
    def events(self) -> "list[Event]":
        """All events, in order."""
        return [event for _, found in self.rows if not isinstance(found, str) for event in found]


def _load(config: Path | None, mapping: str | None, errors: list[str]) -> "tuple[Settings | None, Mapping | None]":
    """Settings and mapping, each read even where the other is wrong: one call tells every error."""
    from cli._inputs import settings_and_mapping
    from contracts.settings import SettingsError, load_settings
    from streamer.mapping import load_mapping

    for load in (lambda: load_settings(config), lambda: mapping and load_mapping(mapping)):
        try:
            load()
        except SettingsError as error:
            errors.append(str(error))
    if not errors:
        try:
            return settings_and_mapping(config, mapping)
        except SettingsError as error:
            errors.append(str(error))
    return None, None


def _unknown_components(settings: "Settings") -> list[str]:
    from contracts.components import names

    chosen = (
        ("model.name", "learner.models", settings.model.name),
        ("train.balancing", "learner.balancing", settings.train.balancing),
        ("evaluation.detector", "learner.drift", settings.evaluation.detector),
    )
    return [
        f"{path}: unknown component `{name}`, expected one of {', '.join(names(package))}"
        for path, package, name in chosen
        if name not in names(package)
    ]


def _read(records: "list[Record]", settings: "Settings", mapping: "Mapping | None") -> _Reading:
    from cli._inputs import wall_clock_ms
    from contracts.records import BadRecordError
    from streamer.decode import EventDecoder

    decoder, reading = EventDecoder(settings, mapping, wall_clock_ms), _Reading()
    for record in records:
        try:
            events = decoder.decode(record)
        except BadRecordError as error:
            reading.rejected[error.reason] += 1
            reading.examples.setdefault(error.reason, f"row {record.offset}: {error.detail}")
            reading.rows.append((record.value, f"{error.reason}: {error.detail}"))
            continue
        reading.rows.append((record.value, events))
        reading.types.update(event.type for event in events)
    return reading


def _print_settings(console: "Console", settings: "Settings", mapping: "Mapping | None") -> None:
    from rich.table import Table
    from rich.text import Text

    console.print(
        f"[bold]mode[/bold] {settings.mode}, event types {', '.join(settings.event_types)}, "
        f"model {settings.model.name}, topic {settings.kafka.topic} at {settings.kafka.bootstrap_servers}"
    )
    tasks = Table("task", "event", "window", "weight", title="Tasks", title_justify="left")
    for task, weight in zip(settings.tasks, settings.task_weights, strict=True):
        tasks.add_row(task.name, task.event_type, _duration(task.window_ms), f"{weight:g}")
    console.print(tasks)
    if settings.fields:
        fields = Table("field", "kind", title="Fields", title_justify="left")
        for spec in settings.fields:
            fields.add_row(Text(spec.source), spec.kind)
        console.print(fields)
    changed = _changed(settings)
    if changed:
        table = Table("setting", "value", "default", title="Other than the defaults", title_justify="left")
        for path, value, default in changed:
            table.add_row(Text(path), Text(value), Text(default))
        console.print(table)
    _print_memory(console, settings)
    left_out = [flag.type for flag in (mapping.flags if mapping else ()) if flag.type not in settings.event_types]
    if left_out:
        console.print(f"The mapping's flags make events that no task asks for; left out: {', '.join(left_out)}")


def _print_memory(console: "Console", settings: "Settings") -> None:
    from rich.table import Table

    from contracts.memory import MIB, plan, snapshot_bytes

    table = Table("of one", "setting", "value", "bytes each", "MiB", title="Memory", title_justify="left")
    for column in table.columns[2:]:
        column.justify = "right"
    parts = plan(settings)
    for part, value, n_bytes in parts:
        shown = (f"{value:,.0f}", f"{n_bytes / value:,.0f}") if part.one else (f"{value:,g} MiB", "")
        table.add_row(part.one or "embedding row", part.setting, *shown, f"{n_bytes / MIB:,.1f}")
    cap = f"{settings.memory.max_mib:,g} MiB" if settings.memory.max_mib else "none"
    table.add_section()
    table.add_row("all", "memory.max_mib", cap, "", f"{sum(one.n_bytes for one in parts) / MIB:,.1f}")
    console.print(table)
    console.print(f"Copies for snapshots come on top: at most {snapshot_bytes(settings) / MIB:,.0f} MiB.")


def _changed(settings: "Settings") -> list[tuple[str, str, str]]:
    from contracts.settings import Settings

    defaults = dict(_leaves("", Settings()))
    shown = ("tasks", "fields")  # in tables of their own
    return [
        (path, value, defaults.get(path, ""))
        for path, value in _leaves("", settings)
        if defaults.get(path) != value and path not in shown
    ]


def _leaves(prefix: str, section: Any) -> list[tuple[str, str]]:
    """Every setting with its path, both as in the TOML file."""
    from pydantic import BaseModel

    found: list[tuple[str, str]] = []
    for name, info in type(section).model_fields.items():
        value, path = getattr(section, name), f"{prefix}{info.alias or name}"
        if isinstance(value, BaseModel):
            found += _leaves(f"{path}.", value)
        elif name.endswith("_ms"):
            found.append((path, ", ".join(map(_duration, value)) if isinstance(value, tuple) else _duration(value)))
        else:
            found.append((path, ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)))
    return found


def _duration(milliseconds: int) -> str:
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)):
        if milliseconds and milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms"


def _print_reading(console: "Console", reading: _Reading, n_shown: int) -> None:
    from rich.table import Table
    from rich.text import Text

    if n_shown:
        table = Table("row", title="First rows", title_justify="left", show_lines=True)
        table.add_column("as it stands", overflow="fold")
        table.add_column("as it was read", overflow="fold")
        for number, (raw, found) in enumerate(islice(reading.rows, n_shown)):
            text = raw[:_RAW_SHOWN].decode("utf-8", "backslashreplace") + ("…" if len(raw) > _RAW_SHOWN else "")
            if isinstance(found, str):
                read = Text(found, style="red")
            else:
                read = Text("\n".join(map(_told, found)) or "ignored")
            table.add_row(str(number), Text(text), read)
        console.print(table)
    counts = Table("of the first rows", "count", title=f"{len(reading.rows):,} rows", title_justify="left")
    for type_, count in reading.types.most_common():
        counts.add_row(Text(type_), f"{count:,}")
    ignored = sum(1 for _, found in reading.rows if not found)
    if ignored:
        counts.add_row("ignored", f"{ignored:,}")
    for reason, count in reading.rejected.most_common():
        counts.add_row(f"rejected: {reason}", f"{count:,}", style="red")
    console.print(counts)
    for reason, example in reading.examples.items():
        console.print(Text(f"{reason}, {example}"))


def _told(event: "Event") -> str:
    from datetime import UTC, datetime, timedelta

    try:
        when = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=event.ts_ms)).isoformat(
            timespec="milliseconds"
        )
    except OverflowError:
        when = f"{event.ts_ms} ms"
    parts = [event.type, f"user {event.user_id}", f"item {event.item_id}", when]
    if event.request_id is not None:
        parts.append(f"request {event.request_id}")
    if event.value is not None:
        parts.append(f"value {event.value:g}")
    for owner, attributes in (("item", event.item), ("user", event.user), ("context", event.context)):
        parts += [f"{owner}.{key}={value!r}" for key, value in attributes.items()]
    return ", ".join(parts)


def _suggest_fields(console: "Console", reading: _Reading) -> None:
    from rich.text import Text

    from streamer.inference import describe, infer_fields

    fields = infer_fields(reading.events)
    if fields:
        console.print("\nNo fields are declared: the model would see ids and history only. These rows suggest:\n")
        console.print(Text(describe(fields)), soft_wrap=True)
