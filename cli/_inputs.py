"""What several commands start with: settings, a mapping, a log file."""

import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, cast

import typer

from contracts.settings import Settings, SettingsError, load_settings
from streamer.mapping import Mapping, load_mapping
from streamer.sources.file import FileSource, Format


def wall_clock_ms() -> int:
    """Now."""
    return time.time_ns() // 1_000_000


def parse_time_ms(option: str, text: str) -> int:
    """Milliseconds since the epoch of a time in ISO 8601.

    :raises SettingsError: it is none, or its zone is left open.
    """
    try:
        time_ = datetime.fromisoformat(text)
    except ValueError:
        time_ = None
    if time_ is None or time_.tzinfo is None:
        raise SettingsError(f"{option} is a time with its zone, such as 2026-11-01T00:00Z; found `{text}`.")
    return round(time_.timestamp() * 1000)


def show_time(time_ms: int) -> str:
    """A time as :func:`parse_time_ms` reads it, in UTC."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat()


def fail(message: object) -> NoReturn:
    """Tell a user's error, without a traceback."""
    sys.stderr.write(f"{message}\n")
    raise typer.Exit(1)


def settings_and_mapping(
    config: Path | None, mapping: str | None, overrides: dict[str, Any] | None = None
) -> tuple[Settings, Mapping | None]:
    """The settings, and the mapping named by the option, else by the settings.

    Where no settings file is given, the settings that the mapping recommends take its place.

    :param overrides: what the command's own options say, as settings.
    :raises SettingsError: one line per error.
    """
    if config is None and mapping is not None:
        found = load_mapping(mapping)
        return load_settings(None, overrides, found.settings), found
    settings = load_settings(config, overrides)
    name = mapping or settings.events.mapping
    return settings, load_mapping(name) if name else None


def open_log(path: Path, mapping: Mapping | None, format: str | None = None) -> FileSource:  # noqa: A002 - the option's name
    """A log file as a source; a file without a header line takes its columns' names from the mapping.

    :raises FileSourceError: the file cannot be read.
    """
    columns = mapping.columns if mapping else ()
    if columns and str(path) != "-":
        with FileSource(path, format=cast("Format | None", format), columns=columns, max_records=1) as named:
            first = next(iter(named.poll(0)), None)
        # A header names columns, or it has another length than a row: then the file speaks for itself.
        if first is None or not first.value.startswith(b"{") or set(columns) & set(json.loads(first.value).values()):
            columns = ()
    return FileSource(path, format=cast("Format | None", format), columns=columns or None)
