"""Whether a label file and the files that it names can be trusted: `check`."""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

from sama.errors import reason
from sama.files import printable
from sama.labels import Item, leakage, parse_labels, path_key
from sama.limits import Guard, Limits
from sama.prefetch import Ended, Ticket, ahead
from sama.storage import is_url

PUBLISHED = {  # items of the sets of each form; LSVQ's as its published training log counts them, the others' papers
    "path, duration, fps, mos": {
        "LSVQ training": 28056,
        "LSVQ test": 7182,
        "KoNViD-1k": 1200,
        "LIVE-VQC": 585,
        "YouTube-UGC (about; not all are still online)": 1142,
    },
    "image_name, MOS_zscore (KonIQ-10k)": {"KonIQ-10k": 10073},
    "name score": {"SPAQ": 11125},
    "dist_img, ref_img, dmos (KADID-10k)": {"KADID-10k (81 references x 125)": 10125},
}
BINS = 10  # of the histogram of labels
SHOWN = 10  # problems of a kind that the text of a report lists


@dataclass(frozen=True)
class Report:
    """What `check` found.

    form: of the label file, in words; items, groups: how many; splits: items of each of the file's own splits
    scale: minimum, maximum, mean, standard deviation of the labels; histogram: items in `BINS` bins of equal width
    published: how the number of items compares with the published one; empty for a form of one's own
    problems: for each kind of problem, one line a case; empty where all is well
    """

    labels: str
    root: str
    form: str
    items: int
    groups: int
    splits: dict[str, int]
    scale: dict[str, float]
    histogram: list[int]
    published: str
    problems: dict[str, list[str]]

    @property
    def ok(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        groups = f" of {self.groups:,} contents" if self.groups < self.items else ""
        lines = [f"{self.labels}: {self.items:,} items{groups}; form: {self.form}; files below {self.root}"]
        if self.splits:
            lines.append("  splits: " + ", ".join(f"{name or '(none)'} {n:,}" for name, n in self.splits.items()))
        if self.published:
            lines.append(f"  {self.published}")
        if self.items:
            lines.append("  labels: " + ", ".join(f"{name} {value:.4g}" for name, value in self.scale.items()))
            width = (self.scale["max"] - self.scale["min"]) / BINS
            for k, n in enumerate(self.histogram if width else []):
                bar = "#" * math.ceil(40 * n / max(self.histogram))
                lines.append(f"  {self.scale['min'] + k * width:10.4g}  {n:7,}  {bar}".rstrip())
        for kind, cases in self.problems.items():
            lines.append(f"{kind}: {len(cases):,}")
            lines += [f"  {printable(case)}" for case in cases[:SHOWN]]
            if len(cases) > SHOWN:
                lines.append(f"  and {len(cases) - SHOWN:,} more")
        return "\n".join(
            [*lines, "no problem found" if self.ok else f"{sum(map(len, self.problems.values())):,} problems"]
        )


def check(
    labels: str | os.PathLike,
    root: str | os.PathLike | None = None,
    *,
    label: str = "",
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    limits: Limits | None = None,
) -> Report:
    """Check a label file and every file that it names.

    root, label: as in `read_labels`
    workers: files opened at the same time; None is the number of cores, at most 8
    progress: called with files done and files in all
    limits: what a file may cost; None is `Limits()`

    Reports bad lines; missing files; files that cannot be read (of a video the first and the last frame are decoded,
    which finds files cut short); paths and contents that come twice (files of equal size are compared by SHA-256); and
    contents that lie in more than one of the file's own splits, by group and by content. `LabelError` only where no
    line can be made out.
    """
    parsed = parse_labels(labels, root, label=label)
    items = parsed.items
    problems = {"bad lines": parsed.problems, "labels": [], "missing": [], "unreadable": []}
    if len(items) > 1 and len({item.mos for item in items}) == 1:
        problems["labels"] = [f"all {len(items)} labels are {items[0].mos:g}: there is nothing to learn or to compare"]

    lines: dict[str, list[int]] = {}
    homes: dict[str, list[Item]] = {}
    for item, line in zip(items, parsed.lines):
        lines.setdefault(path_key(item.path), []).append(line)
        homes.setdefault(path_key(item.path), []).append(item)
    problems["double paths"] = [
        f"{path}: lines {', '.join(map(str, numbers))}" for path, numbers in lines.items() if len(numbers) > 1
    ]

    present = [path for path in homes if is_url(path) or os.path.exists(path)]
    missing = homes.keys() - set(present)
    problems["missing"] = [f"{path}: line {lines[path][0]}" for path in homes if path in missing]
    size_of = {path: os.path.getsize(path) for path in present if os.path.isfile(path)}
    alike = Counter(size_of.values())
    digests: dict[str, list[str]] = {}
    workers = workers or min(8, os.cpu_count() or 1)
    looks = ahead(
        present,
        lambda path, ticket: _look(path, alike[size_of.get(path, -1)] > 1, ticket, limits or Limits()),
        workers=workers,
        jobs_ahead=2 * workers,
        items_ahead=1,
    )
    done = 0
    with closing(looks):
        for path, found in looks:
            if isinstance(found, Ended):
                done += 1
                if found.error is not None:
                    problems["unreadable"].append(f"{path}: {reason(found.error)}")
                if progress:
                    progress(done, len(present))
            elif isinstance(found, str):
                digests.setdefault(found, []).append(path)
    same = [paths for paths in digests.values() if len(paths) > 1]
    problems["double contents"] = [_double_content(paths, homes) for paths in same]

    splits = dict(Counter(item.split for item in items))
    if set(splits) <= {""}:
        splits = {}
    by_split = {name: [item for item in items if item.split == name] for name in splits if name}
    problems["leakage"] = [f"{group}: in {', '.join(names)}" for group, names in leakage(by_split).items()]
    for paths in same:
        names = {item.split: None for path in paths for item in homes[path] if item.split}
        if len(names) > 1:
            problems["leakage"].append(f"{' = '.join(paths)}: the same file in {', '.join(names)}")
    return Report(
        os.fsdecode(labels),
        os.path.dirname(os.fsdecode(labels)) or "." if root is None else os.fsdecode(root),
        parsed.form,
        len(items),
        len({item.group for item in items}),
        splits,
        *_scale([item.mos for item in items]),
        _published(parsed.form, len(items)),
        {kind: cases for kind, cases in problems.items() if cases},
    )


def _look(path: str, compare: bool, ticket: Ticket, limits: Limits) -> Iterator[str]:
    """The SHA-256 of a file, where `compare` asks for it. An error says why the file cannot be read."""
    from sama.decode import open_video
    from sama.decode.images import read_image
    from sama.decode.packets import check_file
    from sama.files import IMAGE_SUFFIXES, suffix

    guard = ticket.guard = Guard(path, limits, reserve=ticket.hold)
    if guard.find_content() is None:
        check_file(path)  # or a device would be read without end
    if compare:
        with open(path, "rb") as file:
            yield hashlib.file_digest(file, "sha256").hexdigest()
    if suffix(path) in IMAGE_SUFFIXES:
        read_image(path, max_pixels=limits.image_pixels, content=guard.content)
    else:
        with open_video(path, threads=1, guard=guard) as video:  # the same answer every time for a damaged file
            for _ in video.frames([0, video.info.num_frames - 1]):
                pass


def _double_content(paths: list[str], homes: dict[str, list[Item]]) -> str:
    labels = [f"{path} ({homes[path][0].mos:g})" for path in paths]
    parted = len({homes[path][0].group for path in paths}) > 1
    warning = "; their groups differ, so that a random split can part them" if parted else ""
    return f"{' = '.join(labels)}{warning}"


def _scale(labels: list[float]) -> tuple[dict[str, float], list[int]]:
    import numpy as np

    if not labels:
        return {}, []
    values = np.array(labels)
    scale = {"min": values.min(), "max": values.max(), "mean": values.mean(), "deviation": values.std()}
    counts, _ = np.histogram(values, BINS, (values.min(), values.max()) if np.ptp(values) else None)
    return {name: float(value) for name, value in scale.items()}, counts.tolist()


def _published(form: str, items: int) -> str:
    sets = PUBLISHED.get(form, {})
    exact = [name for name, n in sets.items() if n == items]
    if exact:
        return f"{items:,} items: as many as published for {exact[0]}"
    return f"published: {', '.join(f'{name} {n:,}' for name, n in sets.items())}; here {items:,}" if sets else ""
