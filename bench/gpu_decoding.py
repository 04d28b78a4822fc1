"""Stages (c) and (d): the decoding engines by the number of sessions, alone and with sampling; files to scores."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import media
import numpy as np
import published
import torch
from gpu_parity import small_model
from gpu_run import Run

import sama
from sama.decode import open_video
from sama.devices import own_stream
from sama.model import QualityModel, random_model
from sama.prefetch import Meter
from sama.scoring import score_files

CODECS = ("h264", "hevc", "vp9")
SESSIONS = (1, 7, 14, 21)
SMALL = media.Size("small", 160, 144)
UTILISATION_EVERY = 0.05  # seconds


def clips(run: Run, codecs: tuple[str, ...] = CODECS) -> dict[str, Path]:
    """A file of every codec, made side by side."""

    def make(codec: str) -> Path:
        path = run.out / f"{codec}.{media.CODECS[codec].format}"
        media.encode(path, run.pick(media.SIZES["1080p"], SMALL), run.pick(300, 40), codec=codec)
        return path

    with ThreadPoolExecutor(len(codecs)) as pool:
        return dict(zip(codecs, pool.map(make, codecs)))


def sessions(run: Run) -> None:
    """Pictures a second of the engines, by codec and number of sessions: frames dropped, then sampled."""
    paths = clips(run, run.pick(CODECS, CODECS[:1]))
    with run.decoding() as nvcodec:
        device = run.pick(torch.device("cuda", 0), run.device)
        pool, limit = nvcodec.pool(device), nvcodec.pool(device).limit
        for count, (codec, path) in itertools.product(run.pick(SESSIONS, (1, 3)), paths.items()):
            indices, packets, frames = planned(path, run)
            pool.clear()
            pool.limit = count
            files = run.pick(4 * count, count)
            for work in ("alone", "sampled"):
                pass_file(path, indices, run, work)  # sessions and kernels are there
                before = pool.counts.created
                with utilisation(run) as busy:
                    call = functools.partial(pass_files, path, indices, run, work, count, files)
                    (seconds,) = run.seconds(call, 1)
                run.row(
                    codec=codec,
                    sessions=count,
                    work=work,
                    files=files,
                    files_per_s=files / seconds,
                    frames_of_the_file_per_s=files * frames / seconds,
                    pictures_decoded_per_s=files * packets / seconds,
                    engines=nvcodec.engines(device),
                    engines_busy_percent=float(np.mean(busy)) if busy else float("nan"),
                    sessions_made=pool.counts.created - before,
                )
        pool.clear()
        pool.limit = limit
    remove(paths.values())


def processes(run: Run) -> None:
    """Pictures a second of the engines, by the number of processes that each decode two files at a time."""
    paths = clips(run, run.pick(CODECS, CODECS[:1]))
    context = multiprocessing.get_context("spawn")
    for (codec, path), work, count in itertools.product(paths.items(), ("alone", "sampled"), run.pick(PROCESSES, (1,))):
        if run.rehearsal:  # another process would not have the stand-in
            with run.decoding():
                told = [pass_many(path, run, work)]
        else:
            ready, results = context.Barrier(count), context.Queue()
            team = [context.Process(target=in_process, args=(path, run, work, ready, results)) for _ in range(count)]
            for process in team:
                process.start()
            told = [results.get(timeout=120) for _ in team]
            for process in team:
                process.join()
        pictures, seconds, cpu = (np.array(values) for values in zip(*told))
        run.row(
            codec=codec,
            processes=count,
            threads=THREADS_EACH,
            work=work,
            pictures_decoded_per_s=float(pictures.sum() / seconds.max()),
            cpu_ms_per_picture=1e3 * float(cpu.sum() / pictures.sum()),
        )
    remove(paths.values())


PROCESSES = (1, 4, 7)
THREADS_EACH = 3  # two files are decoded, one is opened


def in_process(path: Path, run: Run, work: str, ready: Any, results: Any) -> None:
    results.put(pass_many(path, run, work, ready.wait))


def pass_many(path: Path, run: Run, work: str, wait: Callable[[], object] = lambda: None) -> tuple[int, float, float]:
    """Decode some files in a few threads, once others are ready too; pictures decoded, seconds, and CPU seconds."""
    indices, packets, _ = planned(path, run)
    files = 2 * THREADS_EACH
    pass_files(path, indices, run, work, THREADS_EACH - 1, files)  # sessions and kernels are there
    wait()
    start, cpu = time.perf_counter(), time.process_time()
    pass_files(path, indices, run, work, THREADS_EACH - 1, files)
    run.synchronize()
    return files * packets, time.perf_counter() - start, time.process_time() - cpu


def planned(path: Path, run: Run) -> tuple[np.ndarray, int, int]:
    """The frames of a score, `[clips, CLIP_LEN]`; how many packets the engine is given for them; frames of the file."""
    with open_video(path, decoder="nvcodec", device="cuda") as video:
        frames = video.info.num_frames
        indices = published.plan_indices(frames, run.pick(4, 1)).reshape(-1, published.CLIP_LEN)
        return indices, sum(bool(unit.data) for unit in video._units(np.unique(indices).tolist())), frames


def pass_files(path: Path, indices: np.ndarray, run: Run, work: str, sessions: int, files: int) -> None:
    """As scoring does: half as many threads more than sessions, so that a file is opened while others are decoded."""
    with ThreadPoolExecutor(sessions + sessions // 2) as threads:
        list(threads.map(lambda _: pass_file(path, indices, run, work), range(files)))


def pass_file(path: Path, indices: np.ndarray, run: Run, work: str) -> None:
    with own_stream(run.device) as finish, open_video(path, decoder="nvcodec", device="cuda") as video:
        if work == "sampled":
            for clip in sama.VideoSampler(layout="patches", dtype=torch.bfloat16, threads=1).stream(video, indices):
                finish(clip)
        else:
            for _ in video.frames(indices.reshape(-1)):
                pass


@contextmanager
def utilisation(run: Run) -> Iterator[list[int]]:
    """Percent of the time that the engines were busy, as the driver tells while the block runs; or nothing."""
    found: list[int] = []
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        pynvml.nvmlDeviceGetDecoderUtilization(handle)
    except Exception as error:  # none installed, or errors of its own where the driver does not tell
        print(f"utilisation is not told: {error}")
        yield found
        return
    done = threading.Event()

    def watch() -> None:
        while not done.wait(UTILISATION_EVERY):
            found.append(pynvml.nvmlDeviceGetDecoderUtilization(handle)[0])

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()


def construction(run: Run) -> None:
    """Seconds that a session takes to make, the first and the next ones; and to open a file."""
    paths = clips(run, run.pick(CODECS, CODECS[:1]))
    with run.decoding() as nvcodec:
        for codec, path in paths.items():
            opening = run.seconds(lambda path=path: open_video(path, decoder="nvcodec", device="cuda").close(), 3)
            with open_video(path, decoder="nvcodec", device="cuda") as video:
                for number in range(run.pick(6, 2)):
                    start = time.perf_counter()
                    session = nvcodec.NvcodecSession(video.key)
                    made = time.perf_counter() - start
                    session.close()
                    run.row(codec=codec, number=number, session_s=made, opening_s=float(np.median(opening)))
    remove(paths.values())


def others(run: Run) -> None:
    """PyAV on all cores, and DALI where it is installed: the same clips, `bench/decoders.py`."""
    import decoders

    paths = clips(run, run.pick(CODECS, CODECS[:1]))
    at_once = run.pick([1, 4, os.cpu_count() or 1], [1])
    for codec, path in paths.items():
        for row in decoders.rows(codec, path, run.pick(2, 1), at_once, (("pyav", "cpu"), ("dali", "cuda"))):
            run.row(**{name: getattr(row, name) for name in row.__dataclass_fields__})
    remove(paths.values())


def scores(run: Run) -> None:
    """Files to scores a second, by decoder and precision, over files of three codecs and two lengths; whether scores
    depend on the decoder."""
    folder = run.out / "files"
    files = many_files(run, folder)
    try:
        with run.decoding():
            expected: dict[tuple[str, int], list[tuple[float, ...]]] = {}
            for decoder, dtype, batch, processes in run.pick(SETTINGS, SETTINGS[-3:]):
                model = make_model(run, dtype)
                meter = Meter()
                with closing(score_files(files[:2], model, batch=batch, decoder=decoder)) as warm:
                    list(warm)
                several = files * (2 if processes > 1 else 1)  # they take some seconds to start, which count
                settings = {"batch": batch, "decoder": decoder, "processes": processes, "meter": meter}
                start = time.perf_counter()
                with closing(score_files(several, model, **settings)) as rows:
                    found = list(rows)
                run.synchronize()
                seconds = time.perf_counter() - start
                decoders = Counter(row.decoder for row in found)
                clips_of_files = [tuple(row.clips) for row in found]
                right = expected.setdefault((dtype, batch), clips_of_files[: len(files)])
                run.row(
                    decoder=decoder,
                    dtype=dtype,
                    batch=batch,
                    processes=processes,
                    files=len(several),
                    failed=sum(row.status != "ok" for row in found),
                    files_per_s=len(several) / seconds,
                    clips_per_s=sum(map(len, clips_of_files)) / seconds,
                    waited=meter.share,
                    decoded_by=" ".join(f"{name}:{number}" for name, number in sorted(decoders.items())),
                    equal_to_first=clips_of_files == right * (len(several) // len(files)),
                    problem=next((row.reason for row in found if row.status != "ok"), model.graphs.problem or ""),
                )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


SETTINGS = [  # decoder, precision, batch, processes; the most valuable first
    ("nvcodec", "bfloat16", 8, 7),
    ("hybrid", "bfloat16", 8, 7),
    ("auto", "float32", 8, 7),
    ("nvcodec", "bfloat16", 8, 1),
    ("pyav", "bfloat16", 8, 1),
    ("pyav", "bfloat16", 8, 4),
    ("nvcodec", "float32", 8, 1),
    ("pyav", "float32", 8, 1),
    ("auto", "float32", 8, 1),
]


def make_model(run: Run, dtype: str) -> QualityModel:
    return small_model() if run.rehearsal else random_model(device="cuda", dtype=dtype)


def many_files(run: Run, folder: Path) -> list[str]:
    """Names of their own for six files, each many times, in a mixed order."""
    folder.mkdir(exist_ok=True)
    size, lengths = run.pick(media.SIZES["1080p"], SMALL), run.pick((300, 600), (40,))
    kinds = list(itertools.product(run.pick(CODECS, CODECS[:2]), lengths))

    def make(kind: tuple[str, int]) -> Path:
        codec, frames = kind
        path = folder / f"{codec}-{frames}.{media.CODECS[codec].format}"
        media.encode(path, size, frames, codec=codec)
        return path

    with ThreadPoolExecutor(len(kinds)) as pool:
        made = list(pool.map(make, kinds))
    names = []
    for number in range(run.pick(240, 4)):
        source = made[number % len(made)]
        path = folder / f"{number:03}{source.suffix}"
        path.symlink_to(source.name)
        names.append(str(path))
    return names


def remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
