"""Masters: what is refused and why, what is cut off, and contents that are sharp, disjoint and the same every time."""

import masters as made
import numpy as np
import pytest
from PIL import Image

from sama.corpus.contents import contents_of, names_of, with_splits
from sama.corpus.i420 import luma
from sama.corpus.masters import SIZES, judge, rows_of
from sama.corpus.probe import activity, blockiness, detail, picture_area

FRAMES = 8


def refused(path, **options):
    return judge(str(path), num_frames=FRAMES, **options).refused


def test_sharp_files_are_masters(tmp_path):
    photograph = judge(str(made.photograph(tmp_path / "a.png")), num_frames=FRAMES)
    assert (photograph.refused, photograph.kind, photograph.box) == ("", "photograph", (0, 0, 960, 540))
    assert photograph.shrink == pytest.approx(1.4)
    video = judge(str(made.video(tmp_path / "a.mp4", made.moving(640, 360, 12))), num_frames=FRAMES)
    assert (video.refused, video.shrink) == ("", 1)
    assert video.shots == [(0, 7)]


@pytest.mark.parametrize("times", [2, 3])
def test_enlarged_ones_are_refused(tmp_path, times):
    small = Image.fromarray(made.picture(640, 360))
    for kernel in (Image.Resampling.BILINEAR, Image.Resampling.LANCZOS):
        large = np.asarray(small.resize((640 * times, 360 * times), kernel))
        assert detail(large).cutoff < 0.72
    Image.fromarray(large).convert("RGB").save(tmp_path / "large.png")
    assert "enlarged or out of focus" in refused(tmp_path / "large.png")
    assert refused(tmp_path / "large.png", trust=True) == ""


def test_heavily_compressed_ones_are_refused(tmp_path):
    assert "JPEG of quality 40" in refused(made.photograph(tmp_path / "a.jpg", quality=40))
    assert refused(made.photograph(tmp_path / "b.jpg", quality=95)) == ""
    made.photograph(tmp_path / "c.jpg", quality=8)
    Image.open(tmp_path / "c.jpg").save(tmp_path / "c.png")  # the container tells nothing
    assert "blocks" in refused(tmp_path / "c.png")
    frames = made.moving(640, 360, 12)
    assert "bits a pixel of h264" in refused(made.video(tmp_path / "d.mp4", frames, crf="45"))
    assert "bits a pixel of mpeg2video" in refused(made.video(tmp_path / "e.mpg.mp4", frames, "mpeg2video", qmin="20"))


def test_other_reasons(tmp_path):
    assert "too small: 640x360" in refused(made.photograph(tmp_path / "small.png", 640, 360))
    assert "too small: 320x240" in refused(made.video(tmp_path / "small.mp4", made.moving(320, 240, 12)))
    assert "too short: 3 frames" in refused(made.video(tmp_path / "short.mp4", made.moving(640, 360, 3)))
    Image.new("RGB", (1920, 1080), (90, 120, 90)).save(tmp_path / "flat.png")
    assert "flat" in refused(tmp_path / "flat.png")
    (tmp_path / "text.mp4").write_text("#EXTM3U\nsecret.ts\n")
    assert "playlist" in refused(tmp_path / "text.mp4")
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile /etc/passwd\n")
    assert "list of other files" in refused(tmp_path / "list.mp4")
    assert "no such file" in refused(tmp_path / "nothing.mp4")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    assert refused(tmp_path / "broken.jpg", trust=True)


def test_black_bars_are_cut_off(tmp_path):
    frames = np.full((12, 540, 640), 128, np.uint8)
    frames[:, :360] = 16
    frames[:, 46:314, 10:632] = luma(made.moving(622, 268, 12))
    assert picture_area(list(luma(frames))) == (10, 46, 632, 314)
    master = judge(str(made.video(tmp_path / "bars.mp4", frames)), num_frames=FRAMES, trust=True)
    left, top, right, bottom = master.box
    assert (abs(left - 10) <= 2, abs(top - 46) <= 2, abs(right - 632) <= 2, abs(bottom - 314) <= 2) == (True,) * 4
    assert "black bars cut off" in "".join(master.notes)
    assert "too small" in master.refused  # 622x268 is 350p


def test_videos_are_cut_at_scene_changes(tmp_path):
    frames = np.concatenate([made.moving(640, 360, n, seed) for seed, n in enumerate((9, 3, 12))])
    master = judge(str(made.video(tmp_path / "cuts.mp4", frames)), num_frames=FRAMES)
    assert master.shots == [(0, 7), (12, 19)]
    contents = contents_of(master, "cuts", "cuts", most=4, sizes=SIZES, seed=0)
    assert [content.name for content in contents] == ["cuts-0", "cuts-1"]
    clip = contents[1].pristine(FRAMES)
    assert clip.shape == (FRAMES, 540, 640)
    assert np.abs(luma(clip).astype(int) - luma(frames[12:20])).mean() < 2  # not resampled


def test_contents_of_a_large_photograph(tmp_path):
    master = judge(str(made.photograph(tmp_path / "large.png", 2880, 1680)), num_frames=FRAMES)
    contents = contents_of(master, "large", "large", most=4, sizes=SIZES, seed=3)
    assert contents == contents_of(master, "large", "large", most=4, sizes=SIZES, seed=3)
    assert contents != contents_of(master, "large", "large", most=4, sizes=SIZES, seed=4)
    assert len(contents) == 4
    for n, content in enumerate(contents):
        assert min(abs(rows_of(content.width, content.height) - size) for size in SIZES) < 2
        assert content.shrink >= 1.4
        for other in contents[:n]:
            a, b = content.box, other.box
            assert a.right <= b.left or b.right <= a.left or a.bottom <= b.top or b.bottom <= a.top
    assert contents_of(master, "large", "large", most=1, sizes=(360,), seed=0)[0].height in (360, 640, 272, 268)
    assert contents_of(master, "large", "large", most=1, sizes=(2160,), seed=0) == []


def test_the_camera_softens_nothing(tmp_path):
    master = judge(str(made.photograph(tmp_path / "sharp.png", 1200, 800)), num_frames=FRAMES)
    content = contents_of(master, "sharp", "sharp", most=1, sizes=(360,), seed=1)[0]
    frames = luma(content.pristine(12))
    assert min(detail(frame).cutoff for frame in frames) >= 0.9
    lively = [activity(frame) for frame in frames]
    assert min(lively) > 0.93 * max(lively)
    assert (content.pristine(12) == content.pristine(12)).all()


def test_measures_of_what_is_flawless():
    sharp = made.picture(640, 360)
    assert detail(sharp).cutoff == 1
    assert blockiness(sharp) < 1.08
    blocks = sharp // 2 + np.arange(640, dtype=np.uint8) // 8 % 2 * 20  # every other column of blocks is brighter
    assert blockiness(blocks) > 1.3


def test_splits_share_no_group_and_names_are_unique(tmp_path):
    master = judge(str(made.photograph(tmp_path / "large.png", 2880, 1680)), num_frames=FRAMES)
    contents = [c for n in range(10) for c in contents_of(master, f"m{n}", f"m{n}", most=4, sizes=(360, 480), seed=0)]
    split = with_splits(contents, 0.2, 0.2, 0)
    groups = {}
    for content in split:
        groups.setdefault(content.group, set()).add(content.split)
    assert all(len(splits) == 1 for splits in groups.values())
    assert sorted(next(iter(s)) for s in groups.values()) == ["test"] * 2 + ["train"] * 6 + ["val"] * 2
    assert {c.split for c in with_splits(contents[:2], 0.2, 0.2, 0)} == {"train"}
    with pytest.raises(ValueError, match="shares"):
        with_splits(contents, 0.6, 0.6, 0)
    names = names_of(["a/film.mp4", "b/film.mp4", "c/Film 1.mkv", "d/\udcff.png"])
    assert len(set(names.values())) == 4
    assert names["a/film.mp4"] == "film"
