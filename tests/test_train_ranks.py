"""Two ranks train as one process does, also where the backbone waits or a rank can read nothing of a batch."""

import dataclasses
from pathlib import Path

import pytest
import torch
from training_runs import MODEL, assert_same_gradients, config, report_and_states, run_in_turn, run_on_two_ranks

from sama.labels import read_labels
from sama.models import save_weights
from sama.training.ranks import Ranks
from sama.training.setup import datasets, make_feed, make_model


@pytest.fixture(scope="module")
def damaged(labels, tmp_path_factory):
    """The labels of a set like `labels`, and the names of its files that cannot be read: of four batches of two files
    the first has none left; on two ranks the second rank has none of the third either."""
    root = tmp_path_factory.mktemp("damaged")
    told = config(labels, root / "out", optim={"batch": 2})
    items = datasets(told)["train"]
    feed = make_feed(told, items, Ranks(0, 1, torch.device("cpu")), train=True)
    first, _, third, _ = feed.batches(0)
    names = {Path(items[n].path).name for n in (*first, third[1])}
    for item in read_labels(labels):
        name = Path(item.path).name
        content = Path(item.path).read_bytes()
        (root / name).write_bytes(content[:200] if name in names else content)
    (root / "labels.csv").write_text(labels.read_text())
    return root / "labels.csv", names


@pytest.fixture(scope="module")
def trained(labels, damaged, tmp_path_factory):
    """By name of the run: what it left in one process, and on two ranks. One launch makes all runs of two ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.manual_seed(0)
    model = make_model(config(labels, folder))
    torch.nn.init.normal_(model.head.fc_last.weight)  # 0 at first, and with it the backbone's gradients
    save_weights(model, folder / "start.safetensors", metadata={})
    started = dataclasses.replace(MODEL, weights=str(folder / "start.safetensors"))
    scaled = dataclasses.replace(MODEL, scale_bias=True, scale_excitation=True)
    runs = {
        "step": {"labels": labels, "model": started, "optim": {"batch": 8, "epochs": 1}},
        "waits": {"labels": labels, "optim": {"batch": 8, "epochs": 2, "statistics_epochs": 1}},
        "unreadable": {
            "labels": damaged[0],
            "model": scaled,
            "optim": {"batch": 2, "epochs": 1},
            "checkpoint_minutes": 0,
        },
    }
    for name in ("one", "two"):
        (folder / name).mkdir()
    run_in_turn(folder / "one", runs)
    run_on_two_ranks(folder / "two", runs)
    return {run: [report_and_states(folder / name / run) for name in ("one", "two")] for run in runs}


def test_two_ranks_are_one(trained):
    """Same batches, losses over both ranks' parts: the same loss and gradients, but for the order of sums. Weights are
    not compared: Adam's first steps are the gradients' signs, so that rounding shows."""
    (one, state), (two, other) = trained["step"]
    assert two["history"][0]["loss"] == pytest.approx(one["history"][0]["loss"], rel=1e-5)
    assert_same_gradients(state, other, least=0.8)


def test_two_ranks_are_one_where_the_backbone_waits(trained):
    """Its parameters have no gradient in the first epoch, on two ranks as on one: none decays, none has a state."""
    (one, state), (two, other) = trained["waits"]
    losses = [[entry["loss"] for entry in report["history"]] for report in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert {key: int(entry["step"]) for key, entry in state.items()} == {
        key: int(entry["step"]) for key, entry in other.items()
    }
    assert {int(entry["step"]) for entry in state.values()} == {1, 2}


def test_batches_of_which_nothing_can_be_read(trained, damaged):
    (one, state), (two, other) = trained["unreadable"]
    for report in (one, two):
        assert {Path(path).name for path in report["failed"]} == damaged[1]
        assert 0 < report["history"][0]["loss"] < 1
    assert one["history"][0]["loss"] == pytest.approx(two["history"][0]["loss"], rel=1e-2)
    assert {int(entry["step"]) for entry in (*state.values(), *other.values())} == {4}
