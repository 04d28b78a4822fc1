"""The feed beside decoding alone, and training beside a loop of the published way. Hooked into `throughput.py`.

feed      files a second to the inputs of a score: decoding the same planned frames and dropping them, the feed, and
          every frame to RGB with the published sampler
training  clips a second through a whole step of the nano model (one drawn clip a file): the feed and this package's
          network, and the published way of decoding and sampling with an eager port of the network
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import measure
import network
import numpy as np
import published
import torch

import sama
from sama.feed import Feed
from sama.models import VideoQuality
from sama.training.losses import video_loss

FILES = 4  # a call of the feed decodes at once, several workers at a time
STEPS, SLOW_STEPS, BATCH = 8, 2, 4  # a call of training; of the published way


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def feed_rows(case: str, path: Path, repeats: int) -> list[measure.Row]:
    """Files per second to the four inputs of a score, on the device."""
    told = {"num_clips": published.CLIPS, "clip_len": published.CLIP_LEN, "interval": published.INTERVAL}
    feed = Feed([path] * FILES, sama.VideoSampler(), batch=FILES, device=device(), decoder="pyav", **told)
    slow = sama.VideoSampler(backend="reference")

    def decode_alone():
        with ThreadPoolExecutor(feed.workers) as pool:
            list(pool.map(decode, [path] * FILES))

    def decode(path):
        with sama.open_video(path, decoder="pyav", threads=feed.threads) as video:
            indices = published.plan_indices(video.info.num_frames, published.CLIPS)
            return sum(1 for _ in video.frames(indices))

    providers = {
        "decoding the planned frames alone": decode_alone,
        "feed (pyav)": lambda: [batch.x for batch in feed.epoch()],
        "every frame to rgb24, reference": lambda: published.from_rgb24(path, slow),
    }
    (x,) = providers["feed (pyav)"]()
    measure.check({"feed": lambda: x[: published.CLIPS]}, published.from_rgb24(path, sama.VideoSampler()))
    seconds = measure.timed(f"{case}: feed", providers, repeats)
    work = dict.fromkeys(providers, float(FILES)) | {"every frame to rgb24, reference": 1.0}
    return measure.rows(case, "feed: file to input", "files/s", seconds, work, "decoding the planned frames alone")


def training_rows(case: str, path: Path, repeats: int, size: str = "nano") -> list[measure.Row]:
    """Clips per second of training on copies of a file. The note: the share of the time spent waiting for data."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VideoQuality(size).to(device())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    labels = np.arange(STEPS * BATCH, dtype=float)
    sampler = sama.VideoSampler(layout="patches")
    feed = Feed(
        [path] * len(labels), sampler, labels=labels, batch=BATCH, train=True, device=device()
    )  # one epoch a call
    slow = sama.VideoSampler(backend="reference")

    def step(x, y):
        loss = video_loss(model(x).mean((1, 3, 4)).sum(1), y.to(device()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    def ours():
        model.train()
        return [step(batch.x, batch.labels) for batch in feed.epoch()]

    def slow_way():
        model.train()
        with network.eager_port():
            for k in range(SLOW_STEPS):
                x = torch.cat([published.from_rgb24(path, slow, 1) for _ in range(BATCH)])
                step(x.to(device()), torch.from_numpy(labels[k * BATCH : (k + 1) * BATCH]))

    providers = {"every frame to rgb24, reference, eager port": slow_way, "sama": ours}
    seconds = measure.timed(f"{case}: training, {size}", providers, max(2, repeats // 2))
    work = {"sama": float(len(labels)), "every frame to rgb24, reference, eager port": float(SLOW_STEPS * BATCH)}
    baseline = "every frame to rgb24, reference, eager port"
    waiting = f"waited for data {feed.meter.share:.1%} of the time, {os.cpu_count()} cores"
    return measure.rows(case, f"training, {size}", "clips/s", seconds, work, baseline, sama=waiting)
