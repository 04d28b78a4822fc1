"""What a user can get wrong, given to the real commands: a line that names it, status 2, and never a traceback."""

import json
import re

import pytest
import torch
from small_models import save_nano

from sama import cli, train
from sama.model import DEFAULT_WEIGHTS

SETTINGS = {"mode": "sama", "grid": [7, 7], "fragment": [32, 32], "clip_len": 4, "interval": 2, "num_clips": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Wrong files of every kind."""
    root = tmp_path_factory.mktemp("wrong")
    (root / "text.pth").write_text("no weights")
    (root / "cut.safetensors").write_bytes(DEFAULT_WEIGHTS.read_bytes()[:5000])
    (root / "empty.pth").write_bytes(b"")
    torch.save({"epoch": 3}, root / "other.pth")
    (root / "labels.csv").write_text("path,mos\na.mp4,1\nb.mp4,2\n")
    (root / "headless.csv").write_text("a,b\n1,2\n")
    (root / "wide.csv").write_text(f"path,mos\n{'x' * 200_000},1\n")
    (root / "numbers.json").write_text("5")
    (root / "typed.json").write_text(json.dumps([{"path": "a.mp4", "score": "high"}]))
    return root


COMMANDS = {  # arguments, with {0} for the folder, and what the line names
    "missing weights": ("inspect x.mp4 --weights {0}/none.pth", "no such file: .*none.pth"),
    "text as weights": ("inspect x.mp4 --weights {0}/text.pth", "neither a PyTorch nor a safetensors file"),
    "cut weights": ("inspect x.mp4 --weights {0}/cut.safetensors", "not a whole safetensors file"),
    "empty weights": ("inspect x.mp4 --weights {0}/empty.pth", "neither a PyTorch nor a safetensors file"),
    "other weights": ("inspect x.mp4 --weights {0}/other.pth", "no checkpoint we know"),
    "folder as weights": ("inspect x.mp4 --weights {0}", "Is a directory"),
    "mode": ("inspect x.mp4 --mode nonsense", "unknown mode 'nonsense'; known modes: sama"),
    "device": ("inspect x.mp4 --device nonsense", "unknown device 'nonsense'"),
    "no GPU": ("inspect x.mp4 --device cuda:77", "was asked for"),
    "kind of device": ("inspect x.mp4 --device meta", "computes on cpu and cuda"),
    "picture format": ("inspect x.mp4 -o {0}/x.nonsense", "must end in .png"),
    "missing video": ("inspect {0}/none.mp4 -o {0}/x.png", "none.mp4: no such file"),
    "decoder": ("score {0} --decoder nonsense", "unknown decoder 'nonsense'; known: auto"),
    "nothing to score": ("score {0}", "no video files in"),
    "table format": ("score x.mp4 -o {0}/x.txt", "cannot tell the format"),
    "table folder": ("score x.mp4 -o {0}/none/x.csv", "there is no folder"),
    "batch": ("score x.mp4 --batch 0", "--batch must be more than 0"),
    "retry alone": ("score x.mp4 --retry", "give --resume too"),
    "labels": ("evaluate {0}/none.csv {0}", "no such file: .*none.csv"),
    "header": ("evaluate {0}/headless.csv {0}", "headless.csv, line 1: got 'a,b', which is of no known form"),
    "huge field": ("evaluate {0}/wide.csv {0}", "no CSV: field larger"),
    "column": ("evaluate {0}/labels.csv {0} --by nonsense", "no column 'nonsense'"),
    "bootstrap seed": ("evaluate {0}/labels.csv {0} --seed -1", "--seed must be at least 0"),
    "numbers as table": ("evaluate {0}/labels.csv {0} --predictions {0}/numbers.json", "numbers.json is no table"),
    "words as scores": ("evaluate {0}/labels.csv {0} --predictions {0}/typed.json", "value of the wrong type"),
    "folder of labels": ("data check {0}/labels.csv {0}/none", "there is no folder"),
    "checkpoint": ("weights {0}/text.pth", "neither a PyTorch nor a safetensors file"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands(folder, capsys, name):
    arguments, expected = COMMANDS[name]
    assert cli.main(arguments.format(folder).split()) == 2
    assert_one_line(capsys, "sama: ", expected)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("--workers -3", "workers must be at least 1; got -3"),
        ("--workers 0", "workers must be at least 1; got 0"),
        ("--optim.weight_decay -1", "optim.weight_decay must be at least 0; got -1"),
        ("--optim.lr .nan", "optim.lr must be at least 0; got nan"),
        ("--model.dropout 2", r"model.dropout must be in \[0, 1\); got 2"),
        ("--model.drop_path 2", r"model.drop_path must be in \[0, 1\); got 2"),
        ("--optim.ema 1", r"optim.ema must be in \[0, 1\); got 1"),
        ("--seed -1", "seed must be at least 0; got -1"),
        ("--sweep.seeds [-1]", "seed must be at least 0; got -1"),
        ("--sampling.clip_len 0", "sampling.clip_len must be at least 1; got 0"),
        ("--decoder nonsense", "unknown decoder 'nonsense'"),
        ("--device meta", "computes on cpu and cuda"),
        ("--data.root nowhere", "none of the 1 files of the set 'train' exists"),
        ("--model.weights none.pth", "no such file: none.pth"),
        ("--sampling.mode nonsense", "unknown mode 'nonsense'"),
    ],
)
def test_settings_of_training(folder, tmp_path, capsys, setting, expected):
    (tmp_path / "labels.csv").write_text("path,mos,split\na.mp4,1,train\nb.mp4,2,val\n")
    (tmp_path / "a.mp4").write_bytes(b"")
    (tmp_path / "b.mp4").write_bytes(b"")
    arguments = ["--data.labels", str(tmp_path / "labels.csv"), "--model.size", "nano", "--out", str(tmp_path / "run")]
    assert train.main([*arguments, *setting.split()]) == 2
    assert_one_line(capsys, "sama.train: ", expected)


@pytest.mark.parametrize(
    "changed",
    [
        {"clip_len": "x"},
        {"clip_len": 0},
        {"num_clips": -1},
        {"grid": 7},
        {"grid": "77"},
        {"fragment": [32]},
        {"mode": 3},
        {"pair_weights": [1.0] * 50},
        {"pair_weights": "1"},
        {"calibration": 3},
        {"calibration": {"scale": "x", "kind": "cubic"}},
        {"calibration": {"scale": "x", "kind": "linear"}},
    ],
    ids=str,
)
def test_metadata_of_a_checkpoint(tmp_path, capsys, changed):
    path = save_nano(tmp_path / "x.safetensors", SETTINGS | changed)
    assert cli.main(["inspect", "x.mp4", "--weights", str(path), "--device", "cpu"]) == 2
    assert_one_line(capsys, "sama: ", f"its metadata say {next(iter(changed))} = ")


@pytest.mark.parametrize("kind", ["size", "options", "json"])
def test_metadata_that_make_no_model(tmp_path, capsys, kind):
    path = save_nano(tmp_path / "x.safetensors", SETTINGS)
    content = path.read_bytes()
    changes = {"size": (b'"\\"nano\\""', b'"\\"huge\\""'), "options": (b'\\"dropout\\": 0.5', b'\\"dropout\\": 7.5')}
    old, new = changes.get(kind, (b'"\\"nano\\""', b'"{nano--}"'))
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))
    assert cli.main(["inspect", "x.mp4", "--weights", str(path), "--device", "cpu"]) == 2
    assert_one_line(capsys, "sama: ", "no JSON" if kind == "json" else "describe no model of this version")


@pytest.mark.parametrize(
    "content", [b"", b"text", bytes(4000), b"PK\x03\x04 cut"], ids=["empty", "text", "zeros", "cut"]
)
def test_a_damaged_resume_point(tmp_path, capsys, content):
    (tmp_path / "labels.csv").write_text("path,mos,split\na.mp4,1,train\nb.mp4,2,val\n")
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.pt").write_bytes(content)
    arguments = ["--data.labels", str(tmp_path / "labels.csv"), "--model.size", "nano", "--out", str(tmp_path / "run")]
    assert train.main([*arguments, "--resume", "true"]) == 2
    assert_one_line(capsys, "sama.train: ", "last.pt is damaged or no resume point, so the run cannot be resumed")
    torch.save([1, 2], tmp_path / "run" / "last.pt")
    assert train.main([*arguments, "--resume", "true"]) == 2
    assert_one_line(capsys, "sama.train: ", "is damaged or no resume point")


def assert_one_line(capsys, start: str, expected: str) -> None:
    """Standard error has one message with what is expected, and no traceback; other lines describe model and data."""
    captured = capsys.readouterr().err
    assert "Traceback" not in captured
    messages = [line for line in captured.splitlines() if line.startswith(start)]
    assert len(messages) == 1, captured
    assert re.search(expected, messages[0]), messages[0]
