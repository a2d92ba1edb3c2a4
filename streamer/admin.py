"""A client that asks the broker about topics and groups, and changes them."""

from collections.abc import Callable

from kafka import KafkaAdminClient

from contracts.settings import KafkaSettings
from streamer.connection import connect, never
from streamer.security import kafka_python_options


def connect_admin(
    settings: KafkaSettings, timeout_ms: int, stop: Callable[[], bool] = never, answer_ms: int = 30_000
) -> KafkaAdminClient:
    """The client, once a broker answers; whoever asks for it closes it.

    :param answer_ms: how long it waits for each answer.
    :raises BrokerError: no broker after ``timeout_ms``.
    :raises StopAskedError: ``stop`` said so while it waited.
    """

    def client(wait_ms: int) -> KafkaAdminClient:
        return KafkaAdminClient(
            bootstrap_servers=settings.bootstrap_servers,
            bootstrap_timeout_ms=wait_ms,
            request_timeout_ms=answer_ms,
            **kafka_python_options(settings),
        )

    return connect(client, settings, timeout_ms, stop)
