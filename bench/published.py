"""The published way to score a video: which frames, and how they are decoded; shared by the benchmarks."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import torch

import sama
from sama.frames import Clip
from sama.plan import frame_indices

CLIP_LEN, INTERVAL, CLIPS = 32, 2, 4


def plan_indices(num_frames: int, clips: int) -> np.ndarray:
    return frame_indices(num_frames, CLIP_LEN, clips, INTERVAL)


def read_clip(path: Path) -> list[sama.Frame]:
    """The frames of one clip, as the decoder gives them."""
    with sama.open_video(path, decoder="pyav") as video:
        indices = plan_indices(video.info.num_frames, 1)
        frames = dict(video.frames(indices))
    return [frames[index] for index in indices.tolist()]


def av_frames(path: Path) -> list[av.VideoFrame]:
    """The frames of one clip as the library holds them, to time its conversion."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return [frames[index] for index in plan_indices(len(frames), 1).tolist()]


def to_rgb24(frames: list[av.VideoFrame]) -> Clip:
    return Clip("rgb", (np.stack([frame.to_ndarray(format="rgb24") for frame in frames]),))


def decode_rgb(path: Path):
    """Every frame of a file as uint8 [H, W, 3], one after the other, on all cores."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            yield frame.to_ndarray(format="rgb24")


def from_rgb24(path: Path, sampler: sama.VideoSampler, clips: int = CLIPS) -> torch.Tensor:
    """Decode every frame to RGB, keep the planned ones, sample them."""
    with sama.open_video(path, decoder="pyav") as video:
        indices = plan_indices(video.info.num_frames, clips)
    wanted, kept = set(indices.tolist()), {}
    for number, picture in enumerate(decode_rgb(path)):
        if number in wanted:
            kept[number] = picture
    return torch.cat([sampler(np.stack([kept[n] for n in clip])) for clip in indices.reshape(clips, -1).tolist()])
