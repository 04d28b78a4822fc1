"""The report of an evaluation: Markdown, JSON and a scatter plot."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from sama.evaluation import Evaluation, markdown
from sama.figures import save_figure
from sama.files import printable, replace_file


def write_report(evaluation: Evaluation, folder: str | os.PathLike):
    """Write report.md, report.json and scatter.png to a folder, which is made if it is not there.

    `OutputError` where a file cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_figure(scatter(evaluation), folder / "scatter.png")
    replace_file(
        folder / "report.json", json.dumps(without_nan(asdict(evaluation)), indent=1, allow_nan=False).encode() + b"\n"
    )
    text = f"{markdown(evaluation)}\n\n![labels over scores](scatter.png)\n"
    replace_file(folder / "report.md", text.encode(errors="replace"))


def without_nan(value: Any) -> Any:
    """The same data as JSON can hold it: NaN becomes None, tuples become lists."""
    if isinstance(value, Mapping):
        return {key: without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def scatter(evaluation: Evaluation):
    """Labels over scores, with the logistic fit: a `matplotlib.figure.Figure`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5), layout="constrained")
    axis = figure.add_subplot()
    x, y = np.array(evaluation.prediction), np.array(evaluation.mos)
    axis.scatter(x, y, s=max(2, min(20, 4000 / max(1, len(x)))), alpha=0.5, color="#1670a8", linewidths=0)
    if evaluation.fit:
        line = np.linspace(x.min(), x.max(), 200)
        axis.plot(line, evaluation.fit(line), color="#c23b22", label="logistic fit")
        axis.legend(frameon=False)
    axis.set_xlabel("score, the model's own scale")
    axis.set_ylabel("label")
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(f"{printable(evaluation.title)}\n{evaluation.all.plain}", fontsize=9, parse_math=False)
    return figure
