"""Several Open Bandit files as one stream: by time, all read, labelled."""

import gzip
import json
import math

from benchmarks.quality.open_bandit import merged, run, running_share_ne


def write(path, rows):
    features = ",".join(f"user_feature_{n}" for n in range(4))
    with gzip.open(path, "wt") as file:
        file.write(f",timestamp,item_id,position,click,propensity_score,{features},user-item_affinity_0\n")
        for second, item, click in rows:
            file.write(f"0,2019-11-24 00:{second // 60:02}:{second % 60:02}+00:00,{item},1,{click},0.1,a,b,c,d,0.0\n")


def test_files_are_one_stream_in_the_order_of_time_and_each_click_labels_its_impression(tmp_path):
    write(tmp_path / "one.csv.gz", [(2 * n, "all-1", n % 4 == 0) for n in range(400)])
    write(tmp_path / "two.csv.gz", [(2 * n + 1, "men-2", 0) for n in range(400)])
    records = merged([tmp_path / "one.csv.gz", tmp_path / "two.csv.gz"])
    items = [json.loads(record.value)["item_id"] for record in records]
    assert items == ["all-1", "men-2"] * 400
    task = run(records, 0)
    assert task["examples"] == 800


def test_the_running_share_is_counted_before_the_label():
    import types

    records = [types.SimpleNamespace(value=json.dumps({"click": click}).encode()) for click in "0100"]
    shares = [0.01, 0.01 / 2, 1.01 / 3, 1.01 / 4]
    loss = -sum(math.log(s if y == "1" else 1 - s) for s, y in zip(shares, "0100", strict=True)) / 4
    assert math.isclose(running_share_ne(records), loss / 0.5623351446188083)
