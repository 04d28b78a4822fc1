"""The model: clips per second by batch and precision, beside torchvision's network as it comes and an eager port with
materialised attention; and the whole way from a file to its score. Weights are random: they do not change the speed."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import measure
import numpy as np
import published
import torch
from torch import Tensor

import sama
from sama.graphs import Graphs
from sama.model import random_model
from sama.models import VideoQuality, attention, swin3d
from sama.models.precision import DTYPES as PRECISIONS
from sama.models.precision import computing

BATCHES = {"cpu": (1,), "cuda": (1, 8, 32)}
DTYPES = {"cpu": ("float32", "bfloat16"), "cuda": tuple(PRECISIONS)}
AGREEMENT = 1e-3  # relative, of a score in float32


def attend_materialised(qkv: Tensor, bias: Tensor) -> Tensor:
    """`attention.attend` with the logits in memory, as the published code has them."""
    q, k, v = qkv.permute(3, 0, 1, 4, 2, 5)  # [n, W, heads, L, D]
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias.to(q.dtype)
    return (logits.softmax(-1) @ v).transpose(2, 3).flatten(3)


@contextlib.contextmanager
def eager_port():
    """Whole tensors from step to step and materialised attention: the network as one would port it."""
    with (
        mock.patch.object(attention, "attend", attend_materialised),
        mock.patch.object(swin3d, "plain_cpu", return_value=False),
    ):
        yield


def rows(case: str, path: Path, repeats: int) -> list[measure.Row]:
    """Forward passes of 32 x 224 x 224 clips; and file -> score."""
    return [*forward_rows(repeats), *file_rows(case, path, repeats)]


def forward_rows(
    repeats: int, *, size: str = "tiny", shape=(32, 224, 224), batches=None, dtypes=None
) -> Iterator[measure.Row]:
    """Clips per second for every batch and precision; on a GPU our network as a recorded graph too."""
    from torchvision.models.video import swin3d_t

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sync = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ours, theirs = VideoQuality(size).eval().to(device), swin3d_t().eval().to(device)
    for batch, dtype in itertools.product(batches or BATCHES[device.type], dtypes or DTYPES[device.type]):
        x = torch.randn(batch, 3, *shape, generator=torch.Generator().manual_seed(0)).to(device)

        def run(model, port=False, x=x, dtype=dtype):
            with computing(dtype, device), eager_port() if port else contextlib.nullcontext():
                return model(x)

        graphs = Graphs(lambda x, run=run: run(ours, x=x), ours)
        calls = {
            "torchvision swin3d_t": lambda run=run: run(theirs),
            "eager port": lambda run=run: run(ours, port=True),
            "sama": lambda run=run: run(ours),
        }
        if device.type == "cuda":
            calls["sama, recorded graph"] = lambda graphs=graphs, x=x: graphs(x)
            calls["sama, fused attention"] = lambda run=run: fused_attention(run, ours)
        providers = {name: functools.partial(inferred, call) for name, call in calls.items()}
        if dtype == "float32":
            error = (providers["eager port"]() - providers["sama"]()).norm() / providers["sama"]().norm()
            if not error <= AGREEMENT:
                raise RuntimeError(f"the model is {error:.2g} off its eager port")
        for _ in range(graphs.WARM_UP if device.type == "cuda" else 0):
            providers["sama, recorded graph"]()
        case = f"batch {batch}, {dtype}"
        seconds = measure.timed(f"model, {case}", providers, repeats, sync=sync)
        work = dict.fromkeys(providers, float(batch))
        notes = {"sama, recorded graph": f"not recorded: {graphs.problem}"} if graphs.problem else {}
        yield from measure.rows(case, "model", "clips/s", seconds, work, "torchvision swin3d_t", **notes)


def fused_attention(run: Callable[[VideoQuality], Tensor], model: VideoQuality) -> Tensor:
    """A forward pass with the kernels of `sama.kernels.attention`."""
    device = next(model.parameters()).device
    attention.choose_attention(model, "fused", device)
    try:
        return run(model)
    finally:
        attention.choose_attention(model, "plain", device)


@torch.inference_mode()
def inferred(call: Callable[[], Tensor]) -> Tensor:
    return call()


def file_rows(case: str, path: Path, repeats: int) -> list[measure.Row]:
    """Videos per second, four clips each."""
    model = random_model()
    slow = sama.VideoSampler(backend="reference")

    def slow_way():
        clips = published.from_rgb24(path, slow)
        with torch.inference_mode(), eager_port():
            return [float(model.module.score(clip[None].to(model.device))) for clip in clips]

    providers = {
        "every frame to rgb24, reference, eager port": slow_way,
        "sama": lambda: model.score(path).clips,
    }
    if not np.allclose(providers["sama"](), slow_way(), rtol=AGREEMENT, atol=1e-5):
        raise RuntimeError("the fast way from file to score does not give the score of the slow way")
    seconds = measure.timed(f"{case}: file to score", providers, max(1, repeats // 2))
    work = dict.fromkeys(providers, 1.0)
    return measure.rows(case, "file to score", "videos/s", seconds, work, "every frame to rgb24, reference, eager port")
