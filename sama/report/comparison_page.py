"""The page of a comparison: timelines over one another, frames where the files differ most, rates against quality."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from typing import Any

import sama
from sama.decode.pyav import PyavVideo
from sama.errors import DecodeError
from sama.files import printable
from sama.report.comparison import Comparison
from sama.report.page import write_page
from sama.report.pictures import INLINE_BYTES, PictureStore, jpeg, nearest, shrink
from sama.report.scale import contract, meaning

MOMENTS, PICTURED_FILES = 4, 8
FULL = 92  # quality of JPEG, so that what is seen is the encode's loss


def write_comparison(
    comparison: Comparison,
    out: str | os.PathLike[str],
    *,
    inline_bytes: int = INLINE_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the page to `out`. Frames are at their own size, of at most `MOMENTS` moments and `PICTURED_FILES` files.

    inline_bytes: pictures beyond which they are put into a folder beside the page
    `OutputError` where it cannot be written.
    """
    from sama.tables import Row

    windows = sorted(comparison.extremes(MOMENTS)) or [len(comparison.times) // 2]
    store = PictureStore(out, inline_bytes)
    shots: list[dict[str, Any]] = [
        {"window": k, "seconds": round(float(comparison.times[k]), 2), "pictures": {}} for k in windows
    ]
    pictured = comparison.versions[:PICTURED_FILES]
    for done, version in enumerate(pictured):
        if progress:
            progress(done, len(pictured))
        try:
            with PyavVideo(version.path) as video:
                times = video.seconds(range(video.info.num_frames))
                numbers = [nearest(times, version.seconds[k]) for k in windows]
                for number, frame in video.frames(numbers):
                    picture = jpeg(shrink(frame, None), FULL)
                    kept = {"picture": store.add(picture), "width": frame.width, "height": frame.height}
                    for shot, wanted in zip(shots, numbers):
                        if wanted == number:
                            shot["pictures"][version.label] = kept
        except DecodeError:  # scored by another decoder: the page does without its pictures
            continue
    order = {k: place for place, k in enumerate(comparison.extremes(MOMENTS))}
    shots.sort(key=lambda shot: order.get(shot["window"], 0))
    digits = comparison.digits
    ends = comparison.scale.limits([float(value) for version in comparison.versions for value in version.scores])
    versions = comparison.versions
    row = Row(versions[0].path, model=comparison.model.name, settings=comparison.settings)
    data: dict[str, Any] = {
        "title": comparison.verdict,
        "made": f"{datetime.date.today():%d %B %Y}".lstrip("0"),
        "version": sama.__version__,
        "scale": {"name": printable(comparison.scale.name), "low": ends[0], "high": ends[1], "digits": digits},
        "floor": comparison.floor,
        "contract": [
            [name, printable(value)] for name, value in contract(row, comparison.scale, {v.decoder for v in versions})
        ],
        "meaning": [*meaning(comparison.scale, row, comparison.model), _about(comparison)],
        "files": [
            {
                "label": v.label,
                "name": v.name,
                "folder": printable(os.path.dirname(v.path)) or ".",
                "score": v.mean,
                "values": [round(float(value), digits + 2) for value in v.scores],
                "times": [round(float(value), 3) for value in comparison.times],
                "offset": round(v.match.seconds, 3),
                "bitrate": round(v.bitrate),
                "bytes": v.file_bytes,
                "codec": printable(v.info.codec),
                "width": v.info.width,
                "height": v.info.height,
                "fps": round(v.info.fps, 3),
                "hull": v.label in comparison.hull,
            }
            for v in versions
        ],
        "differences": [
            {"first": a.label, "other": b.label, **_difference(comparison, a.label, b.label)}
            for a in versions
            for b in versions
            if a is not b
        ],
        "shots": shots,
        "hull": comparison.hull,
        "groups": comparison.groups,
        "deltas": [vars(delta) for delta in comparison.deltas],
        "pictures": store.sources(),
    }
    write_page(out, "compare", data["title"], data, beside=store.outside)
    store.close()


def _difference(comparison: Comparison, first: str, other: str) -> dict[str, Any]:
    d = comparison.difference(first, other)
    return {"mean": d.mean, "low": d.low, "high": d.high, "verdict": d.verdict}


def _about(comparison: Comparison) -> str:
    count = len(comparison.times)
    noise = f"{comparison.number(comparison.floor)} points"
    return (
        f"The same {count} moments of every file were scored, found by their content. An interval holds the mean "
        f"difference in 95 of 100 cases: it comes from how much the moments vary (bootstrap), and {noise} either way "
        "for the model's own noise. A difference is told only if the interval leaves out 0. It is a difference of this "
        "model's scores: how far the model is right is another question, and its card has the figures."
    )
