"""The source of a Kafka topic, by the client that the settings name."""

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING

from contracts.records import Offsets
from contracts.settings import KafkaSettings
from streamer.connection import BrokerError, never
from streamer.sources._standing import CONNECT_MS

if TYPE_CHECKING:
    from streamer.sources.confluent import ConfluentSource
    from streamer.sources.kafka import KafkaSource


def open_topic(
    settings: KafkaSettings,
    resume: Offsets | None = None,
    *,
    start_ms: int | None = None,
    until_end: bool = False,
    connect_timeout_ms: int = CONNECT_MS,
    stop: Callable[[], bool] = never,
) -> "KafkaSource | ConfluentSource":
    """A source that obeys the same laws whichever client reads; the parameters are :class:`KafkaSource`'s.

    :raises BrokerError: no broker, no such topic, or a client that is not installed.
    :raises StopAskedError: ``stop`` said so while it waited.
    :raises ValueError: an offset of another topic or of a partition that the topic does not have.
    """
    installed = importlib.util.find_spec("confluent_kafka") is not None
    if settings.client == "confluent" and not installed:
        raise BrokerError(
            'kafka.client is `confluent`, which is not installed: pip install "anabranch[confluent]", or set '
            "kafka.client to auto."
        )
    if settings.client == "confluent" or (settings.client == "auto" and installed):
        from streamer.sources.confluent import ConfluentSource as Chosen
    else:
        from streamer.sources.kafka import KafkaSource as Chosen  # type: ignore[assignment]
    return Chosen(
        settings, resume, start_ms=start_ms, until_end=until_end, connect_timeout_ms=connect_timeout_ms, stop=stop
    )
