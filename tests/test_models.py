"""The networks against the published outputs, and against a slow version of themselves."""

import copy
import itertools
import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from sama.kernels.layout import PATCH_VALUES, ceil_div, fits_patches, is_patches
from sama.models import ImageQuality, VideoQuality, attention, load_weights, swin3d
from sama.models.statistics import SceneStatistics

DATA = Path(__file__).parent / "data"


def published(kind):
    """Weights by name, input and outputs of the published model."""
    case = json.loads((DATA / f"{kind}_model.json").read_text())
    weights = {}
    for name, shape in case["parameters"].items():
        seed = zlib.crc32(name.encode()) + case["weights_base"]
        z = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape).astype(np.float32)
        if "bias_table" in name:
            z = 0.5 * z
        elif "logit_scale" in name:
            z = math.log(10) + 0.1 * z
        elif len(shape) == 1:
            z = 0.1 * z + (1 if "norm" in name and name.endswith("weight") else 0)
        else:
            z = z / math.sqrt(math.prod(shape[1:]))
        weights[name] = torch.from_numpy(np.asarray(z, np.float32))
    (given,) = case["inputs"]
    x = np.random.Generator(np.random.PCG64(given["seed"])).standard_normal(given["shape"]).astype(np.float32)
    with np.load(DATA / f"{kind}_model.npz") as out:
        return weights, torch.from_numpy(x), torch.from_numpy(out["score_0"]), torch.from_numpy(out["feat_0"])


def error(got, expected):
    """Largest error, relative to the largest value."""
    assert got.shape == expected.shape
    return ((got.double() - expected.double()).abs().max() / expected.abs().max()).item()


def nano(**options):
    """A small model whose parameters all matter."""
    torch.manual_seed(0)
    model = VideoQuality("nano", **options)
    for name, p in model.named_parameters():
        if "bias_table" in name:
            torch.nn.init.normal_(p, std=0.5)
        elif p.ndim == 2:
            torch.nn.init.normal_(p, std=p.shape[1] ** -0.5)
    return model.eval()


def clip(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_video_golden():
    weights, x, score, feat = published("vqa")
    model = VideoQuality().eval()
    report = load_weights(model, {"state_dict": weights})
    assert (len(report.loaded), report.missing, report.dropped) == (len(weights), (), ())
    with torch.inference_mode():
        features = model.features(x)
        tokens = model.head(features.movedim(1, -1)).movedim(-1, 1)
    assert error(tokens, score) < 1e-4
    assert error(features[:, ::8], feat) < 1e-4


def test_image_golden():
    weights, x, score, feat = published("iqa")
    model = ImageQuality().eval()
    report = load_weights(model, {"model": weights})
    assert report.missing == ()
    assert report.dropped == ("backbone.head.weight", "backbone.head.bias")
    with torch.inference_mode():
        features = model.features(x)
        assert error(model.score(x), score) < 1e-4
        assert model(x).shape == (2, 64)
    assert error(features[:, :, ::8], feat) < 1e-4


# A slow, obvious version of the video model


def oracle(model, x):
    """Token map of one clip `[3, T, H, W]`: every window on its own, logits and gate written out."""
    back, frames = model.backbone, x
    embed = back.patch_embed
    x = F.pad(x, (0, -x.shape[3] % 4, 0, -x.shape[2] % 4, 0, -x.shape[1] % 2))
    x = F.conv3d(x[None], embed.proj.weight.reshape(-1, 3, 2, 4, 4), embed.proj.bias, stride=(2, 4, 4))[0]
    x = x.permute(1, 2, 3, 0)
    x = embed.norm(x) if embed.mix is None else embed.mix(F.gelu(x))
    for stage in back.layers:
        for i, block in enumerate(stage.blocks):
            x = x + oracle_attention(block.attn, block.norm1(x), shifted=i % 2 == 1)
            x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
        if stage.downsample is not None:
            x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
            x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
            x = F.linear(stage.downsample.norm(x), stage.downsample.reduction.weight)
    x = back.norm(x)
    return model.head.fc_last(F.gelu(model.head.fc_hid(x)))[..., 0] + oracle_of_statistics(model.statistics, frames)


def oracle_measure(layers, frames):
    """Of one clip `[3, T, H, W]`, whose last frame counts twice where T is odd: mean and deviation of every component's
    log strength in each third, the deviation between fragments, then the changes in order."""
    frames = frames if frames.shape[1] % 2 == 0 else torch.cat([frames, frames[:, -1:]], 1)
    _, length, height, width = frames.shape
    logs, changes = [], []
    for t in range(0, length, 2):
        apart = []
        for y, x in itertools.product(range(0, height, 4), range(0, width, 4)):
            patch = torch.zeros(3, 2, 4, 4, dtype=frames.dtype)
            part = frames[:, t : t + 2, y : y + 4, x : x + 4]
            patch[:, : part.shape[1], : part.shape[2], : part.shape[3]] = part
            logs.append((layers.proj(patch.flatten()).abs() + 0.01).log())
            apart.append((patch[:, 1] - patch[:, 0]).abs().mean())
        changes.append((torch.stack(apart).mean() + 0.001).log())
    steps, rows, columns = length // 2, math.ceil(height / 4), math.ceil(width / 4)
    logs, changes = torch.stack(logs).view(steps, rows, columns, 96).numpy(), torch.stack(changes).numpy()

    told = []
    for third in THIRDS[steps]:
        told += [logs[third].mean((0, 1, 2)), np.sqrt(logs[third].var((0, 1, 2)) + 1e-4)]
    cells = [
        [
            slice(k * n // 7, math.ceil((k + 1) * n / 7)) for k in range(7)
        ]  # of maps that seven do not divide, some twice
        for n in (rows, columns)
    ]
    means = np.stack([logs[:, y, x].mean((1, 2)) for y, x in itertools.product(*cells)])
    told.append(np.sqrt(means.var(0) + 1e-4).mean(0))
    return torch.from_numpy(np.concatenate([*told, np.quantile(changes, np.arange(16) / 15)]))


THIRDS = {  # of so many steps
    1: [[0], [0], [0]],
    3: [[0], [1], [2]],
    9: [[0, 1, 2], [3, 4, 5], [6, 7, 8]],
    13: [[0, 1, 2, 3], [4, 5, 6, 7, 8], [9, 10, 11, 12]],
}


def oracle_of_statistics(layers, frames):
    measured = (oracle_measure(layers, frames) - layers.centre) / layers.deviation
    return layers.fc3(F.gelu(layers.fc2(F.gelu(layers.fc1(measured)))))


def oracle_attention(attn, x, *, shifted):
    size = x.shape[:3]
    window = [min(w, s) for w, s in zip((8, 7, 7), size)]
    shift = [w // 2 if shifted and s > w else 0 for w, s in zip((8, 7, 7), size)]
    padded = [math.ceil(s / w) * w for s, w in zip(size, window)]
    x = F.pad(x, (0, 0, 0, padded[2] - size[2], 0, padded[1] - size[1], 0, padded[0] - size[0]))
    out = torch.zeros_like(x)
    for corner in itertools.product(*(range(0, p, w) for p, w in zip(padded, window))):
        spans = [torch.arange(c, c + w) for c, w in zip(corner, window)]
        place = torch.cartesian_prod(*spans)  # in the shifted map, [L, 3]
        source = (place + torch.tensor(shift)) % torch.tensor(padded)
        q, k, v = attn.qkv(x[source.unbind(1)]).chunk(3, -1)

        step = place[:, None] - place[None]  # [L, L, 3]
        row = (step[..., 0] + 7) * 13 * 13 + (step[..., 1] + 6) * 13 + step[..., 2] + 6
        bias = attn.relative_position_bias_table[row]  # [L, L, heads]
        if attn.fragment_position_bias_table is not None:
            fragment = torch.stack([7 * source[:, 1] // padded[1], 7 * source[:, 2] // padded[2]], -1)
            g = (fragment[:, None] - fragment[None]).abs().sum(-1, keepdim=True)
            bias = g * bias + (1 - g) * attn.fragment_position_bias_table[row]
        region = torch.zeros_like(place)
        for axis in range(3):
            if shift[axis]:
                region[:, axis] = (place[:, axis] >= padded[axis] - shift[axis]).long()
        apart = (region[:, None] != region[None]).any(-1)

        heads = []
        for h, (qh, kh, vh) in enumerate(zip(*(t.chunk(attn.heads, -1) for t in (q, k, v)))):
            logits = qh @ kh.T / math.sqrt(qh.shape[-1]) + bias[..., h] - 100.0 * apart
            heads.append(logits.softmax(-1) @ vh)
        out[source.unbind(1)] = attn.proj(torch.cat(heads, -1))
    return out[: size[0], : size[1], : size[2]]


SHAPES = [(5, 70, 100), (26, 36, 20), (18, 29, 60), (1, 4, 4), (2, 250, 33)]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_any_size_matches_the_oracle(shape):
    model = nano().double()
    x = clip(2, 3, *shape, dtype=torch.float64)
    with torch.no_grad():
        expected = torch.stack([oracle(model, one) for one in x])[:, None]
        assert error(model(x), expected) < 1e-10
    assert error(model(x).detach(), expected) < 1e-10  # with gradients: in one piece, not by chunks


def test_an_even_picture_has_statistics_and_gradients():
    """All black: no component varies, no frame differs from the next."""
    layers = SceneStatistics(grid=(7, 7), dropout=0.0)
    torch.nn.init.zeros_(layers.proj.bias)
    layers(torch.zeros(2, 4, 3, 3, 96)).sum().backward()
    assert all(p.grad.isfinite().all() for p in layers.parameters() if p.requires_grad)
    with torch.inference_mode():
        statistics = layers.measure(torch.zeros(1, 4, 3, 3, 96))
    thirds, fragments, changes = statistics[0].split([3 * 2 * 96, 96, 16])
    means, deviations = thirds.view(3, 2, 96).unbind(1)
    torch.testing.assert_close(means, torch.full([3, 96], math.log(0.01)))
    torch.testing.assert_close(deviations, torch.full([3, 96], 0.01))
    torch.testing.assert_close(fragments, torch.full([96], 0.01))
    torch.testing.assert_close(changes, torch.full([16], math.log(0.001)))


def test_statistics_are_exact_under_autocast():
    """Components are small differences, which bfloat16 would drown in noise."""
    layers = SceneStatistics(grid=(7, 7), dropout=0.0)
    x = torch.randn(2, 4, 3, 3, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = layers(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(layers(x), expected)


@pytest.mark.parametrize("frames", [1, 5])
def test_a_still_clip_of_odd_length_has_no_change(frames):
    model = VideoQuality("nano", tokens=False).eval()
    still = clip(1, 3, 1, 16, 16).expand(-1, -1, frames, -1, -1)
    even = clip(1, 3, 1, 16, 16).expand(-1, -1, frames + 1, -1, -1)
    with torch.inference_mode():
        assert torch.equal(model.score(still), model.score(even))


def test_statistics_alone():
    """Without tokens: the map is the statistics' score at every step of time; no backbone, no features."""
    torch.manual_seed(0)
    model, x = VideoQuality("nano", tokens=False).eval(), clip(2, 3, 6, 16, 24)
    assert {name.partition(".")[0] for name in model.state_dict()} == {"statistics"}
    with torch.inference_mode():
        tokens = model(x)
        expected = torch.cat([model.statistics(swin3d.cut_patches(one)) for one in x.split(1)])
        assert tokens.shape == (2, 1, 3, 1, 1)
        assert torch.equal(tokens[:, 0, :, 0, 0], expected[:, None].expand(-1, 3))
    with pytest.raises(ValueError, match="no features of tokens"):
        model.features(x)
    with pytest.raises(ValueError, match="only a nano model has anything but tokens"):
        VideoQuality("tiny", tokens=False)


def test_half_precision_statistics():
    layers, x = SceneStatistics(grid=(7, 7), dropout=0.0), clip(2, 4, 3, 3, 96)
    with torch.inference_mode():
        expected = layers(x)
        assert layers.bfloat16()(x).dtype == torch.bfloat16
        torch.testing.assert_close(layers(x).float(), expected, rtol=0, atol=0.1)


def test_cut_patches_are_frames():
    model, x = nano(), clip(2, 3, 6, 64, 96)
    patches = x.reshape(2, 3, 3, 2, 16, 4, 24, 4).permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)
    with torch.inference_mode():
        assert torch.equal(model(patches, patches=True), model(x))
        assert torch.equal(model(patches[:, :2]), model(x[:, :, :4]))  # the shape decides


def test_shapes_of_patches():
    assert is_patches((2, 16, 56, 56, PATCH_VALUES))
    assert is_patches(torch.Size([2, 3, 56, 56, PATCH_VALUES])) is False  # fits frames too, and counts as them
    for frames_or_images in ((2, 3, 32, 224, 224), (2, 16, 56, 56, 95), (3, 256, 96), (16, 56, 56, PATCH_VALUES)):
        assert not is_patches(frames_or_images)
    assert fits_patches(32, (32, 20))
    assert not any(fits_patches(*case) for case in ((31, (32, 32)), (32, (30, 32)), (32, (32, 33))))
    assert [ceil_div(n, 4) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]


def test_score_is_the_mean_of_the_map():
    model, x = nano(), clip(2, 3, 8, 64, 64)
    with torch.inference_mode():
        tokens = model(x)
        assert tokens.shape == (2, 1, 4, 2, 2)
        torch.testing.assert_close(model.score(x), tokens.mean((1, 2, 3, 4)))
        torch.testing.assert_close(model.score(x, over_time="sum"), tokens.mean((1, 3, 4)).sum(1))


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_a_score_does_not_depend_on_its_batch(batch):
    model, x = nano(), clip(8, 3, 12, 68, 120)
    with torch.inference_mode():
        alone = torch.cat([model.score(one) for one in x.split(1)])
        assert torch.equal(torch.cat([model.score(some) for some in x.split(batch)]), alone)


def test_an_image_score_does_not_depend_on_its_batch():
    torch.manual_seed(0)
    model, x = ImageQuality("nano").eval(), clip(3, 3, 256, 256)
    with torch.inference_mode():
        assert torch.equal(model.score(x), torch.cat([model.score(one) for one in x.split(1)]))


def test_bias_is_kept_until_weights_change():
    model, x = nano(), clip(1, 3, 4, 64, 64)
    attn = model.backbone.layers[0].blocks[1].attn
    with torch.no_grad():
        before = model(x)
        kept = attn._cached[1]
        assert torch.equal(model(x), before)
        assert attn._cached[1] is kept
    assert copy.deepcopy(attn)._cached is None
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(x).sum().backward()
    optimiser.step()
    fresh = nano()
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        after = model(x)
        assert torch.equal(after, fresh(x))
        assert not torch.equal(after, before)
        load_weights(model, nano().state_dict())
        assert torch.equal(model(x), before)
        model(clip(1, 3, 4, 96, 32))
        assert torch.equal(model(x), before)


def test_bias_kept_in_inference_mode_serves_training_of_the_rest():
    model, x = nano(), clip(1, 3, 4, 64, 64)
    for name, p in model.named_parameters():
        p.requires_grad_("bias_table" not in name)
    with torch.inference_mode():
        model(x)
    model(x).sum().backward()
    assert model.backbone.layers[0].blocks[0].attn.qkv.weight.grad.abs().sum() > 0


def gradients(model, x):
    model.zero_grad()
    torch.manual_seed(1)
    model.score(x).square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def test_checkpointing_gives_the_same_gradients():
    x = clip(2, 3, 4, 64, 64)
    plain, saving = nano().train(), nano(checkpointing=True).train()
    expected = gradients(plain, x)
    for name, got in gradients(saving, x).items():
        torch.testing.assert_close(got, expected[name], msg=name)


@pytest.mark.parametrize("biases", [6, 1])
@pytest.mark.parametrize("logits", [300, 10**3, 2**20])
def test_bias_gradients(logits, biases, monkeypatch):
    """Against the formula written out, with the logits in pieces of some samples, of some windows, and in one."""
    monkeypatch.setattr(attention._TrainableBias, "LOGITS", logits)
    qkv = clip(5, 6, 10, 3, 2, 4, dtype=torch.float64).requires_grad_()
    bias = clip(biases, 2, 10, 10, seed=1, dtype=torch.float64).requires_grad_()
    grad = clip(5, 6, 10, 8, seed=2, dtype=torch.float64)
    q, k, v = qkv.permute(3, 0, 1, 4, 2, 5)
    expected = ((q @ k.mT / 2 + bias).softmax(-1) @ v).transpose(2, 3).flatten(3)
    got = attention.attend(qkv, bias)
    assert "_TrainableBias" in str((got.grad_fn, got.grad_fn.next_functions))
    torch.testing.assert_close(got, expected)
    for a, b in zip(torch.autograd.grad(got, (qkv, bias), grad), torch.autograd.grad(expected, (qkv, bias), grad)):
        torch.testing.assert_close(a, b)


class Largest(TorchDispatchMode):
    """The most elements in any result whose last two axes are `length`."""

    def __init__(self, length):
        super().__init__()
        self.length, self.elements = length, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(t, torch.Tensor) and t.shape[-2:] == (self.length, self.length):
                self.elements = max(self.elements, t.untyped_storage().nbytes() // t.element_size())
        return out


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_no_logits_in_memory(training, monkeypatch):
    monkeypatch.setattr(attention._TrainableBias, "LOGITS", 2**16)
    model, x = nano().train(training), clip(4, 3, 4, 112, 112)
    length, windows = 2 * 7 * 7, 16
    with torch.set_grad_enabled(training), Largest(length) as seen:
        y = model(x).sum()
        if training:
            y.backward()
    assert 0 < seen.elements <= windows * length**2  # the bias; the logits of four clips would be four times that


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_compiles_in_one_graph(training):
    """No graph break, same result. Inductor itself takes minutes on a CPU, so the graph runs eagerly."""
    torch.compiler.reset()
    model, x = nano(drop_path=0.0, dropout=0.0).train(training), clip(1, 3, 4, 72, 64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    if not training:
        with torch.no_grad():
            assert error(compiled(x), model(x)) < 1e-5
        return
    expected = gradients(model, x)
    model.zero_grad()
    compiled(x).mean((1, 2, 3, 4)).square().sum().backward()
    assert max(error(p.grad, expected[name]) for name, p in model.named_parameters() if p.requires_grad) < 1e-4


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 5e-2), (torch.float16, 5e-3)], ids=str)
def test_autocast(dtype, tolerance):
    """Tolerance: about ten steps of the dtype (2**-8, 2**-11) after eight blocks."""
    model, x = nano(), clip(2, 3, 18, 64, 64)
    with torch.no_grad():
        expected = model.score(x)
        with torch.autocast("cpu", dtype):
            got = model.score(x)
            assert model.backbone.layers[0].blocks[0].attn._cached[1].whole.dtype == dtype
    assert got.dtype == torch.float32  # the head is computed in full
    assert error(got, expected) < tolerance
    with torch.autocast("cpu", dtype):
        model.train().score(x).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("whole", [False, True], ids=["by-chunks", "whole"])
@pytest.mark.parametrize("frames", [18, 10], ids=["seam", "short-windows"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_masks_of_attention_are_aligned(dtype, frames, whole, monkeypatch):
    """Rows of 16-bit masks start at multiples of 16 bytes, as the attention kernels of GPUs need them, which also run
    a batch as a whole. 9 steps of time are shifted; windows of 5 steps have an odd number of tokens."""
    masks = []

    def attention_of_pytorch(q, k, v, attn_mask):
        masks.append(attn_mask)
        return compute(q, k, v, attn_mask=attn_mask)

    compute = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", attention_of_pytorch)
    if whole:
        monkeypatch.setattr(swin3d, "plain_cpu", lambda *_: False)
    torch.manual_seed(0)
    model = VideoQuality("tiny").eval()
    with torch.inference_mode(), torch.autocast("cpu", dtype):
        model(clip(1 + whole, 3, frames, 60, 36))
    cut = sum(mask.shape[-1] == 4 * 7 * 7 for mask in masks)
    assert bool(cut) == (frames == 18)
    assert {mask.dtype for mask in masks} == {dtype}
    assert all(mask.data_ptr() % 16 == 0 for mask in masks)
    assert all(step % 8 == 0 for mask in masks for step in mask.stride()[:-1])
    assert {mask.stride(-1) for mask in masks} == {1}


@pytest.mark.parametrize("encoding", ["scale_bias", "scale_excitation"])
def test_scale_encodings(encoding):
    plain = nano()
    torch.manual_seed(1)
    encoded = VideoQuality("nano", **{encoding: True}, scale_steps=10).eval()
    report = load_weights(encoded, plain.state_dict())
    assert report.missing
    assert report.dropped == ()
    x = clip(1, 3, 20, 60, 64)
    with torch.no_grad():
        expected = plain(x)
        torch.testing.assert_close(encoded(x), expected)  # a fresh encoding changes nothing
        for name in report.missing:
            encoded.get_parameter(name).normal_()
        assert error(encoded(x), expected) > 1e-3
    assert error(encoded(x).detach(), encoded.eval().requires_grad_(False)(x)) < 1e-5


def test_stochastic_depth_drops_whole_samples():
    model = nano().train()
    block = model.backbone.layers[-1].blocks[-1]
    assert block.drop_path == pytest.approx(0.1)
    torch.manual_seed(0)
    y = block._drop(torch.ones(1000, 2, 3))
    torch.testing.assert_close(y.unique(), torch.tensor([0, 1 / 0.9]))
    assert torch.equal(y.amax((1, 2)), y.amin((1, 2)))
    assert y.mean() == pytest.approx(1, abs=0.05)


def test_parameters_and_operations():
    """One model whatever the sampling: SAMA costs what FAST-VQA's `fragments` cost."""
    with torch.device("meta"):
        models = {"video": VideoQuality().eval(), "image": ImageQuality().eval()}
    shapes = {"video": (1, 3, 32, 224, 224), "image": (1, 3, 256, 256)}
    counted = {}
    for kind, model in models.items():
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.empty(shapes[kind], device="meta"))
        counted[kind] = sum(p.numel() for p in model.parameters()), counter.get_total_flops()
    assert counted["video"] == (28_127_901, 171_120_330_752)
    assert counted["image"][0] == 27_627_435
    assert 1e6 < sum(p.numel() for p in VideoQuality("nano").parameters()) < 3e6
    assert 1e6 < sum(p.numel() for p in ImageQuality("nano").parameters()) < 3e6


@pytest.mark.parametrize("shape", [(3, 8, 64, 64), (1, 4, 8, 64, 64), (0, 3, 8, 64, 64), (1, 3, 0, 64, 64)], ids=str)
def test_wrong_input_says_what_is_expected(shape):
    with pytest.raises(ValueError, match=r"got .*expected frames \[B, 3, T, H, W\] or patches"):
        nano()(torch.zeros(shape))


def test_wrong_arguments_say_what_is_expected():
    with pytest.raises(ValueError, match="got size = 'huge', expected one of 'tiny', 'nano'"):
        VideoQuality("huge")
    with pytest.raises(ValueError, match="got size = 'huge', expected one of 'tiny', 'nano'"):
        ImageQuality("huge")
    with pytest.raises(ValueError, match="over_time = 'max', expected 'mean' or 'sum'"):
        nano().score(clip(1, 3, 2, 32, 32), over_time="max")
    with pytest.raises(ValueError, match=r"got 4 temporal positions, expected 16.* 32 frames"):
        VideoQuality("nano", scale_excitation=True)(clip(1, 3, 8, 32, 32))
    with pytest.raises(ValueError, match=r"got .*expected \[B, 3, 256, 256\]"):
        ImageQuality("nano")(clip(1, 3, 224, 224))
