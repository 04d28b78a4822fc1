"""kill -9 at any moment, with two threads: what is resumed ends as what was left alone.

Three kills of scoring and two of training; `SAMA_KILLS=30` makes them 30 and 10.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from training_runs import assert_equal_weights
from videos import write_video

KILLS = int(os.environ.get("SAMA_KILLS", "3"))

# One process imports everything and forks for each run, so that a run begins at once.
RUNS = """
import json, os, random, signal, sys, time
import torch, sama.scoring, sama.evaluate
from sama import cli, train

command, kills, begun = json.loads(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
draw, killed = random.Random(0), 0
first = True
while True:
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(2)
        resume = [] if first else (["--resume"] if command[0] == "score" else ["--resume", "true"])
        os._exit(cli.main([*command, *resume]))
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
    """Run a command of `sama`, killed and resumed; its last exit status, and how often it was killed.

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


def test_training(labels, tmp_path):
    common = [
        *("train", "--data.labels", labels, "--model.size", "nano", "--sampling.grid", "[2,2]"),
        *("--sampling.fragment", "[16,16]", "--sampling.clip_len", "4", "--sampling.interval", "1"),
        *("--sampling.num_clips", "1", "--optim.batch", "2", "--optim.epochs", "4", "--optim.backbone_lr", "1"),
        *("--optim.statistics_epochs", "1", "--device", "cpu", "--checkpoint_minutes", "0", "--workers", "2"),
    ]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run([*common, "--out", whole], 0, [whole / "last.pt"], 3) == [0, 0]
    status, kills = run([*common, "--out", killed], max(2, KILLS // 3), [killed / "last.pt"], 3)
    assert (status, kills > 0) == (0, True)
    assert_equal_weights(whole, killed)
    saved = [torch.load(out / "last.pt", weights_only=True) for out in (whole, killed)]
    assert [epoch["loss"] for epoch in saved[0]["history"]] == [epoch["loss"] for epoch in saved[1]["history"]]
