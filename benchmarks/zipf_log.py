"""A log of any length over any number of ids, quickly made, to measure scaling on. Nothing in it can be learned."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.workloads import shop_settings
from contracts.settings import Settings

_START_MS = 1_735_689_600_000
_EVENTS_PER_S = 2_000
_CLICK_SHARE = 0.06
_PURCHASE_SHARE = 0.13
_DELAY_S = 3.0
_LINES_AT_ONCE = 100_000
_SHARE_OF_EXPOSURES = 1 / (1 + _CLICK_SHARE * (1 + _PURCHASE_SHARE))


def zipf_settings() -> Settings:
    """Short windows, so that the number of open exposures stands still from the first minute: 120,000."""
    tasks = [{"name": "content_view"}, {"name": "click", "window": "10s"}, {"name": "purchase", "window": "60s"}]
    return shop_settings(tasks=tasks)


def write_zipf_log(path: Path, n_events: int, n_ids: int, seed: int = 0) -> int:
    """JSON lines of views, clicks and purchases, in order of time.

    Half of the ids are users', half items'. Each id comes once as long as there are views for it; the other views draw
    ids with probability ∝ 1/rank.

    :returns: how many of the ids came.
    """
    generator = np.random.default_rng(seed)
    n_views = round(n_events * _SHARE_OF_EXPOSURES)
    users, items = (_ids(generator, n_views, n_ids // 2) for _ in range(2))
    view_ms = np.arange(n_views) * (1000 / _EVENTS_PER_S / _SHARE_OF_EXPOSURES)
    clicked = np.flatnonzero(generator.random(n_views) < _CLICK_SHARE)
    bought = clicked[generator.random(len(clicked)) < _PURCHASE_SHARE]
    of_view = np.concatenate([np.arange(n_views), clicked, bought])
    kind = np.repeat([0, 1, 2], [n_views, len(clicked), len(bought)])
    ts_ms = view_ms[of_view] + kind * generator.exponential(_DELAY_S * 1000, len(kind))
    order = np.argsort(ts_ms, kind="stable")
    with path.open("w") as file:
        for start in range(0, len(order), _LINES_AT_ONCE):
            chosen = order[start : start + _LINES_AT_ONCE]
            columns = (of_view[chosen], kind[chosen], ts_ms[chosen].astype(np.int64) + _START_MS)
            views = columns[0]
            rows = zip(*(column.tolist() for column in (*columns, users[views], items[views])), strict=True)
            file.writelines(_line(*row) for row in rows)
    return len(np.unique(users)) + len(np.unique(items))


def _ids(generator: np.random.Generator, n_views: int, n_ids: int) -> NDArray[np.int64]:
    once = np.arange(min(n_ids, n_views))
    # Equally likely logarithms of the rank: Zipf's law with exponent 1.
    often = (n_ids ** generator.random(n_views - len(once))).astype(np.int64) - 1
    return generator.permutation(np.concatenate([once, often]))


def _line(view: int, kind: int, ts_ms: int, user: int, item: int) -> str:
    name = ("content_view", "click", "purchase")[kind]
    return (
        f'{{"event_id":"e{view:x}-{kind}","type":"{name}","user_id":"u{user:x}","item_id":"i{item:x}","ts_ms":{ts_ms},'
        f'"request_id":"r{view:x}","context":{{"position":{view % 6},"device":"d{view % 3}","hour":{view % 24}}},'
        f'"item":{{"category":"c{item % 40}","brand":"b{item % 300}","price":{item % 97 + 1}.5}},'
        f'"user":{{"country":"k{user % 20}","age_group":"a{user % 6}"}}}}\n'
    )
