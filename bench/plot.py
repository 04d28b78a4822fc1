"""Draw the rows of `throughput.py` as one picture: every provider's speed as a multiple of the published way.

python bench/plot.py bench/results/throughput-cpu.csv [-o bench/throughput.png]
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

METRICS = ("sample", "file to input")  # the rest is in the table
INK, GREY, ACCENT = "#1f2933", "#b8c4ce", "#1670a8"


def read(path: Path) -> dict[str, dict[str, list[dict[str, str]]]]:
    """metric -> case -> rows, in the order of the file."""
    found = defaultdict(lambda: defaultdict(list))
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            found[row["metric"]][row["case"]].append(row)
    return found


def draw(path: Path, out: Path):
    found = read(path)
    metrics = [metric for metric in METRICS if metric in found]
    cases = list(found[metrics[0]])
    figure, axes = plt.subplots(
        len(metrics), len(cases), figsize=(4.2 * len(cases), 2.9 * len(metrics)), squeeze=False, layout="constrained"
    )
    for panel, metric in zip(axes, metrics):
        for axis, case in zip(panel, cases):
            bars(axis, f"{case}: {metric}", found[metric].get(case, []))
    about = next(iter(found[metrics[0]].values()))[0]
    figure.suptitle(
        f"times as fast as the reference — {about['cpu']}, {about['device']}, {about['date'][:10]}", color=INK
    )
    figure.savefig(out, dpi=110)
    print(out)


def bars(axis, title: str, rows: list[dict[str, str]]):
    """One panel: horizontal bars on a logarithmic axis, the ratio and the rate written beside each."""
    ratios = [float(row["ratio"]) for row in rows]
    ours = [row["provider"].startswith(("cpu", "planned", "triton")) for row in rows]
    axis.barh(range(len(rows)), ratios, color=[ACCENT if own else GREY for own in ours])
    axis.set_yticks(range(len(rows)), [row["provider"] for row in rows], fontsize=8)
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xlim(0.7, max([2, *ratios]) * 6)
    axis.set_xticks([])
    axis.minorticks_off()
    for place, (ratio, row) in enumerate(zip(ratios, rows)):
        axis.text(
            ratio * 1.08, place, f"{ratio:.3g}x  ({float(row['p50']):.3g} {row['unit']})", va="center", fontsize=8
        )
    axis.set_title(title, fontsize=9, color=INK)
    axis.spines[["top", "right", "bottom"]].set_visible(False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path)
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).parent / "throughput.png")
    options = parser.parse_args()
    draw(options.csv, options.out)


if __name__ == "__main__":
    main()
