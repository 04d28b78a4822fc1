"""VMAF as the label: how Netflix's model, fitted to people's votes, rates a version against its undegraded frames.

VMAF v0.6.1 of each frame, at the file's own size, averaged over the clip; libvmaf, in FFmpeg, computes it. Version and
reference go through one pipe, one above the other in frames of double height, which the filter graph takes apart
without a copy: nothing is written to disk but the result.

The model was fitted to compression and scaling, watched at three heights' distance. Frames are compared at the times
at which they are shown: a repeated frame is compared with the one that should be there, so that VMAF counts frozen
motion as a large distortion and frozen stillness as none. Nobody's votes stand behind that, nor behind concealed packet
losses. `aligned`, the share of frames that look most like the reference at their own time, tells such clips apart.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from sama.corpus.ffmpeg import PATIENCE_PER_MEGAPIXEL, PATIENCE_SECONDS, Ffmpeg, raw_input
from sama.corpus.i420 import luma, split_planes
from sama.corpus.label import register
from sama.errors import FfmpegError, InputError

MODEL, POOLING = "vmaf_v0.6.1", "mean"
NEG = "vmaf_v0.6.1neg"
METRICS = {"vmaf_neg": "vmaf_neg", "cambi": "cambi", "psnr_hvs": "psnr_hvs", "ssim": "float_ssim"}  # libvmaf's names
CAMBI_LEAST = 216  # pixels of the shorter side, below which CAMBI is not defined


class VmafLabeller:
    """VMAF as `sama.corpus.build` asks for it.

    vmaf, vmaf_harmonic   0..100, higher is better: arithmetic and harmonic mean over the frames
    vmaf_neg              as `vmaf`, by the model that gives no credit for sharpening: `vmaf` of a sharpened clip is 100
    cambi                 banding, 0 for none; empty for frames whose shorter side is below 216 pixels
    psnr_hvs              dB, empty for frames equal to the reference; ssim: at most 1; both of luma and, for psnr_hvs,
                          chroma
    aligned               share of frames that show the reference's picture of their own time
    model, pooling, libvmaf   what `vmaf` is: model's name, pooling of frames, libvmaf's version

    metrics: names in `METRICS` to compute beside VMAF; they take four fifths of the time
    """

    def __init__(self, ffmpeg: Ffmpeg, metrics: Sequence[str] = tuple(METRICS)):
        if unknown := set(metrics) - set(METRICS):
            raise InputError(f"unknown metric {', '.join(sorted(unknown))}; known: {', '.join(METRICS)}")
        self.ffmpeg = ffmpeg
        self.metrics = tuple(metrics)
        still = np.full((2, CAMBI_LEAST * 3 // 2, CAMBI_LEAST), 128, np.uint8)
        self.libvmaf = str(self._measure(still, still)["version"])  # also: it works, with these features

    @property
    def columns(self) -> tuple[str, ...]:
        return "vmaf", "vmaf_harmonic", *self.metrics, "aligned", "model", "pooling", "libvmaf"

    def prepare(self, name: str, pristine: np.ndarray) -> Callable[[np.ndarray], dict[str, float | str]]:
        """A function from the frames that a version shows to its row. pristine: uint8 [T, H * 3/2, W]"""
        return lambda shown: self.label(pristine, shown)

    def label(self, reference: np.ndarray, shown: np.ndarray) -> dict[str, float | str]:
        """The row of a version against its reference, both I420, uint8 [T, H * 3/2, W]. `InputError` where their
        shapes differ."""
        if shown.shape != reference.shape:
            raise InputError(f"frames {shown.shape} are compared with {reference.shape}")
        pooled: Mapping[str, Mapping[str, float]] = self._measure(reference, shown)["pooled_metrics"]
        row: dict[str, float | str] = {
            "vmaf": round(pooled["vmaf"]["mean"], 4),
            "vmaf_harmonic": round(pooled["vmaf"]["harmonic_mean"], 4),
        }
        for column in self.metrics:
            value = pooled.get(METRICS[column], {}).get("mean")  # null where infinite
            row[column] = "" if value is None else round(value, 4)
        matches = register(luma(reference), luma(shown))
        row["aligned"] = round(float((matches == np.arange(len(matches))).mean()), 4)
        return row | {"model": MODEL, "pooling": POOLING, "libvmaf": self.libvmaf}

    def _measure(self, reference: np.ndarray, shown: np.ndarray) -> dict:
        """libvmaf's report."""
        count, rows, width = shown.shape
        height = rows * 2 // 3
        small = min(width, height) < CAMBI_LEAST
        left_out = {"vmaf_neg", "cambi"} if small else {"vmaf_neg"}
        features = [f"name={METRICS[column]}" for column in self.metrics if column not in left_out]
        models = f"version={MODEL}\\\\:name=vmaf"
        models += f"|version={NEG}\\\\:name=vmaf_neg" if "vmaf_neg" in self.metrics else ""
        options = f"model={models}:n_threads=1:log_fmt=json:log_path=vmaf.json"
        options += f":feature={'|'.join(features)}" if features else ""
        graph = (
            f"[0:v]split[a][b];[a]crop={width}:{height}:0:0[shown];[b]crop={width}:{height}:0:{height}[reference];"
            f"[shown][reference]libvmaf={options}"
        )
        arguments = [*raw_input(width, 2 * height), "-filter_complex_threads", "1", "-lavfi", graph, "-f", "null", "-"]
        limit = PATIENCE_SECONDS + PATIENCE_PER_MEGAPIXEL * count * width * height / 1e6
        with tempfile.TemporaryDirectory(prefix="sama-vmaf-") as folder:
            self.ffmpeg.run(arguments, feed=stacked(shown, reference), limit_seconds=limit, folder=folder)
            try:
                report = json.loads(Path(folder, "vmaf.json").read_text())
            except (OSError, ValueError) as error:
                raise FfmpegError(f"libvmaf of {self.ffmpeg.path} left no report: {error}") from error
        if len(report["frames"]) != count:
            raise FfmpegError(f"libvmaf compared {len(report['frames'])} of {count} frames")
        return report


def stacked(above: np.ndarray, below: np.ndarray) -> Iterator[memoryview]:
    """The bytes of I420 frames of double height, in pieces: those of one clip above those of another."""
    for pair in zip(above, below):
        for planes in zip(*map(split_planes, pair)):
            yield from (np.ascontiguousarray(plane).data.cast("B") for plane in planes)
