"""The search itself: an Optuna study in a SQLite file, worked on by several processes, gone on with after a stop."""

import multiprocessing
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.trial import TrialState
from scipy import stats

from cli._signals import StopOnSignal
from cli._trials import Experiment, Parameters, Space
from contracts.settings import SettingsError

_NAME = "anabranch"
_DONE = (TrialState.COMPLETE, TrialState.PRUNED)
_LOOK_SECONDS = 0.5
_LEVEL = 0.95


class Difference(NamedTuple):
    """Of one task's score, tuned minus start, over the seeds; None where it has no score."""

    start: float | None
    tuned: float | None
    mean: float | None
    half_width: float | None
    """Of the 95 % interval around the mean (paired t over the seeds); None with one seed."""


class Study:
    """Trials of an experiment.

    :param file: SQLite; made where missing, gone on with where it is there.
    :param share: of the log, from its start: what the search learns. The rest is for :meth:`confirm`.
    :raises SettingsError: the file holds the search of another experiment.
    :raises ValueError: no task of the log can be scored.
    """

    def __init__(self, file: Path, experiment: Experiment, space: Space, share: float) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._file, self._space = file, space
        self._minimise = experiment.metric == "ne"
        self._study = optuna.create_study(
            storage=_storage(file),
            study_name=_NAME,
            direction="minimize" if self._minimise else "maximize",
            load_if_exists=True,
        )
        about = {
            "log": f"{experiment.log.resolve()} ({experiment.log.stat().st_size} bytes)",
            "metric": experiment.metric,
            "settings": experiment.settings({})[0].fingerprint(),
            "share": share,
            "space": {name: list(entry) for name, entry in space.items()},
        }
        kept = self._study.user_attrs
        if kept:
            differ = [key for key, value in about.items() if kept["about"][key] != _as_json(value)]
            if differ:
                raise SettingsError(
                    f"{file} holds a search with another {' and '.join(differ)}. Give another --study, or delete it."
                )
            self.experiment = replace(experiment, n_events=kept["n_events"])
        else:
            sys.stderr.write(f"learning the first {share:.0%} of the log under the settings as they are\n")
            self.experiment, score = experiment.begin(share)
            for key, value in (("n_events", self.experiment.n_events), ("start", score), ("about", about)):
                self._study.set_user_attr(key, value)
        self.start: float = self._study.user_attrs["start"]

    @property
    def n_done(self) -> int:
        """Trials that ended, given up ones included."""
        return len(self._study.get_trials(deepcopy=False, states=_DONE))

    @property
    def best(self) -> tuple[Parameters, float]:
        """The best trial, or no changes where none is better than the start."""
        complete = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        sign = 1 if self._minimise else -1
        ranked = [(sign * trial.value, trial.number, trial) for trial in complete if trial.value is not None]
        if not ranked or min(ranked)[0] >= sign * self.start:
            return {}, self.start
        found = min(ranked)[2]
        return found.params, float(found.value or 0.0)

    def search(self, n_trials: int, jobs: int, seed: int) -> None:
        """Go on until ``n_trials`` are done, ``jobs`` at a time, each in a process of its own; tells each on stderr.

        :raises KeyboardInterrupt: asked to stop by SIGINT or SIGTERM; the trials that ended are kept.
        :raises RuntimeError: a process ended with an error, which it told.
        """
        context = multiprocessing.get_context("spawn")
        work = (self._file, self.experiment, self._space, n_trials)
        n_before = self.n_done
        jobs = min(jobs, n_trials - n_before)
        processes = [context.Process(target=_work, args=(*work, seed + n_before + job)) for job in range(jobs)]
        stop = StopOnSignal()
        told = {trial.number for trial in self._study.get_trials(deepcopy=False, states=_DONE)}
        for process in processes:
            process.start()
        with stop:
            while any(process.is_alive() for process in processes) and not stop():
                time.sleep(_LOOK_SECONDS)
                self._tell(told)
        for process in processes:
            process.terminate()
            process.join()
        if stop():
            raise KeyboardInterrupt
        self._tell(told)
        _check(processes)

    def confirm(self, parameters: Parameters, n_seeds: int, seed: int, jobs: int) -> dict[str, Difference]:
        """Start and tuned settings on the part of the log that the search has not seen, under seeds it has not used."""
        seeds = range(seed + 1, seed + 1 + n_seeds)
        runs: list[tuple[Parameters, int]] = [(values, one) for one in seeds for values in ({}, parameters)]
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
            found = list(pool.map(self.experiment.confirm, *zip(*runs, strict=True)))
        return {
            task: _difference([run[task] for run in found[::2]], [run[task] for run in found[1::2]])
            for task in found[0]
        }

    def _tell(self, told: set[int]) -> None:
        for trial in self._study.get_trials(deepcopy=False, states=_DONE):
            if trial.number not in told:
                told.add(trial.number)
                what = "given up" if trial.state == TrialState.PRUNED else f"{trial.value:.4f}"
                values = ", ".join(f"{name} {_short(value)}" for name, value in trial.params.items())
                sys.stderr.write(f"trial {len(told)}: {what} (best {self.best[1]:.4f})  {values}\n")


def _work(file: Path, experiment: Experiment, space: Space, n_trials: int, seed: int) -> None:
    """One process: trials until ``n_trials`` are done by all."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the whole group; the parent ends this one
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.load_study(
        study_name=_NAME,
        storage=_storage(file),
        sampler=optuna.samplers.TPESampler(seed=seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=3),
    )

    def trial(one: optuna.Trial) -> float:
        parameters = {name: entry.suggest(one, name) for name, entry in space.items()}

        def watch(tenth: int, score: float) -> None:
            one.report(score, tenth)
            if one.should_prune():
                raise optuna.TrialPruned

        score = experiment.search(parameters, watch)
        if score is None:
            raise optuna.TrialPruned
        return score

    study.optimize(trial, callbacks=[optuna.study.MaxTrialsCallback(n_trials, states=_DONE)])


def _storage(file: Path) -> optuna.storages.RDBStorage:
    return optuna.storages.RDBStorage(f"sqlite:///{file}")


def _check(processes: Sequence[BaseProcess]) -> None:
    failed = [process.exitcode for process in processes if process.exitcode]
    if failed:
        raise RuntimeError(
            f"A trial ended with an error (exit code {failed[0]}), see above; all trials before it are kept."
        )


def _difference(start: list[float | None], tuned: list[float | None]) -> Difference:
    pairs = [(one, other) for one, other in zip(start, tuned, strict=True) if one is not None and other is not None]
    if not pairs:
        return Difference(None, None, None, None)
    n = len(pairs)
    before, after = (sum(column) / n for column in zip(*pairs, strict=True))
    differences = [other - one for one, other in pairs]
    half = float(stats.sem(differences) * stats.t.ppf((1 + _LEVEL) / 2, n - 1)) if n > 1 else None
    return Difference(before, after, after - before, half)


def _as_json(value: Any) -> Any:
    """As a study gives it back: tuples are lists."""
    if isinstance(value, (list, tuple)):
        return [_as_json(one) for one in value]
    return {key: _as_json(one) for key, one in value.items()} if isinstance(value, dict) else value


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
