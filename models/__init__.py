"""The networks that score clips and images, and the checkpoints that people hold of them."""

from sama.errors import CheckpointError
from sama.models.checkpoints import LoadReport, build, load_weights, save_weights
from sama.models.reading import read_metadata
from sama.models.swin2d import ImageQuality
from sama.models.swin3d import VideoQuality

__all__ = [
    "CheckpointError",
    "ImageQuality",
    "LoadReport",
    "VideoQuality",
    "build",
    "load_weights",
    "read_metadata",
    "save_weights",
]
