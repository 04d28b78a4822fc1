"""Which device is meant: one place that turns a user's word into a `torch.device` that exists; streams of threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from sama.errors import DeviceError, InputError


def pick_device(device: str | torch.device | None = "auto", *, numbered: bool = False) -> torch.device:
    """The device that `device` names, once it is known to be there.

    device: "auto" or None is the GPU where there is one, else the CPU; "cpu", "cuda", "cuda:1", ...
    numbered: name the GPU by its number ("cuda:0", not "cuda"), as libraries other than torch need it
    `InputError` for a word that names no device, `DeviceError` for a GPU that is not there, or another kind of device.
    """
    if device is None or device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"unknown device {device!r}; use auto, cpu, cuda, cuda:1, ... ({error})") from error
    if chosen.type not in ("cpu", "cuda"):
        raise DeviceError(f"device {str(device)!r} was asked for; this package computes on cpu and cuda")
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise DeviceError(f"device {str(device)!r} was asked for, but torch finds no GPU; use device auto or cpu")
        if (chosen.index or 0) >= torch.cuda.device_count():
            raise DeviceError(f"device {str(device)!r} was asked for; torch finds {torch.cuda.device_count()} GPUs")
        if numbered and chosen.index is None:
            chosen = torch.device("cuda", torch.cuda.current_device())
    return chosen


_of_thread = threading.local()


def thread_stream(device: torch.device, purpose: str) -> torch.cuda.Stream:
    """The CUDA stream that the calling thread keeps for a purpose on a device, made at the first call.

    One per thread, not one per job: torch's allocator keeps freed memory apart for each stream that used it.
    """
    if not hasattr(_of_thread, "streams"):
        _of_thread.streams = {}
    streams = _of_thread.streams
    key = device, purpose
    if key not in streams:
        streams[key] = torch.cuda.Stream(device)
    return streams[key]


@contextmanager
def own_stream(device: torch.device) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """Work of this thread on a CUDA device in the thread's own stream.

    Yields a function that brings a tensor to the device and waits, in this thread only, until it is there.
    """
    if device.type != "cuda":
        yield lambda x: x.to(device)
        return
    stream = thread_stream(device, "sampling")

    def finish(x: torch.Tensor) -> torch.Tensor:
        x = (x if x.is_cuda else x.pin_memory()).to(device, non_blocking=True)
        stream.synchronize()
        return x

    with torch.cuda.stream(stream):
        yield finish
