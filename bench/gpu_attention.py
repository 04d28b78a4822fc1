"""Attention within windows on a GPU: the fused kernels beside the plain way, in stages (a) and (b)."""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from gpu_run import Run
from torch import Tensor

from sama.kernels import attention as kernels
from sama.models.attention import Attention
from sama.models.precision import computing
from sama.models.windows import WINDOW, Windows

GRID = (7, 7)
DTYPES = ("float32", "bfloat16", "float16")
CLOSE = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 4e-3}  # of values around 1, beside float64


class Layer(NamedTuple):
    """Where a network attends: map, width, heads, and whether windows are shifted."""

    size: tuple[int, int, int]
    width: int
    heads: int
    shifted: bool

    @property
    def windows(self) -> Windows:
        return Windows.fit(self.size, WINDOW, shifted=self.shifted)

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.size))}, {self.heads} heads{', shifted' if self.shifted else ''}"


TINY = [  # the stages of a Swin-T for a clip of 32 frames
    Layer((16, 56, 56), 96, 3, False),
    Layer((16, 56, 56), 96, 3, True),
    Layer((16, 28, 28), 192, 6, True),
    Layer((16, 14, 14), 384, 12, True),
    Layer((16, 7, 7), 768, 24, False),
]
ODD = Layer((9, 17, 24), 64, 2, True)
SMALL = Layer((2, 3, 3), 16, 1, False)


def attention(run: Run) -> None:
    """Outputs and gradients of the fused kernels and of the plain way, beside the plain way in float64."""
    wrong = []
    cases = [*itertools.product(run.pick([ODD, *TINY], [SMALL]), run.pick(DTYPES, DTYPES[:1]))]
    compile_side_by_side(run, [(*case, None) for case in cases])
    for layer, dtype in cases:
        part, x, weights = inputs(layer, run.device, batch=run.pick(2, 1))
        right = outcome(part.double(), x.double(), weights.double(), layer, "float32", fused=False)
        part.float()
        for fused in (False, True):
            found, again = (outcome(part, x, weights, layer, dtype, fused=fused) for _ in range(2))
            errors = [distance(one, other) for one, other in zip(found, right)]
            same = all(map(torch.equal, found, again))
            run.row(
                layer=str(layer),
                dtype=dtype,
                attention="fused" if fused else "plain",
                output_error=errors[0],
                input_gradient_error=errors[1],
                table_gradients_error=max(errors[2:]),
                repeats_itself=same,
            )
            if fused and not (max(errors) <= CLOSE[dtype] and same):
                wrong.append(f"{layer}, {dtype}")
    if wrong:
        raise RuntimeError(f"the fused kernels are off, or differ between calls: {wrong}")


def inputs(layer: Layer, device: torch.device, batch: int) -> tuple[Attention, Tensor, Tensor]:
    """A module whose bias matters, a map, and weights of the output's sum."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        part = Attention(layer.width, layer.heads, gated=True, scale_bias=True)
        for name, parameter in part.named_parameters():
            torch.nn.init.normal_(parameter, 0, 0.8 if "table" in name else 1.5 * layer.width**-0.5)
        x, weights = (torch.randn(batch, *layer.size, layer.width) for _ in range(2))
    return part.to(device), x.to(device), weights.to(device)


def outcome(part: Attention, x: Tensor, weights: Tensor, layer: Layer, dtype: str, *, fused: bool) -> list[Tensor]:
    """Output, and the gradients of input and tables."""
    x = x.detach().requires_grad_()
    with computing(dtype, x.device):
        y = forward(part, x, layer, fused=fused)
    tables = [parameter for name, parameter in part.named_parameters() if "table" in name]
    with computing(dtype, x.device, backward=True):
        return [y.detach(), *torch.autograd.grad((y * weights).sum(), [x, *tables])]


def forward(part: Attention, x: Tensor, layer: Layer, *, fused: bool) -> Tensor:
    """The map after attention, as a block of the network has it."""
    windows = layer.windows
    if fused:
        return part.by_kernel(x, windows, GRID)
    y, padding = windows.split(x), windows.padding(x.device)
    if padding is not None:
        y = y.masked_fill(padding, 0)
    return windows.join(part(y, part.bias(windows, GRID, x)))


def distance(found: Tensor, right: Tensor) -> float:
    """Norm of the difference over the norm of what is right."""
    return float((found.double() - right).norm() / right.norm())


def attention_speed(run: Run) -> None:
    """Milliseconds of a layer by attention and by the kernels' configuration: forward alone, and a training step.

    Both have the layer's own matrix products, of queries, keys and values and of the projection.
    """
    layers = run.pick([TINY[1], TINY[3]], [SMALL])
    plans = run.pick(CONFIGURATIONS, {"float32": []})
    compile_side_by_side(run, [(layer, *plan) for layer in layers for plan in every(plans)])
    batch = run.pick(8, 1)
    for layer, dtype in itertools.product(layers, plans):
        part, x, weights = inputs(layer, run.device, batch)
        for way, block in ways(plans[dtype]):
            with configured(block):
                try:
                    infer, step, peak = timed(run, part, x, weights, layer, dtype, fused=way == "fused")
                    problem = ""
                except Exception as error:  # too much shared memory, say
                    infer = step = float("nan")
                    peak, problem = 0, str(error).partition("\n")[0]
            run.row(
                layer=str(layer),
                dtype=dtype,
                batch=batch,
                attention=way,
                block="" if block is None else " ".join(map(str, block)),
                forward_ms=infer,
                forward_and_backward_ms=step,
                peak_mib=peak / 2**20,
                problem=problem,
            )


Plan = tuple[str, kernels.Configuration | None]
CONFIGURATIONS = {  # queries, keys, warps, stages
    "bfloat16": [
        kernels.Configuration(*values)
        for values in (
            (128, 32, 4, 2),
            (128, 64, 8, 2),
            (64, 64, 4, 2),
            (64, 32, 4, 3),
            (64, 32, 4, 1),
            (32, 64, 4, 2),
            (32, 32, 4, 2),
            (16, 32, 4, 1),
        )
    ],
    "float32": [kernels.Configuration(*values) for values in ((32, 32, 4, 1), (64, 32, 8, 2), (16, 32, 4, 1))],
}


def every(plans: dict[str, list[kernels.Configuration]]) -> list[Plan]:
    """Precisions with all their configurations, None for the kernels' own."""
    return [(dtype, block) for dtype, blocks in plans.items() for block in [None, *blocks]]


def compile_side_by_side(run: Run, cases: list[tuple[Layer, str, kernels.Configuration | None]]) -> None:
    """Leave the kernels of all cases in Triton's cache; before this process touches the GPU."""
    if run.rehearsal:
        return
    with multiprocessing.get_context("fork").Pool(12) as pool:
        for problem in pool.imap_unordered(compiled, cases):
            if problem:
                print(problem, flush=True)


def ways(plans: list[kernels.Configuration]) -> Iterator[tuple[str, kernels.Configuration | None]]:
    """Kinds of attention, and of the fused one its own configurations, then one for all kernels."""
    yield "plain", None
    yield "fused", None
    for block in plans:
        yield "fused", block


@contextmanager
def configured(block: kernels.Configuration | None) -> Iterator[None]:
    """Within the block every kernel has this configuration; None leaves each its own."""
    own = kernels.configuration
    if block is not None:
        kernels.configuration = lambda kernel, dtype, major: block
    try:
        yield
    finally:
        kernels.configuration = own


def timed(
    run: Run, part: Attention, x: Tensor, weights: Tensor, layer: Layer, dtype: str, *, fused: bool
) -> tuple[float, float, int]:
    """Milliseconds of a forward pass without gradients and of one with a backward pass, and the latter's peak."""

    def infer() -> None:
        with torch.no_grad(), computing(dtype, run.device):
            forward(part, x, layer, fused=fused)

    def step() -> None:
        outcome(part, x, weights, layer, dtype, fused=fused)

    repeats = run.pick(20, 1)
    forward_s = float(np.median(run.seconds(infer, repeats)))
    step_s = float(np.median(run.seconds(step, repeats)))
    return 1e3 * forward_s, 1e3 * step_s, run.peak_bytes(step)


def compiled(case: tuple[Layer, str, kernels.Configuration | None]) -> str:
    """Leaves the kernels of a case in Triton's cache; what went wrong, or nothing."""
    layer, dtype, block = case
    device = torch.device("cuda")
    try:
        with configured(block):
            outcome(*inputs(layer, device, batch=1), layer, dtype, fused=True)
            torch.cuda.synchronize()
    except Exception as error:
        return f"{layer}, {dtype}, {block}: {str(error)[:300]}"
    return ""
