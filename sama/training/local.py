"""Labels for every fragment, where the undegraded file is known: what a label says of a whole clip is spread over it.

A clip's label is one number, and a network learns slowly which of its fragments the number is about. Where the
undegraded version of a file is at hand, the same fragments of it are sampled (`CachedFeed`), and how faithful each one
is can be measured. A small regressor of these measurements, whose mean over the fragments is fitted to the labels, then
gives each fragment a label of its own: it may look at the reference, which the network that learns from it may not.
Nothing of this is needed to score. Fragments are squares of 32x32 pixels here: one that the sampler cuts may hold
several.

Measured on luma of each frame, the mean over the two frames of a patch:

    information   of the visual information fidelity (Sheikh and Bovik, "Image information and visual quality", 2006),
                  at four scales, the fragment's borders mirrored: what is kept, and what there was
    detail        of three scales of a Haar transform, as in the detail loss of Li et al. ("Image quality assessment by
                  separately evaluating detail losses and additive impairments", 2011): what is kept, what there was
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sama.kernels.layout import PATCH

SCALES, DETAILS = 4, 3
MEASURES = 2 * (SCALES + DETAILS)  # kept, there was; of each scale
NOISE = 2.0  # variance of the eye's noise, of values 0..255, as libvmaf has it
LUMA = (0.299, 0.587, 0.114)
FLOOR = 1e-2  # of measurements, below which a fragment is flat
EPOCHS, BATCH, LR = 10, 64, 3e-3  # of the regressor's fit
LEAST, MOST = 300, 2000  # steps of it
EVEN = 0.02  # weight of the variance over a clip's fragments in that fit


def measure(reference: Tensor, shown: Tensor, grid: tuple[int, int]) -> Tensor:
    """How faithful each fragment of patches is: float32 `[T/2, rows, columns, MEASURES]`.

    reference, shown: uint8 or float patches `[T/2, H/4, W/4, 96]`, 0..255, sampled by the same draws
    """
    planes = [_fragments(x, grid) for x in (reference, shown)]  # [T/2 * rows * columns * 2, 1, h, w]
    values = torch.stack([*_information(*planes), *_details(*planes)], -1)
    return values.unflatten(0, (len(reference), *grid, PATCH[0])).mean(3)


def local_labels(measured: Tensor, labels: Tensor, *, seed: int) -> Tensor:
    """A label for each fragment, whose mean over a clip is the clip's: float32, of the shape of `measured` without its
    last axis, NaN where that is NaN.

    measured: float32 `[files, clips, ..., MEASURES]`, of clips of the files, NaN of those that were not measured
    labels: float32 `[files]`, best of mean 0 and deviation 1
    """
    shape = measured.shape
    measured = measured.flatten(2, -2)  # [files, clips, fragments, MEASURES]
    known = measured.isfinite().all((2, 3))
    files, clips = known.nonzero(as_tuple=True)
    out = torch.full(measured.shape[:3], torch.nan)
    if len(files):
        features = _features(measured[files, clips])
        wanted = labels[files]
        local = _fit(features, wanted, seed=seed)
        out[files, clips] = local + (wanted - local.mean(1))[:, None]
    return out.reshape(shape[:-1])


def local_loss(prediction: Tensor, local: Tensor) -> Tensor:
    """Smooth L1, quadratic below 1/2, between values of tokens and labels of fragments of the same shape, over those
    that have a label; zero where none has."""
    known = local.isfinite()
    if not known.any():
        return (prediction * 0).sum()
    return F.smooth_l1_loss(prediction[known], local[known], beta=0.5)


def _fragments(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Luma of the fragments of patches, float32 `[T/2 * rows * columns * 2, 1, h, w]`."""
    rows, columns = grid
    x = x.float().unflatten(-1, (3, *PATCH))
    luma = torch.einsum("thwcfyx,c->thwfyx", x, torch.tensor(LUMA))
    luma = luma.unflatten(2, (columns, -1)).unflatten(1, (rows, -1))  # [T/2, rows, h/4, columns, w/4, 2, 4, 4]
    return luma.permute(0, 1, 3, 5, 2, 6, 4, 7).flatten(4, 5).flatten(5, 6).flatten(0, 3)[:, None]


def _information(reference: Tensor, shown: Tensor) -> list[Tensor]:
    """For each scale the information that is kept and that there was, `[N]` each, bits a pixel."""
    out = []
    for scale in range(SCALES):
        kernel = 2 ** (SCALES - scale) + 1  # pixels
        if scale:
            reference, shown = (_blurred(x, kernel)[..., ::2, ::2] for x in (reference, shown))
        mean_r, mean_s = _blurred(reference, kernel), _blurred(shown, kernel)
        power_r = (_blurred(reference * reference, kernel) - mean_r * mean_r).clamp_min(0)
        power_s = (_blurred(shown * shown, kernel) - mean_s * mean_s).clamp_min(0)
        common = _blurred(reference * shown, kernel) - mean_r * mean_s
        gain = common / (power_r + 1e-10)
        rest = torch.where(common < 0, power_s, power_s - gain * common).clamp_min(1e-10)
        gain = gain.clamp(0, 1)  # sharpening adds no information
        kept = torch.log2(1 + gain * gain * power_r / (rest + NOISE))
        out += [kept.mean((1, 2, 3)), torch.log2(1 + power_r / NOISE).mean((1, 2, 3))]
    return out


def _details(reference: Tensor, shown: Tensor) -> list[Tensor]:
    """For each scale the mean size of the details that are kept and that there were, `[N]` each."""
    out = []
    for _ in range(DETAILS):
        (reference, details), (shown, kept) = map(_haar, (reference, shown))
        share = torch.where(details == 0, 0.0, kept / details).clamp(0, 1)
        out += [(share * details).abs().mean((1, 2, 3)), details.abs().mean((1, 2, 3))]
    return out


def _haar(x: Tensor) -> tuple[Tensor, Tensor]:
    """The means of blocks of 2x2, and their three details; an odd row or column at the end is left out."""
    x = x[..., : x.shape[-2] // 2 * 2, : x.shape[-1] // 2 * 2]
    a, b, c, d = x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]
    return (a + b + c + d) / 4, torch.cat([a - b + c - d, a + b - c - d, a - b - c + d], 1) / 2


def _blurred(x: Tensor, size: int) -> Tensor:
    """`[N, 1, h, w]` blurred by a Gaussian of `size` pixels a side, borders mirrored (as far as a small picture can
    be)."""
    return _blur(x.shape[2], size) @ x @ _blur(x.shape[3], size).T


@cache
def _blur(length: int, size: int) -> Tensor:
    """The matrix `[length, length]` that blurs pixels in a line: convolving so many small pictures takes
    twice to five times as long."""
    reach = size // 2
    x = torch.arange(size) - reach
    weights = torch.exp(-(x**2) / (2 * (size / 5) ** 2))
    places = np.pad(np.arange(length), reach, mode="symmetric" if length <= reach else "reflect")
    matrix = torch.zeros(length, length)
    for row in range(length):
        for place, weight in zip(places[row : row + size], weights / weights.sum()):
            matrix[row, place] += weight
    return matrix


def _features(measured: Tensor) -> Tensor:
    """What the regressor sees, `[..., 3 * (SCALES + DETAILS)]`."""
    kept, there = measured[..., ::2] + FLOOR, measured[..., 1::2] + FLOOR
    return torch.cat([kept / there, there.log(), kept.log()], -1)


def _fit(features: Tensor, labels: Tensor, *, seed: int) -> Tensor:
    """Values of fragments `[clips, fragments]`, from features `[clips, fragments, F]` and labels `[clips]`."""
    x = (features - features.mean((0, 1))) / (features.std((0, 1)) + 1e-6)
    steps = min(max(EPOCHS * len(x) // BATCH, LEAST), MOST)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(x.shape[-1], 48), nn.GELU(), nn.Linear(48, 48), nn.GELU(), nn.Linear(48, 1))
        optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=1e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            some = torch.randint(len(x), (min(BATCH, len(x)),))
            values = net(x[some]).squeeze(-1)
            loss = F.mse_loss(values.mean(1), labels[some]) + EVEN * values.var(1, correction=0).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return net(x).squeeze(-1)
