"""`sama corpus --images`: still images, their kinds and files; sets of clips that were begun before go on."""

import csv
import json
from contextlib import contextmanager

import masters as made
import numpy as np
import pytest
from PIL import features

from sama import cli
from sama.corpus import stills
from sama.corpus.contents import StillContent, contents_of
from sama.corpus.corpus import CorpusOptions, make_corpus
from sama.corpus.ffmpeg import find_ffmpeg
from sama.corpus.i420 import luma
from sama.corpus.masters import judge
from sama.corpus.probe import detail
from sama.corpus.stills import StillLabeller, as_frames, as_rgb, coded, kept, still_kinds, write_still
from sama.decode.images import read_image
from sama.errors import InputError, MissingLibraryError

KINDS = ("jpeg", "blur", "hevc-intra")
ASKED_BEFORE = {  # what plans of clips held before there were images
    *("versions", "contents", "frames", "sizes", "kinds", "unseen", "metrics", "val", "test", "split_by", "total"),
    *("seed", "hours", "gigabytes", "trust", "version"),
}


@pytest.fixture(scope="module")
def ffmpeg():
    return find_ffmpeg()


@pytest.fixture(scope="module")
def still():
    return made.moving(320, 240, 1)


@contextmanager
def no_bar(title):
    yield lambda done, total: None


def folder_of(path, masters):
    """A folder of masters."""
    path.mkdir()
    for n in range(masters):
        made.photograph(path / f"{n}.png", seed=n, compress_level=1)
    return path


def asked(masters, out, **other):
    options = {"images": 2, "contents": 1, "versions": 2, "sizes": (360,), "kinds": KINDS, "metrics": (), "workers": 1}
    return CorpusOptions([str(masters)], str(out), **options | other)


def test_a_set_that_was_interrupted_is_the_same_set(tmp_path, monkeypatch):
    masters, sizes = folder_of(tmp_path / "masters", 2), []
    pristine = StillContent.pristine
    monkeypatch.setattr(StillContent, "pristine", lambda self, n: sizes.append(n) or pristine(self, n))
    labels = make_corpus(asked(masters, tmp_path / "a"), lambda line: None, no_bar)
    assert sizes == [1, 2, 2]  # the sample, then two contents of two views

    @contextmanager
    def stopping(title):
        def progress(done, total):
            if title == "images" and done == 5:
                raise KeyboardInterrupt

        yield progress

    with pytest.raises(KeyboardInterrupt):
        make_corpus(asked(masters, tmp_path / "b"), lambda line: None, stopping)
    assert len(list((tmp_path / "b" / "unfinished" / "images").iterdir())) >= 5
    assert cli.main(["corpus", "--resume", "-o", str(tmp_path / "b")]) == 0
    assert (tmp_path / "b" / "labels.csv").read_bytes() == labels.read_bytes()
    rows = list(csv.DictReader(labels.read_text().splitlines()))
    assert len(rows) == 2 * 2 * 3
    assert len({row["content"] for row in rows}) == 4
    for row in rows:
        data = (tmp_path / "a" / row["path"]).read_bytes()
        assert (tmp_path / "b" / row["path"]).read_bytes() == data
        assert row["path"].endswith({"jpeg": ".jpg", "png": ".png"}[row["encoder"]])
        assert read_image(tmp_path / "a" / row["path"]).shape == (int(row["height"]), int(row["width"]), 3)
        assert (row["frames"], row["aligned"], row["model"]) == ("1", "1.0", "vmaf_v0.6.1")
        assert (float(row["vmaf"]) >= 97) == (row["kind"] == "pristine"), row
    with pytest.raises(InputError, match="made with other images"):
        make_corpus(asked(masters, tmp_path / "a", images=1), lambda line: None, no_bar)
    with pytest.raises(InputError, match=r"unknown kind 'x264' of images; known: jpeg, webp"):
        make_corpus(asked(masters, tmp_path / "c", kinds=["x264"]), lambda line: None, no_bar)


def test_sets_of_clips_that_were_begun_before_go_on(tmp_path, capsys):
    """Their plans know nothing of images."""
    masters = folder_of(tmp_path / "masters", 1)
    options = ["--frames", "2", "--versions", "1", "--contents", "1", "--sizes", "360", "--kinds", "blur", "--metrics="]
    command = ["corpus", str(masters), "-o", str(tmp_path / "set"), *options]
    assert cli.main(command) == 0
    plan = json.loads((tmp_path / "set" / "plan.json").read_text())
    assert set(plan["request"]) == ASKED_BEFORE | {"masters", "files"}
    assert cli.main(command) == cli.main(["corpus", "--resume", "-o", str(tmp_path / "set")]) == 0
    assert "goes on: 1 contents, 2 clips" in capsys.readouterr().err
    assert cli.main([*command, "--images"]) == 2
    assert "made with other images" in capsys.readouterr().err


def test_every_kind_degrades_and_its_file_is_what_is_labelled(ffmpeg, still, tmp_path):
    label, known, rises = StillLabeller(ffmpeg, ()).prepare("content", still), still_kinds(ffmpeg), []
    assert len(known) >= 20
    assert label(as_frames(as_rgb(still[0])))["vmaf"] >= 97
    for name, kind in known.items():
        values = []
        for u in (0, 0.99):
            stream = kind.apply(still, kind.strength(u, "train"), "content")
            write_still(tmp_path / "a", stream)
            values.append(label(as_frames(read_image(tmp_path / "a")))["vmaf"])
        write_still(tmp_path / "b", kind.apply(still, kind.strength(0.99, "train"), "content"))
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes(), name
        assert values[0] > 80, name
        if values[1] > values[0] - 5:
            rises.append(name)
    assert set(rises) <= {"sharpen", "sharpen+jpeg", "jpeg+sharpen"}  # which VMAF rewards


def test_the_pristine_file_equals_its_reference(ffmpeg, still):
    """Also where RGB cannot hold a colour, so that its luma changes."""
    vivid = still.copy()
    vivid[:, 240:] = 16 + np.arange(vivid[:, 240:].size).reshape(vivid[:, 240:].shape) % 220
    shown = as_frames(as_rgb(vivid[0]))
    assert (luma(shown) != luma(vivid)).mean() > 0.1
    row = StillLabeller(ffmpeg).prepare("content", vivid)(shown)
    assert row["vmaf"] >= 97
    assert (row["psnr_hvs"], row["ssim"], row["aligned"]) == ("", 1, 1)  # equal: no number of decibels


@pytest.mark.parametrize("name", ["jpeg", "avif", "jpeg2000", "blur", "noise"])
def test_stronger_is_worse(ffmpeg, still, name):
    label, kind = StillLabeller(ffmpeg, ()).prepare("content", still), still_kinds(ffmpeg)[name]
    values = []
    for u in (0, 0.4, 0.7, 0.99):
        stream = kind.apply(still, kind.strength(u, "train"), "content")
        values.append(label(stream.frames if stream.codec == "png" else coded(stream))["vmaf"])
    assert values == sorted(values, reverse=True)
    assert values[0] > values[-1] + 20


def test_a_shifted_grid_leaves_the_picture_where_it_is(still):
    stream = kept(still)
    assert (coded(stream, (5, 3)) == coded(stream)).all()
    lossy = stream._replace(codec="jpeg", options={"quality": 30})
    first, second = (luma(coded(lossy, shift)).astype(int) for shift in ((0, 0), (5, 3)))
    assert (first != second).any()
    assert np.abs(second - luma(still)).mean() < 1.2 * np.abs(first - luma(still)).mean()


def test_views_of_a_photograph_and_moments_of_a_shot(tmp_path):
    master = judge(str(made.photograph(tmp_path / "a.png", 1600, 1000)), num_frames=8)
    content = contents_of(master, "a", "a", most=1, sizes=(360,), seed=2)[0]
    views = StillContent(**vars(content)).pristine(3)
    assert views.shape == (3, content.height * 3 // 2, content.width)
    assert all((views[n] != views[n - 1]).any() for n in range(3))
    assert min(detail(view).cutoff for view in luma(views)) >= 0.9
    assert (StillContent(**vars(content)).pristine(1) == views[:1]).all()
    master = judge(str(made.video(tmp_path / "a.mp4", made.moving(640, 360, 8))), num_frames=8)
    shot = contents_of(master, "a", "a", most=1, sizes=(360,), seed=0)[0]
    assert (StillContent(**vars(shot)).pristine(2) == shot.pristine(8)[[2, 6]]).all()


def test_what_pillow_lacks_is_said(ffmpeg, monkeypatch):
    known = still_kinds(ffmpeg)
    stills.require(known, ffmpeg)
    monkeypatch.setattr(features, "check", lambda name: name != "avif")
    with pytest.raises(MissingLibraryError, match=r"cannot write avif: .*pillow>=11\.3.*--kinds jpeg,webp,jpeg2000"):
        stills.require(known, ffmpeg)
    stills.require({name: known[name] for name in ("webp", "jpeg")}, ffmpeg)


def test_a_number_of_images(capsys, tmp_path):
    assert cli.main(["corpus", "x.png", "-o", str(tmp_path), "--images", "-1"]) == 2
    assert "--images must be 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize("images", [0, 1])
def test_contents_can_look_as_other_cameras_do(tmp_path, images):
    """The pristine version too, which the others are compared with; the rest of the plan is that of a set without."""
    masters, plans, pristine = folder_of(tmp_path / "masters", 2), [], []
    for share in (0.0, 0.5):
        out = tmp_path / str(share)
        options = asked(masters, out, images=images, frames=2, versions=1, kinds=("blur",), looks=share)
        with open(make_corpus(options, lambda line: None, no_bar), newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["kind"] == "pristine"]
        assert all(float(row["vmaf"]) > 90 for row in rows)
        plans.append(json.loads((out / "plan.json").read_text()))
        pristine.append([(out / row["path"]).read_bytes() for row in rows])
    assert "looks" not in plans[0]["request"]
    assert [[content["look"] for content in plan["contents"]] for plan in plans] == [[False, False], [False, True]]
    assert [a == b for a, b in zip(*pristine)] == [True, False]
    assert plans[0]["versions"] == plans[1]["versions"]
    with pytest.raises(InputError, match="--looks must be a share"):
        asked(masters, tmp_path / "d", looks=2.0)
