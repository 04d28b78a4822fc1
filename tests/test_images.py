"""Image files of every kind to pixels and to scores, images of any shape to the model's input."""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, features
from tolerances import PIXEL, VALUE, assert_close

import sama
import sama.sampler
from sama import DecodeError, cli
from sama.decode import images as image_files
from sama.decode.images import read_image
from sama.files import check_kind, expand
from sama.kernels import enlarge
from sama.model import QualityModel
from sama.models import ImageQuality
from sama.models.checkpoints import SETTINGS
from sama.scoring import score_files
from sama.tables import read_table

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (21, 34, 3), dtype=np.uint8)
needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")


def save(path, image, **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(path, **options)
    return path


def reason(path, **options):
    with pytest.raises(DecodeError) as error:
        read_image(path, **options)
    assert error.value.path == os.fsdecode(path)
    return error.value.reason


def png(width, height, data, *, bits=8, color=2, chunks=()):
    """A PNG put together by hand; data: scan lines, each after its filter byte."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def tiff(values, photometric, *, bits=None):
    """A TIFF put together by hand, little-endian, one strip; values: uint16 [H, W] or [H, W, 3], or raw bytes of 12-bit
    grey with `bits`."""
    height, width = values.shape[:2]
    samples = values.shape[2] if values.ndim == 3 else 1
    data = values.astype("<u2").tobytes()
    if bits == 12:
        flat = values.reshape(-1, 2).astype(int)
        data = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in flat)
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, samples, bits or 16), (259, 3, 1, 1)]
    tags += [(262, 3, 1, photometric), (273, 4, 1, 8), (277, 3, 1, samples), (278, 4, 1, height)]
    tags += [(279, 4, 1, len(data))]
    start = 8 + len(data)
    if samples == 3:
        tags[2] = (258, 3, 3, start)
        data, start = data + struct.pack("<3H", 16, 16, 16), start + 6
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<I", start) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize(
    "suffix", ["png", "bmp", "tif", "webp", "ppm", "gif", "jp2", pytest.param("avif", marks=needs_avif)]
)
def test_formats_give_back_their_pixels(tmp_path, suffix):
    options = {"webp": {"lossless": True}, "avif": {"quality": 100, "subsampling": "4:4:4"}}.get(suffix, {})
    picture = Image.fromarray(NOISE)
    picture = picture.quantize(256).convert("RGB") if suffix == "gif" else picture
    pixels = read_image(save(tmp_path / f"x.{suffix}", picture, **options))
    assert (pixels.dtype, pixels.shape) == (np.uint8, NOISE.shape)
    assert_close(pixels, np.asarray(picture), 4 if suffix == "avif" else 0)
    assert torch.equal(torch.from_numpy(pixels), torch.tensor(pixels))  # strides and writability that torch takes


@pytest.mark.parametrize("subsampling", [0, 1, 2], ids=["444", "422", "420"])
@pytest.mark.parametrize("progressive", [False, True], ids=["sequential", "progressive"])
def test_jpeg_as_pillow_decodes_it(tmp_path, monkeypatch, subsampling, progressive):
    """The two libjpeg-turbos agree to the bit, also on odd sizes and in grey."""
    for size in ((1, 1, 3), (21, 34, 3), (64, 48), (333, 211, 3)):
        picture = RNG.integers(90, 166, size, dtype=np.uint8)
        path = save(tmp_path / "x.jpg", picture, subsampling=subsampling, progressive=progressive, quality=80)
        with Image.open(path) as image:
            expected = np.asarray(image.convert("RGB"))
        assert (read_image(path) == expected).all()
        with path.open("rb") as file, Image.open(path) as image:
            assert (image_files._decode_jpeg(file, image) == expected).all()
        with monkeypatch.context() as patch:
            patch.setattr(image_files, "_decode_jpeg", lambda *_: None)
            assert (read_image(path) == expected).all()


def test_jpeg_needs_no_second_library(tmp_path, monkeypatch):
    path = save(tmp_path / "x.jpg", NOISE)
    expected = read_image(path)
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    assert (read_image(path) == expected).all()


def test_16_bits_keep_the_high_byte(tmp_path):
    """Pillow's own conversion of 16-bit grey clips: all but the darkest 1/256 would be white."""
    values = np.array([[0, 255, 256, 511], [32767, 32768, 65279, 65535]], np.uint16)
    high = np.array([[0, 0, 1, 1], [127, 128, 254, 255]], np.uint8)
    grey = np.repeat(high[..., None], 3, axis=2)
    assert (read_image(save(tmp_path / "grey.png", values)) == grey).all()
    assert (read_image(save(tmp_path / "grey.tif", values)) == grey).all()
    (tmp_path / "grey.pgm").write_bytes(b"P5 4 2 65535\n" + values.astype(">u2").tobytes())
    assert (read_image(tmp_path / "grey.pgm") == grey).all()
    (tmp_path / "inverted.tif").write_bytes(tiff(values, 0))
    assert (read_image(tmp_path / "inverted.tif") == 255 - grey).all()
    (tmp_path / "twelve.tif").write_bytes(tiff(values >> 4, 1, bits=12))
    assert (read_image(tmp_path / "twelve.tif") == grey).all()

    rgb = np.stack([values, values[::-1], values[:, ::-1]], axis=2)
    expected = np.stack([high, high[::-1], high[:, ::-1]], axis=2)
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rgb)
    (tmp_path / "rgb.png").write_bytes(png(4, 2, lines, bits=16))
    assert (read_image(tmp_path / "rgb.png") == expected).all()
    (tmp_path / "rgb.tif").write_bytes(tiff(rgb, 2))
    assert (read_image(tmp_path / "rgb.tif") == expected).all()


def test_transparency_is_laid_on_black(tmp_path):
    color, alpha = np.array([200, 100, 51]), np.array([0, 51, 128, 255])
    rgba = np.concatenate([np.broadcast_to(color, (1, 4, 3)), alpha.reshape(1, 4, 1)], axis=2).astype(np.uint8)
    expected = [[0, 0, 0], [40, 20, 10], [100, 50, 26], [200, 100, 51]]  # round(color * alpha / 255)
    assert read_image(save(tmp_path / "rgba.png", rgba)).tolist() == [expected]
    assert read_image(save(tmp_path / "rgba.webp", rgba, lossless=True, exact=True)).tolist() == [expected]
    la = Image.merge("LA", [Image.new("L", (4, 1), 200), Image.fromarray(rgba[..., 3])])
    assert read_image(save(tmp_path / "la.png", la)).tolist() == [[[v] * 3 for v, _, _ in expected]]

    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "L").convert("P")
    palette.putpalette([200, 100, 51] * 3)
    save(tmp_path / "several.png", palette, transparency=bytes([0, 51, 255]))
    assert read_image(tmp_path / "several.png").tolist() == [[expected[0], expected[1], expected[3]]]
    save(tmp_path / "one.gif", palette, transparency=1)
    assert read_image(tmp_path / "one.gif")[0, 1].tolist() == [0, 0, 0]

    (tmp_path / "key.png").write_bytes(
        png(2, 1, bytes([0, 9, 8, 7, 6, 5, 4]), chunks=[(b"tRNS", struct.pack(">3H", 9, 8, 7))])
    )
    assert read_image(tmp_path / "key.png").tolist() == [[[0, 0, 0], [6, 5, 4]]]
    (tmp_path / "key16.png").write_bytes(
        png(2, 1, b"\0\x12\x34\x12\x35", bits=16, color=0, chunks=[(b"tRNS", b"\x12\x34")])
    )
    assert read_image(tmp_path / "key16.png").tolist() == [[[0, 0, 0], [0x12] * 3]]


def test_other_colours(tmp_path):
    bits = np.array([[0, 1, 1, 0, 1]], bool)
    assert read_image(save(tmp_path / "bits.png", bits))[..., 0].tolist() == [[0, 255, 255, 0, 255]]
    assert read_image(save(tmp_path / "grey.jpg", NOISE[..., 0], quality=100)).std(axis=2).max() == 0
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for name in ("cmyk.jpg", "cmyk.tif"):  # Pillow writes the JPEG as Adobe does, inverted and marked so
        assert_close(read_image(save(tmp_path / name, red)), np.broadcast_to([255, 0, 0], (16, 16, 3)), 2)
    dark = Image.new("CMYK", (16, 16), (0, 0, 0, 155))
    assert_close(read_image(save(tmp_path / "dark.jpg", dark)), np.full((16, 16, 3), 100), 2)


def test_colour_profiles_change_nothing(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for name in ("x.png", "x.jpg"):
        plain = read_image(save(tmp_path / name, NOISE))
        assert (read_image(save(tmp_path / name, NOISE, icc_profile=profile)) == plain).all()


def test_animations_give_their_first_frame(tmp_path):
    frames = [Image.new("RGB", (20, 10), color) for color in ("#ff0000", "#00ff00", "#0000ff")]
    for name in ("a.gif", "a.png", "a.webp", "a.tif"):
        options = {"lossless": True} if name == "a.webp" else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        with Image.open(tmp_path / name) as image:
            assert image.n_frames == 3
        assert (read_image(tmp_path / name) == [255, 0, 0]).all()


ORIENTED = {  # where the row and the column numbered from 0 are shown, by EXIF 2.3, section 4.6.4 A
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", ORIENTED)
def test_orientation(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth = np.add.outer(np.arange(21) * 6, np.arange(34) * 3).astype(np.uint8)[..., None].repeat(3, axis=2)
    expected = ORIENTED[orientation](NOISE)
    for name in ("x.png", "x.webp", "x.tif", "x.jpg", "small-strips.png"):
        picture, tolerance = (smooth, 4) if name == "x.jpg" else (NOISE, 0)
        save(tmp_path / name, picture, exif=exif, **({"lossless": True} if name == "x.webp" else {}))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(image_files, "STRIP_PIXELS", 5 * 34 if "strips" in name else image_files.STRIP_PIXELS)
            pixels = read_image(tmp_path / name)
        assert_close(pixels, ORIENTED[orientation](picture), tolerance)
        assert min(pixels.strides) > 0
    x = sama.ImageSampler()(read_image(tmp_path / "x.png"))
    assert torch.equal(x, sama.ImageSampler()(np.ascontiguousarray(expected)))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_senseless_orientation_is_none(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert (read_image(save(tmp_path / "x.png", NOISE, exif=exif)) == NOISE).all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_data_cost_no_image(tmp_path):
    for exif in (b"Exif\0\0", b"Exif\0\0garbage", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\x01\0"):
        path = save(tmp_path / "x.jpg", NOISE, exif=exif)
        assert read_image(path).shape == NOISE.shape


def test_sizes_are_looked_at_before_anything_is_decoded(tmp_path):
    assert reason(save(tmp_path / "x.png", NOISE), max_pixels=21 * 34 - 1) == (
        "34x21 are more than 713 pixels (--max-pixels)"
    )
    assert read_image(tmp_path / "x.png", max_pixels=21 * 34).shape == NOISE.shape
    (tmp_path / "bomb.png").write_bytes(png(60_000, 60_000, bytes(1000)))
    assert "60000x60000 are more than 268,435,456 pixels" in reason(tmp_path / "bomb.png")
    (tmp_path / "none.png").write_bytes(png(0, 5, b"\0"))
    assert "PNG header cannot be read (no pixels" in reason(tmp_path / "none.png")


def test_jpegs_of_scans_without_end(tmp_path):
    """Each scan is a pass over all pixels, and 31 bytes long: 3,000 of them took minutes."""
    path = tmp_path / "x.jpg"
    Image.new("RGB", (64, 48)).save(path, progressive=True)
    data = path.read_bytes()
    scan = data[data.rfind(b"\xff\xda") : -2]
    path.write_bytes(data[:-2] + 80 * scan + data[-2:])
    assert read_image(path).shape == (48, 64, 3)
    path.write_bytes(data[:-2] + 100 * scan + data[-2:])
    assert reason(path) == "a JPEG of more than 100 scans"
    thumbnail = b"\xff\xe2" + (2 + 20 * len(scan)).to_bytes(2, "big") + 20 * scan  # of another picture
    path.write_bytes(data[:2] + 9 * thumbnail + data[2:])
    assert read_image(path).shape == (48, 64, 3)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", None])
def test_a_large_tiff_is_read_in_spite_of_pillows_own_limit(tmp_path, compression, monkeypatch):
    """Pillow warns from 89 megapixels on, and calls from 179 on damaged; here from 200 and 400 pixels on."""
    save(tmp_path / "x.tif", NOISE, **({"compression": compression} if compression else {}))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    assert (read_image(tmp_path / "x.tif") == NOISE).all()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures memory as Linux tells it")
def test_100_megapixels(tmp_path):
    """More than Pillow's own limit allows without a warning; the memory it takes is near that of the pixels."""
    side = 10_000
    path = tmp_path / "large.jpg"
    Image.new("L", (side, side), 77).convert("RGB").save(path, quality=30)
    code = """
import resource, sys, warnings
warnings.simplefilter("error")
import numpy as np, simplejpeg
from sama.decode.images import read_image
read_image(sys.argv[2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pixels = read_image(sys.argv[1])
print(pixels.shape, int(pixels[::1000, ::1000].min()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    small = save(tmp_path / "small.jpg", NOISE)
    run = subprocess.run([sys.executable, "-c", code, path, small], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    *said, kib = run.stdout.rsplit(maxsplit=1)
    assert said == ["(10000, 10000, 3) 77"]
    assert int(kib) < 330_000  # 3 bytes a pixel are 293,000


def test_files_that_are_none(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no image at all, although of some length\n")
    (tmp_path / "postscript.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    assert reason(tmp_path / "pipe.png") == "is no ordinary file (a pipe, a socket or a device)"
    assert reason(tmp_path / "folder.png") == "is a folder, not an image"
    assert reason(tmp_path / "empty.png") == "is empty, 0 bytes"
    assert reason(tmp_path / "gone.png") == "no such file"
    for name in ("text.jpg", "postscript.jpg"):
        assert reason(tmp_path / name).startswith("not an image in a format that is read here (JPEG, PNG, WEBP")
    assert reason(save(tmp_path / "float.tif", np.ones((4, 4), np.float32))).startswith("its pixels are floating point")
    assert reason(save(tmp_path / "long.tif", np.ones((4, 4), np.int32))).startswith("its pixels are 32-bit integers")
    assert reason(save(tmp_path / "lab.tif", Image.new("LAB", (4, 4)))) == "its colours are CIELAB: convert it to RGB"


def test_names_of_formats_do_not_count(tmp_path):
    save(tmp_path / "x.png", NOISE)
    (tmp_path / "x.png").rename(tmp_path / "x.jpg")
    assert (read_image(tmp_path / "x.jpg") == NOISE).all()


def test_heic(tmp_path, monkeypatch):
    """With pillow-heif it is read; without, the reason says what is missing."""
    (tmp_path / "x.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    with monkeypatch.context() as patch:
        patch.setattr(image_files, "find_spec", lambda name: None)
        patch.delitem(Image.OPEN, "HEIF", raising=False)
        assert reason(tmp_path / "x.heic") == "HEIC image: reading it takes pillow-heif (pip install pillow-heif)"
    heif = pytest.importorskip("pillow_heif")
    assert "pillow-heif" not in reason(tmp_path / "x.heic")
    heif.from_pillow(Image.fromarray(NOISE).resize((64, 64))).save(tmp_path / "x.heic", quality=90)
    assert read_image(tmp_path / "x.heic").shape == (64, 64, 3)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, on damaged metadata
@pytest.mark.parametrize(
    "suffix", ["jpg", "png", "webp", "tif", "gif", "bmp", "jp2", pytest.param("avif", marks=needs_avif)]
)
def test_damage_is_a_reason_and_nothing_else(tmp_path, suffix):
    """Cut at 20 places, and with bytes changed in 60 ways: pixels or a `DecodeError`, never another exception."""
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = save(tmp_path / f"whole.{suffix}", NOISE, **({} if suffix in ("bmp", "gif", "jp2") else {"exif": exif}))
    content, path = whole.read_bytes(), tmp_path / f"x.{suffix}"
    refused = 0
    for k in range(80):
        data = bytearray(content[: len(content) * k // 20] if k < 20 else content)
        if k >= 20:
            for at in RNG.integers(0, len(data) if k % 2 else 100, 4).tolist():
                data[at] = int(RNG.integers(0, 256))
        path.write_bytes(data)
        try:
            pixels = read_image(path)
        except DecodeError:
            refused += 1
        else:
            assert (pixels.dtype, pixels.ndim, pixels.shape[2]) == (np.uint8, 3, 3)
            assert k != 0
    assert refused >= 10


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 700), (17, 300), (200, 3), (255, 256), (100, 255)])
def test_pixels_of_an_enlargement_are_pillows(size):
    image = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
    height, width = (n * 256 // min(size) for n in size)
    expected = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    y, x = RNG.integers(0, height, 5000), RNG.integers(0, width, 5000)
    y[:4], x[:4] = (0, 0, height - 1, height - 1), (0, width - 1, 0, width - 1)
    assert (enlarge.pixels(image, height, width, y, x) == expected[y, x]).all()


@pytest.mark.parametrize("grid", [(8, 8), (12, 10)], ids=str)
@pytest.mark.parametrize("mode", ["sama", "sama-spm", "fragment"])
def test_taps_of_an_enlargement_are_sampled_as_the_whole(monkeypatch, mode, grid):
    images = [RNG.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((3, 60), (100, 90))]
    for backend, tolerance in (("cpu", 0.0), ("reference", 2 * PIXEL)):
        sampler = sama.ImageSampler(mode, grid, normalize=False, backend=backend)
        for train in (False, True):
            monkeypatch.setattr(sama.sampler, "LARGEST_COPY", 1 << 30)
            whole = sampler(images, train=train, generator=1)
            monkeypatch.setattr(sama.sampler, "LARGEST_COPY", 0)
            outliers = 1e-3 if train and backend == "reference" else 0.0  # rounding ties of a rotation
            assert_close(sampler(images, train=train, generator=1), whole, tolerance, outliers=outliers)


def test_long_images_stay_small():
    """2 x 4000 becomes 256 x 512000 in the published code, 1 x 5000 a gigabyte: here no array of that kind is made."""
    sampler, ramp = sama.ImageSampler(normalize=False), np.arange(4000) * 255 // 3999
    row = np.broadcast_to(ramp[None, :, None], (2, 4000, 3)).astype(np.uint8)
    x = sampler([row, row.transpose(1, 0, 2)])
    # fragment j lies in the middle of the j-th eighth: source column 4000 * (j + 0.5) / 8
    expected = (4000 * (np.arange(8) + 0.5) / 8 * 255 / 4000).repeat(32)
    assert_close(x[0, 0], np.broadcast_to(expected, (256, 256)), 1.5)
    assert torch.equal(x[1], x[0].transpose(1, 2))
    assert sampler(np.zeros((1, 65_535, 3), np.uint8), train=True).shape == (1, 3, 256, 256)
    with pytest.raises(ValueError, match="70000x1 pixels is too narrow: enlarged to 256"):
        sampler(np.zeros((1, 70_000, 3), np.uint8))


@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
@pytest.mark.parametrize("train", [False, True], ids=["test", "train"])
def test_ragged_batches(backend, train):
    if backend == "triton" and torch.cuda.is_available():
        pytest.skip("numpy images are for the CPU; test_fused.py has the GPU")
    sizes = [(1, 1), (300, 40), (257, 1024), (1, 700), (480, 300)]
    if backend != "reference":
        sizes += [(3000, 4000), (1000, 260)]
    images = [RNG.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    sampler = sama.ImageSampler(backend=backend)
    turns = {"flip": [k % 2 == 0 for k in range(len(images))], "angle": np.linspace(-45, 45, len(images)).tolist()}
    turns = turns if train else {}
    draws = [RNG.random((2, 8, 8), np.float32) for _ in images] if train else [None] * len(images)
    batch = sampler(images, draws=draws if train else None, **turns)
    assert batch.shape == (len(images), 3, 256, 256)
    assert batch.isfinite().all()
    for k, image in enumerate(images):
        alone = {name: values[k] for name, values in turns.items()}
        assert torch.equal(sampler(image, draws=[draws[k]] if train else None, **alone)[0], batch[k])
    expected = sama.ImageSampler(backend="cpu")(images, draws=draws if train else None, **turns)
    assert_close(batch, expected, 2 * VALUE, outliers=1e-3 if train else 0.0)


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = ImageQuality("nano").eval()
    return QualityModel(module, {**SETTINGS["image"], "kind": "image", "mode": "sama"}, "nano", "cpu")


@pytest.fixture(scope="module")
def odd_files(tmp_path_factory):
    """A folder of 50 files: what can be read, and by name why the others cannot."""
    root = tmp_path_factory.mktemp("odd")
    noise = {size: RNG.integers(0, 256, (*size[::-1], 3), dtype=np.uint8) for size in ((60, 50), (300, 280))}
    small, large = (Image.fromarray(noise[size]) for size in noise)
    exif = Image.Exif()
    good = []

    def add(name, image, **options):
        good.append(save(root / name, image, **options).name)

    for name in ("a.jpg", "a.jpeg", "a.jfif", "a.png", "a.webp", "a.tif", "a.tiff", "a.bmp", "a.gif", "a.jp2", "a.ppm"):
        add(name, large)
    for orientation in (3, 6, 8):
        exif[0x0112] = orientation
        add(f"turned-{orientation}.jpg", small, exif=exif)
    add("progressive.jpg", large, progressive=True)
    add("grey.jpg", small.convert("L"))
    add("cmyk.jpg", small.convert("CMYK"))
    add("grey16.png", RNG.integers(0, 65536, (40, 50)).astype(np.uint16))
    add("grey16.tif", RNG.integers(0, 65536, (40, 50)).astype(np.uint16))
    (root / "rgb16.tif").write_bytes(tiff(RNG.integers(0, 65536, (40, 50, 3)), 2))
    good.append("rgb16.tif")
    add("palette.png", small.quantize(9))
    add("transparent-palette.png", small.quantize(9), transparency=3)
    add("alpha.png", Image.merge("RGBA", [*small.split(), small.getchannel(0)]))
    add("grey-alpha.png", Image.merge("LA", [small.getchannel(1), small.getchannel(0)]))
    add("bits.png", small.convert("1"))
    add("moving.gif", small, save_all=True, append_images=[small.rotate(90)])
    add("moving.png", small, save_all=True, append_images=[small.rotate(90)])
    add("pages.tif", small, save_all=True, append_images=[small.rotate(90)], compression="tiff_lzw")
    add("1x1.png", small.crop((0, 0, 1, 1)))
    add("5000x1.png", Image.fromarray(RNG.integers(0, 256, (1, 5000, 3), dtype=np.uint8)))
    add("1x5000.png", Image.fromarray(RNG.integers(0, 256, (5000, 1, 3), dtype=np.uint8)))
    add("umlaut ü 日本.png", small)
    save(root / "png-inside.png", small)
    (root / "png-inside.png").rename(root / "png-inside.jpg")
    good.append("png-inside.jpg")

    bad = {
        "empty.png": "is empty",
        "text.jpg": "not an image in a format",
        "cut.jpg": "truncated",
        "cut.png": "damaged image",
        "cut.webp": "damaged image",
        "cut.tif": "damaged image",
        "cut.gif": "damaged image",
        "header-only.jpg": "damaged image",
        "bomb.png": "60000x60000 are more than",
        "noise-in-png.png": "damaged image",
        "zero.png": "no pixels",
        "float.tif": "floating point",
        "long.tif": "32-bit integers",
        "lab.tif": "CIELAB",
        "70000x1.png": "70000x1 pixels is too narrow",
        "pipe.png": "no ordinary file",
        "dangling.png": "no such file",
    }
    (root / "empty.png").write_bytes(b"")
    (root / "text.jpg").write_text("no image at all\n" * 9)
    for name in ("cut.jpg", "cut.png", "cut.webp", "cut.tif", "cut.gif"):
        content = (root / f"a{Path(name).suffix}").read_bytes()
        (root / name).write_bytes(content[: len(content) * 2 // 3])
    (root / "header-only.jpg").write_bytes((root / "a.jpg").read_bytes()[:40])
    (root / "bomb.png").write_bytes(png(60_000, 60_000, bytes(99)))
    (root / "noise-in-png.png").write_bytes(png(60, 50, RNG.bytes(60)))
    (root / "zero.png").write_bytes(b"P6 0 4 255\n")
    save(root / "float.tif", np.ones((9, 9), np.float32))
    save(root / "long.tif", np.ones((9, 9), np.int32))
    save(root / "lab.tif", Image.new("LAB", (9, 9)))
    save(root / "70000x1.png", Image.new("RGB", (70_000, 1)))
    os.mkfifo(root / "pipe.png")
    (root / "dangling.png").symlink_to("nowhere")
    return root, good, bad


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, on damaged metadata
def test_a_folder_of_50_odd_files(odd_files, model):
    """Every readable one scored, every other named with its own reason; the score does not depend on the workers."""
    root, good, bad = odd_files
    paths = expand([str(root)], kind="image")
    assert len(paths) == len(good) + len(bad) == 50
    rows = list(score_files(paths, model, workers=3, batch=4))
    assert [row.path for row in rows] == paths
    by_name = {Path(row.path).name: row for row in rows}
    assert {name for name, row in by_name.items() if row.status == "ok"} == set(good)
    assert all(np.isfinite(by_name[name].score) for name in good)
    for name, expected in bad.items():
        row = by_name[name]
        assert (row.status, row.score) == ("error", None)
        assert expected in row.reason, f"{name}: {row.reason}"
    assert (by_name["turned-6.jpg"].width, by_name["turned-6.jpg"].height) == (50, 60)
    assert (by_name["5000x1.png"].width, by_name["5000x1.png"].height) == (5000, 1)
    again = {Path(row.path).name: row.score for row in score_files(paths[::-1], model, workers=1)}
    assert again == {name: row.score for name, row in by_name.items()}
    assert by_name["a.png"].score == model.score(root / "a.png").score == model.score(read_image(root / "a.png")).score


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, on damaged metadata
def test_the_command_takes_a_folder_of_images(odd_files, tmp_path, monkeypatch, capsys):
    """Also with random weights, which are an image model's where all files are images."""
    root, good, bad = odd_files
    monkeypatch.setattr(QualityModel, "token_maps", lambda self, x: torch.full((len(x), 8, 8), 0.25))
    out = tmp_path / "scores.csv"
    arguments = ["score", str(root), "--random-weights", "--device", "cpu", "--workers", "3", "--out", str(out)]
    assert cli.main(arguments) == 1
    printed = capsys.readouterr()
    assert f"{len(good)} scored, {len(bad)} failed" in printed.err
    assert f"{root / 'float.tif'}: its pixels are floating point" in printed.out
    rows = {Path(row.path).name: row for row in read_table(out)}
    assert {name for name, row in rows.items() if row.score == 0.25} == set(good)
    assert {name for name, row in rows.items() if row.status == "error" and row.reason} == set(bad)


def test_libraries_write_nothing_to_the_terminal(tmp_path, monkeypatch, capfd):
    """What they say lacks the file's name: the row has what matters."""
    monkeypatch.setattr(QualityModel, "token_maps", lambda self, x: torch.full((len(x), 8, 8), 0.25))
    lzw = save(tmp_path / "lzw.tif", NOISE, compression="tiff_lzw").read_bytes()
    (tmp_path / "lzw.tif").write_bytes(lzw[:100] + b"\xff" * 200 + lzw[300:])
    deflated = save(tmp_path / "deflated.tif", NOISE, compression="tiff_adobe_deflate").read_bytes()
    (tmp_path / "deflated.tif").write_bytes(deflated[:200] + bytes(50) + deflated[250:])
    save(tmp_path / "exif.jpg", NOISE, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    paths = [str(tmp_path / name) for name in ("lzw.tif", "deflated.tif", "exif.jpg")]
    for path in paths[:2]:
        reason(path)
    assert "code" in capfd.readouterr().err  # libtiff speaks to whoever uses it without the command
    assert cli.main(["score", *paths, "--random-weights", "--device", "cpu"]) == 1
    printed = capfd.readouterr()
    assert f"{tmp_path / 'lzw.tif'}: damaged image" in printed.out
    said = [line for line in printed.err.splitlines() if line and not line.startswith("compiling")]
    assert [line.partition(" ")[0] for line in said] == ["model:", "1", "the"]
    reason(paths[0])
    assert "code" in capfd.readouterr().err  # and does so again


def test_a_gif_is_an_image_or_a_video(tmp_path):
    gif, still = save(tmp_path / "x.gif", NOISE), save(tmp_path / "x.png", NOISE)
    for kind in ("image", "video"):
        check_kind(gif, kind)
    check_kind(still, "image")
    with pytest.raises(DecodeError, match="is an image; the model scores videos"):
        check_kind(still, "video")
    assert expand([str(tmp_path)], kind="image") == [str(gif), str(still)]
    assert expand([str(tmp_path)], kind="video") == []


def test_the_process_is_left_as_it_was(tmp_path):
    """No limit, filter or format of Pillow's is changed for other users of it in the process."""
    limit, formats = Image.MAX_IMAGE_PIXELS, list(Image.ID)
    read_image(save(tmp_path / "x.png", NOISE))
    assert limit == Image.MAX_IMAGE_PIXELS
    assert list(Image.ID)[: len(formats)] == formats
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(png(60_000, 60_000, bytes(9))))
