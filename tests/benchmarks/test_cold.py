"""The benchmark of new items: a row's score and what the log tells of it belong together."""

from itertools import pairwise

import numpy as np

from benchmarks.pipeline import write_log
from benchmarks.quality.cold import exposures_of, scored, without_content
from benchmarks.quality.delay import ingested
from benchmarks.workloads import shop_settings
from streamer.simulator import ShopSimulator, SimulatorSettings


def test_scores_are_in_the_order_of_the_logs_exposures_and_new_items_are_new(tmp_path):
    settings = without_content(shop_settings(batch={"span": "1m"}))
    assert [one.owner for one in settings.fields if one.owner == "item"] == []
    events = list(ShopSimulator(SimulatorSettings(events=1_500, rate=20.0, n_items=100, new_items=50.0)).events())
    log = tmp_path / "log.jsonl"
    write_log(log, events)
    shown = exposures_of(events)
    batches, _ = ingested(log, settings)
    truth = np.concatenate([batch.truth[~batch.sampled] for batch in batches if batch.truth is not None])
    np.testing.assert_array_equal(truth[:, settings.event_types.index("click")], shown.truth)
    assert len(scored(log, settings)[0]) == len(shown.truth)

    items = [event.item_id for event in events if event.type == "content_view"]
    for place in np.flatnonzero(shown.is_new).tolist():
        assert items[place] not in items[: len(items) // 2]
    assert 0 < shown.is_new.sum() < len(items) // 2
    by_item = {item: shown.ordinal[[place for place, one in enumerate(items) if one == item]] for item in set(items)}
    assert all(one[0] == 1 and all(b == a + 1 for a, b in pairwise(one.tolist())) for one in by_item.values())
    n_clicks = sum(event.type == "click" for event in events)
    assert 0.8 * n_clicks < shown.clicked.sum() <= n_clicks
