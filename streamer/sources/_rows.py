"""Rows of a file as record values: a JSON object each, or the raw bytes of a row that cannot be read as one."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

CHUNK_BYTES = 1 << 18
MAX_LINES_OF_A_ROW = 100
BATCH_ROWS = 4096
_BOM = b"\xef\xbb\xbf"

_encode = msgspec.json.Encoder(enc_hook=str).encode


def json_lines(file: BinaryIO) -> Iterator[bytes]:
    """Every line that is not blank, without its line end."""
    for lines in _line_chunks(file):
        yield from [line.rstrip(b"\r\n") for line in lines if not line.isspace()]


def delimited_rows(file: BinaryIO, delimiter: str, columns: Sequence[str] | None) -> Iterator[bytes]:
    """A JSON object of strings for every row that is not blank.

    A row with another number of cells than there are columns, with broken quotes or with bytes that are not UTF-8
    comes as it stands in the file: it is no JSON object, so the decoder rejects it and nothing is guessed.

    :param columns: their names; None: the first line has them.
    :raises ValueError: column names that are not text, or not distinct.
    """
    names = tuple(columns) if columns is not None else _header(file.readline().removeprefix(_BOM), delimiter)
    _require_distinct(names)
    carried: list[bytes] = []  # lines of a quoted row that goes on in the next chunk
    for lines in _line_chunks(file):
        plain = None if carried else _without_quotes(lines)
        if plain is None:
            values, carried = _quoted_objects(carried + lines, delimiter, names)
            yield from values
        else:
            yield from _plain_objects(plain, delimiter, names)
    while carried:  # a quote that nothing closes: its line is bad, the lines behind are not
        yield _bare(carried[0])
        values, carried = _quoted_objects(carried[1:], delimiter, names)
        yield from values


def parquet_rows(path: Path, skip: int) -> Iterator[bytes]:
    """A JSON object for every row from number ``skip`` on; times as ISO text, not-a-number as null.

    Whole row groups are skipped by the file's index.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        group = 0
        while group < file.num_row_groups and skip >= file.metadata.row_group(group).num_rows:
            skip -= file.metadata.row_group(group).num_rows
            group += 1
        groups = list(range(group, file.num_row_groups))
        for batch in file.iter_batches(BATCH_ROWS, row_groups=groups) if groups else ():
            if skip >= batch.num_rows:
                skip -= batch.num_rows
                continue
            schema = batch.schema
            for index, field in enumerate(schema):
                if pa.types.is_timestamp(field.type) and field.type.unit == "ns":
                    # Python's datetime has no nanoseconds.
                    schema = schema.set(index, field.with_type(pa.timestamp("us", field.type.tz)))
            rows = batch.slice(skip).cast(schema, safe=False).to_pylist()
            skip = 0
            yield from map(_encode, rows)


def _line_chunks(file: BinaryIO) -> Iterator[list[bytes]]:
    first = True
    while lines := file.readlines(CHUNK_BYTES):
        if first:
            lines[0] = lines[0].removeprefix(_BOM)
            first = False
        yield lines


def _header(line: bytes, delimiter: str) -> tuple[str, ...]:
    try:
        return tuple(next(csv.reader([line.decode().rstrip("\r\n")], delimiter=delimiter, strict=True), ()))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"the first line must name the columns: {error}; found {line[:80]!r}") from error


def _require_distinct(names: tuple[str, ...]) -> None:
    # One empty name is fine: data frames are often written with their nameless index.
    repeated = sorted({repr(name) for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"column names must be distinct; found {', '.join(repeated)} more than once. Give `columns`.")
    if not names:
        raise ValueError("the first line must name the columns; found a blank one. Give `columns`.")


def _without_quotes(lines: list[bytes]) -> str | None:
    """The text of these lines; None where a quote or a byte that is not UTF-8 asks for the careful way."""
    try:
        text = b"".join(lines).decode()
    except UnicodeDecodeError:
        return None
    return None if '"' in text else text


def _plain_objects(text: str, delimiter: str, names: tuple[str, ...]) -> Iterator[bytes]:
    n_columns = len(names)
    for line in text.split("\n"):
        line = line.rstrip("\r")
        cells = line.split(delimiter)
        if len(cells) == n_columns and line:
            yield _encode(dict(zip(names, cells, strict=True)))
        elif line:
            yield line.encode()


def _quoted_objects(lines: list[bytes], delimiter: str, names: tuple[str, ...]) -> tuple[list[bytes], list[bytes]]:
    """The rows of these lines, and the lines of a last row whose quote is still open."""
    values: list[bytes] = []
    start = 0
    while start < len(lines):
        end, row = start + 1, _parse(lines[start], delimiter)
        while row is None and end < len(lines) and end - start < MAX_LINES_OF_A_ROW:
            end += 1
            row = _parse(b"".join(lines[start:end]), delimiter)
        if row is None and end - start < MAX_LINES_OF_A_ROW:
            return values, lines[start:]
        if row is None:  # never closed: this line is bad, the lines behind it are not
            end, row = start + 1, []
        if len(row) == len(names):
            values.append(_encode(dict(zip(names, row, strict=True))))
        elif raw := _bare(b"".join(lines[start:end])):
            values.append(raw)
        start = end
    return values, []


def _parse(raw: bytes, delimiter: str) -> list[str] | None:
    """The cells of one row; None: a quote is still open; no cells: broken, or blank."""
    if b'"' not in raw:
        try:
            text = _bare(raw).decode()
        except UnicodeDecodeError:
            return []
        return text.split(delimiter) if text else []
    try:
        reader = csv.reader([raw.decode()], delimiter=delimiter, strict=True)
        return next(reader, [])
    except UnicodeDecodeError:
        return []
    except csv.Error as error:
        return None if "unexpected end of data" in str(error) else []


def _bare(raw: bytes) -> bytes:
    return raw.rstrip(b"\r\n")
