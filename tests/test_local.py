"""Labels of fragments: what is measured against the undegraded file, how a label is spread, and that it is learnt."""

import csv
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from test_cache import BATCH, FRAMES, all_inputs, feed

import sama
from sama.corpus.codec import Stream, write_video
from sama.errors import InputError
from sama.labels import Item
from sama.models import save_weights
from sama.training import cache, loop
from sama.training.augment import augment
from sama.training.cache import CachedFeed
from sama.training.config import Config, Data, Model, Optim, Sampling
from sama.training.local import MEASURES, SCALES, local_labels, local_loss, measure
from sama.training.setup import make_model, start_standardised

SIZE, GRID = 64, (2, 2)


def patches(frames):
    """uint8 RGB `[T, H, W, 3]` as patches `[T/2, H/4, W/4, 96]`."""
    t, h, w, _ = frames.shape
    x = frames.reshape(t // 2, 2, h // 4, 4, w // 4, 4, 3).transpose(0, 2, 4, 6, 1, 3, 5)
    return torch.from_numpy(x.reshape(t // 2, h // 4, w // 4, 96).copy())


@pytest.fixture(scope="module")
def picture():
    """Two equal frames of smooth noise, grey, uint8 [2, 64, 64, 3]."""
    rng = np.random.default_rng(0)
    plane = np.fft.ifft2(np.fft.fft2(rng.normal(size=(SIZE, SIZE))) / (1 + 0.1 * np.arange(SIZE)[:, None])).real
    plane = (128 + 40 * plane / plane.std()).clip(0, 255).astype(np.uint8)
    return np.broadcast_to(plane[None, ..., None], (2, SIZE, SIZE, 3))


def shares(measured):
    return measured[..., ::2] / measured[..., 1::2]


def test_of_equal_fragments_all_is_kept(picture):
    measured = measure(patches(picture), patches(picture), GRID)
    assert measured.shape == (1, *GRID, MEASURES)
    torch.testing.assert_close(shares(measured), torch.ones(1, *GRID, MEASURES // 2), rtol=1e-3, atol=0)


def test_only_the_fragment_that_was_changed_is_less_faithful(picture):
    changed = picture.copy()
    changed[:, :32, 32:] = np.random.default_rng(1).integers(0, 256, (1, 32, 32, 1))
    share = shares(measure(patches(picture), patches(changed), GRID))
    assert (share[0, 0, 1] < 0.7).all()
    for row, column in ((0, 0), (1, 0), (1, 1)):
        torch.testing.assert_close(share[0, row, column], torch.ones(MEASURES // 2), rtol=1e-3, atol=0)


def test_information_is_that_of_the_definition(picture):
    """At the finest scale: gain and noise of each place, in plain loops."""
    rng = np.random.default_rng(2)
    changed = (picture.astype(float) * 0.8 + rng.normal(0, 8, picture.shape[1:3])[None, ..., None]).clip(0, 255)
    changed = np.broadcast_to(changed.astype(np.uint8)[..., :1], changed.shape)
    kept, there = measure(patches(picture), patches(changed), (1, 1))[0, 0, 0, :2].tolist()
    weights = np.exp(-((np.arange(17) - 8.0) ** 2) / (2 * (17 / 5) ** 2))
    window = np.outer(weights, weights) / weights.sum() ** 2
    x, y = (np.pad(p[0, ..., 0].astype(float), 8, mode="reflect") for p in (picture, changed))
    expected = np.zeros(2)
    for r in range(SIZE):
        for c in range(SIZE):
            a, b = x[r : r + 17, c : c + 17], y[r : r + 17, c : c + 17]
            ma, mb = (window * a).sum(), (window * b).sum()
            va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
            both = (window * (a - ma) * (b - mb)).sum()
            gain = max(both / va, 0)
            noise = vb - gain * both
            expected += np.log2(1 + min(gain, 1) ** 2 * va / (noise + 2)), np.log2(1 + va / 2)
    np.testing.assert_allclose([kept, there], expected / SIZE**2, rtol=2e-3)


def test_small_fragments_and_sharpening(picture):
    small = measure(patches(picture[:, :16, :16]), patches(picture[:, :16, :16]), (2, 2))  # narrower than the kernel
    assert small.isfinite().all()
    sharper = (128 + 1.5 * (picture.astype(float) - 128)).clip(0, 255).astype(np.uint8)
    assert (shares(measure(patches(picture), patches(sharper), GRID)) <= 1 + 1e-4).all()


def measured_of(quality):
    """Measurements `[files, 1, 1, 7, 7, MEASURES]` of fragments that keep a share `quality`, `[files, 7, 7]`."""
    there = 1 + torch.rand(*quality.shape, MEASURES // 2, generator=torch.Generator().manual_seed(3))
    return torch.stack([quality[..., None] * there, there], -1).flatten(-2)[:, None, None]


def test_a_label_is_spread_over_the_fragments():
    """Labels that are the mean of what the fragments keep are given back to the fragments, without having been seen."""
    generator = torch.Generator().manual_seed(4)
    quality = torch.rand(200, 1, 1, generator=generator) * torch.rand(200, 7, 7, generator=generator)
    labels = quality.mean((1, 2))
    labels = (labels - labels.mean()) / labels.std()
    local = local_labels(measured_of(quality), labels, seed=0)
    assert local.shape == (200, 1, 1, 7, 7)
    torch.testing.assert_close(local.mean((1, 2, 3, 4)), labels, rtol=1e-4, atol=1e-4)
    correlation = np.corrcoef(local.flatten(), quality.flatten())[0, 1]
    assert correlation > 0.95
    assert torch.equal(local, local_labels(measured_of(quality), labels, seed=0))


def test_files_that_were_not_measured_have_no_local_labels():
    measured = measured_of(torch.rand(8, 7, 7))
    measured[3] = torch.nan
    local = local_labels(measured, torch.randn(8), seed=0)
    assert local[3].isnan().all()
    assert local[[0, 1, 2, 4, 5, 6, 7]].isfinite().all()
    assert local_labels(torch.full((2, 1, 1, 7, 7, MEASURES), torch.nan), torch.zeros(2), seed=0).isnan().all()


def test_the_loss_is_over_what_has_a_label():
    prediction = torch.tensor([[0.0, 1.0], [5.0, 5.0]], requires_grad=True)
    local = torch.tensor([[0.0, 3.0], [torch.nan, torch.nan]])
    loss = local_loss(prediction, local)
    assert loss.item() == pytest.approx((0 + 1.75) / 2)
    loss.backward()
    assert prediction.grad[1].tolist() == [0, 0]
    assert local_loss(prediction, torch.full((2, 2), torch.nan)).item() == 0


@pytest.mark.parametrize("seed", range(6))
def test_labels_move_with_their_fragments(seed):
    """Each fragment of the input is as bright as its label says, before and after."""
    local = torch.arange(2 * 9, dtype=torch.float32).reshape(2, 1, 3, 3)
    x = local.repeat_interleave(8, 2).repeat_interleave(8, 3)[..., None].expand(-1, -1, -1, -1, 96)
    torch.manual_seed(seed)
    changed, moved = augment(x, local)
    torch.testing.assert_close(changed[:, :, ::8, ::8, 0], moved)


@pytest.fixture
def versions(tmp_path):
    """Three videos and two degraded versions of each, with a label file that names the reference."""
    rows = []
    for k in range(3):
        frames = np.random.default_rng(k).integers(16, 236, (12, 72, 64), np.uint8)  # I420 of 64x48
        frames = np.repeat(np.repeat(frames[:, ::4, ::4], 4, 1), 4, 2)
        write_video(str(tmp_path / f"{k}-pristine.mp4"), Stream(frames))
        rows.append((f"{k}-pristine.mp4", 95.0))
        for name, step in (("a", 24), ("b", 64)):
            write_video(str(tmp_path / f"{k}-{name}.mp4"), Stream(frames // step * step + step // 2))
            rows.append((f"{k}-{name}.mp4", 95.0 - step))
    with open(tmp_path / "labels.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "vmaf", "content", "split", "reference", "aligned"])
        for path, vmaf in rows:
            content = path.split("-")[0]
            split = "val" if content == "2" else "train"
            writer.writerow([path, vmaf, content, split, f"{content}-pristine.mp4", 1.0])
    return tmp_path


def test_the_cache_measures_each_draw_once(versions, tmp_path):
    files = [str(versions / f"{k}-{name}.mp4") for k in (0, 1) for name in ("pristine", "a", "b")]
    references = [f"{file.rsplit('-', 1)[0]}-pristine.mp4" for file in files]
    references[1] = ""
    references[5] = str(versions / "none.mp4")
    options = {"draws": 2, "references": references}
    cached = CachedFeed(feed(files, side=32), tmp_path / "cache", "train", **options)
    assert [path for path, _ in cached.unmeasured] == [references[5]] * 2
    found = {n: batch.local[k] for batch in cached.epoch() for k, n in enumerate(batch.numbers.tolist())}
    assert {n for n, local in found.items() if local.isnan().any()} <= {1, 5}
    assert {n for n, local in found.items() if local.isfinite().all()} <= {0, 2, 3, 4}
    assert all(local.shape == (FRAMES // 2, *GRID) for local in found.values())
    values = np.memmap(next((tmp_path / "cache").glob("*.f32")), np.float32).reshape(6, 2, FRAMES // 2, *GRID, MEASURES)
    kept, there = (values[[0, 3, 2, 4], ..., which::2].sum((2, 3, 4)) for which in (0, 1))
    np.testing.assert_allclose(kept[:2] / there[:2], 1, rtol=1e-3)  # the same fragments of the same file
    assert (kept[2:, :, SCALES:] / there[2:, :, SCALES:] < 0.99).all()
    again = CachedFeed(feed(files, side=32), tmp_path / "cache", "train", **options)
    assert torch.equal(again._local[[0, 2, 3, 4]], cached._local[[0, 2, 3, 4]])
    without = CachedFeed(feed(files, side=32), tmp_path / "cache", "train", draws=2)
    assert all(batch.local is None for batch in without.epoch())
    for n, x in all_inputs(without).items():
        torch.testing.assert_close(x, all_inputs(cached)[n], rtol=0, atol=0)
    assert len(next(iter(cached.epoch()))) == BATCH


def test_what_was_measured_before_an_interruption_is_kept(versions, tmp_path, monkeypatch):
    files = [str(versions / f"{k}-{name}.mp4") for k in (0, 1) for name in ("pristine", "a", "b")]
    references, measured = [f"{file.rsplit('-', 1)[0]}-pristine.mp4" for file in files], []

    def measuring(*arguments, stop=None):
        if len(measured) == stop:
            raise KeyboardInterrupt
        measured.append(arguments)
        return measure(*arguments)

    monkeypatch.setattr(cache, "SAVE_EVERY", 0)
    monkeypatch.setattr(cache, "measure", partial(measuring, stop=BATCH + 1))
    with pytest.raises(KeyboardInterrupt):
        CachedFeed(feed(files, side=32), tmp_path / "cache", "train", references=references)
    monkeypatch.setattr(cache, "measure", measuring)
    again = CachedFeed(feed(files, side=32), tmp_path / "cache", "train", references=references)
    assert len(measured) == BATCH + 1 + len(files) - BATCH
    assert again._local.isfinite().all()


def config(folder, **data):
    settings = {"labels": str(folder / "labels.csv"), "reference": "reference", "cache": str(folder / "cache")}
    return Config(
        data=Data(**settings | {"label": "vmaf", "standardise": True, "augment": True} | data),
        model=Model(size="pico", drop_path=0.0),
        sampling=Sampling(mode="sama-c", grid=(2, 2), clip_len=2, interval=1, num_clips=1),
        optim=Optim(epochs=2, batch=3, warmup_epochs=0.1, rank_weight=0.0),
        out=str(folder / "run"),
        workers=1,
        decoder="pyav",
    )


@pytest.mark.parametrize("sampling", [{}, {"grid": (1, 1), "fragment": (64, 64)}], ids=["one", "four"])
def test_training_takes_local_labels(sampling, versions, monkeypatch):
    """A value for each square of 32x32 pixels: of fragments that are one, or that hold four."""
    seen = []
    told = config(versions)
    told = replace(told, sampling=replace(told.sampling, **sampling))

    def watched(prediction, local):
        seen.append((prediction.shape, local.isfinite().all().item()))
        return local_loss(prediction, local)

    monkeypatch.setattr(loop, "local_loss", watched)
    loop.train(told)
    assert seen == 4 * [((3, 4), True)]  # two epochs of two batches
    result = sama.load_model(versions / "run" / "last.safetensors").score(versions / "2-a.mp4")
    assert len(result.clips) == 1
    if not sampling:  # whether four steps order the three validation files well enough to calibrate is chance
        assert result.mos_scale == "labels"


def test_a_start_from_scores_that_have_a_scale_begins_near_standardised_labels(versions, tmp_path):
    """The packaged model's scores, 0 to 100, become what they were in deviations of the labels from their mean."""
    start = config(versions)
    packaged = replace(
        start, model=replace(start.model, size="lite", weights="packaged"), sampling=Sampling("sama-c", clip_len=2)
    )
    items = [Item("a", 20.0, "a"), Item("b", 60.0, "b")]
    model = make_model(packaged).eval()
    x = torch.randn(1, 3, 2, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model.score(x)
        start_standardised(model, packaged, items)
        torch.testing.assert_close(model.score(x), (before - 40) / 20, rtol=1e-4, atol=1e-4)
    own = tmp_path / "own.safetensors"
    save_weights(model, own, metadata={"mode": "sama-c"})
    again = replace(packaged, model=replace(packaged.model, weights=str(own)))
    model = make_model(again)
    weight = model.head.fc_last.weight.clone()
    start_standardised(model, again, items)
    assert torch.equal(model.head.fc_last.weight, weight)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cache": ""}, r"needs data\.cache and data\.standardise"),
        ({"standardise": False}, r"needs data\.cache and data\.standardise"),
    ],
)
def test_settings_that_do_not_fit(versions, change, said):
    with pytest.raises(InputError, match=said):
        config(versions, **change)


def test_a_label_file_without_references(versions):
    with pytest.raises(InputError, match="names no undegraded file: its column 'reference' is missing or empty"):
        loop.train(config(versions, labels=str(without_references(versions))))


def without_references(folder):
    path = folder / "plain.csv"
    with open(folder / "labels.csv", newline="") as file:
        rows = list(csv.reader(file))
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(row[:4] for row in rows)
    return path
