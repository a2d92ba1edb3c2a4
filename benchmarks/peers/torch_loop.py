"""A plain PyTorch loop, as a user would write it: one net with three heads, `nn.Embedding(sparse=True)`, a DataLoader.

Ids are hashed into one table; batches as large as ours; no join, no admission, no measuring beyond the logits it keeps.
"""

import time

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, TensorDataset

from benchmarks.peers._result import Result
from benchmarks.peers.joined import Joined
from contracts.batch import Float32s

_TABLE_ROWS = 1 << 20
_WIDTH = 16
_BATCH_ROWS = 1024
_LEARNING_RATE = 3e-2
_SPARSE_LEARNING_RATE = 1e-2
"""Both: of nine pairs from 0.001 to 0.03 the one with the least mean NE over the three tasks."""


class _Net(nn.Module):
    def __init__(self, n_fields: int, n_numbers: int, n_tasks: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_TABLE_ROWS, _WIDTH, sparse=True)
        nn.init.normal_(self.embedding.weight, std=0.01)
        self.layers = nn.Sequential(
            nn.Linear(n_fields * _WIDTH + n_numbers, 64),
            nn.ReLU(),
            nn.Linear(64, 32),
            nn.ReLU(),
            nn.Linear(32, n_tasks),
        )

    def forward(self, ids: Tensor, numbers: Tensor) -> Tensor:
        embedded = self.embedding(ids % _TABLE_ROWS)  # [B, F, W]
        logits: Tensor = self.layers(torch.cat([embedded.flatten(1), numbers], 1))
        return logits


class TorchLoop:
    """One net for all tasks; a label that a row does not have is masked.

    :param n_threads: PyTorch's own choice is all cores, which loses where another process needs one of them.
    """

    def __init__(self, joined: Joined, n_threads: int) -> None:
        self.name = f"PyTorch {torch.__version__.partition('+')[0]}, plain loop, threads: {n_threads}"
        self._n_threads = n_threads
        self._joined = joined
        labels = np.zeros((len(joined.ids), len(joined.tasks)), np.float32)
        known = np.zeros_like(labels)
        for column, of_task in enumerate(joined.tasks.values()):
            labels[of_task.rows, column] = of_task.labels
            known[of_task.rows, column] = 1
        self._data = TensorDataset(*(torch.from_numpy(each) for each in (joined.ids, joined.numbers, labels, known)))

    def run(self) -> Result:
        """One pass; the logits of a batch are those before its step."""
        torch.manual_seed(0)
        n_threads = torch.get_num_threads()
        torch.set_num_threads(self._n_threads)
        try:
            seconds, logits = self._pass()
        finally:
            torch.set_num_threads(n_threads)
        joined = self._joined
        ne = {
            task: joined.ne(task, logits[joined.in_order(task)[0], column]) for column, task in enumerate(joined.tasks)
        }
        return Result(joined.n_events / seconds, ne)

    def _pass(self) -> tuple[float, Float32s]:
        joined = self._joined
        net = _Net(len(joined.fields), joined.numbers.shape[1], len(joined.tasks))
        sparse = torch.optim.SparseAdam(net.embedding.parameters(), _SPARSE_LEARNING_RATE)
        dense = torch.optim.Adam(net.layers.parameters(), _LEARNING_RATE)
        loss_of = nn.BCEWithLogitsLoss(reduction="none")
        # Whole batches by one index each: the DataLoader's default fetches and stacks row by row, many times slower.
        batches = DataLoader(
            self._data,
            batch_size=None,
            sampler=BatchSampler(SequentialSampler(self._data), _BATCH_ROWS, drop_last=False),
        )
        kept = []
        started = time.perf_counter()
        for ids, numbers, labels, known in batches:
            logits = net(ids, numbers)
            kept.append(logits.detach())
            loss = ((loss_of(logits, labels) * known).sum(0) / known.sum(0).clamp(min=1)).sum()
            sparse.zero_grad()
            dense.zero_grad()
            loss.backward()
            sparse.step()
            dense.step()
        return time.perf_counter() - started, torch.cat(kept).numpy()
