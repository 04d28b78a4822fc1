"""Scores of a file in the shape of libvmaf's JSON log, so that tools that plot VMAF logs read them.

libvmaf writes an entry for each frame. Here a window stands where a frame would, at the frame in its middle; the log
says so in "sama". `frameNum` are those frames' numbers, so that a tool that divides by the frame rate gets the time.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import sama
from sama.errors import InputError
from sama.files import printable, replace_file

if TYPE_CHECKING:
    from sama.report.scale import Scale
    from sama.tables import Row


def metric_name(scale: Scale) -> str:
    """The name of the metric in a log: "vmaf" for a scale that is VMAF's, which is what tools look for, else the
    scale's name in small letters, digits and underscores."""
    name = scale.name.lower()
    return "vmaf" if "vmaf" in name else re.sub(r"[^a-z0-9]+", "_", name).strip("_") or "score"


def vmaf_log(row: Row, scale: Scale) -> dict[str, Any]:
    """The log of a scored file.

    pooled_metrics: over windows. harmonic_mean is libvmaf's, n / sum(1 / (x + 1)) - 1, and null where a value is not
    above -1, as it can be on a model's own scale. `InputError` for a row without a score.
    """
    if row.status != "ok" or not row.clips:
        raise InputError(f"{row.path} has no scores to log")
    name = metric_name(scale)
    values = [scale(value) for value in row.clips]
    times = row.times or [0.0] * len(values)
    fps = row.fps or 25.0
    frames = [
        {"frameNum": round(seconds * fps), "metrics": {name: round(value, 6)}, "seconds": round(seconds, 6)}
        for seconds, value in zip(times, values)
    ]
    about = {
        "note": "An entry of frames is a window of the video, at the frame in its middle; predicted without reference.",
        "path": printable(row.path),
        "scale": printable(scale.name),
        "range": [scale.low, scale.high],
        "model": printable(row.model),
        "settings": printable(row.settings),
        "windows": len(values),
        "video_fps": row.fps,
        "video_frames": row.frames,
    }
    return {
        "version": f"sama {sama.__version__}",
        "fps": round(len(values) / row.seconds, 2) if row.seconds else 0.0,
        "frames": frames,
        "pooled_metrics": {name: pooled(values)},
        "aggregate_metrics": {},
        "sama": about,
    }


def pooled(values: Sequence[float]) -> dict[str, float | None]:
    """Minimum, maximum, arithmetic mean, and libvmaf's harmonic mean."""
    x = np.asarray(values, np.float64)
    harmonic = float(len(x) / np.sum(1 / (x + 1)) - 1) if x.min() > -1 else None
    means = {"min": float(x.min()), "max": float(x.max()), "mean": float(x.mean()), "harmonic_mean": harmonic}
    return {key: value if value is None else round(value, 6) for key, value in means.items()}


def write_log(row: Row, scale: Scale, out: str | os.PathLike[str]) -> None:
    """Write the log of a scored file; `OutputError` where it cannot be written."""
    replace_file(out, json.dumps(vmaf_log(row, scale), indent=2).encode() + b"\n")
