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
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Replay with a fresh model: from each partition's first record of this time or later, such as "
            "`2026-11-01T00:00Z`, by the records' times in Kafka.",
        ),
    ] = None,
    standby: Annotated[
        bool,
        typer.Option(
            "--standby", help="Wait while another learner writes the snapshots; go on in its place when it ends."
        ),
    ] = False,
    allow_new_tasks: Annotated[
        bool,
        typer.Option(
            "--allow-new-tasks",
            help="Go on from a snapshot of fewer tasks or fields: what is learned stays, what is new starts fresh.",
        ),
    ] = False,
    allow_other_topic: Annotated[
        bool,
        typer.Option(
            "--allow-other-topic",
            help="Go on at the snapshot's offsets in a topic of another id: a copied cluster that kept its offsets.",
        ),
    ] = False,
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

    A snapshot of other settings is refused; of fewer tasks or fields it is taken up with `--allow-new-tasks`.

    A topic that was deleted and made anew since the snapshot is refused: its offsets are others.

    A second `learn` on the same snapshots is refused; with `--standby` it waits, and takes over with the last snapshot.
    """
    import gc

    # Until the stream begins: looking through what imports bring, again and again, is a third of their time.
    gc.disable()
    from cli._inputs import fail, parse_time_ms, settings_and_mapping
    from contracts.settings import SettingsError

    chosen = {key: value for key, value in (("bootstrap_servers", kafka), ("topic", topic)) if value is not None}
    try:
        start_ms = None if from_ is None else parse_time_ms("--from", from_)
        settings, how = settings_and_mapping(config, mapping, {"kafka": chosen})
    except SettingsError as error:
        fail(error)
    if start_ms is not None and standby:
        fail("--from starts a fresh model, --standby goes on with another learner's. Leave one of them out.")

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
            report = run(
                settings,
                how,
                feed,
                until_end=until_end,
                start_ms=start_ms,
                standby=standby,
                allow_new_tasks=allow_new_tasks,
                allow_other_topic=allow_other_topic,
            )
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


def run(
    settings: "Settings",
    how: "Mapping | None",
    feed: "Feed",
    *,
    until_end: bool,
    start_ms: int | None = None,
    standby: bool = False,
    allow_new_tasks: bool = False,
    allow_other_topic: bool = False,
) -> dict[str, Any]:
    """Learn until told to stop; the report counts open windows as they stand.

    Order: lock the store, load, connect, learn, snapshot; the end of the feed leaves the group.
    """
    import time
    from contextlib import ExitStack
    from functools import partial

    from prometheus_client import REGISTRY

    from cli._assembly import assemble_behind
    from cli._exporter import exported
    from cli._ingest import topic_inputs
    from cli._inputs import show_time
    from cli._signals import StopOnSignal
    from cli._standby import stand_by
    from contracts.components import load
    from contracts.settings import environment_names
    from features.schema import FeatureSchema
    from learner.loop import check_snapshot
    from learner.metrics import LearnerMetrics
    from learner.snapshot import SnapshotStore
    from streamer.topic_id import check_topic_ids, topic_ids

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
    store = SnapshotStore(Path(settings.snapshot.directory), settings.snapshot.keep)
    metrics = LearnerMetrics(REGISTRY, settings.evaluation.detector)
    with StopOnSignal() as stop, ExitStack() as stack:
        if not standby:
            stack.enter_context(store)
        stack.enter_context(exported(settings.metrics, REGISTRY))
        if standby:
            stand_by(store, metrics.standby, stop)
            stack.enter_context(store)
        started = time.perf_counter()
        snapshot = _newest(store, fresh=start_ms is not None)
        if snapshot and not allow_new_tasks:
            # Before the group is joined: who leaves while it forms can hold it up.
            check_snapshot(snapshot, settings, FeatureSchema.of(settings).layout)
        resume = snapshot.manifest.resume_offsets if snapshot else None
        made_from = snapshot.manifest.topic_ids if snapshot and not allow_other_topic else {}
        store.topic_ids = topic_ids(settings.kafka, stop)
        check_topic_ids(made_from, store.topic_ids)
        feed.open(settings, partial(topic_inputs, settings, how, resume, start_ms, until_end), REGISTRY, stop)
        if not store.topic_ids:  # a topic that came meanwhile
            store.topic_ids = topic_ids(settings.kafka, stop)
            check_topic_ids(made_from, store.topic_ids)
        assembly = assemble_behind(
            settings,
            feed,
            metrics,
            store=store,
            snapshot=snapshot,
            give_up=stop.ask,
            allow_new_tasks=allow_new_tasks,
        )
        log.info(
            "Learning `%s` from %s: %s.",
            settings.kafka.topic,
            settings.kafka.bootstrap_servers,
            f"snapshot v{snapshot.manifest.version:08d}, {snapshot.manifest.n_events} events"
            if snapshot
            else "no snapshot yet, from "
            + (f"the {settings.kafka.start} record" if start_ms is None else f"records of {show_time(start_ms)} on"),
        )
        assembly.run()
        log.info("Stopped after %d events in all.", feed.standing.n_events)
        if until_end:
            assembly.close_open_windows()
        return assembly.report(time.perf_counter() - started, settings.model.name)


def _newest(store: "SnapshotStore", *, fresh: bool) -> "Snapshot | None":
    """The snapshot to go on from.

    :param fresh: there must be none.
    """
    from learner.snapshot import NoSnapshotError, SnapshotError

    version = store.latest_version()
    if fresh and version is not None:
        raise SnapshotError(
            f"--from starts a fresh model, but {store.directory} has snapshot v{version:08d}. Leave --from out to go "
            "on from it, or give `snapshot.directory` a new, empty folder."
        )
    try:
        return store.load()
    except NoSnapshotError:
        return None
