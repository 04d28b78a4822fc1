"""Rows of scores on disk: a journal while files are scored, a table at the end.

A row is appended to the journal, `OUT.partial`, as soon as its file is done; the table `OUT` appears whole at the end,
and until then an older one stays as it is. Whatever interrupts the run (kill -9, a full disk), `resume` continues from
the rows that are there. One run at a time writes a journal: it holds a lock on it, which ends with its process.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from sama.errors import OutputError
from sama.files import replace_file

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

FORMATS = (".csv", ".jsonl", ".json")
ANEW = b'{"anew": true}\n'  # the first line of a journal whose table is not to be resumed, but replaced
FIELD_CHARACTERS = (1 << 31) - 1  # of a CSV: a long video has many clips


@dataclass
class Row:
    """The scores of one file, or the reason why there are none.

    path: as the user named the file; status: "ok", or "error" with the `reason`
    score: on the model's own scale, whose name is `scale` where it has one
    mos: on the scale named `mos_scale`, where the checkpoint is calibrated to one
    clips, times: for each clip its score, and the time of its middle frame in seconds
    frames, width, height, duration (seconds), fps: of the file; decoder: which one read it
    seconds: spent on this file, in decoding, sampling and the model
    model, settings: what the scores depend on
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


class Journal:
    """Rows on disk: appended one by one to `OUT.partial`, turned into `OUT` at the end.

    out: the table to write; its ending, one of `FORMATS`, tells the form
    scores_by: model and settings, as in every row
    resume: keep the rows of an earlier run, in `OUT` or `OUT.partial`, so that their files are not scored again
    retry: with resume, forget the rows of files that failed, so that they are scored again
    overwrite: begin anew although `OUT` exists
    `OutputError` where `OUT` has another ending, exists and neither resume nor overwrite is asked for, holds rows of
    another model or other settings, or cannot be written.
    """

    def __init__(
        self,
        out: str | os.PathLike[str],
        scores_by: tuple[str, str],
        *,
        resume: bool = False,
        retry: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.out = Path(out)
        self.partial = self.out.with_name(self.out.name + ".partial")
        self.rows: dict[str, Row] = {}
        if self.out.suffix.lower() not in FORMATS:
            raise OutputError(f"{out}: cannot tell the format; the name must end in {', '.join(FORMATS)}")
        if not self.out.parent.is_dir():
            raise OutputError(f"{out}: there is no folder {self.out.parent}")
        if not (resume or overwrite) and (self.out.exists() or self.partial.exists()):
            there = self.partial if self.partial.exists() else self.out
            raise OutputError(f"{there} exists already: --resume continues it, --overwrite begins anew")
        is_new = not self.partial.exists()
        self.file = self._open()
        try:
            if resume:
                self._resume(scores_by, retry)
            elif overwrite:
                self.file.truncate(0)
                self._append(ANEW)
        except BaseException:
            if is_new:
                self.partial.unlink(missing_ok=True)
            self.file.close()
            raise

    def _open(self) -> io.FileIO:
        """The journal, locked; `OutputError` where another run writes it."""
        while True:
            try:
                file = open(self.partial, "ab", buffering=0)  # noqa: SIM115 - closed by __exit__
            except OSError as error:
                raise OutputError(f"{self.partial} cannot be written: {error.strerror or error}") from error
            try:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.close()
                raise OutputError(
                    f"another run is writing {self.partial}: wait for it, or give another --out"
                ) from error
            except OSError:  # a file system without locks
                return file
            if self.partial.exists() and os.path.samestat(os.fstat(file.fileno()), self.partial.stat()):
                return file
            file.close()  # its run has ended meanwhile and removed it

    def _resume(self, scores_by: tuple[str, str], retry: bool) -> None:
        """Take over the rows of earlier runs, and cut off a row that was being written."""
        content = self.partial.read_bytes()
        self.file.truncate(content.rfind(b"\n") + 1)
        older = [] if content.startswith(ANEW) else read_table(self.out)
        self.rows = {row.path: row for row in [*older, *read_journal(self.partial)]}
        for row in self.rows.values():
            if (row.model, row.settings) != scores_by:
                raise OutputError(
                    f"{self.out} cannot be resumed: {row.path} was scored by {row.model}, {row.settings}; now it is "
                    f"{', '.join(scores_by)}. Give another --out, or --overwrite"
                )
        if retry:
            self.rows = {path: row for path, row in self.rows.items() if row.status == "ok"}

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.file.close()

    def remaining(self, paths: Iterable[str]) -> list[str]:
        """The paths that have no row yet."""
        return [path for path in paths if path not in self.rows]

    def add(self, row: Row) -> None:
        """Append a row and bring it to the disk; `OutputError` where that fails, with all rows before it kept."""
        self._append(_line(row))
        self.rows[row.path] = row

    def _append(self, line: bytes) -> None:
        whole = self.file.seek(0, os.SEEK_END)
        try:
            left = memoryview(line)
            while left:
                left = left[self.file.write(left) :]
            os.fsync(self.file.fileno())
        except OSError as error:
            self.file.truncate(whole)  # a row that was cut off
            raise OutputError(f"{self.partial} cannot be written: {error.strerror or error}; {self.kept()}") from error

    def kept(self) -> str:
        """What an interrupted run leaves and how to continue it, for a message."""
        return f"{len(self.rows)} rows are kept in {self.partial}: --resume continues from them"

    def finish(self, order: Sequence[str] = ()) -> None:
        """Write `OUT` and remove the journal. Rows are in the given order of paths, rows of other paths before them."""
        place = {path: k for k, path in enumerate(order)}
        rows = sorted(self.rows.values(), key=lambda row: place.get(row.path, -1))
        try:
            replace_file(self.out, table(rows, self.out.suffix.lower()))
        except OutputError as error:
            raise OutputError(f"{error}; {self.kept()}") from error
        self.partial.unlink()
        self.file.close()


def _line(row: Row) -> bytes:
    return json.dumps(asdict(row)).encode() + b"\n"


def table(rows: Iterable[Row], form: str) -> bytes:
    """All rows as ".csv" (lists joined by ";"), ".jsonl" or ".json"."""
    if form == ".jsonl":
        return b"".join(map(_line, rows))
    if form == ".json":
        return json.dumps([asdict(row) for row in rows], indent=1).encode() + b"\n"
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [f.name for f in fields(Row)])  # its "\r\n" has names with "\r" quoted
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
    before = csv.field_size_limit(FIELD_CHARACTERS)
    try:
        if path.suffix.lower() == ".jsonl":
            return read_journal(path)
        if path.suffix.lower() == ".json":
            entries = json.loads(_regular(path).read_bytes())
            if not isinstance(entries, list):
                raise ValueError("it holds no list of rows")
            return [_row(entry, path) for entry in entries]
        with _regular(path).open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            return [_row(_typed(entry), path) for entry in csv.DictReader(file, strict=True)]
    except (ValueError, AttributeError, TypeError, RecursionError, csv.Error) as error:
        raise OutputError(f"{path} is no table that `sama score` wrote ({error})") from error
    finally:
        csv.field_size_limit(before)


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
        if key in ("frames", "width", "height"):
            return int(value) if value else None
        if key in ("score", "mos", "duration", "fps", "seconds"):
            return float(value) if value else None
        return (value or None) if key in ("mos_scale", "decoder") else value

    return {key: convert(key, value) for key, value in entry.items()}


def _row(entry: Any, path: Path) -> Row:
    """A row from its columns; `OutputError` where they are not those of `Row`, or of another type."""
    if not isinstance(entry, dict):
        raise OutputError(f"{path} is no table that `sama score` wrote (a row is {str(entry)[:40]!r})")
    try:
        row = Row(**entry)
    except TypeError as error:
        raise OutputError(f"{path} has other columns than `sama score` writes ({error})") from error
    for column in fields(Row):
        value = getattr(row, column.name)
        if not _fits(value, str(column.type)):
            what = f"{column.name} = {str(value)[:40]!r}"
            raise OutputError(f"{path} has a row with a value of the wrong type: {what}, expected {column.type}")
    return row


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
