"""How far int8 moves scores, over a label file: in points of the model's scale, and in SROCC with the labels.

    python bench/int8_drift.py packaged LABELS ROOT [--label vmaf] [--every N] [--clips N] [--out FILE.csv]
    python bench/int8_drift.py random-weights LABELS ROOT --every 30 --clips 1

Each file is sampled once for both models. Differences are from OpenVINO's float32, whose own difference from eager is a
row too (over the first files). Of random weights, whose scores have no scale, what counts is the spread of the scores.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from unittest import mock

import measure
import numpy as np
import torch
from tqdm import tqdm

import sama
from sama import engines
from sama.decode.images import read_image
from sama.labels import read_labels
from sama.metrics import metrics
from sama.model import QualityModel, load_model, random_model

TABLE = measure.RESULTS / "int8-drift.csv"
FIRST = 10  # files that are scored by eager too


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="packaged, packaged-image, a checkpoint, or random-weights for a Swin-T")
    parser.add_argument("labels", type=Path)
    parser.add_argument("root", type=Path)
    parser.add_argument("--label", default="", help="column of the labels")
    parser.add_argument("--every", type=int, default=1, help="take one of so many files")
    parser.add_argument("--clips", type=int, default=1000, help="clips of a file, at most")
    parser.add_argument("--out", type=Path, default=TABLE, help="table that rows are appended to (%(default)s)")
    options = parser.parse_args()
    items = read_labels(options.labels, options.root, label=options.label)[:: options.every]
    settings = {"float32": {"engine": "openvino"}, "int8": {"engine": "openvino", "dtype": "int8"}, "eager": {}}
    models = {name: model_of(options.weights, **its) for name, its in settings.items()}
    scores: dict[str, list[float]] = {name: [] for name in models}
    for number, item in enumerate(tqdm(items, desc=options.weights, disable=None)):
        samples = sampled(models["eager"], item.path, options.clips)
        for name, model in models.items():
            if name != "eager" or number < FIRST:
                scores[name].append(float(np.mean(model.values(samples))))
    rows = list(
        compared(options.weights, models["eager"].name, len(samples), scores, np.array([item.mos for item in items]))
    )
    measure.show_all(rows)
    measure.extend(options.out, rows)
    return 0


def model_of(weights: str, **settings: str) -> QualityModel:
    with mock.patch.dict(engines.NOT_OFFERED, clear=True):  # what is not offered is measured too: it is why
        if weights == "random-weights":
            return random_model(device="cpu", **settings)
        return load_model(weights, "cpu", **settings)


def sampled(model: QualityModel, path: str, most: int) -> list[torch.Tensor]:
    if model.kind == "image":
        return list(model.sampler(read_image(path)))
    with sama.open_video(path) as video:
        return list(model.sample(video)[1])[:most]


def compared(weights: str, model: str, clips: int, scores: dict[str, list[float]], labels: np.ndarray):
    """Rows of the differences; of percentiles there are those of the absolute difference."""
    float32, int8, eager = (np.array(scores[name]) for name in ("float32", "int8", "eager"))
    off = np.abs(int8 - float32)
    case = f"{weights}, {len(labels)} files, {clips} clips of the last"

    def row(metric: str, value: float, unit: str = "points", note: str = "") -> measure.Row:
        return measure.Row(case, metric, "int8", unit, value, value, value, len(labels), None, note)

    spread = f"20th to 80th percentile of the difference; deviation of the float32 scores {float32.std():.4g}"
    middle = [float(np.percentile(off, q)) for q in (20, 50, 80)]
    yield measure.Row(case, "difference", "int8", "points", *middle, len(labels), None, spread)
    yield row("mean absolute difference", float(off.mean()), note=model)
    yield row("largest difference", float(off.max()))
    yield row("mean difference", float((int8 - float32).mean()))
    yield row("largest difference, float32 from eager", float(np.abs(float32[: len(eager)] - eager).max()))
    before, after = (metrics(values, labels).srocc for values in (float32, int8))
    yield row("change of SROCC", after - before, "SROCC", f"{before:.4f} in float32, {after:.4f} in int8")


if __name__ == "__main__":
    sys.exit(main())
