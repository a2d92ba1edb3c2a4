"""`anabranch simulate`: the seeded shop, into a file or into Kafka."""

import gzip
import io
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from contracts.events import Event


def command(
    events: Annotated[int | None, typer.Option(help="Stop after so many events.", min=1)] = None,
    duration: Annotated[str | None, typer.Option(help="Stop after so much event time, such as `2h`.")] = None,
    to: Annotated[Path | None, typer.Option(help="Write JSON lines to this file (`.gz`: packed; `-`: stdout).")] = None,
    kafka: Annotated[str | None, typer.Option(help="Publish to this broker (`host:port`).")] = None,
    topic: Annotated[str, typer.Option(help="The topic; created if it is not there.")] = "events",
    partitions: Annotated[int, typer.Option(help="Of a topic that is created.", min=1)] = 4,
    seed: Annotated[int, typer.Option(help="The same seed gives the same events.", min=0)] = 0,
    rate: Annotated[float, typer.Option(help="Events per second of event time.")] = 200.0,
    users: Annotated[int, typer.Option(help="Users at a time.")] = 20_000,
    items: Annotated[int, typer.Option(help="Items at a time.")] = 5_000,
    change_at: Annotated[
        str | None, typer.Option(help="Everyone's taste changes after so much event time, such as `30m`.")
    ] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Start now and keep pace with the clock; endless unless told otherwise.")
    ] = False,
) -> None:
    """Simulate a shop: lists shown, clicks, purchases, with the true probabilities in `truth`.

    Every exposure (`content_view`) says what its chance of a click and of a purchase is, so that `anabranch evaluate`
    can tell how close a model comes to the best possible.
    """
    from pydantic import ValidationError

    from cli._inputs import fail, wall_clock_ms
    from cli._progress import Steps
    from contracts.settings import SettingsError, parse_duration_ms
    from streamer.simulator import START_MS, ShopSimulator, SimulatorSettings

    if (to is None) == (kafka is None):
        fail("Say where the events go: either --to FILE or --kafka HOST:PORT.")
    if events is None and duration is None and not live:
        fail("Say how much: --events N or --duration 2h (or --live, which goes on until it is stopped).")
    try:
        settings = SimulatorSettings.model_validate(
            {
                "seed": seed,
                "events": events,
                "duration_ms": None if duration is None else parse_duration_ms(duration),
                "start_ms": wall_clock_ms() if live else START_MS,
                "rate": rate,
                "n_users": users,
                "n_items": items,
                "change_at_ms": None if change_at is None else parse_duration_ms(change_at),
            }
        )
    except ValidationError as error:
        fail("\n".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()))
    except ValueError as error:
        fail(error)

    stream = ShopSimulator(settings).events()
    if live:
        stream = paced(stream, wall_clock_ms, time.sleep)
    try:
        with (
            _file(to) if to is not None else _topic(kafka or "", topic, partitions) as send,
            Steps("simulated", total=events) as steps,
        ):
            for event in stream:
                send(event)
                steps.advance()
    except (OSError, RuntimeError, SettingsError) as error:
        fail(error)
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")


def paced(events: Iterator[Event], clock_ms: Callable[[], int], sleep: Callable[[float], None]) -> Iterator[Event]:
    """The same events, each when its event time has come."""
    for event in events:
        ahead_ms = event.ts_ms - clock_ms()
        if ahead_ms > 0:
            sleep(ahead_ms / 1000)
        yield event


@contextmanager
def _file(path: Path) -> Iterator[Callable[[Event], object]]:
    import msgspec

    encode = msgspec.json.Encoder().encode
    if str(path) == "-":
        opened = nullcontext(sys.stdout.buffer)
    elif path.suffix == ".gz":
        # No time stamp inside: the same seed gives the same bytes.
        opened = io.BufferedWriter(gzip.GzipFile(path, "wb", compresslevel=5, mtime=0), 1 << 18)  # type: ignore[assignment]
    else:
        opened = path.open("wb")  # type: ignore[assignment]
    with opened as file:
        yield lambda event: file.write(encode(event) + b"\n")


@contextmanager
def _topic(bootstrap_servers: str, topic: str, n_partitions: int) -> Iterator[Callable[[Event], object]]:
    from contracts.settings import load_settings
    from streamer.broker import create_topics
    from streamer.publish import EventPublisher

    # SASL and TLS by the environment, as everywhere.
    broker = load_settings(None, {"kafka": {"bootstrap_servers": bootstrap_servers}}).kafka
    create_topics(broker, {topic: n_partitions})
    with EventPublisher(broker, topic) as publisher:
        yield publisher.publish
