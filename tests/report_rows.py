"""Rows of scores for tests of pages, without a model and without files."""

from __future__ import annotations

import numpy as np

from sama.tables import Row

HOSTILE = (
    "<script>window.hit=1</script>.mp4",
    "\"quoted\" 'name' & <b>bold</b>.mp4",
    "</script><img src=x onerror='window.hit=2'>.mp4",
    "right-\u202eto-left\u202c.mp4",
    "no \udcff utf-8 \udc80.mp4",
    "{{script}} ${window.hit=3} line\nbreak.mp4",
    "javascript:window.hit=4//.mp4",
)


def rows(count: int, *, windows: int = 6, failed_every: int = 0, folders: int = 3, seed: int = 0) -> list[Row]:
    """Rows with scores drawn between 0 and 100 on the model's own scale; every `failed_every`th failed."""
    rng = np.random.default_rng(seed)
    made = []
    for k in range(count):
        path = f"set-{k % folders}/video-{k:05}.mp4"
        if failed_every and k % failed_every == failed_every - 1:
            made.append(Row(path, "error", reason=f"cut short: frame {k} cannot be decoded", model="m", settings="s"))
            continue
        clips = np.clip(rng.uniform(5, 95) + rng.normal(0, 4, windows), 0, 100).tolist()
        times = (np.arange(windows) * 2 + 1.0).tolist()
        facts = {"frames": 50 * windows, "width": 1920, "height": 1080, "duration": 2.0 * windows, "fps": 25.0}
        score = float(np.mean(clips))
        made.append(Row(path, score=score, clips=clips, times=times, decoder="pyav", model="m", settings="s", **facts))
    return made
