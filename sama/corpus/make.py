"""The demo's sets: what each size holds, and `make`, which builds one.

Strengths are spread over each kind's range by a low-discrepancy sequence: no two files of a kind have the same, but for
collages by chance.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from sama.corpus.build import Recipe, Version, build
from sama.corpus.degrade import IMAGE_KINDS, KINDS, UNSEEN, Kind
from sama.corpus.label import DemoLabeller
from sama.corpus.sources import ALL_CONTENTS, COLLAGES, CONTENTS, LARGE_COLLAGES, SOURCES, files
from sama.errors import InputError

VERSION = 3  # of the sets: changed when the same settings give other files or labels
PLACES = {  # of the contents in the sequence that spreads strengths
    **{name: n for n, name in enumerate(CONTENTS)},
    **{name: n for n, name in enumerate(COLLAGES | LARGE_COLLAGES, start=100)},
}


@dataclass(frozen=True)
class Settings:
    """What a set of the demo holds.

    kinds: of degradation; all by default. versions: strengths of each kind for each content
    collages, large_collages: how many of them beside the contents, with one strength of each kind
    num_frames: of a clip. images: single frames of each content, this many, in place of clips; 0 for clips

    Raises `InputError` for unknown names, a content that is named twice, or more collages than there are.
    """

    contents: tuple[str, ...]
    kinds: tuple[str, ...] = ()
    versions: int = 1
    collages: int = 0
    large_collages: int = 0
    num_frames: int = 64
    images: int = 0
    version: int = field(default=VERSION, init=False)

    def __post_init__(self):
        if not self.kinds:
            object.__setattr__(self, "kinds", tuple(self.known_kinds))
        for given, known, listed in (
            (self.contents, ALL_CONTENTS, CONTENTS),
            (self.kinds, self.known_kinds, self.known_kinds),
        ):
            if unknown := [name for name in given if name not in known]:
                raise InputError(f"unknown {', '.join(unknown)}; known: {', '.join(listed)}")
        if len(set(self.names)) < len(self.names):
            raise InputError("a content is named twice, or is among the first collages besides")
        for number in (self.collages, self.large_collages):
            if not 0 <= number <= len(COLLAGES):
                raise InputError(f"collages must be 0 to {len(COLLAGES)}; got {number}")

    @property
    def known_kinds(self) -> dict[str, Kind]:
        return IMAGE_KINDS if self.images else KINDS

    @property
    def names(self) -> list[str]:
        """Of all contents, collages included."""
        return [*self.contents, *list(COLLAGES)[: self.collages], *list(LARGE_COLLAGES)[: self.large_collages]]

    def plan(self, name: str) -> list[Version]:
        """Every version of a content; in a set of images those of its first image, then of the next."""
        kinds = self.known_kinds
        split = ALL_CONTENTS[name].split
        strengths = self.versions if name in CONTENTS else 1
        versions = []
        for view in range(self.images or 1):
            view_name = f"{name}-{view}" if self.images else name
            versions.append(Version(view_name, view, "pristine", 0, 0.0))
            for kind in self.kinds:
                if kind in UNSEEN and split != "test":
                    continue
                place = (PLACES[name] + view * len(CONTENTS)) * 0.6180339887 + list(kinds).index(kind) * 0.7548776662
                for number in range(strengths):
                    strength = kinds[kind].strength((number + place % 1) / strengths, split)
                    versions.append(Version(view_name, view, kind, number, strength))
        return versions


SMALL = (
    *("rocket", "motorcycle-front", "flower", "hopper", "bunny-early", "retina-right", "ihc", "gravel", "aero"),
    *("hubble-left", "chelsea", "ascent", "astronaut", "coffee", "china", "bikes-fence"),
)
SIZES = {
    "small": Settings(SMALL, collages=48),
    "full": Settings(tuple(CONTENTS), versions=2, collages=600, large_collages=18),
}
IMAGE_SIZES = {"small": Settings(SMALL, images=3), "full": Settings(tuple(CONTENTS), versions=2, images=4)}


def make(
    folder: str | os.PathLike,
    *,
    size: Literal["small", "full"] | Settings = "small",
    images: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """The label file `labels.csv` of a set of the demo; the set is made first if it is not there (see `build`).

    size: "small" (16 contents and 48 collages, 716 clips), "full" (29, with two strengths of each kind, and 618
        collages, 7,443 clips; of images no collages) or `Settings`
    images: images in place of clips, where `size` is a name
    workers: contents made at the same time; the number of cores by default
    progress: called with (files done, files in all)

    Raises `InputError` where the folder holds another set, or for an unknown size; `MissingLibraryError` where a
    package with photographs is missing.
    """
    if isinstance(size, str):
        if size not in SIZES:
            raise InputError(f"unknown size {size!r}; known: {', '.join(SIZES)}")
        size = (IMAGE_SIZES if images else SIZES)[size]
    contents = [ALL_CONTENTS[name]._replace(varied=not size.images) for name in size.names]
    for source in dict.fromkeys(content.source for content in contents):
        files(SOURCES[source])  # before anything is written
    recipe = Recipe(
        asdict(size), contents, size.plan, size.known_kinds, DemoLabeller(), size.num_frames, images=size.images
    )
    return build(folder, recipe, workers=workers, progress=progress)
