"""Training: it learns, it can be killed and gone on with, two ranks are one, and what it is told is checked."""

import csv
import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

import sama
from sama import train as training
from sama.models import save_weights
from sama.models.swin3d import cut_patches
from sama.train import configure, make_model, rate, run, train
from sama.training.config import Config, Data, LabelledSet, Model, Optim, Sampling, Sweep

SAMPLING = Sampling(grid=(2, 2), fragment=(16, 16), clip_len=4, interval=1, num_clips=1)
MODEL = Model(size="nano", dropout=0.0, drop_path=0.0)


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """Twelve videos of grey noise, the darker the better; eight are for training, two each for validation and test."""
    root = tmp_path_factory.mktemp("set")
    rows = []
    for k in range(12):
        rng = np.random.default_rng(k)
        with av.open(str(root / f"{k}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"crf": "1", "preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for _ in range(6):
                picture = (20 + 18 * k + 4 * rng.standard_normal((48, 64, 1))).clip(0, 255).astype(np.uint8)
                frame = av.VideoFrame.from_ndarray(np.repeat(picture, 3, axis=2), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        split = {3: "val", 8: "val", 5: "test", 10: "test"}.get(k, "train")
        rows.append({"path": f"{k}.mp4", "mos": 100 - 7 * k, "content": k, "split": split})
    with open(root / "labels.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return root / "labels.csv"


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


def test_it_overfits_eight_clips(labels, tmp_path):
    report = train(
        config(
            labels,
            tmp_path / "run",
            optim={"epochs": 60, "batch": 8, "ema": 0.0},
            data=Data(labels=str(labels), train="train", val="train"),
        )
    )
    assert report["sets"]["val"]["metrics"]["srocc"] == 1
    assert report["history"][-1]["loss"] < report["history"][0]["loss"]


def test_it_leaves_a_model_that_scores(labels, tmp_path):
    """Checkpoint, calibration, report: all that a user finds in the folder."""
    out = tmp_path / "run"
    report = train(config(labels, out))
    assert report == json.loads((out / "report.json").read_text())
    assert {name: entry["files"] for name, entry in report["sets"].items()} == {"val": 2, "test": 2}
    text = (out / "report.md").read_text()
    assert "| [test](test/report.md) | 2 | 2 |" in text
    model = sama.load_model(out / "last.safetensors", "cpu")
    assert model.metadata["mode"] == "sama"
    assert model.metadata["grid"] == [2, 2]
    scored = json.loads((out / "val" / "report.json").read_text())
    results = [model.score(path) for path in scored["paths"]]
    assert [result.score for result in results] == pytest.approx(scored["prediction"], abs=1e-6)
    assert [result.mos for result in results] == pytest.approx(scored["mos"], abs=1e-2)  # a line through two points
    assert {result.mos_scale for result in results} == {"labels"}
    found = {path.name for path in out.iterdir()}
    assert found >= {"best.safetensors", "last.safetensors", "last.pt", "val", "test"}
    assert any(name.startswith("events.out.tfevents") for name in found)


def test_the_same_seed_gives_the_same_weights_and_another_others(labels, tmp_path):
    noisy = {"model": Model(size="nano", dropout=0.5, drop_path=0.2)}
    state = torch.get_rng_state()
    for name, seed, workers in (("a", 1, 1), ("b", 1, 3), ("c", 2, 1)):
        train(config(labels, tmp_path / name, seed=seed, workers=workers, **noisy))
    assert torch.equal(state, torch.get_rng_state())
    assert_equal_weights(tmp_path / "a", tmp_path / "b")
    with pytest.raises(AssertionError):
        assert_equal_weights(tmp_path / "a", tmp_path / "c")


def test_a_killed_run_goes_on_exactly(labels, tmp_path):
    """Kill -9 in the middle of an epoch, with a checkpoint after every step; then go on."""
    common = [
        *("--data.labels", str(labels), "--model.size", "nano", "--sampling.grid", "[2,2]"),
        *("--sampling.fragment", "[16,16]", "--sampling.clip_len", "4", "--sampling.interval", "1"),
        *("--sampling.num_clips", "1", "--optim.batch", "2", "--optim.epochs", "3", "--optim.backbone_lr", "1"),
        *("--optim.statistics_epochs", "1"),
        *("--device", "cpu", "--checkpoint_minutes", "0", "--workers", "1"),
    ]
    command = [sys.executable, "-m", "sama.train", *common]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    whole = subprocess.run(
        [*command, "--out", str(tmp_path / "whole")], env=env, capture_output=True, text=True, timeout=300
    )
    assert whole.returncode == 0, whole.stderr
    out = tmp_path / "killed"
    process = subprocess.Popen([*command, "--out", str(out)], env=env, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (out / "last.pt").exists():
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    assert process.wait() == -signal.SIGKILL
    saved = torch.load(out / "last.pt", weights_only=True)
    assert (saved["epoch"], saved["batch"]) < (3, 0)
    refused = subprocess.run([*command, "--out", str(out)], env=env, capture_output=True, text=True, timeout=300)
    assert refused.returncode == 2
    assert "holds a run already: --resume true goes on with it" in refused.stderr
    again = subprocess.run(
        [*command, "--out", str(out), "--resume", "true"], env=env, capture_output=True, text=True, timeout=300
    )
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
    assert "goes on, but not exactly as it would have: decoder auto, now pyav" in capsys.readouterr().err
    (tmp_path / "labels.csv").write_text(labels.read_text().replace(",93,", ",92,"))
    with pytest.raises(ValueError, match="the label file has changed"):
        train(told)


def test_it_is_not_gone_on_with_other_settings(labels, tmp_path):
    train(config(labels, tmp_path / "run", optim={"epochs": 1}))
    with pytest.raises(ValueError, match="trained with other settings of optim, seed"):
        train(config(labels, tmp_path / "run", seed=5, resume=True))


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


def test_two_ranks_are_one(labels, tmp_path):
    """Same batches, losses over both ranks' parts: the same loss and gradients, but for the order of sums. Weights are
    not compared: Adam's first steps are the gradients' signs, so that rounding shows."""
    model = make_model(config(labels, tmp_path))
    torch.nn.init.normal_(model.head.fc_last.weight)  # 0 at first, and with it the backbone's gradients
    save_weights(model, tmp_path / "start.safetensors", metadata={})
    script = (
        "import dataclasses, sys; from test_train import MODEL, config; from sama.train import train\n"
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
        "import sys; from test_train import config; from sama.train import train\n"
        "train(config(sys.argv[2], sys.argv[1], optim={'batch': 8, 'epochs': 2, 'statistics_epochs': 1}))\n"
    )
    (one, two), (state, other) = run_alone_and_as_two(script, (labels,), tmp_path)
    losses = [[entry["loss"] for entry in report["history"]] for report in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert {key: int(entry["step"]) for key, entry in state.items()} == {
        key: int(entry["step"]) for key, entry in other.items()
    }
    assert {int(entry["step"]) for entry in state.values()} == {1, 2}


def test_the_first_epochs_train_the_statistics_alone(labels, tmp_path):
    """The backbone and the tokens' head keep their first weights for an epoch, in the average too; then they learn."""
    before = make_model(config(labels, tmp_path)).state_dict()

    def changed(epochs, statistics_epochs, part):
        out = tmp_path / f"{epochs}-{statistics_epochs}"
        if not out.exists():
            optim = {"epochs": epochs, "statistics_epochs": statistics_epochs, "weight_decay": 0.0, "batch": 8}
            train(config(labels, out, optim=optim))
        after = torch.load(out / "last.pt", weights_only=True)[part]
        return {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}

    for part in ("model", "ema"):
        assert changed(2, 1, part) == {"statistics", "head"}  # the one step of the second epoch; the head was 0
        assert changed(3, 1, part) == {"statistics", "head", "backbone"}


def test_settings_of_statistics_are_checked(labels, tmp_path):
    with pytest.raises(ValueError, match="are for a nano video model"):
        config(labels, tmp_path, model=Model(size="tiny"), optim={"statistics_epochs": 1})
    with pytest.raises(ValueError, match="are for a nano video model"):
        config(labels, tmp_path, model=Model(size="tiny", tokens=False))
    with pytest.raises(ValueError, match=r"must be fewer than optim\.epochs, .* got 2 and 2"):
        config(labels, tmp_path, optim={"statistics_epochs": 2})
    with pytest.raises(ValueError, match="for a model that starts from random weights"):
        config(labels, tmp_path, model=Model(size="nano", weights="some.pth"), optim={"statistics_epochs": 1})


def test_statistics_alone_are_trained_and_score(labels, tmp_path):
    told = config(labels, tmp_path / "run", model=dataclasses.replace(MODEL, tokens=False, whiten=True))
    report = train(told)
    model = sama.load_model(tmp_path / "run" / "last.safetensors", "cpu")
    assert model.module.backbone is None
    scored = json.loads((tmp_path / "run" / "val" / "report.json").read_text())
    results = [model.score(path).score for path in scored["paths"]]
    assert results == pytest.approx(scored["prediction"], abs=1e-6)
    assert np.isfinite(report["history"][-1]["loss"])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Ten pictures of noise, the noisier the worse; eight are for training, two for validation."""
    root, rng, lines = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0), ["path,mos,split"]
    for k in range(10):
        picture = np.clip(128 + 12 * k * rng.standard_normal((90 + k, 120, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(picture).save(root / f"{k}.png")
        lines.append(f"{k}.png,{9 - k},{'val' if k in (1, 4) else 'train'}")
    (root / "labels.csv").write_text("\n".join(lines))
    return root / "labels.csv"


@pytest.mark.parametrize(("batch", "accumulate"), [(4, 2), (2, 5)])
def test_accumulated_batches_make_one_step(pictures, tmp_path, batch, accumulate):
    """The image loss is a mean over items: the mean of the batches' gradients is that of the batch of 8. So it is where
    fewer batches are left than are to be accumulated."""
    moments = {}
    for name, optim in {"whole": {"batch": 8}, "parts": {"batch": batch, "accumulate": accumulate}}.items():
        image = {
            "data": Data(labels=str(pictures)),
            "model": Model(kind="image", size="nano", dropout=0.0, drop_path=0.0),
            "sampling": Sampling(grid=(8, 8), fragment=(32, 32)),
        }
        train(config(pictures, tmp_path / name, optim=optim | {"epochs": 1}, **image))
        saved = torch.load(tmp_path / name / "last.pt", weights_only=True)
        assert {int(entry["step"]) for entry in saved["optimizer"]["state"].values()} == {1}
        assert saved["schedule"]["last_epoch"] == 1
        moments[name] = saved["optimizer"]["state"]
    assert_same_gradients(moments["whole"], moments["parts"], least=0.3)  # residual branches start at zero


def test_gradients_are_clipped_and_those_in_bfloat16_are_near(labels, tmp_path):
    """After one step Adam's first moment is a tenth of the gradient."""

    def gradient(name, clip_norm=0.0, **changes):
        optim = {"batch": 8, "epochs": 1, "clip_norm": clip_norm}
        train(config(labels, tmp_path / name, optim=optim, **changes))
        state = torch.load(tmp_path / name / "last.pt", weights_only=True)["optimizer"]["state"]
        return 10 * torch.cat([entry["exp_avg"].flatten() for entry in state.values()])

    plain, clipped, bfloat16 = gradient("a"), gradient("b", clip_norm=1e-3), gradient("c", dtype="bfloat16")
    assert plain.norm() > 1e-2
    torch.testing.assert_close(clipped, plain * (1e-3 / plain.norm()), rtol=1e-3, atol=1e-8)
    assert 0 < (bfloat16 - plain).norm() < 0.1 * plain.norm()


def test_files_that_fail_are_named_and_left_out(labels, tmp_path):
    rows = labels.read_text().splitlines()
    for name in ("missing.mp4", "damaged.mp4"):
        rows.append(f"{name},50,9,train")
    for name in ("damaged.mp4", *(f"{k}.mp4" for k in range(12))):
        source = labels.parent / (name if name[0].isdigit() else "0.mp4")
        content = source.read_bytes()
        (tmp_path / name).write_bytes(content if name[0].isdigit() else content[:200])
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    report = train(config(tmp_path / "labels.csv", tmp_path / "run", optim={"batch": 5}))
    assert {Path(path).name for path in report["failed"]} == {"missing.mp4", "damaged.mp4"}
    assert all(math.isfinite(record["loss"]) for record in report["history"])
    assert "missing.mp4: no such file" in (tmp_path / "run" / "report.md").read_text()


UNREADABLE_SCRIPT = """
import dataclasses, sys
from test_train import MODEL, config
from sama.train import train
model = dataclasses.replace(MODEL, scale_bias=True, scale_excitation=True)
train(config(sys.argv[2], sys.argv[1], model=model, optim={'batch': 2, 'epochs': 1}, checkpoint_minutes=0))
"""


def test_batches_of_which_nothing_can_be_read(labels, tmp_path):
    """Of four batches of two files the first has none; on two ranks the second rank has none of the third either."""
    told = config(labels, tmp_path / "out", optim={"batch": 2})
    items = training.datasets(told)["train"]
    feed = training.make_feed(told, items, training.Ranks(0, 1, torch.device("cpu")), train=True)
    first, _, third, _ = feed.batches(0)
    damaged = {Path(items[n].path).name for n in (*first, third[1])}
    for item in training.read_labels(labels):
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


def test_files_that_failed_before_a_resume_stay_named(labels, tmp_path):
    text = labels.read_text() + "missing.mp4,50,99,train\n"
    (labels.parent / "more.csv").write_text(text)
    told = config(labels.parent / "more.csv", tmp_path / "run", resume=True, optim={"epochs": 1, "batch": 9})
    for _ in range(2):  # the second has nothing left to train
        assert [Path(path).name for path in train(told)["failed"]] == ["missing.mp4"]


def test_labels_that_are_no_numbers_are_refused(labels, tmp_path):
    text = labels.read_text().replace(",93,", ",nan,")
    assert text != labels.read_text()
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(ValueError, match="line 3"):
        train(config(tmp_path / "labels.csv", tmp_path / "run"))


def test_learning_rate_by_hand():
    """Ten steps an epoch, 2.5 epochs of warm-up, 30 epochs: at both ends of the warm-up, in the middle, at the end."""
    published = Config(data=Data(demo="small"))
    assert rate(0, 10, published) == pytest.approx(1 / 26)
    assert rate(24, 10, published) == pytest.approx(25 / 26)
    assert rate(25, 10, published) == 1
    assert rate(25 + 275 // 5, 10, published) == pytest.approx(0.5 * (1 + math.cos(math.pi / 5)))
    assert rate(300, 10, published) == 0
    constant = dataclasses.replace(published, optim=Optim(epochs=50, warmup_epochs=5, schedule="constant"))
    assert [rate(step, 10, constant) for step in (50, 499)] == [1, 1]
    assert rate(49, 10, constant) == pytest.approx(50 / 51)
    without = dataclasses.replace(published, optim=Optim(warmup_epochs=0))
    assert rate(0, 10, without) == 1


def test_averaged_weights_by_hand():
    """decay 0.75: 0.75 * 4 + 0.25 * 8 = 5; decay 0 copies."""
    ema, model = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(ema.weight, 4.0)
    torch.nn.init.constant_(model.weight, 8.0)
    training.average(ema, model, 0.75)
    assert ema.weight.item() == 5
    training.average(ema, model, 0.0)
    assert ema.weight.item() == 8


def test_the_head_learns_at_the_full_rate(labels, tmp_path):
    told = config(labels, tmp_path, optim={"lr": 2.0, "backbone_lr": 0.1})
    head, rest = training.parameter_groups(make_model(told), told)
    assert (head["lr"], rest["lr"]) == (2.0, 0.2)
    assert len(head["params"]) == 4 + 8  # of the tokens' head and of the statistics


@pytest.mark.parametrize("sign", [1, -1])
def test_a_calibration_does_not_turn_the_order_around(labels, tmp_path, capsys, sign):
    """Scores that rise with the labels get a line onto their scale; those that fall get none, and that is said."""
    told = config(labels, tmp_path)
    items = training.datasets(told)["val"]
    scores = {"scores": {n: 0.1 * sign * item.mos for n, item in enumerate(items)}}
    path = tmp_path / "model.safetensors"
    training.save_model(path, make_model(told), told, items, {"epoch": 0}, scores, items)
    line = sama.load_model(path, "cpu").metadata.get("calibration")
    if sign > 0:
        assert (line["slope"], line["intercept"]) == (pytest.approx(10), pytest.approx(0, abs=1e-6))
    else:
        assert line is None
        assert "model.safetensors has no calibration: scores run against the labels" in capsys.readouterr().err


def test_test_sets_can_be_validated_on_as_published(labels, tmp_path):
    """Split "all", as LSVQ: each epoch is scored on both further sets, the first chooses the best."""
    rows = labels.read_text().splitlines()
    for name, keep in (("a", ("train",)), ("b", ("val",)), ("c", ("test",))):
        chosen = [row for row in rows[1:] if row.rpartition(",")[2] in keep]
        (labels.parent / f"{name}.csv").write_text("\n".join([rows[0], *chosen]))
    a, b, c = (str(labels.parent / f"{name}.csv") for name in "abc")
    data = Data(labels=a, split="all", tests=[LabelledSet(b), LabelledSet(c)], validate=["b", "c"])
    report = train(config(a, tmp_path / "run", data=data))
    assert [sorted(record["validation"]) for record in report["history"]] == [["b", "c"], ["b", "c"]]
    assert sorted(report["published_best_epoch_rule"]) == ["b", "c"]
    for name, best in report["published_best_epoch_rule"].items():
        assert best["srocc"] == max(record["validation"][name]["srocc"] for record in report["history"])
        assert f"Best epoch on {name}" in (tmp_path / "run" / "report.md").read_text()
    assert (tmp_path / "run" / "best.safetensors").exists()
    for wrong in (["d"], ["train"]):
        with pytest.raises(ValueError, match=f"data.validate names '{wrong[0]}'; the sets are b, c"):
            training.datasets(config(a, tmp_path, data=dataclasses.replace(data, validate=wrong)))
    with pytest.raises(ValueError, match="8 files of set 'again' are in the training set too"):
        training.datasets(config(a, tmp_path, data=dataclasses.replace(data, tests=[LabelledSet(a, name="again")])))


def test_a_sweep_compares_samplings(labels, tmp_path):
    told = config(
        labels,
        tmp_path / "sweep",
        sweep=Sweep(samplings=["sama", "resize 1x1 32x32"], seeds=[0, 1]),
        optim={"epochs": 1},
    )
    assert len(run(told)) == 4
    assert {path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir()} == {
        *("sama-0", "sama-1", "resize-1x1-32x32-0", "resize-1x1-32x32-1")
    }
    table = (tmp_path / "sweep" / "sweep.md").read_text()
    assert "| sama | test | 2 |" in table
    assert "| resize 1x1 32x32 | val | 2 |" in table
    assert "| sama | val | best |" in table
    assert "| sama | test | last |" in table
    assert "| sama | test | best |" not in table  # it was scored at the end alone
    with pytest.raises(ValueError, match=r"sweep\.samplings takes"):
        training.parse_sampling("resize 1x1", told)


def test_shipped_configs_are_whole(tmp_path, monkeypatch):
    """Every one is parsed, says at its top what it costs and gives and how it is run, and that command names it."""
    names = sorted(path.stem for path in training.CONFIGS.glob("*.yaml"))
    assert "demo" in names
    for name in names:
        told = configure(["--config", name])
        assert isinstance(told, Config)
        text = (training.CONFIGS / f"{name}.yaml").read_text()
        assert "Cost: " in text
        assert "Expected" in text or "Result" in text
        assert re.search(r"Command: python -m sama.train" + ("\n" if name == "demo" else f" --config {name}\\b"), text)
    assert configure([]) == configure(["--config", "demo"])
    assert configure(["--config=demo", "--optim.epochs", "9"]).optim.epochs == 9
    lsvq = configure(["--config", "lsvq"]).data
    assert ([one.name for one in lsvq.tests], lsvq.validate) == (["test", "1080p"], ["test", "1080p"])
    other = configure(["--config", "lsvq", "--data.tests", "[{labels: F, root: D, name: test}]"])
    assert other.data.tests == [LabelledSet("F", "D", "test")]
    (tmp_path / "demo").mkdir()  # a folder of that name is in nobody's way
    monkeypatch.chdir(tmp_path)
    assert configure([]).data.demo == "small"


def test_shipped_batches_are_shared_by_eight_ranks():
    """As the README's command has it."""
    for path in training.CONFIGS.glob("*.yaml"):
        told = configure(["--config", path.stem])
        items = [training.Item(f"{k}.mp4", 0.0, str(k)) for k in range(99)]
        shares = [
            training.make_feed(told, items, training.Ranks(k, 8, torch.device("cpu")), train=True) for k in (0, 7)
        ]
        assert all(len(share.batches()[0]) > 0 for share in shares)


def test_what_is_told_wrongly_is_refused(tmp_path, capsys):
    for arguments in (["--optim.epoch", "3"], ["--optim.epochs", "many"], ["--config", "none.yaml"]):
        with pytest.raises(SystemExit):
            configure(["--data.demo", "small", *arguments])
    with pytest.raises(ValueError, match=r"optim\.epochs must be at least 1; got 0"):
        Config(data=Data(demo="small"), optim=Optim(epochs=0))
    with pytest.raises(ValueError, match=r"optim\.batch must be at least 2; got 1"):  # of videos: losses compare them
        Config(data=Data(demo="small"), optim=Optim(batch=1))
    assert Config(data=Data(demo="small"), model=Model(kind="image"), optim=Optim(batch=1)).optim.batch == 1
    (tmp_path / "mine.yaml").write_text("optim: {epoch: 3}\ndata: {demo: small}\n")
    with pytest.raises(SystemExit):
        configure(["--config", str(tmp_path / "mine.yaml")])
    with pytest.raises(ValueError, match=r"one of them; got data\.labels='', data\.demo=''"):
        Config()


@pytest.mark.parametrize("layout", ["video", "patches"])
def test_augmentation_mirrors_and_turns(layout):
    """Each of the four views is seen among many; patches are changed as the frames they are cut from."""
    x = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    views = [x, x.flip(-1), x.transpose(-1, -2), x.transpose(-1, -2).flip(-1)]
    found = []
    for seed in range(40):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            changed = training.augment(cut_patches(x) if layout == "patches" else x)
        expected = [cut_patches(view) if layout == "patches" else view for view in views]
        for number, sample in enumerate(changed):
            found += [k for k, view in enumerate(expected) if torch.equal(sample, view[number])]
    assert len(found) == 80
    assert set(found) == {0, 1, 2, 3}
    assert training.augment(torch.zeros(1, 3, 6, 8)).shape == (1, 3, 6, 8)  # not square: mirrored only


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_a_whitened_embedding_gives_every_component_the_same_power(labels, tmp_path, device):
    told = config(labels, tmp_path, model=dataclasses.replace(MODEL, whiten=True))
    items = training.datasets(told)["train"]
    ranks = training.Ranks(0, 1, torch.device(device))
    model = make_model(told).to(device)
    training.whiten(model, told, items, ranks)
    x = torch.cat([batch.x for batch in training.make_feed(told, items, ranks, train=True).epoch()])
    embed = model.backbone.patch_embed
    embedded = embed.proj(x).flatten(0, -2)
    torch.testing.assert_close(embedded[:, 96:], -embedded[:, :96], rtol=0, atol=1e-4)
    strong = embedded[:, 88:96].var(0)  # grey pictures: the weakest components are colours, of no power at all
    assert torch.equal(embed.mix.weight[:, 96:], embed.mix.weight[:, :96])
    assert embedded.mean(0).abs().max() < 0.5
    assert 0.5 < strong.min() <= strong.max() < 2
    assert embedded.var(0).max() < 4
    layers = model.statistics
    assert torch.equal(layers.proj.weight, embed.proj.weight[:96])
    measured = layers.measure(x)
    torch.testing.assert_close(layers.centre, measured.mean(0), rtol=0, atol=1e-4)
    torch.testing.assert_close(layers.deviation, measured.std(0, correction=0) + 0.01, rtol=1e-3, atol=1e-4)
    training.whiten(model, told, items[:1], ranks)  # one clip: no deviation at all
    torch.testing.assert_close(layers.deviation, torch.full_like(layers.deviation, 0.01), rtol=0, atol=1e-4)


def test_a_wide_embedding_is_whitened_from_strong_to_weak(labels, tmp_path):
    """Of a tiny model: as many components as there are, each once, the strongest first."""
    told = config(labels, tmp_path, model=Model(size="tiny", whiten=True))
    items = training.datasets(told)["train"]
    ranks = training.Ranks(0, 1, torch.device("cpu"))
    model = make_model(told)
    training.whiten(model, told, items, ranks)
    x = torch.cat([batch.x for batch in training.make_feed(told, items, ranks, train=True).epoch()]).flatten(0, -2)
    proj = model.backbone.patch_embed.proj
    assert 0.5 < proj(x)[:, :8].var(0).min() <= proj(x)[:, :8].var(0).max() < 2
    directions = (proj.weight / proj.weight.norm(dim=1, keepdim=True)).detach()
    torch.testing.assert_close(directions @ directions.T, torch.eye(96), rtol=0, atol=1e-4)  # each once
    assert (proj.weight.norm(dim=1).diff() > -1e-3).all()  # the stronger a component, the smaller its weight
    with pytest.raises(ValueError, match=r"model\.whiten is for a video model that starts from random weights"):
        dataclasses.replace(told, model=Model(weights="some.pth", whiten=True))


def test_labels_are_standardised_for_training_alone(labels, tmp_path):
    told = config(labels, tmp_path, data=Data(labels=str(labels), standardise=True))
    sets, ranks = training.datasets(told), training.Ranks(0, 1, torch.device("cpu"))
    learnt = training.make_feed(told, sets["train"], ranks, train=True).labels
    plain = np.array([item.mos for item in sets["train"]])
    np.testing.assert_allclose(learnt, (plain - plain.mean()) / plain.std(), atol=1e-6)
    same = training.make_feed(told, [dataclasses.replace(item, mos=5) for item in sets["train"]], ranks, train=True)
    assert not same.labels.any()
    assert training.make_feed(told, sets["val"], ranks).labels.tolist() == [item.mos for item in sets["val"]]


def test_images_are_trained_on(pictures, tmp_path):
    """Two epochs of two steps; the checkpoint scores as the report says."""
    report = train(
        config(
            pictures,
            tmp_path / "run",
            data=Data(labels=str(pictures), augment=True, standardise=True),
            model=Model(kind="image", size="nano"),
            sampling=Sampling(grid=(8, 8), fragment=(32, 32)),
        )
    )
    assert [math.isfinite(record["loss"]) for record in report["history"]] == [True, True]
    model = sama.load_model(tmp_path / "run" / "last.safetensors", "cpu")
    assert model.kind == "image"
    scored = json.loads((tmp_path / "run" / "val" / "report.json").read_text())
    assert [model.score(path).score for path in scored["paths"]] == pytest.approx(scored["prediction"], abs=1e-5)


def test_a_run_that_can_read_nothing_is_an_error(labels, tmp_path):
    (tmp_path / "labels.csv").write_text("path,mos,split\na.mp4,1,train\nb.mp4,2,train\nc.mp4,3,val\n")
    with pytest.raises(ValueError, match=r"none of the 2 files of the set 'train' exists, the first of them .*a\.mp4"):
        train(config(tmp_path / "labels.csv", tmp_path / "run"))
    for name in "abc":
        (tmp_path / f"{name}.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"none of the 2 training files could be read: "):
        train(config(tmp_path / "labels.csv", tmp_path / "run"))
    for name in "ab":
        (tmp_path / f"{name}.mp4").write_bytes((labels.parent / "0.mp4").read_bytes())
    with pytest.raises(ValueError, match=r"none of the 1 files of the set 'val' could be read"):
        train(config(tmp_path / "labels.csv", tmp_path / "again"))


def test_sets_do_not_replace_or_leak_into_each_other(labels, tmp_path):
    told = config(labels, tmp_path, data=Data(labels=str(labels), tests=[LabelledSet(str(labels), name="train")]))
    with pytest.raises(ValueError, match="two sets are called 'train'"):
        training.datasets(told)
    (tmp_path / "labels.csv").write_text("path,mos,content,split\na,1,x,train\nb,2,y,val\nc,3,x,test\n")
    with pytest.raises(ValueError, match="1 contents are in train and test: x"):
        training.datasets(config(tmp_path / "labels.csv", tmp_path))


def test_the_best_epoch_is_one_that_exists():
    nan, good = ({"validation": {"val": {"srocc": value}}} for value in (math.nan, 0.5))
    assert training.is_best("val", good, [])
    assert not training.is_best("val", nan, [good])
    assert training.is_best("val", good, [nan])
    assert not training.is_best("val", good, [good])


def test_mistakes_are_said_in_a_line(capsys):
    assert training.main(["--data.demo", "small", "--optim.epochs", "0"]) == 2
    assert "optim.epochs must be at least 1; got 0" in capsys.readouterr().err
