"""kill -9 at any moment, with two threads: what is resumed ends as what was left alone.

Three kills of scoring; `SAMA_KILLS=30` makes them 30, and kills training 10 times (one kill of it is always tested, in
`test_train_resume.py`).
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from training_runs import assert_equal_weights
from videos import write_video

KILLS = int(os.environ.get("SAMA_KILLS", "3"))

# One process imports everything and forks for each run, so that a run begins at once.
RUNS = """
import json, os, random, signal, sys, time
import torch, sama.scoring
from sama import cli

command, kills, begun = json.loads(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
draw, killed = random.Random(0), 0
first = True
while True:
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(2)
        os._exit(cli.main([*command, *([] if first else ["--resume"])]))
    if killed < kills:
        time.sleep(draw.uniform(0.1, float(sys.argv[4])))
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    first = not any(map(os.path.exists, begun))
    if os.WIFSIGNALED(status):
        killed += 1
        continue
    print(os.waitstatus_to_exitcode(status), killed)
    break
"""


def run(command, kills, begun, longest):
    """Run `sama score`, killed and resumed; its last exit status, and how often it was killed.

    begun: files of which one is there once there is something to resume; longest: seconds before a kill
    """
    env = os.environ | {"OMP_NUM_THREADS": "2"}
    words = [json.dumps([*map(str, command)]), str(kills), json.dumps([*map(str, begun)]), str(longest)]
    finished = subprocess.run(
        [sys.executable, "-c", RUNS, *words],
        capture_output=True,
        text=True,
        timeout=120 + 60 * kills,
        env=env,
    )
    assert finished.returncode == 0, finished.stderr
    return [int(number) for number in finished.stdout.split()[-2:]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Good files, a damaged one, and one that is no video."""
    folder = tmp_path_factory.mktemp("killed")
    for n in range(6):
        write_video(folder / f"{n}.mp4", ("mpeg4", "libx264")[n % 2], size=(160, 120), num_frames=16)
    data = bytearray((folder / "0.mp4").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 300] = bytes(300)
    (folder / "damaged.mp4").write_bytes(data)
    (folder / "text.mp4").write_text("no video\n")
    return folder


def test_scoring(folder, tmp_path):
    def table(name, kills):
        out = tmp_path / name
        assert run(["score", folder, "--device", "cpu", "-o", out], kills, [out, f"{out}.partial"], 2.5)[0] == 1
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        return [{**row, "seconds": 0} for row in rows]

    whole = table("whole.jsonl", 0)
    assert len(whole) == 8
    assert table("killed.jsonl", KILLS) == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed.jsonl", "whole.jsonl"]


def train(common, out, draw=None):
    """Train in a process of its own; with draw, kill it soon after it has written a resume point. Its exit status."""
    command = [sys.executable, "-m", "sama.train", *map(str, common), "--out", str(out)]
    point = out / "last.pt"
    before = point.stat().st_mtime_ns if point.exists() else None
    command += ["--resume", "true"] if before else []
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "2"}) as process:
        while draw is not None and process.poll() is None:
            if point.exists() and point.stat().st_mtime_ns != before:
                time.sleep(draw.uniform(0, 0.3))
                process.kill()
                break
            time.sleep(0.002)
        return process.wait(timeout=300)


@pytest.mark.skipif("SAMA_KILLS" not in os.environ, reason="on request: SAMA_KILLS=30")
def test_training(labels, tmp_path):
    common = [
        *("--data.labels", labels, "--model.size", "nano", "--sampling.grid", "[2,2]"),
        *("--sampling.fragment", "[16,16]", "--sampling.clip_len", "4", "--sampling.interval", "1"),
        *("--sampling.num_clips", "1", "--optim.batch", "2", "--optim.epochs", "4", "--optim.backbone_lr", "1"),
        *("--optim.statistics_epochs", "1", "--device", "cpu", "--checkpoint_minutes", "0", "--workers", "2"),
    ]
    whole, killed, draw = tmp_path / "whole", tmp_path / "killed", random.Random(0)
    assert train(common, whole) == 0
    statuses = [train(common, killed, draw) for _ in range(max(1, KILLS // 3))]
    assert -signal.SIGKILL in statuses
    assert set(statuses) <= {-signal.SIGKILL, 0}  # the last ones may have nothing left to do
    assert train(common, killed) == 0
    assert_equal_weights(whole, killed)
    saved = [torch.load(out / "last.pt", weights_only=True) for out in (whole, killed)]
    assert [epoch["loss"] for epoch in saved[0]["history"]] == [epoch["loss"] for epoch in saved[1]["history"]]
