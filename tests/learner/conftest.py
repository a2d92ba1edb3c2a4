"""Small settings, and streams of made-up batches with everything in them that a real one has."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from contracts.batch import Batch, Layout, RankingRows, Rows
from contracts.settings import Settings
from features.schema import FeatureSchema

START_MS = 1_735_689_600_000
N_ITEMS = 40


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _settings(**overrides: Any) -> Settings:
    small: dict[str, Any] = {
        "fields": [{"source": "item.category"}],
        "features": {"history_length": 3, "users": 1000, "items": 1000, "pairs": 1024, "values": 1024},
        "embedding": {"max_mib": 1.0},
        "model": {"width": 4, "experts": 2, "expert_layers": (8, 6), "tower": 4},
        "tasks": [
            {"name": "content_view"},
            {"name": "click", "window": "30m", "delay": "wait"},
            {"name": "purchase", "window": "24h", "delay": "wait"},
        ],
    }
    for key, value in overrides.items():
        small[key] = {**small[key], **value} if isinstance(value, dict) and key in small else value
    return Settings.model_validate(small)


def _layout(settings: Settings) -> Layout:
    return FeatureSchema.of(settings).layout


def _rows(layout: Layout, n: int, rng: np.random.Generator) -> Rows:
    ids = rng.integers(1, N_ITEMS, (n, layout.n_ids)) + 1000 * np.arange(1, layout.n_ids + 1)
    history = rng.integers(1, N_ITEMS, (n, len(layout.event_types), layout.history_length)) + 2000
    history[rng.random(history.shape) < 0.4] = 0
    dense = rng.normal(size=(n, len(layout.dense))).astype(np.float32)
    return Rows(ids.astype(np.int64), history.astype(np.int64), dense, rng.normal(size=n).astype(np.float32) * 0.1)


def _batch(layout: Layout, n: int, rng: np.random.Generator, index: int = 0, **columns: Any) -> Batch:
    """A batch whose rows are all known at once; any column may be given instead."""
    n_tasks = len(layout.tasks)
    made: dict[str, Any] = {
        "rows": _rows(layout, n, rng),
        "slot": np.full(n, -1, np.int64),
        "sampled": np.zeros(n, np.bool_),
        "time_ms": np.full(n, START_MS + index * 1000, np.int64),
        "list_id": np.zeros(n, np.int64),
        "labels": (rng.random((n, n_tasks)) < 0.3).astype(np.float32),
        "known": np.ones((n, n_tasks), np.bool_),
        "truth": None,
        "matured_slot": np.zeros(0, np.int64),
        "matured_labels": np.zeros((0, n_tasks), np.float32),
        "matured_known": np.zeros((0, n_tasks), np.bool_),
        "ranking": None,
        "new_item_events": np.zeros(n_tasks, np.int64),
        "n_events": n,
        "watermark_ms": START_MS + index * 1000,
        "first_event_ms": START_MS + index * 1000,
    }
    made |= columns
    no_late = np.zeros_like(made["matured_known"])
    made = {"learn": made["known"], "matured_learn": made["matured_known"], "matured_late": no_late, **made}
    return Batch(**made)


def _stream(settings: Settings, n_batches: int, n: int = 48, seed: int = 0) -> list[Batch]:
    """Exposures that wait and mature two batches later, sampled items, requests, rankings, truths, new items.

    A task that does not wait for its labels learns each exposure at once, and the outcome when the windows close.
    """
    layout = _layout(settings)
    n_tasks = len(layout.tasks)
    immediate = np.array(settings.immediate_tasks)
    rng = np.random.default_rng(seed)
    batches = []
    for index in range(n_batches):
        sampled = np.arange(n) % 3 == 0
        known = np.zeros((n, n_tasks), np.bool_)
        known[sampled, 0] = True  # of sampled items it is known at once that nobody viewed them
        known[::4, 0] = True
        labels = np.where(sampled[:, None], 0.0, rng.random((n, n_tasks)) < 0.3).astype(np.float32)
        shown = np.flatnonzero(~sampled)
        slot = np.full(n, -1, np.int64)
        slot[shown] = index % 3 * n + np.arange(len(shown))
        ripe = np.sort(batches[index - 2].slot[batches[index - 2].slot >= 0]) if index >= 2 else np.zeros(0, np.int64)
        matured_known = np.zeros((len(ripe), n_tasks), np.bool_)
        matured_known[:, 1:] = True
        matured_labels = (rng.random((len(ripe), n_tasks)) < 0.3).astype(np.float32)
        candidates = 100
        ranking = RankingRows(
            _rows(layout, 2 * candidates, rng),
            np.array([0, 0], np.int64),
            rng.random((2, candidates)).astype(np.float32),
        )
        batches.append(
            _batch(
                layout,
                n,
                rng,
                index,
                slot=slot,
                sampled=sampled,
                known=known,
                labels=labels,
                list_id=np.where(sampled, 0, rng.integers(1, 9, n) + index * 100),
                truth=np.where(rng.random((n, n_tasks)) < 0.5, 0.3, np.nan).astype(np.float32),
                matured_slot=ripe,
                matured_labels=matured_labels,
                matured_known=matured_known,
                learn=known | ((slot >= 0)[:, None] & immediate),
                matured_late=matured_known & immediate & (matured_labels > 0),
                matured_learn=matured_known & (~immediate | (matured_labels > 0)),
                ranking=ranking,
                new_item_events=np.array([1] + [0] * (n_tasks - 1), np.int64),
            )
        )
    return batches


@pytest.fixture
def make_settings() -> Callable[..., Settings]:
    """Small settings; a section given as a dict is merged into them."""
    return _settings


@pytest.fixture
def layout_of() -> Callable[[Settings], Layout]:
    """The columns these settings ask for."""
    return _layout


@pytest.fixture
def make_rows() -> Callable[..., Rows]:
    """``(layout, n, rng)`` to random rows."""
    return _rows


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """``(layout, n, rng, index=0, **columns)`` to a batch whose rows are known at once."""
    return _batch


@pytest.fixture
def make_stream() -> Callable[..., list[Batch]]:
    """``(settings, n_batches, n=48, seed=0)`` to batches that hold everything a real stream does."""
    return _stream


@pytest.fixture
def assert_same() -> Callable[[Any, Any], None]:
    """Bitwise equality of nested states."""

    def compare(left: Any, right: Any, path: str = "") -> None:
        if isinstance(left, dict):
            assert left.keys() == right.keys(), path
            for key in left:
                compare(left[key], right[key], f"{path}.{key}")
        elif isinstance(left, list | tuple):
            assert len(left) == len(right), path
            for index, pair in enumerate(zip(left, right, strict=True)):
                compare(*pair, f"{path}[{index}]")
        elif isinstance(left, np.ndarray):
            np.testing.assert_array_equal(left, right, err_msg=path, strict=True)
        else:
            assert left == right, path

    return compare
