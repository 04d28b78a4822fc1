"""`sama.Scorer`: batches of paths, addresses, bytes and pixels; the scores of `sama score`; no error for a bad row."""

import dataclasses
import os
import pickle
import runpy
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import torch
import videos

import sama
from sama.errors import InputError, MissingFileError
from sama.models import ImageQuality, save_weights
from sama.scoring import score_files
from sama.tables import COLUMNS, Row, schema

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    videos.write_video(folder / "a.mp4", "mpeg4", num_frames=20)
    videos.write_video(folder / "b.avi", "mjpeg", pix_fmt="yuvj420p", num_frames=12)
    (folder / "text.mp4").write_text("no video")
    return [str(folder / name) for name in ("a.mp4", "b.avi", "text.mp4")]


@pytest.fixture(scope="module")
def expected(files, weights):
    return [facts(row) for row in score_files(files, sama.load_model(weights, "cpu"))]


def facts(row: Row) -> dict:
    """What of a row depends on neither its name nor the clock."""
    return {name: value for name, value in dataclasses.asdict(row).items() if name not in ("path", "seconds")}


def rows_of(batch) -> list[dict]:
    return [facts(Row(**{name: batch[name][n] for name in COLUMNS})) for n in range(len(batch["path"]))]


def test_paths_addresses_and_bytes_score_as_files_do(files, weights, expected):
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/scorer/a.mp4", Path(files[0]).read_bytes())
    scorer = sama.Scorer(weights, device="cpu", keep=("tag",))
    batch = {"path": [*files, "memory://scorer/a.mp4"], "tag": [1, 2, 3, 4]}
    scores = scorer(batch)
    assert list(scores) == ["tag", *COLUMNS]
    assert scores["path"] == batch["path"]
    assert rows_of(scores) == [*expected, expected[0]]
    content = [Path(path).read_bytes() for path in files]
    scores = sama.Scorer(weights, column="video", device="cpu")({"video": content, "path": np.array(["x", "y", "z"])})
    assert scores["path"] == ["x", "y", "z"]
    assert rows_of(scores) == expected
    mixed = [{"bytes": content[0], "path": "in memory"}, {"bytes": None, "path": files[1]}, Path(files[2])]
    scores = sama.Scorer(weights, device="cpu", column="video")({"video": mixed})
    assert scores["path"] == ["in memory", files[1], files[2]]
    assert rows_of(scores) == expected


def test_pixels_score_as_the_model_scores_them(files, weights, tmp_path):
    frames = np.stack([frame.to_ndarray(format="rgb24") for frame in videos.full_decode(Path(files[0]))])
    model = sama.load_model(weights, "cpu")
    batch = {"frames": [frames, torch.from_numpy(frames)], "id": [7, 8], "rate": [25.0, 50.0]}
    scores = sama.Scorer(weights, column="frames", fps="rate", device="cpu")(batch)
    for n, fps in enumerate(batch["rate"]):
        result = model.score(frames, fps=fps)
        assert tuple(scores["clips"][n]) == result.clips
        assert tuple(zip(scores["times"][n], scores["clips"][n])) == result.timeline
        assert (scores["frames"][n], scores["height"][n], scores["width"][n], scores["fps"][n]) == (20, 64, 96, fps)
    assert scores["path"] == ["7", "8"]
    metadata = {"mode": "sama", "grid": [8, 8], "fragment": [32, 32]}
    save_weights(ImageQuality("nano"), tmp_path / "image.safetensors", metadata=metadata)
    images = sama.Scorer(tmp_path / "image.safetensors", column="image", device="cpu")
    scores = images({"image": [frames[0], frames]})
    assert scores["score"][0] == images.model.score(frames[0]).score
    assert "the model takes uint8 [H, W, 3]" in scores["reason"][1]


BAD = {
    "none": (None, "there is no file: the value is empty"),
    "empty": ("", "there is no file: the value is empty"),
    "number": (5, "a value of type int; expected a path, an address, bytes or pixels"),
    "list": ([1, 2], "a value of type list; expected a path"),
    "no bytes": (b"", "the file is empty"),
    "noise": (b"\x01\x02\xff" * 500, "not a video file that FFmpeg can read"),
    "floats": (np.zeros((8, 64, 64, 3), np.float32), "pixels are float32 [8, 64, 64, 3]; the model takes uint8"),
    "grey": (np.zeros((64, 64), np.uint8), "pixels are uint8 [64, 64]"),
    "no frames": (np.zeros((0, 64, 64, 3), np.uint8), "pixels are uint8 [0, 64, 64, 3]"),
    "gone": ("gone.mp4", "no such file"),
    "protocol": ("nothing://a.mp4", "Protocol not known"),
    "zero byte": ("a\0b.mp4", ""),
}


def test_no_value_is_an_error_and_the_others_are_scored(files, weights, expected):
    values = [value for value, _ in BAD.values()]
    scores = sama.Scorer(weights, device="cpu", column="media", key="name")(
        {"media": [*values, files[0]], "name": [*BAD, "good"]}
    )
    for n, (name, (value, reason)) in enumerate(BAD.items()):
        assert (scores["status"][n], scores["score"][n], scores["clips"][n]) == ("error", None, []), name
        assert reason in scores["reason"][n], name
        assert scores["reason"][n], name
        assert scores["path"][n] == (value if isinstance(value, str) and value else name)
    assert rows_of(scores)[-1] == expected[0]
    assert sama.Scorer(weights, device="cpu")({"path": []}) == {name: [] for name in COLUMNS}


def test_arrow_tables_come_back_with_the_contracts_types(files, weights, expected):
    scorer = sama.Scorer(weights, device="cpu", keep=["label"])
    label = pa.array([1, 2, 3], pa.int8())
    scores = scorer(pa.table({"label": label, "path": files, "unused": [[0]] * 3}))
    assert scores.schema.remove(0).equals(schema())
    assert scores.column("label").combine_chunks().equals(label)
    assert rows_of(scores.to_pydict()) == expected
    content = pa.table({"data": pa.array([Path(path).read_bytes() for path in files]), "key": ["x", "y", "z"]})
    scores = sama.Scorer(weights, device="cpu", column="data")(content)
    assert scores.column("path").to_pylist() == ["x", "y", "z"]
    assert rows_of(scores.to_pydict()) == expected


def test_it_is_pickled_without_its_model_and_loads_it_once_in_a_process(files, weights, expected, monkeypatch):
    loaded = []
    real = sama.scorer.load_model
    monkeypatch.setattr("sama.scorer.load_model", lambda *a, **n: loaded.append(os.getpid()) or real(*a, **n))
    scorer = sama.Scorer(weights, device="cpu", every_seconds=None, threads=torch.get_num_threads())
    assert not loaded
    assert len(pickle.dumps(scorer)) < 2000
    scorer({"path": files[2:]})
    copy = pickle.loads(pickle.dumps(scorer))
    assert loaded == [os.getpid()]
    with ThreadPoolExecutor(2) as pool:
        for scores in pool.map(copy, [{"path": files}] * 2):
            assert rows_of(scores) == expected
    assert loaded == [os.getpid()] * 2


def test_settings_that_cannot_be_used(tmp_path):
    with pytest.raises(InputError, match="unknown decoder"):
        sama.Scorer(decoder="x")
    with pytest.raises(InputError, match="every_seconds must be more than 0; got 0"):
        sama.Scorer(every_seconds=0)
    with pytest.raises(InputError, match="the scores have columns of the names score"):
        sama.Scorer(keep=["score"])
    with pytest.raises(InputError, match="the batch has no column path; it has url"):
        sama.Scorer(device="cpu")({"url": ["a.mp4"]})
    with pytest.raises(MissingFileError):
        sama.Scorer(tmp_path / "gone.pth")({"path": ["a.mp4"]})


def run_example(name, monkeypatch, folder, out):
    monkeypatch.setattr(sys, "argv", [name, str(folder), str(out)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def check_example(files, out):
    pq = pytest.importorskip("pyarrow.parquet")
    got = {row["path"]: row["score"] for row in pq.read_table(out).to_pylist() if row["score"] is not None}
    assert got == {row.path: row.score for row in score_files(files[:2], sama.load_model(device="cpu"))}


@pytest.mark.parametrize("name", ["ray", "daft"])
def test_examples_have_at_most_20_lines(name):
    assert len((EXAMPLES / f"score_with_{name}.py").read_text().splitlines()) <= 20


@pytest.mark.filterwarnings("ignore")
def test_the_example_for_daft_scores_as_sama_does(files, monkeypatch, tmp_path):
    pytest.importorskip("daft")
    monkeypatch.setenv("DAFT_PROGRESS_BAR", "0")
    run_example("score_with_daft.py", monkeypatch, Path(files[0]).parent, tmp_path / "out")
    check_example(files, tmp_path / "out")
