"""`anabranch tune`: better settings for a log, found by trying, and how sure that is."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from cli._study import Difference
    from cli._trials import Parameters


def command(
    input: Annotated[Path, typer.Argument(help="JSON lines, CSV, TSV (each also `.gz`) or Parquet.")],  # noqa: A002 - the argument's name
    mapping: Annotated[
        str | None, typer.Option("--mapping", "-m", help="A ready mapping's name or a TOML file; none: canonical JSON.")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="Settings (TOML) to start from.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the best settings are written.")] = Path("tuned.toml"),
    study: Annotated[
        Path, typer.Option(help="SQLite file that keeps the trials; the same command goes on after a stop.")
    ] = Path("tune.db"),
    trials: Annotated[int, typer.Option(help="How many trials the study shall have.", min=1)] = 40,
    jobs: Annotated[int | None, typer.Option(help="Processes at a time; by default one per core.", min=1)] = None,
    metric: Annotated[
        str, typer.Option(help="`ne`: normalised entropy, the mean over the tasks. `ndcg`: NDCG@10 among 99 others.")
    ] = "ne",
    space: Annotated[
        Path | None,
        typer.Option(
            help='What to search (TOML): `"model.width" = [8, 16]`, '
            '`"train.learning_rate" = { low = 3e-4, high = 1e-2, log = true }`. By default the learning rates, '
            "admission, architecture, width, experts, batch size and balancing."
        ),
    ] = None,
    share: Annotated[
        float, typer.Option(help="Share of the log, from its start, that the search sees.", min=0.1, max=0.9)
    ] = 0.7,
    seeds: Annotated[int, typer.Option(help="Seeds under which the best is confirmed on the rest.", min=1)] = 3,
    format: Annotated[  # noqa: A002 - the option's name
        str | None, typer.Option(help="jsonl, csv, tsv or parquet, where the suffix does not say.")
    ] = None,
) -> None:
    """Search settings that learn this log better, and write them as a settings file.

    Each trial learns the first part of the log as `evaluate` does and is scored before it learns; a trial that is worse
    than the median at its time is given up. At the end the best and the settings you started from learn the whole
    log under seeds that no trial had, and are compared on the rest, which no trial has seen.

    Needs `pip install 'anabranch[tune]'`.
    """
    import os

    from cli._inputs import fail
    from contracts.settings import SettingsError
    from streamer.sources.file import FileSourceError

    try:
        from cli._study import Study
    except ModuleNotFoundError as error:
        fail(f"`anabranch tune` needs {error.name}: pip install 'anabranch[tune]'.")
    from cli._trials import load_space

    jobs = jobs or os.cpu_count() or 1
    try:
        chosen = load_space(space)
        experiment = _experiment(input, mapping, config, format, metric)
        for name, entry in chosen.items():
            for value in entry.probes:
                experiment.settings({name: value})
        seed = experiment.settings({})[0].seed
        search = Study(study, experiment, chosen, share)
        search.search(trials, jobs, seed)
        parameters, score = search.best
        _write(out, config, mapping, experiment.fields, parameters)
        _print_best(parameters, search.start, score, metric, out)
        if parameters:
            _print_sure(search.confirm(parameters, seeds, seed, jobs), metric, seeds, share)
    except KeyboardInterrupt:
        fail(f"Stopped. The trials so far are kept in {study}; the same command goes on.")
    except (SettingsError, FileSourceError, RuntimeError, ValueError) as error:
        fail(error)


def _experiment(log: Path, mapping: str | None, config: Path | None, format_: str | None, metric: str) -> Any:
    from cli._inputs import settings_and_mapping
    from cli._trials import Experiment
    from cli.evaluate import look
    from contracts.settings import SettingsError

    if metric not in ("ne", "ndcg"):
        raise SettingsError(f"--metric is `ne` or `ndcg`; found `{metric}`.")
    chosen: Literal["ne", "ndcg"] = "ne" if metric == "ne" else "ndcg"
    settings, how = settings_and_mapping(config, mapping)
    settings = look(settings, how, log, format_, 0.0 if chosen == "ne" else None)
    return Experiment(config, mapping, log, format_, settings.fields, settings.evaluation, chosen)


def _write(
    out: Path, config: Path | None, mapping: str | None, fields: tuple[Any, ...], parameters: "Parameters"
) -> None:
    """The settings file that was started from, its comments kept, with the values found."""
    import tomlkit

    from streamer.mapping import load_mapping

    if config is not None:
        content = tomlkit.parse(config.read_text(encoding="utf-8"))
    else:
        content = tomlkit.document()
        if mapping is not None:
            content.update({**load_mapping(mapping).settings, "events": {"mapping": mapping}})
    if "fields" not in content and fields:
        declared = tomlkit.array().multiline(multiline=True)
        for field in fields:
            entry = tomlkit.inline_table()
            entry.update({"source": field.source, "kind": field.kind})
            declared.append(entry)
        content.add("fields", declared)
    for name, value in parameters.items():
        section, key = name.split(".")
        content.setdefault(section, tomlkit.table())[key] = value
    out.write_text(tomlkit.dumps(content), encoding="utf-8")


def _print_best(parameters: "Parameters", start: float, score: float, metric: str, out: Path) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if not parameters:
        console.print(f"No trial was better than the settings as they are ({metric} {start:.4f}); {out} holds these.")
        return
    console.print(f"Best {metric}: {score:.4f}, of the settings as they are {start:.4f}. Written to {out}:")
    for name, value in parameters.items():
        console.print(f"  {name} = {value:.6g}" if isinstance(value, float) else f"  {name} = {value}")


def _print_sure(found: dict[str, "Difference"], metric: str, seeds: int, share: float) -> None:
    """What the search cannot have fitted: the rest of the log, other seeds."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    made = Table(
        title=f"{metric} on the last {1 - share:.0%} of the log, which no trial saw; {seeds} fresh seeds",
        box=box.SIMPLE,
    )
    made.add_column("task")
    for name in ("as they are", "tuned", "difference", "95 % interval over the seeds", ""):
        made.add_column(name, justify="right")
    sign = -1 if metric == "ne" else 1
    for task, one in found.items():
        if one.mean is None:
            made.add_row(task, "–", "–", "–", "–", "")
            continue
        if one.half_width is None:
            interval, verdict = "– (one seed)", "not sure"
        else:
            interval = f"{one.mean - one.half_width:+.4f} to {one.mean + one.half_width:+.4f}"
            is_sure = abs(one.mean) > one.half_width
            verdict = ("better" if sign * one.mean > 0 else "worse") if is_sure else "not sure"
        made.add_row(task, f"{one.start:.4f}", f"{one.tuned:.4f}", f"{one.mean:+.4f}", interval, verdict)
    console = Console(highlight=False)
    console.print(made)
    console.print("The interval is over seeds on this one log; it does not say how another week would turn out.")
