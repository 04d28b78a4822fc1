"""How busy the GPU's decoding engines are, by the number of sessions: a simulation with assumed rates.

python bench/simulate_decoding.py [--files N] [--out FOLDER]

The pool of sessions, the sessions, the threads that work ahead, the choice of frames and packets are the package's own;
the library and time are those of `virtual_gpu.py`, with its rates. `CORPUS` says what the files are. On the slow host
Python takes 4 times as long, and opening files and making sessions 3 times. Writes
`results/simulate-decoding.csv`: for each number of sessions the share of the engines' time that is used, from the first
packet to the last.

With CPU cores beside the engines (`sama.decode.hybrid`), a core decodes `CORE_FPS` pictures a second, and files that
the GPU refuses, `REFUSED` of all where that is the case, are decoded by cores alone.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from virtual_gpu import (
    KEY,
    REFERENCE,
    UNREFERRED,
    Rates,
    VirtualCondition,
    VirtualGpu,
    VirtualTime,
    installed,
    packet_data,
)

from sama.decode.hybrid import Seats
from sama.decode.index import PACKET, PacketIndex
from sama.decode.sessions import SessionPool
from sama.limits import Guard
from sama.plan import frame_indices
from sama.prefetch import Ended, ahead

RESULTS = Path(__file__).parent / "results"
FILES, SEED = 1000, 0
SESSIONS = (1, 7, 14, 21)
AS_SCORED = "as files are scored"
CORE_FPS = 100.0  # assumed, as the engines' rate is
CORES = (8, 32)
REFUSED = 0.05
JOBS_AHEAD, ITEMS_AHEAD = 256, 16  # as `sama.scoring` has them on a GPU


class Kind(NamedTuple):
    """Files of one sort. share: of the corpus; seconds: length; gop: frames between key frames; between: pictures
    between two that others refer to, themselves referred to by none; size: (width, height)"""

    share: float
    seconds: float
    fps: int
    gop: int
    between: int
    size: tuple[int, int]


CORPUS = (
    Kind(0.30, 8, 30, 30, 1, (960, 540)),
    Kind(0.20, 8, 25, 250, 2, (960, 540)),
    Kind(0.15, 10, 30, 60, 0, (1080, 1920)),
    Kind(0.15, 20, 30, 250, 3, (1920, 1080)),
    Kind(0.10, 10, 60, 12, 0, (1280, 720)),
    Kind(0.08, 60, 30, 48, 2, (1920, 1080)),
    Kind(0.02, 300, 25, 250, 2, (1920, 1080)),
)


@dataclass(frozen=True)
class Row:
    """One run.

    case: what is simulated; sessions: at most; workers: threads
    seconds: virtual; per_second: files; share: of the engines' time, 0..1; made: sessions constructed
    cores: that decode too; refused: files that only they decode; by_cores: files that they have decoded
    """

    case: str
    sessions: int
    workers: int
    engines: int
    fps_per_engine: float
    files: int
    packets: int
    seconds: float
    per_second: float
    share: float
    made: int
    reused: int
    cores: int
    refused: int
    by_cores: int


class File:
    """A video as its packets tell: a key picture, then one that is referred to and the pictures shown before it."""

    def __init__(self, number: int, kind: Kind):
        self.number, self.kind = number, kind
        count = round(kind.seconds * kind.fps)
        frames: list[tuple[int, int]] = []  # (frame, header of its unit) in file order
        for start, stop in pairwise([*range(0, count, kind.gop), count]):
            frames.append((start, KEY))
            for first in range(start + 1, stop, kind.between + 1):
                last = min(first + kind.between, stop - 1)
                frames += [(last, REFERENCE), *((n, UNREFERRED) for n in range(first, last))]
        self.data = [packet_data(header, n) for n, header in frames]
        packets = np.zeros(len(frames), PACKET)
        packets["pts"], packets["duration"], packets["size"] = [n for n, _ in frames], 1, 2000
        packets["is_key"] = packets["is_entry"] = [header == KEY for _, header in frames]
        packets["is_shown"] = True
        self.index = PacketIndex(packets, codec="h264", intra_only=False)
        self.wanted = np.unique(frame_indices(count, 32, 4, 2)).tolist()  # of a score

    def units(self, nvcodec: Any) -> Iterator[Any]:
        """As `sama.decode.nvcodec` sends them."""
        for run in self.index.runs(self.wanted):
            yield nvcodec.END
            is_unneeded = self.index.unneeded(run, "h264", 0)
            for number in range(run.first, run.last + 1):
                if not is_unneeded(number, memoryview(self.data[number])):
                    yield nvcodec.Unit(
                        self.index.frame_of_packet(number), int(self.index.places[number]), self.data[number]
                    )


def corpus(files: int) -> list[File]:
    """The files of `CORPUS` in a drawn order, always the same."""
    rng = np.random.default_rng(SEED)
    kinds = rng.choice(len(CORPUS), files, p=[kind.share for kind in CORPUS])
    return [File(number, CORPUS[kind]) for number, kind in enumerate(kinds)]


def simulate(
    files: list[File],
    sessions: int,
    workers: int,
    rates: Rates,
    *,
    kept: bool = True,
    case: str = AS_SCORED,
    cores: int = 0,
    refused: float = 0.0,
) -> Row:
    """Decode all files with at most that many sessions, in that many threads.

    kept: sessions are kept between files; otherwise each file gets a new one
    cores: that decode beside the engines, as `sama.scoring` has it with decoder hybrid
    refused: share of the files that only they decode
    """
    seats = Seats(workers, cores, len(files))
    threads = seats.threads if cores else workers
    time = VirtualTime(threads)
    seats.changed = VirtualCondition(time)
    for_cores = {*np.random.default_rng(SEED + 1).permutation(len(files))[: round(refused * len(files))].tolist()}
    stop, by_cores = threading.Event(), []
    gpu = VirtualGpu(rates, time)
    with installed(gpu):
        nvcodec = importlib.import_module("sama.decode.nvcodec")
    pool: SessionPool = SessionPool(nvcodec.NvcodecSession, sessions, clock=time, condition=VirtualCondition(time))
    packets = [0] * len(files)

    def produce(file: File, ticket: object) -> Iterator[int]:
        time.sleep(rates.opening)
        if not cores:
            yield decode(file)
            return
        with seats.take(Guard(str(file.number)), gpu=file.number not in for_cores, stop=stop) as decoder:
            if decoder == "nvcodec":
                yield decode(file)
            else:
                by_cores.append(file.number)
                time.sleep(sum(bool(unit.data) for unit in file.units(nvcodec)) / CORE_FPS)
                yield len(file.wanted)

    def decode(file: File) -> int:
        sequence = b"" if kept else str(file.number).encode()
        key = nvcodec.SessionKey(torch.device("cpu"), "h264", file.kind.size, "yuv420p", sequence, str(file.number))
        with pool.lease(key) as lease:
            before = lease.session.sent
            found = [n for n, _ in lease.session.decode(file.units(nvcodec), frozenset(file.wanted), key.path)]
            packets[file.number] = lease.session.sent - before
        if found != file.wanted:
            raise AssertionError(f"file {file.number}: frames came out in another order, or not all")
        return len(found)

    jobs = ahead(
        time.jobs(files),
        produce,
        workers=threads,
        jobs_ahead=JOBS_AHEAD,
        items_ahead=ITEMS_AHEAD,
        in_order=False,
    )
    with closing(jobs):
        for _, item in jobs:
            if isinstance(item, Ended):
                if item.error is not None:
                    raise item.error
                time.end()
    worked = sum(engine.worked for engine in gpu.engines)
    if abs(worked - sum(packets) / rates.fps) > 1e-6 * worked:
        raise AssertionError("packets were sent that no engine decoded")
    return Row(
        case=case,
        sessions=sessions,
        workers=workers,
        engines=rates.engines,
        fps_per_engine=rates.fps,
        files=len(files),
        packets=sum(packets),
        seconds=round(time.now, 3),
        per_second=round(len(files) / time.now, 2),
        share=round(worked / (time.now * rates.engines), 4),
        made=pool.counts.created,
        reused=pool.counts.reused,
        cores=cores,
        refused=len(for_cores),
        by_cores=len(by_cores),
    )


def show(rows: list[Row], rates: Rates) -> None:
    table = Table(title=f"decoding engines, simulated: {rates}", title_justify="left")
    for name in asdict(rows[0]):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*map(str, asdict(row).values()))
    Console(width=160).print(table)


def main(arguments: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=FILES)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    rates, files = Rates(), corpus(options.files)
    slow = replace(rates, host=4 * rates.host, construction=3 * rates.construction, opening=3 * rates.opening)
    rows = [simulate(files, sessions, sessions + sessions // 2, rates) for sessions in SESSIONS]
    best = 2 * rates.engines
    rows.append(simulate(files, best, best, rates, case="a thread for each session"))
    rows.append(simulate(files, best, best, rates, kept=False, case="a new session for each file"))
    rows.append(simulate(files, best, best + best // 2, slow, case="a slow host"))
    for share in (0.0, REFUSED):
        rows += [
            simulate(files, best, best + best // 2, rates, case="hybrid", cores=cores, refused=share) for cores in CORES
        ]
    show(rows, rates)
    with open(options.out / "simulate-decoding.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(rows[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, rows))
    return rows


if __name__ == "__main__":
    main()
