"""What librdkafka says on its own: log lines and reports."""

import logging
import re

import msgspec

from streamer.connection import LOG_EVERY_SECONDS

librdkafka_logger = logging.getLogger("streamer.sources.confluent.librdkafka")


def is_connected(report: str) -> bool:
    """Whether any broker is, by the client's statistics (JSON)."""
    return any(broker.state == "UP" for broker in msgspec.json.decode(report, type=_Report).brokers.values())


class _Broker(msgspec.Struct):
    state: str


class _Report(msgspec.Struct):
    """What is read of librdkafka's statistics."""

    brokers: dict[str, _Broker]


class _Rarely:
    """Lets a line pass once in five seconds: librdkafka repeats itself ten times a second while a broker is away."""

    def __init__(self) -> None:
        self._passed_seconds: dict[str, float] = {}

    def __call__(self, record: logging.LogRecord) -> bool:
        line = re.sub(r"\d+", "", record.getMessage())
        last_seconds = self._passed_seconds.get(line)
        if last_seconds is not None and record.created - last_seconds < LOG_EVERY_SECONDS:
            return False
        self._passed_seconds[line] = record.created
        return True


librdkafka_logger.addFilter(_Rarely())
