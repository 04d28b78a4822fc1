"""Damaged streams give the same frames every time, and the row says that frames were concealed."""

from __future__ import annotations

import hashlib
import random

import pytest
from videos import write_video

import sama
from sama.decode import Attempt as Opened
from sama.decode import again, decode_with, open_video
from sama.errors import DamageError, DecodeError
from sama.limits import Guard
from sama.model import random_model
from sama.scoring import score_files

THREADS = 4
CODECS = {  # of 20 runs with four threads, most gave other frames than the first before damage was looked for
    "mpeg4.mp4": ("mpeg4", {"options": {"bf": "2", "g": "12"}}),
    "h264.mp4": ("libx264", {}),
    "slices.mkv": ("libx264", {"options": {"x264-params": "slices=4"}}),
    "mpeg2.ts": ("mpeg2video", {"options": {"bf": "2", "g": "12"}}),
    "prores.mov": ("prores_ks", {"pix_fmt": "yuv422p10le"}),
    "hevc.mkv": ("libx265", {"options": {"x265-params": "log-level=none:wpp=1"}}),
}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """A function of a name in `CODECS`: the path of a clip with flipped bits and a hole."""
    folder = tmp_path_factory.mktemp("damaged")

    def make(name, seed=1):
        path = folder / f"{seed}-{name}"
        if not path.exists():
            codec, options = CODECS[name]
            write_video(path, codec, size=(320, 240), num_frames=20, **options)
            path.write_bytes(damage(path.read_bytes(), seed))
        return path

    return make


def damage(data: bytes, seed: int) -> bytes:
    """Three to ten flipped bits, and for an odd seed 400 zeros, in the part that holds the pictures."""
    draw, data = random.Random(seed), bytearray(data)
    for at in draw.sample(range(1500, len(data) - 800), 3 + seed):
        data[at] ^= 1 << draw.randrange(8)
    if seed % 2:
        at = draw.randrange(len(data) // 3, len(data) - 600)
        data[at : at + 400] = bytes(400)
    return bytes(data)


def digest(video):
    """SHA-256 of every third frame; the decoder needs all of them. The last ones may be lost, and all behind a hole."""
    found = hashlib.sha256()
    for n, frame in video.frames(range(0, min(15, video.info.num_frames), 3)):
        found.update(n.to_bytes(2, "big"))
        for plane in frame.planes:
            found.update(plane.tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("name", CODECS)
def test_frames_are_the_same_every_time(damaged, name):
    path = damaged(name, 1 if name in ("mpeg4.mp4", "prores.mov") else 3)
    found = {decode_with(digest, path, decoder="pyav", threads=THREADS) for _ in range(5)}
    assert found == {decode_with(digest, path, decoder="pyav", threads=1)}


@pytest.mark.parametrize("name", ["mpeg4.mp4", "mpeg2.ts"])
def test_the_row_says_that_frames_were_concealed(damaged, name):
    path, model = damaged(name), random_model(device="cpu")
    model.metadata |= {"clip_len": 8, "num_clips": 2}
    model.sampler = sama.VideoSampler(grid=(2, 2), fragment=(16, 16), layout="patches")
    model.token_maps = lambda samples: samples.flatten(1).double().cos().mean(1)[:, None]
    rows = [row for _ in range(4) for row in score_files([str(path)], model, decoder="pyav")]
    assert {row.status for row in rows} == {"ok"}
    assert len({tuple(row.clips) for row in rows}) == 1
    assert {row.reason.partition(" (")[0] for row in rows} == {"frames were concealed: its stream reports errors"}
    result = model.score(path, decoder="pyav")
    assert (list(result.clips), bool(result.damage)) == (rows[0].clips, True)


def test_a_flawless_stream_is_read_once_and_says_nothing(clip):
    for name in ("h264.mp4", "h264-open-gop.mp4", "h264-intra-refresh.mp4", "hevc-open-gop.mkv", "vp9.webm", "av1.mp4"):
        opened = []

        def use(video, opened=opened):
            opened.append(video)
            return [n for n, _ in video.frames([5, 20, 33])]

        guard = Guard(str(clip(name)))
        assert decode_with(use, clip(name), decoder="pyav", threads=THREADS, guard=guard) == [5, 20, 33]
        assert (len(opened), guard.damage) == (1, "")


def test_what_is_read_again():
    damaged, broken = DamageError("x", "damaged"), DecodeError("x", "broken")
    assert again(Opened("auto", 4), "nvcodec", damaged) == Opened("pyav", 1)
    assert again(Opened("dali", None), "dali", damaged) == Opened("dali", 1)  # a named decoder never falls back
    assert again(Opened("auto", 4), "nvcodec", broken) == Opened("pyav", 4)
    assert again(Opened("auto", None), "pyav", broken) is again(Opened("dali", None), "dali", broken) is None
    assert again(Opened("auto", None), None, broken) is None


def test_who_opens_a_video_gets_the_frames_that_it_holds(damaged):
    """Without a strict guard nothing is raised; the damage is noted."""
    with open_video(damaged("mpeg4.mp4"), decoder="pyav", threads=1) as video:
        assert len(list(video.frames(range(video.info.num_frames)))) == video.info.num_frames
        assert video.guard.damage
