"""The kinds of degradation of a set made of masters: real encoders, ladders, and what cameras, editors, networks do.

`kinds(ffmpeg)` gives them by name, as `sama.corpus.degrade.Kind`, whose strengths run from hardly visible to awful.
What an encoder's user would choose beside the strength (preset, codec, kernel) is drawn by the content's name and the
strength. The file of a version is the output of its last encoder; where the last step is none, a nearly lossless one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from sama.corpus.codec import FPS, Stream
from sama.corpus.degrade import Kind, blur, motion_blur, noise, seeded
from sama.corpus.ffmpeg import Ffmpeg
from sama.corpus.i420 import change_planes, split_planes

KEPT: Mapping[str, str] = {"preset": "superfast", "crf": "12", "x264-params": "cpu-independent=1"}
KERNELS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
ENCODERS = ("libx264", "libx265", "libvpx-vp9", "libsvtav1", "mpeg2video", "mpeg4", "mjpeg")
FINEST, WORST = 0.04, 1.0  # share of the worst, of kinds that mix several steps
LOST: dict[str, Any] = {"weakest": 0.003, "strongest": 0.4, "bend": 2}  # strengths of lost packets
SLICE_ROWS = 120  # about, of an H.264 slice, which is lost as a whole


def kept(frames: np.ndarray) -> Stream:
    """Frames for a nearly lossless file."""
    return Stream(frames, "libx264", KEPT)


def between(share: float, best: float, worst: float) -> float:
    """The value at a share of the way from the best to the worst."""
    return best + share * (worst - best)


# Encoders: (frames, share of the worst, generator for what is drawn) -> Stream


def x264(frames: np.ndarray, share: float, rng: np.random.Generator) -> Stream:
    preset = str(rng.choice(["ultrafast", "veryfast", "faster", "medium"]))
    options = {"preset": preset, "crf": f"{between(share, 17, 51):.2f}", "x264-params": "cpu-independent=1"}
    return Stream(frames, "libx264", options)


def x264_rate(frames: np.ndarray, share: float, rng: np.random.Generator) -> Stream:
    preset = str(rng.choice(["ultrafast", "veryfast", "faster"]))
    return Stream(frames, "libx264", {"preset": preset, **rate(frames, share), "x264-params": "cpu-independent=1"})


def x265(frames: np.ndarray, share: float, rng: np.random.Generator) -> Stream:
    preset = str(rng.choice(["ultrafast", "superfast", "faster"]))
    params = "pools=none:frame-threads=1:wpp=0:log-level=none"
    return Stream(frames, "libx265", {"preset": preset, "crf": f"{between(share, 18, 51):.2f}", "x265-params": params})


def vp9(frames: np.ndarray, share: float, rng: np.random.Generator) -> Stream:
    speed = {"deadline": "realtime", "cpu-used": str(rng.integers(5, 9))}
    return Stream(frames, "libvpx-vp9", {"crf": f"{between(share, 18, 63):.0f}", "b:v": "0", **speed, "row-mt": "0"})


def vp9_rate(frames: np.ndarray, share: float, rng: np.random.Generator) -> Stream:
    speed = {"deadline": "realtime", "cpu-used": str(rng.integers(5, 9)), "row-mt": "0"}
    return Stream(frames, "libvpx-vp9", {**rate(frames, share, constant=True), **speed})


def svtav1(frames: np.ndarray, share: float, rng: np.random.Generator) -> Stream:
    options = {"crf": f"{between(share, 22, 63):.0f}", "preset": str(rng.integers(8, 13)), "svtav1-params": "lp=1"}
    return Stream(frames, "libsvtav1", options)


def mpeg2(frames: np.ndarray, share: float, rng: np.random.Generator) -> Stream:
    return Stream(frames, "mpeg2video", {**quantiser(share), "g": str(rng.choice([12, 15, 48])), "bf": "2"})


def mpeg2_rate(frames: np.ndarray, share: float, rng: np.random.Generator) -> Stream:
    return Stream(frames, "mpeg2video", {**rate(frames, share * 0.8), "g": "15", "bf": "2"})


def mpeg4(frames: np.ndarray, share: float, rng: np.random.Generator) -> Stream:
    return Stream(frames, "mpeg4", {**quantiser(share), "g": str(rng.choice([12, 48, 250])), "bf": "2"})


def mjpeg(frames: np.ndarray, share: float, rng: np.random.Generator) -> Stream:
    return Stream(frames, "mjpeg", quantiser(share))


def quantiser(share: float) -> dict[str, str]:
    """A fixed quantiser of 2 to 31, evenly on a logarithmic scale."""
    q = f"{2 * 15.5**share:.0f}"
    return {"qmin": q, "qmax": q}


def rate(frames: np.ndarray, share: float, *, constant: bool = False) -> dict[str, str]:
    """A bit rate of 0.25 to 0.004 bits a pixel, evenly on a logarithmic scale, with a buffer of half a second."""
    pixels = frames.shape[1] * 2 // 3 * frames.shape[2]
    bits = max(round(0.25 * 0.016**share * pixels * FPS), 20_000)
    limits = {"b:v": str(bits), "maxrate": str(bits), "bufsize": str(bits // 2)}
    return limits | ({"minrate": str(bits)} if constant else {})


Encoder = Callable[[np.ndarray, float, np.random.Generator], Stream]
STREAMING: tuple[Encoder, ...] = (x264, x264, x265, vp9, svtav1)
OLDER: tuple[Encoder, ...] = (mpeg2, mpeg4, x264, x264_rate, mjpeg, x265)


def resample(frames: np.ndarray, width: int, height: int, kernel: Image.Resampling) -> np.ndarray:
    """Frames of another size, even; what shrinks is antialiased."""
    out = np.empty((len(frames), height * 3 // 2, width), np.uint8)
    for before, after in zip(frames, out):
        for source, target in zip(split_planes(before), split_planes(after)):
            target[:] = Image.fromarray(source).resize(target.shape[::-1], kernel)
    return out


def shrunk(frames: np.ndarray, factor: float) -> np.ndarray:
    """Frames smaller by a factor, as a streaming service makes the lower rungs of its ladder."""
    width, height = frames.shape[2], frames.shape[1] * 2 // 3
    even = [max(2 * round(length / factor / 2), 16) for length in (width, height)]
    return resample(frames, even[0], even[1], Image.Resampling.LANCZOS)


def enlarged(frames: np.ndarray, like: np.ndarray, kernel: str) -> np.ndarray:
    """Frames of the size of others."""
    return resample(frames, like.shape[2], like.shape[1] * 2 // 3, KERNELS[kernel])


def defocus(frames: np.ndarray, radius: float) -> np.ndarray:
    """Blur by a disk, its radius in pixels of luma: a lens out of focus."""
    return change_planes(frames, lambda plane, n: disk_mean(plane.astype(np.float32), radius / (2 if n else 1)))


def disk_mean(plane: np.ndarray, radius: float) -> np.ndarray:
    """Means over disks, float32 [H, W]; row after row of a disk is a difference of sums along the rows."""
    reach = int(np.ceil(radius)) + 1
    padded = np.pad(plane, reach, mode="edge")
    sums = np.pad(np.cumsum(padded, axis=1, dtype=np.float64), ((0, 0), (1, 0)))
    height, width = plane.shape
    total, area = np.zeros(plane.shape), 0.0
    for dy in range(-reach + 1, reach):
        half = np.sqrt(max((radius + 0.25) ** 2 - dy * dy, 0.0))
        whole = int(half)
        rows = sums[reach + dy : reach + dy + height]
        for extent, weight in ((whole, 1 - (half - whole)), (whole + 1, half - whole)):
            if half and weight:
                first = reach - extent
                length = 2 * extent + 1
                total += weight * (rows[:, first + length : first + length + width] - rows[:, first : first + width])
                area += weight * length
    return (total / area).astype(np.float32) if area else plane


def film_grain(frames: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Grain of film: clumps of 1 to 3 pixels, strongest in middle tones, new in every frame; `strength` grey levels."""
    clump = rng.uniform(0.4, 1.1)
    height, width = frames.shape[1] * 2 // 3, frames.shape[2]
    field = gaussian_filter(rng.standard_normal((height + 64, width + 64), np.float32), clump, truncate=3)
    field *= np.float32(strength / field.std())
    tones = np.arange(256) / 255
    gain = (4 * tones * (1 - tones)).astype(np.float32)

    def add(plane, n):
        top, left, turn = rng.integers(64), rng.integers(64), rng.integers(4)
        grain = field[top : top + plane.shape[0], left : left + plane.shape[1]]
        grain = grain[:: 1 - 2 * int(turn & 1), :: 1 - int(turn & 2)]
        return plane + grain * (np.float32(0.3) if n else gain[plane])

    return change_planes(frames, add)


def sharpen(frames: np.ndarray, amount: float, radius: float) -> np.ndarray:
    """Unsharp masking of luma: `amount` times what a Gaussian of that radius removes is added."""

    def change(plane, n):
        if n:
            return plane
        plane = plane.astype(np.float32)
        return plane + np.float32(amount) * (plane - gaussian_filter(plane, radius, truncate=3))

    return change_planes(frames, change)


def banding(frames: np.ndarray, step: float) -> np.ndarray:
    """Fewer tones: each plane in steps of so many grey levels."""
    table = np.clip(np.floor(np.arange(256) / step) * step + (step - 1) / 2, 0, 255)
    return change_planes(frames, lambda plane, n: table[plane])


def hold(frames: np.ndarray, length: float) -> np.ndarray:
    """A lower frame rate: every shown frame is held for `length` frames on average, in place of those after it."""
    shown = np.ceil(np.round(np.floor(np.arange(len(frames)) / length) * length, 6)).astype(int)
    return frames[np.minimum(shown, np.arange(len(frames)))]


def freeze(frames: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Dropped frames: at random, in bursts, the frame before is shown in place of about `share` of all."""
    shown, held = np.zeros(len(frames), int), 0
    for t in range(1, len(frames)):
        if held == 0 and rng.random() < share / 3:
            held = int(rng.integers(1, 7))
        shown[t] = shown[t - 1] if held else t
        held = max(held - 1, 0)
    return frames[shown]


def judder(frames: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Repeated frames: some are shown twice or more and push the others back, until dropped ones catch up."""
    shown, late = np.zeros(len(frames), int), 0
    for t in range(1, len(frames)):
        draw = rng.random()
        late = late + 1 if draw < share / 2 else max(late - int(rng.integers(1, 4)), 0) if draw < share else late
        shown[t] = max(t - late, shown[t - 1])
    return frames[shown]


def lose_packets(data: bytes, share: float, rng: np.random.Generator, *, mpeg2: bool) -> bytes:
    """A raw H.264 or MPEG-2 stream without about `share` of its slices, lost in bursts. The first slice of each
    picture, and all of the first picture, are kept: the number of frames stays."""
    starts = [match.start() for match in re.finditer(b"\0\0\1", data)] + [len(data)]
    out, first_picture, new_picture, losing = [data[: starts[0]]], True, True, 0
    for at, end in pairwise(starts):
        code = data[at + 3]
        is_slice = 1 <= code <= 0xAF if mpeg2 else code & 31 in (1, 5)
        begins = code == 1 if mpeg2 else is_slice and bool(data[at + 4] & 0x80)  # its first macroblock is number 0
        if begins:
            first_picture, new_picture = new_picture, False
        losing = max(losing - 1, 0)
        if is_slice and not losing and rng.random() < share / 2.5:
            losing = int(rng.integers(1, 5))
        if not (is_slice and losing and not begins and not first_picture):
            out.append(data[at:end])
    return b"".join(out)


def kinds(ffmpeg: Ffmpeg) -> dict[str, Kind]:
    """All kinds by name; their encoders run in that FFmpeg."""

    def encoded(name: str, encoder: Encoder) -> Kind:
        return Kind(0, 1, "share of the worst", lambda f, s, c: encoder(f, s, seeded(c, name, s)))

    def pixels(name: str, change: Callable[[np.ndarray, float, np.random.Generator], np.ndarray]) -> Callable:
        return lambda f, s, c: kept(change(f, s, seeded(c, name, s)))

    def mixed(name: str, apply: Callable[[np.ndarray, float, np.random.Generator], Stream]) -> Kind:
        return Kind(FINEST, WORST, "share of the worst", lambda f, s, c: apply(f, s, seeded(c, name, s)))

    def ladder(kernel: str) -> Callable[[np.ndarray, float, np.random.Generator], Stream]:
        def apply(frames, share, rng):
            a, b = share * rng.uniform(0.4, 1, 2)
            encoder = STREAMING[rng.integers(len(STREAMING))]
            small = ffmpeg.transcode(encoder(shrunk(frames, 1.2 + 3.8 * a), 0.85 * b, rng))
            return kept(enlarged(small, frames, kernel))

        return apply

    def enlarge(frames, factor, rng):
        return enlarged(shrunk(frames, factor), frames, str(rng.choice(list(KERNELS))))

    def first_noise(frames, share, rng):
        a, b = share * rng.uniform(0.3, 1, 2)
        return x264(noise(frames, 1 + 20 * a, str(rng.integers(1 << 30))), 0.8 * b, rng)

    def first_grain(frames, share, rng):
        a, b = share * rng.uniform(0.3, 1, 2)
        return (x265, svtav1)[rng.integers(2)](film_grain(frames, 2 + 18 * a, rng), 0.8 * b, rng)

    def then_noise(frames, share, rng):
        a, b = share * rng.uniform(0.3, 1, 2)
        coded = ffmpeg.transcode(STREAMING[rng.integers(len(STREAMING))](frames, 0.85 * b, rng))
        return kept(noise(coded, 1 + 15 * a, str(rng.integers(1 << 30))))

    def then_grain(frames, share, rng):
        a, b = share * rng.uniform(0.3, 1, 2)
        coded = ffmpeg.transcode(STREAMING[rng.integers(len(STREAMING))](frames, 0.85 * b, rng))
        return kept(film_grain(coded, 2 + 15 * a, rng))

    def blur_first(frames, share, rng):
        a, b = share * rng.uniform(0.3, 1, 2)
        return x264(blur(frames, 0.4 + 2.6 * a), 0.8 * b, rng)

    def sharpen_then(frames, share, rng):
        a, b = share * rng.uniform(0.3, 1, 2)
        coded = ffmpeg.transcode(STREAMING[rng.integers(len(STREAMING))](frames, 0.85 * b, rng))
        return kept(sharpen(coded, 0.3 + 2.5 * a, rng.uniform(0.8, 2)))

    def generations(frames, share, rng):
        for _ in range(1 + int(share > 0.35) + int(share > 0.7)):
            frames = ffmpeg.transcode(OLDER[rng.integers(len(OLDER))](frames, 0.75 * share * rng.uniform(0.6, 1), rng))
        return STREAMING[rng.integers(len(STREAMING))](frames, 0.75 * share, rng)

    def lost_h264(frames, share, rng):
        params = f"cpu-independent=1:slices={max(frames.shape[1] // SLICE_ROWS, 4)}"
        options = {"preset": "veryfast", "crf": "21", "x264-params": params, "bf": "0"}
        data = ffmpeg.encode(Stream(frames, "libx264", options), "pipe:1", "h264")
        return kept(ffmpeg.decode_damaged(lose_packets(data, share, rng, mpeg2=False), "h264", frames.shape))

    def lost_mpeg2(frames, share, rng):
        stream = Stream(frames, "mpeg2video", {"qmin": "3", "qmax": "3", "g": "15", "bf": "0"})
        data = ffmpeg.encode(stream, "pipe:1", "mpeg2video")
        return kept(ffmpeg.decode_damaged(lose_packets(data, share, rng, mpeg2=True), "mpegvideo", frames.shape))

    return {
        "x264": encoded("x264", x264),
        "x264-rate": encoded("x264-rate", x264_rate),
        "x265": encoded("x265", x265),
        "vp9": encoded("vp9", vp9),
        "vp9-rate": encoded("vp9-rate", vp9_rate),
        "svtav1": encoded("svtav1", svtav1),
        "mpeg2": encoded("mpeg2", mpeg2),
        "mpeg2-rate": encoded("mpeg2-rate", mpeg2_rate),
        "mpeg4": encoded("mpeg4", mpeg4),
        "mjpeg": encoded("mjpeg", mjpeg),
        "ladder-bilinear": mixed("ladder-bilinear", ladder("bilinear")),
        "ladder-bicubic": mixed("ladder-bicubic", ladder("bicubic")),
        "ladder-lanczos": mixed("ladder-lanczos", ladder("lanczos")),
        "enlarged": Kind(1.2, 6, "factor", pixels("enlarged", enlarge), bend=1.3),
        "blur": Kind(0.4, 4, "sigma, pixels", pixels("blur", lambda f, s, r: blur(f, s)), bend=1.8),
        "defocus": Kind(0.5, 6, "radius, pixels", pixels("defocus", lambda f, s, r: defocus(f, s)), bend=1.8),
        "motion-blur": Kind(1.5, 18, "pixels", lambda f, s, c: kept(motion_blur(f, s, c)), bend=1.8),
        "noise": Kind(1, 30, "sigma, grey levels", lambda f, s, c: kept(noise(f, s, c)), bend=1.6),
        "grain": Kind(1, 30, "grey levels", pixels("grain", film_grain), bend=1.6),
        "noise+x264": mixed("noise+x264", first_noise),
        "grain+encoder": mixed("grain+encoder", first_grain),
        "encoder+noise": mixed("encoder+noise", then_noise),
        "encoder+grain": mixed("encoder+grain", then_grain),
        "blur+x264": mixed("blur+x264", blur_first),
        "sharpen": Kind(
            0.3, 6, "amount", pixels("sharpen", lambda f, s, r: sharpen(f, s, r.uniform(0.7, 2.5))), bend=1.5
        ),
        "encoder+sharpen": mixed("encoder+sharpen", sharpen_then),
        "banding": Kind(2, 40, "grey levels", pixels("banding", lambda f, s, r: banding(f, s)), bend=1.5),
        "transcodes": mixed("transcodes", generations),
        "stutter": Kind(1.1, 10, "frames a picture is held", lambda f, s, c: kept(hold(f, s)), bend=1.5),
        "freeze": Kind(0.05, 0.8, "share of frames", pixels("freeze", freeze), bend=1.3),
        "judder": Kind(0.05, 0.8, "share of frames", pixels("judder", judder), bend=1.3),
        "lost-h264": replace(mixed("lost-h264", lost_h264), **LOST, unit="share of slices"),
        "lost-mpeg2": replace(mixed("lost-mpeg2", lost_mpeg2), **LOST, unit="share of slices"),
    }
