"""Checkpoints of nano models, for tests that score files: of random weights, and one that knows sharp from blurred."""

from pathlib import Path
from typing import Any

import torch

from sama.kernels.layout import PATCH_VALUES
from sama.models import VideoQuality, save_weights

LINEAR = 20.0
ONE_CLIP = {"mode": "sama", "grid": [7, 7], "fragment": [32, 32], "clip_len": 8, "interval": 2, "num_clips": 1}


def save_nano(path: Path, metadata: dict[str, Any]) -> Path:
    """Write the checkpoint, always with the same weights, its tokens' head not at zero; returns `path`."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = VideoQuality("nano")
        torch.nn.init.normal_(model.head.fc_last.weight)  # 0 at first: tokens would not count
    save_weights(model, path, metadata=metadata)
    return path


def save_sharpness(path: Path) -> Path:
    """Write a model that scores by how strong the differences of neighbouring pixels are: 20 points for a factor of e.

    Clips have 32 frames, every second one, as those of the published models. Returns `path`.
    """
    model = VideoQuality("nano", tokens=False)
    statistics = model.statistics
    thirds = statistics.THIRDS * PATCH_VALUES
    with torch.no_grad():
        for layer in (statistics.proj, statistics.fc1, statistics.fc2, statistics.fc3):
            layer.weight.zero_()
            layer.bias.zero_()
        for n in range(0, PATCH_VALUES, 2):  # of two pixels of a row
            statistics.proj.weight[n, n], statistics.proj.weight[n, n + 1] = 1.0, -1.0
        means = torch.zeros(statistics.THIRDS, 2, PATCH_VALUES)
        means[:, 0, ::2] = 2 / thirds
        statistics.fc1.weight[0, : 2 * thirds] = means.flatten()
        statistics.fc1.bias[0] = LINEAR  # where GELU changes nothing
        statistics.fc2.weight[0, 0] = 1.0
        statistics.fc3.weight[0, 0], statistics.fc3.bias[0] = 20.0, 20.0 * (5 - LINEAR)
    metadata = {"mode": "sama", "grid": [7, 7], "fragment": [32, 32], "clip_len": 32, "interval": 2, "num_clips": 4}
    save_weights(model, path, metadata=metadata | {"scale": {"name": "sharpness", "least": 0, "most": 100}})
    return path
