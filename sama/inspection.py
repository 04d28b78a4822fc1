"""One picture of a score: the frame, what the model gets of it, where it finds quality, and how that goes in time."""

from __future__ import annotations

import os

import numpy as np
import torch

from sama.backends import MEAN, STD
from sama.decode import Video, decode_with
from sama.decode.images import read_image
from sama.figures import check_format, save_figure
from sama.files import check_kind, printable
from sama.kernels import reference
from sama.limits import Guard, Limits
from sama.model import QualityModel

COLORS = "RdYlGn"  # low quality red, high green


def quality_map(tokens: torch.Tensor, height: int, width: int) -> np.ndarray:
    """Token values [h, w] laid over a picture: float32 [height, width], each cell with the value of its token.

    The token at (i, j) has seen the fragment that was cut from cell (i, j) of every level, so that its place on the
    source is that cell.
    """
    rows = np.arange(height) * tokens.shape[0] // height
    columns = np.arange(width) * tokens.shape[1] // width
    return tokens.numpy()[rows[:, None], columns]


def draw(
    path: str | os.PathLike,
    model: QualityModel,
    out: str | os.PathLike,
    *,
    every_seconds: float | None = None,
    decoder: str = "auto",
    limits: Limits | None = None,
):
    """Draw the page and write it to `out`, in the format that its ending names. limits: what the file may cost

    `sama.DecodeError` for a file that cannot be read, `InputError` for a format that cannot be written, `OutputError`
    where `out` cannot be.
    """
    from matplotlib.figure import Figure

    check_format(out)
    check_kind(path, model.kind)
    guard = Guard(os.fsdecode(path), limits or Limits())
    if model.kind == "image":
        picture = read_image(path, max_pixels=guard.limits.image_pixels)
        inputs = model.sampler(picture)
        maps = model.token_maps(inputs)
        mosaics, values, seconds = [mosaic(inputs[0][:, None], 0)], maps.flatten(1).double().mean(1).tolist(), []
    else:
        picture, mosaics, maps, values, seconds = _watch(path, model, every_seconds, decoder, guard)
    figure = Figure(figsize=(12, 7.2), layout="constrained")
    grid = figure.add_gridspec(2, 6, height_ratios=(3, 2))
    _picture(figure.add_subplot(grid[0, :3]), picture, "frame in the middle")
    _map(figure, figure.add_subplot(grid[0, 3:]), picture, maps.float())
    _inputs(figure, grid[1, :3] if seconds else grid[1, :], mosaics)
    if seconds:
        _timeline(figure.add_subplot(grid[1, 3:]), seconds, values)
    mos, scale = model.mos(float(np.mean(values)))
    calibrated = f", {mos:.2f} on the scale of {scale}" if mos is not None else ""
    name = printable(os.path.basename(os.fsdecode(path)))
    of = f" ({model.score_scale})" if model.score_scale else ""
    title = f"{name}: {np.mean(values):.4f}{of}{calibrated}\n{model.name}; {model.describe(every_seconds)}"
    figure.suptitle(title, fontsize=9, parse_math=False)
    save_figure(figure, out)


def _watch(path, model: QualityModel, every_seconds, decoder, guard: Guard):
    """The middle frame, mosaics of the middle clip, and every clip's mean map, value and time: memory does not grow."""

    def watch(video: Video):
        maps, values = [], []
        seconds, clips = model.sample(video, every_seconds)
        guard.allow_clips(len(seconds))
        middle = len(seconds) // 2
        for number, clip in enumerate(guard.outside(clips)):
            tokens = model.counted(model.token_maps(clip[None]))[0]
            maps.append(tokens.mean(0))
            values.append(float(tokens.double().mean()))
            if number == middle:
                picture_input = reference.join(clip.cpu(), model.sampler.layout)
        (_, frame), *_ = video.frames([video.info.num_frames // 2])
        picture = reference.to_rgb(frame).cpu().numpy()
        steps = sorted({0, picture_input.shape[1] // 2, picture_input.shape[1] - 1})
        return picture, [mosaic(picture_input, t) for t in steps], torch.stack(maps), values, seconds.tolist()

    return decode_with(watch, path, decoder=decoder, device=model.device, guard=guard)


def mosaic(x: torch.Tensor, t: int) -> np.ndarray:
    """Frame t of a normalised input [3, T, Sh, Sw] as a picture, uint8 [Sh, Sw, 3]."""
    picture = x[:, t].permute(1, 2, 0).float() * torch.tensor(STD) + torch.tensor(MEAN)
    return picture.round().clamp(0, 255).to(torch.uint8).numpy()


def _picture(axis, picture: np.ndarray, title: str):
    axis.imshow(picture)
    axis.set_title(title, fontsize=9)
    axis.set_axis_off()


def _map(figure, axis, picture: np.ndarray, maps: torch.Tensor):
    """maps: of clips, [..., h, w]; a model of scene statistics alone has one value for the whole picture."""
    if maps.shape[-2:] == (1, 1):
        return _picture(axis, picture, "no quality map: this model scores the picture as a whole")
    _picture(axis, picture, "quality map, mean over time")
    low, high = maps.min().item(), maps.max().item()
    cells = quality_map(maps.flatten(0, -3).mean(0), *picture.shape[:2])
    overlay = axis.imshow(cells, cmap=COLORS, vmin=low, vmax=high, alpha=0.5)
    figure.colorbar(overlay, ax=axis, shrink=0.8, label="score of a token")


def _inputs(figure, place, mosaics: list[np.ndarray]):
    titles = ["input: first step", "middle", "last"] if len(mosaics) == 3 else ["input"]
    for cell, picture, title in zip(place.subgridspec(1, len(mosaics)), mosaics, titles + [""] * 2):
        _picture(figure.add_subplot(cell), picture, title)


def _timeline(axis, seconds: list[float], values: list[float]):
    axis.plot(seconds, values, marker="o", markersize=3, color="#1670a8")
    axis.set_xlabel("seconds")
    axis.set_ylabel("score of a clip")
    axis.set_title("timeline", fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
