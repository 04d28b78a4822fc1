"""Stages (b) and (e): the sampling kernel beside a plain copy, the network, the throughput benchmark; training."""

from __future__ import annotations

import csv
import itertools
import math
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from unittest import mock

import baselines
import feeding
import gpu
import media
import network as networks
import numpy as np
import throughput as benchmark
import torch
from gpu_run import Run

from sama.kernels.layout import shape
from sama.models import VideoQuality
from sama.models.attention import ATTENTIONS, choose_attention
from sama.models.precision import computing
from sama.training.losses import video_loss

SMALL_KERNEL = {"frames": 2, "grid": (1, 1), "batch": 2, "repeats": 1, "source_bytes": 1, "copy_bytes": 1 << 20}


def kernel(run: Run) -> None:
    """The sampling kernel for every source and output: clips a second, bytes moved, share of a copy's bandwidth."""
    small = SMALL_KERNEL | {"forms": gpu.FORMS[2:4]}
    for row in gpu.kernel_rows(*run.pick((1080, 1920), (54, 96)), device=run.device, **run.pick({}, small)):
        run.row(**row)


def sweep(run: Run) -> None:
    """The kernel with other blocks and numbers of warps."""
    tried = {"blocks": (128, 256, 512, 1024), "warps": (2, 4, 8), "repeats": 20}
    forms = {"forms": [("patches", torch.float32), ("patches", torch.bfloat16)]}
    small = SMALL_KERNEL | {"blocks": (512,), "warps": (4,), "forms": forms["forms"][:1]}
    for row in gpu.kernel_rows(*run.pick((1080, 1920), (54, 96)), device=run.device, **run.pick(tried | forms, small)):
        run.row(**row)


def network(run: Run) -> None:
    """Forward passes by batch and precision: torchvision's network, an eager port, ours, ours as a recorded graph."""
    small = {"size": "nano", "shape": (2, 32, 32), "batches": (2,), "dtypes": ("float32",)}
    for row in networks.forward_rows(run.pick(10, 1), **run.pick({}, small)):
        run.row(**asdict(row))


def throughput(run: Run) -> None:
    """`bench/throughput.py` on one clip, without its network part."""
    out = str(run.out / f"{run.step}.csv")
    if run.rehearsal:
        clip = run.out / "clip.mp4"
        media.encode(clip, media.Size("small", 96, 64), 64)
        with (
            mock.patch.object(baselines, "compiled_gather", return_value=baselines.gather),
            mock.patch.object(benchmark, "memory_rows", return_value=[]),
            mock.patch.object(feeding, "FILES", 1),
        ):
            benchmark.main([str(clip), "--repeats", "1", "--no-model", "--out", out])
        clip.unlink()
        return
    benchmark.main(["--sizes", "1080p", "--repeats", "3", "--no-model", "--out", out])


def images(run: Run) -> None:
    """`bench/throughput.py --images`."""
    import images as still  # torchvision takes seconds to import

    with mock.patch.object(still, "memory_rows", return_value=[]) if run.rehearsal else nullcontext():
        for row in still.rows(run.pick(still.SIZES, still.SIZES[:1]), run.pick(3, 1)):
            run.row(**asdict(row))


def training(run: Run) -> None:
    """Steps of training on noise that is there already: clips a second and memory, by precision, attention, batch."""
    dtypes = run.pick(("bfloat16", "float32", "tf32"), ("float32", "bfloat16"))
    for size, batch, dtype, attention in itertools.product(
        run.pick(("tiny", "nano"), ("nano",)), run.pick((12, 4), (2,)), dtypes, run.pick(ATTENTIONS, ATTENTIONS[:1])
    ):
        try:
            rate, peak = step_rate(run, size, dtype, batch, attention)
            problem = ""
        except torch.OutOfMemoryError as error:
            rate, peak, problem = math.nan, math.nan, str(error)
        told = {"size": size, "dtype": dtype, "attention": attention, "batch": batch}
        run.row(**told, clips_per_s=rate, peak_gib=peak / 2**30, problem=problem)


def step_rate(run: Run, size: str, dtype: str, batch: int, attention: str) -> tuple[float, float]:
    """Clips a second of whole steps, and bytes at their peak beside weights and inputs."""
    torch.manual_seed(0)
    model = VideoQuality(size, grid=run.pick((7, 7), (1, 1))).to(run.device).train()
    choose_attention(model, attention, run.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    x = torch.randn(batch, *shape("patches", *run.pick((32, 224, 224), (4, 32, 32))), device=run.device)
    labels = torch.arange(batch, device=run.device, dtype=torch.float32)

    def step() -> None:
        with computing(dtype, run.device):
            loss = video_loss(model.score(x, over_time="sum").float(), labels)
        with computing(dtype, run.device, backward=True):
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    peak = run.peak_bytes(step)
    return batch / float(np.median(run.seconds(step, run.pick(10, 1)))), peak


def train(run: Run) -> None:
    """A whole run of training on files, with the decoder that `auto` takes: losses, seconds, share of waiting."""
    from sama.training.config import Config, Data, Model, Optim, Sampling
    from sama.training.loop import train as train_model

    frames, files = run.pick((300, 48), (8, 6))
    labels = labelled_files(run, files, frames)
    small = Sampling(grid=(2, 2), fragment=(16, 16), clip_len=4, interval=1, num_clips=1)
    config = Config(
        data=Data(labels=str(labels), split="all"),
        model=Model(size="nano"),
        sampling=run.pick(Sampling(), small),
        optim=Optim(epochs=run.pick(3, 1), batch=run.pick(12, 2)),
        device=str(run.device),
        dtype="bfloat16",
        out=str(run.out / "run"),
    )
    for epoch in train_model(config)["history"]:
        told = {name: epoch[name] for name in ("loss", "seconds", "clips_per_second", "waiting")}
        run.row(epoch=epoch["epoch"] + 1, files=files, **told)
    for path in (run.out / "run").glob("*.pt"):  # large, and of no use elsewhere
        path.unlink()


def labelled_files(run: Run, files: int, frames: int) -> Path:
    """A label file for copies of one clip, in names of their own."""
    folder = run.out / "set"
    folder.mkdir(exist_ok=True)
    size = run.pick(media.SIZES["540p"], media.Size("small", 96, 64))
    first = folder / "0.mp4"
    media.encode(first, size, frames)
    with open(folder / "labels.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "mos"])
        for number in range(files):
            path = folder / f"{number}.mp4"
            if number:
                path.symlink_to(first.name)
            writer.writerow([path.name, number])
    return folder / "labels.csv"
