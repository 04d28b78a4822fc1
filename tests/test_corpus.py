"""The demo's data: whole or not there, the same every time, no leak between splits, labels that mean what they say."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity

from sama import demo
from sama.cli import main
from sama.decode import open_video
from sama.decode.images import read_image

TINY = demo.Settings(("coins", "coffee"), ("blur", "x264", "stutter", "vp9"), versions=3, num_frames=12)


TINY_IMAGES = demo.Settings(("coins", "coffee"), ("jpeg", "webp", "noise"), versions=3, images=2)


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return demo.make(tmp_path_factory.mktemp("demo") / "set", size=TINY, workers=2)


@pytest.fixture(scope="module")
def frames():
    return demo.pristine(demo.CONTENTS["coins"], 12)


def test_every_clip_is_there_and_decodes(tiny):
    rows = table(tiny)
    assert tuple(rows[0]) == demo.COLUMNS
    assert len({row["path"] for row in rows}) == len(rows) == 2 * (1 + 4 * 3) - 3  # vp9 is in the test split only
    assert {row["path"] for row in rows} == {f"clips/{path.name}" for path in (tiny.parent / "clips").iterdir()}
    assert not (tiny.parent / "unfinished").exists()
    for row in rows:
        shape = demo.read(str(tiny.parent / row["path"])).shape
        content = demo.CONTENTS[row["content"]]
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
                assert kind in demo.UNSEEN
                continue
            mos, strength = ([float(row[name]) for row in of_kind] for name in ("mos", "strength"))
            assert spearmanr(mos, strength).statistic == pytest.approx(-1)
            assert max(mos) < float(clean["mos"])


def test_made_twice_it_is_the_same(tiny, tmp_path):
    again = demo.make(tmp_path, size=TINY, workers=1)
    assert again.read_bytes() == tiny.read_bytes()
    for row in table(tiny):
        assert (tmp_path / row["path"]).read_bytes() == (tiny.parent / row["path"]).read_bytes()


def test_a_set_that_is_there_is_left_alone(tiny):
    before = {path: path.stat().st_mtime_ns for path in tiny.parent.rglob("*")}
    assert demo.make(tiny.parent, size=TINY) == tiny
    assert {path: path.stat().st_mtime_ns for path in tiny.parent.rglob("*")} == before
    with pytest.raises(ValueError, match="holds another set"):
        demo.make(tiny.parent, size="small")


def test_an_interrupted_run_leaves_no_labels_and_goes_on(tiny, tmp_path):
    class StopError(Exception):
        pass

    def stop(done, total):
        if done == 15:
            raise StopError

    with pytest.raises(StopError):
        demo.make(tmp_path, size=TINY, workers=1, progress=stop)
    assert not (tmp_path / "labels.csv").exists()
    kept = [path for path in (tmp_path / "unfinished").glob("co*.json")]
    assert len(kept) == 1  # the first content is whole, the second was cut off
    clips = {path: path.stat().st_mtime_ns for path in (tmp_path / "unfinished" / "clips").glob(f"{kept[0].stem}-*")}
    labels = demo.make(tmp_path, size=TINY, workers=1)
    assert labels.read_bytes() == tiny.read_bytes()
    for path, time in clips.items():
        assert (tmp_path / "clips" / path.name).stat().st_mtime_ns == time

    (tmp_path / "unfinished").mkdir()
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "unfinished" / "settings.json").write_text(json.dumps({"of": "another set"}))
    (tmp_path / "unfinished" / "coins.json").write_text("[]")
    assert demo.make(tmp_path, size=TINY, workers=2).read_bytes() == tiny.read_bytes()


def test_images(tmp_path):
    labels = demo.make(tmp_path, size=TINY_IMAGES, workers=2)
    rows = table(labels)
    assert len(rows) == len({row["path"] for row in rows}) == 2 * 2 * (1 + 3 * 3) - 2 * 3  # webp: test split only
    assert {row["content"] for row in rows} == {"coins-0", "coins-1", "coffee-0", "coffee-1"}
    of_kind = {}
    for row in rows:
        height, width, _ = read_image(tmp_path / row["path"]).shape
        content = demo.CONTENTS[row["content"][:-2]]
        assert (height, width) == (content.height, content.width)
        of_kind.setdefault((row["content"], row["kind"]), []).append((float(row["strength"]), float(row["mos"])))
    for (_, kind), pairs in of_kind.items():
        mos = [mos for _, mos in sorted(pairs)]
        assert mos == sorted(mos, reverse=True)
        assert len(set(mos)) == len(mos)
        assert kind != "pristine" or mos[0] > 98


@pytest.mark.parametrize("size", ["small", "full"])
@pytest.mark.parametrize("sizes", [demo.SIZES, demo.IMAGE_SIZES], ids=["clips", "images"])
def test_splits_share_neither_source_nor_strength(sizes, size):
    settings = sizes[size]
    files, strengths = {}, {}
    for name in settings.names:
        content = demo.ALL_CONTENTS[name]
        for file in demo.files(demo.SOURCES[content.source]):
            files.setdefault(file, set()).add(content.split)
        for version in settings.plan(name):
            if name in demo.CONTENTS or version.kind == "mpeg4":  # of collages others may be the same by chance
                strengths.setdefault(version.kind, {}).setdefault(content.split, []).append(version.strength)
    assert all(len(splits) == 1 for splits in files.values())
    assert {split for splits in files.values() for split in splits} == set(demo.SPLITS)
    for kind in settings.kinds:
        of = strengths[kind]
        assert set(of) == ({"test"} if kind in demo.UNSEEN else set(demo.SPLITS))
        for other in ("val", "test"):
            assert not set(of.get("train", ())) & set(of.get(other, ()))


def test_collages(tmp_path):
    """They are of the training photographs alone, all different, at least half as sharp as photographs, and are made
    again the same; each has one strength of each kind that is trained on."""
    other = {demo.locate(source) for source in demo.SOURCES.values() if source.split != "train"}
    assert not other & set(demo.files(demo.SOURCES["collage"]))
    assert len(demo.files(demo.SOURCES["collage"])) > 10
    again = [demo.pristine(demo.COLLAGES["collage-003"], 2) for _ in range(2)]
    assert np.array_equal(*again)
    settings = demo.Settings(("coffee",), ("noise", "vp9"), versions=2, collages=2, num_frames=4)
    assert settings.names == ["coffee", "collage-000", "collage-001"]
    labels = demo.make(tmp_path, size=settings, workers=2)
    rows = [row for row in table(labels) if row["content"].startswith("collage")]
    assert [(row["kind"], row["split"]) for row in rows] == [("pristine", "train"), ("noise", "train")] * 2
    assert len({row["strength"] for row in rows if row["kind"] == "noise"}) == 2
    clips = [demo.luma(demo.pristine(demo.COLLAGES[name], 2))[0].astype(float) for name in list(demo.COLLAGES)[:12]]
    photographs = [demo.luma(demo.pristine(demo.CONTENTS[name], 2))[0].astype(float) for name in demo.SMALL]
    gradients = [
        [np.percentile(np.abs(np.diff(frame, axis=1)), 99) for frame in frames] for frames in (clips, photographs)
    ]
    assert np.median(gradients[0]) > 0.5 * np.median(gradients[1])
    assert len({frame.tobytes() for frame in clips}) == 12
    with pytest.raises(ValueError, match="a content is named twice"):
        demo.Settings(("collage-001",), collages=2)
    with pytest.raises(ValueError, match="collages must be 0 to 1000; got 1001"):
        demo.Settings(("coffee",), collages=1001)


def test_regions_of_a_photograph_do_not_overlap():
    for source in demo.SOURCES:
        parts = [content for content in demo.CONTENTS.values() if content.source == source]
        for n, one in enumerate(parts):
            for other in parts[:n]:
                if one.shot != other.shot:
                    assert one.shot[0] > other.shot[1] or other.shot[0] > one.shot[1]
                    continue
                (a, b, c, d), (e, f, g, h) = one.region, other.region
                assert c <= e or g <= a or d <= f or h <= b


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"unknown size 'huge'; known: small, full"):
        demo.make(tmp_path, size="huge")
    with pytest.raises(ValueError, match="unknown fog; known: x264"):
        demo.Settings(("coins",), ("fog",))


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    gone = demo.SOURCES["coins"]._replace(package="no_such_package")
    monkeypatch.setitem(demo.SOURCES, "coins", gone)
    with pytest.raises(ImportError, match=r"no_such_package, which is missing: pip install 'sama-vqa\[demo\]'"):
        demo.make(tmp_path, size=TINY)
    assert not list(tmp_path.iterdir())


def test_frozen_frames_are_registered(frames):
    held = demo.stutter(frames, 3)
    assert list(demo.register(demo.luma(frames), demo.luma(held))) == [0, 0, 0, 3, 3, 3, 6, 6, 6, 9, 9, 9]
    measured = demo.measure(frames, held)
    assert measured.distortion == 0
    assert measured.delay == 1  # 0, 1 and 2 frames late
    noisy = demo.noise(frames, 20, "coins")
    assert list(demo.register(demo.luma(frames), demo.luma(noisy))) == list(range(12))


def test_quality_at_known_points():
    assert demo.quality(demo.Measured(0, 0), 0.1) == 100
    half = demo.HALF_DISTORTION * 0.1 / demo.TYPICAL
    assert demo.quality(demo.Measured(half, 0), 0.1) == pytest.approx(50)
    assert demo.quality(demo.Measured(half, demo.HALF_DELAY), 0.1) == pytest.approx(25)
    assert demo.quality(demo.Measured(2 * half, 0), 0.2) == pytest.approx(50)


def test_ssim_at_one_scale_is_that_of_scikit_image():
    """Planes too small for a second scale."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 255, (13, 13)).astype(np.float32)
    y = x + rng.normal(0, 20, (13, 13)).astype(np.float32)
    _, full = structural_similarity(x, y, data_range=255, full=True, use_sample_covariance=False)
    assert demo.ms_ssim(x, y) == pytest.approx(full.mean(), abs=1e-5)
    assert demo.ms_ssim(x, x) == pytest.approx(1)


def test_gmsd_by_hand():
    """A step of 90 in one column, of which half is lost: magnitudes at half size 45 / 90 beside it, 0 elsewhere."""
    x = np.zeros((32, 32), np.float32)
    x[:, 16:] = 90
    lost = (2 * 90 * 45 + 170) / (90**2 + 45**2 + 170)
    values = np.ones((16, 16))
    values[:, 7:9] = lost
    assert demo.gmsd(x, x / 2) == pytest.approx(values.std(), rel=1e-5)
    assert demo.gmsd(x, x) == 0


def test_noise_blur_and_resize_do_what_they_say(frames):
    flat = np.full_like(frames, 128)
    noisy = [demo.split(frame) for frame in demo.noise(flat, 6, "coins")]
    assert np.std([planes[0] for planes in noisy]) == pytest.approx(6, rel=0.05)
    assert np.std([planes[1] for planes in noisy]) == pytest.approx(3, rel=0.05)
    assert not np.array_equal(noisy[0][0], noisy[1][0])
    for change in (demo.blur, demo.resize, demo.motion_blur):
        assert np.array_equal(change(flat, 3.0, "coins"), flat)
        assert np.std(demo.luma(change(frames, 3.0, "coins"))) < np.std(demo.luma(frames))


@pytest.mark.parametrize(("length", "expected"), [(1, [0, 1, 0]), (2, [0.25, 0.5, 0.25]), (3, [1 / 3, 1 / 3, 1 / 3])])
def test_motion_blur_is_a_box_of_its_length(length, expected):
    frames = np.zeros((1, 48, 32), np.uint8)
    frames[0, 16, 16] = 240
    luma = demo.luma(demo.motion_blur(frames, length, "coins"))[0].astype(float)
    line = luma[16] if luma[16].sum() > luma[:, 16].sum() else luma[:, 16]
    assert line[15:18] / 240 == pytest.approx(expected)


def test_the_package_reads_the_clips(tiny):
    path = tiny.parent / "clips" / "coins-pristine-0.mp4"
    with open_video(path) as video:
        assert video.info.num_frames == 12


def test_command(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(demo.SIZES, "small", demo.Settings(("coins",), ("blur",), num_frames=4))
    assert main(["demo-data", str(tmp_path), "--workers", "1"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'labels.csv'}\n"
    assert len(table(tmp_path / "labels.csv")) == 2
    assert main(["demo-data", str(tiny.parent), "--size", "full"]) == 2
    assert "holds another set" in capsys.readouterr().err
    assert main(["demo-data", str(tmp_path), "--workers", "0"]) == 2


def test_processes_that_ask_at_once_share_one_set(tmp_path):
    code = (
        "import sys; from sama import demo\n"
        "size = demo.Settings(('coins',), ('blur',), num_frames=8)\n"
        "print(demo.make(sys.argv[1], size=size, workers=1).read_text())"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    texts = [run.communicate(timeout=60)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert texts[0] == texts[1]
    assert len(table(tmp_path / "labels.csv")) == 2


def test_cutouts_move_by_shares_of_a_pixel():
    """A yellow square before grey: its middle, in luma and in chroma, follows one smooth path."""
    from PIL import Image

    frames = np.concatenate([np.full((16, 240, 320), 60, np.uint8), np.full((16, 120, 320), 128, np.uint8)], 1)
    mask = Image.new("L", (32, 32))
    mask.paste(255, (4, 4, 28, 28))
    demo._move(frames, Image.new("RGB", (32, 32), (255, 230, 0)), mask, np.random.default_rng(1))
    middles = []
    for frame in frames:
        for plane, rest, size in zip(demo.split(frame), (60, 128, 128), (1, 2, 2)):
            weight = np.abs(plane.astype(float) - rest)
            total = weight.sum() * size**2 / np.abs(weight).max()
            assert 0.9 * 24**2 < total < 1.1 * 24**2  # all of it is there
            middles.append([(weight.sum(axis) @ np.arange(weight.shape[1 - axis])) / weight.sum() for axis in (1, 0)])
    middles = np.reshape(middles, (16, 3, 2)) * np.array([1, 2, 2])[:, None] + np.array([0, 0.5, 0.5])[:, None]
    assert np.abs(middles - middles[:, :1]).max() < 0.6  # chroma is as fine as it has samples
    step = np.diff(middles[:, 0], axis=0)
    assert 0.5 < np.abs(step).max() < 20
    assert np.abs(np.diff(step, axis=0)).max() < 0.3


def test_what_is_trained_on_is_filmed():
    """Softer in some cases, sharper in others, with grain in some; what is validated and tested on is left as it is."""
    content = demo.CONTENTS["coffee"]
    still = demo._pan(demo.planes(demo.photograph(demo.locate(demo.SOURCES["coffee"]))), content, 2)
    assert np.array_equal(demo.pristine(content, 2), still)
    for content in (demo.CONTENTS["coins"], demo.COLLAGES["collage-000"]):
        filmed = demo.pristine(content, 2)
        assert np.array_equal(filmed, demo.pristine(content, 2))
        assert not np.array_equal(filmed, demo.pristine(content, 2, filmed=False))
    still = still[[0, 0]]

    def detail(frames):
        luma = demo.luma(frames)[0].astype(float)
        return np.abs(np.diff(luma)).mean() / luma.std()

    taken = [demo._film(still, np.random.default_rng(seed)) for seed in range(12)]
    assert {(frames.shape, frames.dtype) for frames in taken} == {(still.shape, still.dtype)}
    outside = [np.mean((luma < 16) | (luma > 235)) for luma in map(demo.luma, taken)]  # the limited range
    assert np.median(outside) == 0
    assert max(outside) < 0.02  # of a light compression
    sharpness = [detail(frames) / detail(still) for frames in taken]
    assert min(sharpness) < 0.9
    assert max(sharpness) > 1.1
    flicker = [np.abs(np.diff(demo.luma(frames).astype(float), axis=0)).mean() for frames in taken]
    assert min(flicker) < 0.2
    assert max(flicker) > 0.5
