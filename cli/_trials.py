"""What `tune` searches, and one trial of it: a log learned once, prequentially, under other settings."""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from prometheus_client import CollectorRegistry

from cli._ingest import log_inputs
from contracts.batch import Batch
from contracts.settings import EvaluationSettings, FieldSpec, Settings, SettingsError
from features.encoder import KNOWN_BEFORE_RANKING
from learner.evaluation import Quality
from streamer.prefetch import ThreadFeed

if TYPE_CHECKING:
    from optuna import Trial

    from learner.trainer import Trainer
    from streamer.mapping import Mapping as LogMapping

Parameters = Mapping[str, Any]
"""Values by a setting's path, ``train.learning_rate``."""

SECTIONS = ("model", "embedding", "train", "batch", "features")
"""What may be searched. The others decide what is measured, or where: their scores cannot be compared."""


_NO_NE = "none has both positives and negatives."
_NO_NDCG = (
    f"no event was ranked, which begins when {KNOWN_BEFORE_RANKING} items are known. Give a longer log, or --metric ne."
)


class Choice(NamedTuple):
    """One of these."""

    values: tuple[Any, ...]

    def suggest(self, trial: "Trial", name: str) -> Any:
        """A value for this trial."""
        return trial.suggest_categorical(name, self.values)

    @property
    def probes(self) -> tuple[Any, ...]:
        """Values that must be valid settings."""
        return self.values


class Range(NamedTuple):
    """Anything between two numbers, both included; whole if both are."""

    low: float
    high: float
    log: bool = False

    def suggest(self, trial: "Trial", name: str) -> Any:
        """A value for this trial."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(name, self.low, self.high, log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    @property
    def probes(self) -> tuple[Any, ...]:
        """Values that must be valid settings."""
        return (self.low, self.high)


Space = dict[str, Choice | Range]

DEFAULT_SPACE: Space = {
    "train.learning_rate": Range(3e-4, 1e-2, log=True),
    "embedding.learning_rate": Range(5e-3, 1e-1, log=True),
    "embedding.admit_after": Choice((1, 2, 4)),
    "model.name": Choice(("mmoe", "ple", "shared_bottom", "single_task")),
    "model.width": Choice((8, 16, 32)),
    "model.experts": Choice((2, 4, 8)),
    "batch.max_rows": Choice((64, 256, 1024)),
    "train.balancing": Choice(("fixed", "uncertainty")),
}


def load_space(path: Path | None) -> Space:
    """The space in a TOML file, or the default one.

    :raises SettingsError: the file cannot be read, or an entry is neither a list nor a range.
    """
    if path is None:
        return DEFAULT_SPACE
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read as TOML: {error}. Give an existing file with --space.") from error
    space = {name: _entry(path, name, value) for name, value in _flat(content).items()}
    if not space:
        raise SettingsError(f'{path}: names nothing to search. Write a line such as "model.width" = [8, 16, 32].')
    return space


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys, whether the file wrote ``[train]`` or ``"train.learning_rate"``."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict) and "low" not in value and "high" not in value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _entry(path: Path, name: str, value: Any) -> Choice | Range:
    if name.split(".", 1)[0] not in SECTIONS or name.count(".") != 1:
        raise SettingsError(
            f"{path}: {name}: what is searched is a setting of {', '.join(SECTIONS)}, such as `model.width`: others "
            "change what is measured."
        )
    if isinstance(value, list) and value:
        return Choice(tuple(value))
    if isinstance(value, dict) and set(value) <= {"low", "high", "log"} and {"low", "high"} <= set(value):
        found = Range(**value)
        numbers = all(type(bound) in (int, float) for bound in (found.low, found.high))
        if numbers and found.low < found.high and (found.low > 0 or not found.log):
            return found
    raise SettingsError(
        f"{path}: {name}: a list of values, or {{ low = 1e-4, high = 1e-2, log = true }} with low below high (above "
        f"0 if log); found {value!r}."
    )


@dataclass(frozen=True)
class Experiment:
    """A log and how it is learned, but for what is searched. Crosses to other processes."""

    config: Path | None
    mapping: str | None
    log: Path
    format: str | None
    fields: tuple[FieldSpec, ...]
    evaluation: EvaluationSettings
    metric: Literal["ne", "ndcg"]
    n_events: int = 0
    """Events from the log's start that a search learns; :meth:`confirm` measures on the rest. See :meth:`begin`."""

    def settings(self, parameters: Parameters, seed: int | None = None) -> tuple[Settings, "LogMapping | None"]:
        """The settings of a trial.

        :raises SettingsError: a value breaks a rule.
        """
        from cli._inputs import settings_and_mapping

        overrides: dict[str, Any] = {"processes": 1, "train": {"threads": 1}}
        for name, value in parameters.items():
            section, key = name.split(".")
            overrides.setdefault(section, {})[key] = value
        if seed is not None:
            overrides["seed"] = seed
        settings, how = settings_and_mapping(self.config, self.mapping, overrides)
        return settings.model_copy(update={"fields": self.fields, "evaluation": self.evaluation}), how

    def begin(self, share: float) -> tuple["Experiment", float]:
        """Count the log's events, and learn the first share of them under the settings as they are: the score to beat.

        :raises ValueError: no task can be scored.
        """
        settings, how = self.settings({})
        with ThreadFeed() as feed:
            inputs = partial(log_inputs, settings, how, self.log, self.format)
            feed.open(settings.unsaved(), inputs, CollectorRegistry(), lambda: False)
            n_events = sum(piece.n_events for piece in feed.stream() if isinstance(piece, Batch))
        begun = replace(self, n_events=round(share * n_events))
        score = begun.search({}, lambda *_: None)
        if score is None:
            raise ValueError(
                f"No task of this log can be scored by {self.metric}: " + (_NO_NE if self.metric == "ne" else _NO_NDCG)
            )
        return begun, score

    def search(self, parameters: Parameters, watch: Callable[[int, float], None]) -> float | None:
        """The mean over the tasks of the prequential score on the log's first :attr:`n_events` events.

        :param watch: told the tenth that is done and the score so far; may raise to give up.
        """
        n_events = 0

        def look(batch: Batch, trainer: "Trainer") -> None:
            nonlocal n_events
            tenth = 10 * n_events // self.n_events
            n_events += batch.n_events
            if tenth < 10 * n_events // self.n_events < 10:
                score = mean(self._scores(trainer.quality))
                if score is not None:
                    watch(10 * n_events // self.n_events, score)

        return mean(self._learn(parameters, None, lambda feed: feed.standing.n_events >= self.n_events, look))

    def confirm(self, parameters: Parameters, seed: int) -> dict[str, float | None]:
        """Each task's score on the part of the log that no search has seen, after learning all before it."""
        settings, _ = self.settings(parameters, seed)
        n_events = 0

        def restart(batch: Batch, trainer: "Trainer") -> None:
            nonlocal n_events
            before, n_events = n_events, n_events + batch.n_events
            if before < self.n_events <= n_events:
                trainer.quality = Quality(settings.tasks, settings.evaluation.window_ms)

        return self._learn(parameters, seed, lambda _: False, restart)

    def _learn(
        self,
        parameters: Parameters,
        seed: int | None,
        enough: Callable[[ThreadFeed], bool],
        learned: Callable[[Batch, "Trainer"], None],
    ) -> dict[str, float | None]:
        from cli._assembly import assemble_behind
        from learner.metrics import LearnerMetrics

        settings, how = self.settings(parameters, seed)
        registry = CollectorRegistry()
        with ThreadFeed() as feed:
            inputs = partial(log_inputs, settings, how, self.log, self.format)
            feed.open(settings.unsaved(), inputs, registry, lambda: enough(feed))
            assembly = assemble_behind(settings, feed, LearnerMetrics(registry, settings.evaluation.detector))
            assembly.run(lambda batch: learned(batch, assembly.trainer))
            assembly.close_open_windows()
            return self._scores(assembly.trainer.quality)

    def _scores(self, quality: Quality) -> dict[str, float | None]:
        report = quality.report()
        if self.metric == "ne":
            return {task: found["all"]["ne"] for task, found in report.items()}
        return {task: found["ranking"]["ndcg@10"] for task, found in report.items()}


def mean(scores: Mapping[str, float | None]) -> float | None:
    """Over the tasks that have a score; None where none has."""
    known = [score for score in scores.values() if score is not None]
    return sum(known) / len(known) if known else None
