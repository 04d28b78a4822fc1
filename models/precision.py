"""The precision that a network computes in, by the name that a user gives it.

float32     as on a CPU: no matrix product and no convolution on a GPU rounds its inputs to TF32
tf32        on a GPU from Ampere on: float32 whose matrix products round their inputs to 10 bits after the point
bfloat16    autocast; on a CPU too
float16     likewise

By default scores are computed in float32 on a CPU and in float16 on a GPU (`default_precision`). On an H200, where 16
bits took a third of the time of float32, float16 changed the packaged model's scores of 24 clips by at most 0.004 of
100 points, TF32 by as much, and bfloat16 by 0.026 (`bench/results/gpu-h200-drift.csv`). A clip whose activations are
too large for float16 is computed again in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sama.errors import DeviceError, InputError

DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
VOLTA = (7, 0)  # the first compute capability whose matrix units compute in float16
AMPERE = (8, 0)  # the first compute capability with TF32


def default_precision(device: torch.device) -> str:
    """The precision of scores where none is asked for."""
    fast = device.type == "cuda" and torch.cuda.get_device_capability(device) >= VOLTA
    return "float16" if fast else "float32"


def check_precision(name: str, device: torch.device, *, compiled: bool = False) -> None:
    """Raise where a network cannot compute in that precision on that device.

    `InputError` for a name that is not in `DTYPES`, and for a compiled network in tf32, of which the compiler would
    round the exact parts too; `DeviceError` for tf32 on a device that does not have it.
    """
    if name not in DTYPES:
        raise InputError(f"unknown dtype {name!r}; known: {', '.join(DTYPES)}")
    if name != "tf32":
        return
    if compiled:
        raise InputError("dtype tf32 cannot be compiled: take bfloat16, or leave out compile")
    if device.type != "cuda":
        raise DeviceError(f"dtype tf32 is for a GPU; got device {device}: take float32 there")
    capability = torch.cuda.get_device_capability(device)
    if capability < AMPERE:
        raise DeviceError(f"dtype tf32 needs compute capability 8.0; got {'.'.join(map(str, capability))} ({device})")


@contextmanager
def computing(name: str, device: torch.device, *, backward: bool = False) -> Iterator[None]:
    """Within this block, networks on the device compute in that precision.

    backward: for a backward pass, which takes its dtypes from the forward pass, without autocast
    The switches of TF32 are the process's: threads that compute on GPUs at the same time should ask for the same.
    """
    dtype = DTYPES[name]
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32 and not backward):
        if device.type == "cuda" and dtype == torch.float32:
            with tf32(name == "tf32"):
                yield
        else:
            yield


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Within this block, float32 matrix products and convolutions on GPUs use TF32, or do not."""
    products, convolutions = _products(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cudnn.allow_tf32 = on
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def _products() -> str:
    """`torch.get_float32_matmul_precision()`, which raises where only torch's newer switch was set."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return "high" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "highest"
