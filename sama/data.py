"""Label files: what is in them, how they are split, and whether they and their files can be trusted.

    items = read_labels("labels_test.txt", "LSVQ/")          # every form below, told from its content
    train, test = protocol_split(items, k=0)                 # one of the protocol's random 80/20 splits
    train, val = named_split(read_labels("mine.csv"))        # by the file's own column `split`
    print(check("mine.csv", "videos/"))                      # missing, unreadable, double, leaking, ...

| set | form |
|---|---|
| LSVQ, KoNViD-1k, LIVE-VQC, YouTube-UGC | no header; `path, duration or -1, fps or -1, mos` |
| KonIQ-10k | CSV with a header; `image_name`, `MOS_zscore` |
| SPAQ | no header; `name score`, white space between |
| KADID-10k | CSV with a header; `dist_img, ref_img, dmos, var`, where a higher dmos is better |
| your own | CSV with a header; `path,mos`, and what you like of `content` (or `group`), `split`, anything else |

A CSV may be separated by comma, semicolon or tab. Blank lines are skipped; UTF-8 with or without BOM, UTF-16 with one.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import math
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from sama.errors import InputError, LabelError
from sama.files import printable

PATHS = ("path", "file", "filename", "file_name", "name", "video", "video_name", "image", "image_name", "dist_img")
LABELS = ("mos", "mos_zscore", "label")
GROUPS = ("content", "group", "ref_img")
SPLITS = ("split", "set")
FORMS = """known forms:
  path, duration or -1, fps or -1, mos     (LSVQ, KoNViD-1k, LIVE-VQC, YouTube-UGC; no header)
  name score                               (SPAQ; white space, no header)
  a CSV with the header path,mos           (and, if you like, content, split, others)
  the CSV files of KonIQ-10k (image_name, ..., MOS_zscore) and KADID-10k (dist_img, ref_img, dmos, var)"""


@dataclass(frozen=True)
class Item:
    """One labelled file.

    path: as it can be opened: the file's entry, joined to the root
    mos: the label, a finite number on the data set's own scale, higher is better
    group: content that must not lie on both sides of a split: KADID's reference image, column `content` or `group`;
        else the path
    split: column `split` or `set`, e.g. train, val, test; else empty
    extra: the other columns of a CSV, as text
    """

    path: str
    mos: float
    group: str
    split: str = ""
    extra: Mapping[str, str] = field(default_factory=dict, hash=False)


def read_labels(path: str | os.PathLike, root: str | os.PathLike | None = None) -> list[Item]:
    """The items of a label file of any known form, in its order.

    root: the folder that its entries are relative to; None is the label file's own folder
    The first bad line is a `LabelError` with its number, and so are a file without any item, and one path with two
    different labels. A path that comes twice with one label is kept twice; `check` reports it.
    """
    labels = _parse(path, root)
    if labels.problems:
        more = f" (and {len(labels.problems) - 1} more bad lines)" if len(labels.problems) > 1 else ""
        raise LabelError(labels.problems[0] + more)
    return labels.items


def protocol_split(items: Sequence[Item], k: int, train_share: float = 0.8) -> tuple[list[Item], list[Item]]:
    """The protocol's random split number k, as (train, test): the groups in order of first appearance, shuffled by
    `random.Random(123 * k)`; the first int(train_share * groups) are for training.

    Where every item is a group of its own, as in all sets but KADID-10k, that is a shuffle of the items. Items come in
    the order of the shuffled groups. ValueError where one side would be empty.
    """
    members: dict[str, list[Item]] = {}
    for item in items:
        members.setdefault(item.group, []).append(item)
    groups = list(members)
    random.Random(123 * k).shuffle(groups)
    first = int(train_share * len(groups))
    if not 0 < first < len(groups):
        raise InputError(f"{len(groups)} groups cannot be split with {train_share:g} of them for training")
    train, test = ([item for group in side for item in members[group]] for side in (groups[:first], groups[first:]))
    return train, test


def named_split(items: Sequence[Item], train: str = "train", val: str = "val") -> tuple[list[Item], list[Item]]:
    """The items whose column `split` says `train`, and those where it says `val`.

    ValueError where one of the two does not occur, or a group lies in both.
    """
    sides = with_split(items, train), with_split(items, val)
    leaking = leakage(dict(zip((train, val), sides)))
    if leaking:
        raise InputError(
            f"{len(leaking)} contents lie in both {train!r} and {val!r}, so that the result would flatter; the first: "
            f"{next(iter(leaking))}"
        )
    return sides


def with_split(items: Sequence[Item], name: str) -> list[Item]:
    """The items of one split of the file's own; ValueError, naming the known ones, where there are none."""
    chosen = [item for item in items if item.split == name]
    if not chosen:
        known = ", ".join(f"{split!r} ({n})" for split, n in Counter(i.split for i in items if i.split).items())
        raise InputError(f"no item of the label file is in split {name!r}; its splits: {known or 'it has none'}")
    return chosen


def leakage(splits: Mapping[str, Iterable[Item]]) -> dict[str, tuple[str, ...]]:
    """Groups that lie in more than one split, and the names of those."""
    homes: dict[str, dict[str, None]] = {}
    for name, items in splits.items():
        for item in items:
            homes.setdefault(item.group, {})[name] = None
    return {group: tuple(names) for group, names in homes.items() if len(names) > 1}


@dataclass
class _Labels:
    """A parsed file: `form` in words, good items with their line numbers, and what is wrong with the other lines."""

    form: str
    items: list[Item]
    lines: list[int]
    problems: list[str]


class _LineError(ValueError):
    """got and expected of one line."""


def _parse(path: str | os.PathLike, root: str | os.PathLike | None) -> _Labels:
    name = os.fsdecode(path)
    text = _text(name)
    root = os.path.dirname(name) if root is None else os.fsdecode(root)
    first = next((n for n, line in enumerate(text) if line.strip()), None)
    if first is None:
        raise LabelError(f"{name}: the file is empty, expected lines with a path and a label")
    form, rows = _rows(name, text, first)
    labels = _Labels(form, [], [], [])
    seen: dict[str, tuple[int, float]] = {}
    for number, row in rows:
        try:
            entry = row()
            item = _item(root, **entry)
        except _LineError as error:
            labels.problems.append(f"{name}, line {number}: {error}")
            continue
        before, label = seen.setdefault(_key(item.path), (number, item.mos))
        if label != item.mos:
            labels.problems.append(
                f"{name}, line {number}: got the label {item.mos:g} for {entry['path']}, "
                f"which has {label:g} on line {before}; expected one label a path"
            )
            continue
        labels.items.append(item)
        labels.lines.append(number)
    if not labels.items and not labels.problems:
        raise LabelError(f"{name}: a header and no line below it, expected lines with a path and a label")
    return labels


def _text(name: str) -> list[str]:
    """The lines of a text file; bytes that are no UTF-8 are kept as in file names."""
    with open(name, "rb") as file:
        data = file.read()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            text = data.decode("utf-16")
        except UnicodeDecodeError as error:
            raise LabelError(f"{name}: begins as UTF-16 but is none ({error})") from error
    elif b"\0" in data:
        raise LabelError(
            f"{name}: got a binary file (a zero byte in line {data[: data.index(0)].count(10) + 1}), {FORMS}"
        )
    else:
        text = data.decode("utf-8-sig", "surrogateescape")
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _rows(name: str, text: list[str], first: int):
    """The form in words, and pairs of a line number and a function that gives its entry or raises `_LineError`."""
    line = text[first]
    for delimiter in ",;\t":
        header = [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))]
        lower = [cell.lower() for cell in header]
        if len(header) > 1 and (set(lower) & {*PATHS, *LABELS, "dmos"}) and not any(map(_is_number, header)):
            form, columns = _columns(name, first + 1, header, lower)
            return form, _csv_rows(text, first, delimiter, header, columns)
    numbered = [(n, t) for n, t in enumerate(text, start=1) if t.strip()]
    if line.lstrip().startswith('"') or line.count(",") >= 3:
        return "path, duration, fps, mos", [(n, lambda t=t: _four_columns(t)) for n, t in numbered]
    *left, last = line.rsplit(None, 1)
    if left and _is_number(last) and not left[0].rstrip().endswith((",", ";")):
        return "name score", [(n, lambda t=t: _two_columns(t)) for n, t in numbered]
    raise LabelError(f"{name}, line {first + 1}: got {_short(line)}, which is of no known form; {FORMS}")


def _columns(name: str, number: int, header: list[str], lower: list[str]) -> tuple[str, dict[str, int]]:
    """Which column is what, from a header."""
    if {"status", "score", "clips"} <= set(lower):
        raise LabelError(f"{name}, line {number}: got a table of scores that `sama score` wrote, expected labels")
    double = [cell for cell, n in Counter(lower).items() if n > 1 and cell]
    if double:
        raise LabelError(f"{name}, line {number}: got the column {double[0]!r} twice in the header, expected it once")
    if {"dist_img", "ref_img", "dmos"} <= set(lower):
        form, wanted = "dist_img, ref_img, dmos (KADID-10k)", {"path": ("dist_img",), "mos": ("dmos",)}
    elif {"image_name", "mos_zscore"} <= set(lower):
        form, wanted = "image_name, MOS_zscore (KonIQ-10k)", {"path": ("image_name",), "mos": ("mos_zscore",)}
    else:
        form, wanted = "CSV with a header", {"path": PATHS, "mos": LABELS}
    columns = {}
    for what, names in (wanted | {"group": GROUPS, "split": SPLITS}).items():
        found = next((known for known in names if known in lower), None)
        if found is not None:
            columns[what] = lower.index(found)
        elif what in wanted:
            raise LabelError(
                f"{name}, line {number}: got the header {','.join(header)}, expected a column for the {what}: "
                f"{' or '.join(names)}"
            )
    return form, columns


def _csv_rows(text: list[str], first: int, delimiter: str, header: list[str], columns: dict[str, int]):
    def entry(cells: list[str]) -> dict:
        if len(cells) != len(header):
            raise _LineError(
                f"got {len(cells)} columns in {_short(delimiter.join(cells))}, expected {len(header)} as in the "
                f"header; a name with a {delimiter!r} must be in quotes"
            )
        known = {what: cells[k].strip() for what, k in columns.items()}
        rest = {title: cell.strip() for k, (title, cell) in enumerate(zip(header, cells)) if k not in columns.values()}
        return known | {"extra": rest}

    reader = csv.reader((line + "\n" for line in text[first + 1 :]), delimiter=delimiter, skipinitialspace=True)
    while True:
        number = first + 2 + reader.line_num  # where the next record begins
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, lambda error=error: _raise(_LineError(f"got a line that is no CSV: {error}"))
            continue
        if any(cell.strip() for cell in cells):
            yield number, lambda cells=cells: entry(cells)


def _raise(error: Exception):
    raise error


def _four_columns(line: str) -> dict:
    """`path, duration, fps, mos`; commas in the path are allowed, with or without quotes."""
    if line.lstrip().startswith('"'):
        cells = next(csv.reader([line], skipinitialspace=True))
    else:
        cells = line.rsplit(",", 3)
    cells = [cell.strip() for cell in cells]
    if len(cells) != 4:
        raise _LineError(
            f"got {len(cells)} columns in {_short(line)}, expected four: path, duration or -1, fps or -1, mos"
        )
    for what, cell in zip(("duration", "fps"), cells[1:]):
        if not _is_number(cell):
            raise _LineError(f"got {_short(cell)} for the {what}, expected a number or -1, in {_short(line)}")
    return {"path": cells[0], "mos": cells[3]}


def _two_columns(line: str) -> dict:
    """`name score`; the name may have spaces."""
    cells = line.strip().rsplit(None, 1)
    if len(cells) != 2:
        raise _LineError(f"got {_short(line)}, expected a name, white space and a score")
    return {"path": cells[0], "mos": cells[1]}


def _item(root: str, path: str, mos: str, group: str = "", split: str = "", extra: Mapping | None = None) -> Item:
    if not path:
        raise _LineError("got an empty path, expected the name of a file")
    if not _is_number(mos) or not math.isfinite(float(mos)):
        raise _LineError(f"got {_short(mos) if mos else 'nothing'} for the label of {path}, expected a finite number")
    joined = os.path.join(root, path)
    return Item(joined, float(mos), group or _key(joined), split, extra or {})


def _key(path: str) -> str:
    """The same for every way to write a path."""
    return os.path.normpath(path)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell  # float("1_000") is 1000


def _short(line: str) -> str:
    line = line.strip()
    return repr(line if len(line) <= 80 else f"{line[:77]}...")


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
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Look at a label file and at every file that it names.

    root: as in `read_labels`
    workers: files opened at the same time; None is the number of cores, at most 8
    progress: called with files done and files in all

    Bad lines; files that are missing; files that cannot be read (videos: their first and last frame, which finds those
    cut short); paths and contents that come twice (files of one size are compared by SHA-256); contents that lie in
    more than one of the file's own splits, by group and by content. `LabelError` only where no line can be made out.
    """
    parsed = _parse(labels, root)
    items = parsed.items
    problems = {"bad lines": parsed.problems, "labels": [], "missing": [], "unreadable": []}
    if len(items) > 1 and len({item.mos for item in items}) == 1:
        problems["labels"] = [f"all {len(items)} labels are {items[0].mos:g}: there is nothing to learn or to compare"]

    lines: dict[str, list[int]] = {}
    homes: dict[str, list[Item]] = {}
    for item, line in zip(items, parsed.lines):
        lines.setdefault(_key(item.path), []).append(line)
        homes.setdefault(_key(item.path), []).append(item)
    problems["double paths"] = [
        f"{path}: lines {', '.join(map(str, numbers))}" for path, numbers in lines.items() if len(numbers) > 1
    ]

    present = [path for path in homes if os.path.exists(path)]
    problems["missing"] = [f"{path}: line {lines[path][0]}" for path in homes if not os.path.exists(path)]
    size_of = {path: os.path.getsize(path) for path in present}
    alike = Counter(size_of.values())
    digests: dict[str, list[str]] = {}
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1), thread_name_prefix="check") as pool:
        looks = pool.map(lambda path: _look(path, alike[size_of[path]] > 1), present)
        for done, (path, (reason, digest)) in enumerate(zip(present, looks), start=1):
            if reason:
                problems["unreadable"].append(f"{path}: {reason}")
            if digest:
                digests.setdefault(digest, []).append(path)
            if progress:
                progress(done, len(present))
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


def _look(path: str, compare: bool) -> tuple[str, str]:
    """Why a file cannot be read, if so, and its SHA-256 if it is to be compared; whatever goes wrong is the reason."""
    from sama.decode import open_video
    from sama.decode.images import read_image
    from sama.errors import DecodeError
    from sama.files import IMAGE_SUFFIXES, suffix

    digest = ""
    try:
        if compare:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        if suffix(path) in IMAGE_SUFFIXES:
            read_image(path)
        else:
            with open_video(path) as video:
                for _ in video.frames([0, video.info.num_frames - 1]):
                    pass
    except DecodeError as error:
        return error.reason, digest
    except Exception as error:
        return f"{type(error).__name__}: {error}", digest
    return "", digest


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
