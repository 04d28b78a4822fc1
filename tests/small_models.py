"""A checkpoint of a nano model with random weights, for tests that score files."""

from pathlib import Path
from typing import Any

import torch

from sama.models import VideoQuality, save_weights


def save_nano(path: Path, metadata: dict[str, Any]) -> Path:
    """Write the checkpoint, always with the same weights, its tokens' head not at zero; returns `path`."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = VideoQuality("nano")
        torch.nn.init.normal_(model.head.fc_last.weight)  # 0 at first: tokens would not count
    save_weights(model, path, metadata=metadata)
    return path
