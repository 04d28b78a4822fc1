"""Images: per second from the decoded image and from the file, beside the published chain and plain resizing.

Run by `python bench/throughput.py --images`. Test images are real photographs, enlarged, with grain, as JPEG of quality
92; made once, kept in `bench/clips`. In training mode the flip and the angle are always the same: a flip, 17 degrees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import measure
import media
import numpy as np
import torch
from measure import Row
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

import sama
from sama.backends import MEAN, STD
from sama.decode.images import read_image
from sama.kernels import reference
from sama.plan import draw_image

TURN = {"flip": True, "angle": 17.0}
TIES = 1e-3  # share of values at which a rotated coordinate may round to the other neighbour
PILLOWS_TURN = 0.05  # mean difference of a turn by Pillow, which rounds coordinates in another way, in deviations
PUBLISHED, TENSORS, SAMPLER, OURS = "published chain, Pillow", "published chain, tensors", "published sampler", "cpu"


class Size(NamedTuple):
    name: str
    width: int
    height: int


SIZES = (Size("0.2 MP", 512, 384), Size("0.8 MP", 1024, 768), Size("12 MP", 4000, 3000), Size("48 MP", 8000, 6000))
QUICK = SIZES[2:3]


def rows(sizes: Sequence[Size], repeats: int) -> Iterator[Row]:
    """All figures, printed as they come."""
    for size in sizes:
        path = image_path(size)
        for part in (training_rows, test_rows, file_rows, memory_rows):
            found = part(f"{size.name} ({size.width}x{size.height})", path, repeats)
            if found:
                measure.show(found)
            yield from found


def image_path(size: Size) -> Path:
    """The path of the test image of this size, made first if it is not there."""
    path = media.FOLDER / f"{size.width}x{size.height}.jpg"
    if not path.exists():
        import skimage.data

        media.FOLDER.mkdir(parents=True, exist_ok=True)
        photograph = Image.fromarray(skimage.data.coffee())
        picture = photograph.resize((size.width, size.height), Image.Resampling.BICUBIC)
        grain = np.random.default_rng(0).normal(0, media.GRAIN, (size.height, size.width, 1)).round().astype(np.int16)
        pixels = np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8)
        unfinished = path.with_suffix(".part")
        Image.fromarray(pixels).save(unfinished, "JPEG", quality=92)
        unfinished.replace(path)
    return path


def training_rows(case: str, path: Path, repeats: int) -> list[Row]:
    """Decoded image -> normalised input, flipped and rotated, images per second."""
    pixels, draws = _pixels(path)
    providers = {
        PUBLISHED: lambda: published(Image.fromarray(pixels), draws),
        TENSORS: lambda: sama.ImageSampler(backend="reference")(pixels, draws=draws, **TURN)[0],
        OURS: lambda: sama.ImageSampler(backend="cpu")(pixels, draws=draws, **TURN)[0],
    }
    expected = providers[TENSORS]()
    check(case, OURS, providers[OURS](), expected)
    off = float((providers[PUBLISHED]() - expected).abs().mean())
    if not off <= PILLOWS_TURN:
        raise RuntimeError(f"{case}: {PUBLISHED} is {off:.2g} deviations off the same chain on tensors")
    image = Image.fromarray(pixels)
    providers[PUBLISHED] = lambda: published(image, draws)
    return _timed(case, "training", "images/s", providers | _on_gpu(pixels, expected, draws=draws, **TURN), repeats)


def test_rows(case: str, path: Path, repeats: int) -> list[Row]:
    """Decoded image -> normalised input as for a score, and plain resizing, images per second."""
    pixels, _ = _pixels(path)
    image = Image.fromarray(pixels)
    providers = {
        SAMPLER: lambda: sama.ImageSampler(backend="reference")(pixels)[0],
        OURS: lambda: sama.ImageSampler(backend="cpu")(pixels)[0],
        "plain resize to 256x256, Pillow": lambda: resized(image),
        "plain resize to 256x256, tensors": lambda: resized(torch.from_numpy(pixels).permute(2, 0, 1)),
    }
    expected = providers[SAMPLER]()
    check(case, OURS, providers[OURS](), expected)
    plain = [name for name in providers if name.startswith("plain")]
    if any(providers[name]().shape != expected.shape for name in plain):
        raise RuntimeError(f"{case}: plain resizing does not give the shape {tuple(expected.shape)}")
    return _timed(case, "test", "images/s", providers | _on_gpu(pixels, expected), repeats)


def file_rows(case: str, path: Path, repeats: int) -> list[Row]:
    """JPEG file -> normalised training input, beside decoding alone, images per second."""
    _, draws = _pixels(path)

    def ours():
        return sama.ImageSampler(backend="cpu")(read_image(path), draws=draws, **TURN)[0]

    providers = {
        "decode alone, Pillow, as array": lambda: np.asarray(_opened(path)),
        "decode alone, Pillow, in its memory": lambda: _opened(path),
        "decode alone, read_image": lambda: read_image(path),
        "file to input, published chain, Pillow": lambda: published(_opened(path), draws),
        "file to input, read_image, cpu": ours,
    }
    arrays = [providers[name]() for name in ("decode alone, Pillow, as array", "decode alone, read_image")]
    if not np.array_equal(*arrays):
        raise RuntimeError(f"{case}: read_image does not give the pixels that Pillow gives")
    check(case, "file to input", ours(), sama.ImageSampler(backend="reference")(arrays[0], draws=draws, **TURN)[0])
    return _timed(case, "from file", "images/s", providers, repeats)


def memory_rows(case: str, path: Path, repeats: int) -> list[Row]:
    """Resident memory above the imports from the file to a training input, once each: MiB."""
    setup = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import images, torch, sama, sama.kernels.cpu
from pathlib import Path
path = Path({str(path)!r})
small = torch.zeros(8, 8, 3, dtype=torch.uint8)
sama.ImageSampler()(small, **images.TURN)
images.published(images.Image.fromarray(small.numpy()), images.draw_image("sama", 256, 256, generator=0))
draws = images._pixels(path, decode=False)[1]
"""
    works = {
        "file to input, published chain, Pillow": "images.published(images._opened(path), draws)",
        "file to input, read_image, cpu": "sama.ImageSampler()(images.read_image(path), draws=draws, **images.TURN)",
    }
    peaks = {name: measure.peak_memory(setup, work) for name, work in works.items()}
    base = next(iter(peaks.values()))
    return [
        Row(case, "peak memory", name, "MiB above import", peak, peak, peak, 1, peak / base)
        for name, peak in peaks.items()
    ]


def published(image: Image.Image, draws) -> torch.Tensor:
    """Enlarge, flip and rotate a picture by Pillow, then sample it whole: [3, 256, 256]."""
    short = min(image.size)
    if short < 256:
        image = image.resize(tuple(int(n * 256 / short) for n in image.size), Image.Resampling.BILINEAR)
    image = functional.horizontal_flip(image) if TURN["flip"] else image
    image = functional.rotate(image, TURN["angle"], interpolation=InterpolationMode.NEAREST)
    return sama.ImageSampler(backend="reference")(np.asarray(image), draws=draws)[0]


def resized(image: Image.Image | torch.Tensor) -> torch.Tensor:
    """Antialiased to 256x256 and normalised, as tools for models of a fixed input size do: [3, 256, 256]."""
    small = functional.resize(image, [256, 256], interpolation=InterpolationMode.BICUBIC, antialias=True)
    tensor = small if isinstance(small, torch.Tensor) else functional.pil_to_tensor(small)
    return reference.normalize(tensor[:, None].float(), MEAN, STD)[:, 0]


def check(case: str, name: str, got: torch.Tensor, expected: torch.Tensor):
    """RuntimeError unless two inputs agree to `measure.PIXEL` in 0..255, but for rounding ties."""
    off = (got.cpu() - expected.cpu()).abs() * max(STD) > measure.PIXEL
    if not (got.isfinite().all() and off.float().mean() <= TIES):
        raise RuntimeError(f"{case}: {name} differs from the reference at {off.float().mean():.2g} of the values")


def _pixels(path: Path, *, decode: bool = True):
    """A test image, uint8 [H, W, 3], and draws for it."""
    with Image.open(path) as image:
        draws = draw_image("sama", *sama.sampler.enlarged_size(image.height, image.width), generator=0)
    return read_image(path) if decode else None, draws


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
    return image


def _on_gpu(pixels: np.ndarray, expected: torch.Tensor, **settings):
    """The Triton kernel on an image that is on the GPU already, where there is one."""
    if not torch.cuda.is_available():
        return {}
    image, sampler = torch.from_numpy(pixels).cuda(), sama.ImageSampler(backend="triton")
    check("GPU", "triton", sampler(image, **settings)[0], expected)
    return {"triton, image on the GPU": lambda: sampler(image, **settings)[0]}


def _timed(case: str, metric: str, unit: str, providers, repeats: int) -> list[Row]:
    sync = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    seconds = measure.timed(f"{case}: {metric}", providers, repeats, sync=sync)
    return measure.rows(case, metric, unit, seconds, dict.fromkeys(providers, 1.0), next(iter(providers)))
