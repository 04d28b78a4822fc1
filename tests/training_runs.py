"""Small training runs for the tests: settings, what a run leaves, a run on one process and on two."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from sama.training.config import Config, Data, Model, Optim, Sampling

SAMPLING = Sampling(grid=(2, 2), fragment=(16, 16), clip_len=4, interval=1, num_clips=1)
MODEL = Model(size="nano", dropout=0.0, drop_path=0.0)


def config(labels, out, **changes) -> Config:
    optim = {"epochs": 2, "batch": 4, "lr": 1e-3, "backbone_lr": 1.0, "warmup_epochs": 0.5, "ema": 0.5}
    told = {"data": Data(labels=str(labels)), "model": MODEL, "sampling": SAMPLING, "device": "cpu", "out": str(out)}
    optim = Optim(**optim | changes.pop("optim", {}))
    return Config(optim=optim, **told | changes)


def weights(out) -> dict[str, torch.Tensor]:
    saved = torch.load(Path(out) / "last.pt", weights_only=True)
    return {f"{part}.{name}": tensor for part in ("model", "ema") for name, tensor in saved[part].items()}


def assert_equal_weights(a, b, tolerance=0.0):
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys()
    worst = max((a[name] - b[name]).abs().max().item() for name in a)
    assert worst <= tolerance


def assert_same_gradients(state, other, least):
    """Of the optimiser after one step, in which its first moment is a tenth of the gradient; `least`: the part of the
    parameters whose gradient is not 0."""
    assert state.keys() == other.keys()
    norms = {key: entry["exp_avg"].norm() for key, entry in state.items()}
    for key, norm in norms.items():
        assert (other[key]["exp_avg"] - state[key]["exp_avg"]).norm() <= 1e-4 * norm + 1e-7
    assert sum(norm > 1e-6 for norm in norms.values()) > least * len(norms)


def run_alone_and_as_two(script, arguments, tmp_path):
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    (tmp_path / "run.py").write_text(script)
    for name, command in (("one", [sys.executable]), ("two", launch)):
        done = subprocess.run(
            [*command, str(tmp_path / "run.py"), str(tmp_path / name), *map(str, arguments)],
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two")]
    states = [torch.load(tmp_path / name / "last.pt", weights_only=True)["optimizer"] for name in ("one", "two")]
    return reports, [state["state"] for state in states]
