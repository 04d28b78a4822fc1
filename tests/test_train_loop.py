"""Training: it learns, the same seed gives the same weights, and a step is what the settings say."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from training_runs import MODEL, assert_equal_weights, assert_same_gradients, config

import sama
from sama.models.swin3d import cut_patches
from sama.training.augment import augment
from sama.training.config import Config, Data, Model, Optim, Sampling
from sama.training.loop import is_best, lr_factor, train, update_ema
from sama.training.setup import make_model

pytestmark = pytest.mark.usefixtures("few_draws")


def test_it_overfits_eight_clips(labels, tmp_path):
    report = train(
        config(
            labels,
            tmp_path / "run",
            optim={"epochs": 30, "batch": 8, "ema": 0.0, "lr": 2e-3},
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


def test_statistics_alone_are_trained_and_score(labels, tmp_path):
    told = config(labels, tmp_path / "run", model=dataclasses.replace(MODEL, tokens=False, whiten=True))
    report = train(told)
    model = sama.load_model(tmp_path / "run" / "last.safetensors", "cpu")
    assert model.module.backbone is None
    scored = json.loads((tmp_path / "run" / "val" / "report.json").read_text())
    results = [model.score(path).score for path in scored["paths"]]
    assert results == pytest.approx(scored["prediction"], abs=1e-6)
    assert np.isfinite(report["history"][-1]["loss"])


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


def test_learning_rate_by_hand():
    """Ten steps an epoch, 2.5 epochs of warm-up, 30 epochs: at both ends of the warm-up, in the middle, at the end."""
    published = Config(data=Data(demo="small"))
    assert lr_factor(0, 10, published) == pytest.approx(1 / 26)
    assert lr_factor(24, 10, published) == pytest.approx(25 / 26)
    assert lr_factor(25, 10, published) == 1
    assert lr_factor(25 + 275 // 5, 10, published) == pytest.approx(0.5 * (1 + math.cos(math.pi / 5)))
    assert lr_factor(300, 10, published) == 0
    constant = dataclasses.replace(published, optim=Optim(epochs=50, warmup_epochs=5, schedule="constant"))
    assert [lr_factor(step, 10, constant) for step in (50, 499)] == [1, 1]
    assert lr_factor(49, 10, constant) == pytest.approx(50 / 51)
    without = dataclasses.replace(published, optim=Optim(warmup_epochs=0))
    assert lr_factor(0, 10, without) == 1


def test_averaged_weights_by_hand():
    """decay 0.75: 0.75 * 4 + 0.25 * 8 = 5; decay 0 copies."""
    ema, model = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(ema.weight, 4.0)
    torch.nn.init.constant_(model.weight, 8.0)
    update_ema(ema, model, 0.75)
    assert ema.weight.item() == 5
    update_ema(ema, model, 0.0)
    assert ema.weight.item() == 8


@pytest.mark.parametrize("layout", ["video", "patches"])
def test_augmentation_mirrors_and_turns(layout):
    """Each of the four views is seen among many; patches are changed as the frames they are cut from."""
    x = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    views = [x, x.flip(-1), x.transpose(-1, -2), x.transpose(-1, -2).flip(-1)]
    found = []
    for seed in range(40):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            changed, _ = augment(cut_patches(x) if layout == "patches" else x)
        expected = [cut_patches(view) if layout == "patches" else view for view in views]
        for number, sample in enumerate(changed):
            found += [k for k, view in enumerate(expected) if torch.equal(sample, view[number])]
    assert len(found) == 80
    assert set(found) == {0, 1, 2, 3}
    assert augment(torch.zeros(1, 3, 6, 8))[0].shape == (1, 3, 6, 8)  # not square: mirrored only


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


def test_the_best_epoch_is_one_that_exists():
    nan, good = ({"validation": {"val": {"srocc": value}}} for value in (math.nan, 0.5))
    assert is_best("val", good, [])
    assert not is_best("val", nan, [good])
    assert is_best("val", good, [nan])
    assert not is_best("val", good, [good])
