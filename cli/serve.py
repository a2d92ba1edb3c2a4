"""`anabranch serve`: the scoring worker."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer


def command(
    config: Annotated[Path | None, typer.Option("--config", "-c", help="Settings file, the learner's own.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on (serve.host).")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one (serve.port).")] = None,
) -> None:
    """Answer score and rank requests over HTTP from the newest snapshot.

    Swaps to a newer snapshot by itself, without failing a request. `/docs` describes the requests, `/readyz` turns 200
    once a model is loaded and warm. Ctrl-C or SIGTERM finishes the requests under way.
    """
    from cli._inputs import fail
    from contracts.settings import SettingsError, load_settings

    overrides = {key: value for key, value in (("host", host), ("port", port)) if value is not None}
    try:
        settings = load_settings(config, {"serve": overrides})
    except SettingsError as error:
        fail(error)

    from cli._logging import log_to_stderr
    from cli._serving import run_server

    log_to_stderr()
    for number in (signal.SIGINT, signal.SIGTERM):
        # The server finishes the requests under way, then raises the signal again: that ends the command with 0.
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        run_server(settings)
    except OSError as error:
        fail(
            f"{settings.serve.host}:{settings.serve.port} cannot be listened on: {error.strerror}. "
            "Give a free port with --port (serve.port), or 0."
        )
