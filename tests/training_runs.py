"""Small training runs for the tests: settings, what a run leaves, a run on one process and on two."""

import json
import os
import pickle
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import torch

from sama.evaluation import evaluate_predictions
from sama.training.config import Config, Data, Model, Optim, Sampling
from sama.training.loop import train

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


@contextmanager
def few_draws():
    """20 draws for the intervals of a report instead of 1,000, which take more time than a short training: that they
    hold what they should is tested in test_metrics.py and test_evaluate.py."""
    defaults = evaluate_predictions.__kwdefaults__
    before, defaults["samples"] = defaults["samples"], 20
    try:
        yield
    finally:
        defaults["samples"] = before


def run_in_turn(folder, runs):
    """Train with each of `runs`, name -> changes of `config`, into `folder / name`."""
    for name, changes in runs.items():
        print(name, file=sys.stderr, flush=True)  # above the error, if there is one
        with few_draws():
            train(config(out=folder / name, **changes))


def run_on_two_ranks(folder, runs):
    """The same on two ranks, started as the README says."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    (folder / "runs.pickle").write_bytes(pickle.dumps((folder, runs)))
    (folder / "run.py").write_text(
        "import pickle, sys\nfrom training_runs import run_in_turn\n"
        "run_in_turn(*pickle.load(open(sys.argv[1], 'rb')))\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, str(folder / "run.py"), str(folder / "runs.pickle")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def report_and_states(out):
    """What a run left: its report, the states of its optimiser."""
    saved = torch.load(out / "last.pt", weights_only=True)
    return json.loads((out / "report.json").read_text()), saved["optimizer"]["state"]
