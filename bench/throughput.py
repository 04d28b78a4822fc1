"""How fast videos become the model's input, step by step and end to end, beside the published way of doing it.

    python bench/throughput.py [FILE ...] [--quick] [--repeats N] [--sizes 540p,1080p,2160p] [--decoders] [--train]
                               [--out F.csv]
    python bench/throughput.py --images [--quick] [--repeats N] [--out F.csv]

Without files it makes its own test clips, once: real photographs, panned and zoomed, 10 s of H.264 at 540p, 1080p and
2160p. Everything is compared with the reference before it is timed. --quick: 4 s at 1080p, two repeats, no model.
--images: still images instead, from 0.2 to 48 megapixels, with --quick 12.

Rows go to bench/results/; `python bench/plot.py` draws them.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import av
import baselines
import gpu
import measure
import media
import numpy as np
import torch
from measure import Row
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import sama
from sama.frames import Clip
from sama.kernels import reference
from sama.plan import frame_indices
from sama.sampler import MEAN, STD

PIXEL = 0.02  # agreement with the reference, in 0..255: torch rounds coordinates otherwise on a GPU and in some builds
CLIP_LEN, INTERVAL, CLIPS = 32, 2, 4  # the published way to score a video


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="videos to measure with")
    parser.add_argument("--quick", action="store_true", help="one short clip, few repeats: about a minute")
    parser.add_argument("--repeats", type=int, help="counted turns of each provider (default 7, with --quick 2)")
    parser.add_argument(
        "--sizes", help=f"comma-separated, of {', '.join(media.SIZES)} (default all, with --quick 1080p)"
    )
    parser.add_argument(
        "--model", action=argparse.BooleanOptionalAction, help="measure the model too (not with --quick)"
    )
    parser.add_argument(
        "--decoders", action="store_true", help="measure every decoder that can run here too: bench/decoders.py"
    )
    parser.add_argument("--train", action="store_true", help="measure training too: bench/feeding.py")
    parser.add_argument("--images", action="store_true", help="measure still images, made here, in place of videos")
    parser.add_argument(
        "--out", type=Path, help="CSV file (default bench/results/throughput-DEVICE[-quick].csv, or images-...)"
    )
    options = parser.parse_args()
    repeats = options.repeats or (2 if options.quick else 7)
    sizes = (options.sizes or ("1080p" if options.quick else ",".join(media.SIZES))).split(",")
    unknown = sorted(set(sizes) - set(media.SIZES))
    if unknown or repeats < 1:
        parser.error(f"unknown sizes {unknown}; known: {', '.join(media.SIZES)}" if unknown else "--repeats from 1 on")
    if options.images:
        if options.files or options.sizes or options.model:
            parser.error("--images makes its own images: no files, --sizes or --model with it")
        import images

        found = images.rows(images.QUICK if options.quick else images.SIZES, repeats)
        return save(options.out or results("images", options.quick), found)
    rows = []
    for path in options.files or [make_clip(size, 4 if options.quick else 10) for size in sizes]:
        case = path.name if options.files else path.stem
        try:
            rows += run_case(case, path, repeats)
            last = case, path
            if not options.quick:
                import feeding

                found = feeding.feed_rows(case, path, repeats)
                show(found)
                rows += found
        except sama.DecodeError as error:
            print(f"skipped: {error}", file=sys.stderr)
    if not rows:
        return 1
    if options.model or (options.model is None and not options.quick):
        import network

        found = network.rows(*last, repeats)
        show_all(found)
        rows += found
    if options.train:
        import feeding

        found = feeding.training_rows(*last, repeats)
        show_all(found)
        rows += found
    if options.decoders:
        import decoders

        for path in options.files or [decoders.make_clip(*clip) for clip in decoder_clips(sizes, options.quick)]:
            rows += decoders.rows(path.stem, path, repeats)
    return save(options.out or results("throughput", options.quick), rows)


def results(name: str, quick: bool) -> Path:
    device = measure.environment()["device"].replace(" ", "-")
    return measure.RESULTS / f"{name}-{device}{'-quick' if quick else ''}.csv"


def save(out: Path, rows: list[Row]) -> int:
    measure.write(out, rows)
    print(f"\nrows: {out}")
    return 0


def decoder_clips(sizes: list[str], quick: bool) -> list[tuple[str, float, str]]:
    """Size, seconds and codec of the clips for `--decoders`; H.264 alone where it has to be quick."""
    codecs = ["h264"] if quick else ["h264", "hevc", "vp9"]
    return [(size, 4 if quick else 10, codec) for size in sizes for codec in codecs]


def make_clip(name: str, seconds: int) -> Path:
    with tqdm(
        total=seconds * media.FPS, desc=f"making the {name} clip", unit="frame", leave=False, disable=None
    ) as bar:
        return media.clip_path(media.SIZES[name], seconds, bar.update)


def run_case(case: str, path: Path, repeats: int) -> list[Row]:
    """All figures of one file, printed as they come."""
    with sama.open_video(path) as video:
        info = video.info
    print(
        f"\n{case}: {info.codec} {info.pix_fmt} {info.width}x{info.height}, {info.num_frames} frames; "
        f"a clip is {CLIP_LEN} frames, {INTERVAL} apart; scoring takes {CLIPS} clips"
    )
    rows = []
    for part in (decode_rows, sample_rows, gpu.sample_rows, end_to_end_rows, memory_rows):
        found = part(case, path, repeats)
        if found:
            rows += found
            show(found)
    return rows


def decode_rows(case: str, path: Path, repeats: int) -> list[Row]:
    """Frames of video passed per second: every frame to RGB, or only the planned ones, as planes."""
    with sama.open_video(path) as video:
        frames = video.info.num_frames
    one, four = plan_indices(frames, 1), plan_indices(frames, CLIPS)

    def planned(indices):
        with sama.open_video(path) as video:
            for _ in video.frames(indices):
                pass

    providers = {
        "every frame to rgb24": lambda: list_lengths(decode_rgb(path)),
        f"frames of {CLIPS} clips, planes": lambda: planned(four),
        "frames of 1 clip, planes": lambda: planned(one),
    }
    seconds = timed(f"{case}: decode", providers, repeats)
    work = dict.fromkeys(providers, float(frames))
    return measure.rows(case, "decode", "frames of the file/s", seconds, work, "every frame to rgb24")


def sample_rows(case: str, path: Path, repeats: int) -> list[Row]:
    """Decoded clip -> normalised input, clips per second."""
    planes = read_clip(path)
    rgb_frames = [reference.to_rgb(frame) for frame in planes]
    rgb = torch.stack(rgb_frames)
    plan = sama.VideoSampler().plan(*rgb.shape[1:3], len(rgb))
    cpu = sama.VideoSampler(backend="cpu")
    gather = baselines.compiled_gather()
    normalise = functools.partial(reference.normalize, mean=MEAN, std=STD)
    providers = {
        "reference": lambda: sama.VideoSampler(backend="reference")(rgb)[0],
        "crop, then interpolate": lambda: normalise(baselines.crop_then_interpolate(rgb, plan)),
        "torch.compile gather": lambda: normalise(gather(rgb, *baselines.taps(plan))),
        "cpu, rgb": lambda: cpu(rgb)[0],
    }
    if planes[0].layout != "rgb":
        video_frames = av_frames(path)
        providers["library's rgb24, then cpu, rgb"] = lambda: cpu(to_rgb24(video_frames))[0]
        providers["cpu, planes"] = lambda: cpu(planes)[0]
    check(providers, providers["reference"]())
    seconds = timed(f"{case}: sample", providers, repeats)
    return measure.rows(case, "sample", "clips/s", seconds, dict.fromkeys(providers, 1.0), "reference")


def end_to_end_rows(case: str, path: Path, repeats: int) -> list[Row]:
    """File -> the four inputs of a score, clips per second."""
    sampler = sama.VideoSampler()
    providers = {
        "every frame to rgb24, reference": lambda: from_rgb24(path, sama.VideoSampler(backend="reference")),
        "every frame to rgb24, cpu": lambda: from_rgb24(path, sampler),
        "planned frames, planes, cpu": lambda: sampler.read(
            path, clip_len=CLIP_LEN, num_clips=CLIPS, interval=INTERVAL
        ),
    }
    check(providers, providers["every frame to rgb24, cpu"]())
    seconds = timed(f"{case}: file to input", providers, repeats)
    work = dict.fromkeys(providers, float(CLIPS))
    return measure.rows(case, "file to input", "clips/s", seconds, work, "every frame to rgb24, reference")


def memory_rows(case: str, path: Path, repeats: int) -> list[Row]:
    """Resident memory above the imports while one clip is prepared, once each: MiB."""
    setup = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import av, torch, throughput, sama
import sama.decode.pyav, sama.kernels.cpu, sama.kernels.reference
path = {str(path)!r}
sama.VideoSampler()(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))
"""
    works = {
        "every frame to rgb24, reference": "throughput.from_rgb24(path, sama.VideoSampler(backend='reference'), 1)",
        "planned frames, planes, cpu": f"sama.VideoSampler().read(path, num_clips=1, clip_len={CLIP_LEN})",
    }
    peaks = {name: measure.peak_memory(setup, work) for name, work in works.items()}
    base = peaks["every frame to rgb24, reference"]
    return [
        Row(case, "peak memory, 1 clip", name, "MiB above import", peak, peak, peak, 1, peak / base)
        for name, peak in peaks.items()
    ]


def plan_indices(num_frames: int, clips: int) -> np.ndarray:
    return frame_indices(num_frames, CLIP_LEN, clips, INTERVAL)


def read_clip(path: Path) -> list[sama.Frame]:
    """The frames of one clip, as the decoder gives them."""
    with sama.open_video(path) as video:
        indices = plan_indices(video.info.num_frames, 1)
        frames = dict(video.frames(indices))
    return [frames[index] for index in indices.tolist()]


def av_frames(path: Path) -> list[av.VideoFrame]:
    """The frames of one clip as the library holds them, to time its conversion."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return [frames[index] for index in plan_indices(len(frames), 1).tolist()]


def to_rgb24(frames: list[av.VideoFrame]) -> Clip:
    return Clip("rgb", (np.stack([frame.to_ndarray(format="rgb24") for frame in frames]),))


def decode_rgb(path: Path):
    """Every frame of a file as uint8 [H, W, 3], one after the other, on all cores."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            yield frame.to_ndarray(format="rgb24")


def from_rgb24(path: Path, sampler: sama.VideoSampler, clips: int = CLIPS) -> torch.Tensor:
    """Decode every frame to RGB, keep the planned ones, sample them."""
    with sama.open_video(path) as video:
        indices = plan_indices(video.info.num_frames, clips)
    wanted, kept = set(indices.tolist()), {}
    for number, picture in enumerate(decode_rgb(path)):
        if number in wanted:
            kept[number] = picture
    return torch.cat([sampler(np.stack([kept[n] for n in clip])) for clip in indices.reshape(clips, -1).tolist()])


def list_lengths(pictures) -> int:
    return sum(1 for _ in pictures)


def check(providers: dict[str, Callable[[], torch.Tensor]], expected: torch.Tensor):
    """RuntimeError unless every provider gives what the reference gives, to PIXEL in 0..255."""
    for name, call in providers.items():
        error = float((call().cpu() - expected.cpu()).abs().max()) * max(STD)
        if not error <= PIXEL:
            raise RuntimeError(f"{name} is {error:.2g} grey levels off the reference; at most {PIXEL} is right")


def timed(title: str, providers, repeats: int, **kwargs) -> dict[str, list[float]]:
    with tqdm(total=len(providers) * (repeats + 1), desc=title, leave=False, disable=None) as bar:

        def progress(name):
            bar.set_postfix_str(name)
            bar.update()

        return measure.take_turns(providers, repeats, progress=progress, **kwargs)


def show_all(rows: list[Row]):
    """A table for each case and metric."""
    for _, group in itertools.groupby(rows, lambda row: (row.case, row.metric)):
        show(list(group))


def show(rows: list[Row]):
    first = rows[0]
    table = Table(title=f"{first.case}: {first.metric}, {first.unit}", title_justify="left")
    for column in ("", "median", "p20 to p80", "ratio", ""):
        table.add_column(column, justify="left" if not column else "right")
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.3g}"
        table.add_row(row.provider, f"{row.p50:.4g}", f"{row.p20:.4g} to {row.p80:.4g}", ratio, row.note)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
