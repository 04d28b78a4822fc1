"""The fused attention kernels against `sama.models.attention`: windows, shifts, padding, seam, grids, gradients.

Without a GPU they run in Triton's interpreter, with windows of a few tokens. It takes some seconds a case: cases that
have nothing that others have not run with SAMA_ALL_WINDOWS=1.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sama.errors import DeviceError, InputError
from sama.models import ImageQuality, VideoQuality
from sama.models import attention as oracle
from sama.models.windows import Windows

fused = pytest.importorskip("sama.kernels.attention")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BOTH_HEADS = ("one-window", "shifted-all-odd")  # the other cases have one: the interpreter is slow
CASES = {  # window, map, shifted, grid, gated, with scales
    "one-window": ((2, 3, 3), (2, 3, 3), False, (2, 2), True, False),
    "odd": ((2, 2, 3), (3, 3, 4), False, (4, 3), True, True),
    "shifted-time": ((3, 2, 2), (6, 2, 2), True, (1, 2), True, False),
    "shifted-space": ((2, 3, 2), (2, 6, 4), True, (3, 2), True, False),
    "shifted-all-odd": ((3, 2, 3), (4, 3, 5), True, (2, 2), True, True),
    "shifted-no-gate": ((2, 3, 2), (3, 4, 3), True, (7, 7), False, False),
}


SOME = ("shifted-all-odd", "shifted-no-gate")
RUN = CASES if os.environ.get("SAMA_ALL_WINDOWS") == "1" or torch.cuda.is_available() else SOME


@pytest.mark.parametrize("case", RUN)
def test_output_and_gradients_are_those_of_the_oracle(case, monkeypatch):
    window, size, shifted, grid, gated, scales = CASES[case]
    monkeypatch.setattr(oracle, "WINDOW", window)
    heads = 2 if case in BOTH_HEADS else 1
    part = make(12 * heads, heads, gated, scales)
    windows = Windows.fit(size, window, shifted=shifted)
    batch = 2 if case in ("one-window", "shifted-no-gate") else 1
    x = torch.randn(batch, *size, 12 * heads, device=DEVICE, requires_grad=True)
    weights = torch.randn(batch, *size, 12 * heads, device=DEVICE)

    expected = attend_plainly(part, x, windows, grid)
    found = attend_fused(part, x, windows, grid, window)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    inputs = [x, *part.parameters()]
    gradients = [torch.autograd.grad((y * weights).sum(), inputs, retain_graph=True) for y in (expected, found)]
    for name, theirs, ours in zip(["x", *dict(part.named_parameters())], *gradients):
        assert ours.shape == theirs.shape
        assert theirs.abs().max() > 0, name
        assert (ours - theirs).abs().max() < 1e-5 * max(1, theirs.abs().max()), name
    again = torch.autograd.grad((found * weights).sum(), inputs)
    assert all(torch.equal(one, other) for one, other in zip(gradients[1], again))


def test_blocks_that_do_not_divide_a_window(monkeypatch):
    window, size = (3, 3, 4), (4, 3, 4)  # 36 tokens
    monkeypatch.setattr(oracle, "WINDOW", window)
    part = make(16, 1, True, True)
    windows = Windows.fit(size, window, shifted=True)
    x = torch.randn(1, *size, 16, device=DEVICE, requires_grad=True)
    expected = attend_plainly(part, x, windows, (2, 2))
    found = attend_fused(part, x, windows, (2, 2), window, block=fused.Configuration(16, 32, 4, 2))
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    inputs = [x, *part.parameters()]
    for theirs, ours in zip(*(torch.autograd.grad(y.square().sum(), inputs) for y in (expected, found))):
        assert (ours - theirs).abs().max() < 1e-5 * max(1, theirs.abs().max())


def test_refuses_what_does_not_fit():
    windows = Windows.fit((2, 3, 3), (2, 3, 3), shifted=False)
    tables = fused.Tables(torch.zeros(75, 2, device=DEVICE))
    qkv = torch.zeros(1, 2, 3, 3, 3, 2, 16, device=DEVICE)
    arguments = {"windows": windows, "grid": (1, 1), "full": (2, 3, 3)}
    with pytest.raises(ValueError, match=r"expected \[B, 2, 3, 3, 3, heads, D\]"):
        fused.attend(qkv[:, :1], None, tables, **arguments)
    with pytest.raises(ValueError, match=r"got a table relative of shape \(75, 2\), expected \(2535, 2\)"):
        fused.attend(qkv, None, tables, **arguments | {"full": (8, 7, 7)})
    with pytest.raises(ValueError, match=r"got a table scale of shape \(4, 2\), expected \(3, 2\)"):
        fused.attend(qkv, None, tables._replace(scale=torch.ones(4, 2, device=DEVICE)), **arguments)


def test_a_network_attends_by_request():
    """Blocks of a narrow network, odd in every size, training: output and gradients as without the kernels."""
    model = VideoQuality("nano", grid=(3, 2), scale_bias=True, scale_excitation=True, scale_steps=2, drop_path=0.0)
    block = model.backbone.layers[0].blocks[1].to(DEVICE)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(1, 2, 3, 4, 32, device=DEVICE, requires_grad=True)
    found = []
    for name in ("plain", "fused"):
        oracle.choose_attention(block, name, torch.device(DEVICE))
        y = block(x)
        found.append((y, *torch.autograd.grad(y.square().sum(), [x, *block.parameters()])))
    for one, other in zip(*found):
        assert (one - other).abs().max() < 2e-5 * max(1, one.abs().max())


def test_attention_is_chosen_or_refused(monkeypatch):
    model, cpu = VideoQuality("nano"), torch.device("cpu")
    with pytest.raises(InputError, match="unknown attention 'flash'; known: plain, fused"):
        oracle.choose_attention(model, "flash", cpu)
    with pytest.raises(InputError, match="cannot be compiled"):
        oracle.choose_attention(model, "fused", torch.device("cuda"), compiled=True)
    with pytest.raises(InputError, match="for networks with GRPB"):
        oracle.choose_attention(ImageQuality("nano"), "fused", torch.device("cuda"))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(DeviceError, match="for a GPU; got device cpu"):
        oracle.choose_attention(model, "fused", cpu)


def test_kernels_compile_without_spilling(tmp_path):
    """With no GPU and no driver, in a process of its own: the interpreter replaces the kernels. All five architectures
    and all dtypes with SAMA_ALL_ARCHITECTURES=1."""
    script = Path(__file__).parent.parent / "bench" / "attention_registers.py"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    every = os.environ.get("SAMA_ALL_ARCHITECTURES") == "1"
    some = [] if every else ["--archs", "90", "--match", "(keys|bias)-bfloat16"]  # those that take most registers
    run = subprocess.run(
        [sys.executable, script, "--json", tmp_path / "rows.json", *some],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len(rows) == (4 * 3 * 5 if every else 2)
    assert all(0 < row["registers"] <= 255 and row["spilled_bytes"] == 0 for row in rows)
    stored = json.loads((script.parent / "results" / "attention-registers.json").read_text())
    assert {row["kernel"] for row in stored} >= {row["kernel"] for row in rows}
    assert all(row["spilled_bytes"] == 0 for row in stored)


def make(width, heads, gated, scales):
    """An attention whose logits are some units large, of which a bias makes a good part."""
    part = oracle.Attention(width, heads, gated=gated, scale_bias=scales).to(DEVICE)
    with torch.no_grad():
        for name, parameter in part.named_parameters():
            parameter.normal_(0, 0.8 if "table" in name else 0.25)
    return part


def attend_plainly(part, x, windows, grid):
    """As a block does it: the map is cut into windows, padding is zero."""
    y, padding = windows.split(x), windows.padding(x.device)
    if padding is not None:
        y = y.masked_fill(padding, 0)
    return windows.join(part(y, part.bias(windows, grid, x)))


def attend_fused(part, x, windows, grid, full, **options):
    qkv = part.qkv(x).unflatten(-1, (3, part.heads, -1))
    tables = fused.Tables(part.relative_position_bias_table, part.fragment_position_bias_table, part.scale_bias_table)
    return part.proj(fused.attend(qkv, part.qkv.bias, tables, windows=windows, grid=grid, full=full, **options))


@pytest.mark.parametrize(
    ("model", "dtype", "device", "compiled", "expected"),
    [
        (VideoQuality, torch.bfloat16, "cuda", False, "fused"),
        (VideoQuality, torch.float32, "cuda", False, "plain"),
        (VideoQuality, torch.bfloat16, "cpu", False, "plain"),
        (VideoQuality, torch.bfloat16, "cuda", True, "plain"),
        (ImageQuality, torch.bfloat16, "cuda", False, "plain"),
    ],
)
def test_training_takes_the_faster_attention(model, dtype, device, compiled, expected):
    found = oracle.attention_for_training(model("nano"), dtype, torch.device(device), compiled=compiled)
    assert found == expected
