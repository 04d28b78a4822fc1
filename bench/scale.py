"""What `sama score --ray` costs beside the scoring, and how fast it is beside the plain command.

    python bench/scale.py --rows 1000000 --out bench/results/scale.csv
    python bench/scale.py --files 200 --out bench/results/ray-cpu.csv

`--rows`: a manifest of so many paths is read, split, given to an actor that makes a row for each path without opening
it, and written as parts; then the same once more, where all rows are there already. Reported: the driver's memory above
its start, seconds a row, bytes a row, parts.

`--files`: the commands `sama score FOLDER` and `sama score FOLDER --ray`, on one file and on so many short ones. What
they take for the one is their start-up. The rows must be the same to the bit, or there is no figure.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import measure
import media
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

import sama
from sama.cluster import ClusterOptions, PartScorer, connect, score_on_ray
from sama.manifests import Manifest
from sama.parts import Parts, read_scores
from sama.scorer import Scorer
from sama.tables import Row, read_table

NAME = "s3://bucket/corpus/{:03d}/clip-{:09d}.mp4"
SHORT = ((1280, 720, 5), (1280, 720, 8), (1920, 1080, 5), (1920, 1080, 6), (1920, 1080, 8))  # width, height, seconds
COMMAND_SECONDS = 1800  # within which a command must end


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


def without_scoring(asked: argparse.Namespace, folder: Path) -> list[dict[str, object]]:
    """Rows that are not scored, and the same again."""
    lines: list[dict[str, object]] = []
    write_manifest(folder / "files.parquet", asked.rows)
    connect("local")
    parts = Parts(str(folder / "parts"))
    for run in ("scored", "all there already"):
        parts.begin(("m", "s"), resume=run != "scored", overwrite=False)
        began = time.perf_counter()
        with Peak() as peak:
            rows, failed = score_on_ray(
                Manifest(str(folder / "files.parquet")),
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
                **conditions(),
            }
        )
        print(lines[-1], flush=True)
    return lines


def against_plain(files: int, folder: Path) -> list[dict[str, object]]:
    """The plain command and Ray's on the same files: start-up, seconds, rows a second with and without start-up."""
    corpus = {1: folder / "one", files: folder / "all"}
    made = []
    for width, height, seconds in SHORT:
        made.append(folder / f"{height}p-{seconds}s.mp4")
        media.encode(made[-1], media.Size(made[-1].stem, width, height), seconds * media.FPS)
    for count, place in corpus.items():
        place.mkdir()
        for n in range(count):
            shutil.copy(made[n % len(made)], place / f"{n:04}.mp4")
    lines: list[dict[str, object]] = []
    rows: dict[str, dict[str, Row]] = {}
    for way in ("plain", "ray"):
        seconds = {}
        for count, place in corpus.items():
            out = folder / f"{way}-{count}"
            extra = ["--ray"] if way == "ray" else []
            seconds[count] = run_command(place, out if extra else out.with_suffix(".parquet"), *extra)
        read = read_scores(str(out)) if way == "ray" else read_table(out.with_suffix(".parquet"))
        rows[way] = {row.path: replace(row, seconds=0) for row in read}
        assert len(rows[way]) == files
        assert all(row.status == "ok" for row in rows[way].values())
        lines.append(
            {
                "way": way,
                "files": files,
                "seconds": round(seconds[files], 2),
                "start_up": round(seconds[1], 2),
                "files_a_second": round(files / seconds[files], 4),
                "files_a_second_without_start_up": round((files - 1) / (seconds[files] - seconds[1]), 4),
            }
        )
        plain = lines[0]
        for name in ("files_a_second", "files_a_second_without_start_up"):
            lines[-1][f"{name}_by_plain"] = round(lines[-1][name] / plain[name], 3)
        lines[-1] |= conditions()
        print(lines[-1], flush=True)
    assert rows["ray"] == rows["plain"], "Ray's rows are not those of the plain command"
    return lines


def run_command(corpus: Path, out: Path, *extra: str) -> float:
    """Seconds that `sama score` takes, from its start to its end."""
    words = [sys.executable, "-m", "sama.cli", "score", str(corpus), "--out", str(out), "--device", "cpu", *extra]
    began = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True, timeout=COMMAND_SECONDS)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr}")
    return time.perf_counter() - began


def conditions() -> dict[str, object]:
    return {
        "processor": measure.processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "version": sama.__version__,
        "date": datetime.date.today().isoformat(),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = options.add_mutually_exclusive_group()
    what.add_argument("--rows", type=int, default=1_000_000)
    what.add_argument("--files", type=int, help="score so many, with Ray and without, in place of rows without scoring")
    options.add_argument("--part-rows", type=int, default=1000)
    options.add_argument("--out", type=Path, help="CSV to append to")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lines = against_plain(asked.files, Path(folder)) if asked.files else without_scoring(asked, Path(folder))
    if asked.out:
        new = not asked.out.exists()
        with open(asked.out, "a", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerows(lines)


if __name__ == "__main__":
    main()
