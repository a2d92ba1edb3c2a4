"""`anabranch demo`: the whole loop on one machine, with nothing but this package."""

import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from cli._children import Child
    from cli._shop_window import ShopWindow
    from contracts.settings import Settings

_RATE = 10.0
_PAST = 1.05  # the shop keeps its rate only about: its last event must not lie in the future
_MORE_EVENTS = 8_000
_PARTITIONS = 2
_PATIENCE_SECONDS = 240.0

_SETTINGS = """\
# Made by `anabranch demo`: a simulated shop, compressed into hours.
seed = {seed}
tasks = [{{ name = "content_view" }}, {{ name = "click", window = "10m" }}, {{ name = "purchase", window = "1h" }}]
fields = [
    {{ source = "item.category" }},
    {{ source = "item.brand" }},
    {{ source = "item.price", kind = "numeric" }},
    {{ source = "user.country" }},
    {{ source = "user.age_group" }},
    {{ source = "context.position" }},
    {{ source = "context.device" }},
]

[kafka]
bootstrap_servers = "{servers}"
topic = "events"
group = "anabranch-demo"
session_timeout = "6s"

[snapshot]
directory = "{directory}"
every = "2s"

[metrics]
port = {metrics_port}

[serve]
port = {serve_port}
reload = "250ms"
"""


def command(
    events: Annotated[int, typer.Option(help="Events to simulate before the first scores.", min=5_000)] = 60_000,
    seed: Annotated[int, typer.Option(help="Seed of the shop and of the model.", min=0)] = 0,
    hold: Annotated[
        bool, typer.Option("--hold", help="Leave everything running afterwards, print the URLs, stop on Ctrl-C.")
    ] = False,
) -> None:
    """Run the whole loop: embedded broker, simulated shop, learner, scorer; end with scores on the screen.

    Everything but the shoppers is the real thing: `anabranch learn` and `anabranch serve` run as processes of their
    own. The shop is a simulation that knows its true probabilities, so the best possible stands beside what is learned.
    """
    from rich.console import Console

    from cli._children import ChildError
    from cli._inputs import fail
    from streamer.broker import BrokerError

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    # Told to end, it ends its children, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    started = time.monotonic()
    try:
        with ExitStack() as stack:
            directory = Path(stack.enter_context(_scratch()))
            _run(console, stack, directory, events, seed, hold=hold)
    except (BrokerError, ChildError, OSError, RuntimeError) as error:
        fail(error)
    except KeyboardInterrupt:
        console.print("Stopped.")
        raise typer.Exit(130) from None
    console.print(f"Done in {time.monotonic() - started:.0f} s; every process has ended.")


def _run(console: "Console", stack: ExitStack, directory: Path, events: int, seed: int, *, hold: bool) -> None:
    from cli._children import Child, free_port
    from cli._inputs import wall_clock_ms
    from cli._shop_window import ShopWindow
    from contracts.settings import load_settings
    from streamer.broker import EmbeddedBroker, create_topics

    broker = stack.enter_context(EmbeddedBroker())
    create_topics(broker.bootstrap_servers, {"events": _PARTITIONS})
    console.print(f"[bold]1[/] Broker (Tansu, in memory) at {broker.bootstrap_servers}")

    file = directory / "demo.toml"
    file.write_text(
        _SETTINGS.format(
            seed=seed,
            servers=broker.bootstrap_servers,
            directory=(directory / "snapshots").as_posix(),
            metrics_port=free_port(),
            serve_port=free_port(),
        ),
        encoding="utf-8",
    )
    settings = load_settings(file)
    learner = stack.enter_context(Child("learn", file, directory / "learn.log"))
    scorer = stack.enter_context(Child("serve", file, directory / "serve.log"))
    console.print(f"[bold]2[/] Learner (pid {learner.pid}) and scorer (pid {scorer.pid}) started")

    total = events + _MORE_EVENTS
    shop = ShopWindow(settings, total, wall_clock_ms() - int(_PAST * total / _RATE * 1000), _RATE, seed)
    stack.callback(shop.close)
    _publish(shop, events, learner)
    console.print(f"[bold]3[/] {events:,} simulated events published")
    _await_events(settings, int(0.9 * shop.n_published), [learner, scorer])
    console.print(
        "[bold]4[/] Learned, snapshotted, served. The learning curve, beside the shop's own true probabilities:"
    )
    _print_curve(console, settings)

    user = shop.loyal_user()
    items = shop.items_for(user)
    before = shop.rank(user, items)
    console.print(
        f"[bold]5[/] Now user {user} looks at and buys {shop.favourite} items; {_MORE_EVENTS:,} events follow"
    )
    shop.visit(user)
    visited = shop.n_published
    _publish(shop, _MORE_EVENTS, learner)
    _await_events(settings, visited + _MORE_EVENTS // 4, [learner, scorer])
    after = shop.rank(user, items)
    shop.print_scores(console, user, items, before, after)
    versions = sorted(path.name for path in (directory / "snapshots").glob("v*"))
    console.print(f"Snapshots on disk: {', '.join(versions)}")
    if hold:
        _hold(console, settings, broker.bootstrap_servers, file, [learner, scorer])


@contextmanager
def _scratch() -> Iterator[str]:
    directory = tempfile.mkdtemp(prefix="anabranch-demo-")
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _publish(shop: "ShopWindow", events: int, learner: "Child") -> None:
    from cli._progress import Steps

    with Steps("published", total=events) as steps:
        for _ in range(events):
            shop.publish_next()
            steps.advance()
    shop.flush()
    learner.check()


def _await_events(settings: "Settings", wanted: int, children: "list[Child]") -> None:
    """Wait until the scorer serves a model that has read so many records."""
    import httpx

    from cli._progress import Share

    url = f"http://{settings.serve.host}:{settings.serve.port}/v1/model"
    deadline = time.monotonic() + _PATIENCE_SECONDS
    reached = 0
    with Share("learned and served") as share:
        while reached < wanted:
            for child in children:
                child.check()
            if time.monotonic() > deadline:
                raise RuntimeError(f"After {_PATIENCE_SECONDS:.0f} s only {reached:,} of {wanted:,} events are served.")
            time.sleep(0.2)
            try:
                reply = httpx.get(url, timeout=5.0)
            except httpx.TransportError:
                continue
            if reply.status_code == httpx.codes.OK:
                now = sum(sum(partitions.values()) for partitions in reply.json()["offsets"].values())
                share.advance(now - reached, min(now / wanted, 1.0))
                reached = now


def _print_curve(console: "Console", settings: "Settings") -> None:
    from rich import box
    from rich.table import Table

    from learner.evaluation import Quality
    from learner.loop import LEARNER
    from learner.snapshot import SnapshotStore

    snapshot = SnapshotStore(Path(settings.snapshot.directory)).load(groups=("quality",), states=(LEARNER,))
    quality = Quality(settings.tasks, settings.evaluation.window_ms, oracle=True)
    quality.restore(snapshot.states[LEARNER]["quality"], snapshot.groups["quality"])
    made = Table(title="Normalised entropy, before learning each example (below 1 beats the base rate)", box=box.SIMPLE)
    made.add_column("task")
    for quarter in ("1st quarter", "2nd", "3rd", "4th", "oracle", "AUC, last half", "oracle's AUC"):
        made.add_column(quarter, justify="right")
    report: dict[str, Any] = quality.report()
    for index, task in enumerate(settings.tasks):
        found = report[task.name]
        oracle = found.get("oracle", {}).get("last_half", {})
        made.add_row(
            task.name,
            *_quarters(quality, index),
            _number(oracle.get("ne")),
            _number(found["last_half"]["auc"]),
            _number(oracle.get("auc")),
        )
    console.print(made)


def _quarters(quality: Any, task: int) -> list[str]:
    curve = quality.curve(task)
    if not curve:
        return ["–"] * 4
    total = curve[-1].examples
    columns = []
    for quarter in range(4):
        points = [
            p.ne for p in curve if p.ne is not None and quarter * total / 4 < p.examples <= (quarter + 1) * total / 4
        ]
        columns.append(_number(sum(points) / len(points)) if points else "–")
    return columns


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _hold(console: "Console", settings: "Settings", servers: str, file: Path, children: "list[Child]") -> None:
    serve = f"http://{settings.serve.host}:{settings.serve.port}"
    console.print(
        f"Running until Ctrl-C:\n  broker    {servers} (topic events)\n  scorer    {serve}/docs\n"
        f"            {serve}/metrics\n  learner   http://{settings.metrics.host}:{settings.metrics.port}/metrics\n"
        f"  settings  {file}\nMore events: anabranch simulate --live --kafka {servers} --topic events"
    )
    try:
        while True:
            for child in children:
                child.check()
            time.sleep(0.5)
    except KeyboardInterrupt:
        console.print("Stopping.")
