"""SAMA: blind image and video quality assessment by scaling and masking (AAAI 2024, arXiv 2401.02614).

Importing this package imports nothing heavy; what it offers is loaded when it is first used.
"""

from importlib import import_module

__version__ = "0.2.0.dev0"

_HOMES = {
    "VideoSampler": "sama.sampler",
    "ImageSampler": "sama.sampler",
    "frame_indices": "sama.plan",
    "Clip": "sama.frames",
    "Frame": "sama.frames",
    "open_video": "sama.decode",
    "DecodeError": "sama.errors",
    "Feed": "sama.feed",
    "load_model": "sama.model",
    "QualityModel": "sama.model",
    "Result": "sama.model",
}
_MODULES = (
    *("config", "data", "decode", "evaluate", "feed", "files", "frames", "inspection", "kernels", "losses", "metrics"),
    *("model", "models", "plan", "report", "sampler", "score", "train"),
)

__all__ = ["__version__", *_HOMES]


def __getattr__(name):
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _MODULES:
        return import_module(f"sama.{name}")
    raise AttributeError(f"module 'sama' has no attribute {name!r}")


def __dir__():
    return sorted([*__all__, *_MODULES])
