"""Several runs in turn with one budget each, and a table of them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from sama.errors import InputError
from sama.files import replace_file
from sama.metrics import Metrics
from sama.training.config import Config, Sampling
from sama.training.loop import train
from sama.training.report import as_cell


def run(config: Config) -> list[dict[str, Any]]:
    """Train once, or once for each point of the config's sweep, with a table of the runs in `OUT/sweep.md`."""
    runs = list(sweep(config))
    reports = [train(one) for _, one in runs]
    if len(runs) > 1 and int(os.environ.get("RANK", "0")) == 0:
        write_sweep(Path(config.out), [name for name, _ in runs], reports)
    return reports


def sweep(config: Config) -> Iterator[tuple[dict[str, Any], Config]]:
    """The runs of a sweep: what each differs in, and its config, with a folder of its own below `config.out`."""
    samplings: list[str | None] = [*config.sweep.samplings] or [None]
    split_numbers: list[int | None] = [*config.sweep.split_numbers] or [None]
    seeds: list[int | None] = [*config.sweep.seeds] or [None]
    for sampling, number, seed in itertools.product(samplings, split_numbers, seeds):
        one, name = config, dict[str, Any]()
        if sampling is not None:
            one, name["sampling"] = dataclasses.replace(one, sampling=parse_sampling(sampling, config)), sampling
        if number is not None:
            one = dataclasses.replace(one, data=dataclasses.replace(one.data, split_number=number))
            name["split"] = number
        if seed is not None:
            one, name["seed"] = dataclasses.replace(one, seed=seed), seed
        folder = "-".join(str(value).replace(" ", "-") for value in name.values())
        yield name, dataclasses.replace(one, out=str(Path(config.out) / folder) if folder else config.out)


def parse_sampling(text: str, config: Config) -> Sampling:
    """The sampling that a text names: "fragments", or "resize 1x1 224x224" (mode, grid, fragment)."""
    mode, *sizes = text.split()
    pairs = [[int(part) for part in size.split("x") if part.isdigit()] for size in sizes]
    if len(pairs) not in (0, 2) or any(len(pair) != 2 for pair in pairs):
        raise InputError(f'sweep.samplings takes "mode" or "mode ROWSxCOLUMNS ROWSxCOLUMNS"; got {text!r}')
    sampling = dataclasses.replace(config.sampling, mode=mode)
    if not pairs:
        return sampling
    (grid_rows, grid_columns), (rows, columns) = pairs
    return dataclasses.replace(sampling, grid=(grid_rows, grid_columns), fragment=(rows, columns))


def write_sweep(out: Path, names: Sequence[dict[str, Any]], reports: Sequence[dict[str, Any]]):
    """Write the runs of a sweep to `sweep.json` and `sweep.md`.

    The table has for each sampling and set the mean SROCC over runs with a 95 % interval of the mean (Student's t), and
    the protocol's medians over runs, of the last epoch and of the best one.
    """
    kept = ("sets", "published_best_epoch_rule")
    runs = [name | {key: report[key] for key in kept} for name, report in zip(names, reports)]
    replace_file(out / "sweep.json", json.dumps(runs, indent=1).encode())
    groups, bests = defaultdict(list), defaultdict(list)
    for run in runs:
        sampling = run.get("sampling", "all runs")
        for name, entry in run["sets"].items():
            groups[sampling, name].append(entry)
        for name, best in run["published_best_epoch_rule"].items():
            bests[sampling, name].append(best)
    lines = [
        "| sampling | set | runs | SROCC, mean (95 %) | SROCC within a content, mean (95 %) |",
        "|---|---|---|---|---|",
    ]
    for (sampling, name), entries in groups.items():
        srocc = [entry["metrics"]["srocc"] for entry in entries]
        inner = [entry["within"]["srocc"] for entry in entries if entry["within"]]
        lines.append(f"| {sampling} | {name} | {len(entries)} | {mean_interval(srocc)} | {mean_interval(inner)} |")
    metric_names = [field.name for field in fields(Metrics)]
    lines += [
        "",
        "Medians over runs; the best epoch of each metric on its own is as published results are (it flatters):",
        "",
        f"| sampling | set | epoch | {' | '.join(name.upper() for name in metric_names)} |",
        "|---|---|---|" + "---|" * len(metric_names),
    ]
    for key, entries in groups.items():
        rules = {"last": [entry["metrics"] for entry in entries], "best": bests.get(key, [])}
        for rule, found in rules.items():
            if found:
                cells = [as_cell(median([one[name] for one in found])) for name in metric_names]
                lines.append(f"| {key[0]} | {key[1]} | {rule} | {' | '.join(cells)} |")
    replace_file(out / "sweep.md", "\n".join([*lines, ""]).encode())
    print(out / "sweep.md", file=sys.stderr)


def median(values: Sequence[float | None]) -> float | None:
    """The median; None where one of the values does not exist."""
    known = [value for value in values if value is not None]
    return float(np.median(known)) if len(known) == len(values) else None


def mean_interval(values: Sequence[float | None]) -> str:
    """Mean of correlations with its 95 % interval (Student's t, cut to -1..1), as text.

    Without an interval for a single value; empty where one of the values does not exist.
    """
    from scipy import stats

    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return ""
    mean = float(np.mean(known))
    if len(known) < 2:
        return f"{mean:.4f}"
    half = float(stats.t.ppf(0.975, len(known) - 1) * np.std(known, ddof=1) / math.sqrt(len(known)))
    return f"{mean:.4f} ({max(-1.0, mean - half):.3f} to {min(1.0, mean + half):.3f})"
