"""How far DALI's colours are from FFmpeg's, for each colour tag, before and after the correction in the kernel.

    python bench/color.py [--device cpu|cuda] [--weights FILE] [--out FILE.csv]

Photographs, encoded once for each tag, are decoded by both. Distances are in grey levels of 0..255: of whole pictures,
per channel, and of the inputs that the sampler makes of them. --weights: also the scores that a checkpoint gives.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import measure
import media
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace
from rich.console import Console
from rich.table import Table

import sama
from sama.frames import Clip
from sama.kernels import reference

FRAMES = 66  # eleven of each photograph; a clip takes 63
MATRICES = {"bt601": Colorspace.ITU601, "bt709": Colorspace.ITU709}
RANGES = {"limited": ColorRange.MPEG, "full": ColorRange.JPEG}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--weights", help="a checkpoint, or packaged: compare its scores too")
    parser.add_argument("--out", type=Path, help="CSV file (default bench/results/color-DEVICE.csv)")
    options = parser.parse_args()
    model = sama.load_model(options.weights) if options.weights else None
    codecs = ["vp9", "mjpeg"] if options.device == "cpu" else ["h264", "hevc", "vp9"]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for codec, matrix, range_ in itertools.product(codecs, MATRICES, RANGES):
            if codec == "mjpeg" and (matrix, range_) != ("bt601", "full"):
                continue  # the format has no other
            path = Path(folder) / f"{codec}-{matrix}-{range_}.{media.CODECS[codec].format}"
            tags = {"matrix": MATRICES[matrix], "color_range": RANGES[range_]}
            media.encode(path, media.SIZES["540p"], FRAMES, codec=codec, **tags)
            rows.append({"codec": codec, "matrix": matrix, "range": range_, **drift(path, options.device, model)})
    show(rows)
    device = measure.environment()["device"].replace(" ", "-")
    out = options.out or measure.RESULTS / f"color-{device}.csv"
    about = measure.environment()
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) + list(about))
        writer.writeheader()
        writer.writerows(row | about for row in rows)
    print(f"rows: {out}")
    return 0


def drift(path: Path, device: str, model) -> dict[str, float]:
    """Mean distance and mean difference (DALI - FFmpeg) of a file's frames, in R, G, B, and mean distance of inputs."""
    with sama.open_video(path, decoder="pyav") as video:
        frames = [frame for _, frame in video.frames(range(FRAMES))]
    with sama.open_video(path, decoder="dali", device=device) as video:
        assert video.info.num_frames == FRAMES
        planes = torch.stack([frame.planes[0] for _, frame in video.frames(range(FRAMES))])
        corrected = Clip("rgb", (planes,), correction=video.correction)
    raw = replace(corrected, correction=None)
    right = torch.stack([reference.to_rgb(frame) for frame in frames]).float()
    row = {}
    rgb = planes.cpu().float()
    for name, pictures in (
        ("before", rgb),
        ("after", reference.correct(rgb.movedim(-1, 0), corrected.correction).movedim(0, -1)),
    ):
        off = pictures - right
        for channel, distance, shift in zip("rgb", off.abs().mean((0, 1, 2)), off.mean((0, 1, 2))):
            row[f"{name}_{channel}"] = round(float(distance), 3)
            row[f"{name}_{channel}_shift"] = round(float(shift), 3)
    sampler = sama.VideoSampler(normalize=False)
    inputs = sampler(frames)[0]
    for name, clip in (("before", raw), ("after", corrected)):
        row[f"input_{name}"] = round(float((sampler(clip)[0].cpu() - inputs).abs().mean()), 3)
    if model:
        for name, source in (("pyav", frames), ("before", raw), ("after", corrected)):
            clips = [[source[t] for t in indices] for indices in model.clip_indices(FRAMES)]
            score = float(np.mean(model.values([model.sampler(clip)[0].cpu() for clip in clips])))
            row[f"score_{name}"] = round(score, 6)
            mos, _ = model.mos(score)
            if mos is not None:
                row[f"mos_{name}"] = round(mos, 3)
    return row


def show(rows: list[dict]):
    table = Table(title="DALI - FFmpeg, grey levels: mean distance (mean difference)", title_justify="left")
    columns = ["codec", "matrix", "range", *(f"{c.upper()} {when}" for when in ("before", "after") for c in "rgb")]
    for column in [*columns, "input before", "input after"]:
        table.add_column(column, justify="right")
    for row in rows:
        parts = [
            f"{row[f'{when}_{c}']:.2f} ({row[f'{when}_{c}_shift']:+.2f})" for when in ("before", "after") for c in "rgb"
        ]
        inputs = [f"{row['input_before']:.2f}", f"{row['input_after']:.2f}"]
        table.add_row(row["codec"], row["matrix"], row["range"], *parts, *inputs)
    Console(width=160).print(table)


if __name__ == "__main__":
    sys.exit(main())
