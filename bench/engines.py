"""What computes the network on a CPU: clips per second and MiB by engine and precision, beside torchvision's `swin3d_t`
and an eager port, providers taking turns in one run; and file to score beside the published way.

    python bench/engines.py [--cases swin-t,packaged,...] [--minutes 9] [--repeats N] [--out FILE.csv]

Beside the rows, FILE.md is the table that is made of them. Random weights for a Swin-T: they do not change the speed;
the packaged models as they are. Each provider gives eager's token map, to `AGREEMENT`, before it is timed. MiB are what
a process of its own adds, at its peak, to make the network and compute one clip. What is in the table already is not
measured again: where the time is over, the same command continues with the next case.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import measure
import media
import numpy as np
import torch

from sama import engines
from sama.model import QualityModel, load_model, random_model

HERE = Path(__file__).parent
TABLE = measure.RESULTS / "engines-cpu.csv"
AGREEMENT = {"float32": 1e-3, "int8": 0.5}  # with eager's token map, of what that is about its mean
FILE = ("1080p", 4.0)  # size and seconds of the video that is scored


class Provider(NamedTuple):
    """engine: of `sama.engines`, "port", or "torchvision"; dtype: of `load_model`"""

    engine: str
    dtype: str = "float32"

    @property
    def name(self) -> str:
        known = {"torchvision": "torchvision swin3d_t", "port": "eager port"}
        return known.get(self.engine) or f"sama, {engines.label(self.engine) or self.engine}, {self.dtype}"


class Key(NamedTuple):
    """Names rows of the table. provider: one of them, or "" for whichever"""

    case: str
    metric: str
    provider: str = ""


OURS = (
    Provider("eager"),
    Provider("onnxruntime"),
    Provider("openvino"),
    Provider("openvino", "int8"),
)
PROVIDERS = {  # by case, measured in this order
    "swin-t": (Provider("torchvision"), Provider("port"), *OURS),
    "packaged": (Provider("port"), *OURS),
    "packaged-image": OURS,
    "swin-t-compiled": (Provider("torchvision"), Provider("eager"), Provider("compile")),  # which takes minutes
}
FILES = {  # providers of whole scores
    "swin-t": (Provider("port"), Provider("eager"), Provider("openvino"), Provider("openvino", "int8")),
    "packaged": (Provider("eager"), Provider("onnxruntime"), Provider("openvino"), Provider("openvino", "int8")),
}


def model_of(case: str, provider: Provider) -> QualityModel:
    """The model of a case; one that int8 is not offered for is measured too, since that is the reason."""
    settings = {"engine": "eager" if provider.engine == "port" else provider.engine, "dtype": provider.dtype}
    with mock.patch.dict(engines.NOT_OFFERED, clear=True):
        if case.startswith("swin-t"):
            return random_model(device="cpu", **settings)
        return load_model(case, "cpu", **settings)


def network(case: str, provider: Provider) -> Callable[[], torch.Tensor]:
    """A call that computes the token map of one clip or image of noise; of torchvision's, its classes."""
    from network import eager_port

    noise = torch.Generator().manual_seed(0)
    if provider.engine == "torchvision":
        from torchvision.models.video import swin3d_t

        theirs = swin3d_t().eval()
        return partial(inferred, theirs, torch.randn(1, 3, 32, 224, 224, generator=noise))
    from sama.export import shape

    model = model_of(case, provider)
    x = torch.randn(1, *shape(model, getattr(model.sampler, "layout", "video")), generator=noise)

    def call() -> torch.Tensor:
        with eager_port() if provider.engine == "port" else contextlib.nullcontext():
            return model.token_maps(x)

    call()
    return call


@torch.inference_mode()
def inferred(module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    return module(x)


def speed_rows(case: str, threads: int, repeats: int) -> Iterator[measure.Row]:
    """Clips or images per second of every provider, in turns."""
    calls = {provider: network(case, provider) for provider in PROVIDERS[case] if there(provider)}
    expected = calls[Provider("eager")]()
    spread = float((expected - expected.mean()).norm())
    notes = {}
    for provider, call in calls.items():
        if provider.engine == "torchvision":
            continue
        off = float((call() - expected).norm()) / spread
        notes[provider.name] = f"{off:.1g} off eager, of its deviation"
        if not off <= AGREEMENT[provider.dtype]:
            raise RuntimeError(f"{provider.name} is {off:.2g} off eager")
    named = {provider.name: call for provider, call in calls.items()}
    title = f"{case}, {threads} threads"
    repeats *= 1 if case.startswith("swin-t") else 5
    seconds = measure.timed(title, named, repeats)
    what = "images/s" if case == "packaged-image" else "clips/s"
    work = dict.fromkeys(named, 1.0)
    return iter(measure.rows(title, "network", what, seconds, work, next(iter(named)), **notes))


def file_rows(case: str, threads: int, repeats: int) -> Iterator[measure.Row]:
    """Videos per second, file to score: the published way first, where the model is a Swin-T."""
    import published
    from network import eager_port

    import sama

    size, seconds = FILE
    path = media.clip_path(media.SIZES[size], seconds)
    found: dict[str, np.ndarray] = {}

    def ours(name: str, model: QualityModel) -> None:
        found[name] = np.array(model.score(path).clips)

    def published_way(name: str, model: QualityModel) -> None:
        slow = sama.VideoSampler(backend="reference")
        with torch.inference_mode(), eager_port():
            clips = published.from_rgb24(path, slow)
            found[name] = np.array([float(model.module.score(clip[None])) for clip in clips])

    calls = {}
    for provider in filter(there, FILES[case]):
        port = provider.engine == "port"
        name = "every frame to rgb24, reference, eager port" if port else provider.name
        calls[name] = partial(published_way if port else ours, name, model_of(case, provider))
    title = f"{case}, {threads} threads, {size} of {seconds:g} s"
    times = measure.timed(title, calls, repeats)
    eager = found[Provider("eager").name]
    notes = {name: f"{np.abs(clips - eager).max():.2g} off eager, a clip" for name, clips in found.items()}
    work = dict.fromkeys(calls, 1.0)
    return iter(measure.rows(title, "file to score", "videos/s", times, work, next(iter(calls)), **notes))


def memory_row(case: str, provider: Provider, threads: int) -> Iterator[measure.Row]:
    setup = f"""
import os, sys
sys.path.insert(0, {os.fspath(HERE)!r})
import engines as bench
for library in {engines.RUNTIMES!r}:
    if {provider.engine!r} == library:
        __import__(library)
bench.torch.set_num_threads({threads})
"""
    work = f"bench.network({case!r}, bench.Provider{tuple(provider)!r})()"
    used = measure.peak_memory(setup, work)
    yield measure.Row(f"{case}, {threads} threads", "memory", provider.name, "MiB", used, used, used, 1)


def there(provider: Provider) -> bool:
    return provider.engine not in engines.RUNTIMES or engines.installed(provider.engine)


def units(cases: list[str], threads: int, repeats: int) -> Iterator[tuple[Key, float, Callable]]:
    """What is measured together: case, metric and the first provider of its rows; minutes that it takes, about; how."""
    several = [case for case in cases if case != "swin-t-compiled"]
    for case in several:
        key = Key(f"{case}, {threads} threads", "network", PROVIDERS[case][0].name)
        yield key, 4 if case == "swin-t" else 1, partial(speed_rows, case, threads, repeats)
    for case in filter(FILES.__contains__, cases):
        key = Key(f"{case}, {threads} threads, {FILE[0]} of {FILE[1]:g} s", "file to score")
        turns = 1 if case == "swin-t" else repeats
        yield key, 3 if case == "swin-t" else 0.7, partial(file_rows, case, threads, turns)
    for case in several:
        for provider in filter(there, PROVIDERS[case]):
            key = Key(f"{case}, {threads} threads", "memory", provider.name)
            yield key, 0.8 if case == "swin-t" else 0.3, partial(memory_row, case, provider, threads)
    for case in set(cases) - set(several):
        key = Key(f"{case}, {threads} threads", "network", PROVIDERS[case][0].name)
        yield key, 8, partial(speed_rows, case, threads, repeats)


def done(path: Path) -> set[Key]:
    if not path.exists():
        return set()
    with path.open(newline="") as file:
        rows = [Key(row["case"], row["metric"], row["provider"]) for row in csv.DictReader(file)]
    return {*rows, *(Key(row.case, row.metric) for row in rows)}


def as_markdown(path: Path) -> str:
    """The table of the documentation, from the rows."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    memory = {(row["case"], row["provider"]): row["p50"] for row in rows if row["metric"] == "memory"}
    lines = []
    for row in rows:
        if row["metric"] == "memory":
            continue
        title = f"{row['case']}: {row['metric']}"
        if title not in lines:
            about = f"{row['cpu']}, {row['versions'].split(' triton')[0]}, {row['date'][:10]}"
            head = f"| | {row['unit']} | p20 to p80 | ratio | MiB | |"
            lines += ["", title, "", about, "", head, "|---|---|---|---|---|---|"]
        used = memory.get((row["case"], row["provider"]), "")
        used = used and f"{float(used):.0f}"
        spread = f"{row['p20']} to {row['p80']}"
        lines.append(f"| {row['provider']} | {row['p50']} | {spread} | {row['ratio']} | {used} | {row['note']} |")
    return "\n".join(lines[1:]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(PROVIDERS), help="of %(default)s")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=np.inf, help="begin nothing that would not be done by then")
    parser.add_argument("--out", type=Path, default=TABLE, help="table that rows are appended to (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    began = time.monotonic()
    for key, needed, rows in units(options.cases.split(","), options.threads, options.repeats):
        if key in done(options.out):
            continue
        left = options.minutes - (time.monotonic() - began) / 60
        if left < needed:
            print(f"{' '.join(key)}: not begun, {left:.1f} minutes are left; the same command continues")
            return 1
        measured = list(rows())
        measure.show_all(measured)
        measure.extend(options.out, measured)
        options.out.with_suffix(".md").write_text(as_markdown(options.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
