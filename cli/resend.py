"""`anabranch resend`: dead letters into the events' topic again."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Settings (TOML): broker, topic, group, dead letters.")
    ] = None,
    reason: Annotated[
        list[str] | None, typer.Option("--reason", help="Only those of this reason (repeatable); none: all.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count them by reason; send nothing.")] = False,
    kafka: Annotated[str | None, typer.Option(help="The broker (`host:port`), instead of the settings'.")] = None,
    topic: Annotated[str | None, typer.Option(help="The topic, instead of the settings'.")] = None,
) -> None:
    """Publish the dead letters to their topic again, once what made them bad is repaired.

    Bytes and key are as they were. Each is sent once: the next time goes on where this one ended, for each reason, as
    long as Kafka keeps the offsets of an idle group (a week, unless the broker says otherwise). Nothing is deleted;
    what is still bad becomes a dead letter again. Those stored with their first bytes only, for their size, are left
    out and counted.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from cli._inputs import fail
    from contracts.settings import SettingsError, load_settings
    from streamer.resend import resend

    chosen = {key: value for key, value in (("bootstrap_servers", kafka), ("topic", topic)) if value is not None}
    try:
        settings = load_settings(config, {"kafka": chosen}).kafka
        found = resend(settings, reason or (), dry_run=dry_run)
    except (SettingsError, RuntimeError) as error:
        fail(error)
    except KeyboardInterrupt:
        fail("stopped; the next time sends these again")
    table = Table(title=f"{settings.dead_letters} → {settings.topic}", title_justify="left")
    for heading in ("reason", "not sent" if dry_run else "sent", "cut, left out", "the first"):
        table.add_column(heading, justify="left" if heading in {"reason", "the first"} else "right")
    for name in sorted(found.details):
        table.add_row(name, f"{found.sent[name]:,}", f"{found.cut[name]:,}", escape(found.details[name]))
    Console(highlight=False).print(table if found.details else f"No dead letters in {settings.dead_letters}.")
