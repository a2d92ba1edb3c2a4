"""`anabranch learn`: the long-running consumer."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from contracts.settings import Settings
    from learner.snapshot import Snapshot, SnapshotStore
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
    from learner.loop import OtherSettingsError
    from learner.snapshot import SnapshotError
    from streamer.broker import BrokerError
    from streamer.deadletter import DeadLetterError
    from streamer.sources.kafka import OffsetsLostError

    log_to_stderr()
    try:
        report = run(settings, how, until_end=until_end)
    except (
        BrokerError,
        DeadLetterError,
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


def run(settings: "Settings", how: "Mapping | None", *, until_end: bool) -> dict[str, Any]:
    """Learn until told to stop; the report counts open windows as they stand.

    Order: lock the store, load, connect, learn, snapshot, leave the group.
    """
    import logging
    import time

    from prometheus_client import REGISTRY, start_http_server

    from cli._assembly import assemble
    from cli._inputs import wall_clock_ms
    from cli._signals import StopOnSignal
    from contracts.components import load
    from contracts.settings import environment_names
    from learner.snapshot import SnapshotStore
    from streamer.deadletter import KafkaDeadLetters
    from streamer.decode import EventDecoder
    from streamer.sources.kafka import KafkaSource

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
        with (
            KafkaDeadLetters(settings.kafka) as dead_letters,
            KafkaSource(settings.kafka, resume, until_end=until_end) as source,
        ):
            assembly = assemble(
                settings,
                source,
                EventDecoder(settings, how, wall_clock_ms),
                dead_letters,
                REGISTRY,
                store=store,
                snapshot=snapshot,
                published=source.commit,
                stop=stop,
            )
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
    log.info("Stopped after %d events in all.", assembly.ingest.n_events)
    assembly.close_open_windows()
    return assembly.report(time.perf_counter() - started, settings.model.name)


def _newest(store: "SnapshotStore") -> "Snapshot | None":
    from learner.snapshot import NoSnapshotError

    try:
        return store.load()
    except NoSnapshotError:
        return None
