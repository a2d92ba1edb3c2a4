"""Where a command answers Prometheus."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server

from contracts.settings import MetricsSettings

log = logging.getLogger("anabranch.metrics")


@contextmanager
def exported(settings: MetricsSettings, registry: CollectorRegistry) -> Iterator[None]:
    """`/metrics` over HTTP until the context ends.

    :raises OSError: the port cannot be listened on.
    """
    try:
        server, thread = start_http_server(settings.port, settings.host, registry)
    except OSError as error:
        raise OSError(
            f"{settings.host}:{settings.port} cannot be listened on: {error.strerror}. Set a free metrics.port "
            "(ANABRANCH__METRICS__PORT), or 0."
        ) from error
    log.info("Metrics on http://%s:%d/metrics.", *server.server_address[:2])
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
