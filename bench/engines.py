"""Engines on a CPU: clips per second of the network by what computes it, beside torchvision's `swin3d_t`, in one run.

    python bench/engines.py [--size tiny|pico] [--threads N] [--repeats N] [--compiled] [--out FILE.csv]

Weights are random: they do not change the speed. Each engine gives eager's token map within 1e-3 before it is timed;
providers take turns. torchvision's network is timed on the same clip, with `tiny` alone.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

import measure
import torch

from sama import engines
from sama.models import VideoQuality
from sama.models.onnx_networks import video_graph

AGREEMENT = 1e-3
SHAPES = {"tiny": (32, 224, 224), "pico": (2, 224, 224)}  # frames, height, width of a clip


def providers(size: str, threads: int, compiled: bool):
    """Calls by name, each giving a token map, or nothing in particular for torchvision."""
    from torchvision.models.video import swin3d_t

    shape = SHAPES[size]
    torch.manual_seed(0)
    model = VideoQuality(size).eval()
    x = torch.randn(1, 3, *shape)

    @torch.inference_mode()
    def run(network):
        return network(x)

    calls = {"sama, eager": lambda: run(model)}
    if compiled:
        faster = torch.compile(model)
        calls["sama, compile"] = lambda: run(faster)
    with torch.no_grad():
        graph = video_graph(model, layout="video", frames=shape[0], height=shape[1], width=shape[2], scale=None)
    content = graph.SerializeToString()
    for engine in filter(engines.installed, engines.RUNTIMES):
        session = engines.session(engine, content, threads)
        calls[f"sama, {engines.label(engine)}"] = lambda session=session: torch.from_numpy(session(x.numpy()))
    expected = calls["sama, eager"]()
    for name, call in calls.items():
        off = float((call() - expected).norm() / expected.norm())
        if not off <= AGREEMENT:
            raise RuntimeError(f"{name} is {off:.2g} off eager")
    if size == "tiny":
        theirs = swin3d_t().eval()
        calls = {"torchvision swin3d_t": lambda: run(theirs), **calls}
    return calls


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(SHAPES), default="tiny")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--compiled", action="store_true", help="torch's compiler too, which takes minutes")
    parser.add_argument("--out", type=Path, help="append the rows to this table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    calls = providers(options.size, options.threads, options.compiled)
    frames, height, width = SHAPES[options.size]
    case = f"{options.size}, one clip of {frames}x{height}x{width}, float32, {options.threads} threads"
    seconds = measure.timed(case, calls, options.repeats)
    work = dict.fromkeys(calls, 1.0)
    rows = list(measure.rows(case, "model", "clips/s", seconds, work, next(itertools.chain(calls))))
    measure.show_all(rows)
    if options.out:
        measure.extend(options.out, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
