"""Scoring a folder that strangers filled: a row for each file, nothing opened but the file, the same table again.

500 files; `SAMA_HOSTILE=5000` makes it as many.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
from generator import fill
from test_containers import Watch, server  # noqa: F401 - a fixture
from videos import write_video

COUNT = int(os.environ.get("SAMA_HOSTILE", "500"))
TIMEOUT = 60  # seconds of a file; none of these takes as long
MEMORY = 4 << 30  # of the process: 2 GB of the budget for decoders, and what libraries and their models take

SCORE = """
import json, resource, sys
from pathlib import Path
import sama
from sama.journal import Journal
from sama.limits import Limits
from sama.model import random_model
from sama.scoring import score_files

folder, out = sys.argv[1:]
model = random_model(device="cpu")
model.metadata |= {"clip_len": 4, "num_clips": 2}
model.sampler = sama.VideoSampler(grid=(2, 2), fragment=(16, 16), layout="patches")
model.token_maps = lambda samples: samples.flatten(1).double().cos().mean(1)[:, None]  # every pixel counts
paths = sorted(str(path) for path in Path(folder).iterdir())
with Journal(out, ("model", "settings")) as journal:
    for row in score_files(paths, model, decoder="pyav", workers=2, limits=Limits(timeout=float("60"))):
        row.model, row.settings = "model", "settings"
        journal.add(row)
    journal.finish(paths)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="watches files by inotify")
def test_a_folder_that_strangers_filled(tmp_path, server):  # noqa: F811
    port, connections = server
    bait = tmp_path / "bait"
    bait.mkdir()
    write_video(bait / "other.ts", "libx264", num_frames=5)
    folder = tmp_path / "folder"
    files = fill(folder, bait / "other.ts", port, count=COUNT)
    assert len(files) == COUNT
    watch = Watch(bait)
    tables = []
    for out in (tmp_path / "first.jsonl", tmp_path / "second.jsonl"):
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", SCORE, str(folder), str(out)], capture_output=True, timeout=60 + COUNT
        )
        assert done.returncode == 0, (out, done.returncode, done.stderr[-2000:])
        assert int(done.stdout) < MEMORY
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        print(f"{len(rows)} rows in {time.monotonic() - began:.0f} s, {int(done.stdout) >> 20} MiB")
        assert [row["path"] for row in rows] == [str(path) for path in files]
        assert max(row["seconds"] for row in rows) < TIMEOUT
        assert all((row["status"] == "ok") == (row["score"] is not None) for row in rows)
        assert all(row["reason"] for row in rows if row["status"] == "error")
        tables.append([{**row, "seconds": 0} for row in rows])
    assert (watch.opened(), connections) == (set(), [])
    for first, second in zip(*tables, strict=True):
        assert first == second
    good = sum(row["status"] == "ok" for row in tables[0])
    assert COUNT // 10 < good < COUNT * 9 // 10  # or the generator would be of no use
    assert done.stderr == b""
