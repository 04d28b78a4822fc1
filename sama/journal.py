"""Rows of scores on disk: a journal while files are scored, a table at the end.

A row is appended to the journal, `OUT.partial`, as soon as its file is done; the table `OUT` appears whole at the end.
Whatever interrupts the run (kill -9, a full disk), `resume` continues from the rows that are there.
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

FORMATS = (".csv", ".jsonl", ".json")


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
        if resume:
            self.rows = {row.path: row for row in [*read_table(self.out), *read_journal(self.partial)]}
            for row in self.rows.values():
                if (row.model, row.settings) != scores_by:
                    raise OutputError(
                        f"{out} cannot be resumed: {row.path} was scored by {row.model}, {row.settings}; now it is "
                        f"{', '.join(scores_by)}. Give another --out, or --overwrite"
                    )
            if retry:
                self.rows = {path: row for path, row in self.rows.items() if row.status == "ok"}
        elif not overwrite and (self.out.exists() or self.partial.exists()):
            there = self.partial if self.partial.exists() else self.out
            raise OutputError(f"{there} exists already: --resume continues it, --overwrite begins anew")
        replace_file(self.partial, b"".join(map(_line, self.rows.values())))
        if overwrite and not resume:
            self.out.unlink(missing_ok=True)  # or a later --resume would bring it back
        self.file = open(self.partial, "ab", buffering=0)  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.file.close()

    def remaining(self, paths: Iterable[str]) -> list[str]:
        """The paths that have no row yet."""
        return [path for path in paths if path not in self.rows]

    def add(self, row: Row) -> None:
        """Append a row and bring it to the disk; `OutputError` where that fails, with all rows before it kept."""
        whole = self.file.tell()
        try:
            left = memoryview(_line(row))
            while left:
                left = left[self.file.write(left) :]
            os.fsync(self.file.fileno())
        except OSError as error:
            self.file.truncate(whole)  # a row that was cut off
            raise OutputError(f"{self.partial} cannot be written: {error.strerror or error}; {self.kept()}") from error
        self.rows[row.path] = row

    def kept(self) -> str:
        """What an interrupted run leaves and how to continue it, for a message."""
        return f"{len(self.rows)} rows are kept in {self.partial}: --resume continues from them"

    def finish(self, order: Sequence[str] = ()) -> None:
        """Write `OUT` and remove the journal. Rows are in the given order of paths, rows of other paths before them."""
        self.file.close()
        place = {path: k for k, path in enumerate(order)}
        rows = sorted(self.rows.values(), key=lambda row: place.get(row.path, -1))
        try:
            replace_file(self.out, table(rows, self.out.suffix.lower()))
        except OutputError as error:
            raise OutputError(f"{error}; {self.kept()}") from error
        self.partial.unlink()


def _line(row: Row) -> bytes:
    return json.dumps(asdict(row)).encode() + b"\n"


def table(rows: Iterable[Row], form: str) -> bytes:
    """All rows as ".csv" (lists joined by ";"), ".jsonl" or ".json"."""
    if form == ".jsonl":
        return b"".join(map(_line, rows))
    if form == ".json":
        return json.dumps([asdict(row) for row in rows], indent=1).encode() + b"\n"
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [f.name for f in fields(Row)], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        entry = asdict(row)
        writer.writerow(entry | {key: ";".join(map(str, entry[key])) for key in ("clips", "times")})
    return text.getvalue().encode("utf-8", "surrogateescape")


def read_journal(path: Path) -> list[Row]:
    """The complete rows of a journal; a last line that was cut off by a crash is left out."""
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            rows.append(_row(json.loads(line), path))
        except ValueError as error:
            raise OutputError(f"{path}, line {number}, is damaged ({error}): correct or remove the line") from error
    return rows


def read_table(path: Path) -> list[Row]:
    """The rows that `table` wrote to a file; none where there is no such file."""
    if not path.exists():
        return []
    try:
        if path.suffix.lower() == ".jsonl":
            return read_journal(path)
        if path.suffix.lower() == ".json":
            return [_row(entry, path) for entry in json.loads(path.read_bytes())]
        csv.field_size_limit(1 << 30)  # a timeline of hours is one cell
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            return [_row(_typed(entry), path) for entry in csv.DictReader(file)]
    except (ValueError, AttributeError, TypeError, csv.Error) as error:
        raise OutputError(f"{path} is no table that `sama score` wrote ({error})") from error


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


def _row(entry: dict[str, Any], path: Path) -> Row:
    """A row from its columns; `OutputError` where they are not those of `Row`, or of another type."""
    try:
        row = Row(**entry)
    except TypeError as error:
        raise OutputError(f"{path} has other columns than `sama score` writes ({error})") from error
    numbers = (row.score, row.mos, row.duration, row.fps, row.seconds, *row.clips, *row.times)
    texts = (row.path, row.status, row.model, row.settings, row.reason, row.scale)
    if not (
        all(value is None or isinstance(value, int | float) for value in numbers)
        and all(isinstance(value, str) for value in texts)
    ):
        raise OutputError(f"{path} has a row with a value of the wrong type: {entry}")
    return row
