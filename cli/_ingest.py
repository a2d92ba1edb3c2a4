"""The inputs of `learn` and `evaluate`, opened in whichever process ingests; nothing here imports torch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cli._inputs import open_log, wall_clock_ms
from cli._logging import log_to_stderr
from contracts.records import Offsets
from contracts.settings import Settings
from streamer.deadletter import KafkaDeadLetters, MemoryDeadLetters
from streamer.decode import EventDecoder
from streamer.feed import Inputs
from streamer.group import dismiss_left_behind
from streamer.mapping import Mapping
from streamer.sources.topic import open_topic


@contextmanager
def topic_inputs(
    settings: Settings,
    mapping: Mapping | None,
    resume: Offsets | None,
    start_ms: int | None,
    until_end: bool,
    stop: Callable[[], bool],
) -> Iterator[Inputs]:
    """A topic, and its dead-letter topic; for the holder of the snapshots' lock.

    :param start_ms: where to start it without a snapshot; None: as the settings say.
    :raises BrokerError: no broker, or no topic.
    :raises StopAskedError: ``stop`` said so while it waited.
    :raises ValueError: the offsets are not this topic's.
    """
    log_to_stderr()  # a process of its own has no log yet
    with KafkaDeadLetters(settings.kafka, stop=stop) as dead_letters:
        # Whoever learns holds the writer's lock: no other learner of these snapshots is alive.
        dismiss_left_behind(settings.kafka, stop)
        with open_topic(settings.kafka, resume, start_ms=start_ms, until_end=until_end, stop=stop) as source:
            yield Inputs(source, EventDecoder(settings, mapping, wall_clock_ms), dead_letters)


@contextmanager
def log_inputs(
    settings: Settings, mapping: Mapping | None, path: Path, format_: str | None, _: Callable[[], bool]
) -> Iterator[Inputs]:
    """A log file, which nobody waits for; bad rows are kept in memory.

    :raises FileSourceError: the file cannot be read.
    """
    with open_log(path, mapping, format_) as source:
        yield Inputs(source, EventDecoder(settings, mapping, wall_clock_ms), MemoryDeadLetters())
