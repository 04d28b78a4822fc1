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
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import baselines
import gpu
import measure
import media
import published
import torch
from measure import Row
from tqdm import tqdm

import sama
from sama.backends import MEAN, STD
from sama.kernels import reference


def main(arguments: Sequence[str] | None = None) -> int:
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
    options = parser.parse_args(arguments)
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
        out = options.out or results("images", options.quick)
        measure.write(out, found)
        print(f"\nrows: {out}")
        return 0
    out = options.out or results("throughput", options.quick)
    out.unlink(missing_ok=True)

    def keep(rows: Iterable[Row]) -> None:
        """Show rows and write them, as soon as they are measured."""
        rows = list(rows)
        if rows:
            measure.show_all(rows)
            measure.extend(out, rows)

    last = None
    for path in options.files or [make_clip(size, 4 if options.quick else 10) for size in sizes]:
        case = path.name if options.files else path.stem
        try:
            run_case(case, path, repeats, keep)
            last = case, path
            if not options.quick:
                import feeding

                keep(feeding.feed_rows(case, path, repeats))
        except sama.DecodeError as error:
            print(f"skipped: {error}", file=sys.stderr)
    if last is None:
        return 1
    if options.model or (options.model is None and not options.quick):
        import network

        keep(network.rows(*last, repeats))
    if options.train:
        import feeding

        keep(feeding.training_rows(*last, repeats))
    if options.decoders:
        import decoders

        for path in options.files or [decoders.make_clip(*clip) for clip in decoder_clips(sizes, options.quick)]:
            measure.extend(out, decoders.rows(path.stem, path, repeats))
    print(f"\nrows: {out}")
    return 0


def results(name: str, quick: bool) -> Path:
    device = measure.environment()["device"].replace(" ", "-")
    return measure.RESULTS / f"{name}-{device}{'-quick' if quick else ''}.csv"


def decoder_clips(sizes: list[str], quick: bool) -> list[tuple[str, float, str]]:
    """Size, seconds and codec of the clips for `--decoders`; H.264 alone where it has to be quick."""
    codecs = ["h264"] if quick else ["h264", "hevc", "vp9"]
    return [(size, 4 if quick else 10, codec) for size in sizes for codec in codecs]


def make_clip(name: str, seconds: int) -> Path:
    with tqdm(
        total=seconds * media.FPS, desc=f"making the {name} clip", unit="frame", leave=False, disable=None
    ) as bar:
        return media.clip_path(media.SIZES[name], seconds, bar.update)


def run_case(case: str, path: Path, repeats: int, keep: Callable[[Iterable[Row]], None]) -> None:
    """All figures of one file, handed to `keep` as they come."""
    with sama.open_video(path, decoder="pyav") as video:
        info = video.info
    print(
        f"\n{case}: {info.codec} {info.pix_fmt} {info.width}x{info.height}, {info.num_frames} frames; "
        f"a clip is {published.CLIP_LEN} frames, {published.INTERVAL} apart; scoring takes {published.CLIPS} clips"
    )
    for part in (decode_rows, sample_rows, gpu.sample_rows, end_to_end_rows, memory_rows):
        keep(part(case, path, repeats))


def decode_rows(case: str, path: Path, repeats: int) -> list[Row]:
    """Frames of video passed per second: every frame to RGB, or only the planned ones, as planes."""
    with sama.open_video(path, decoder="pyav") as video:
        frames = video.info.num_frames
    one, four = published.plan_indices(frames, 1), published.plan_indices(frames, published.CLIPS)

    def planned(indices):
        with sama.open_video(path, decoder="pyav") as video:
            for _ in video.frames(indices):
                pass

    providers = {
        "every frame to rgb24": lambda: list_lengths(published.decode_rgb(path)),
        f"frames of {published.CLIPS} clips, planes": lambda: planned(four),
        "frames of 1 clip, planes": lambda: planned(one),
    }
    seconds = measure.timed(f"{case}: decode", providers, repeats)
    work = dict.fromkeys(providers, float(frames))
    return measure.rows(case, "decode", "frames of the file/s", seconds, work, "every frame to rgb24")


def sample_rows(case: str, path: Path, repeats: int) -> list[Row]:
    """Decoded clip -> normalised input, clips per second."""
    planes = published.read_clip(path)
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
        video_frames = published.av_frames(path)
        providers["library's rgb24, then cpu, rgb"] = lambda: cpu(published.to_rgb24(video_frames))[0]
        providers["cpu, planes"] = lambda: cpu(planes)[0]
    measure.check(providers, providers["reference"]())
    seconds = measure.timed(f"{case}: sample", providers, repeats)
    return measure.rows(case, "sample", "clips/s", seconds, dict.fromkeys(providers, 1.0), "reference")


def end_to_end_rows(case: str, path: Path, repeats: int) -> list[Row]:
    """File -> the four inputs of a score, clips per second."""
    sampler = sama.VideoSampler()
    providers = {
        "every frame to rgb24, reference": lambda: published.from_rgb24(path, sama.VideoSampler(backend="reference")),
        "every frame to rgb24, cpu": lambda: published.from_rgb24(path, sampler),
        "planned frames, planes, cpu": lambda: sampler.read(
            path,
            clip_len=published.CLIP_LEN,
            num_clips=published.CLIPS,
            interval=published.INTERVAL,
            decoder="pyav",
        ),
    }
    measure.check(providers, providers["every frame to rgb24, cpu"]())
    seconds = measure.timed(f"{case}: file to input", providers, repeats)
    work = dict.fromkeys(providers, float(published.CLIPS))
    return measure.rows(case, "file to input", "clips/s", seconds, work, "every frame to rgb24, reference")


def memory_rows(case: str, path: Path, repeats: int) -> list[Row]:
    """Resident memory above the imports while one clip is prepared, once each: MiB."""
    setup = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import av, torch, published, sama
import sama.decode.pyav, sama.kernels.cpu, sama.kernels.reference
path = {str(path)!r}
sama.VideoSampler()(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))
"""
    works = {
        "every frame to rgb24, reference": "published.from_rgb24(path, sama.VideoSampler(backend='reference'), 1)",
        "planned frames, planes, cpu": (
            f"sama.VideoSampler().read(path, num_clips=1, clip_len={published.CLIP_LEN}, decoder='pyav')"
        ),
    }
    peaks = {name: measure.peak_memory(setup, work) for name, work in works.items()}
    base = peaks["every frame to rgb24, reference"]
    return [
        Row(case, "peak memory, 1 clip", name, "MiB above import", peak, peak, peak, 1, peak / base)
        for name, peak in peaks.items()
    ]


def list_lengths(pictures) -> int:
    return sum(1 for _ in pictures)


if __name__ == "__main__":
    sys.exit(main())
