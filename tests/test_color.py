"""Matrices that FFmpeg's scaler does not know: YCgCo and BT.2020 with constant luminance, held to what was encoded."""

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter
from videos import picture

from sama.decode import color, open_video

SIZE = 96, 64
FORMATS = [("yuv444p", False), ("yuv444p", True), ("yuv420p", False), ("yuv422p10le", False), ("yuv444p12le", True)]


def ycgco(rgb):
    red, green, blue = np.moveaxis(rgb, -1, 0)
    return (red + 2 * green + blue) / 4, (2 * green - red - blue) / 4, (red - blue) / 2


def constant_luminance(rgb):
    light = np.where(rgb < 0.0812429, rgb / 4.5, ((rgb + 0.0992968) / 1.0992968) ** (1 / 0.45))
    y = light @ (0.2627, 0.6780, 0.0593)
    y = np.where(y < 0.0180540, 4.5 * y, 1.0992968 * np.maximum(y, 1e-9) ** 0.45 - 0.0992968)
    blue, red = rgb[..., 2] - y, rgb[..., 0] - y
    return y, blue / np.where(blue < 0, 1.9404, 1.5816), red / np.where(red < 0, 1.7182, 0.9938)


MATRICES = {"ycgco": (8, ycgco), "constant": (10, constant_luminance)}


def smooth(n):
    """A picture whose neighbours are alike, so that halved chroma is nearly its own: uint8 [H, W, 3]."""
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    waves = [128 + 100 * np.sin(x / 29 + c + n) * np.cos(y / 23 - c) for c in range(3)]
    return np.stack(waves, axis=-1).astype(np.uint8)


def write(path, matrix, pix_fmt, full_range):
    """Three frames, losslessly: the pictures that they are of."""
    tag, convert = MATRICES[matrix]
    shift = int(pix_fmt[-4:-2]) - 8 if pix_fmt.endswith("le") else 0
    first, span, chroma_span = (0, 255, 255) if full_range else (16, 219, 224)
    shown = [smooth(n) if pix_fmt.startswith("yuv42") else picture(n, *SIZE) for n in range(3)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        (stream.width, stream.height), stream.pix_fmt = SIZE, pix_fmt
        stream.codec_context.colorspace, stream.codec_context.color_range = tag, 2 if full_range else 1
        for rgb in shown:
            y, *chroma = convert(rgb / 255)
            planes = [first + span * y, *(128 + chroma_span * part for part in chroma)]
            frame = av.VideoFrame(*SIZE, pix_fmt)
            for plane, values in zip(frame.planes, planes, strict=True):
                rows, columns = SIZE[1] // plane.height, SIZE[0] // plane.width
                values = values.reshape(plane.height, rows, plane.width, columns).mean((1, 3))
                kind = np.uint16 if shift else np.uint8
                target = np.frombuffer(plane, kind).reshape(plane.height, -1)
                target[:, : plane.width] = np.rint(values * (1 << shift)).clip(0, (256 << shift) - 1)
            frame.colorspace, frame.color_range = tag, 2 if full_range else 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return shown


@pytest.mark.parametrize(("pix_fmt", "full_range"), FORMATS)
@pytest.mark.parametrize("matrix", MATRICES)
def test_frames_are_what_was_encoded(tmp_path, matrix, pix_fmt, full_range):
    shown = write(tmp_path / "x.mkv", matrix, pix_fmt, full_range)
    with open_video(tmp_path / "x.mkv", decoder="pyav") as video:
        frames = [frame.planes[0] for _, frame in video.frames(range(3))]
        again = [frame.planes[0] for _, frame in video.frames(range(3))]
    for frame, right, other in zip(frames, shown, again, strict=True):
        difference = np.abs(frame.astype(int) - right)
        deep = pix_fmt.endswith("12le")
        assert difference.max() <= (1 if deep else 5 if matrix == "ycgco" or "420" not in pix_fmt else 12)
        assert difference.mean() < (0.05 if deep else 1.5)
        np.testing.assert_array_equal(frame, other)


def test_ffmpeg_does_not_convert_them():
    """Once it does, its own conversion is the one to take."""
    for tag, _ in MATRICES.values():
        frame = av.VideoFrame(*SIZE, "yuv420p")
        frame.colorspace = tag
        with pytest.raises(OSError, match="not supported"):
            VideoReformatter().reformat(frame, format="rgb24")
    assert {*color.CONVERSIONS} == {tag for tag, _ in MATRICES.values()}
