"""Hot reload: a newer snapshot is loaded and warmed beside the one that serves, then one reference is swapped.

In between the deltas behind the snapshot are followed, likewise into a copy.
"""

import logging
import threading
from collections.abc import Callable

import msgspec

from contracts.settings import Settings
from contracts.shaping import differences_from
from features.schema import FeatureSchema
from learner.snapshot import NoSnapshotError, Snapshot, SnapshotDamagedError, SnapshotError, SnapshotStore
from serving.metrics import ServingMetrics
from serving.scorer import GROUPS, Scorer

log = logging.getLogger("anabranch.serving")


class _OtherSettingsError(Exception):
    """A snapshot that this worker cannot read as it was meant."""


class Reloader:
    """Keeps ``scorer`` at the newest whole snapshot; None until there is one.

    A request reads the reference once, so that it sees one version throughout. A snapshot that is damaged or of other
    settings is reported, counted and not tried again; the version before goes on serving. Behind a delta that is
    damaged or missing no further one is taken: the next snapshot is waited for.
    """

    def __init__(
        self, settings: Settings, store: SnapshotStore, metrics: ServingMetrics, clock_ms: Callable[[], int]
    ) -> None:
        self.scorer: Scorer | None = None
        self._settings = settings
        self._store = store
        self._metrics = metrics
        self._clock_ms = clock_ms
        self._refused: int | None = None
        self._broken: int | None = None  # the version whose chain of deltas is
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="anabranch-reload", daemon=True)

    def start(self) -> None:
        """Watch the store from a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Stop watching; a load under way is waited for."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def refresh(self) -> bool:
        """Load a newer snapshot if there is one, then the deltas behind it; true if the scorer was swapped."""
        swapped = self._load()
        return self._follow() or swapped

    def _follow(self) -> bool:
        scorer = self.scorer
        if scorer is None or scorer.manifest.version == self._broken:
            return False
        deltas: list[Snapshot] = []
        try:
            for delta in self._store.deltas(scorer.manifest.version, scorer.manifest.delta, GROUPS):
                deltas.append(delta)  # noqa: PERF402 - those before a damaged one count
        except SnapshotDamagedError as error:
            self._break(scorer.manifest.version, error)
        if not deltas:
            return False
        try:
            moved = scorer.moved_on(deltas)
        except Exception as error:
            # Whatever it is, the scorer that serves was not touched.
            self._break(scorer.manifest.version, error)
            return False
        self.scorer = moved
        self._metrics.swapped(moved.manifest, self._clock_ms())
        return True

    def _break(self, version: int, why: Exception) -> None:
        self._broken = version
        self._metrics.reload_failures.inc()
        unforeseen = not isinstance(why, SnapshotError)
        log.error("No further delta of v%08d is served, but the next snapshot: %s", version, why, exc_info=unforeseen)

    def _load(self) -> bool:
        latest = self._store.latest_version()
        serving = self.scorer.manifest.version if self.scorer else None
        if latest is None or latest in {serving, self._refused}:
            return False
        try:
            snapshot = self._store.load(groups=GROUPS, states=())
            if snapshot.manifest.version == serving:
                self._refuse(latest, "; ".join(skipped.problem for skipped in snapshot.skipped))
                return False
            self._check(snapshot)
            scorer = Scorer(self._settings, snapshot, self._settings.serve.max_items).warmed()
        except NoSnapshotError:
            return False
        except Exception as error:
            # Also what nobody thought of: tried again each second, it would fill the log and help nobody.
            self._refuse(latest, error)
            return False
        self.scorer = scorer
        self._metrics.swapped(snapshot.manifest, self._clock_ms())
        log.info("Serving snapshot v%08d: %d events.", snapshot.manifest.version, snapshot.manifest.n_events)
        return True

    def _check(self, snapshot: Snapshot) -> None:
        if found := differences_from(snapshot.manifest, self._settings):
            raise _OtherSettingsError(
                f"it was made under settings {snapshot.manifest.settings_fingerprint}, this worker runs "
                f"{self._settings.fingerprint()}: {'; '.join(map(str, found))}. "
                "Start `serve` with the learner's settings file."
            )
        if snapshot.manifest.layout != msgspec.json.decode(
            msgspec.json.encode(FeatureSchema.of(self._settings).layout)
        ):
            raise _OtherSettingsError(
                f"its columns are those of library version {snapshot.manifest.library}. "
                "Run learner and worker with the same version."
            )

    def _refuse(self, version: int, why: str | Exception) -> None:
        self._refused = version
        self._metrics.reload_failures.inc()
        unforeseen = isinstance(why, Exception) and not isinstance(why, SnapshotError | _OtherSettingsError)
        log.error("Snapshot v%08d is not served: %s", version, why, exc_info=unforeseen)

    def _watch(self) -> None:
        while not self._stopped.is_set():
            try:
                self.refresh()
            except Exception:
                # Whatever it is, the worker goes on serving what it has; the next look tries again.
                self._metrics.reload_failures.inc()
                log.exception("Reload failed.")
            self._stopped.wait(self._settings.serve.reload_ms / 1000)
