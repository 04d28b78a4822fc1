"""Label files: the items that they list, and how those are split for training and testing.

    items = read_labels("labels_test.txt", "LSVQ/")          # every form below, told from its content
    train, test = protocol_split(items, k=0)                 # one of the protocol's random 80/20 splits
    train, val = named_split(read_labels("mine.csv"))        # by the file's own column `split`
    items = read_labels("mine.csv", label="psnr_hvs")        # another column as the label

| set | form |
|---|---|
| LSVQ, KoNViD-1k, LIVE-VQC, YouTube-UGC | no header; `path, duration or -1, fps or -1, mos` |
| KonIQ-10k | CSV with a header; `image_name`, `MOS_zscore` |
| SPAQ | no header; `name score`, white space between |
| KADID-10k | CSV with a header; `dist_img, ref_img, dmos, var`, where a higher dmos is better |
| your own | CSV with a header; `path,mos`, and if you like `content` (or `group`), `split`, further columns |
| `sama corpus` | CSV with a header; `path,vmaf`, further columns, any of which can be the label |

A CSV may be separated by comma, semicolon or tab. Blank lines are skipped; UTF-8 with or without BOM, UTF-16 with one.
"""

from __future__ import annotations

import codecs
import csv
import math
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

from sama.errors import InputError, LabelError, MissingFileError
from sama.storage import is_url

PATHS = ("path", "file", "filename", "file_name", "name", "video", "video_name", "image", "image_name", "dist_img")
LABELS = ("mos", "mos_zscore", "label", "vmaf")
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

    path: the entry of the label file joined to the root, so that it can be opened
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


def read_labels(
    path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None, *, label: str = ""
) -> list[Item]:
    """The items of a label file of any known form, in its order.

    root: the folder that its entries are relative to; None is the label file's own folder
    label: the column of a CSV to take as the label, whatever its case; "" is the one that its form tells
    The first bad line is a `LabelError` with its number, and so are a file without any item, and one path with two
    different labels. A path that comes twice with one label is kept twice; `check` reports it.
    """
    labels = parse_labels(path, root, label=label)
    if labels.problems:
        more = f" (and {len(labels.problems) - 1} more bad lines)" if len(labels.problems) > 1 else ""
        raise LabelError(labels.problems[0] + more)
    return labels.items


def protocol_split(items: Sequence[Item], k: int, train_share: float = 0.8) -> tuple[list[Item], list[Item]]:
    """The protocol's random split number k, as (train, test): the groups in order of first appearance, shuffled by
    `random.Random(123 * k)`; the first int(train_share * groups) are for training.

    Where every item is a group of its own, as in all sets but KADID-10k, that is a shuffle of the items. Items come in
    the order of the shuffled groups. `InputError` where one side would be empty.
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

    `InputError` where one of the two does not occur, or a group lies in both.
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
    """The items of one split of the file's own; `InputError`, naming the known ones, where there are none."""
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
class ParsedLabels:
    """A parsed label file: its form in words, the good items with their line numbers, and the problems of bad lines."""

    form: str
    items: list[Item]
    lines: list[int]
    problems: list[str]


class _LineError(ValueError):
    """One bad line: what was got and what was expected."""


def parse_labels(
    path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None, *, label: str = ""
) -> ParsedLabels:
    """Parse a label file of any known form and collect the problems of its lines instead of raising at the first.

    `LabelError` where no line can be made out. Parameters as in `read_labels`.
    """
    name = os.fsdecode(path)
    text = _text(name)
    root = os.path.dirname(name) if root is None else os.fsdecode(root)
    first = next((n for n, line in enumerate(text) if line.strip()), None)
    if first is None:
        raise LabelError(f"{name}: the file is empty, expected lines with a path and a label")
    form, rows = _rows(name, text, first, label)
    labels = ParsedLabels(form, [], [], [])
    seen: dict[str, tuple[int, float]] = {}
    for number, row in rows:
        try:
            entry = row()
            item = _item(root, **entry)
        except _LineError as error:
            labels.problems.append(f"{name}, line {number}: {error}")
            continue
        before, known = seen.setdefault(path_key(item.path), (number, item.mos))
        if known != item.mos:
            labels.problems.append(
                f"{name}, line {number}: got the label {item.mos:g} for {entry['path']}, "
                f"which has {known:g} on line {before}; expected one label a path"
            )
            continue
        labels.items.append(item)
        labels.lines.append(number)
    if not labels.items and not labels.problems:
        raise LabelError(f"{name}: a header and no line below it, expected lines with a path and a label")
    return labels


def _text(name: str) -> list[str]:
    """The lines of a text file; bytes that are no UTF-8 are kept as in file names."""
    if not os.path.exists(name):
        raise MissingFileError(name)
    if not os.path.isfile(name):
        kind = "a folder" if os.path.isdir(name) else "no regular file (a pipe, a socket or a device)"
        raise LabelError(f"{name}: got {kind}, expected a label file")
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


def _rows(
    name: str, text: list[str], first: int, label: str
) -> tuple[str, Iterable[tuple[int, Callable[[], dict[str, Any]]]]]:
    """The form in words, and pairs of a line number and a function that gives its entry or raises `_LineError`."""
    line = text[first]
    for delimiter in ",;\t":
        try:
            header = [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))]
        except csv.Error as error:
            raise LabelError(f"{name}, line {first + 1}: got a line that is no CSV: {error}") from error
        lower = [cell.lower() for cell in header]
        if len(header) > 1 and (set(lower) & {*PATHS, *LABELS, "dmos"}) and not any(map(_is_number, header)):
            form, columns = _columns(name, first + 1, header, lower, label)
            return form, _csv_rows(text, first, delimiter, header, columns)
    if label:
        raise LabelError(f"{name}: got the column {label!r} to take as the label, but the file has no header")
    numbered = [(n, t) for n, t in enumerate(text, start=1) if t.strip()]
    if line.lstrip().startswith('"') or line.count(",") >= 3:
        return "path, duration, fps, mos", [(n, lambda t=t: _four_columns(t)) for n, t in numbered]
    *left, last = line.rsplit(None, 1)
    if left and _is_number(last) and not left[0].rstrip().endswith((",", ";")):
        return "name score", [(n, lambda t=t: _two_columns(t)) for n, t in numbered]
    raise LabelError(f"{name}, line {first + 1}: got {_short(line)}, which is of no known form; {FORMS}")


def _columns(name: str, number: int, header: list[str], lower: list[str], label: str) -> tuple[str, dict[str, int]]:
    """Which column is what, from a header. label: name of the label's column, "" for the usual ones"""
    if {"status", "score", "clips"} <= set(lower):
        raise LabelError(f"{name}, line {number}: got a table of scores that `sama score` wrote, expected labels")
    double = [cell for cell, n in Counter(lower).items() if n > 1 and cell]
    if double:
        raise LabelError(f"{name}, line {number}: got the column {double[0]!r} twice in the header, expected it once")
    if {"dist_img", "ref_img", "dmos"} <= set(lower):
        wanted: dict[str, tuple[str, ...]]
        form, wanted = "dist_img, ref_img, dmos (KADID-10k)", {"path": ("dist_img",), "mos": ("dmos",)}
    elif {"image_name", "mos_zscore"} <= set(lower):
        form, wanted = "image_name, MOS_zscore (KonIQ-10k)", {"path": ("image_name",), "mos": ("mos_zscore",)}
    else:
        form, wanted = "CSV with a header", {"path": PATHS, "mos": LABELS}
    if label:
        form, wanted = f"{form}, label {label}", wanted | {"mos": (label.lower(),)}
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


def _csv_rows(
    text: list[str], first: int, delimiter: str, header: list[str], columns: dict[str, int]
) -> Iterator[tuple[int, Callable[[], dict[str, Any]]]]:
    def entry(cells: list[str]) -> dict[str, Any]:
        if len(cells) != len(header):
            raise _LineError(
                f"got {len(cells)} columns in {_short(delimiter.join(cells))}, expected {len(header)} as in the "
                f"header; a name with a {delimiter!r} must be in quotes"
            )
        known: dict[str, Any] = {what: cells[k].strip() for what, k in columns.items()}
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
            yield number, partial(_raise, _LineError(f"got a line that is no CSV: {error}"))
            continue
        if any(cell.strip() for cell in cells):
            yield number, partial(entry, cells)


def _raise(error: Exception) -> NoReturn:
    raise error


def _four_columns(line: str) -> dict[str, Any]:
    """`path, duration, fps, mos`; commas in the path are allowed, with or without quotes."""
    if line.lstrip().startswith('"'):
        try:
            cells = next(csv.reader([line], skipinitialspace=True))
        except csv.Error as error:
            raise _LineError(f"got a line that is no CSV: {error}") from error
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


def _two_columns(line: str) -> dict[str, Any]:
    """`name score`; the name may have spaces."""
    cells = line.strip().rsplit(None, 1)
    if len(cells) != 2:
        raise _LineError(f"got {_short(line)}, expected a name, white space and a score")
    return {"path": cells[0], "mos": cells[1]}


def _item(
    root: str, path: str, mos: str, group: str = "", split: str = "", extra: Mapping[str, str] | None = None
) -> Item:
    if not path:
        raise _LineError("got an empty path, expected the name of a file")
    if not _is_number(mos) or not math.isfinite(float(mos)):
        raise _LineError(f"got {_short(mos) if mos else 'nothing'} for the label of {path}, expected a finite number")
    joined = os.path.join(root, path)
    return Item(joined, float(mos), group or path_key(joined), split, extra or {})


def path_key(path: str) -> str:
    """A normal form of the path, so that two spellings of one path are equal."""
    return path if is_url(path) else os.path.normpath(path)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell  # float("1_000") is 1000


def _short(line: str) -> str:
    line = line.strip()
    return repr(line if len(line) <= 80 else f"{line[:77]}...")
