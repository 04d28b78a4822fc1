"""A GPU whose memory is the main memory: everything that decodes on a GPU runs, on the stand-in for its library.

Used by the tests of the engine, and by `bench/gpu_stages.py` for its rehearsal.
"""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from unittest import mock

import nvcodec_stub
import torch

from sama import decode, scoring
from sama.decode import hybrid, nvdec, open_video

CPU = torch.device("cpu")


@contextmanager
def fake_gpu() -> Iterator[ModuleType]:
    """Within the block `auto` finds a GPU and `sama.decode.nvcodec`, which is yielded, decodes with the stand-in; its
    `library` is the stand-in's. RuntimeError at the end for what a program must never do with the real library."""
    library = nvcodec_stub.reset()

    @contextmanager
    def current_device(device):
        library.current.device = device.index or 0
        try:
            yield
        finally:
            library.current.device = None

    def on_gpu(path, *, decoder="auto", threads=None, device=None, guard=None):
        return open_video(path, decoder=decoder, threads=threads, device="cuda", guard=guard)

    library.current = type("Current", (type(library.current),), {"device": None})()
    with ExitStack() as patches:
        before = sys.modules.get("PyNvVideoCodec")
        sys.modules["PyNvVideoCodec"] = nvcodec_stub
        sys.modules.pop("sama.decode.nvcodec", None)
        nvcodec = importlib.import_module("sama.decode.nvcodec")
        nvcodec.library = library
        for target, name, value in (
            (nvcodec, "current_device", current_device),
            (nvcodec, "pick_device", lambda device, numbered: CPU),
            (nvdec, "driver_available", lambda: True),
            (torch.cuda, "is_available", lambda: True),
            (torch.cuda, "get_device_name", lambda device=None: "no GPU: a rehearsal"),
            (torch.cuda, "get_device_capability", lambda device=None: (8, 9)),
            (decode, "open_video", on_gpu),
            (scoring, "open_video", on_gpu),
            (hybrid, "gpu_workers", lambda decoder, device: nvcodec.workers(CPU)),
            (hybrid, "on_gpu", lambda path, device, source: nvcodec.NvcodecVideo(path, device="cuda", source=source)),
            (scoring, "gpu_workers", lambda decoder, device: 0 if decoder == "pyav" else nvcodec.workers(CPU)),
        ):
            patches.enter_context(mock.patch.object(target, name, value))
        stand_in = decode.DECODERS["nvcodec"]._replace(library="sys")
        patches.enter_context(mock.patch.dict(decode.DECODERS, {"nvcodec": stand_in}))
        try:
            yield nvcodec
        finally:
            nvcodec.pool(CPU).clear()
            for name, module in (("PyNvVideoCodec", before), ("sama.decode.nvcodec", None)):
                sys.modules.pop(name, None)
                if module is not None:
                    sys.modules[name] = module
            nvcodec_stub.reset()  # what a test set is not for those after it
    gc.collect()
    if library.crimes or library.alive:
        raise RuntimeError(f"{library.alive} sessions are left; crimes: {library.crimes}")
