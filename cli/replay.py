"""`anabranch replay`: a log file into Kafka, as canonical events."""

import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer


def command(
    input: Annotated[Path, typer.Argument(help="JSON lines, CSV, TSV (each also `.gz`) or Parquet.")],  # noqa: A002 - the argument's name
    mapping: Annotated[
        str | None, typer.Option("--mapping", "-m", help="A ready mapping's name or a TOML file; none: canonical JSON.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Settings (TOML): broker, topic, types.")
    ] = None,
    kafka: Annotated[str | None, typer.Option(help="The broker (`host:port`), instead of the settings'.")] = None,
    topic: Annotated[str | None, typer.Option(help="The topic, instead of the settings'; created if missing.")] = None,
    partitions: Annotated[int, typer.Option(help="Of a topic that is created.", min=1)] = 4,
    rate: Annotated[float | None, typer.Option(help="At most so many events a second.", min=1e-6)] = None,
    format: Annotated[  # noqa: A002 - the option's name
        str | None, typer.Option(help="jsonl, csv, tsv or parquet, where the suffix does not say.")
    ] = None,
) -> None:
    """Publish a log file to Kafka.

    Rows that cannot become events are counted by reason and left out; event times stay as they are in the log.
    """
    from cli._inputs import fail, open_log, settings_and_mapping, wall_clock_ms
    from cli._progress import Steps
    from contracts.records import BadRecordError
    from contracts.settings import SettingsError
    from streamer.broker import create_topics
    from streamer.decode import EventDecoder
    from streamer.publish import EventPublisher
    from streamer.sources.file import FileSourceError

    rejected: Counter[str] = Counter()
    examples: dict[str, str] = {}
    n_rows = 0
    try:
        settings, how = settings_and_mapping(config, mapping)
        decoder = EventDecoder(settings, how, wall_clock_ms)
        chosen = {"bootstrap_servers": kafka or settings.kafka.bootstrap_servers}
        broker, name = settings.kafka.model_copy(update=chosen), topic or settings.kafka.topic
        with open_log(input, how, format) as source:
            create_topics(broker, {name: partitions})
            with EventPublisher(broker, name, rate) as publisher, Steps("published") as steps:
                while not source.ended:
                    for record in source.poll(0):
                        n_rows += 1
                        try:
                            found = decoder.decode(record)
                        except BadRecordError as error:
                            rejected[error.reason] += 1
                            examples.setdefault(error.reason, f"row {record.offset}: {error.detail}")
                            continue
                        for event in found:
                            publisher.publish(event)
                            steps.advance()
            n_events = publisher.n_sent
    except (SettingsError, FileSourceError, RuntimeError) as error:
        fail(error)
    except KeyboardInterrupt:
        fail("stopped")
    sys.stdout.write(f"{n_rows:,} rows read, {n_events:,} events published to {name}, {rejected.total():,} rejected\n")
    for reason, count in rejected.most_common():
        sys.stdout.write(f"  {reason}: {count:,}, such as {examples[reason]}\n")
