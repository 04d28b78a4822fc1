"""Training of the bias tables away from the CPU: the same gradients, in bounded memory.

A GPU's fused attention has no stand-in that computes on a CPU. So gradients are compared with PyTorch's composite
attention below the same code, and memory is counted on the `meta` device, which knows the shapes of the fused kernel's
results.
"""

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from sama.models import VideoQuality, attention

TRAINING_BATCH = 12
MB = 10**6


def tensors(n, w, length, heads, d, biases, dtype, seed=0):
    """Queries, keys and values, bias, and a gradient of the result."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (n, w, length, 3, heads, d), (biases, heads, length, length), (n, w, length, heads * d)
    qkv, bias, grad = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    return qkv.requires_grad_(), bias.requires_grad_(), grad


def materialised(qkv, bias):
    """The formula written out."""
    q, k, v = qkv.permute(3, 0, 1, 4, 2, 5)
    return ((q @ k.mT * q.shape[-1] ** -0.5 + bias).softmax(-1) @ v).transpose(2, 3).flatten(3)


@pytest.fixture
def elsewhere(monkeypatch):
    """Takes the CPU for another device, so that the code for GPUs runs on it."""
    monkeypatch.setattr(attention, "_from_logits", lambda _: False)


PIECES = {"window": 200, "windows": 700, "samples": 3000, "whole": 2**24}  # of 6 windows of 2 heads and 10 tokens


@pytest.mark.parametrize("biases", [6, 1])
@pytest.mark.parametrize("piece", PIECES)
def test_gradients_are_those_of_the_formula(elsewhere, piece, biases, monkeypatch):
    monkeypatch.setattr(attention._TrainableBias, "PIECE", PIECES[piece])
    qkv, bias, grad = tensors(5, 6, 10, 2, 4, biases, torch.float64)
    expected = materialised(qkv, bias)
    got = attention.attend(qkv, bias)
    torch.testing.assert_close(got, expected)
    for a, b in zip(torch.autograd.grad(got, (qkv, bias), grad), torch.autograd.grad(expected, (qkv, bias), grad)):
        torch.testing.assert_close(a, b)


def test_gradients_pass_gradcheck(elsewhere, monkeypatch):
    monkeypatch.setattr(attention._TrainableBias, "PIECE", 100)
    qkv, bias, _ = tensors(2, 3, 5, 2, 4, 3, torch.float64)
    assert torch.autograd.gradcheck(attention.attend, (qkv, bias))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)], ids=str)
def test_gradients_are_those_of_the_cpu(dtype, tolerance, monkeypatch):
    """Both ways, in lower precision: to a few roundings of it (2**-24, 2**-8), relative to the largest gradient."""
    qkv, bias, grad = tensors(3, 4, 20, 2, 8, 4, dtype)
    by_logits = torch.autograd.grad(attention.attend(qkv, bias), (qkv, bias), grad)
    monkeypatch.setattr(attention, "_from_logits", lambda _: False)
    monkeypatch.setattr(attention._TrainableBias, "PIECE", 1000)
    by_pieces = torch.autograd.grad(attention.attend(qkv, bias), (qkv, bias), grad)
    for a, b in zip(by_logits, by_pieces):
        assert a.dtype == b.dtype == dtype
        assert (a.double() - b.double()).abs().max() <= tolerance * a.double().abs().max()


def test_a_whole_model_trains_by_pieces(monkeypatch):
    """With shifted windows, seams and checkpointing, under autocast and without: gradients as those of the CPU."""

    def gradients(checkpointing):
        torch.manual_seed(0)
        model = VideoQuality("nano", drop_path=0.0, dropout=0.0, checkpointing=checkpointing).double().train()
        torch.nn.init.normal_(model.head.fc_last.weight)
        x = torch.randn(2, 3, 18, 60, 36, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        model.score(x).square().sum().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}

    expected = gradients(False)
    assert sum("bias_table" in name for name in expected) > 8
    monkeypatch.setattr(attention, "_from_logits", lambda _: False)
    monkeypatch.setattr(attention._TrainableBias, "PIECE", 2**18)
    for checkpointing in (False, True):
        for name, got in gradients(checkpointing).items():
            torch.testing.assert_close(got, expected[name], msg=name)


class LiveBytes(TorchDispatchMode):
    """The most bytes that the results of operations hold at one time, each storage once, those of `given` never."""

    def __init__(self, *given):
        super().__init__()
        self.live = {t.untyped_storage()._cdata: 0 for t in given}
        self.now = self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else [out]:
            if isinstance(t, torch.Tensor) and t.untyped_storage()._cdata not in self.live:
                self._count(t.untyped_storage())
        return out

    def _count(self, storage):
        key, size = storage._cdata, storage.nbytes()
        self.live[key] = size
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._free, key)

    def _free(self, key):
        self.now -= self.live.pop(key)


def fused(q, k, v, attn_mask):
    """`F.scaled_dot_product_attention` as a GPU computes it with such a mask, whose shapes `meta` knows."""
    mask = attn_mask.expand(len(q), q.shape[1], -1, -1)
    return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, mask, True)[0]


def beyond_inputs_and_outputs(qkv, bias, grad, attend):
    """Bytes held at most in the forward and in the backward pass, beside what goes in and comes out."""
    with LiveBytes(qkv, bias) as forward:
        out = attend(qkv, bias)
    kept = out.untyped_storage().nbytes()
    with LiveBytes(qkv, bias, out, grad) as backward:
        gradients = torch.autograd.grad(out, (qkv, bias), grad)
    returned = sum(g.untyped_storage().nbytes() for g in gradients)
    found = forward.most - kept, backward.most - returned
    print(f"forward {found[0] / MB:.0f} MB, backward {found[1] / MB:.0f} MB")
    return found


def stage_1(dtype, seam):
    """Shapes of stage 1 of the tiny model on 32 frames of 224 x 224: 2 slabs of 64 windows a clip."""
    n, length = (TRAINING_BATCH, 4 * 7 * 7) if seam else (2 * TRAINING_BATCH, 8 * 7 * 7)
    options = {"dtype": dtype, "device": "meta"}
    qkv = torch.empty(n, 64, length, 3, 3, 32, requires_grad=True, **options)
    bias = torch.empty(64, 3, length, length, requires_grad=True, **options)
    return qkv, bias, torch.empty(n, 64, length, 3 * 32, **options)


def test_the_shapes_are_those_of_stage_1(monkeypatch):
    seen = []

    def spy(qkv, bias):
        seen.append((tuple(qkv.shape), tuple(bias.shape)))
        return attend(qkv, bias)

    attend = attention.attend
    monkeypatch.setattr(attention, "attend", spy)
    with torch.device("meta"):
        model, x = VideoQuality("tiny").train(), torch.empty(TRAINING_BATCH, 3, 32, 224, 224)
        model.backbone.layers[0](model.backbone.patch_embed(x, patches=False))
    expected = [tuple(t.shape for t in stage_1(torch.float32, seam)[:2]) for seam in (False, True)]
    assert seen[0] == expected[0]
    assert seen[1] == seen[2] == expected[1]  # the shifted block: its last slab in halves, then the slab before
    assert seen[3] == ((TRAINING_BATCH, *expected[0][0][1:]), expected[0][1])


@pytest.mark.parametrize("seam", [False, True], ids=["whole", "halves"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory_of_training_is_bounded(dtype, seam, monkeypatch):
    monkeypatch.setattr(F, "scaled_dot_product_attention", fused)
    qkv, bias, grad = stage_1(dtype, seam)
    forward, backward = beyond_inputs_and_outputs(qkv, bias, grad, attention.attend)
    assert forward < 200 * MB
    assert backward < 200 * MB


@pytest.mark.parametrize(("dtype", "gigabytes"), [(torch.float32, 2.8), (torch.bfloat16, 1.4)], ids=str)
def test_the_count_sees_the_gradient_of_every_sample(dtype, gigabytes, monkeypatch):
    """What one call of PyTorch's attention would take: 24 gradients of the bias at a time."""
    monkeypatch.setattr(F, "scaled_dot_product_attention", fused)
    qkv, bias, grad = stage_1(dtype, False)
    _, backward = beyond_inputs_and_outputs(qkv, bias, grad, attention._attend)
    assert backward > gigabytes * 1000 * MB


def test_the_forward_pass_uses_the_fused_kernel_without_gradients(monkeypatch):
    """A mask that requires a gradient rules kernels out; the one that the forward pass gives does not require one."""
    masks = []

    def spy(q, k, v, attn_mask):
        masks.append(attn_mask)
        assert attn_mask.dtype == q.dtype
        return fused(q, k, v, attn_mask)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    qkv, bias, _ = stage_1(torch.bfloat16, True)
    assert attention.attend(qkv, bias).requires_grad
    assert masks
    assert not any(mask.requires_grad for mask in masks)
    assert all(step % 8 == 0 for mask in masks for step in mask.stride()[:-1])
