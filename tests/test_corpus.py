"""Labelled sets: whole or not there, the same every time, no leak between splits, labels that fall with strength."""

import csv
import json
import subprocess
import sys
import zlib

import numpy as np
import pytest
from scipy.stats import spearmanr

from sama.cli import main
from sama.corpus.build import Recipe, Version, build
from sama.corpus.codec import Stream, read_video
from sama.corpus.degrade import UNSEEN, Kind
from sama.corpus.i420 import change_planes, luma
from sama.corpus.make import IMAGE_SIZES, SIZES, SMALL, Settings, make
from sama.corpus.sources import ALL_CONTENTS, COLLAGES, CONTENTS, SOURCES, SPLITS, files, locate
from sama.decode import open_video
from sama.decode.images import read_image

TINY = Settings(("coins", "coffee"), ("blur", "x264", "stutter", "vp9"), versions=3, num_frames=12)
TINY_IMAGES = Settings(("coins", "coffee"), ("jpeg", "webp", "noise"), versions=3, images=2)
MINI = Settings(("coins", "coffee"), ("blur", "noise"), num_frames=4)


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make(tmp_path_factory.mktemp("demo") / "set", size=TINY, workers=2)


def test_every_clip_is_there_and_decodes(tiny):
    rows = table(tiny)
    assert tuple(rows[0]) == ("path", "mos", "content", "kind", "strength", "split", "reference")
    assert len({row["path"] for row in rows}) == len(rows) == 2 * (1 + 4 * 3) - 3  # vp9 is in the test split only
    assert {row["path"] for row in rows} == {f"clips/{path.name}" for path in (tiny.parent / "clips").iterdir()}
    assert not (tiny.parent / "unfinished").exists()
    for row in rows:
        shape = read_video(str(tiny.parent / row["path"])).shape
        content = CONTENTS[row["content"]]
        assert shape == (12, content.height * 3 // 2, content.width)
        assert 0 <= float(row["mos"]) <= 100


def test_labels_fall_with_strength(tiny):
    rows = table(tiny)
    for content in TINY.contents:
        (clean,) = [row for row in rows if row["content"] == content and row["kind"] == "pristine"]
        assert float(clean["mos"]) > 95
        for kind in TINY.kinds:
            of_kind = [row for row in rows if (row["content"], row["kind"]) == (content, kind)]
            if not of_kind:
                assert kind in UNSEEN
                continue
            mos, strength = ([float(row[name]) for row in of_kind] for name in ("mos", "strength"))
            assert spearmanr(mos, strength).statistic == pytest.approx(-1)
            assert max(mos) < float(clean["mos"])


def test_made_twice_it_is_the_same(tiny, tmp_path):
    again = make(tmp_path, size=TINY, workers=1)
    assert again.read_bytes() == tiny.read_bytes()
    for row in table(tiny):
        assert (tmp_path / row["path"]).read_bytes() == (tiny.parent / row["path"]).read_bytes()


def test_a_set_that_is_there_is_left_alone(tiny):
    before = {path: path.stat().st_mtime_ns for path in tiny.parent.rglob("*")}
    assert make(tiny.parent, size=TINY) == tiny
    assert {path: path.stat().st_mtime_ns for path in tiny.parent.rglob("*")} == before
    with pytest.raises(ValueError, match="holds another set"):
        make(tiny.parent, size="small")


def test_an_interrupted_run_leaves_no_labels_and_goes_on(tmp_path):
    class StopError(Exception):
        pass

    def stop(done, total):
        if done == 5:
            raise StopError

    whole = make(tmp_path / "whole", size=MINI, workers=2).read_bytes()
    folder = tmp_path / "set"
    with pytest.raises(StopError):
        make(folder, size=MINI, workers=1, progress=stop)
    assert not (folder / "labels.csv").exists()
    kept = [path for path in (folder / "unfinished").glob("co*.json")]
    names = [row["path"] for path in kept for row in json.loads(path.read_text())]
    assert len(names) == 5
    clips = {path: path.stat().st_mtime_ns for path in (folder / "unfinished" / name for name in names)}
    labels = make(folder, size=MINI, workers=1)
    assert labels.read_bytes() == whole
    for path, time in clips.items():
        assert (folder / "clips" / path.name).stat().st_mtime_ns == time

    (folder / "unfinished").mkdir()
    (folder / "manifest.json").unlink()
    (folder / "unfinished" / "settings.json").write_text(json.dumps({"of": "another set"}))
    (folder / "unfinished" / "coins.json").write_text("[]")
    assert make(folder, size=MINI, workers=2).read_bytes() == whole


def test_images(tmp_path):
    labels = make(tmp_path, size=TINY_IMAGES, workers=2)
    rows = table(labels)
    assert len(rows) == len({row["path"] for row in rows}) == 2 * 2 * (1 + 3 * 3) - 2 * 3  # webp: test split only
    assert {row["content"] for row in rows} == {"coins-0", "coins-1", "coffee-0", "coffee-1"}
    of_kind = {}
    for row in rows:
        height, width, _ = read_image(tmp_path / row["path"]).shape
        content = CONTENTS[row["content"][:-2]]
        assert (height, width) == (content.height, content.width)
        of_kind.setdefault((row["content"], row["kind"]), []).append((float(row["strength"]), float(row["mos"])))
    for (_, kind), pairs in of_kind.items():
        mos = [mos for _, mos in sorted(pairs)]
        assert mos == sorted(mos, reverse=True)
        assert len(set(mos)) == len(mos)
        assert kind != "pristine" or mos[0] > 98


@pytest.mark.parametrize("size", ["small", "full"])
@pytest.mark.parametrize("sizes", [SIZES, IMAGE_SIZES], ids=["clips", "images"])
def test_splits_share_neither_source_nor_strength(sizes, size):
    settings = sizes[size]
    splits, strengths = {}, {}
    for name in settings.names:
        content = ALL_CONTENTS[name]
        for file in files(SOURCES[content.source]):
            splits.setdefault(file, set()).add(content.split)
        for version in settings.plan(name):
            if name in CONTENTS or version.kind == "mpeg4":  # of collages others may be the same by chance
                strengths.setdefault(version.kind, {}).setdefault(content.split, []).append(version.strength)
    assert all(len(of_file) == 1 for of_file in splits.values())
    assert {split for of_file in splits.values() for split in of_file} == set(SPLITS)
    for kind in settings.kinds:
        of = strengths[kind]
        assert set(of) == ({"test"} if kind in UNSEEN else set(SPLITS))
        for other in ("val", "test"):
            assert not set(of.get("train", ())) & set(of.get(other, ()))


def test_collages(tmp_path):
    """They are of the training photographs alone, all different, at least half as sharp as photographs, and are made
    again the same; each has one strength of each kind that is trained on."""
    other = {locate(source) for source in SOURCES.values() if source.split != "train"}
    assert not other & set(files(SOURCES["collage"]))
    assert len(files(SOURCES["collage"])) > 10
    again = [COLLAGES["collage-003"].pristine(2) for _ in range(2)]
    assert np.array_equal(*again)
    settings = Settings(("coffee",), ("noise", "vp9"), versions=2, collages=2, num_frames=4)
    assert settings.names == ["coffee", "collage-000", "collage-001"]
    labels = make(tmp_path, size=settings, workers=2)
    rows = [row for row in table(labels) if row["content"].startswith("collage")]
    assert [(row["kind"], row["split"]) for row in rows] == [("pristine", "train"), ("noise", "train")] * 2
    assert len({row["strength"] for row in rows if row["kind"] == "noise"}) == 2
    clips = [luma(COLLAGES[name].pristine(1))[0].astype(float) for name in list(COLLAGES)[:12]]
    photographs = [luma(CONTENTS[name].pristine(1))[0].astype(float) for name in SMALL if CONTENTS[name].shot == (0, 0)]
    gradients = [
        [np.percentile(np.abs(np.diff(frame, axis=1)), 99) for frame in frames] for frames in (clips, photographs)
    ]
    assert np.median(gradients[0]) > 0.5 * np.median(gradients[1])
    assert len({frame.tobytes() for frame in clips}) == 12
    with pytest.raises(ValueError, match="a content is named twice"):
        Settings(("collage-001",), collages=2)
    with pytest.raises(ValueError, match="collages must be 0 to 1000; got 1001"):
        Settings(("coffee",), collages=1001)


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"unknown size 'huge'; known: small, full"):
        make(tmp_path, size="huge")
    with pytest.raises(ValueError, match="unknown fog; known: x264"):
        Settings(("coins",), ("fog",))


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    gone = SOURCES["coins"]._replace(package="no_such_package")
    monkeypatch.setitem(SOURCES, "coins", gone)
    with pytest.raises(ImportError, match=r"no_such_package, which is missing: pip install 'sama-vqa\[demo\]'"):
        make(tmp_path, size=TINY)
    assert not list(tmp_path.iterdir())


def test_the_package_reads_the_clips(tiny):
    path = tiny.parent / "clips" / "coins-pristine-0.mp4"
    with open_video(path) as video:
        assert video.info.num_frames == 12


def test_command(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(SIZES, "small", Settings(("coins",), ("blur",), num_frames=4))
    assert main(["demo-data", str(tmp_path), "--workers", "1"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'labels.csv'}\n"
    assert len(table(tmp_path / "labels.csv")) == 2
    assert main(["demo-data", str(tiny.parent), "--size", "full"]) == 2
    assert "holds another set" in capsys.readouterr().err
    assert main(["demo-data", str(tmp_path), "--workers", "0"]) == 2


def test_processes_that_ask_at_once_share_one_set(tmp_path):
    code = (
        "import sys; from sama.corpus.make import Settings, make\n"
        "size = Settings(('coins',), ('blur',), num_frames=8)\n"
        "print(make(sys.argv[1], size=size, workers=1).read_text())"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    texts = [run.communicate(timeout=60)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert texts[0] == texts[1]
    assert len(table(tmp_path / "labels.csv")) == 2


def test_a_set_of_version_0_1_0_is_accepted(tmp_path):
    """The manifest and a set's plan are as they were then, so a set that is there is not made anew."""
    manifest = {
        "contents": ["coins"],
        "kinds": ["blur", "x264"],
        "versions": 2,
        "collages": 1,
        "large_collages": 0,
        "num_frames": 12,
        "images": 0,
        "version": 3,
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest, indent=1))
    settings = Settings(("coins",), ("blur", "x264"), versions=2, collages=1, num_frames=12)
    assert not make(tmp_path, size=settings).exists()
    sizes = [*SIZES.values(), *IMAGE_SIZES.values()]
    planned = [version for size in sizes for name in size.names for version in size.plan(name)]
    assert (len(planned), zlib.crc32(json.dumps(planned).encode())) == (10123, 1100187555)


class Ramp:
    """A content of another kind: a ramp of grey that becomes brighter."""

    width, height = 64, 48

    def __init__(self, name: str, group: str, split: str):
        self.name, self.group, self.split = name, group, split

    def pristine(self, num_frames):
        frames = np.full((num_frames, 72, 64), 128, np.uint8)
        frames[:, :48] = np.arange(40, 184, 3)[:, None] + np.arange(num_frames)[:, None, None]
        return frames


class MeanSquaredError:
    """A label of two columns."""

    columns = ("mse", "model")

    def prepare(self, name, pristine):
        assert len(pristine) in (1, 3)
        return lambda shown: {"mse": round(float(np.mean((pristine.astype(float) - shown) ** 2)), 3), "model": name}


@pytest.mark.parametrize("images", [0, 2])
def test_other_contents_and_labels_can_be_plugged_in(tmp_path, images):
    def darken(frames, strength, name):
        return Stream(change_planes(frames, lambda plane, n: plane - (0.0 if n else strength)))

    kinds = {"darker": Kind(1, 40, "grey levels", darken)}

    def plan(name):
        names = [f"{name}-{n}" for n in range(images)] or [name]
        return [
            Version(view_name, view, kind, 0, strength)
            for view, view_name in enumerate(names)
            for kind, strength in (("pristine", 0.0), ("darker", 10.0))
        ]

    contents = [Ramp("a", "first.mp4", "train"), Ramp("b", "first.mp4", "train"), Ramp("c", "second.mp4", "test")]
    recipe = Recipe({"mine": 1}, contents, plan, kinds, MeanSquaredError(), num_frames=3, images=images)
    seen = []
    labels = build(tmp_path, recipe, workers=2, progress=lambda *numbers: seen.append(numbers))
    rows = table(labels)
    assert tuple(rows[0]) == ("path", "mse", "model", "content", "kind", "strength", "split", "reference")
    assert seen == [(n, len(rows)) for n in range(1, len(rows) + 1)]
    assert [row["split"] for row in rows] == [s for s in ("train", "train", "test") for _ in range(2 * (images or 1))]
    for row in rows:
        assert row["model"] == row["content"]
        expected = 10**2 * 2 / 3 if row["kind"] == "darker" else 0  # luma is two thirds of the samples
        assert float(row["mse"]) == pytest.approx(expected, rel=0.2, abs=1)  # RGB in PNG rounds
        assert (tmp_path / row["path"]).is_file()
    with pytest.raises(ValueError, match="holds another set"):
        make(tmp_path, size=MINI)
    with pytest.raises(ValueError, match=r"first\.mp4 is in two splits: train, test"):
        Recipe({}, [*contents, Ramp("d", "first.mp4", "test")], plan, kinds, MeanSquaredError(), num_frames=3)
    with pytest.raises(ValueError, match="two contents have the same name"):
        Recipe({}, [*contents, contents[0]], plan, kinds, MeanSquaredError(), num_frames=3)
