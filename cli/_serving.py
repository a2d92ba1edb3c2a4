"""The scoring worker as a process: what `serve` and `demo` run."""

import logging
import socket
from pathlib import Path

import uvicorn
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector

from cli._inputs import wall_clock_ms
from contracts.settings import Settings
from learner.snapshot import SnapshotStore
from serving.app import create_app
from serving.metrics import ServingMetrics
from serving.reload import Reloader
from serving.scorer import use_one_thread

log = logging.getLogger("anabranch.serving")


def run_server(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM.

    :raises OSError: the address cannot be listened on.
    """
    use_one_thread()
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    metrics = ServingMetrics(registry)
    store = SnapshotStore(Path(settings.snapshot.directory), settings.snapshot.keep)
    reloader = Reloader(settings, store, metrics, wall_clock_ms)
    app = create_app(settings, reloader, metrics, registry, wall_clock_ms)
    listener = socket.create_server((settings.serve.host, settings.serve.port))
    host, port = listener.getsockname()[:2]
    log.info("Listening on http://%s:%d (documentation at /docs).", host, port)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    server.run(sockets=[listener])
