"""A snapshot of fewer tasks or fields, as if it had been made under the settings of now (`learn --allow-new-tasks`)."""

import logging
from dataclasses import replace

import msgspec

from contracts.settings import Settings
from contracts.shaping import differences_from, settings_of
from features.growth import Growth
from features.schema import FeatureSchema
from learner.growth import grow_learner
from learner.loop import INGEST, LEARNER, OtherSettingsError, check_snapshot
from learner.snapshot import Snapshot
from learner.trainer import Trainer
from streamer.growth import grow_ingest

log = logging.getLogger("anabranch.learn")


def take_up(snapshot: Snapshot, settings: Settings, fresh: Trainer) -> Snapshot:
    """The snapshot with the tasks and fields that the settings add; as it is where they add none, or change others.

    :param fresh: a trainer of these settings that has learned nothing yet.
    :raises OtherSettingsError: what is new has no place beside what is learned.
    """
    manifest = snapshot.manifest
    found = differences_from(manifest, settings)
    if not found or not all(one.is_added for one in found):
        return snapshot
    old = settings_of(manifest.settings)
    old_schema, schema = FeatureSchema.of(old), FeatureSchema.of(settings)
    check_snapshot(snapshot, old, old_schema.layout)
    try:
        growth = Growth(old_schema, schema)
        learner, state = grow_learner(snapshot.groups, snapshot.states[LEARNER], growth, old, fresh)
    except ValueError as error:
        raise OtherSettingsError(
            f"Snapshot v{manifest.version:08d} cannot take up that {'; '.join(map(str, found))}: {error}. Restore the "
            "old settings, or give `snapshot.directory` a new, empty folder to start afresh."
        ) from error
    log.info(
        "Snapshot v%08d takes up that %s. Exposures that are open get no label of a new task.",
        manifest.version,
        "; ".join(map(str, found)),
    )
    return replace(
        snapshot,
        manifest=msgspec.structs.replace(
            manifest,
            tasks=list(schema.layout.tasks),
            layout=msgspec.json.decode(msgspec.json.encode(schema.layout)),
            settings=settings.shaping(),
            settings_fingerprint=settings.fingerprint(),
        ),
        groups={**grow_ingest(snapshot.groups, growth, old, settings), **learner},
        states={INGEST: snapshot.states[INGEST], LEARNER: state},
    )
