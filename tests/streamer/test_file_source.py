import datetime as dt
import gzip
import io
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streamer.sources.file import FileSource, FileSourceError, Format


def _values(source: FileSource) -> list[bytes]:
    values = []
    while not source.ended:
        values += [record.value for record in source.poll(0)]
    return values


def _read(path: Path, data: bytes, **options: object) -> list[bytes]:
    path.write_bytes(data)
    with FileSource(path, **options) as source:  # type: ignore[arg-type]
        return _values(source)


def test_a_json_line_comes_as_it_stands(tmp_path: Path) -> None:
    data = b'\xef\xbb\xbf{"a": 1}\r\n\n  \n[broken\n\xff\xfe\n{"b":2}'
    assert _read(tmp_path / "log.jsonl", data) == [b'{"a": 1}', b"[broken", b"\xff\xfe", b'{"b":2}']


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz"])
def test_a_csv_row_becomes_a_json_object_of_strings(name: str, tmp_path: Path) -> None:
    data = b"user,item,price\nu1,i1,1.5\r\n\nu2,,\n"
    packed = gzip.compress(data) if name.endswith(".gz") else data
    assert _read(tmp_path / name, packed) == [
        b'{"user":"u1","item":"i1","price":"1.5"}',
        b'{"user":"u2","item":"","price":""}',
    ]


def test_a_tsv_may_hold_commas_and_a_csv_may_have_another_delimiter(tmp_path: Path) -> None:
    assert _read(tmp_path / "log.tsv", b"a\tb\n1,2\t3\n") == [b'{"a":"1,2","b":"3"}']
    assert _read(tmp_path / "log.csv", b"a;b\n1,2;3\n", delimiter=";") == [b'{"a":"1,2","b":"3"}']


def test_columns_name_the_cells_of_a_file_without_a_header(tmp_path: Path) -> None:
    assert _read(tmp_path / "log.csv", b"1,2\n3,4\n", columns=["a", "b"]) == [
        b'{"a":"1","b":"2"}',
        b'{"a":"3","b":"4"}',
    ]


def test_a_quoted_cell_may_hold_delimiters_quotes_and_line_ends(tmp_path: Path) -> None:
    data = b'a,b\n"x, ""y""",1\n"two\nlines",2\nplain,3\n'
    rows = [msgspec.json.decode(value) for value in _read(tmp_path / "log.csv", data)]
    assert rows == [{"a": 'x, "y"', "b": "1"}, {"a": "two\nlines", "b": "2"}, {"a": "plain", "b": "3"}]


def test_a_quoted_row_may_cross_the_border_between_two_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.sources._rows.CHUNK_BYTES", 4)
    data = b'a,b\n1,"x\ny\nz"\n2,w\n'
    rows = [msgspec.json.decode(value) for value in _read(tmp_path / "log.csv", data)]
    assert rows == [{"a": "1", "b": "x\ny\nz"}, {"a": "2", "b": "w"}]


@pytest.mark.parametrize("bad", [b"1", b"1,2,3", b'"a"b,2', b"\xff,2", b'1,"2\xff"', b'1,2,"3"'])
@pytest.mark.parametrize("neighbour", [b"5,6", b'5,"6"'])
def test_a_row_that_cannot_be_read_comes_raw_and_its_neighbours_whole(
    bad: bytes, neighbour: bytes, tmp_path: Path
) -> None:
    good = b'{"a":"5","b":"6"}'
    found = _read(tmp_path / "log.csv", b"a,b\n" + neighbour + b"\n" + bad + b"\n" + neighbour + b"\n")
    assert found == [good, bad, good]


@pytest.mark.parametrize("n_rows_behind", [3, 300])
def test_a_quote_that_is_never_closed_costs_one_row_only(n_rows_behind: int, tmp_path: Path) -> None:
    found = _read(tmp_path / "log.csv", b'a,b\n"open,2\n' + b"5,6\n" * n_rows_behind)
    assert found == [b'"open,2', *[b'{"a":"5","b":"6"}'] * n_rows_behind]


def test_parquet_keeps_types_and_writes_times_as_text(tmp_path: Path) -> None:
    moment = dt.datetime(2024, 5, 6, 7, 8, 9, 123000, tzinfo=dt.UTC)
    table = pa.table(
        {
            "user": pa.array([1, None], pa.int64()),
            "at": pa.array([moment, None], pa.timestamp("ms", "UTC")),
            "fine": pa.array([1_700_000_000_123_456_789, None], pa.timestamp("ns")),
            "score": pa.array([float("nan"), 0.5]),
            "tags": pa.array([["x"], []]),
        }
    )
    path = tmp_path / "log.parquet"
    pq.write_table(table, path)
    first, second = (msgspec.json.decode(value) for value in _values(FileSource(path)))
    assert first == {
        "user": 1,
        "at": "2024-05-06T07:08:09.123000Z",
        "fine": "2023-11-14T22:13:20.123456",
        "score": None,
        "tags": ["x"],
    }
    assert second == {"user": None, "at": None, "fine": None, "score": 0.5, "tags": []}


def test_parquet_resumes_inside_a_later_row_group(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({"n": list(range(100))}), path, row_group_size=10)
    with FileSource(path) as source:
        source.seek({("log.parquet", 0): 73})
        assert source.lag() == {("log.parquet", 0): 27}
        assert [record.offset for record in source.poll(0)] == list(range(73, 100))


def test_progress_goes_from_nothing_to_one(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"padding":"%s"}\n' % (b"x" * 1000) * 2000)
    with FileSource(path, max_records=100) as source:
        seen = []
        while not source.ended:
            source.poll(0)
            seen.append(source.progress())
    assert seen == sorted(seen)
    assert 0 < seen[0] < 0.5
    assert seen[-1] == 1


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("missing.csv", None, "cannot be read: No such file"),
        ("missing.parquet", None, "no such file"),
        ("empty.csv", b"", "is empty"),
        ("empty.jsonl.gz", gzip.compress(b"", mtime=0), "is empty"),
        ("empty.parquet", b"", "is empty"),
        ("log.xlsx", b"x", "format cannot be told from the name; expected one of .jsonl"),
        ("log", b"x", "format cannot be told"),
        ("log.parquet.gz", b"x", "format cannot be told"),
        ("log.csv.gz", b"a,b\n1,2\n", "named .gz but is not gzip"),
        ("log.parquet", b"a,b\n1,2\n", "is not Parquet"),
        ("twice.csv", b"a,a\n1,2\n", "must be distinct; found 'a' more than once"),
        ("blank.csv", b"\n1,2\n", "the first line must name the columns"),
        ("latin.csv", b"\xff,b\n1,2\n", "the first line must name the columns"),
    ],
)
def test_a_file_that_cannot_be_read_says_what_to_do(
    name: str, data: bytes | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(FileSourceError, match=message) as raised:
        FileSource(path).poll(0)
    assert name in str(raised.value)


def test_the_rows_before_a_cut_gzip_end_are_returned_before_the_error(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl.gz"
    packed = gzip.compress(b"".join(b'{"n":%d}\n' % (n * 7919 % 100_003) for n in range(200_000)))
    path.write_bytes(packed[: len(packed) // 2])
    n_rows = 0
    with FileSource(path) as source:

        def read_on() -> None:
            nonlocal n_rows
            while not source.ended:
                n_rows += len(source.poll(0))

        with pytest.raises(FileSourceError, match="damaged or cut off"):
            read_on()
    assert n_rows > 50_000


@pytest.mark.parametrize("name", ["log.csv", "log.parquet"])
def test_seeking_where_nothing_is_says_so(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name.endswith("csv"):
        path.write_bytes(b"a,b\n1,2\n3,4\n")
    else:
        pq.write_table(pa.table({"a": [1, 2]}), path)
    with FileSource(path) as source:
        with pytest.raises(ValueError, match="has 2 rows; cannot go on at row 3"):
            source.seek({(name, 0): 3})
        with pytest.raises(ValueError, match=r"offsets of \[\('other.csv', 0\)\]"):
            source.seek({("other.csv", 0): 0})
        source.seek({(name, 0): 1})
        assert [record.offset for record in source.poll(0)] == [1]


def test_standard_input_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        buffer = io.BytesIO(b'{"a":1}\n{"a":2}\n')

    monkeypatch.setattr("sys.stdin", Stdin)
    with pytest.raises(FileSourceError, match="give its format"):
        FileSource("-")
    with FileSource("-", format="jsonl") as source:
        assert [record.offset for record in source.poll(0)] == [0, 1]
        with pytest.raises(ValueError, match="cannot be read twice"):
            source.seek({})


def test_an_unknown_format_lists_the_known_ones(tmp_path: Path) -> None:
    wrong: Format = "xml"  # type: ignore[assignment]
    with pytest.raises(FileSourceError, match="expected one of jsonl, csv, tsv, parquet"):
        FileSource(tmp_path / "log", format=wrong)
