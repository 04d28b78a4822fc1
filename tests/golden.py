"""The vectors in `tests/data`, made by the published code, and the inputs they were made from (SPEC, section 6)."""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Case:
    """One sampler case: its settings, and the published output at 4,096 positions and as means."""

    kind: str
    settings: dict

    def __str__(self):
        s = self.settings
        frames = f"T{s['frames']}-" if "frames" in s else ""
        return f"{self.kind}-{s['id']}-{s['mode']}-{frames}{s['height']}x{s['width']}-{s['phase']}"

    def __getattr__(self, name):
        try:
            return self.settings[name]
        except KeyError:
            raise AttributeError(name) from None

    def array(self, name):
        return _archive(f"{self.kind}_samplers")[f"{self.settings['id']}_{name}"]

    @property
    def train(self):
        return self.phase == "train"

    @property
    def draws(self):
        return (self.array("rand_h"), self.array("rand_w")) if self.train else None

    def source(self):
        """uint8 [T, H, W, 3] of a video case, [H, W, 3] of an image case."""
        return _source(self.content, self.seed, self.settings.get("frames"), self.height, self.width)


@lru_cache
def _archive(name):
    with np.load(DATA / f"{name}.npz") as archive:
        return dict(archive)


@lru_cache(maxsize=1)  # tests of one case follow each other
def _source(content, *arguments):
    return {"noise": noise, "smooth": smooth}[content](*arguments)


def cases(kind):
    return [Case(kind, s) for s in json.loads((DATA / f"{kind}_samplers.json").read_text())]


def noise(seed, frames, height, width):
    shape = (height, width, 3) if frames is None else (frames, height, width, 3)
    return np.random.Generator(np.random.PCG64(seed)).integers(0, 256, shape, dtype=np.uint8)


def smooth(seed, frames, height, width):
    rng = np.random.Generator(np.random.PCG64(seed))
    terms = 3 if frames is None else 4
    p, f = rng.uniform(0, 6.28, (3, terms)), rng.uniform(2, 25, (3, terms))
    t = np.linspace(0, 1, frames)[:, None, None] if frames else 0.0
    y, x = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)
    shape = (height, width) if frames is None else (frames, height, width)
    out = np.empty((*shape, 3), np.uint8)
    for c in range(3):
        waves = np.sin(f[c, 0] * x + p[c, 0] + 3 * t) + np.sin(f[c, 1] * y + p[c, 1] - 2 * t)
        waves = waves + np.sin(f[c, 2] * (x + y) + p[c, 2] + 5 * t)
        out[..., c] = np.clip((waves / 6 + 0.5) * 255, 0, 255).astype(np.uint8)
    return out
