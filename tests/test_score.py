"""From files to scores: the Python interface, the command, and that nothing is lost, double, or random."""

import csv
import dataclasses
import io
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
import videos
from PIL import Image
from small_models import save_nano

import sama
from sama import cli
from sama.errors import NoWeightsError
from sama.files import expand
from sama.journal import Journal
from sama.model import random_model
from sama.models import VideoQuality, save_weights
from sama.scoring import score_files
from sama.tables import FORMATS, Row, read_journal, read_table

SETTINGS = {"mode": "sama", "grid": [7, 7], "fragment": [32, 32], "clip_len": 8, "interval": 2, "num_clips": 2}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A small model of our own format, with a calibration."""
    calibration = {"scale": "KoNViD-1k", "kind": "linear", "slope": 10.0, "intercept": 3.0}
    path = tmp_path_factory.mktemp("weights") / "nano.safetensors"
    return save_nano(path, SETTINGS | {"calibration": calibration})


@pytest.fixture(scope="module")
def model(weights):
    return sama.load_model(weights, "cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Good files of several kinds in folders with odd names, and bad ones among them."""
    root = tmp_path_factory.mktemp("videos")
    (root / "with spaces").mkdir()
    (root / "日本語").mkdir()
    videos.write_video(root / "a.mp4", "libx264", num_frames=20)
    videos.write_video(root / "with spaces" / "b c.mkv", "libx265", size=(64, 48), num_frames=9)
    videos.write_video(root / "日本語" / "ü.webm", "libvpx-vp9", size=(48, 80), num_frames=12)
    videos.write_video(root / "d.avi", "mjpeg", pix_fmt="yuvj420p", num_frames=3)
    (root / "empty.mp4").write_bytes(b"")
    (root / "text.mp4").write_text("no video at all\n" * 50)
    (root / "cut.mp4").write_bytes((root / "a.mp4").read_bytes()[:2000])
    (root / "notes.txt").write_text("not found by the search")
    return root


def stripped(rows):
    """What must be the same on every run: all but the time it took."""
    return [{key: value for key, value in dataclasses.asdict(row).items() if key != "seconds"} for row in rows]


def command(name, *arguments):
    device = () if "--device" in arguments else ("--device", "cpu")
    return cli.main([name, *map(str, arguments), *device])


def test_load_model_says_what_it_loaded(model, weights):
    assert len(model.report.loaded) > 50
    assert model.report.missing == model.report.dropped == ()
    assert "nano.safetensors" in model.name
    assert model.settings == "sama, 2 clips of 8 frames, 2 apart, float32"
    with pytest.raises(ValueError, match="unknown dtype 'float8'; known: float32"):
        sama.load_model(weights, dtype="float8")
    with pytest.raises(FileNotFoundError):
        sama.load_model("nowhere.pth")


def test_whole_clips_are_as_many_as_fit(model, monkeypatch):
    """Two clips of eight frames, two apart: both in 32 frames, the first where there are fewer."""
    lengths = (1, 5, 16, 31, 32, 100)
    published = [model.clip_indices(num_frames) for num_frames in lengths]
    monkeypatch.setitem(model.metadata, "whole_clips", True)
    for num_frames, plain in zip(lengths, published):
        indices = model.clip_indices(num_frames)
        assert len(indices) == (2 if num_frames >= 32 else 1)
        if num_frames >= 32:
            assert np.array_equal(indices, plain)
        if num_frames >= 16:
            assert (np.diff(indices) == 2).all()


def test_without_weights_it_says_where_to_get_them(monkeypatch, tmp_path):
    monkeypatch.setattr("sama.model.DEFAULT_WEIGHTS", tmp_path / "none")
    with pytest.raises(NoWeightsError, match=r"(?s)the packaged model is not there .*github\.com/Sissuire/SAMA"):
        sama.load_model()


def test_weights_without_a_head_are_not_scored_with(monkeypatch, weights):
    """A checkpoint for classification, say: a start for training, whose scores would be random."""
    import sama.models

    built = sama.models.build(weights)
    report = dataclasses.replace(built.report, missing=("head.fc_hid.weight", "head.fc_last.weight"))
    monkeypatch.setattr(sama.models, "build", lambda path, mode=None: built._replace(report=report))
    with pytest.raises(NoWeightsError, match=r"holds no quality head \(head.fc_hid.weight"):
        sama.load_model(weights, "cpu")


def test_a_nano_model_without_scene_statistics_is_not_scored_with(weights, tmp_path):
    """As earlier versions of the package made them."""
    built = sama.models.build(weights)
    built.model.statistics = None
    save_weights(built.model, tmp_path / "old.safetensors", metadata=SETTINGS)
    with pytest.raises(NoWeightsError, match="nano models had no scene statistics"):
        sama.load_model(tmp_path / "old.safetensors", "cpu")


def test_random_weights_are_always_the_same_and_named():
    before = torch.get_rng_state()
    first, again = (random_model(device="cpu").module.head.fc_hid.weight for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(before, torch.get_rng_state())
    assert "RANDOM WEIGHTS" in random_model(device="cpu").name


def test_a_score_is_the_mean_over_its_clips(model, folder):
    result = model.score(folder / "a.mp4")
    x = model.sampler.read(folder / "a.mp4", clip_len=8, num_clips=2, interval=2)
    with torch.inference_mode():
        expected = model.module.score(x)
    np.testing.assert_allclose(result.clips, expected.numpy(), rtol=1e-6)
    assert result.score == np.mean(result.clips)
    assert result.mos == pytest.approx(10 * result.score + 3)
    assert result.mos_scale == "KoNViD-1k"
    assert (result.frames, result.width, result.height) == (20, 96, 64)
    assert [value for _, value in result.timeline] == list(result.clips)
    assert [seconds for seconds, _ in result.timeline] == pytest.approx([8 / 25, 18 / 25])  # 25 frames a second


def test_pixels_score_as_their_file(model, folder):
    frames = videos.full_decode(folder / "a.mp4")
    clip = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
    by_file, by_array = model.score(folder / "a.mp4"), model.score(clip, fps=25)
    np.testing.assert_allclose(by_array.clips, by_file.clips, rtol=1e-6)
    np.testing.assert_allclose(by_array.timeline, by_file.timeline, rtol=1e-6)
    assert model.score(torch.from_numpy(clip)).clips == by_array.clips
    assert model.score(clip).timeline == ()


def test_timeline_windows(model, folder):
    result = model.score(folder / "a.mp4", every_seconds=0.3)  # 20 frames at 25/s: windows from 0, 0.3 and 0.6 s
    indices = model.clip_indices(20, np.arange(20) / 25, 0.3)
    assert indices[:, 0].tolist() == [0, 4]  # windows are shorter than a clip of 16 frames, which ends with the video
    assert indices.max() <= 19
    assert len(result.timeline) == 2
    long = model.clip_indices(1000, np.arange(1000) / 25, 4.0)
    assert long.shape == (10, 8)
    assert long[:, 0].tolist() == [100 * k + (100 - 16) // 2 for k in range(10)]
    far = model.clip_indices(40, np.append(np.arange(39) / 25, 1e15), 1.0)  # a time stamp gone astray
    assert far[:, 0].tolist() == [4, 24]
    with pytest.raises(ValueError, match="windows must be longer than 0 seconds; got 0"):
        model.clip_indices(10, np.arange(10) / 25, 0)


@pytest.mark.parametrize(("batch", "workers"), [(1, 1), (5, 3), (3, 2)])
def test_scores_depend_on_neither_batch_nor_workers_nor_order(model, folder, batch, workers):
    paths = expand([str(folder)])
    expected = stripped(score_files(paths, model))
    got = stripped(score_files(paths[::-1], model, batch=batch, workers=workers))
    assert got[::-1] == expected
    assert sum(row["status"] == "ok" for row in expected) == 4


def test_bad_files_are_rows_with_their_own_reason(model, folder):
    rows = {Path(row.path).name: row for row in score_files([*expand([str(folder)]), "gone.mp4", str(folder)], model)}
    for name in ("a.mp4", "b c.mkv", "ü.webm", "d.avi"):
        assert rows[name].status == "ok"
        assert np.isfinite(rows[name].score)
    bad = [rows[name] for name in ("empty.mp4", "text.mp4", "cut.mp4", "gone.mp4", folder.name)]
    assert all(row.status == "error" and row.score is None and row.clips == [] for row in bad)
    assert len({row.reason for row in bad}) == 5
    assert all(row.reason for row in bad)


def test_an_image_is_not_scored_by_a_video_model(model, tmp_path):
    Image.new("RGB", (300, 300)).save(tmp_path / "image.png")
    (row,) = score_files([str(tmp_path / "image.png")], model)
    assert (row.status, row.reason) == (
        "error",
        "is an image; the model scores videos; an image model scores it (--weights packaged-image)",
    )


def test_a_failure_in_the_model_is_not_hidden(model, folder, monkeypatch):
    monkeypatch.setattr(model, "token_maps", lambda samples: torch.full((len(samples), 4, 7, 7), float("nan")))
    (row,) = score_files([str(folder / "a.mp4")], model)
    assert (row.status, row.score) == ("error", None)
    assert "not a number" in row.reason


def test_expand(folder, tmp_path, monkeypatch):
    found = [os.path.relpath(path, folder) for path in expand([str(folder)])]
    assert found == ["a.mp4", "cut.mp4", "d.avi", "empty.mp4", "text.mp4", "with spaces/b c.mkv", "日本語/ü.webm"]
    assert expand([str(folder / "*.avi"), str(folder / "d.avi")]) == [str(folder / "d.avi")]
    assert expand([str(folder / "**" / "*.webm")]) == [str(folder / "日本語" / "ü.webm")]
    assert expand(["missing.mp4"]) == ["missing.mp4"]
    assert expand([str(folder / "notes.txt")]) == [str(folder / "notes.txt")]
    monkeypatch.setattr("sys.stdin", io.StringIO("one.mp4\n\ntwo words.mp4\n"))
    assert expand(["-"]) == ["one.mp4", "two words.mp4"]
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / "again").symlink_to(tmp_path / "loop")
    (tmp_path / "loop" / "x.mp4").write_bytes(b"")
    assert expand([str(tmp_path / "loop")]) == [str(tmp_path / "loop" / "x.mp4")]
    bracketed = tmp_path / "take [1].mp4"
    bracketed.write_bytes(b"")
    assert expand([str(bracketed)]) == [str(bracketed)]


@pytest.mark.parametrize("form", FORMATS)
def test_the_command_writes_a_table_and_resumes(weights, folder, tmp_path, capsys, form):
    out = tmp_path / f"scores{form}"
    good = [folder / "a.mp4", folder / "d.avi"]
    assert command("score", *good, "--weights", weights, "--out", out) == 0
    printed = capsys.readouterr()
    assert str(folder / "a.mp4") in printed.out
    assert "nano.safetensors" in printed.err
    first = read_table(out)
    assert [row.path for row in first] == [str(path) for path in good]
    assert not out.with_name(out.name + ".partial").exists()

    assert command("score", *good, "--weights", weights, "--out", out) == 2
    assert "exists already: --resume" in capsys.readouterr().err
    assert command("score", folder, "--weights", weights, "--out", out, "--resume") == 1  # bad files are among them
    rows = read_table(out)
    assert [row.path for row in rows] == expand([str(folder)])
    kept = {row.path: row for row in rows}
    assert all(kept[row.path] == row for row in first)  # to the second it took: not scored again
    assert stripped(rows) == stripped(score_files(expand([str(folder)]), sama.load_model(weights, "cpu")))


def test_the_table_opens_elsewhere(weights, folder, tmp_path):
    for form in FORMATS:
        command("score", folder / "a.mp4", "--weights", weights, "--out", tmp_path / f"s{form}")
    with open(tmp_path / "s.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    (entry,) = json.loads((tmp_path / "s.json").read_text())
    assert json.loads((tmp_path / "s.jsonl").read_text())["score"] == entry["score"] == float(row["score"])
    assert [float(value) for value in row["clips"].split(";")] == entry["clips"]
    assert entry["mos_scale"] == "KoNViD-1k"


def test_resume_refuses_other_weights_and_settings(weights, folder, tmp_path, capsys):
    out = tmp_path / "scores.csv"
    assert command("score", folder / "a.mp4", "--weights", weights, "--out", out) == 0
    assert command("score", folder, "--weights", weights, "--out", out, "--resume", "--every", 1) == 2
    assert "cannot be resumed" in capsys.readouterr().err
    out.write_text("a,b\n1,2\n")
    assert command("score", folder, "--weights", weights, "--out", out, "--resume") == 2
    assert "other columns" in capsys.readouterr().err
    assert command("score", folder / "a.mp4", "--weights", weights, "--out", out, "--overwrite") == 0


def test_a_row_cut_off_in_the_journal_is_scored_again(tmp_path):
    scores_by = "model", "settings"
    with Journal(tmp_path / "s.csv", scores_by) as journal:
        for name in ("a", "b", "c"):
            journal.add(Row(name, score=1.0, model="model", settings="settings"))
    content = journal.partial.read_bytes()
    for cut in range(len(content)):
        journal.partial.write_bytes(content[:cut])
        with Journal(tmp_path / "s.csv", scores_by, resume=True) as resumed:
            assert list(resumed.rows) == ["a", "b", "c"][: content[:cut].count(b"\n")]
            resumed.add(Row("new", model="model", settings="settings"))
        assert [row.path for row in read_journal(journal.partial)] == [*resumed.rows]


def test_overwriting_forgets_the_old_rows_for_good(tmp_path):
    scores_by = "model", "settings"
    with Journal(tmp_path / "s.csv", scores_by) as journal:
        journal.add(Row("old", model="model", settings="settings"))
        journal.finish()
    with Journal(tmp_path / "s.csv", scores_by, overwrite=True) as journal:
        journal.add(Row("new", model="model", settings="settings"))
    with Journal(tmp_path / "s.csv", scores_by, resume=True) as journal:
        assert list(journal.rows) == ["new"]


def test_killed_at_any_moment_it_goes_on(weights, folder, tmp_path, monkeypatch):
    """kill -9 after each number of rows: the resumed run gives the same table, each file scored once."""
    names = [folder / name for name in ("a.mp4", "d.avi", "empty.mp4", "with spaces/b c.mkv")]
    out = tmp_path / "scores.jsonl"
    partial = out.with_name(out.name + ".partial")
    arguments = [
        sys.executable,
        "-m",
        "sama.cli",
        "score",
        *names,
        "--weights",
        weights,
        "--out",
        out,
        "--resume",
        "--device",
        "cpu",
    ]
    for rows_before_kill in (1, 3):
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if partial.exists() and partial.read_bytes().count(b"\n") >= rows_before_kill:
                break
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = partial.read_bytes() if partial.exists() else out.read_bytes()
        assert kept.count(b"\n") >= rows_before_kill
    monkeypatch.setattr(sys, "argv", list(map(str, arguments[2:])))
    monkeypatch.delitem(sys.modules, "sama.cli")
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("sama.cli", run_name="__main__")  # as python -m does
    assert ended.value.code == 1
    assert not partial.exists()
    rows = read_table(out)
    assert [row.path for row in rows] == [str(name) for name in names]
    assert stripped(rows) == stripped(score_files([str(name) for name in names], sama.load_model(weights, "cpu")))
    assert out.read_bytes().startswith(kept.split(b"\n")[0])


def test_command_errors(weights, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sama.model.DEFAULT_WEIGHTS", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    bare = tmp_path / "bare.safetensors"
    save_weights(VideoQuality("nano"), bare)
    for arguments, message in [
        ([folder / "a.mp4"], "the packaged model is not there"),
        ([folder / "a.mp4", "--weights", folder / "text.mp4"], "text.mp4"),
        ([folder / "a.mp4", "--weights", tmp_path / "gone.pth"], "gone.pth"),
        ([folder / "a.mp4", "--weights", weights, "--out", tmp_path / "s.txt"], "must end in .csv, .jsonl, .json"),
        ([folder / "a.mp4", "--weights", weights, "--out", tmp_path / "no" / "s.csv"], "there is no folder"),
        ([folder / "a.mp4", "--weights", weights, "--resume"], "are about --out"),
        ([folder / "a.mp4", "--weights", weights, "--batch", 0], "--batch must be more than 0"),
        ([folder / "a.mp4", "--weights", weights, "--device", "cuda:99"], "cuda"),
        ([folder / "a.mp4", "--weights", weights, "--device", "gpu"], "unknown device 'gpu'"),
        (
            [folder / "a.mp4", "--weights", weights, "--decoder", "ffmpeg"],
            "unknown decoder 'ffmpeg'; known: auto, hybrid, nvcodec, dali, pyav",
        ),
        ([folder / "a.mp4", "--weights", bare], "its metadata lacks mode, grid"),
        ([folder / "a.mp4", "--weights", weights, "--mode", "sama3"], "unknown mode 'sama3'"),
        ([tmp_path / "empty", "--weights", weights], "no video files in"),
    ]:
        assert command("score", *arguments) == 2, arguments
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        command("score", folder / "a.mp4", "--wieghts", weights)
    assert ended.value.code == 2


def test_random_weights_mark_every_row(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("sama.model.QualityModel.token_maps", lambda self, x: torch.zeros(len(x), 16, 7, 7))
    assert command("score", folder / "a.mp4", folder / "d.avi", "--random-weights", "--out", tmp_path / "s.csv") == 0
    assert all("RANDOM WEIGHTS" in row.model for row in read_table(tmp_path / "s.csv"))


@pytest.mark.parametrize(
    ("names", "kind"), [("a.png b.jpg notes.txt", "image"), ("a.png b.jpg c.mp4", "image"), ("a.png b.mp4", "video")]
)
def test_random_weights_are_for_what_most_files_are(tmp_path, names, kind):
    paths = [str(tmp_path / name) for name in names.split()]
    options = cli.parser().parse_args(["score", *paths, "--random-weights", "--device", "cpu"]).score
    assert cli.load(options, paths).kind == kind


def test_images(tmp_path, capsys):
    """The image model scores images of a folder, and says of a broken one what is wrong."""
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (300, 280)), ("b.jpg", (40, 500)), ("c.webp", (1, 1))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / name)
    Image.new("LA", (64, 64)).save(tmp_path / "grey.png")
    (tmp_path / "broken.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:300])
    (tmp_path / "text.png").write_text("no image")
    model = random_model("image", "cpu")
    rows = {Path(row.path).name: row for row in score_files(expand([str(tmp_path)]), model, batch=2)}
    assert {name for name, row in rows.items() if row.status == "ok"} == {"a.png", "b.jpg", "c.webp", "grey.png"}
    assert (rows["a.png"].height, rows["a.png"].width) == (300, 280)
    assert "damaged image" in rows["broken.jpg"].reason
    assert "not an image" in rows["text.png"].reason
    assert model.score(tmp_path / "a.png").clips == tuple(rows["a.png"].clips)


@pytest.mark.parametrize("form", ["png", "svg"])
def test_inspect_draws_a_page(weights, folder, tmp_path, form):
    out = tmp_path / f"page.{form}"
    assert command("inspect", folder / "a.mp4", "--weights", weights, "-o", out, "--every", 0.3) == 0
    if form == "png":
        with Image.open(out) as page:
            assert page.size == (1440, 864)
            assert len(np.unique(np.asarray(page.convert("L")))) > 50
    else:
        assert "</svg>" in out.read_text()[-20:]
    assert command("inspect", folder / "empty.mp4", "--weights", weights, "-o", out) == 2


def test_a_page_of_a_model_without_tokens_has_no_map(folder, tmp_path):
    weights, out = tmp_path / "statistics.safetensors", tmp_path / "page.svg"
    save_weights(VideoQuality("nano", tokens=False), weights, metadata=SETTINGS)
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        assert command("inspect", folder / "a.mp4", "--weights", weights, "-o", out) == 0
    assert "no quality map" in out.read_text()
    assert "score of a token" not in out.read_text()


def test_quality_map_lies_on_its_cells():
    from sama.inspection import quality_map

    tokens = torch.arange(6.0).view(2, 3)
    assert quality_map(tokens, 4, 7).tolist() == [[0, 0, 0, 1, 1, 2, 2]] * 2 + [[3, 3, 3, 4, 4, 5, 5]] * 2


def test_memory_stays_flat_over_many_files(model, folder):
    """Resident memory after 60 more files, against that after the first 20."""
    psutil = pytest.importorskip("psutil")
    process, paths = psutil.Process(), [str(folder / name) for name in ("d.avi", "empty.mp4")]
    for _ in score_files(paths * 10, model):
        pass
    before = process.memory_info().rss
    for _ in score_files(paths * 30, model):
        pass
    assert process.memory_info().rss - before < 40 << 20


def test_odd_names_stay_on_their_line_and_in_their_title(weights, folder, tmp_path, capsys):
    odd = tmp_path / "a$\\frac$\nb 日本.mp4"
    odd.write_bytes((folder / "a.mp4").read_bytes())
    assert command("score", odd, "--weights", weights) == 0
    assert "frac$\\nb 日本.mp4" in capsys.readouterr().out
    assert command("inspect", odd, "--weights", weights, "-o", tmp_path / "page.png") == 0
    assert (tmp_path / "page.png").stat().st_size > 10_000


def test_a_list_of_other_files_is_no_video(model, folder, tmp_path):
    (tmp_path / "real.mkv").write_bytes((folder / "with spaces" / "b c.mkv").read_bytes())
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile real.mkv\n")
    (row,) = score_files([str(tmp_path / "list.mp4")], model)
    assert (row.status, row.reason) == ("error", "a list of other files (concat), not a video")
