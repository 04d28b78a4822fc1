"""The page of many files, worst first, or of one file alone: rows and pictures as data for `page/report.js`.

A file gives at most `POINTS_OF_A_FILE` points of its timeline and a bounded number of pictures, however long it is.
"""

from __future__ import annotations

import datetime
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sama
from sama.errors import InputError
from sama.files import printable
from sama.report.page import write_page
from sama.report.pictures import INLINE_BYTES, Look, PictureStore, choose, look
from sama.report.scale import Scale, contract, meaning, scale_of_rows

if TYPE_CHECKING:
    from sama.limits import Limits
    from sama.model import QualityModel
    from sama.tables import Row

POINTS_OF_A_FILE, POINTS_OF_A_PAGE = 600, 200_000  # of timelines
PICTURED, MAPPED = 200, 20  # files, worst first, with pictures of their moments, and with quality maps

Progress = Callable[[int, int], None]


def write_report(
    rows: Sequence[Row],
    out: str | os.PathLike[str],
    *,
    model: QualityModel | None = None,
    title: str = "",
    root: str | os.PathLike[str] = "",
    thumbnails: bool = True,
    pictured: int = PICTURED,
    mapped: int = MAPPED,
    moments: int = 2,
    inline_bytes: int = INLINE_BYTES,
    progress: Progress | None = None,
) -> None:
    """Write the page of the rows' files to `out`; of one row, the page shows its file alone.

    model: the one that gave the scores, where it is at hand: for its scale and its quality maps
    root: folder that the rows' paths are relative to
    thumbnails: open every file for a picture and its codec; without, the files need not be there
    pictured, mapped: how many files, worst first, get pictures of their moments, and quality maps
    moments: of the lowest and of the highest windows of a file, each
    inline_bytes: pictures beyond which they are put into a folder beside the page
    `InputError` for no rows, `OutputError` where the page cannot be written.
    """
    if not rows:
        raise InputError("there are no rows to report")
    rows = sorted(rows, key=_worst_first)
    scale = scale_of_rows(rows, model)
    ends = scale.limits(scale(value) for row in rows for value in row.clips or filter(None, [row.score]))
    decimals = digits(*ends)
    store = PictureStore(out, inline_bytes)
    most = max(16, min(POINTS_OF_A_FILE, POINTS_OF_A_PAGE // len(rows)))
    folders: dict[str, int] = {}
    files = []
    mapped = 0 if model is None else mapped
    looks = _looks(rows, root, model, moments, pictured, mapped) if thumbnails else (Look() for _ in rows)
    for done, (row, seen) in enumerate(zip(rows, looks), start=1):
        folder = printable(os.path.dirname(row.path)) or "."
        number = folders.setdefault(folder, len(folders))
        files.append(_file(row, seen, scale, decimals, most, number, store))
        if progress:
            progress(done, len(rows))
    first = next((row for row in rows if row.status == "ok"), rows[0])
    decoders = {row.decoder for row in rows if row.decoder}
    data: dict[str, Any] = {
        "title": printable(title) or (files[0]["name"] if len(rows) == 1 else "Quality report"),
        "made": f"{datetime.date.today():%d %B %Y}".lstrip("0"),
        "version": sama.__version__,
        "scale": {"name": printable(scale.name), "low": ends[0], "high": ends[1], "digits": max(0, decimals - 1)},
        "contract": [[name, printable(value)] for name, value in contract(first, scale, decoders)],
        "meaning": [printable(text) for text in meaning(scale, first, model)],
        "hints": _hints(rows, model, thumbnails, pictured, mapped, files),
        "folders": list(folders),
        "files": files,
        "pictures": store.sources(),
    }
    write_page(out, "report", data["title"], data, beside=store.outside)
    store.close()


def _worst_first(row: Row) -> tuple[float, str]:
    return (math.inf if row.score is None else row.score), row.path


def digits(low: float, high: float) -> int:
    """Digits after the point that tell some thousandths of the range from low to high."""
    return min(6, max(0, math.ceil(3.7 - math.log10(high - low))))


def reduced(times: Sequence[float], values: Sequence[float], most: int) -> tuple[list[float], list[float]]:
    """A timeline in at most `most` points: of each stretch the lowest, so that no bad moment is lost."""
    if len(values) <= most:
        return list(times), list(values)
    edges = [len(values) * k // most for k in range(most + 1)]
    kept = [min(range(first, end), key=values.__getitem__) for first, end in pairwise(edges)]
    return [times[k] for k in kept if k < len(times)], [values[k] for k in kept]


def _file(
    row: Row, seen: Look, scale: Scale, decimals: int, most: int, folder: int, store: PictureStore
) -> dict[str, Any]:
    """What the page knows of a file; what is empty is left out."""
    times, values = reduced(row.times, [scale(value) for value in row.clips], most)
    entry = {
        "name": printable(os.path.basename(row.path)) or printable(row.path),
        "folder": folder,
        "score": None if row.score is None else round(scale(row.score), decimals),
        "reason": printable(row.reason) if row.status != "ok" else "",
        "width": row.width,
        "height": row.height,
        "frames": row.frames,
        "fps": row.fps and round(row.fps, 3),
        "duration": row.duration and round(row.duration, 2),
        "bytes": seen.file_bytes,
        "codec": printable(seen.codec),
        "decoder": printable(row.decoder or ""),
        "spent": round(row.seconds, 2),
        "times": [round(value, 2) for value in times],
        "values": [round(value, decimals) for value in values],
        "windows": len(row.clips) if len(row.clips) > len(values) else None,
        "problem": printable(seen.problem),
    }
    if row.mos is not None and scale.model is None and row.mos != row.score:
        entry["also"] = f"{row.mos:.4g} on the scale “{printable(row.mos_scale or '')}”"
    thumbnail = store.add(seen.thumbnail)
    entry["thumbnail"] = None if thumbnail < 0 else thumbnail
    moments = []
    for moment in seen.moments:
        if moment.picture:
            cells = moment.cells and [[round(scale(value), decimals) for value in line] for line in moment.cells]
            shown = {"window": moment.window, "score": round(scale(moment.score), decimals), "what": moment.what}
            seconds = None if moment.seconds is None else round(moment.seconds, 2)
            moments.append(shown | {"seconds": seconds, "picture": store.add(moment.picture), "cells": cells})
    entry["moments"] = moments
    return {key: value for key, value in entry.items() if value not in (None, "", [])}


def _looks(
    rows: Sequence[Row], root: str | os.PathLike[str], model: QualityModel | None, each: int, pictured: int, mapped: int
) -> Iterator[Look]:
    """A look at every file, in order; files are opened in threads, as many ahead as there are threads."""

    def job(number: int, drawer: QualityModel | None) -> Look:
        row = rows[number]
        shown = row.status == "ok" and number < pictured
        moments = choose(row.clips, row.times, each) if shown else []
        path = os.path.join(root, row.path) if root else row.path
        return look(row, path, moments, drawer)

    for number in range(min(mapped, len(rows))):
        seen = job(number, model)
        if any(moment.picture and moment.cells is None for moment in seen.moments):
            model = None  # it has no tokens
        yield seen
    workers = max(1, min(4, os.cpu_count() or 1))
    waiting: deque[Future[Look]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for number in range(min(mapped, len(rows)), len(rows)):
            waiting.append(pool.submit(job, number, None))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _hints(
    rows: Sequence[Row],
    model: QualityModel | None,
    thumbnails: bool,
    pictured: int,
    mapped: int,
    files: Sequence[dict[str, Any]],
) -> dict[str, str]:
    """Why a file may lack something, for the page to say in its place."""
    hints = {"pictures": "", "maps": ""}
    if not thumbnails:
        hints["pictures"] = "This page was made without pictures."
    elif len(rows) > pictured:
        hints["pictures"] = f"Pictures were kept of the {pictured} files with the lowest scores (--pictures N)."
    drawn = any(moment.get("cells") for file in files for moment in file.get("moments", []))
    if model is None:
        hints["maps"] = "The model was not at hand when this page was made, so there are no quality maps (--weights)."
    elif not drawn and mapped:
        hints["maps"] = "This model scores the picture as a whole: it has no quality map."
    elif len(rows) > mapped:
        hints["maps"] = f"Quality maps were made for the {mapped} files with the lowest scores (--maps N)."
    return hints


def report_file(
    path: str,
    model: QualityModel,
    out: str | os.PathLike[str],
    *,
    every_seconds: float | None,
    decoder: str,
    limits: Limits,
) -> None:
    """The page of one file: score it, and show it alone, with more of its moments. Errors as `QualityModel.score`."""
    from sama.errors import DecodeError
    from sama.scoring import score_files

    (row,) = score_files([path], model, every_seconds=every_seconds, decoder=decoder, limits=limits)
    if row.status != "ok":
        raise DecodeError(path, row.reason)
    write_report([row], out, model=model, moments=4, title=os.path.basename(os.fsdecode(path)), root=Path())
