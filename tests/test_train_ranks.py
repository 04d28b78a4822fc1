"""Two ranks train as one process does, also where the backbone waits or a rank can read nothing of a batch."""

from pathlib import Path

import pytest
import torch
from training_runs import assert_same_gradients, config, run_alone_and_as_two

from sama.labels import read_labels
from sama.models import save_weights
from sama.training.ranks import Ranks
from sama.training.setup import datasets, make_feed, make_model


def test_two_ranks_are_one(labels, tmp_path):
    """Same batches, losses over both ranks' parts: the same loss and gradients, but for the order of sums. Weights are
    not compared: Adam's first steps are the gradients' signs, so that rounding shows."""
    model = make_model(config(labels, tmp_path))
    torch.nn.init.normal_(model.head.fc_last.weight)  # 0 at first, and with it the backbone's gradients
    save_weights(model, tmp_path / "start.safetensors", metadata={})
    script = (
        "import dataclasses, sys; from training_runs import MODEL, config; from sama.train import train\n"
        "model = dataclasses.replace(MODEL, weights=sys.argv[3])\n"
        "train(config(sys.argv[2], sys.argv[1], model=model, optim={'batch': 8, 'epochs': 1}))\n"
    )
    arguments = (labels, tmp_path / "start.safetensors")
    (one, two), (state, other) = run_alone_and_as_two(script, arguments, tmp_path)
    assert two["history"][0]["loss"] == pytest.approx(one["history"][0]["loss"], rel=1e-5)
    assert_same_gradients(state, other, least=0.8)


def test_two_ranks_are_one_where_the_backbone_waits(labels, tmp_path):
    """Its parameters have no gradient in the first epoch, on two ranks as on one: none decays, none has a state."""
    script = (
        "import sys; from training_runs import config; from sama.train import train\n"
        "train(config(sys.argv[2], sys.argv[1], optim={'batch': 8, 'epochs': 2, 'statistics_epochs': 1}))\n"
    )
    (one, two), (state, other) = run_alone_and_as_two(script, (labels,), tmp_path)
    losses = [[entry["loss"] for entry in report["history"]] for report in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert {key: int(entry["step"]) for key, entry in state.items()} == {
        key: int(entry["step"]) for key, entry in other.items()
    }
    assert {int(entry["step"]) for entry in state.values()} == {1, 2}


UNREADABLE_SCRIPT = """
import dataclasses, sys
from training_runs import MODEL, config
from sama.train import train
model = dataclasses.replace(MODEL, scale_bias=True, scale_excitation=True)
train(config(sys.argv[2], sys.argv[1], model=model, optim={'batch': 2, 'epochs': 1}, checkpoint_minutes=0))
"""


def test_batches_of_which_nothing_can_be_read(labels, tmp_path):
    """Of four batches of two files the first has none; on two ranks the second rank has none of the third either."""
    told = config(labels, tmp_path / "out", optim={"batch": 2})
    items = datasets(told)["train"]
    feed = make_feed(told, items, Ranks(0, 1, torch.device("cpu")), train=True)
    first, _, third, _ = feed.batches(0)
    damaged = {Path(items[n].path).name for n in (*first, third[1])}
    for item in read_labels(labels):
        name = Path(item.path).name
        content = Path(item.path).read_bytes()
        (tmp_path / name).write_bytes(content[:200] if name in damaged else content)
    (tmp_path / "labels.csv").write_text(labels.read_text())
    reports, states = run_alone_and_as_two(UNREADABLE_SCRIPT, (tmp_path / "labels.csv",), tmp_path)
    for report in reports:
        assert {Path(path).name for path in report["failed"]} == damaged
        assert 0 < report["history"][0]["loss"] < 1
    assert reports[0]["history"][0]["loss"] == pytest.approx(reports[1]["history"][0]["loss"], rel=1e-2)
    assert {int(entry["step"]) for state in states for entry in state.values()} == {4}
