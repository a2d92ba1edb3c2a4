"""Every source obeys every law of `streamer/sources/_base.py`."""

import gzip
from collections.abc import Callable
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kafka import KafkaProducer

from contracts.records import Record
from contracts.settings import KafkaSettings
from streamer.broker import create_topics
from streamer.sources.confluent import ConfluentSource
from streamer.sources.file import FileSource
from streamer.sources.kafka import KafkaSource
from streamer.sources.memory import PAUSE, MemorySource
from streamer.sources.topic import open_topic
from streamer.testing import SOURCE_LAWS, SourceCase, records_of

N_ROWS = 230
law_by_law = pytest.mark.parametrize("law", SOURCE_LAWS, ids=lambda law: law.__name__.removeprefix("assert_"))
Law = Callable[[SourceCase], None]


def _rows() -> list[dict[str, str]]:
    return [{"user": f"u{n % 7}", "item": f"é{n}", "price": f"{n}.5"} for n in range(N_ROWS)]


def _values() -> list[bytes]:
    return [msgspec.json.encode(row) for row in _rows()]


@law_by_law
def test_memory(law: Law) -> None:
    partitions = {("a", 0): records_of(_values(), "a", 0), ("a", 1): records_of(_values()[:40], "a", 1)}
    entries = {partition: [*records[:10], PAUSE, *records[10:]] for partition, records in partitions.items()}
    records = [record for part in partitions.values() for record in part]
    law(SourceCase(lambda: MemorySource(entries, max_records=17), records))


@law_by_law
@pytest.mark.parametrize("name", ["log.csv", "quoted.csv", "log.tsv.gz", "log.jsonl.gz", "log.jsonl", "log.parquet"])
def test_file(law: Law, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    _write(path)
    law(SourceCase(lambda: FileSource(path, max_records=23), records_of(_values(), name)))


def _write(path: Path) -> None:
    rows = _rows()
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=50)
        return
    if ".jsonl" in path.suffixes:
        lines = [msgspec.json.encode(row).decode() for row in rows]
    else:
        delimiter = "\t" if ".tsv" in path.suffixes else ","
        mark = '"' if "quoted" in path.name else ""
        lines = [delimiter.join(rows[0])]
        lines += [delimiter.join([row["user"], f"{mark}{row['item']}{mark}", row["price"]]) for row in rows]
    data = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@law_by_law
@pytest.mark.parametrize("client", ["kafka-python", "confluent"])
def test_kafka(law: Law, client: str, broker: str, topic: str) -> None:
    create_topics(broker, {topic: 3})
    producer = KafkaProducer(bootstrap_servers=broker, enable_idempotence=False, compression_type="lz4")
    sent = [
        (producer.send(topic, value=value, key=b"%d" % n, partition=n % 2), n) for n, value in enumerate(_values()[:60])
    ]
    producer.flush()
    records = []
    for future, n in sent:
        place = future.get(10)
        records.append(Record(topic, place.partition, place.offset, b"%d" % n, _values()[n]))
    # A partition with one record: both its beginning and its end are in one batch.
    place = producer.send(topic, value=b"alone", partition=2).get(10)
    records.append(Record(topic, 2, place.offset, None, b"alone"))
    producer.close()
    settings = KafkaSettings.model_validate(
        {
            "bootstrap_servers": broker,
            "topic": topic,
            "client": client,
            "group": topic,
            "session_timeout": "1s",
            "max_poll_records": 7,
        }
    )
    law(
        SourceCase(
            lambda: open_topic(settings),
            records,
            done=lambda source: isinstance(source, KafkaSource | ConfluentSource) and source.caught_up(),
            bounded=False,
            n_cuts=2,
        )
    )
