"""Records from a file: JSON lines, CSV, TSV (each also gzipped) and Parquet."""

import gzip
import io
import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Literal, Self, cast, get_args

from contracts.records import Offsets, Partition, Record
from streamer.sources._base import Condition
from streamer.sources._rows import CHUNK_BYTES, delimited_rows, json_lines, parquet_rows

Format = Literal["jsonl", "csv", "tsv", "parquet"]
STDIN = "-"
_SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
}


class FileSourceError(ValueError):
    """The file cannot be read as what it is said to be; the message names it and the way out."""


class FileSource:
    """One file as one partition ``(file name, 0)``; an offset is a row's number from 0, blank lines not counted.

    It streams: memory does not grow with the file. A JSON line's value is the line; a row of the other formats becomes
    a JSON object. A row that cannot be read comes as its raw bytes, which the decoder rejects: see `_rows.py`.

    :param path: ``-`` reads standard input once (give ``format``).
    :param format: read from the suffix where None.
    :param delimiter: of CSV and TSV; a comma and a tab where None.
    :param columns: names for a CSV or TSV without a header line.
    :param max_records: per poll.
    :raises FileSourceError: missing, empty, unknown format, or not what its suffix says.
    """

    def __init__(
        self,
        path: str | Path,
        format: Format | None = None,  # noqa: A002 - what everybody calls it
        delimiter: str | None = None,
        columns: Sequence[str] | None = None,
        max_records: int = 4000,
    ) -> None:
        self._path = Path(path)
        self._stdin = str(path) == STDIN
        self._name = "stdin" if self._stdin else self._path.name
        self._format = format or _format_of(self._path, self._stdin)
        if self._format not in get_args(Format):
            raise FileSourceError(f"Unknown format `{self._format}`; expected one of {', '.join(get_args(Format))}.")
        self._delimiter = delimiter or ("\t" if self._format == "tsv" else ",")
        if len(self._delimiter) != 1:
            raise FileSourceError(f"The delimiter must be one character; found {self._delimiter!r}.")
        self._columns = columns
        self._max_records = max_records
        self._raw: BinaryIO | None = None
        self._file: BinaryIO | None = None
        self._closed = False
        self._next = 0
        self._ended = False
        self._failure: FileSourceError | None = None
        self._n_bytes = 0
        self._n_rows = _parquet_length(self._path) if self._format == "parquet" else None
        self._rows = self._open(0)

    @property
    def ended(self) -> bool:
        """The last row was returned."""
        return self._ended

    def poll(self, timeout_ms: int) -> list[Record]:  # noqa: ARG002 - a file does not wait
        """The next rows.

        :raises FileSourceError: the file breaks off or is damaged here; the rows before were returned.
        """
        values = self._take(self._max_records)
        name, start = self._name, self._next
        self._next += len(values)
        return [Record(name, 0, offset, None, value) for offset, value in enumerate(values, start)]

    def position(self) -> Offsets:
        """The next row's number."""
        return {(self._name, 0): self._next}

    def seek(self, offsets: Offsets) -> None:
        """Go on at this row, by reading and skipping those before it.

        :raises ValueError: another file's offset, or one beyond the end.
        """
        partition = (self._name, 0)
        if others := set(offsets) - {partition}:
            raise ValueError(f"{self._path} is partition {partition}; found offsets of {sorted(others)}")
        wanted = offsets.get(partition, 0)
        if wanted < 0:
            raise ValueError(f"{self._path}: an offset must not be negative; found {wanted}")
        if self._stdin and wanted < self._next:
            raise ValueError("Standard input cannot be read twice; give a file to resume from.")
        if self._n_rows is not None:
            if wanted > self._n_rows:
                raise ValueError(f"{self._path} has {self._n_rows} rows; cannot go on at row {wanted}")
            self._rows, self._next = self._open(wanted), wanted
        else:
            if wanted < self._next:
                self._rows, self._next = self._open(0), 0
            while self._next < wanted:
                n_skipped = len(self._take(min(self._max_records, wanted - self._next)))
                if not n_skipped:
                    raise ValueError(f"{self._path} has {self._next} rows; cannot go on at row {wanted}")
                self._next += n_skipped
        self._ended = False

    def commit(self, offsets: Offsets) -> None:
        """Nobody asks how far a file was read."""

    def lag(self, *, ask: bool = False) -> dict[Partition, int]:  # noqa: ARG002 - what is there is always known
        """Rows left; only Parquet knows before the end."""
        if self._ended:
            return {(self._name, 0): 0}
        return {} if self._n_rows is None else {(self._name, 0): self._n_rows - self._next}

    def progress(self) -> float:
        """How much of the file was read, 0 to 1; of standard input 0 until its end."""
        if self._ended:
            return 1.0
        if self._n_rows is not None:
            return self._next / max(self._n_rows, 1)
        if self._raw is None or not self._n_bytes or self._raw.closed:
            return 0.0
        return min(self._raw.tell() / self._n_bytes, 1.0)

    def condition(self) -> Condition:
        """Nothing to lose."""
        return Condition()

    def close(self) -> None:
        """Close the file."""
        self._closed = True
        self._rows = iter(())
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self, n_rows: int) -> list[bytes]:
        if self._failure is not None:
            raise self._failure
        values: list[bytes] = []
        try:
            # extend keeps what came before an error: those rows are returned first.
            values.extend(islice(self._rows, n_rows))
        except FileSourceError as error:
            self._release()
            if not values:
                raise
            self._failure = error
            return values
        if len(values) < n_rows and not self._closed:
            self._ended = True
            self._release()
        return values

    def _open(self, skip: int) -> Iterator[bytes]:
        self._release()
        self._failure = None
        return self._explained(self._values(skip))

    def _values(self, skip: int) -> Iterator[bytes]:
        if self._format == "parquet":
            return parquet_rows(self._path, skip)
        self._file = self._open_bytes()
        if self._format == "jsonl":
            return json_lines(self._file)
        return delimited_rows(self._file, self._delimiter, self._columns)

    def _open_bytes(self) -> BinaryIO:
        if self._stdin:
            return sys.stdin.buffer
        try:
            self._raw = raw = self._path.open("rb")
            self._n_bytes = os.fstat(raw.fileno()).st_size
            packed = self._path.suffix.lower() == ".gz"
            # A BufferedReader around it: GzipFile splits lines in Python, this one in C.
            file: BinaryIO = io.BufferedReader(gzip.GzipFile(fileobj=raw), CHUNK_BYTES) if packed else raw
            empty = not cast("io.BufferedReader", file).peek(1)
        except gzip.BadGzipFile as error:
            self._release()
            raise FileSourceError(f"{self._path} is named .gz but is not gzip. Unpack it or rename it.") from error
        except (EOFError, zlib.error) as error:
            self._release()
            raise FileSourceError(f"{self._path} is damaged from its start: {error}") from error
        except OSError as error:
            self._release()
            raise FileSourceError(f"{self._path} cannot be read: {error.strerror or error}.") from error
        if empty:
            self._release()
            raise FileSourceError(f"{self._path} is empty. Give a file with rows.")
        return file

    def _explained(self, values: Iterator[bytes]) -> Iterator[bytes]:
        """The same values; what fails on the way is told with the file's name."""
        try:
            yield from values
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise FileSourceError(f"{self._path} is damaged or cut off: {error}. Fetch it again.") from error
        except OSError as error:  # pyarrow's ArrowInvalid is a ValueError, its read errors are OSError
            raise FileSourceError(f"{self._path} cannot be read further: {error}.") from error
        except ValueError as error:
            raise FileSourceError(f"{self._path}: {error}") from error

    def _release(self) -> None:
        for file in (self._file, self._raw):
            if file is not None and not self._stdin:
                file.close()
        self._file = self._raw = None


def _format_of(path: Path, stdin: bool) -> Format:
    if stdin:
        raise FileSourceError(f"Standard input has no suffix: give its format, one of {', '.join(get_args(Format))}.")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes[-1:] == [".gz"]
    if packed:
        suffixes.pop()
    found = _SUFFIXES.get(suffixes[-1]) if suffixes else None
    if found is None or (packed and found == "parquet"):
        raise FileSourceError(
            f"{path}: the format cannot be told from the name; expected one of {', '.join(_SUFFIXES)}, all but Parquet "
            "also with .gz. Rename it or give the format."
        )
    return found


def _parquet_length(path: Path) -> int:
    import pyarrow.parquet as pq

    if not path.is_file():
        raise FileSourceError(f"{path} cannot be read: no such file.")
    if not path.stat().st_size:
        raise FileSourceError(f"{path} is empty. Give a file with rows.")
    try:
        return int(pq.read_metadata(path).num_rows)
    except (ValueError, OSError) as error:
        raise FileSourceError(f"{path} is not Parquet: {error}") from error
