"""The `anabranch` command."""

import importlib

import typer

app = typer.Typer(
    name="anabranch",
    help="An event-streaming incremental learner for recommendation: Kafka events in, one online multi-task model, "
    "fresh scores out.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)

for _name in (
    "demo",
    "broker",
    "simulate",
    "replay",
    "resend",
    "learn",
    "serve",
    "evaluate",
    "tune",
    "snapshots",
    "check",
):
    _module = importlib.import_module(f"cli.{_name}")
    if hasattr(_module, "app"):
        app.add_typer(_module.app, name=_name)
    else:
        app.command(_name)(_module.command)


if __name__ == "__main__":
    app()
