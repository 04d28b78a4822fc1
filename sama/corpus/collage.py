"""Synthetic scenes to train on, as many as are wanted: shapes of all sizes that cover one another, filled with pieces
of photographs, noise of natural spectra, patterns and gradients.

Images of overlapping shapes whose sizes follow a power law ("dead leaves", Lee, Mumford and Huang 2001) have edges and
contrasts at all scales, as photographs do, and networks that learnt from them alone work on photographs (Baradad et
al., arXiv 2106.05963). A network that is trained on hundreds of them cannot learn their contents by heart.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

OVER = 2  # a scene is drawn at this multiple of its size and reduced, so that its edges are smooth and sharp


def collage(width: int, height: int, photographs: Sequence[Image.Image], rng: np.random.Generator) -> Image.Image:
    """A scene, RGB, width x height pixels, drawn by `rng` alone. photographs: RGB, cut into pieces, never enlarged"""
    width, height = OVER * width, OVER * height
    scene = _filling((width, height), photographs, rng, share=0.85)
    smallest = rng.uniform(8, 24)
    longest = max(rng.uniform(0.3, 1.0) * min(width, height), smallest)
    for size in _sizes(longest, smallest, round(np.exp(rng.uniform(0, np.log(120)))), rng):
        box = _shape_box(size, rng)
        x, y = (int(rng.uniform(-length / 2, whole - length / 2)) for length, whole in zip(box, (width, height)))
        scene.paste(_filling(box, photographs, rng), (x, y), _shape(box, rng))
    return scene.reduce(OVER)


def cutout(size: int, photographs: Sequence[Image.Image], rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """An object to be moved before a scene, and its mask: RGB and L, of about size x size pixels."""
    box = _shape_box(size, rng)
    mask = Image.new("L", [length + 8 for length in box])  # a move by part of a pixel needs a margin
    mask.paste(_shape((OVER * box[0], OVER * box[1]), rng).reduce(OVER), (4, 4))
    return collage(*mask.size, photographs, rng), mask


def _sizes(longest: float, smallest: float, number: int, rng: np.random.Generator) -> list[float]:
    """Sizes of shapes in the order they are drawn: of a power law with exponent 2, larger ones mostly first."""
    sizes = 1 / rng.uniform(1 / longest, 1 / smallest, number)
    return list(sizes[np.argsort(-sizes * rng.uniform(0.4, 1, number))])


def _shape_box(size: float, rng: np.random.Generator) -> tuple[int, int]:
    """Width and height of a shape's bounding box, in a random ratio."""
    stretch = np.exp(rng.normal(0, 0.4))
    return max(4, round(size * stretch)), max(4, round(size / stretch))


def _shape(box: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """The mask, L, of an ellipse, a rectangle or a polygon that fills the box."""
    mask = Image.new("L", box)
    draw, (width, height) = ImageDraw.Draw(mask), box
    kind = rng.random()
    if kind < 0.4:
        draw.ellipse((0, 0, width - 1, height - 1), fill=255)
    elif kind < 0.45:
        draw.rectangle((0, 0, width, height), fill=255)
    else:
        corners = int(rng.integers(3, 12))
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
        radii = rng.uniform(0.4, 1, corners)
        points = np.stack([np.cos(angles) * radii * width / 2, np.sin(angles) * radii * height / 2], 1)
        draw.polygon([tuple(point) for point in points + np.array(box) / 2], fill=255)
    if rng.random() < 0.5:  # out of focus, most often slightly
        mask = mask.filter(ImageFilter.GaussianBlur(float(np.exp(rng.uniform(-0.7, 1.6)))))
    return mask


def _filling(
    box: tuple[int, int], photographs: Sequence[Image.Image], rng: np.random.Generator, share: float = 0.6
) -> Image.Image:
    """An image, RGB, to fill a shape with: with probability `share` a piece of a photograph. None has quite even areas:
    in a picture that a camera took, only compression makes them."""
    if photographs and rng.random() < share:
        return _piece(box, photographs[int(rng.integers(len(photographs)))], rng)
    pixels = (_shade, _pattern, _noise, _noise)[rng.integers(4)](box, rng)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _piece(box: tuple[int, int], photograph: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A part of a photograph, mirrored, its colours mixed and its contrast changed, at random; where the photograph is
    too small it is continued by its mirror image."""
    width, height = box
    across, down = width / OVER, height / OVER  # pixels in the finished scene
    most = min(photograph.width / across, photograph.height / down)
    reduction = min(max(most, 1), np.exp(rng.uniform(0, np.log(4))))
    across, down = min(across * reduction, photograph.width), min(down * reduction, photograph.height)
    x, y = rng.random(2) * (photograph.width - across, photograph.height - down)
    size = [round(OVER * length / reduction) for length in (across, down)]
    piece = photograph.resize(size, Image.Resampling.BICUBIC, (x, y, x + across, y + down))
    if rng.random() < 0.5:
        piece = piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.5:
        piece = piece.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    pixels = np.asarray(piece, np.float32)
    if rng.random() < 0.7:
        mixing = 0.7 * np.eye(3) + 0.3 * rng.dirichlet((0.5, 0.5, 0.5), 3)
        if rng.random() < 0.4:
            mixing = mixing[:, rng.permutation(3)]
        pixels = pixels @ mixing.astype(np.float32)
        pixels = (pixels - 128) * np.float32(rng.uniform(0.6, 1.3)) + np.float32(128 + rng.uniform(-40, 40))
    cut = np.clip(pixels, 0, 255).astype(np.uint8)[:height, :width]
    missing = [(0, max(length - had, 0)) for length, had in zip((height, width), cut.shape)]
    return Image.fromarray(np.pad(cut, (*missing, (0, 0)), "symmetric"))


def _colour(rng: np.random.Generator) -> np.ndarray:
    """A random colour [3], often greyish, seldom vivid."""
    grey = rng.uniform(10, 245)
    return np.clip(grey + rng.normal(0, rng.uniform(0, 40), 3), 0, 255)


def _shade(box: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A gradient from one colour to another in a random direction, with a faint texture."""
    first, second = _colour(rng), _colour(rng)
    width, height = box
    angle = rng.uniform(0, 2 * np.pi)
    x, y = np.linspace(-1, 1, width), np.linspace(-1, 1, height)[:, None]
    along = 0.5 + 0.35 * (np.cos(angle) * x + np.sin(angle) * y)
    return first + (rng.uniform(0.1, 1) * along)[..., None] * (second - first) + _texture(box, rng, 1, 8)


def _pattern(box: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Stripes, checks or waves of two colours, with a faint texture."""
    width, height = box
    period, angle = np.exp(rng.uniform(np.log(5), np.log(80))), rng.uniform(0, np.pi)
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    u = 2 * np.pi / period * (np.cos(angle) * x + np.sin(angle) * y)
    v = 2 * np.pi / period * (-np.sin(angle) * x + np.cos(angle) * y)
    wave = np.sin(u) if rng.random() < 0.5 else np.sin(u) * np.sin(v)
    hardness = np.exp(rng.uniform(0, 3))
    share = 0.5 + 0.5 * np.clip(wave * hardness, -1, 1)
    first, second = _colour(rng), _colour(rng)
    return first + share[..., None] * (second - first) + _texture(box, rng, 1, 8)


def _noise(box: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """One colour with a strong texture."""
    return _colour(rng) + _texture(box, rng, 5, 50)


def _texture(box: tuple[int, int], rng: np.random.Generator, least: float, most: float) -> np.ndarray:
    """Noise [H, W, 3] whose amplitude falls with the frequency to a power of 0.7 to 2. Its standard deviation is drawn
    from `least` to `most` grey levels, and differs a little between the colours."""
    width, height = box
    rows, columns = (1 << int(np.ceil(np.log2(min(length, 512)))) for length in (height, width))
    fy, fx = np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(columns)
    if rng.random() < 0.3:  # grain
        fx = fx * np.exp(rng.normal(0, 0.7))
    frequency = np.hypot(fy, fx)
    frequency[0, 0] = np.inf
    amplitude = frequency ** -rng.uniform(0.7, 2)
    amplitude[frequency > 0.25] *= 0.3  # too fine for the finished scene
    spectrum = rng.standard_normal(amplitude.shape) + 1j * rng.standard_normal(amplitude.shape)
    field = np.fft.irfft2(amplitude * spectrum, (rows, columns))
    field /= field.std() + 1e-9
    field = np.tile(field, (height // rows + 1, width // columns + 1))[:height, :width]
    return field[..., None] * rng.uniform(least, most) * (1 + 0.3 * rng.standard_normal(3))
