"""The public samplers: what they take, what they give, and what they say."""

import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import videos
from planes import CORRECTIONS, random_frame
from tolerances import VALUE, assert_close, reference_tolerance

import sama
from sama.frames import Clip, Frame
from sama.kernels import reference
from sama.plan import draw_video
from sama.sampler import GROUP

RNG = np.random.default_rng(0)
CLIP = RNG.integers(0, 256, (4, 70, 90, 3), dtype=np.uint8)
SMALL = {"grid": (2, 3), "fragment": (8, 12)}


@pytest.mark.parametrize("frames", [1, 2, 5, 32, 33])
@pytest.mark.parametrize("size", [(1, 1), (225, 400), (641, 359)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_shapes(frames, size):
    clip = torch.randint(0, 256, (frames, *size, 3), dtype=torch.uint8)
    x = sama.VideoSampler()(clip)
    assert x.shape == (1, 3, frames, 224, 224)
    assert x.dtype == torch.float32
    assert x.isfinite().all()


def test_normalisation_is_imagenets():
    grey = torch.full((2, 300, 300, 3), 200, dtype=torch.uint8)
    x = sama.VideoSampler()(grey)[0]
    expected = (200 - torch.tensor([123.675, 116.28, 103.53])) / torch.tensor([58.395, 57.12, 57.375])
    assert_close(x, expected.view(3, 1, 1, 1).expand_as(x), VALUE)
    assert (sama.VideoSampler(normalize=False)(grey) == 200).all()


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_every_form_of_a_clip_gives_the_same(backend):
    sampler = sama.VideoSampler(**SMALL, backend=backend)
    tensor = torch.from_numpy(CLIP.copy())
    expected = sampler(tensor)
    read_only = CLIP.copy()
    read_only.setflags(write=False)
    forms = [CLIP, read_only, [CLIP], CLIP[None], Clip("rgb", (tensor,)), [Frame("rgb", (f,)) for f in CLIP]]
    for form in forms:
        assert torch.equal(sampler(form), expected)
    both = sampler([CLIP, [Frame("rgb", (f,)) for f in CLIP]])
    assert torch.equal(both, expected.repeat(2, 1, 1, 1, 1))
    assert torch.equal(sampler(CLIP[:, ::-1][:, ::-1]), expected)


@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
def test_batches_are_ragged_and_change_nothing(backend):
    """Sizes and layouts may differ within a batch; each clip's result is the same to the bit as on its own."""
    if backend == "triton" and torch.cuda.is_available():
        pytest.skip("numpy clips are for the CPU; test_fused.py has the GPU")
    clips = [CLIP, CLIP[:, :31, :53], [random_frame(RNG, "i420", 45, 60) for _ in range(4)], CLIP[:, :, :20]]
    clips.append([random_frame(RNG, "rgb", 40, 70, correction=CORRECTIONS[0]) for _ in range(4)])
    sampler = sama.VideoSampler(**SMALL, backend=backend)
    batch = sampler(clips)
    assert batch.shape == (5, 3, 4, 16, 36)
    for clip, x in zip(clips, batch):
        assert torch.equal(sampler([clip])[0], x)


@pytest.mark.parametrize("mode", ["sama", "sama-spm", "fragments"])
def test_backends_agree_in_training(mode):
    clips = [CLIP, CLIP[:, :61, :81]]
    x = {}
    for backend in ("reference", "cpu"):
        sampler = sama.VideoSampler(mode, **SMALL, normalize=False, backend=backend)
        x[backend] = sampler(clips, train=True, generator=7)
    assert_close(x["cpu"], x["reference"], reference_tolerance())


def test_training_draws_are_reproducible_and_as_given():
    sampler = sama.VideoSampler(**SMALL)
    first = sampler([CLIP, CLIP], train=True, generator=3)
    assert torch.equal(first, sampler([CLIP, CLIP], train=True, generator=np.random.default_rng(3)))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, sampler([CLIP, CLIP], train=True, generator=4))
    assert not torch.equal(sampler(CLIP, train=True), sampler(CLIP, train=True))
    generator = np.random.default_rng(3)
    one_by_one = [sampler(CLIP, train=True, generator=generator) for _ in range(2)]
    assert torch.equal(first, torch.cat(one_by_one))
    draws = draw_video("sama", 70, 90, 4, **SMALL, generator=3)
    assert torch.equal(sampler(CLIP, draws=draws)[0], first[0])
    assert torch.equal(sampler([CLIP, CLIP], draws=[draws, draws])[1], first[0])


def test_global_seeds_are_left_alone():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    sama.VideoSampler(**SMALL)(CLIP, train=True)
    sama.ImageSampler(**SMALL)(CLIP[0], train=True)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002


@pytest.mark.parametrize("layout", ["i420", "nv12"])
def test_planes_are_sampled_as_their_rgb(layout):
    """The conversion of only the taps, in the kernel, is the conversion of the whole frame."""
    frames = [random_frame(RNG, layout, 133, 71, "bt709") for _ in range(4)]
    rgb = torch.stack([reference.to_rgb(frame) for frame in frames])
    for mode in ("sama", "sama-swm"):
        sampler = sama.VideoSampler(mode, **SMALL, backend="cpu")
        assert torch.equal(sampler(frames), sampler(rgb))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtypes(dtype):
    expected = sama.VideoSampler(**SMALL)(CLIP).to(dtype)
    for backend in ("cpu", "reference"):
        x = sama.VideoSampler(**SMALL, dtype=dtype, backend=backend)(CLIP)
        assert x.dtype == dtype
        assert_close(x.float(), expected.float(), 2e-2)
    assert torch.equal(sama.VideoSampler(**SMALL, dtype=dtype, backend="cpu")(CLIP), expected)


def test_patches_layout():
    sampler = sama.VideoSampler(**SMALL, layout="patches")
    x = sampler(CLIP)
    assert x.shape == (1, 2, 4, 9, 96)
    video = sama.VideoSampler(**SMALL)(CLIP)
    assert torch.equal(x[0], reference.cut(video[0], "patches"))
    assert torch.equal(reference.join(x[0], "patches"), video[0])
    weight = torch.randn(10, 3, 2, 4, 4)
    embedded = torch.nn.functional.conv3d(video, weight, stride=(2, 4, 4))
    assert_close((x @ weight.flatten(1).T).permute(0, 4, 1, 2, 3), embedded, 1e-4)


@pytest.mark.parametrize("make", [sama.VideoSampler, sama.ImageSampler])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "Sama"}, "unknown mode 'Sama'; known modes: sama"),
        ({"backend": "gpu"}, "unknown backend 'gpu'; known: auto, reference, cpu, triton"),
        ({"dtype": torch.float64}, "dtype must be torch.float32, float16 or bfloat16"),
        ({"grid": (7, 0)}, "grid must be two sizes"),
        ({"fragment": (32,)}, "fragment must be two sizes"),
        ({"threads": 0}, "threads must be at least 1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_unknown_settings(make, settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_unknown_layout_and_run_length():
    with pytest.raises(ValueError, match="unknown layout 'tokens'; known: video, patches"):
        sama.VideoSampler(layout="tokens")
    with pytest.raises(ValueError, match="aligned must be at least 1"):
        sama.VideoSampler(aligned=0)
    with pytest.raises(ValueError, match=r"cannot be cut into patches of 2 frames of 4x4"):
        sama.VideoSampler(layout="patches")(CLIP[:3])


@pytest.mark.parametrize("backend", ["auto", "reference", "cpu"])
@pytest.mark.parametrize(
    ("clip", "error", "message"),
    [
        (CLIP.astype(np.float32), TypeError, "a clip must be uint8, 0..255, .*got float32"),
        (torch.zeros(4, 9, 9, 3), TypeError, "a clip must be uint8, 0..255, .*got torch.float32"),
        (CLIP[0], ValueError, r"must have shape \[T, H, W, 3\].*got \[70, 90, 3\]"),
        (CLIP.transpose(3, 0, 1, 2), ValueError, r"must have shape \[T, H, W, 3\].*got \[3, 4, 70, 90\]"),
        (CLIP[:0], ValueError, r"got \[0, 70, 90, 3\]"),
        (CLIP[:, :0], ValueError, r"got \[4, 0, 90, 3\]"),
        ([], ValueError, "no clips: got an empty list"),
        ([[]], TypeError, "list of nothing"),
        (["a.mp4"], TypeError, "got a list of"),
        ([CLIP, CLIP[:2]], ValueError, r"same number of frames; got \[2, 4\]"),
        ([[random_frame(RNG, "rgb", 5, 6), random_frame(RNG, "rgb", 6, 5)]], ValueError, "must have the same size"),
    ],
    ids=["float", "float-tensor", "image", "channels-first", "no-frames", "no-rows", "empty", "no-frame", "names",
         "lengths", "sizes"],
)  # fmt: skip
def test_bad_clips(backend, clip, error, message):
    with pytest.raises(error, match=message):
        sama.VideoSampler(backend=backend)(clip)


def test_bad_draws():
    draws = draw_video("sama", 70, 90, 4, **SMALL)
    sampler = sama.VideoSampler(**SMALL)
    with pytest.raises(ValueError, match=r"one pair .* for each clip; got 1 for 2 clips"):
        sampler([CLIP, CLIP], draws=draws)
    with pytest.raises(ValueError, match=r"draws must have shape \(7, 7, 1\)"):
        sama.VideoSampler()(CLIP, draws=draws)


@pytest.mark.parametrize(
    ("planes", "error", "message"),
    [
        ((np.zeros((4, 6), np.uint8),), ValueError, r"expected \[\(4, 6\), \(2, 3\), \(2, 3\)\]"),
        ((np.zeros((5, 7), np.uint8), *[np.zeros((2, 3), np.uint8)] * 2), ValueError, r"expected .*\(3, 4\)"),
        ((np.zeros((4, 6), np.uint16), *[np.zeros((2, 3), np.uint8)] * 2), TypeError, "uint8, 0..255; got uint16"),
    ],
    ids=["missing", "half-size", "dtype"],
)
def test_bad_planes(planes, error, message):
    with pytest.raises(error, match=message):
        Frame("i420", planes)
    with pytest.raises(error, match=message):
        Clip("i420", tuple(plane[None] for plane in planes))


def test_explicit_backends_do_not_fall_back(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match='backend "triton" samples frames on a GPU; got frames on cpu'):
        sama.VideoSampler(backend="triton")(CLIP)
    with pytest.raises(ValueError, match='backend "cpu" samples frames in main memory; got frames on meta'):
        sama.VideoSampler(backend="cpu")(torch.empty(2, 9, 9, 3, dtype=torch.uint8, device="meta"))


def test_images_of_any_size():
    sizes = [(1, 1), (17, 300), (255, 256), (256, 256), (700, 411)]
    images = [RNG.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    sampler = sama.ImageSampler()
    batch = sampler(images)
    assert batch.shape == (5, 3, 256, 256)
    for image, x in zip(images, batch):
        assert torch.equal(sampler(image)[0], x)
        assert torch.equal(sampler(torch.from_numpy(image))[0], x)


def test_image_augmentation_is_drawn_image_by_image():
    image = RNG.integers(0, 256, (300, 400, 3), dtype=np.uint8)
    sampler = sama.ImageSampler()
    first = sampler([image, image], train=True, generator=5)
    assert torch.equal(first, sampler([image, image], train=True, generator=5))
    assert not torch.equal(first[0], first[1])
    assert torch.equal(first[0], sampler(image, train=True, generator=5)[0])
    plain = sampler(image, train=True, flip=False, angle=0.0, draws=(np.full((8, 8), 0.5),) * 2)
    assert torch.equal(plain, sampler(image))
    mirrored = sampler(np.ascontiguousarray(image[:, ::-1]))
    assert torch.equal(sampler(image, flip=True), mirrored)
    assert torch.equal(sampler([image, image], flip=[True, False]), torch.cat([mirrored, plain]))
    with pytest.raises(ValueError, match="angle must be one for each image; got 3 for 1 images"):
        sampler(image, angle=[1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.zeros((9, 9), np.uint8), ValueError, r"must have shape \[H, W, 3\].*got \[9, 9\]"),
        (np.zeros((9, 9, 4), np.uint8), ValueError, r"got \[9, 9, 4\]"),
        (np.zeros((9, 9, 3), np.float32), TypeError, "an image must be uint8, 0..255; got float32"),
        ([], ValueError, "no images"),
        ("a.png", TypeError, "an image must be a uint8"),
    ],
    ids=["grey", "alpha", "float", "empty", "name"],
)
def test_bad_images(image, error, message):
    with pytest.raises(error, match=message):
        sama.ImageSampler()(image)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("sampler") / "clip.mp4"
    return videos.write_video(path, "libx264", num_frames=70)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(("clip_len", "num_clips", "interval"), [(8, 4, 2), (32, 1, 2), (5, 9, 3), (64, 2, 2)])
def test_read_is_decoding_everything_and_sampling(video, backend, clip_len, num_clips, interval):
    """Planes streamed through the kernel, planned frames only: as FFmpeg's RGB of all frames, then sampled."""
    sampler = sama.VideoSampler(**SMALL, normalize=False, backend=backend)
    x = sampler.read(video, decoder="pyav", clip_len=clip_len, num_clips=num_clips, interval=interval)
    assert x.shape == (num_clips, 3, clip_len, 16, 36)
    rgb = np.stack([frame.to_ndarray(format="rgb24") for frame in videos.full_decode(video)])
    indices = sama.frame_indices(70, clip_len, num_clips, interval).reshape(num_clips, clip_len)
    assert_close(x, sama.VideoSampler(**SMALL, normalize=False)(rgb[indices]), reference_tolerance())


def test_read_in_training_draws_frames_and_fragments(video):
    sampler = sama.VideoSampler(**SMALL)
    settings = {"clip_len": 8, "num_clips": 2, "train": True}
    first = sampler.read(video, decoder="pyav", **settings, generator=1)
    assert torch.equal(first, sampler.read(video, decoder="pyav", **settings, generator=1))
    assert not torch.equal(first, sampler.read(video, decoder="pyav", **settings, generator=2))


def test_stream_holds_only_the_clips_that_overlap(video):
    sampler = sama.VideoSampler(**SMALL)
    indices = np.arange(64).reshape(16, 4)
    with sama.open_video(video, decoder="pyav") as opened:
        frames = dict(opened.frames(range(64)))
    with sama.open_video(video, decoder="pyav") as opened:
        for k, clip in enumerate(sampler.stream(opened, indices)):
            assert torch.equal(clip, sampler([frames[n] for n in indices[k].tolist()])[0])
            assert opened.decoded <= 4 * (k + 1) + 16  # what the decoder reads ahead, never the whole video
    assert k == 15


def test_read_of_a_bad_file(tmp_path):
    path = tmp_path / "text.mp4"
    path.write_text("not a video")
    with pytest.raises(sama.DecodeError, match=r"text\.mp4"):
        sama.VideoSampler().read(path, decoder="pyav")


class FewFrames:
    """A decoder's video of random NV12 frames; `most` counts how many of them were alive at one time."""

    def __init__(self, count):
        self.info = SimpleNamespace(height=45 // 2 * 2, width=60, num_frames=count)
        self.alive = self.most = 0

    def frames(self, indices):
        for n in sorted(set(indices)):
            frame = random_frame(np.random.default_rng(n), "nv12", self.info.height, self.info.width)
            planes = tuple(torch.from_numpy(plane) for plane in frame.planes)
            self.alive += 1
            self.most = max(self.most, self.alive)
            weakref.finalize(planes[0].untyped_storage(), self._let_go)
            yield n, Frame("nv12", planes)
            del frame, planes

    def _let_go(self):
        self.alive -= 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="frames in main memory are for the interpreter")
@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("layout", ["video", "patches"])
@pytest.mark.parametrize("clip_len", [2, 8, 12])
def test_frames_are_sampled_in_groups_and_let_go(backend, layout, clip_len):
    """To the bit what a launch for the whole clip gives; no more frames are held than one group and the next frame."""
    sampler = sama.VideoSampler("sama-spm", grid=(2, 3), fragment=(8, 12), backend=backend, layout=layout, aligned=4)
    count = 3 * clip_len
    indices = np.stack([np.arange(clip_len), np.minimum(np.arange(clip_len) * 2 + clip_len, count - clip_len)])
    draws = [draw_video("sama-spm", 44, 60, clip_len, grid=(2, 3), aligned=4, generator=k) for k in range(2)]
    video = FewFrames(count)
    inputs = list(sampler.stream(video, indices, draws=draws))
    assert video.most <= min(GROUP, clip_len) + 2
    frames = dict(FewFrames(count).frames(range(count)))
    for got, clip, pair in zip(inputs, indices, draws, strict=True):
        assert torch.equal(got, sampler([[frames[n] for n in clip]], draws=[pair])[0])
