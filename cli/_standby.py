"""A learner that waits for another one to end, to go on in its place (ADR 16)."""

import logging
import time
from collections.abc import Callable

from prometheus_client import Gauge

from learner.snapshot import SnapshotLockedError, SnapshotStore
from streamer.connection import StopAskedError

log = logging.getLogger("anabranch.standby")

_LOOK_SECONDS = 0.2


def stand_by(store: SnapshotStore, standing: Gauge, stop: Callable[[], bool]) -> None:
    """Return as the store's one writer, once its owner's process has ended, however that ended.

    :param standing: 1 while waiting, 0 from then on.
    :raises StopAskedError: ``stop`` said so meanwhile.
    """
    standing.set(1)
    owner = ""
    while not stop():
        try:
            store.acquire()
        except SnapshotLockedError as locked:
            if locked.owner != owner:
                owner = locked.owner
                log.info("Standing by: %s is written by %s. Taking over when it ends.", store.directory, owner)
            time.sleep(_LOOK_SECONDS)
            continue
        standing.set(0)
        log.info("Taking over %s%s.", store.directory, f", which was written by {owner}" if owner else "")
        return
    raise StopAskedError("Asked to stop while standing by.")
