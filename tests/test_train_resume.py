"""A training run that was killed resumes exactly, and only with the settings and labels that it began with."""

import dataclasses
import json
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from training_runs import assert_equal_weights, config

from sama.train import main
from sama.training.config import Data
from sama.training.loop import train

pytestmark = pytest.mark.usefixtures("few_draws")


def test_a_killed_run_goes_on_exactly(labels, tmp_path, monkeypatch, capsys):
    """Kill -9 in the middle of an epoch, with a checkpoint after every step; then go on, in a process of its own."""
    common = [
        *("--data.labels", str(labels), "--model.size", "nano", "--sampling.grid", "[2,2]"),
        *("--sampling.fragment", "[16,16]", "--sampling.clip_len", "4", "--sampling.interval", "1"),
        *("--sampling.num_clips", "1", "--optim.batch", "2", "--optim.epochs", "3", "--optim.backbone_lr", "1"),
        *("--optim.statistics_epochs", "1"),
        *("--device", "cpu", "--checkpoint_minutes", "0", "--workers", "1"),
    ]
    assert main([*common, "--out", str(tmp_path / "whole")]) == 0
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "sama.train", *common, "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (out / "last.pt").exists():
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    assert process.wait() == -signal.SIGKILL
    saved = torch.load(out / "last.pt", weights_only=True)
    assert (saved["epoch"], saved["batch"]) < (3, 0)
    monkeypatch.setattr(sys, "argv", ["sama.train", *common, "--out", str(out)])
    monkeypatch.delitem(sys.modules, "sama.train")
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("sama.train", run_name="__main__")  # as python -m does
    assert ended.value.code == 2
    assert "holds a run already: resume it with --resume true" in capsys.readouterr().err
    again = subprocess.run([*command, "--resume", "true"], capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert_equal_weights(tmp_path / "whole", out)
    losses = [
        [epoch["loss"] for epoch in json.loads((run / "report.json").read_text())["history"]]
        for run in (tmp_path / "whole", out)
    ]
    assert losses[0] == losses[1]


def test_other_labels_are_not_gone_on_with(labels, tmp_path, capsys):
    """A label file that was changed would renumber the files, and with them every draw; another decoder is said."""
    data = Data(labels=str(tmp_path / "labels.csv"), root=str(labels.parent))
    (tmp_path / "labels.csv").write_text(labels.read_text())
    told = config(labels, tmp_path / "run", data=data, resume=True, optim={"epochs": 1})
    train(told)
    train(dataclasses.replace(told, decoder="pyav"))
    assert "is resumed, but not exactly as it would have ended: decoder auto, now pyav" in capsys.readouterr().err
    (tmp_path / "labels.csv").write_text(labels.read_text().replace(",93,", ",92,"))
    with pytest.raises(ValueError, match="the label file has changed"):
        train(told)


def test_it_is_not_gone_on_with_other_settings(labels, tmp_path):
    train(config(labels, tmp_path / "run", optim={"epochs": 1}))
    with pytest.raises(ValueError, match="trained with other settings of optim, seed"):
        train(config(labels, tmp_path / "run", seed=5, resume=True))


def test_files_that_failed_before_a_resume_stay_named(labels, tmp_path):
    text = labels.read_text() + "missing.mp4,50,99,train\n"
    (labels.parent / "more.csv").write_text(text)
    told = config(labels.parent / "more.csv", tmp_path / "run", resume=True, optim={"epochs": 1, "batch": 9})
    for _ in range(2):  # the second has nothing left to train
        assert [Path(path).name for path in train(told)["failed"]] == ["missing.mp4"]


def test_runs_of_versions_that_had_fewer_settings_are_gone_on_with(labels, tmp_path):
    """What they did not have is at its default; anything else is another setting."""
    told = config(labels, tmp_path / "run", resume=True, optim={"epochs": 1})
    train(told)
    path = tmp_path / "run" / "last.pt"
    saved = torch.load(path, weights_only=True)
    del saved["config"]["attention"], saved["config"]["data"]["reference"], saved["config"]["data"]["tests"]
    torch.save(saved, path)
    assert len(train(told)["history"]) == 1
    with pytest.raises(ValueError, match="trained with other settings of data: "):
        train(dataclasses.replace(told, data=dataclasses.replace(told.data, soften=0.5)))
