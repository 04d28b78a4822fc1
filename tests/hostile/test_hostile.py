"""Scoring a folder that strangers filled: a row for each file, nothing opened but the file, the same table again.

500 files; `SAMA_HOSTILE=5000` makes it as many, and `SAMA_HOSTILE_SEED=1` others.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from generator import fill
from score_folder import TIMEOUT
from test_containers import server  # noqa: F401 - a fixture
from videos import write_video
from watch import Watch

COUNT = int(os.environ.get("SAMA_HOSTILE", "500"))
SEED = int(os.environ.get("SAMA_HOSTILE_SEED", "0"))
MEMORY = 4 << 30  # of the process: 2 GB of the budget for decoders, and what libraries and their models take
FIRST_USE = "compiling the CPU kernel, once\n"  # of this program, on a machine where it is new
HERE = Path(__file__).parent


def score(folder: Path, out: Path, *, workers: int) -> list[dict]:
    """The rows of a folder, scored in a process of its own, but for their seconds."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(HERE / "score_folder.py"), str(folder), str(out), str(workers)]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120 + 4 * COUNT, env=env)
    said = done.stderr.replace(FIRST_USE, "")
    assert (done.returncode, said) == (0, "")  # not a word from any library
    assert int(done.stdout) < MEMORY
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    print(f"{len(rows)} rows in {time.monotonic() - began:.0f} s, {int(done.stdout) >> 20} MiB, {workers} workers")
    assert max(row["seconds"] for row in rows) < TIMEOUT
    return [{**row, "seconds": 0} for row in rows]


@pytest.mark.skipif(sys.platform != "linux", reason="watches files by inotify")
def test_a_folder_that_strangers_filled(tmp_path, server):  # noqa: F811
    """Twice: two files at a time, and one at a time under a watch on the folder."""
    port, connections = server
    bait = tmp_path / "bait"
    bait.mkdir()
    write_video(bait / "other.ts", "libx264", num_frames=5)
    folder = tmp_path / "folder"
    files = fill(folder, bait / "other.ts", port, count=COUNT, seed=SEED)
    assert len(files) == COUNT
    watch = Watch(bait)
    first = score(folder, tmp_path / "first.jsonl", workers=2)
    second = score(folder, tmp_path / "second.jsonl", workers=1)
    assert (watch.opened(), connections) == (set(), [])
    assert [row["path"] for row in first] == [str(path) for path in files]
    assert all((row["status"] == "ok") == (row["score"] is not None) for row in first)
    assert all(row["reason"] for row in first if row["status"] == "error")
    for one, again in zip(first, second, strict=True):
        assert one == again
    good = sum(row["status"] == "ok" for row in first)
    assert COUNT // 10 < good < COUNT * 9 // 10  # or the generator would be of no use
