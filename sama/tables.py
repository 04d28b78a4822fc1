"""The contract for scores: what a row holds, the forms of a table, and which tables do not go together.

docs/scores.md is its reference. The same row is a line of a journal, a row of a CSV, JSON Lines, JSON or Parquet file,
what `score_files` yields, and what `sama.Scorer` gives.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sama.errors import InputError, MissingLibraryError, OutputError

if TYPE_CHECKING:
    import pyarrow as pa

CONTRACT = 1  # the number of the columns below and of what they mean; tables of 0.1.0 have none
FORMATS = (".csv", ".jsonl", ".json", ".parquet")
ANEW = b'{"anew": true}\n'  # the first line of a journal whose table is not to be resumed, but replaced
FIELD_CHARACTERS = (1 << 31) - 1  # of a CSV: a long video has many clips
MARK = "\0"  # in Parquet, before the four digits of a character that UTF-8 has not; no file name holds it


@dataclass
class Row:
    """The scores of one file, or the reason why there are none.

    path: as the user named the file, or the key of what has no path; status: "ok", or "error" with the `reason`
    score: on the model's own scale, whose name is `scale` where it has one; None where the status is "error"
    mos: on the scale named `mos_scale`, where the checkpoint is calibrated to one
    clips, times: for each clip its score, and the time of its middle frame in seconds
    frames, width, height, duration (seconds), fps: of the file; decoder: which one read it
    seconds: spent on this file, in decoding, sampling and the model
    model, settings: what the scores depend on; rows that differ in one of them do not go into one table
    weights_sha256: the first 12 digits of the SHA-256 of the weights' file, None for random weights
    mode, plan: the sampling mode, and which frames make a score; both are in `settings` too
    opened: what was read of a video to know its frames, "index" or "packets" (`sama.decode.VideoInfo`)
    version: of this package; contract: `CONTRACT`
    """

    path: str
    status: str = "ok"
    score: float | None = None
    mos: float | None = None
    mos_scale: str | None = None
    clips: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    frames: int | None = None
    width: int | None = None
    height: int | None = None
    duration: float | None = None
    fps: float | None = None
    seconds: float = 0.0
    decoder: str | None = None
    model: str = ""
    settings: str = ""
    reason: str = ""
    scale: str = ""
    weights_sha256: str | None = None
    mode: str = ""
    plan: str = ""
    opened: str | None = None
    version: str = ""
    contract: int = CONTRACT


COLUMNS = tuple(column.name for column in fields(Row))


def check_library(suffix: str) -> None:
    """`MissingLibraryError` where tables with this ending need a library that is not installed."""
    if suffix.lower() == ".parquet" and find_spec("pyarrow") is None:
        raise MissingLibraryError('Parquet needs pyarrow; install it with `pip install "sama-vqa[parquet]"`')


def check_unmixed(rows: Iterable[Row], where: str) -> None:
    """`InputError` where rows were scored by different models or with different settings."""
    first: Row | None = None
    for row in rows:
        first = first or row
        if (row.model, row.settings) != (first.model, first.settings):
            raise InputError(
                f"{where} mixes scores that do not go together: {first.path} by {first.model}, {first.settings}; "
                f"{row.path} by {row.model}, {row.settings}. Keep a table for each"
            )


def as_line(row: Row) -> bytes:
    """A row as a line of JSON."""
    return json.dumps(asdict(row)).encode() + b"\n"


def table(rows: Iterable[Row], form: str) -> bytes:
    """All rows in one of `FORMATS`: ".csv" (lists joined by ";"), ".jsonl", ".json" or ".parquet"."""
    if form == ".jsonl":
        return b"".join(map(as_line, rows))
    if form == ".json":
        return json.dumps([asdict(row) for row in rows], indent=1).encode() + b"\n"
    if form == ".parquet":
        return parquet_bytes(as_arrow(list(rows)))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)  # its "\r\n" has names with "\r" quoted
    lines = []
    for row in [None, *rows]:
        if row is None:
            writer.writeheader()
        else:
            entry = asdict(row)
            writer.writerow(entry | {key: ";".join(map(str, entry[key])) for key in ("clips", "times")})
        lines.append(text.getvalue().removesuffix("\r\n") + "\n")
        text.seek(0)
        text.truncate()
    return "".join(lines).encode("utf-8", "surrogateescape")


@cache
def schema() -> pa.Schema:
    """The columns of a row in Arrow's types, the contract's number in the metadata."""
    check_library(".parquet")
    import pyarrow as pa

    numbers = pa.list_(pa.field("element", pa.float64()))  # as Parquet names the values of a list
    kinds = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "list[float]": numbers}
    columns = [(column.name, str(column.type)) for column in fields(Row)]
    typed = [pa.field(name, kinds[kind.removesuffix(" | None")], kind.endswith("| None")) for name, kind in columns]
    return pa.schema(typed, metadata={"sama-contract": str(CONTRACT)})


def as_arrow(rows: Sequence[Row]) -> pa.Table:
    """Rows as an Arrow table with `schema`; characters that are no UTF-8 are escaped (`MARK`)."""
    import pyarrow as pa

    columns = {name: [getattr(row, name) for row in rows] for name in COLUMNS}
    for name, values in columns.items():
        if pa.types.is_string(schema().field(name).type):
            columns[name] = [escaped(value) for value in values]
    return pa.table(columns, schema=schema())


def parquet_bytes(content: pa.Table) -> bytes:
    """An Arrow table as a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(content, sink, compression="zstd")
    written: bytes = sink.getvalue().to_pybytes()
    return written


def escaped(text: str | None) -> str | None:
    """Text without what UTF-8 has not: `MARK` and the code of each such character, and of `MARK` itself, instead."""
    return text if text is None else re.sub("[\0\ud800-\udfff]", lambda found: f"{MARK}{ord(found[0]):04x}", text)


def unescaped(text: Any) -> Any:
    """The inverse of `escaped`."""
    if not isinstance(text, str) or MARK not in text:
        return text
    return re.sub(MARK + "([0-9a-f]{4})", lambda found: chr(int(found[1], 16)), text)


def read_journal(path: Path) -> list[Row]:
    """The complete rows of a journal; a last line that was cut off by a crash is left out."""
    if not path.exists():
        return []
    rows = []
    content = _regular(path).read_bytes()
    first = 1 + content.startswith(ANEW)
    for number, line in enumerate(content.removeprefix(ANEW).split(b"\n")[:-1], start=first):
        try:
            rows.append(_row(json.loads(line), path))
        except (ValueError, RecursionError) as error:
            raise OutputError(f"{path}, line {number}, is damaged ({error}): correct or remove the line") from error
    return rows


def read_table(path: Path) -> list[Row]:
    """The rows that `table` wrote to a file; none where there is no such file."""
    if not path.exists():
        return []
    check_library(path.suffix)
    before = csv.field_size_limit(FIELD_CHARACTERS)
    try:
        if path.suffix.lower() == ".jsonl":
            return read_journal(path)
        if path.suffix.lower() == ".json":
            entries = json.loads(_regular(path).read_bytes())
            if not isinstance(entries, list):
                raise ValueError("it holds no list of rows")
            return [_row(entry, path) for entry in entries]
        if path.suffix.lower() == ".parquet":
            return _read_parquet(_regular(path))
        with _regular(path).open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            return [_row(_typed(entry), path) for entry in csv.DictReader(file, strict=True)]
    except (ValueError, AttributeError, TypeError, RecursionError, csv.Error) as error:
        raise OutputError(f"{path} is no table that `sama score` wrote ({error})") from error
    finally:
        csv.field_size_limit(before)


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            return from_arrow(file.read(), path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(str(error)) from error


def from_arrow(content: pa.Table, path: Path) -> list[Row]:
    """The rows of an Arrow table that `as_arrow` made. path: where it comes from, for messages"""
    entries = content.to_pylist()
    return [_row({name: unescaped(value) for name, value in entry.items()}, path) for entry in entries]


def _regular(path: Path) -> Path:
    """The path; `OutputError` where it is no regular file, which might be read without end."""
    if not path.is_file():
        raise OutputError(f"{path} is no regular file")
    return path


def _typed(entry: dict[str, str]) -> dict[str, Any]:
    """The values of a CSV row in their types."""

    def convert(key: str, value: str) -> Any:
        if key in ("clips", "times"):
            return [float(part) for part in value.split(";") if part]
        if key in ("frames", "width", "height", "contract"):
            return int(value) if value else None
        if key in ("score", "mos", "duration", "fps", "seconds"):
            return float(value) if value else None
        return (value or None) if key in ("mos_scale", "decoder", "weights_sha256", "opened") else value

    return {key: convert(key, value) for key, value in entry.items()}


def _row(entry: Any, path: Path) -> Row:
    """A row from its columns; `OutputError` where they are not those of `Row`, of another type, or of a contract that
    this version does not know."""
    if not isinstance(entry, dict):
        raise OutputError(f"{path} is no table that `sama score` wrote (a row is {str(entry)[:40]!r})")
    number = entry.get("contract", CONTRACT)
    if type(number) is int and number != CONTRACT:
        raise OutputError(
            f"{path} has rows of contract {number}; this version of sama reads contract {CONTRACT} and the tables of "
            "0.1.0: read it with the version that wrote it"
        )
    try:
        row = Row(**entry)
    except TypeError as error:
        raise OutputError(f"{path} has other columns than `sama score` writes ({error})") from error
    for column in fields(Row):
        value = getattr(row, column.name)
        if not _fits(value, str(column.type)):
            what = f"{column.name} = {str(value)[:40]!r}"
            raise OutputError(f"{path} has a row with a value of the wrong type: {what}, expected {column.type}")
    if "contract" not in entry:
        row.weights_sha256, row.mode, row.plan = _said_in(row.model, row.settings)
    return row


def _said_in(model: str, settings: str) -> tuple[str | None, str, str]:
    """The weights' digest, mode and frame plan of a row without them: a table of 0.1.0 says them in other words."""
    digest = re.search(r"sha256 ([0-9a-f]{12})\)$", model)
    words = re.match(r"([^,]+), (?:((?:up to )?\d+ clips of (\d+ frames, \d+ apart)), )?", settings)
    every = re.search(r", one clip every (\S+ s)$", settings)
    mode, plan = (words[1], words[2] or "the whole image") if words else ("", "")
    if every and words:
        plan = f"one clip of {words[3]}, every {every[1]}"
    return digest and digest[1], mode, plan


def _fits(value: Any, kind: str) -> bool:
    """Whether a value is of the type of a column of `Row`, as its annotation says it."""
    if kind == "list[float]":
        return isinstance(value, list) and all(_fits(part, "float") for part in value)
    optional = kind.endswith(" | None")
    if value is None:
        return optional
    kind = kind.removesuffix(" | None")
    if isinstance(value, bool) or (isinstance(value, int) and value.bit_length() > 1000):  # more than a float holds
        return False
    kinds: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float)}
    return isinstance(value, kinds[kind])
