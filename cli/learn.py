"""`anabranch learn`: the long-running consumer."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from contracts.settings import Settings
    from learner.snapshot import Snapshot, SnapshotStore
    from streamer.feed import Feed
    from streamer.mapping import Mapping


def command(
    config: Annotated[Path | None, typer.Option("--config", "-c", help="Settings (TOML).")] = None,
    mapping: Annotated[
        str | None,
        typer.Option(
            "--mapping", "-m", help="How the topic's records are read; none: the settings', else canonical JSON."
        ),
    ] = None,
    kafka: Annotated[str | None, typer.Option(help="The broker (`host:port`), instead of the settings'.")] = None,
    topic: Annotated[str | None, typer.Option(help="The topic, instead of the settings'.")] = None,
    until_end: Annotated[
        bool, typer.Option("--until-end", help="Stop when everything in the topic is learned, and print the quality.")
    ] = False,
    json: Annotated[
        str | None, typer.Option("--json", help="With --until-end: the report as JSON, as `evaluate` gives it.")
    ] = None,
) -> None:
    """Learn from a Kafka topic, without end.

    Starts from the newest whole snapshot, at its offsets; without one, at `kafka.start`. Publishes snapshots
    (`[snapshot]`), answers Prometheus (`[metrics]`), sends records it cannot read to the dead-letter topic.

    Ctrl-C or SIGTERM finishes the batch, snapshots, leaves the group and exits with 0; nothing is lost. SIGKILL costs
    the work since the last snapshot, which is done again from its offsets.
    """
    from cli._inputs import fail, settings_and_mapping
    from contracts.settings import SettingsError

    chosen = {key: value for key, value in (("bootstrap_servers", kafka), ("topic", topic)) if value is not None}
    try:
        settings, how = settings_and_mapping(config, mapping, {"kafka": chosen})
    except SettingsError as error:
        fail(error)

    from cli._logging import log_to_stderr
    from streamer.process import start_feed

    log_to_stderr()
    # Before anything imports torch: an ingest in a process of its own imports at the same time.
    with start_feed(settings.processes) as feed:
        from learner.loop import OtherSettingsError
        from learner.snapshot import SnapshotError
        from streamer.broker import BrokerError, StopAskedError
        from streamer.deadletter import DeadLetterError
        from streamer.feed import IngestProcessError
        from streamer.sources.kafka import OffsetsLostError

        try:
            report = run(settings, how, feed, until_end=until_end)
        except StopAskedError as stopped:
            logging.getLogger("anabranch.learn").info("%s Nothing was read, nothing is lost.", stopped)
            return
        except (
            BrokerError,
            DeadLetterError,
            IngestProcessError,
            OffsetsLostError,
            OtherSettingsError,
            SnapshotError,
            OSError,
            ValueError,
        ) as error:
            fail(error)
    if until_end:
        from cli._report import write_report

        write_report(report, json)


def run(settings: "Settings", how: "Mapping | None", feed: "Feed", *, until_end: bool) -> dict[str, Any]:
    """Learn until told to stop; the report counts open windows as they stand.

    Order: lock the store, load, connect, learn, snapshot; the end of the feed leaves the group.
    """
    import time
    from functools import partial

    from prometheus_client import REGISTRY, start_http_server

    from cli._assembly import assemble_behind
    from cli._ingest import topic_inputs
    from cli._signals import StopOnSignal
    from contracts.components import load
    from contracts.settings import environment_names
    from learner.snapshot import SnapshotStore

    # A misspelt component is told at once, not after the wait for a broker.
    load("learner.models", settings.model.name)
    load("learner.balancing", settings.train.balancing)
    load("learner.drift", settings.evaluation.detector)
    log = logging.getLogger("anabranch.learn")
    if names := environment_names():
        log.info("Settings from the environment: %s.", ", ".join(names))
    if not settings.fields:
        log.warning(
            "No [[fields]] are declared: the model sees ids and behaviour only. `anabranch check` suggests some."
        )
    started = time.perf_counter()
    with (
        SnapshotStore(Path(settings.snapshot.directory), settings.snapshot.keep) as store,
        StopOnSignal() as stop,
    ):
        snapshot = _newest(store)
        resume = snapshot.manifest.resume_offsets if snapshot else None
        feed.open(settings, partial(topic_inputs, settings, how, resume, until_end), REGISTRY, stop)
        assembly = assemble_behind(settings, feed, REGISTRY, store=store, snapshot=snapshot)
        server, thread = start_http_server(settings.metrics.port, settings.metrics.host, REGISTRY)
        log.info("Metrics on http://%s:%d/metrics.", *server.server_address[:2])
        log.info(
            "Learning `%s` from %s: %s.",
            settings.kafka.topic,
            settings.kafka.bootstrap_servers,
            f"snapshot v{snapshot.manifest.version:08d}, {snapshot.manifest.n_events} events"
            if snapshot
            else f"no snapshot yet, from the {settings.kafka.start} record",
        )
        try:
            assembly.run()
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
        log.info("Stopped after %d events in all.", feed.standing.n_events)
        if until_end:
            assembly.close_open_windows()
        return assembly.report(time.perf_counter() - started, settings.model.name)


def _newest(store: "SnapshotStore") -> "Snapshot | None":
    from learner.snapshot import NoSnapshotError

    try:
        return store.load()
    except NoSnapshotError:
        return None
