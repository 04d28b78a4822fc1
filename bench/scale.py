"""What a corpus costs beside its scoring: rows that are not scored, through all of `sama score --ray`.

    python bench/scale.py --rows 1000000 --out bench/results/scale.csv

A manifest of so many paths is read, split, given to an actor that makes a row for each path without opening it, and
written as parts; then the same once more, where all rows are there already. Reported: the driver's memory above its
start, seconds a row, bytes a row, parts.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import platform
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

import sama
from sama.cluster import ClusterOptions, PartScorer, connect, score_on_ray
from sama.manifests import Manifest
from sama.parts import Parts
from sama.scorer import Scorer
from sama.tables import Row

NAME = "s3://bucket/corpus/{:03d}/clip-{:09d}.mp4"


class Unread(PartScorer):
    """Makes the row that a scored clip would have."""

    def score(self, batch: pa.Table) -> list[Row]:
        facts = {"frames": 250, "width": 1280, "height": 720, "duration": 10.0, "fps": 25.0, "decoder": "pyav"}
        about = {"model": "default.safetensors (our own, sha256 000000000000)", "settings": "not scored"}
        times = [1.25 * k for k in range(8)]
        drawn = np.random.default_rng(len(batch)).uniform(0, 100, (len(batch), 8)).tolist()  # or they would pack well
        rows = []
        for path, clips in zip(batch["path"].to_pylist(), drawn):
            rows.append(Row(path, score=clips[0], scale="VMAF v0.6.1", clips=clips, times=times, **facts, **about))
        return rows


class Peak:
    """The most memory of this process, above that at its start, in bytes."""

    def __init__(self) -> None:
        self.process = psutil.Process()
        self.start, self.most, self._end = self.process.memory_info().rss, 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._end.wait(0.05):
            self.most = max(self.most, self.process.memory_info().rss - self.start)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._end.set()
        self._thread.join()


def write_manifest(path: Path, rows: int) -> None:
    step = 100_000
    with pq.ParquetWriter(path, pa.schema([("path", pa.string())])) as writer:
        for at in range(0, rows, step):
            names = [NAME.format(n % 1000, n) for n in range(at, min(rows, at + step))]
            writer.write_table(pa.table({"path": names}))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--part-rows", type=int, default=1000)
    options.add_argument("--out", type=Path, help="CSV to append to")
    asked = options.parse_args()
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        write_manifest(Path(folder) / "files.parquet", asked.rows)
        connect("local")
        parts = Parts(str(Path(folder) / "parts"))
        for run in ("scored", "all there already"):
            parts.begin(("m", "s"), resume=run != "scored", overwrite=False)
            began = time.perf_counter()
            with Peak() as peak:
                rows, failed = score_on_ray(
                    Manifest(str(Path(folder) / "files.parquet")),
                    Scorer(device="cpu"),
                    parts,
                    ClusterOptions(part_rows=asked.part_rows),
                    stage=Unread,
                )
            seconds = time.perf_counter() - began
            assert (rows, failed) == (asked.rows, 0), (rows, failed)
            names = parts.names()
            size = sum(os.path.getsize(Path(parts.out) / name) for name in names)
            lines.append(
                {
                    "run": run,
                    "rows": rows,
                    "parts": len(names),
                    "seconds": round(seconds, 2),
                    "microseconds_a_row": round(1e6 * seconds / rows, 2),
                    "driver_mb_above_start": round(peak.most / 1e6, 1),
                    "bytes_a_row": round(size / rows, 2),
                    "processor": platform.processor() or platform.machine(),
                    "cores": os.cpu_count(),
                    "load": round(os.getloadavg()[0], 1),
                    "version": sama.__version__,
                    "date": datetime.date.today().isoformat(),
                }
            )
            print(lines[-1], flush=True)
    if asked.out:
        new = not asked.out.exists()
        with open(asked.out, "a", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerows(lines)


if __name__ == "__main__":
    main()
