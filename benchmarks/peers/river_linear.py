"""River: logistic regression, one per task, one process each. Adagrad."""

from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from benchmarks.peers._result import Result, one_process_each
from contracts.batch import Float32s, Int64s

if TYPE_CHECKING:  # the processes of single tasks start sooner without it
    from benchmarks.peers.joined import Joined

_LEARNING_RATE = 0.1
"""Of 0.02, 0.05, 0.1, 0.2, 0.5 the one with the least mean NE over the three tasks."""
_LEAST = 1e-9


class _Input(NamedTuple):
    fields: tuple[str, ...]
    ids: Int64s
    numbers: Float32s
    labels: Float32s


class River:
    """Ids and attributes one-hot, by name; numbers as they are.

    :param inputs: what is told of them behind the name.
    """

    def __init__(self, joined: "Joined", inputs: str = "") -> None:
        self.name = f"River {version('river')}, logistic regression × 3{inputs}"
        self._joined = joined

    def run(self) -> Result:
        """Predict, then learn, row by row."""
        joined, inputs = self._joined, []
        for task in joined.tasks:
            rows, labels = joined.in_order(task)
            inputs.append(_Input(joined.fields, joined.ids[rows], joined.numbers[rows], labels))
        seconds, logits = one_process_each(_learn, inputs)
        return Result(
            joined.n_events / seconds,
            {task: joined.ne(task, found) for task, found in zip(joined.tasks, logits, strict=True)},
        )


def _learn(given: _Input) -> Callable[[], Float32s]:
    from river.linear_model import LogisticRegression
    from river.optim import AdaGrad

    model = LogisticRegression(AdaGrad(_LEARNING_RATE))
    examples = [_features(given, row) for row in range(len(given.ids))]
    labels = given.labels.astype(bool).tolist()

    def work() -> Float32s:
        probabilities = np.empty(len(labels))
        for row, (x, y) in enumerate(zip(examples, labels, strict=True)):
            probabilities[row] = model.predict_proba_one(x)[True]
            model.learn_one(x, y)
        p = np.clip(probabilities, _LEAST, 1 - _LEAST)
        return np.log(p / (1 - p)).astype(np.float32)

    return work


def _features(given: _Input, row: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        f"{field}={value:x}": 1.0 for field, value in zip(given.fields, given.ids[row].tolist(), strict=True)
    }
    return found | {f"n{place}": value for place, value in enumerate(given.numbers[row].tolist())}
