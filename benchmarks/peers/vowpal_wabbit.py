"""Vowpal Wabbit: logistic loss, one model per task, one process each (which has a thread that parses besides).

It reads a text file by its own driver, in C++, and writes its progressive predictions to another: no Python for each
example.
"""

import importlib.util
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from benchmarks.peers._result import Result, one_process_each
from contracts.batch import Float32s

if TYPE_CHECKING:  # the processes of single tasks start sooner without it
    from benchmarks.peers.joined import Joined

COMMON = ("--loss_function", "logistic", "-b", "22", "--quiet")
QUADRATIC = ("-q", "ui", "-l", "0.2")
LOW_RANK = ("--lrq", "ui2", "-l", "0.1")
"""The least mean NE over the tasks: `-q ui` of rates 0.05 to 0.5; `--lrq` of ranks 2 to 16 at 0.1, 4 at 0.05 to 0.2."""


def why_not() -> str:
    """What is missing to run it; empty where nothing is."""
    if importlib.util.find_spec("vowpalwabbit"):
        return ""
    return "Vowpal Wabbit is not installed: pip install -c constraints.txt -e '.[bench]'"


_FEW = 8
"""Numbers that stand with the item's labels; more, our behaviour features, are no part of `-q ui` and `--lrq ui`."""


class _Input(NamedTuple):
    data: Path
    predictions: Path
    flags: tuple[str, ...]


class VowpalWabbit:
    """Namespaces u, i and c of user, item and context; n of our behaviour features.

    :param folder: where its text files go; those of another instance are used again.
    :param flags: besides :data:`COMMON`; ``inputs``: what is told of the inputs behind the name.
    """

    def __init__(self, joined: "Joined", folder: Path, flags: tuple[str, ...], inputs: str = "") -> None:
        folder.mkdir(exist_ok=True)
        self.name = f"Vowpal Wabbit {version('vowpalwabbit')}, {' '.join(flags)} × 3{inputs}"
        self._joined = joined
        self._inputs = []
        for task in joined.tasks:
            data = folder / f"{task}.vw"
            if not data.exists():
                data.write_text("".join(_lines(joined, task)))
            self._inputs.append(_Input(data, folder / f"{task}{''.join(flags)}.txt", flags))

    def run(self) -> Result:
        """Its driver over each task's file."""
        seconds, logits = one_process_each(_learn, self._inputs)
        ne = {task: self._joined.ne(task, found) for task, found in zip(self._joined.tasks, logits, strict=True)}
        return Result(self._joined.n_events / seconds, ne)


def _learn(given: _Input) -> Callable[[], Float32s]:
    from vowpalwabbit import Workspace

    def work() -> Float32s:
        files = ("-d", str(given.data), "-p", str(given.predictions))
        Workspace(arg_list=[*files, *COMMON, *given.flags]).finish()
        # A quicker reader than numpy.loadtxt, which would take longer than the learning.
        return np.array(given.predictions.read_bytes().split(), np.float32)

    return work


def _lines(joined: "Joined", task: str) -> list[str]:
    owners = {"u": ("user",), "i": ("item",), "c": ("context",)}
    columns = {
        space: [column for column, field in enumerate(joined.fields) if field.startswith(names)]
        for space, names in owners.items()
    }
    rows, labels = joined.in_order(task)
    ids, numbers = joined.ids[rows].tolist(), joined.numbers[rows].tolist()
    lines = []
    for of_row, of_numbers, label in zip(ids, numbers, labels.tolist(), strict=True):
        spaces = [
            f"|{space} {' '.join(f'{column}={of_row[column]:x}' for column in of_space)}"
            for space, of_space in columns.items()
        ]
        told = "".join(f" n{place}:{value:.5g}" for place, value in enumerate(of_numbers) if value)
        if len(of_numbers) > _FEW:
            spaces.append(f"|n{told}")
        else:
            spaces[1] += told
        lines.append(f"{'1' if label else '-1'} {' '.join(spaces)}\n")
    return lines
