"""Score many files: decoding ahead in threads, batches across files, one row a file, nothing lost.

    files ──threads: decode, sample──> clips ──batches──> model ──> rows ──> journal ──> table

A row is written to the journal (`OUT.partial`) as soon as its file is done, in the order of the files; the table itself
appears whole at the end. After an interruption, whatever it was, `resume` goes on from the journal.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch

from sama.decode import DECODERS, open_video
from sama.decode.images import read_image
from sama.errors import InputError, OutputError, reason
from sama.files import check_kind, replace_file
from sama.model import QualityModel
from sama.prefetch import BEGUN, Ended, Meter, Ticket, ahead

CLIPS_AHEAD = 4  # sampled clips that wait for the model, a file
FORMATS = (".csv", ".jsonl", ".json")


@dataclass
class Row:
    """What is said of one file. Times are in seconds; `clips` and `times` have one entry a clip.

    score is on the model's own scale, mos on the data set's that the checkpoint is calibrated to, if any.
    seconds: spent on this file, decoding, sampling and model
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


def score_files(
    paths: Sequence[str],
    model: QualityModel,
    *,
    batch: int = 1,
    workers: int | None = None,
    every_seconds: float | None = None,
    decoder: str = "auto",
    meter: Meter | None = None,
) -> Iterator[Row]:
    """Yield a row for every path, in order; a file that fails is a row with status "error" and the reason.

    batch: clips that go through the model at once; on the CPU scores do not depend on it
    workers: files decoded at the same time, ahead of the model; None is half of the cores, at most 4
    every_seconds: as in `QualityModel.score`
    meter: is told how long the model waited for decoding
    """
    if decoder not in ("auto", *DECODERS):
        raise InputError(f"unknown decoder {decoder!r}; known: auto, {', '.join(DECODERS)}")
    workers = workers or min(4, max(1, (os.cpu_count() or 1) // 2))
    settings = describe(model, every_seconds)
    waiting: deque[_Open] = deque()
    samples: list[tuple[_Open, torch.Tensor]] = []
    events = ahead(
        map(_Open, paths),
        lambda file, ticket: _samples(file.row, model, every_seconds, decoder, ticket),
        workers=workers,
        jobs_ahead=workers + 1,
        items_ahead=CLIPS_AHEAD,
        meter=meter,
    )
    with contextlib.closing(events):  # an error here must not leave its threads behind
        for file, item in events:
            if item is BEGUN:
                file.row.model, file.row.settings = model.name, settings
                waiting.append(file)
            elif isinstance(item, Ended):
                file.end(item)
            else:
                file.decoded += 1
                samples.append((file, item))
                if len(samples) == batch:
                    _run(samples, model, batch)
            while waiting and waiting[0].done:
                yield waiting.popleft().close(model)
    if samples:
        _run(samples, model, batch)
    while waiting:
        yield waiting.popleft().close(model)


def describe(model: QualityModel, every_seconds: float | None) -> str:
    """What a score depends on beside the weights, in a line."""
    return model.settings if every_seconds is None else f"{model.settings}, one clip every {every_seconds:g} s"


class _Open:
    """A file on its way: its row, and how many of its clips have been decoded and scored."""

    def __init__(self, path: str):
        self.row = Row(path)
        self.decoded = 0
        self.ended = False

    @property
    def done(self) -> bool:
        return self.ended and len(self.row.clips) == self.decoded

    def end(self, end: Ended):
        self.ended = True
        self.row.seconds += end.seconds
        if end.error is not None:
            self.row.status, self.row.reason = "error", reason(end.error)

    def close(self, model: QualityModel) -> Row:
        row = self.row
        if row.status == "ok":
            result = model.result(row.clips, row.times, row.frames, row.width, row.height)
            row.score, row.mos, row.mos_scale = result.score, result.mos, result.mos_scale
            if not all(map(_finite, row.clips)):
                row.status, row.reason = "error", "the model gave a value that is not a number"
        if row.status != "ok":
            row.score, row.mos, row.clips, row.times = None, None, [], []
        row.times = row.times[: len(row.clips)]
        return row


def _finite(value: float) -> bool:
    return value - value == 0


def _run(samples: list[tuple[_Open, torch.Tensor]], model: QualityModel, batch: int):
    """One batch through the model; each clip's value goes to its file."""
    start = time.perf_counter()
    values = model.values([sample for _, sample in samples], batch)
    share = (time.perf_counter() - start) / len(samples)
    for (file, _), value in zip(samples, values):
        file.row.clips.append(value)
        file.row.seconds += share
    samples.clear()


def _samples(
    row: Row, model: QualityModel, every_seconds: float | None, decoder: str, ticket: Ticket
) -> Iterator[torch.Tensor]:
    """Open the file that the row names, fill in what is known of it, and yield its sampled clips."""
    check_kind(row.path, model.kind)
    if model.kind == "image":
        image = read_image(row.path)
        row.frames, row.height, row.width, row.decoder = 1, *image.shape[:2], "pillow"
        yield from model.sampler(image)
        return
    with open_video(row.path, decoder=decoder, device=model.device) as video:
        info = video.info
        row.frames, row.width, row.height = info.num_frames, info.width, info.height
        row.duration, row.fps = info.duration_seconds, info.fps
        row.decoder = video.decoder
        with ticket.hold(video.held_bytes(model.clip_len)):
            seconds, clips = model.sample(video, every_seconds)
            row.times = seconds.tolist()
            yield from clips


class Journal:
    """Rows on disk: appended one by one to `OUT.partial`, turned into `OUT` at the end.

    scores_by: model and settings, as in every row
    resume: rows of an earlier run, from `OUT` or `OUT.partial`, are kept and their files are not scored again.
    OutputError where `OUT` has another ending, is there already and neither resume nor overwrite is asked for, or holds
    rows of another model or other settings.
    """

    def __init__(
        self, out: str | os.PathLike, scores_by: tuple[str, str], *, resume: bool = False, overwrite: bool = False
    ):
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
                        f"{out} cannot be gone on with: {row.path} was scored by {row.model}, {row.settings}; now it "
                        f"is {', '.join(scores_by)}. Give another --out, or --overwrite"
                    )
        elif not overwrite and (self.out.exists() or self.partial.exists()):
            there = self.partial if self.partial.exists() else self.out
            raise OutputError(f"{there} is there already: --resume goes on with it, --overwrite begins anew")
        replace_file(self.partial, b"".join(map(_line, self.rows.values())))
        if overwrite and not resume:
            self.out.unlink(missing_ok=True)  # or a later --resume would bring it back
        self.file = open(self.partial, "ab")  # noqa: SIM115

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.file.close()

    def remaining(self, paths: Iterable[str]) -> list[str]:
        """The paths that have no row yet."""
        return [path for path in paths if path not in self.rows]

    def add(self, row: Row):
        self.rows[row.path] = row
        self.file.write(_line(row))
        self.file.flush()
        os.fsync(self.file.fileno())

    def finish(self, order: Sequence[str] = ()):
        """Write `OUT`, rows in the given order first to last, others before them; then the journal goes."""
        self.file.close()
        place = {path: k for k, path in enumerate(order)}
        rows = sorted(self.rows.values(), key=lambda row: place.get(row.path, -1))
        replace_file(self.out, table(rows, self.out.suffix.lower()))
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
            raise OutputError(f"{path}, line {number}, is damaged ({error}): mend or remove the line") from error
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
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            return [_row(_typed(entry), path) for entry in csv.DictReader(file)]
    except (ValueError, AttributeError) as error:
        raise OutputError(f"{path} was not written by this command, so it cannot be gone on with ({error})") from error


def _typed(entry: dict[str, str]) -> dict:
    """The values of a CSV row as they were."""
    kinds = {"clips": "floats", "times": "floats", "frames": int, "width": int, "height": int}
    kinds |= dict.fromkeys(("score", "mos", "duration", "fps", "seconds"), float)
    typed = {}
    for key, value in entry.items():
        kind = kinds.get(key)
        if kind == "floats":
            typed[key] = [float(part) for part in value.split(";") if part]
        elif kind:
            typed[key] = kind(value) if value else None
        else:
            typed[key] = (value or None) if key in ("mos_scale", "decoder") else value
    return typed


def _row(entry: dict, path: Path) -> Row:
    try:
        return Row(**entry)
    except TypeError as error:
        raise OutputError(f"{path} has other columns than this version writes ({error}): give another --out") from error
