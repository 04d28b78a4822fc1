"""Encodes or versions of one source compared: windows matched in time, differences of their scores, a verdict.

    files -> offsets by content -> the stretch that all show -> windows at the same moments of it
          -> a score of each window of each file -> differences, paired -> mean, 95 % interval -> verdict

The interval is a bootstrap over windows, with the model's own noise added: two versions of one window would be scored
a little differently even if nobody could tell them apart. Equal scores in all windows are no difference whatever the
noise.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

import sama
from sama.decode import Video, VideoInfo, check_decoder, decode_with
from sama.decode.pyav import PyavVideo
from sama.errors import CheckpointError, InputError
from sama.files import check_kind, printable
from sama.report.ladders import Delta, deltas, hull
from sama.report.matching import Match, find_offset, probes_of
from sama.report.scale import Scale, scale_of
from sama.report.statistics import interval, widened
from sama.sampler import VideoSampler

if TYPE_CHECKING:
    from sama.model import QualityModel

FEWEST, MOST = 8, 48  # windows, unless a length is asked for
NOISE_SHARE = 0.02  # of a scale's range: half width of the interval that the model's noise adds
LABELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

Progress = Callable[[int, int], None]
Verdict = Literal["better", "worse", "undecided", "equal"]


@dataclass(frozen=True)
class Settings:
    """How to compare.

    every_seconds: from one window to the next; None: `FEWEST` to `MOST` windows, one after the other where they fit
    offset_seconds: content at t of the first file is at t + this of the others; None: found, up to max_offset_seconds
    floor: half width that the model's noise adds to an interval; None: the metadata's scale["noise"], or
        calibration["noise"], or else `NOISE_SHARE` of the scale's range, or 0 where it has none
    by: what is a ladder of its own: "codec" or "folder"; None: folders, if there are several, else codecs
    """

    every_seconds: float | None = None
    offset_seconds: float | None = None
    max_offset_seconds: float = 30.0
    floor: float | None = None
    by: str | None = None
    decoder: str = "auto"

    def check(self, paths: Sequence[str | os.PathLike[str]]) -> None:
        """`InputError` for settings or a number of files that cannot be used."""
        if not 2 <= len(paths) <= len(LABELS):
            raise InputError(f"give 2 to {len(LABELS)} files to compare; got {len(paths)}")
        for name, value in (("--every", self.every_seconds), ("--max-offset", self.max_offset_seconds)):
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} must be more than 0; got {value}")
        if self.floor is not None and not 0 <= self.floor < math.inf:
            raise InputError(f"--floor must be at least 0; got {self.floor}")
        if self.offset_seconds is not None and not math.isfinite(self.offset_seconds):
            raise InputError(f"--offset must be a number; got {self.offset_seconds}")
        check_decoder(self.decoder)


@dataclass
class Version:
    """One of the files compared.

    label: "A", "B", ...; scores [windows]: on the scale; seconds [windows]: of the windows' middles in this file;
    decoder: which one gave the frames that were scored
    bitrate: bits a second of the video stream; file_bytes: of the file; match: to the first file
    """

    label: str
    path: str
    info: VideoInfo
    match: Match
    bitrate: float
    file_bytes: int
    scores: np.ndarray = field(default_factory=lambda: np.empty(0))
    seconds: np.ndarray = field(default_factory=lambda: np.empty(0))
    decoder: str = ""

    @property
    def name(self) -> str:
        return printable(os.path.basename(self.path))

    @property
    def mean(self) -> float:
        return float(self.scores.mean())


@dataclass(frozen=True)
class Difference:
    """The score of `other` less that of `first`, mean over windows, with its 95 % interval (low, high)."""

    first: str
    other: str
    mean: float
    low: float
    high: float
    equal: bool

    @property
    def verdict(self) -> Verdict:
        """What can be told of `other`."""
        if self.equal:
            return "equal"
        return "better" if self.low > 0 else "worse" if self.high < 0 else "undecided"


@dataclass
class Comparison:
    """What `compare` found.

    versions: in the order given; times [windows]: of the windows' middles in the first file, in seconds
    scale: of all scores; floor: half width that the model's noise added; model, settings: what scores depend on
    groups: ladder -> labels; deltas: Bjontegaard's, between ladders
    """

    versions: list[Version]
    times: np.ndarray
    scale: Scale
    floor: float
    model: QualityModel
    settings: str
    groups: dict[str, list[str]]
    deltas: list[Delta]

    def difference(self, first: str, other: str) -> Difference:
        """Of two labels."""
        a, b = (self.versions[LABELS.index(label)] for label in (first, other))
        d = b.scores - a.scores
        mean = float(d.mean())
        if not d.any():
            return Difference(first, other, 0.0, 0.0, 0.0, equal=True)
        return Difference(first, other, mean, *widened(mean, *interval(d), self.floor), equal=False)

    @property
    def differences(self) -> list[Difference]:
        """Of all files from the first."""
        return [self.difference("A", version.label) for version in self.versions[1:]]

    @property
    def order(self) -> list[Version]:
        """Best first."""
        return sorted(self.versions, key=lambda version: -version.mean)

    @property
    def verdict(self) -> str:
        """In one line."""
        best, second = self.order[:2] if len(self.versions) > 2 else self.versions
        d = self.difference(second.label, best.label) if len(self.versions) > 2 else self.difference("A", "B")
        if d.equal:
            both = f"{' and '.join(sorted((d.first, d.other)))} have the same score in {_windows(len(self.times))}"
            return f"no difference: {both}"
        if d.verdict == "undecided":
            which = f" between the best two, {d.other} and {d.first}" if len(self.versions) > 2 else ""
            return f"no difference can be told{which}: {d.other} less {d.first} is {self._by(d)}"
        if d.verdict == "worse":
            d = self.difference(d.other, d.first)
        what = f"the best, ahead of {d.first}" if len(self.versions) > 2 else "better"
        return f"{d.other} is {what} by {self.number(d.mean)} ({self.number(d.low)} to {self.number(d.high)})"

    def _by(self, d: Difference) -> str:
        return f"{round(d.mean, self.digits) + 0.0:+.{self.digits}f} ({self.number(d.low)} to {self.number(d.high)})"

    @property
    def digits(self) -> int:
        """Digits after the point to print."""
        low, high = self.scale.limits(np.concatenate([version.scores for version in self.versions]).tolist())
        return min(6, max(0, math.ceil(2.7 - math.log10(high - low))))

    def number(self, value: float) -> str:
        return f"{round(value, self.digits) + 0.0:.{self.digits}f}"  # + 0.0: never "-0.0"

    def below(self, limit: float) -> list[str]:
        """Labels of the files that differ from the first by less than `limit` with 95 % confidence."""
        return [d.other for d in self.differences if d.high < limit]

    def extremes(self, count: int = 4) -> list[int]:
        """The windows in which the files differ most, most first; none of equal files."""
        scores = np.stack([version.scores for version in self.versions])
        spread = np.ptp(scores, axis=0)
        return [int(k) for k in np.argsort(-spread, kind="stable")[:count] if spread[k] > 0]

    @property
    def hull(self) -> list[str]:
        """Labels on the hull of rate and quality, from the lowest rate on."""
        found = hull([version.bitrate for version in self.versions], [version.mean for version in self.versions])
        return [self.versions[k].label for k in found]

    def as_dict(self, fail_below: float | None = None) -> dict[str, Any]:
        """As JSON holds it; numbers on the scale, times in seconds."""
        result: dict[str, Any] = {
            "verdict": self.verdict,
            "scale": {"name": self.scale.name, "low": self.scale.low, "high": self.scale.high},
            "noise_floor": self.floor,
            "windows": len(self.times),
            "files": [
                {
                    "label": v.label,
                    "path": printable(v.path),
                    "score": v.mean,
                    "scores": v.scores.tolist(),
                    "seconds": v.seconds.tolist(),
                    "offset_seconds": v.match.seconds,
                    "match": v.match.correlation,
                    "bitrate": v.bitrate,
                    "bytes": v.file_bytes,
                    "codec": v.info.codec,
                    "width": v.info.width,
                    "height": v.info.height,
                    "fps": v.info.fps,
                    "duration": v.info.duration_seconds,
                }
                for v in self.versions
            ],
            "differences": [
                {"first": d.first, "other": d.other, "mean": d.mean, "low": d.low, "high": d.high, "verdict": d.verdict}
                for d in self.differences
            ],
            "largest": [{"seconds": float(self.times[k]), "scores": self.at(k)} for k in self.extremes()],
            "model": self.model.name,
            "settings": self.settings,
            "version": sama.__version__,
        }
        if len(self.versions) > 2:
            result["order"] = [version.label for version in self.order]
            result["hull"] = self.hull
            result["ladders"] = self.groups
            result["bjontegaard"] = [vars(delta) for delta in self.deltas]
        if fail_below is not None:
            result["fail_below"], result["failed"] = fail_below, self.below(fail_below)
        return result

    def at(self, window: int) -> dict[str, float]:
        """Scores of a window by label."""
        return {version.label: float(version.scores[window]) for version in self.versions}

    def __str__(self) -> str:
        found = {d.other: d for d in self.differences}
        wide = max(9, self.digits + 6)
        lines = [f"   {'score':>{wide}}  {'against A (95 %)':>27}  {'kbit/s':>8}  {'size':>9}  {'offset':>8}  file"]
        for v in self.versions:
            d = found.get(v.label)
            less = "" if d is None else "equal" if d.equal else self._by(d)
            picture = f"{v.info.width}x{v.info.height}"
            offset = f"{v.match.seconds:+.2f} s" if v.match.seconds else ""
            columns = (
                f"{v.mean:{wide}.{self.digits + 1}f}  {less:>27}  {v.bitrate / 1000:8.0f}  {picture:>9}  {offset:>8}"
            )
            lines.append(f"{v.label}  {columns}  {printable(v.path)}")
        about = f"scale: {printable(self.scale.name)}; {len(self.times)} windows"
        lines += [about + f"; the model's noise: {self.number(self.floor)} points either way", self.verdict]
        if extremes := self.extremes(3):
            moments = []
            for k in extremes:
                values = ", ".join(f"{label} {self.number(value)}" for label, value in self.at(k).items())
                moments.append(f"{self.times[k]:.1f} s ({values})")
            lines.append(f"they differ most at {'; '.join(moments)}")
        if len(self.versions) > 2:
            lines.append(f"on the hull of rate and quality: {', '.join(self.hull)}")
            lines += [_said(delta) for delta in self.deltas]
        return "\n".join(lines)


def compare(
    paths: Sequence[str | os.PathLike[str]],
    model: QualityModel,
    settings: Settings | None = None,
    *,
    progress: Progress | None = None,
) -> Comparison:
    """Compare files of one content; the first is what the others are compared with.

    `InputError` where they do not show the same, for a model of images, and for unusable settings; `DecodeError` for a
    file that cannot be read. Memory does not grow with the length of the files, but for their scores and packets.
    """
    settings = settings or Settings()
    settings.check(paths)
    if model.kind != "video" or not isinstance(model.sampler, VideoSampler):
        raise InputError(f"compare takes videos, and a model for them; {model.name} scores {model.kind}s")
    names = [os.fsdecode(path) for path in paths]
    for name in names:
        check_kind(name, "video")
    versions = _open_all(names, settings)
    middles = _middles(versions, model, settings.every_seconds)
    scale = scale_of(model)
    for done, version in enumerate(versions):
        if progress:
            progress(done, len(versions))
        _score(version, middles + version.match.seconds, model, scale, settings.decoder)
    if progress:
        progress(len(versions), len(versions))
    groups = _groups(versions, settings.by)
    by_label = {version.label: version for version in versions}
    ladders = {
        name: ([by_label[label].bitrate for label in labels], [by_label[label].mean for label in labels])
        for name, labels in groups.items()
        if len(labels) > 1
    }
    found = deltas(ladders) if len(ladders) > 1 else []
    floor = noise_of(model, scale) if settings.floor is None else settings.floor
    described = model.describe(settings.every_seconds)
    return Comparison(versions, middles, scale, floor, model, described, groups, found)


def noise_of(model: QualityModel, scale: Scale) -> float:
    """Half width of the interval that the model's noise adds, on its scale."""
    for key in ("scale", "calibration"):
        given = (model.metadata.get(key) or {}).get("noise")
        if given is not None:
            if not (isinstance(given, int | float) and 0 <= given < math.inf):
                raise CheckpointError(f"{model.name}: its metadata say {key} noise = {given!r}, expected 0 or more")
            return float(given)
    return 0.0 if scale.low is None or scale.high is None else NOISE_SHARE * (scale.high - scale.low)


def _open_all(names: Sequence[str], settings: Settings) -> list[Version]:
    versions = []
    with PyavVideo(names[0]) as first:
        for label, name in zip(LABELS, names):
            if label == "A":
                match, info, bits, size = Match(0.0, 1.0), first.info, stream_bits(first), file_bytes(first)
                probes = probes_of(first) if settings.offset_seconds is None else []
            else:
                with PyavVideo(name) as video:
                    if settings.offset_seconds is None:
                        match = find_offset(probes, first.info, video, settings.max_offset_seconds)
                    else:
                        match = Match(settings.offset_seconds, 1.0)
                    info, bits = video.info, stream_bits(video)
                    size = file_bytes(video)
            versions.append(Version(label, name, info, match, bits / info.duration_seconds, size))
    return versions


def file_bytes(video: PyavVideo) -> int:
    """Size of the file."""
    content = video.guard.content
    return os.stat(video.info.path).st_size if content is None else content.size


def stream_bits(video: PyavVideo) -> int:
    """Bits of the video stream; of the whole file where packets are not known."""
    if video.index is None:
        return 8 * file_bytes(video)
    return 8 * int(video.index.packets["size"].sum())


def _middles(versions: Sequence[Version], model: QualityModel, every_seconds: float | None) -> np.ndarray:
    """Times of the middles of windows in the first file, so that a clip fits around each in every file if it can."""
    span = model.clip_len * model.metadata["interval"]
    begin = max(0.0, *(-version.match.seconds for version in versions))
    end = min(version.info.duration_seconds - version.match.seconds for version in versions)
    if end <= begin:
        raise InputError("the files have no moment in common: with their offsets, one ends before another begins")
    long = max(span / version.info.fps for version in versions)
    room = end - begin - long
    if room <= 0:
        return np.array([(begin + end) / 2])
    if every_seconds is not None:
        return np.asarray(begin + long / 2 + np.arange(math.floor(room / every_seconds) + 1) * every_seconds)
    count = min(MOST, max(FEWEST, round((end - begin) / long)))
    return np.linspace(begin + long / 2, end - long / 2, count)


def _score(version: Version, middles: np.ndarray, model: QualityModel, scale: Scale, decoder: str) -> None:
    """Fill in scores and times of the windows whose middles are nearest to the given times of this file."""
    assert isinstance(model.sampler, VideoSampler)
    sampler, clip_len, interval = model.sampler, model.clip_len, model.metadata["interval"]

    def score(video: Video) -> tuple[list[float], np.ndarray, str]:
        count = video.info.num_frames
        times = video.seconds(range(count))
        numbers = _nearest(times, middles) - clip_len // 2 * interval
        starts = np.clip(numbers, 0, max(0, count - clip_len * interval))
        indices = np.minimum(starts[:, None] + np.arange(clip_len) * interval, count - 1)
        values = [value for clip in sampler.stream(video, indices) for value in model.values([clip], 1)]
        return values, times[indices[:, clip_len // 2]], video.decoder

    values, version.seconds, version.decoder = decode_with(score, version.path, decoder=decoder, device=model.device)
    if not all(map(math.isfinite, values)):
        raise InputError(f"{printable(version.path)}: the model gave a value that is not a number")
    version.scores = np.array([scale(value) for value in values])


def _nearest(times: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Numbers of the frames shown nearest to the wanted times."""
    if len(times) == 1:
        return np.zeros(len(wanted), np.int64)
    after = np.clip(np.searchsorted(times, wanted), 1, len(times) - 1)
    result: np.ndarray = np.where(wanted - times[after - 1] <= times[after] - wanted, after - 1, after)
    return result


def _groups(versions: Sequence[Version], by: str | None) -> dict[str, list[str]]:
    """Ladders: name -> labels, in the order of the files."""
    if by is None:
        by = "folder" if len({os.path.dirname(version.path) for version in versions}) > 1 else "codec"
    groups: dict[str, list[str]] = {}
    for version in versions:
        name = version.info.codec if by == "codec" else printable(os.path.dirname(version.path)) or "."
        groups.setdefault(name, []).append(version.label)
    return groups


def _windows(count: int) -> str:
    return "the only window" if count == 1 else f"all {count} windows"


def _said(delta: Delta) -> str:
    """A Bjontegaard delta in words."""
    both = f"{delta.other} against {delta.first}"
    if delta.rate_percent is None:
        return f"{both}: no Bjontegaard delta: {delta.reason}"
    points = "" if delta.quality is None else f", {delta.quality:+.2f} points at the same rate"
    left = f" ({delta.left_out} points left out that cost more for no gain)" if delta.left_out else ""
    return f"{both}: {delta.rate_percent:+.1f} % rate at the same quality{points}{left}"
