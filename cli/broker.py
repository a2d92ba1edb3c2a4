"""`anabranch broker`: an embedded Kafka-compatible broker in the foreground."""

import signal
import threading
from typing import Annotated

import typer


def command(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 9092,
    topic: Annotated[list[str] | None, typer.Option(help="Topic to create; repeatable. [default: events]")] = None,
    partitions: Annotated[int, typer.Option(min=1, help="Partitions of each topic.")] = 4,
) -> None:
    """Run an embedded broker until Ctrl-C or SIGTERM. It keeps records in memory only: for trying things out."""
    from streamer.broker import BrokerError, EmbeddedBroker, create_topics

    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    names = topic or ["events"]
    try:
        with EmbeddedBroker(port) as broker:
            create_topics(broker.bootstrap_servers, dict.fromkeys(names, partitions))
            typer.echo(f"Broker at {broker.bootstrap_servers}, topics: {', '.join(names)} ({partitions} partitions).")
            typer.echo("Everything is in memory only and gone when it stops (Ctrl-C).")
            while broker.running and not stopped.wait(0.5):
                pass
    except BrokerError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error
    if not stopped.is_set():
        typer.echo("The broker ended by itself. Out of memory? It keeps every record.", err=True)
        raise typer.Exit(1)
