"""What a training run starts from: its labelled sets, its model, the parameter groups, the whitened embedding."""

import dataclasses
import math
from pathlib import Path

import av
import numpy as np
import pytest
import timm
import torch
from training_runs import MODEL, config

import sama
from sama.models.swin3d import cut_patches
from sama.training.config import Data, LabelledSet, Model, Sampling
from sama.training.loop import save_model, train
from sama.training.ranks import Ranks
from sama.training.setup import datasets, make_feed, make_model, parameter_groups, start_pretrained, whiten

pytestmark = pytest.mark.usefixtures("few_draws")
LITE = Model(size="lite", dropout=0.0, drop_path=0.0)


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


def test_labels_that_are_no_numbers_are_refused(labels, tmp_path):
    text = labels.read_text().replace(",93,", ",nan,")
    assert text != labels.read_text()
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(ValueError, match="line 3"):
        train(config(tmp_path / "labels.csv", tmp_path / "run"))


def test_the_head_learns_at_the_full_rate(labels, tmp_path):
    told = config(labels, tmp_path, optim={"lr": 2.0, "backbone_lr": 0.1})
    head, rest = parameter_groups(make_model(told), told)
    assert (head["lr"], rest["lr"]) == (2.0, 0.2)
    assert len(head["params"]) == 4 + 8  # of the tokens' head and of the statistics


def test_a_stem_may_learn_at_a_rate_of_its_own(labels, tmp_path):
    told = config(labels, tmp_path, model=LITE, optim={"lr": 2.0, "backbone_lr": 0.5, "stem_lr": 0.1})
    model = make_model(told)
    head, swin, stem = parameter_groups(model, told)
    assert (head["lr"], swin["lr"], stem["lr"]) == (2.0, 1.0, 0.1)
    assert [id(p) for p in stem["params"]] == [id(p) for p in model.backbone.stem.parameters()]
    assert sum(len(group["params"]) for group in (head, swin, stem)) == len([*model.parameters()])


@pytest.mark.parametrize(("kind", "side"), [("video", 32), ("video", 64), ("image", 32)])
def test_training_from_a_pretrained_stem_on_some_fragments(kind, side, labels, tmp_path):
    torch.manual_seed(0)
    torch.save(timm.create_model("tf_efficientnet_lite0").state_dict(), tmp_path / "lite0.pth")
    model = dataclasses.replace(LITE, kind=kind, pretrained=str(tmp_path / "lite0.pth"))
    mode = "fragment" if kind == "image" else "sama-c"
    sampling = Sampling(mode, (2, 2), (side, side), clip_len=2, interval=1, num_clips=1)
    if kind == "image":
        labels = frames_of(labels, tmp_path)
    data = Data(labels=str(labels), fragments=(1, 1) if kind == "image" else (2, 1))
    told = config(labels, tmp_path / "run", model=model, sampling=sampling, data=data, optim={"epochs": 1})
    start = make_model(told)
    start_pretrained(start, told, datasets(told)["train"], Ranks.alone(torch.device("cpu")))
    stem = start.backbone.stem
    feed = make_feed(told, datasets(told)["train"], Ranks.alone(torch.device("cpu")), train=True)
    x = torch.cat([batch.x for batch in feed.epoch()])
    x = cut_patches(x[:, :, None].repeat(1, 1, 2, 1, 1)) if kind == "image" else x
    with torch.no_grad():
        standard = ((stem.describe(x) - stem.centre) / stem.deviation).flatten(0, -2)
    torch.testing.assert_close(standard.mean(0), torch.zeros(standard.shape[1]), atol=0.01, rtol=0)
    assert standard.std(0).median() == pytest.approx(1, abs=0.1)
    assert math.isfinite(train(told)["history"][0]["loss"])
    assert sama.load_model(tmp_path / "run" / "last.safetensors", "cpu").module.size == "lite"


def frames_of(labels, folder):
    """A label file of the first frames of the videos of one."""
    lines = labels.read_text().splitlines()
    for line in lines[1:]:
        name = line.split(",")[0]
        with av.open(str(labels.parent / name)) as container:
            next(container.decode(video=0)).to_image().save(folder / f"{Path(name).stem}.png")
    (folder / "images.csv").write_text("\n".join(lines).replace(".mp4", ".png"))
    return folder / "images.csv"


def test_a_pretrained_stem_that_is_none_is_refused(labels, tmp_path):
    told = config(labels, tmp_path, model=dataclasses.replace(LITE, pretrained=str(tmp_path / "x.pth")))
    for content in (None, b"nothing", {"a": torch.zeros(3)}, [3]):
        if isinstance(content, bytes):
            (tmp_path / "x.pth").write_bytes(content)
        elif content is not None:
            torch.save(content, tmp_path / "x.pth")
        with pytest.raises(ValueError, match=r"x\.pth is no checkpoint of EfficientNet-Lite0"):
            start_pretrained(make_model(told), told, [], Ranks.alone(torch.device("cpu")))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_calibration_does_not_turn_the_order_around(labels, tmp_path, capsys, sign):
    """Scores that rise with the labels get a line onto their scale; those that fall get none, and that is said."""
    told = config(labels, tmp_path)
    items = datasets(told)["val"]
    scores = {n: 0.1 * sign * item.mos for n, item in enumerate(items)}
    path = tmp_path / "model.safetensors"
    save_model(path, make_model(told), told, items, {"epoch": 0}, scores, items)
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
            datasets(config(a, tmp_path, data=dataclasses.replace(data, validate=wrong)))
    with pytest.raises(ValueError, match="8 files of set 'again' are in the training set too"):
        datasets(config(a, tmp_path, data=dataclasses.replace(data, tests=[LabelledSet(a, name="again")])))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_a_whitened_embedding_gives_every_component_the_same_power(labels, tmp_path, device):
    told = config(labels, tmp_path, model=dataclasses.replace(MODEL, whiten=True))
    items = datasets(told)["train"]
    ranks = Ranks(0, 1, torch.device(device))
    model = make_model(told).to(device)
    whiten(model, told, items, ranks)
    x = torch.cat([batch.x for batch in make_feed(told, items, ranks, train=True).epoch()])
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
    whiten(model, told, items[:1], ranks)  # one clip: no deviation at all
    torch.testing.assert_close(layers.deviation, torch.full_like(layers.deviation, 0.01), rtol=0, atol=1e-4)


def test_a_wide_embedding_is_whitened_from_strong_to_weak(labels, tmp_path):
    """Of a tiny model: as many components as there are, each once, the strongest first."""
    told = config(labels, tmp_path, model=Model(size="tiny", whiten=True))
    items = datasets(told)["train"]
    ranks = Ranks(0, 1, torch.device("cpu"))
    model = make_model(told)
    whiten(model, told, items, ranks)
    x = torch.cat([batch.x for batch in make_feed(told, items, ranks, train=True).epoch()]).flatten(0, -2)
    proj = model.backbone.patch_embed.proj
    assert 0.5 < proj(x)[:, :8].var(0).min() <= proj(x)[:, :8].var(0).max() < 2
    directions = (proj.weight / proj.weight.norm(dim=1, keepdim=True)).detach()
    torch.testing.assert_close(directions @ directions.T, torch.eye(96), rtol=0, atol=1e-4)  # each once
    assert (proj.weight.norm(dim=1).diff() > -1e-3).all()  # the stronger a component, the smaller its weight
    with pytest.raises(ValueError, match=r"model\.whiten is for a video model that starts from random weights"):
        dataclasses.replace(told, model=Model(weights="some.pth", whiten=True))


def test_labels_are_standardised_for_training_alone(labels, tmp_path):
    told = config(labels, tmp_path, data=Data(labels=str(labels), standardise=True))
    sets, ranks = datasets(told), Ranks(0, 1, torch.device("cpu"))
    learnt = make_feed(told, sets["train"], ranks, train=True).labels
    plain = np.array([item.mos for item in sets["train"]])
    np.testing.assert_allclose(learnt, (plain - plain.mean()) / plain.std(), atol=1e-6)
    same = make_feed(told, [dataclasses.replace(item, mos=5) for item in sets["train"]], ranks, train=True)
    assert not same.labels.any()
    assert make_feed(told, sets["val"], ranks).labels.tolist() == [item.mos for item in sets["val"]]


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
        datasets(told)
    (tmp_path / "labels.csv").write_text("path,mos,content,split\na,1,x,train\nb,2,y,val\nc,3,x,test\n")
    with pytest.raises(ValueError, match="1 contents are in train and test: x"):
        datasets(config(tmp_path / "labels.csv", tmp_path))
