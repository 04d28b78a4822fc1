"""The scale that a page shows scores on, and what they mean in plain words; both come from the model's metadata."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sama.errors import CheckpointError

if TYPE_CHECKING:
    from sama.model import QualityModel
    from sama.tables import Row

OWN = "the model's own scale"
VMAF = (
    "VMAF is Netflix's measure of quality, fitted to people's votes, from 0 to 100. A common rule of thumb: from about "
    "93 on, the loss can hardly be seen on a television; 6 points are a difference that most people notice. Here it is "
    "predicted from the file alone, so an error of some points is usual."
)


@dataclass(frozen=True)
class Scale:
    """Which number is shown for a model's score.

    name: of the scale, for people; low, high: where it begins and ends, None where nobody says
    model: converts the model's own scores to the scale; None shows them as they are
    """

    name: str
    low: float | None = None
    high: float | None = None
    model: QualityModel | None = None

    def __call__(self, score: float) -> float:
        """The number shown for a score on the model's own scale."""
        value = self.model.mos(score)[0] if self.model else None
        return score if value is None else value

    def limits(self, values: Iterable[float]) -> tuple[float, float]:
        """Ends of an axis: the scale's own, or those of the values, a little wider."""
        finite = [value for value in values if math.isfinite(value)] or [0.0]
        margin = (max(finite) - min(finite)) * 0.05 or 1.0
        low = min(finite) - margin if self.low is None else min(self.low, *finite)
        high = max(finite) + margin if self.high is None else max(self.high, *finite)
        return low, high


def scale_of(model: QualityModel) -> Scale:
    """The scale that a model's metadata name: that of its scores, or the calibration's, or else the model's own.

    metadata["scale"]: as `QualityModel.score_scale`
    metadata["calibration"]["range"]: [low, high] of the scale; without it, a logistic calibration's bottom and top
    """
    if model.score_scale:
        return Scale(model.score_scale, float(model.metadata["scale"]["least"]), float(model.metadata["scale"]["most"]))
    calibration = model.metadata.get("calibration")
    if not calibration:
        return Scale(OWN)
    low, high = _range(calibration, model.name)
    return Scale(calibration["scale"], low, high, model)


def scale_of_rows(rows: Sequence[Row], model: QualityModel | None) -> Scale:
    """The scale for rows of a table: their model's, where it is at hand; without it, clips cannot be converted."""
    if model is not None:
        return scale_of(model)
    scored = [row for row in rows if row.score is not None]
    if scored and all(row.mos is None or row.mos == row.score for row in scored):
        return Scale(scored[0].scale or scored[0].mos_scale or OWN)
    return Scale(OWN)


def _range(calibration: Mapping[str, Any], name: str) -> tuple[float | None, float | None]:
    given = calibration.get("range")
    if given is not None:
        numbers = isinstance(given, list | tuple) and all(isinstance(end, int | float) for end in given)
        if not (numbers and len(given) == 2 and given[0] < given[1]):
            raise CheckpointError(f"{name}: its metadata say calibration range = {given!r}, expected [low, high]")
        return float(given[0]), float(given[1])
    if calibration["kind"] == "logistic":
        top, bottom, *_ = calibration["beta"]
        return min(float(bottom), float(top)), max(float(bottom), float(top))
    return None, None


def meaning(scale: Scale, row: Row | None, model: QualityModel | None) -> list[str]:
    """What a score means and where it ends, in whole sentences. row: one of those shown"""
    ends = "" if scale.low is None or scale.high is None else f", which runs from {scale.low:.3g} to {scale.high:.3g}"
    calibrated = scale.name != OWN
    named = f"on the scale “{scale.name}”{ends}" if calibrated else "on the model's own scale, which has no ends"
    said = [
        f"Higher is better. Each file has one score, {named}: the mean over moments (windows) of the file.",
        "The model sees the file alone: it has no original to compare with, so it judges how the pictures look.",
    ]
    if "vmaf" in scale.name.lower():
        said.append(VMAF)
    elif calibrated:
        said.append("The numbers are opinions of people only if people voted in the set that the scale is named after.")
    said.append(
        "Trust differences between versions of one video most. Between different contents a few points mean little. "
        "Scores of another model or other settings cannot be compared with these."
    )
    said += _limits(model)
    if row is not None and "RANDOM WEIGHTS" in row.model:
        said.insert(0, "These scores are of a model with random weights: they mean nothing.")
    return said


def _limits(model: QualityModel | None) -> list[str]:
    """What the packaged model's card says that it is not for."""
    from sama.model import DEFAULT_WEIGHTS, digest

    card = DEFAULT_WEIGHTS.with_suffix(".md")
    if model is None or not (card.exists() and DEFAULT_WEIGHTS.exists() and digest(DEFAULT_WEIGHTS) in model.name):
        return []
    found = re.search(r"^\*\*(Not for)\*\* (.+?)\n\n", card.read_text(encoding="utf-8"), re.M | re.S)
    if not found:
        return []
    plain = re.sub(r"[`*]|\]\([^)]*\)|\[", "", " ".join(found[2].split()))
    return [f"From the model's card: not for {plain}"]


def contract(row: Row, scale: Scale, decoders: Iterable[str]) -> list[tuple[str, str]]:
    """What scores depend on: pairs of a name and a value."""
    ends = "" if scale.low is None or scale.high is None else f", {scale.low:.3g} to {scale.high:.3g}"
    return [
        ("Scale", scale.name + ends),
        ("Model", row.model or "not said"),
        ("Settings", row.settings or "not said"),
        ("Decoder", ", ".join(sorted(decoders)) or "none"),
    ]
