"""How fast each decoder passes a video, and what sampling adds to it: PyAV, DALI and PyNvVideoCodec beside each other.

    python bench/decoders.py [FILE ...] [--sizes 540p,1080p] [--codecs h264,hevc,vp9] [--concurrency 1,2,4]
                             [--seconds 10] [--repeats N] [--out FILE.csv]
    python bench/decoders.py --growth 500    # memory of this process while DALI decodes so many files

A file is passed by decoding the frames that its score takes, 4 clips of 32; rates are in frames of the file per second.
Several files at a time: PyAV and PyNvVideoCodec in threads, DALI in one batch. What cannot run here is named with the
reason and not measured. On a machine without a GPU: DALI's CPU decoder, which decodes VP9, beside PyAV.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import measure
import media
import numpy as np
import psutil
import published
import torch
from measure import Row
from tqdm import tqdm

import sama
from sama.errors import DecodeError
from sama.frames import Clip
from sama.kernels.layout import ceil_div

HOST_BYTES = 2 << 30  # of decoded RGB that DALI's CPU decoder may hold at once here
DEVICE_SHARE = 0.5  # of a GPU's memory, likewise
Provider = tuple[str, str]  # decoder, device


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="videos to measure with")
    parser.add_argument("--sizes", default="1080p" if torch.cuda.is_available() else "540p")
    parser.add_argument("--codecs", default="h264,hevc,vp9")
    parser.add_argument("--concurrency", help="files at a time (default 1,2,4,8,16 on a GPU, 1,2 otherwise)")
    parser.add_argument("--seconds", type=float, default=10, help="length of the clips that are made")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="CSV file (default bench/results/decoders-DEVICE.csv)")
    parser.add_argument("--growth", type=int, metavar="N", help="decode N files with DALI and report memory instead")
    options = parser.parse_args()
    device = measure.environment()["device"].replace(" ", "-")
    if options.growth:
        found = growth_rows(options.growth)
        out = options.out or measure.RESULTS / f"dali-memory-{device}.csv"
    else:
        paths = options.files or [
            make_clip(size, options.seconds, codec)
            for size in options.sizes.split(",")
            for codec in options.codecs.split(",")
        ]
        at_once = [int(n) for n in options.concurrency.split(",")] if options.concurrency else None
        found = [row for path in paths for row in rows(path.stem, path, options.repeats, at_once)]
        out = options.out or measure.RESULTS / f"decoders-{device}.csv"
    if not found:
        print("nothing could be measured", file=sys.stderr)
        return 1
    measure.write(out, found)
    print(f"\nrows: {out}")
    return 0


def make_clip(size: str, seconds: float, codec: str) -> Path:
    total = int(seconds * media.FPS)
    with tqdm(total=total, desc=f"making the {size} {codec} clip", unit="frame", leave=False, disable=None) as bar:
        return media.clip_path(media.SIZES[size], seconds, bar.update, codec)


def rows(
    case: str, path: Path, repeats: int, at_once: list[int] | None = None, tried: Sequence[Provider] = ()
) -> list[Row]:
    """All rows of one file, printed as they come. tried: the providers, in place of all that there are."""
    on_gpu = torch.cuda.is_available()
    at_once = at_once or ([1, 2, 4, 8, 16] if on_gpu else [1, 2])
    with sama.open_video(path, decoder="pyav") as video:
        info = video.info
    indices = published.plan_indices(info.num_frames, published.CLIPS)
    every = [("pyav", "cpu"), ("dali", "cpu"), *([("dali", "cuda"), ("nvcodec", "cuda")] * on_gpu)]
    providers = runnable(path, [*tried] or every)
    print(f"\n{case}: {info.codec} {info.pix_fmt} {info.width}x{info.height}, {info.num_frames} frames")
    found = []
    for count in at_once:
        calls = {}
        for provider in providers:
            if fits(provider, count, len(np.unique(indices)) * 3 * info.width * info.height):
                name = label(provider)
                calls[name] = functools.partial(pass_files, provider, path, indices, count)
                calls[f"{name}, sampled"] = functools.partial(pass_files, provider, path, indices, count, sample=True)
        notes = {name: memory_note(call) for name, call in calls.items() if "cuda" in name}
        title = f"{case}: {count} at a time"
        sync = torch.cuda.synchronize if on_gpu else lambda: None
        seconds = measure.timed(title, calls, repeats, sync=sync)
        for name in list(seconds):
            if name.endswith(", sampled"):
                alone = float(np.median(seconds[name.removesuffix(", sampled")]))
                share = f"{alone / float(np.median(seconds[name])):.3f} of decode alone"
                notes[name] = "; ".join(filter(None, [share, notes.get(name)]))
        work = dict.fromkeys(calls, float(info.num_frames * count))
        metric = f"decode for a score, {count} at a time"
        group = measure.rows(case, metric, "frames of the file/s", seconds, work, next(iter(calls)), **notes)
        measure.show(group)
        found += group
    return found


def label(provider: Provider) -> str:
    return provider[0] if provider[0] == "pyav" else f"{provider[0]}, {provider[1]}"


def runnable(path: Path, providers: list[Provider]) -> list[Provider]:
    """Those that can decode this file here; the others are named with the reason."""
    can = []
    for decoder, device in providers:
        try:
            with sama.open_video(path, decoder=decoder, device=device) as video:
                next(video.frames([0]))
        except (DecodeError, ImportError, OSError, RuntimeError) as error:
            print(f"not measured: {label((decoder, device))}: {error}", file=sys.stderr)
        else:
            can.append((decoder, device))
    return can


def fits(provider: Provider, count: int, clip_bytes: int) -> bool:
    """Whether a batch of DALI fits into memory; the others hold little."""
    if provider[0] != "dali":
        return True
    room = HOST_BYTES if provider[1] == "cpu" else DEVICE_SHARE * torch.cuda.mem_get_info()[1]
    return count * clip_bytes <= room


def pass_files(provider: Provider, path: Path, indices: np.ndarray, count: int, sample: bool = False) -> None:
    """Decode `count` files at the same time, and sample their clips where that is asked for."""
    decoder, device = provider
    if decoder == "dali":
        results = dali(device).decode([(path, indices)] * count)
        errors = [result for result in results if isinstance(result, DecodeError)]
        if errors:
            raise errors[0]
        if sample:
            sampler = sama.VideoSampler()
            for k in range(published.CLIPS):
                part = slice(k * published.CLIP_LEN, (k + 1) * published.CLIP_LEN)
                sampler([Clip("rgb", (r.planes[0][part],), correction=r.correction) for r in results])
        return

    def one(_):
        with sama.open_video(path, decoder=decoder, device=device) as video:
            if sample:
                clips = indices.reshape(published.CLIPS, published.CLIP_LEN)
                return sum(1 for _ in sama.VideoSampler(threads=1).stream(video, clips))
            return sum(1 for _ in video.frames(indices))

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(one, range(count)))


@functools.cache
def dali(device: str):
    from sama.decode.dali import DaliDecoder

    return DaliDecoder(device, threads=os.cpu_count())


def memory_note(call: Callable[[], None]) -> str:
    """Peak of what one call takes of the GPU's memory, whoever allocates it, looked at every 2 ms."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before, least, done = torch.cuda.mem_get_info()[0], [torch.cuda.mem_get_info()[0]], threading.Event()

    def watch():
        while not done.wait(0.002):
            least[0] = min(least[0], torch.cuda.mem_get_info()[0])

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        call()
        torch.cuda.synchronize()
    finally:
        done.set()
        watcher.join()
    return f"{(before - least[0]) / 2**20:.0f} MiB of device memory at its peak"


def trimmed(process: psutil.Process) -> float:
    """MiB resident after the C library has given back free memory, of which it keeps some; NaN without glibc."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        return float("nan")
    return process.memory_info().rss / 2**20


def growth_rows(count: int) -> list[Row]:
    """Resident memory of this process while DALI decodes `count` files, a clip of each, in batches of four, one of them
    bad."""
    from sama.decode.dali import DaliDecoder

    good = media.clip_path(media.Size("180p", 320, 180), 2, codec="vp9")
    bad = good.with_name("cut.webm")
    bad.write_bytes(good.read_bytes()[:2000])
    decoder, process, found = DaliDecoder("cpu", threads=os.cpu_count()), psutil.Process(), []
    indices = published.plan_indices(2 * media.FPS, 1)
    for batch in range(ceil_div(count, 4)):
        results = decoder.decode([(good, indices)] * 3 + [(bad, indices)])
        assert [isinstance(result, DecodeError) for result in results] == [False] * 3 + [True]
        del results
        files = 4 * (batch + 1)
        if files % 100 == 0 or files in (4, 20) or files >= count:
            resident, used = process.memory_info().rss / 2**20, trimmed(process)
            note = f"{used:.1f} MiB once the C library has given back what is free"
            print(f"{files:5} files: {resident:7.1f} MiB resident, {note}", flush=True)
            name = f"after {files} files"
            found.append(Row(good.stem, name, "dali, cpu", "MiB resident", resident, resident, resident, 1, None, note))
    return found


if __name__ == "__main__":
    sys.exit(main())
