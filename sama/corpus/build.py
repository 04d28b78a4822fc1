"""Build a labelled set in a folder: from any undegraded contents, with any degradations and any label.

The folder holds a whole set or none. A whole set is `labels.csv`, the files in `clips` or `images`, and
`manifest.json`, which is written last. Until then all is in the subfolder `unfinished`, with a JSON file of the rows of
each content, as far as it is done: a run that was interrupted resumes after the last file that was finished.
"""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from typing import Any, NamedTuple, Protocol

import numpy as np
from filelock import FileLock

from sama.corpus.codec import Stream, read_image, read_video, write_image, write_video
from sama.corpus.degrade import Kind
from sama.errors import DecodeError, FfmpegError, InputError, OutputError

Row = dict[str, Any]
SUFFIXES = {"jpeg": ".jpg", "webp": ".webp", "avif": ".avif", "jpeg2000": ".jp2"}  # of images; else .png


class Content(Protocol):
    """What versions are made of: undegraded frames with a name."""

    @property
    def name(self) -> str:
        """The names of its files begin with it; no other content of the set has it."""

    @property
    def group(self) -> str:
        """Where its pictures come from. Contents that share pictures are of one group, and of one split."""

    @property
    def split(self) -> str:
        """The set's part that it belongs to, such as "train"."""

    @property
    def width(self) -> int: ...

    @property
    def height(self) -> int: ...

    def pristine(self, num_frames: int) -> np.ndarray:
        """The undegraded frames, I420: uint8 [num_frames, height * 3/2, width]; the same in every call."""


class Labeller(Protocol):
    """What gives files their labels."""

    @property
    def columns(self) -> Sequence[str]:
        """Names of the label's columns in `labels.csv`."""

    def prepare(self, name: str, pristine: np.ndarray) -> Callable[[np.ndarray], Mapping[str, float | str]]:
        """A function from the frames that a version shows once decoded to a value for each column.

        Called once for each content, for each image of it in a set of images, and by several threads at once.
        pristine: the undegraded frames, I420: uint8 [T, H * 3/2, W], as are those that versions show
        """


class Version(NamedTuple):
    """A file of the set.

    name: of the content, in a set of images followed by the number of the image
    view: number of the image, 0 in a set of clips
    kind: of degradation, or "pristine". number: among the versions of one name and kind. strength: 0 for pristine ones
    """

    name: str
    view: int
    kind: str
    number: int
    strength: float


@dataclass(frozen=True)
class Recipe:
    """All that determines a set.

    settings: what goes into the manifest: two sets with equal settings are taken for the same
    plan: gives the versions of a content by its name, those of an image together
    kinds: the degradations by name. num_frames: of each content
    images: single frames of each content, this many, evenly spaced; 0 for clips
    write: encodes a stream into a video file; write_still: its first frame into an image file
    facts: what else a clip's row has, by its content, its stream and its path; fact_columns: the names of that
    stop: ends what workers have under way, where the run is interrupted
    tolerant: versions that cannot be made are left out and listed in `failures.json`, instead of ending the run
    """

    settings: Mapping[str, Any]
    contents: Sequence[Content]
    plan: Callable[[str], list[Version]]
    kinds: Mapping[str, Kind]
    labeller: Labeller
    num_frames: int
    images: int = 0
    write: Callable[[str, Stream], None] = write_video
    write_still: Callable[[Path, Stream], None] = write_image
    facts: Callable[[Any, Stream, Path], Mapping[str, Any]] = lambda content, stream, path: {}
    fact_columns: Sequence[str] = ()
    stop: Callable[[], None] = lambda: None
    tolerant: bool = False

    def __post_init__(self):
        splits: dict[str, str] = {}
        for content in self.contents:
            if splits.setdefault(content.group, content.split) != content.split:
                raise InputError(f"{content.group} is in two splits: {splits[content.group]}, {content.split}")
        if len({content.name for content in self.contents}) < len(self.contents):
            raise InputError("two contents have the same name")

    @property
    def folder(self) -> str:
        """Of the files, in the set's own."""
        return "images" if self.images else "clips"

    @property
    def columns(self) -> tuple[str, ...]:
        """Of `labels.csv`."""
        facts = "content", "kind", "strength", "split", "reference"
        return "path", *self.labeller.columns, *facts, *self.fact_columns


def build(
    folder: str | os.PathLike,
    recipe: Recipe,
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """The set's label file, `labels.csv`; the set is made first if it is not there.

    folder: made if need be. Processes that ask for the same set at once wait for the first of them.
    workers: contents made at the same time; the number of cores by default
    progress: called with (files done, files in all)

    Raises `InputError` where the folder holds another set, `OutputError` where the disk is full: what was made is kept.
    """
    folder = Path(folder)
    try:
        return _build(folder, recipe, workers, progress)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OutputError(
            f"{folder}: the disk is full; the files made so far are kept, and the same command continues after them "
            "once there is room"
        ) from error


def _build(folder: Path, recipe: Recipe, workers: int | None, progress: Callable[[int, int], None] | None) -> Path:
    settings = json.loads(json.dumps(dict(recipe.settings)))
    labels, manifest, unfinished = folder / "labels.csv", folder / "manifest.json", folder / "unfinished"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if manifest.exists():
            if _load(manifest) != settings:
                raise InputError(
                    f"{folder} holds another set, or one of another version (see {manifest}): name another folder, or "
                    "remove that one"
                )
            return labels
        if unfinished.exists() and _load(unfinished / "settings.json") != settings:
            shutil.rmtree(unfinished)
        (unfinished / recipe.folder).mkdir(parents=True, exist_ok=True)
        _save(unfinished / "settings.json", settings)

        rows = _make_contents(recipe, unfinished, workers or os.cpu_count() or 1, progress)
        failed = [row for row in rows if "failed" in row]
        rows = [row for row in rows if "failed" not in row]
        if failed and not rows:
            raise InputError(f"not one of {len(failed)} files could be made; the first: {failed[0]['failed']}")
        if failed:
            _save(folder / "failures.json", failed)
        _write_csv(unfinished / "labels.csv", recipe.columns, rows)
        shutil.rmtree(folder / recipe.folder, ignore_errors=True)
        (unfinished / recipe.folder).replace(folder / recipe.folder)
        (unfinished / "labels.csv").replace(labels)
        _save(manifest, settings)
        shutil.rmtree(unfinished)
    return labels


def _make_contents(
    recipe: Recipe, folder: Path, workers: int, progress: Callable[[int, int], None] | None
) -> list[Row]:
    """The rows of all contents, in the recipe's order. Where one fails the others stop at their next file."""
    rows: dict[str, list[Row]] = {}
    total, done = sum(len(recipe.plan(content.name)) for content in recipe.contents), 0
    lock, stopped = Lock(), Event()

    def advance():
        nonlocal done
        if stopped.is_set():
            raise InterruptedError("another content failed")
        with lock:
            done += 1
            if progress:
                progress(done, total)

    with ThreadPoolExecutor(workers) as pool:
        largest_first = sorted(recipe.contents, key=lambda content: -content.width * content.height)
        jobs = {pool.submit(_make_content, recipe, content, folder, advance): content for content in largest_first}
        try:
            for job in as_completed(jobs):
                rows[jobs[job].name] = job.result()
        except BaseException:
            stopped.set()
            recipe.stop()
            pool.shutdown(cancel_futures=True)
            raise
    return [row for content in recipe.contents for row in rows[content.name]]


def _make_content(recipe: Recipe, content: Content, folder: Path, advance: Callable[[], None]) -> list[Row]:
    """Make the files of a content, calling `advance` after each; its rows, which are kept for a later run."""
    kept = folder / f"{content.name}.json"
    versions = recipe.plan(content.name)
    rows = _load(kept) or []
    for _ in rows:
        advance()
    if len(rows) == len(versions):
        return rows
    clip = content.pristine(recipe.num_frames)
    view = None
    for version in versions[len(rows) :]:
        if version.view != view:
            view = version.view
            at = view * len(clip) // max(recipe.images, 1)
            frames = clip[at : at + 1] if recipe.images else clip
            label = recipe.labeller.prepare(version.name, frames)
        row = _make_row(recipe, content, version, frames, folder, label)
        pristine = [r for r in [*rows, row] if (r["content"], r["kind"]) == (version.name, "pristine")]
        rows.append({**row, "reference": pristine[0].get("path", "") if pristine else ""})
        _save(kept, rows)
        advance()
    return rows


def _make_row(
    recipe: Recipe,
    content: Content,
    version: Version,
    frames: np.ndarray,
    folder: Path,
    label: Callable[[np.ndarray], Mapping[str, float | str]],
) -> Row:
    """Make a file; its row."""
    values = {"content": version.name, "kind": version.kind, "strength": version.strength, "split": content.split}
    try:
        path, stream, shown = make_version(recipe, version, frames, folder)
        return {"path": path, **label(shown), **values, **recipe.facts(content, stream, folder / path)}
    except (DecodeError, FfmpegError) as error:
        if not recipe.tolerant:
            raise
        return {**values, "failed": str(error)}


def make_version(recipe: Recipe, version: Version, frames: np.ndarray, folder: Path) -> tuple[str, Stream, np.ndarray]:
    """Write a file; its path in the set, what was encoded, and its frames as they decode."""
    kind = recipe.kinds.get(version.kind)
    stream = kind.apply(frames, version.strength, version.name) if kind else Stream(frames)
    path = f"{recipe.folder}/{version.name}-{version.kind}-{version.number}"
    if recipe.images:
        path += SUFFIXES.get(stream.codec, ".png")
        recipe.write_still(folder / path, stream)
        return path, stream, read_image(folder / path)
    path += ".mp4"
    recipe.write(str(folder / path), stream)
    return path, stream, read_video(str(folder / path))


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _save(path: Path, value: object) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1))
    part.replace(path)


def _load(path: Path) -> Any:
    """The JSON value of a file; None where it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
