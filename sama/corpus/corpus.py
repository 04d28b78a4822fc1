"""`sama corpus`: masters are judged, a plan is made and priced, and the set is built and labelled with VMAF.

The folder's `plan.json` holds all that was decided: the same command, or `--resume` alone, continues the same set after
any interruption, and a finished set says how it was made. `masters.csv` says of every file what became of it.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sama.corpus.budget import Prices, check_space, measure, total, within, workers_for
from sama.corpus.build import Recipe, Version, build
from sama.corpus.codec import Stream
from sama.corpus.contents import Box, MasterContent, StillContent, contents_of, names_of, with_splits
from sama.corpus.degrade import Kind, seeded
from sama.corpus.ffmpeg import Ffmpeg, find_ffmpeg
from sama.corpus.kinds import ENCODERS, kept, kinds
from sama.corpus.masters import SIZES, Master, join_groups, judge
from sama.corpus.stills import StillLabeller, require, still_kinds, write_still
from sama.corpus.stills import kept as kept_still
from sama.corpus.vmaf import METRICS, VmafLabeller
from sama.errors import InputError, MissingLibraryError
from sama.files import expand, printable, replace_file

VERSION = 1  # of the sets: changed when the same plan gives other files or labels
GOLDEN = 0.6180339887  # steps of this spread strengths evenly, however many there are
FACTS = ("width", "height", "frames", "master", "encoder", "settings", "bytes")

Bar = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


@dataclass(frozen=True)
class CorpusOptions:
    """What `sama corpus` is asked for; see its help.

    images: of each content, in place of clips; 0 for clips
    looks: share of the contents that get the look of a camera of their own
    """

    masters: Sequence[str]
    out: str
    versions: int = 16
    contents: int = 4
    frames: int = 64
    images: int = 0
    looks: float = 0.0
    sizes: Sequence[int] = SIZES
    kinds: Sequence[str] = ()
    unseen: Sequence[str] = ()
    metrics: Sequence[str] = tuple(METRICS)
    val: float = 0.15
    test: float = 0.15
    split_by: str = "master"
    total: int | None = None
    seed: int = 0
    hours: float | None = None
    gigabytes: float | None = None
    trust: bool = False
    resume: bool = False
    dry_run: bool = False
    workers: int | None = None
    ffmpeg: str | None = None

    def __post_init__(self):
        for name in ("versions", "contents", "frames", "total", "hours", "gigabytes", "workers"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"--{name} must be more than 0; got {value}")
        if self.images < 0:
            raise InputError(f"--images must be 1 or more, or left out for clips; got {self.images}")
        if not 0 <= self.looks <= 1:
            raise InputError(f"--looks must be a share, 0 to 1; got {self.looks}")
        if wrong := [size for size in self.sizes if not 360 <= size <= 2160]:
            raise InputError(f"--sizes must be 360 to 2160 rows; got {', '.join(map(str, wrong))}")
        if self.split_by not in ("master", "content"):
            raise InputError(f"--split-by must be master or content; got {self.split_by}")

    @property
    def request(self) -> dict[str, Any]:
        """What the plan depends on, as plain data."""
        told = {name: value for name, value in asdict(self).items() if name not in RESUMABLE}
        for name in ("images", "looks"):  # plans without them are older than these options
            if not told[name]:
                del told[name]
        return json.loads(json.dumps(told | {"version": VERSION}))

    @property
    def file_frames(self) -> int:
        """Frames of a file of the set."""
        return 1 if self.images else self.frames

    @property
    def content_frames(self) -> int:
        """Undegraded frames that are made of a content."""
        return self.images or self.frames

    @property
    def files(self) -> str:
        """What the files of the set are."""
        return "images" if self.images else "clips"


RESUMABLE = frozenset({"masters", "out", "resume", "dry_run", "workers", "ffmpeg"})


@dataclass(frozen=True)
class Plan:
    """What was decided for a set.

    request: options and masters that it was made for; masters: a row for each file, for `masters.csv`
    contents: with their splits; versions: by content
    """

    request: Mapping[str, Any]
    ffmpeg: str
    libvmaf: str
    masters: list[dict[str, Any]]
    contents: list[MasterContent]
    versions: dict[str, list[Version]]

    def as_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Plan | None:
        """A kept plan; None where there is none. `InputError` where it is damaged."""
        if not path.exists():
            return None
        try:
            kept = json.loads(path.read_text())
            make = StillContent if kept["request"].get("images") else MasterContent
            contents = [make(**content | {"box": Box(*content["box"])}) for content in kept["contents"]]
            versions = {name: [Version(*version) for version in made] for name, made in kept["versions"].items()}
            return cls(**kept | {"contents": contents, "versions": versions})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged: name another folder, or remove that one") from error


def make_corpus(options: CorpusOptions, say: Callable[[str], None], bar: Bar) -> Path | None:
    """Make the set that is asked for, or go on with it; its `labels.csv`, None after a dry run.

    say: prints a line; bar: makes a progress bar with a title
    """
    folder = Path(options.out)
    ffmpeg = find_ffmpeg(options.ffmpeg)
    plan = Plan.read(folder / "plan.json")
    if options.resume and not options.masters:
        if plan is None:
            raise InputError(f"{folder} holds no set to go on with: name masters")
        options = replace(options, **_asked(plan.request))
    if not options.masters:
        raise InputError("name masters: files or folders of undegraded videos and photographs")
    if find_spec("pyarrow") is None:
        raise MissingLibraryError("labels.parquet takes pyarrow: pip install 'sama-vqa[corpus]'")
    chosen = _chosen(options, ffmpeg)
    labeller = (StillLabeller if options.images else VmafLabeller)(ffmpeg, options.metrics)
    paths = masters_in(options.masters)
    request = options.request | {"masters": list(options.masters), "files": [_mark(path) for path in paths]}
    if plan is not None and plan.request != request:
        names = dict.fromkeys((*request, *plan.request))
        differing = [name for name in names if plan.request.get(name) != request.get(name)]
        raise InputError(
            f"{folder} holds a set, or the beginning of one, made with other {', '.join(differing)}: "
            f"`sama corpus --resume -o {folder}` goes on with that; or name another folder"
        )
    if plan is not None and (plan.ffmpeg, plan.libvmaf) != (ffmpeg.version, labeller.libvmaf):
        raise InputError(
            f"{folder} was begun with FFmpeg {plan.ffmpeg} and libvmaf {plan.libvmaf}, this is {ffmpeg.version} and "
            f"{labeller.libvmaf}: labels would differ; name another folder"
        )
    say(f"FFmpeg {ffmpeg.version}, libvmaf {labeller.libvmaf}: {ffmpeg.path}")
    if plan is None:
        plan = _decide(options, request, paths, ffmpeg, labeller, chosen, say, bar)
        if options.dry_run:
            say("dry run: nothing was written")
            return None
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / "masters.csv", _as_csv(plan.masters))
        replace_file(folder / "plan.json", json.dumps(plan.as_json(), indent=1).encode())
    else:
        say(f"{folder} goes on: {len(plan.contents)} contents, {_count(plan)} {options.files}")
        if options.dry_run:
            return None
    recipe = _recipe(options, plan.as_json(), plan.contents, plan.versions, chosen, labeller, ffmpeg)
    workers = options.workers or workers_for(plan.contents, options.content_frames)
    with bar(options.files) as progress:
        labels = build(folder, recipe, workers=workers, progress=progress)
    write_parquet(labels)
    failures = folder / "failures.json"
    if failures.exists():
        failed = json.loads(failures.read_text())
        say(f"{len(failed)} {options.files} could not be made, see {failures}; the first: {failed[0]['failed']}")
    return labels


def _asked(request: Mapping[str, Any]) -> dict[str, Any]:
    """The options in a kept request."""
    return {name: value for name, value in request.items() if name in CorpusOptions.__dataclass_fields__}


def masters_in(arguments: Sequence[str]) -> list[str]:
    """The files that arguments name, links to a file that comes already left out."""
    seen, paths = set(), []
    for path in expand(arguments):
        real = os.path.realpath(path)
        if real not in seen:
            seen.add(real)
            paths.append(path)
    if not paths:
        raise InputError(f"no videos or images in {' '.join(arguments)}")
    return paths


def _mark(path: str) -> list[Any]:
    """What shows that a file is still the same: its name and size."""
    return [os.path.basename(path), os.path.getsize(path) if os.path.isfile(path) else -1]


def _decide(
    options: CorpusOptions,
    request: Mapping[str, Any],
    paths: Sequence[str],
    ffmpeg: Ffmpeg,
    labeller: VmafLabeller,
    chosen: Mapping[str, Kind],
    say: Callable[[str], None],
    bar: Bar,
) -> Plan:
    """Judge the masters, draw contents and versions, price them and keep what fits the budget."""
    masters = judge_all(paths, options, bar)
    contents = draw_contents(masters, options)
    made: dict[str, int] = {}
    for content in contents:
        made[content.path] = made.get(content.path, 0) + 1
    for master in masters:
        if not master.refused and not made.get(master.path):
            master.refused = f"gives no content of {', '.join(f'{size}p' for size in options.sizes)}"
        say(describe(master, made.get(master.path, 0)))
    used = sum(not master.refused for master in masters)
    say(f"{used} of {len(masters)} files are masters; {len(contents)} contents")
    if not contents:
        raise InputError(f"not one of {len(masters)} files is a master: see above (--trust takes what is refused)")
    versions = draw_versions(contents, chosen, options)
    workers = options.workers or workers_for(contents, options.content_frames)
    recipe = _recipe(options, {}, contents, versions, chosen, labeller, ffmpeg)
    by_pixels = sorted(contents, key=lambda content: content.width * content.height)
    with bar("measuring a sample") as progress:
        prices = measure(recipe, by_pixels[len(by_pixels) // 2], workers, progress)
    contents = _afford(contents, versions, prices, workers, options, say)
    contents = _with_splits(contents, options)
    versions = draw_versions(contents, chosen, options)
    rows = [master.report() | {"contents": made.get(master.path, 0)} for master in masters]
    plan = Plan(request, ffmpeg.version, labeller.libvmaf, rows, contents, versions)
    splits = {split: sum(content.split == split for content in contents) for split in ("train", "val", "test")}
    say(f"contents: {', '.join(f'{split} {count}' for split, count in splits.items())}; {_count(plan)} {options.files}")
    if not options.dry_run:
        cost = total([prices.cost(c, versions[c.name], options.file_frames, workers) for c in contents])
        check_space(Path(options.out), cost.size)
    return plan


def judge_all(paths: Sequence[str], options: CorpusOptions, bar: Bar) -> list[Master]:
    """All files, judged, in their order."""
    masters = []
    with bar("looking at masters") as progress, ThreadPoolExecutor(options.workers or os.cpu_count()) as pool:
        jobs = [pool.submit(judge, path, num_frames=options.frames, trust=options.trust) for path in paths]
        try:
            for done, job in enumerate(jobs, start=1):
                masters.append(job.result())
                progress(done, len(paths))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return masters


def draw_contents(masters: Sequence[Master], options: CorpusOptions) -> list[MasterContent]:
    """The contents of all masters, in a random order in which each master gives its first before any its second."""
    good = [master for master in masters if not master.refused]
    groups, names = join_groups(good), names_of([master.path for master in good])
    rounds: list[tuple[int, float, MasterContent]] = []
    for master in good:
        name = names[master.path]
        drawn = contents_of(
            master, name, names[groups[master.path]], most=options.contents, sizes=options.sizes, seed=options.seed
        )
        rng = seeded(options.seed, name, "order")
        for turn, place in enumerate(rng.permutation(len(drawn))):
            rounds.append((turn, rng.random(), drawn[place]))
    contents = [content for _, _, content in sorted(rounds, key=lambda entry: entry[:2])]
    if options.images:
        contents = [StillContent(**vars(content)) for content in contents]
    share = options.looks
    looks = [math.floor((n + 1) * share) > math.floor(n * share) for n in range(len(contents))]
    contents = [replace(content, look=look) for content, look in zip(contents, looks)]
    return [replace(c, group=c.name) for c in contents] if options.split_by == "content" else contents


def draw_versions(
    contents: Sequence[MasterContent], chosen: Mapping[str, Kind], options: CorpusOptions
) -> dict[str, list[Version]]:
    """The versions of each content: kinds dealt in turn from a shuffled deck, strengths spread over their range."""
    rng = seeded(options.seed, "versions")
    offsets = {name: seeded(options.seed, name, "strength").random() for name in chosen}
    counts = dict.fromkeys(chosen, 0)
    decks: dict[bool, list[str]] = {True: [], False: []}
    versions: dict[str, list[Version]] = {}
    for content in contents:
        test = content.split == "test"
        names = [name for name in chosen if test or name not in options.unseen]
        versions[content.name] = []
        for view in range(options.images or 1):
            title = f"{content.name}-{view}" if options.images else content.name
            versions[content.name].append(Version(title, view, "pristine", 0, 0.0))
            numbers = dict.fromkeys(names, 0)
            for _ in range(options.versions):
                decks[test] = decks[test] or [names[place] for place in rng.permutation(len(names))]
                name = decks[test].pop()
                u = (offsets[name] + counts[name] * GOLDEN) % 1
                counts[name] += 1
                strength = chosen[name].strength(u, content.split)
                versions[content.name].append(Version(title, view, name, numbers[name], strength))
                numbers[name] += 1
    return versions


def _with_splits(contents: Sequence[MasterContent], options: CorpusOptions) -> list[MasterContent]:
    return with_splits(contents, options.val, options.test, options.seed)


def _afford(
    contents: list[MasterContent],
    versions: Mapping[str, list[Version]],
    prices: Prices,
    workers: int,
    options: CorpusOptions,
    say: Callable[[str], None],
) -> list[MasterContent]:
    """The contents that fit the budget, said with what they cost. `InputError` where not one does."""
    costs = [prices.cost(content, versions[content.name], options.file_frames, workers) for content in contents]
    whole = total(costs)
    say(
        f"measured on a sample: all of it takes about {whole} with {workers} workers "
        f"({prices.seconds['pristine']:.3f} s to write, read and label a megapixel of {options.files})"
    )
    count = min(within(costs, options.hours, options.gigabytes), options.total or len(costs))
    if not count:
        raise InputError(f"not one content fits the budget; the first costs {costs[0]}")
    if count < len(contents):
        say(
            f"chosen: {count} of {len(contents)} contents, about {total(costs[:count])} "
            f"(--total {count} chooses the same again)"
        )
    return contents[:count]


def _recipe(
    options: CorpusOptions,
    settings: Mapping[str, Any],
    contents: Sequence[MasterContent],
    versions: Mapping[str, list[Version]],
    chosen: Mapping[str, Kind],
    labeller: VmafLabeller,
    ffmpeg: Ffmpeg,
) -> Recipe:
    def facts(content: MasterContent, stream: Stream, path: Path) -> dict[str, Any]:
        written = " ".join(f"{key}={value}" for key, value in stream.options.items())
        values = (
            content.width,
            content.height,
            options.file_frames,
            os.path.basename(content.path),
            stream.codec,
            written,
        )
        return dict(zip(FACTS, (*values, path.stat().st_size)))

    def write(path: str, stream: Stream) -> None:
        ffmpeg.write_video(path, stream)

    keep = kept_still if options.images else kept
    return Recipe(
        settings,
        contents,
        lambda name: versions[name],
        {"pristine": Kind(0, 0, "", lambda frames, strength, name: keep(frames)), **chosen},
        labeller,
        options.content_frames,
        options.images,
        write=write,
        write_still=write_still,
        facts=facts,
        fact_columns=FACTS,
        stop=ffmpeg.stop,
        tolerant=True,
    )


def _chosen(options: CorpusOptions, ffmpeg: Ffmpeg) -> dict[str, Kind]:
    """The kinds of a set by name. `InputError` for an unknown name, `MissingLibraryError` where an encoder is
    missing."""
    known = still_kinds(ffmpeg) if options.images else kinds(ffmpeg)
    for name in (*options.kinds, *options.unseen):
        if name not in known:
            raise InputError(f"unknown kind {name!r} of {options.files}; known: {', '.join(known)}")
    chosen = {name: kind for name, kind in known.items() if name in {*(options.kinds or known), *options.unseen}}
    if options.images:
        require(chosen, ffmpeg)
    else:
        ffmpeg.require(ENCODERS if not options.kinds else _encoders(chosen))
    return chosen


def _encoders(chosen: Mapping[str, Kind]) -> set[str]:
    """What a choice of kinds may need: all, but for those of kinds that name theirs."""
    own = {
        **{"x264": "libx264", "x264-rate": "libx264", "x265": "libx265", "vp9": "libvpx-vp9", "vp9-rate": "libvpx-vp9"},
        **{"svtav1": "libsvtav1", "mpeg2": "mpeg2video", "mpeg2-rate": "mpeg2video", "lost-mpeg2": "mpeg2video"},
        **{"mpeg4": "mpeg4", "mjpeg": "mjpeg", "noise+x264": "libx264", "blur+x264": "libx264"},
    }
    mixing = ("ladder", "encoder", "transcodes", "grain+")
    if any(name.startswith(mixing) for name in chosen):
        return set(ENCODERS)
    return {own[name] for name in chosen if name in own} | {"libx264"}


def describe(master: Master, contents: int) -> str:
    """A line about a file."""
    path = printable(master.path)
    if master.refused:
        return f"refused  {path}: {printable(master.refused)}"
    seen = f"; {'; '.join(master.notes)}" if master.notes else ""
    shrink = f", shrunk {master.shrink:.2f} times at least" if master.shrink > 1 else ""
    return f"master   {path}: {master.kind} of {master.width}x{master.height}{shrink}, {contents} contents{seen}"


def _count(plan: Plan) -> int:
    return sum(len(plan.versions[content.name]) for content in plan.contents)


def _as_csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode(errors="surrogateescape")


def write_parquet(labels: Path) -> Path:
    """`labels.parquet` beside a `labels.csv`: the same rows, columns of numbers as float64 or int64."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    target = labels.with_suffix(".parquet")
    with open(labels, newline="") as file:
        rows = list(csv.DictReader(file))
    table = pa.table({name: _typed([row[name] for row in rows]) for name in rows[0]})
    content = io.BytesIO()
    pq.write_table(table, content)
    replace_file(target, content.getvalue())
    return target


def _typed(cells: Sequence[str]) -> list[Any]:
    for convert in (int, float):
        try:
            return [convert(cell) if cell else None for cell in cells]
        except ValueError:
            continue
    return list(cells)
