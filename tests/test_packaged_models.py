"""The packaged models: a first command, without weights, gives a predicted VMAF that falls as a file gets worse."""

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import sama
from sama import cli
from sama.corpus.codec import Stream, write_video
from sama.corpus.degrade import blur, resize, x264
from sama.corpus.i420 import split_planes
from sama.corpus.sources import CONTENTS
from sama.model import DEFAULT_IMAGE_WEIGHTS, DEFAULT_WEIGHTS, packaged_for
from sama.models import VideoQuality, build, save_weights

SCALE = "VMAF v0.6.1"
CONTENT = "coffee"  # of no photograph that the models were trained on


@pytest.fixture(scope="module")
def frames():
    return CONTENTS[CONTENT].pristine(16)


@pytest.fixture(scope="module")
def rows(frames, tmp_path_factory):
    """Versions of a clip, scored by the command, by name."""
    folder = tmp_path_factory.mktemp("versions")
    versions = {
        "pristine": Stream(frames),
        "blurred": Stream(blur(frames, 3)),
        "enlarged": Stream(resize(frames, 4)),
        "x264": x264(frames, 44),
    }
    for name, stream in versions.items():
        write_video(str(folder / f"{name}.mp4"), stream)
    assert cli.main(["score", str(folder), "--device", "cpu", "--out", str(folder / "scores.csv")]) == 0
    with open(folder / "scores.csv", newline="") as file:
        return {row["path"].rpartition("/")[2][:-4]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize("worse", ["blurred", "enlarged", "x264"])
def test_a_strongly_degraded_clip_is_scored_well_below_its_pristine_version(rows, worse):
    assert float(rows["pristine"]["score"]) - float(rows[worse]["score"]) > 10


def test_every_row_says_that_scores_are_predicted_vmaf(rows):
    for row in rows.values():
        assert (row["scale"], row["mos"], row["mos_scale"]) == (SCALE, "", "")
        assert 0 <= float(row["score"]) <= 100
        assert row["model"].startswith("default.safetensors (our own, sha256 ")


def test_the_terminal_names_the_scale(frames, tmp_path, capsys):
    write_video(str(tmp_path / "a.mp4"), Stream(frames))
    assert cli.main(["score", str(tmp_path / "a.mp4"), "--device", "cpu"]) == 0
    header, line, *_ = capsys.readouterr().out.splitlines()
    assert header.split("  ")[0].strip() == SCALE
    assert 0 <= float(line.split()[0]) <= 100


def test_photographs_are_scored_without_weights_too(frames, tmp_path, capsys):
    scores = []
    for name, clip in {"a": frames[:1], "b": blur(frames[:1], 3)}.items():
        luma = np.ascontiguousarray(split_planes(clip[0])[0])
        Image.fromarray(luma).convert("RGB").save(tmp_path / f"{name}.png")
        scores.append(sama.score(tmp_path / f"{name}.png").score)
    assert scores[0] - scores[1] > 10
    assert cli.main(["score", str(tmp_path), "--device", "cpu", "--out", str(tmp_path / "scores.csv")]) == 0
    with open(tmp_path / "scores.csv", newline="") as file:
        found = [*csv.DictReader(file)]
    assert [float(row["score"]) for row in found] == pytest.approx(scores)
    assert {row["scale"] for row in found} == {SCALE}
    assert {row["model"].partition(" ")[0] for row in found} == {"default-image.safetensors"}


@pytest.mark.parametrize(
    ("paths", "name"),
    [
        (["a.png", "b.JPG"], "packaged-image"),
        (["a.png", "b.mp4"], "packaged"),
        (["a.mp4"], "packaged"),
        ([], "packaged"),
    ],
)
def test_the_model_is_that_for_images_where_all_files_are_images(paths, name):
    assert packaged_for(paths) == name


@pytest.mark.parametrize(("path", "kind"), [(DEFAULT_WEIGHTS, "video"), (DEFAULT_IMAGE_WEIGHTS, "image")])
def test_the_files_are_small_and_have_a_card_with_every_bar(path, kind):
    assert path.stat().st_size < 10e6
    built = build(path)
    assert (built.model.kind, built.metadata["scale"]["name"]) == (kind, SCALE)
    assert [built.metadata["scale"][end] for end in ("least", "most")] == [0, 100]
    assert 0 < built.metadata["scale"]["noise"] < 50  # a comparison tells no smaller differences
    assert "calibration" not in built.metadata
    card = path.with_suffix(".md").read_text()
    for words in ("**Not for**", "bar of the project", "SROCC within a content at least 0.85", "lomiri-wallpapers"):
        assert words in card


@pytest.fixture
def tool(monkeypatch):
    """`tools/packaged_models.py`."""
    path = Path(__file__).parent.parent / "tools" / "packaged_models.py"
    monkeypatch.syspath_prepend(path.parent)  # as for a script
    spec = importlib.util.spec_from_file_location("packaged_models_tool", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_mean_of_checkpoints_is_packaged(tool, tmp_path):
    """With the last one's metadata; its output is not the mean of theirs, but its weights are."""
    models = [VideoQuality("pico", grid=(2, 2)) for _ in range(3)]
    for k, model in enumerate(models):
        save_weights(model, tmp_path / f"{k}.safetensors", metadata={"training": {"epochs": k}})
    built = tool.mean_of([tmp_path / f"{k}.safetensors" for k in range(3)])
    assert built.metadata["training"] == {"epochs": 2}
    for name, value in built.model.state_dict().items():
        wanted = sum(model.state_dict()[name].double() for model in models) / 3
        torch.testing.assert_close(value.double(), wanted, rtol=1e-5, atol=1e-6)
    command = [sys.executable, tool.__file__.replace("packaged_models", "average"), "-o", tmp_path / "mean.safetensors"]
    subprocess.run([*command, *(tmp_path / f"{k}.safetensors" for k in range(3))], check=True)
    written = load_file(tmp_path / "mean.safetensors")
    assert all(torch.equal(written[name], value) for name, value in built.model.state_dict().items())
    alone = tool.mean_of([tmp_path / "1.safetensors"])
    assert all(torch.equal(a, b) for a, b in zip(alone.model.state_dict().values(), models[1].state_dict().values()))
    save_weights(VideoQuality("nano"), tmp_path / "other.safetensors", metadata={})
    with pytest.raises(RuntimeError, match="are not of one network"):
        tool.mean_of([tmp_path / "0.safetensors", tmp_path / "other.safetensors"])
