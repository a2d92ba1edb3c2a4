"""`anabranch snapshots`: what is there, is it whole, and back to an older one."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from contracts.manifest import Manifest
    from learner.snapshot import SnapshotStore

app = typer.Typer(help="List, verify and roll back snapshots.", no_args_is_help=True)

Config = Annotated[Path | None, typer.Option("--config", "-c", help="Settings (TOML), for `snapshot.directory`.")]
Directory = Annotated[Path | None, typer.Option("--directory", "-d", help="The snapshot directory itself.")]


@app.command("list")
def list_snapshots(config: Config = None, directory: Directory = None) -> None:
    """List the versions, newest first. Sizes are checked here, checksums by `verify`."""
    from rich.console import Console
    from rich.table import Table

    from learner.snapshot import NoSnapshotError

    store = _open(config, directory)
    versions = store.versions()
    if not versions:
        typer.echo(f"No snapshots in {store.directory}.")
        return
    table = Table(title=str(store.directory), title_justify="left")
    for heading in ("version", "created", "newest event", "events", "MiB", "offsets", "state"):
        table.add_column(heading, justify="right" if heading in {"version", "events", "MiB"} else "left")
    for version in reversed(versions):
        try:
            problems = store.verify(version, quick=True)
            row = ["?"] * 5 if problems else _row(store.manifest(version))
        except NoSnapshotError:
            continue  # the learner deleted it meanwhile
        state = f"damaged: {problems[0]}" if problems else "latest" if version == versions[-1] else "ok"
        table.add_row(str(version), *row, state)
    Console(highlight=False).print(table)


@app.command()
def verify(
    version: Annotated[int | None, typer.Argument(help="Version; none: all of them.")] = None,
    config: Config = None,
    directory: Directory = None,
) -> None:
    """Check every checksum and read every file. Exit code 1 if anything is damaged."""
    from learner.snapshot import NoSnapshotError

    store = _open(config, directory)
    versions = store.versions() if version is None else [version]
    if not versions:
        _fail(f"No snapshots in {store.directory}.")
    damaged = False
    for one in versions:
        try:
            problems = store.verify(one)
        except NoSnapshotError as error:
            if version is None:
                continue  # the learner deleted it meanwhile
            _fail(str(error))
        damaged |= bool(problems)
        typer.echo(f"{one}: {'; '.join(problems) or 'ok'}")
    if damaged:
        raise typer.Exit(1)


@app.command()
def rollback(
    version: Annotated[int, typer.Argument(help="The version to go back to.")],
    config: Config = None,
    directory: Directory = None,
) -> None:
    """Make an older version the latest. Newer ones are set aside beside it, not deleted. Stop the learner first.

    Running scorers load it by themselves; the learner, started again, reads on at this version's offsets.
    """
    from learner.snapshot import SnapshotError

    store = _open(config, directory)
    if version not in store.versions():
        there = ", ".join(map(str, store.versions())) or "none"
        _fail(f"{store.directory} has no snapshot {version}. Versions there: {there}.")
    try:
        with store:
            manifest = store.rollback(version)
    except (SnapshotError, OSError) as error:
        _fail(str(error))
    typer.echo(
        f"Version {version} is the latest now: {manifest.n_events} events, up to {_when(manifest.event_time_ms)}."
    )


def _open(config: Path | None, directory: Path | None) -> "SnapshotStore":
    from contracts.settings import SettingsError, load_settings
    from learner.snapshot import SnapshotStore

    if directory is None:
        try:
            directory = Path(load_settings(config).snapshot.directory)
        except SettingsError as error:
            _fail(str(error))
    return SnapshotStore(directory)


def _row(manifest: "Manifest") -> list[str]:
    offsets = "; ".join(
        f"{topic}: {sum(parts.values())} in {len(parts)} partitions"
        for topic, parts in sorted(manifest.offsets.items())
    )
    return [
        _when(manifest.created_ms),
        _when(manifest.event_time_ms),
        str(manifest.n_events),
        f"{manifest.total_bytes / (1 << 20):.1f}",
        offsets or "none",
    ]


def _when(time_ms: int) -> str:
    try:
        return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return f"{time_ms} ms"


def _fail(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(1)
