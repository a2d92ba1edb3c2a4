"""Prequential quality of a model: every task's examples, rankings and lists under one roof (DESIGN §3, §7)."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from contracts.batch import Float32s, Int64s
from contracts.settings import Task
from learner.prequential import Arrays, Block, CurvePoint, TaskQuality, summary
from learner.ranking import ListQuality, RankingQuality

N_CANDIDATES = 100
"""An event's own item and 99 others."""

Metrics = dict[str, int | float | None]

_ALL_METRICS = ("auc", "log_loss", "ne", "calibration", "accuracy", "precision", "recall", "f1")
_ORACLE_METRICS = ("auc", "ne", "log_loss", "calibration")
_TRUTH_LIMIT = 1e-9


class _Part(Protocol):
    def state(self) -> tuple[dict[str, Any], Arrays]: ...

    def restore(self, state: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None: ...


class Quality:
    """Quality of all tasks of one model. Score first, then tell it here, then learn.

    :param tasks: in the order of the label columns.
    :param window_ms: length of the sliding window, event time.
    :param oracle: also measure the simulator's true probabilities, as the score nobody can beat; costs nothing in
        reports and snapshots of a stream without them.
    """

    def __init__(
        self, tasks: Sequence[Task], window_ms: int, *, oracle: bool = False, n_candidates: int = N_CANDIDATES
    ) -> None:
        self._names = [task.name for task in tasks]
        self._tasks = [TaskQuality(task.threshold, window_ms) for task in tasks]
        self._oracles = [TaskQuality(task.threshold, window_ms) for task in tasks] if oracle else []
        self._rankings = [RankingQuality(n_candidates) for _ in tasks]
        self._lists = [ListQuality(task.window_ms) for task in tasks]
        self._new_item_events = np.zeros(len(tasks), dtype=np.int64)

    def update(
        self,
        task: int,
        logits: Float32s,
        labels: Float32s,
        matured_ms: Int64s | int,
        *,
        list_id: Int64s | None = None,
        exposure_ms: Int64s | None = None,
        truth: Float32s | None = None,
    ) -> float | None:
        """Take N examples of a task whose labels became known, in stream order.

        :param task: the task's column.
        :param logits: shape ``[N]``, as scored at the exposure.
        :param labels: shape ``[N]``, in {0, 1}.
        :param matured_ms: shape ``[N]`` or one for all, such as the batch's watermark: when the labels became known.
        :param list_id: shape ``[N]``, with ``exposure_ms``: the request each was shown in, 0 for none.
        :param exposure_ms: shape ``[N]``, event time of the exposures.
        :param truth: shape ``[N]``, true probabilities; NaN where unknown. Ignored without ``oracle``.
        :returns: mean log-loss of the N examples, for the drift detector; None where N is 0.
        :raises ValueError: ``list_id`` without ``exposure_ms``.
        """
        loss = self._tasks[task].update(logits, labels, matured_ms)
        if list_id is not None:
            if exposure_ms is None:
                raise ValueError("Requests close by the time of their exposures: give `exposure_ms` with `list_id`.")
            self._lists[task].update(list_id, logits, labels, exposure_ms)
        if truth is not None and self._oracles:
            known = ~np.isnan(truth)
            p = np.clip(truth[known].astype(np.float64), _TRUTH_LIMIT, 1 - _TRUTH_LIMIT)
            times_ms = matured_ms[known] if isinstance(matured_ms, np.ndarray) else matured_ms
            self._oracles[task].update((np.log(p) - np.log1p(-p)).astype(np.float32), labels[known], times_ms)
        return loss

    def update_ranking(self, task: Int64s, scores: Float32s, tie_breaks: Float32s) -> None:
        """Take G groups of C scores, the event's own item first.

        :param task: shape ``[G]``, the column of the task whose score ranks the group.
        :param scores: shape ``[G, C]``.
        :param tie_breaks: shape ``[G, C]``.
        """
        for column in np.unique(task).tolist():
            chosen = task == column
            self._rankings[column].update(scores[chosen], tie_breaks[chosen])

    def count_new_items(self, events: Int64s) -> None:
        """Count events of never seen items, shape ``[T]``, which are not ranked."""
        self._new_item_events += events

    def close_lists(self, watermark_ms: int) -> None:
        """Count the requests that are complete at the watermark; call it after the batch's updates."""
        for one in self._lists:
            one.close_before(watermark_ms)

    def finish(self) -> None:
        """Count the requests that still wait: the stream has ended."""
        for one in self._lists:
            one.close_all()

    def report(self) -> dict[str, dict[str, Any]]:
        """The object ``tasks`` of `evaluate --json` (DESIGN §7); what is undefined is None."""
        report: dict[str, dict[str, Any]] = {}
        for column, name in enumerate(self._names):
            everything = summary(self._tasks[column].all())
            report[name] = {
                "examples": everything["examples"],
                "positives": everything["positives"],
                "all": _pick(everything, _ALL_METRICS),
                "last_half": _pick(summary(self._tasks[column].last_half()), _ALL_METRICS),
                "ranking": {
                    **self._rankings[column].summary(),
                    "new_item_events": int(self._new_item_events[column]),
                },
                "list": self._lists[column].summary(),
            }
            oracle = self._oracles[column] if self._oracles else None
            if oracle is not None and oracle.n_examples:
                report[name]["oracle"] = {
                    **_pick(summary(oracle.all()), _ORACLE_METRICS),
                    "last_half": _pick(summary(oracle.last_half()), _ORACLE_METRICS),
                }
        return report

    def window(self, now_ms: int) -> dict[str, Metrics]:
        """Each task's metrics over the sliding window that ends at ``now_ms``, with ``examples`` and ``positives``."""
        return {name: summary(one.window(now_ms)) for name, one in zip(self._names, self._tasks, strict=True)}

    def block(self, task: int, *, last_half: bool = False) -> Block:
        """What a report or a comparison adds up itself."""
        return self._tasks[task].last_half() if last_half else self._tasks[task].all()

    def blocks(self, task: int, *, last_half: bool = False) -> list[Block]:
        """The task's examples in blocks, in the order of the stream: what a paired comparison resamples."""
        return self._tasks[task].blocks(last_half=last_half)

    def curve(self, task: int) -> list[CurvePoint]:
        """The task's learning curve."""
        return self._tasks[task].curve()

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """Everything the future depends on: plain msgpack types, and copies of the arrays by name."""
        state: dict[str, Any] = {"tasks": self._names, "parts": {}}
        arrays: Arrays = {"new_item_events": self._new_item_events.copy()}
        for key, part in self._parts().items():
            if part in self._oracles and isinstance(part, TaskQuality) and part.n_examples == 0:
                continue  # a megabyte of zeros in every snapshot
            state["parts"][key], part_arrays = part.state()
            arrays.update({f"{key}.{name}": array for name, array in part_arrays.items()})
        return state, arrays

    def restore(self, state: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from a :meth:`state` of the same tasks.

        :raises ValueError: other tasks, or not a state of this class.
        """
        if state.get("tasks") != self._names:
            raise ValueError(f"The saved quality is of the tasks {state.get('tasks')}; the settings say {self._names}.")
        events = arrays.get("new_item_events")
        if events is None or events.shape != self._new_item_events.shape or events.dtype != np.int64:
            raise ValueError("The saved quality lacks `new_item_events`, one whole number per task.")
        saved = state.get("parts")
        for key, part in self._parts().items():
            own = saved.get(key) if isinstance(saved, dict) else None
            if own is None and part in self._oracles:
                continue  # saved before the stream told any truth
            if not isinstance(own, dict):
                raise ValueError(f"The saved quality lacks the part `{key}`.")  # noqa: TRY004 - a file is wrong, no caller
            prefix = f"{key}."
            part.restore(
                own, {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
            )
        self._new_item_events[...] = events

    def _parts(self) -> dict[str, _Part]:
        parts: dict[str, _Part] = {}
        kinds: list[tuple[str, Sequence[_Part]]] = [
            ("examples", self._tasks),
            ("oracle", self._oracles),
            ("ranking", self._rankings),
            ("list", self._lists),
        ]
        for kind, ones in kinds:
            parts.update({f"{name}.{kind}": one for name, one in zip(self._names, ones, strict=False)})
        return parts


def _pick(metrics: Metrics, names: tuple[str, ...]) -> Metrics:
    return {name: metrics[name] for name in names}
