"""Timing that can be compared: providers take turns, so that a slow moment of the machine falls on all of them."""

from __future__ import annotations

import csv
import datetime
import itertools
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from sama.backends import STD

REST = 0.05  # seconds before each call: threads of the one before go on spinning for a while, waiting for work
RESULTS = Path(__file__).parent / "results"
PIXEL = 0.02  # agreement with the reference, in 0..255: torch rounds coordinates otherwise on a GPU and in some builds


@dataclass(frozen=True)
class Row:
    """One figure: per second, unless the unit says otherwise. ratio: this provider's rate over the baseline's.

    p20, p50, p80 are of the rate over the repeats; the ratio is that of the medians, of one run.
    """

    case: str
    metric: str
    provider: str
    unit: str
    p20: float
    p50: float
    p80: float
    repeats: int
    ratio: float | None = None
    note: str = ""


def environment() -> dict[str, str]:
    """What a figure depends on: device, processor, cores, versions, date, commit."""
    versions = {}
    for name in ("torch", "triton", "numba", "av", "nvidia-dali-cuda130", "PyNvVideoCodec"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "none"
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cpu": f"{processor()}, {os.cpu_count()} cores",
        "versions": " ".join(f"{name} {number}" for name, number in versions.items()),
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%MZ"),
        "commit": commit(),
    }


def processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def commit() -> str:
    """Of this checkout; SAMA_COMMIT says it where files came without their history."""
    if "SAMA_COMMIT" in os.environ:
        return os.environ["SAMA_COMMIT"]
    command = ["git", "describe", "--always", "--dirty"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    except OSError:
        return "unknown"
    return run.stdout.strip() or "unknown"


def take_turns(
    providers: dict[str, Callable[[], object]], repeats: int, *, sync: Callable[[], None] = lambda: None, progress=None
) -> dict[str, list[float]]:
    """Seconds of every call: each provider once to warm up, then all in turn, `repeats` times."""
    seconds = {name: [] for name in providers}
    for turn in range(repeats + 1):
        for name, call in providers.items():
            time.sleep(REST)
            sync()
            start = time.perf_counter()
            call()
            sync()
            if turn:
                seconds[name].append(time.perf_counter() - start)
            if progress:
                progress(name)
    return seconds


def check(providers: dict[str, Callable[[], torch.Tensor]], expected: torch.Tensor):
    """RuntimeError unless every provider gives what the reference gives, to PIXEL in 0..255."""
    for name, call in providers.items():
        error = float((call().cpu() - expected.cpu()).abs().max()) * max(STD)
        if not error <= PIXEL:
            raise RuntimeError(f"{name} is {error:.2g} grey levels off the reference; at most {PIXEL} is right")


def timed(title: str, providers, repeats: int, **kwargs) -> dict[str, list[float]]:
    with tqdm(total=len(providers) * (repeats + 1), desc=title, leave=False, disable=None) as bar:

        def progress(name):
            bar.set_postfix_str(name)
            bar.update()

        return take_turns(providers, repeats, progress=progress, **kwargs)


def rows(
    case: str,
    metric: str,
    unit: str,
    seconds: dict[str, list[float]],
    work: dict[str, float],
    baseline: str,
    **notes: str,
) -> list[Row]:
    """Rates from the seconds of `take_turns`. work: units done by one call of each provider."""
    rates = {name: work[name] / np.array(values) for name, values in seconds.items()}
    return [
        Row(
            case,
            metric,
            name,
            unit,
            *(float(np.percentile(rate, q)) for q in (20, 50, 80)),
            len(rate),
            float(np.median(rate) / np.median(rates[baseline])),
            notes.get(name, ""),
        )
        for name, rate in rates.items()
    ]


def write(path: Path, rows: Iterable[Row]):
    """All rows as CSV, each with the environment, in place of what is there."""
    path.unlink(missing_ok=True)
    extend(path, rows)


def extend(path: Path, rows: Iterable[Row]):
    """Append rows to a CSV file, each with the environment."""
    about = environment()
    for row in rows:
        short = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in asdict(row).items()}
        append(path, short | about)


def append(path: Path, row: dict[str, object]):
    """Append a row to a CSV file, which begins with the names of the columns; ValueError where they are others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    begun = path.exists()
    if begun:
        with path.open(newline="") as file:
            columns = next(csv.reader(file))
        if columns != [*row]:
            raise ValueError(f"a row for {path.name} has the columns {[*row]}; the rows before have {columns}")
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [*row])
        if not begun:
            writer.writeheader()
        writer.writerow(row)


def peak_memory(setup: str, work: str) -> float:
    """MiB of resident memory that `work` adds, at its peak, to what is resident after `setup`; in a process of its own.

    Linux only: elsewhere the peak cannot be reset, and NaN is given.
    """
    if not Path("/proc/self/clear_refs").exists():
        return float("nan")
    code = f"""
{setup}
import re
def resident(field):
    return int(re.search(field + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1])
open("/proc/self/clear_refs", "w").write("5")
before = resident("VmRSS")
{work}
print(resident("VmHWM") - before)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"measuring memory failed:\n{run.stderr}")
    return int(run.stdout.splitlines()[-1]) / 1024


def show_all(rows: list[Row]):
    """A table for each case and metric."""
    for _, group in itertools.groupby(rows, lambda row: (row.case, row.metric)):
        show(list(group))


def show(rows: list[Row]):
    first = rows[0]
    table = Table(title=f"{first.case}: {first.metric}, {first.unit}", title_justify="left")
    for column in ("", "median", "p20 to p80", "ratio", ""):
        table.add_column(column, justify="left" if not column else "right")
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.3g}"
        table.add_row(row.provider, f"{row.p50:.4g}", f"{row.p20:.4g} to {row.p80:.4g}", ratio, row.note)
    Console().print(table)
