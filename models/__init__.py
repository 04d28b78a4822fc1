"""The networks, and the checkpoints people hold. Tensors in, tensors out."""

from sama.errors import CheckpointError
from sama.models.swin2d import ImageQuality
from sama.models.swin3d import VideoQuality
from sama.models.weights import LoadReport, build, load_weights, read_metadata, save_weights

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
