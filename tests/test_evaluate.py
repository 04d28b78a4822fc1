"""From labels and scores to a report, and to a checkpoint that scores on the labels' scale."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
import videos
from PIL import Image
from small_models import save_nano

import sama
from sama import cli
from sama.evaluation import calibration, evaluate_predictions, markdown, save_calibrated
from sama.evaluation_report import without_nan, write_report
from sama.labels import Item, protocol_split
from sama.metrics import NAMES, logistic_fit, metrics
from sama.models.reading import read_metadata

SETTINGS = {"mode": "sama", "grid": [7, 7], "fragment": [32, 32], "clip_len": 4, "interval": 2, "num_clips": 1}


def items_of(mos, groups=None, kinds=None):
    groups = groups or [f"g{k}" for k in range(len(mos))]
    kinds = kinds or [""] * len(mos)
    return [Item(f"{k}.mp4", m, g, extra={"kind": kind}) for k, (m, g, kind) in enumerate(zip(mos, groups, kinds))]


def test_a_file_without_a_score_is_left_out_and_counted():
    """Scores (1, 2, 3, 10) on labels (1, 3, 2, 4), of which one more has none: SROCC 0.8, KROCC 4/6 (test_metrics)."""
    items = items_of([1, 3, 2, 4, 9])
    predictions = {"0.mp4": 1, "1.mp4": 2, "2.mp4": 3, "3.mp4": 10}
    e = evaluate_predictions(items, predictions, failed={"4.mp4": "cut short"}, samples=20)
    assert (e.items, e.all.items, e.failed) == (5, 4, [("4.mp4", "cut short")])
    assert e.paths == ["0.mp4", "1.mp4", "2.mp4", "3.mp4"]
    assert e.all.plain.srocc == pytest.approx(0.8)
    assert e.all.fitted.krocc == pytest.approx(4 / 6)
    assert e.fit.note.startswith("a straight line: 4 distinct predictions")
    assert e.all.fitted.plcc == pytest.approx(e.all.plain.plcc, abs=1e-6)
    text = str(e)
    assert "4 of 5 items scored, 1 left out (below)." in text
    assert "- 4.mp4: cut short" in text
    assert "| all 4 " in text
    assert "| 0.8000 | 0.8222 | 0.6667 |" in text  # PLCC 13 / sqrt(250)


def test_parts_by_column_and_within_contents():
    """Content a is in order (1), b in reverse (-1), c has two items, too few: mean 0 of 2 contents."""
    mos = [1, 2, 3, 4, 5, 6, 7, 8]
    items = items_of(mos, groups=list("aaabbbcc"), kinds=["blur", "blur", "noise", "", "", "", "noise", "noise"])
    scores = [1, 2, 3, 9, 8, 7, 10, 11]
    e = evaluate_predictions(items, dict(zip([i.path for i in items], scores)), by="kind", samples=20)
    assert e.within == (0, 2)
    assert {kind: part.items for kind, part in e.by.items()} == {"": 3, "blur": 2, "noise": 3}
    assert [e.by[kind].plain.srocc for kind in ("", "blur", "noise")] == pytest.approx([-1, 1, 1])
    assert "Within a content: mean SROCC 0.0000 over 2 contents." in str(e)
    assert "| noise (3) " in str(e)
    with pytest.raises(ValueError, match="has no column 'strength'; known: split, kind"):
        evaluate_predictions(items, {}, by="strength")


def test_medians_over_the_splits():
    rng = np.random.default_rng(2)
    mos, noise = rng.uniform(0, 100, 60), rng.normal(size=60)
    items = items_of(mos.tolist())
    predictions = {item.path: item.mos / 50 + n for item, n in zip(items, noise)}
    e = evaluate_predictions(items, predictions, splits=10, samples=20)
    tests = [protocol_split(items, k)[1] for k in range(10)]
    by_hand = [metrics([predictions[i.path] for i in test], [i.mos for i in test]) for test in tests]
    assert [part.plain for part in e.splits] == by_hand
    assert e.medians.items == 12
    for name in NAMES:
        assert getattr(e.medians.plain, name) == np.median([getattr(m, name) for m in by_hand])
    assert e.medians.fitted.rmse < e.medians.plain.rmse
    assert "median over 10 splits" in str(e)


def test_intervals_hold_the_value():
    rng = np.random.default_rng(3)
    items = items_of(rng.uniform(0, 100, 80).tolist())
    e = evaluate_predictions(items, {i.path: i.mos + rng.normal(0, 20) for i in items}, samples=100, seed=4)
    for name in NAMES:
        low, high = e.intervals[name]
        assert low < getattr(e.all.plain, name) < high


def test_constant_scores_are_reported_not_hidden(tmp_path):
    e = evaluate_predictions(items_of([1, 2, 3]), {f"{k}.mp4": 0.5 for k in range(3)}, splits=2, samples=10)
    assert e.fit is None
    assert "No correlation exists" in str(e)
    write_report(e, tmp_path)
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["all"]["plain"] == dict.fromkeys(NAMES)
    assert written["medians"]["plain"]["srocc"] is None


@pytest.mark.parametrize(
    ("arguments", "message"), [({"splits": 0}, "splits must be more"), ({"items": []}, "no items")]
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate_predictions(arguments.pop("items", items_of([1, 2])), {}, **arguments)


def test_report_files(tmp_path):
    items = items_of([10, 20, 40, 30, 50, 60], kinds=["a|b\n"] * 6)
    e = evaluate_predictions(
        items, {i.path: i.mos**2 for i in items}, title="日本語 $x$.csv", model="m", by="kind", samples=20
    )
    write_report(e, tmp_path / "new" / "folder")
    written = json.loads((tmp_path / "new" / "folder" / "report.json").read_text())
    assert written == json.loads(json.dumps(without_nan(dataclasses.asdict(e))))
    assert written["prediction"] == [100, 400, 1600, 900, 2500, 3600]
    assert written["all"]["plain"]["srocc"] == pytest.approx(1)
    text = (tmp_path / "new" / "folder" / "report.md").read_text()
    assert text.startswith(markdown(e))
    assert "![" in text
    assert "| a\\|b\\n (6) " in text
    with Image.open(tmp_path / "new" / "folder" / "scatter.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}
    assert (0xC2, 0x3B, 0x22) in colours  # the curve
    assert len(colours) > 20  # points


def test_calibration_by_hand():
    """Least squares through (0, 1), (1, 3), (2, 2): slope 1/2, intercept 3/2."""
    assert calibration("linear", [0, 1, 2], [1, 3, 2], "mine") == {
        "scale": "mine",
        "kind": "linear",
        "items": 3,
        "slope": pytest.approx(0.5),
        "intercept": pytest.approx(1.5),
    }
    with pytest.raises(ValueError, match=r"run against the labels of mine \(slope -1\): is a higher label better"):
        calibration("logistic", [0, 1, 2], [3, 2, 1], "mine")
    with pytest.raises(ValueError, match="unknown calibration 'cubic'; known: linear, logistic"):
        calibration("cubic", [0, 1], [0, 1], "mine")
    with pytest.raises(ValueError, match="the predictions of 2 items are all the same"):
        calibration("linear", [1, 1], [0, 1], "mine")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    old = {"scale": "another", "kind": "linear", "slope": 1.0, "intercept": 0.0}
    path = tmp_path_factory.mktemp("weights") / "nano.safetensors"
    return save_nano(path, SETTINGS | {"data": "a few clips", "calibration": old})


@pytest.mark.parametrize("kind", ["linear", "logistic"])
def test_calibration_round_trip(weights, tmp_path, kind):
    x = np.linspace(-0.3, 0.4, 30)
    mos = 20 + 60 / (1 + np.exp(-(x - 0.1) / 0.08))
    path = tmp_path / "calibrated.safetensors"
    save_calibrated(weights, path, calibration(kind, x, mos, "KoNViD-1k"))
    before, after = sama.load_model(weights, "cpu"), sama.load_model(path, "cpu")
    expected = logistic_fit(x, mos)(x) if kind == "logistic" else np.polyval(np.polyfit(x, mos, 1), x)
    for score, value in zip(x, expected):
        assert after.mos(score) == (pytest.approx(value, rel=1e-9), "KoNViD-1k")
    if kind == "logistic":
        assert after.mos(0.1)[0] == pytest.approx(50, rel=1e-4)
        assert after.mos(-1e9)[0] == pytest.approx(20, rel=1e-3)  # far outside: no overflow
        assert after.mos(1e9)[0] == pytest.approx(80, rel=1e-3)
    for name, tensor in before.module.state_dict().items():
        assert torch.equal(tensor, after.module.state_dict()[name]), name
    assert after.metadata["data"] == "a few clips"
    assert before.mos(0.25) == (0.25, "another")
    assert path.stat().st_size == pytest.approx(weights.stat().st_size, rel=0.01)


# The command


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Six videos, one of them no video, with labels that follow nothing."""
    root = tmp_path_factory.mktemp("videos")
    (root / "sub").mkdir()
    for k in range(5):
        videos.write_video(root / "sub" / f"{k}.mp4", "libx264", num_frames=6 + k, size=(64 + 16 * k, 64))
    (root / "broken.mp4").write_text("no video at all\n" * 50)
    lines = ["path,mos,split,kind", "broken.mp4,3,val,x", *(f"sub/{k}.mp4,{k % 3 + 1},train,y" for k in range(5))]
    (root / "labels.csv").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="module")
def scored(root, weights, tmp_path_factory):
    """The folder that an evaluation wrote, its exit status."""
    out = tmp_path_factory.mktemp("out") / "report"
    return out, evaluate(root, "--weights", weights, "--out", out, "--by", "kind", "--samples", 20)


def evaluate(root, *arguments):
    return cli.main(["evaluate", str(root / "labels.csv"), str(root), *map(str, arguments), "--device", "cpu"])


def test_the_command_scores_and_compares(root, weights, scored):
    out, status = scored
    assert status == 1  # a file failed
    written = json.loads((out / "report.json").read_text())
    assert written["items"] == 6
    assert [path for path, _ in written["failed"]] == [str(root / "broken.mp4")]
    model = sama.load_model(weights, "cpu")
    assert written["model"] == model.name
    expected = [model.score(root / "sub" / f"{k}.mp4").score for k in range(5)]
    np.testing.assert_allclose(written["prediction"], expected, rtol=1e-6)
    assert written["mos"] == [1, 2, 3, 1, 2]
    result = metrics(expected, [1, 2, 3, 1, 2])
    for name in NAMES:
        assert written["all"]["plain"][name] == pytest.approx(getattr(result, name), rel=1e-6)
    assert written["by"]["x"]["items"] == 0
    assert (out / "scatter.png").stat().st_size > 1000
    with (out / "scores.csv").open() as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["error"] + ["ok"] * 5


def test_scores_of_an_earlier_run_are_taken(root, weights, scored, tmp_path, capsys, monkeypatch):
    out, _ = scored
    first = json.loads((out / "report.json").read_text())
    again = tmp_path / "again"
    assert evaluate(root, "--predictions", out / "scores.csv", "--out", again, "--by", "kind", "--samples", 20) == 1
    second = json.loads((again / "report.json").read_text())
    assert second == first
    assert evaluate(root, "--predictions", out / "scores.csv", "--split", "train", "--samples", 20) == 0
    assert "labels.csv, split train" in capsys.readouterr().out

    shutil.copytree(out, tmp_path / "copy")
    (tmp_path / "copy" / "report.md").unlink()
    asked = []
    from sama import evaluate as module

    real = module.score_files
    monkeypatch.setattr(module, "score_files", lambda paths, *a, **k: asked.extend(paths) or real(paths, *a, **k))
    assert evaluate(root, "--weights", weights, "--out", tmp_path / "copy", "--resume", "--samples", 20) == 1
    assert asked == []
    assert (tmp_path / "copy" / "report.md").exists()


def test_an_interrupted_evaluation_goes_on(root, weights, scored, tmp_path, capsys, monkeypatch):
    from sama import evaluate as module

    real, asked = module.score_files, []

    def interrupted(paths, *arguments, **options):
        rows = real(paths, *arguments, **options)
        for _ in range(3):
            yield next(rows)
        rows.close()
        raise KeyboardInterrupt

    out = tmp_path / "out"
    arguments = ["--weights", weights, "--out", out, "--by", "kind", "--samples", 20]
    monkeypatch.setattr(module, "score_files", interrupted)
    assert evaluate(root, *arguments) == 130
    assert f"the scores so far are in {out}, --resume continues from them" in capsys.readouterr().err
    monkeypatch.setattr(module, "score_files", lambda paths, *a, **k: asked.extend(paths) or real(paths, *a, **k))
    assert evaluate(root, *arguments) == 2
    assert "--resume continues it, --overwrite begins anew" in capsys.readouterr().err
    assert evaluate(root, *arguments, "--resume") == 1
    assert asked == [str(root / "sub" / f"{k}.mp4") for k in (2, 3, 4)]
    whole = json.loads((scored[0] / "report.json").read_text())
    assert json.loads((out / "report.json").read_text()) == whole


def test_names_as_in_the_label_file_match(root, tmp_path, capsys):
    table = tmp_path / "mine.csv"
    table.write_text("path,score\n" + "".join(f"sub/{k}.mp4,{k % 3 * 2}\n" for k in range(5)))
    assert evaluate(root, "--predictions", table, "--samples", 20) == 1
    text = capsys.readouterr().out
    assert "| all 5 " in text
    assert "| 1.0000 | 1.0000 | 1.0000 |" in text  # score = 2 * (mos - 1)
    assert f"broken.mp4: no row in {table}" in text


@pytest.mark.parametrize("kind", ["linear", "logistic"])
def test_the_command_calibrates(root, weights, scored, tmp_path, capsys, kind):
    """The scores that it calibrates on are turned into labels first, so that order and curve are known."""
    out, _ = scored
    prediction = json.loads((out / "report.json").read_text())["prediction"]
    lines = [f"sub/{k}.mp4,{30 + 7 * value}" for k, value in enumerate(prediction)]
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(["path,mos", *lines]))
    save = tmp_path / "calibrated.safetensors"
    arguments = ["--weights", weights, "--predictions", out / "scores.csv", "--calibrate", kind, "--samples", 10]
    arguments += ["--scale", "mine", "--save", save, "--device", "cpu"]
    assert cli.main(["evaluate", str(labels), str(root), *map(str, arguments)]) == 0
    assert str(save) in capsys.readouterr().err
    assert read_metadata(save)["calibration"]["items"] == 5
    model = sama.load_model(save, "cpu")
    result = model.score(root / "sub" / "3.mp4")
    spread = 7 * (max(prediction) - min(prediction))
    assert (result.mos, result.mos_scale) == (pytest.approx(30 + 7 * prediction[3], abs=0.05 * spread), "mine")
    assert cli.main(["evaluate", str(labels), str(root), *map(str, arguments)]) == 2
    assert "exists already: give another name, or --overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--calibrate", "linear"], "--calibrate, --scale and --save go together"),
        (["--calibrate", "linear", "--scale", "a", "--save", "x.pth"], "must end in .safetensors"),
        (["--calibrate", "linear", "--scale", "a", "--save", "no/x.safetensors"], "there is no folder no"),
        (["--splits", "0"], "--splits must be more than 0; got 0"),
        (["--batch", "-1"], "--batch must be more than 0; got -1"),
        (["--split", "a", "--splits", "10"], "give one of them"),
        (["--resume"], "--resume is about the scores in --out"),
        (["--resume", "--predictions", "x.csv", "--out", "x"], "give one of them"),
        (["--split", "test"], "in split 'test'; its splits: 'val' (1), 'train' (5)"),
        (["--predictions", "none.csv"], "no such file: none.csv"),
        (["--predictions", "none.xlsx"], "the name must end in .csv"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_does_not_go_together(root, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert evaluate(root, *arguments) == 2
    assert message in capsys.readouterr().err


def test_scores_of_another_model_are_not_calibrated_with(root, weights, tmp_path, capsys):
    table = tmp_path / "others.csv"
    table.write_text("path,score,model\nsub/1.mp4,1,somebody's\nsub/2.mp4,2,somebody's\n")
    arguments = ["--calibrate", "linear", "--scale", "a", "--save", tmp_path / "x.safetensors"]
    assert evaluate(root, "--predictions", table, "--weights", weights, *arguments) == 2
    assert "holds scores by somebody's; a calibration of nano.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "x.safetensors").exists()


def test_nothing_matches(root, tmp_path, capsys):
    table = tmp_path / "others.csv"
    table.write_text("path,score\nelsewhere/1.mp4,1\n")
    assert evaluate(root, "--predictions", table) == 2
    assert f"none of the 6 labelled files has a score; the first: {root}/broken.mp4: no row" in capsys.readouterr().err


def test_bad_scores_are_an_error(root, tmp_path, capsys):
    table = tmp_path / "bad.csv"
    table.write_text("path,score\nsub/1.mp4,nan\nsub/2.mp4,2\n")
    assert evaluate(root, "--predictions", table) == 1
    assert "sub/1.mp4: the score is not a number" in capsys.readouterr().out
