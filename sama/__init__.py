"""SAMA: blind image and video quality assessment by scaling and masking (AAAI 2024, arXiv 2401.02614).

Importing this package imports nothing heavy; what it offers is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0.dev0"

if TYPE_CHECKING:  # what editors and type checkers see; `_HOMES` is the same list for the interpreter
    from sama.decode import open_video as open_video
    from sama.errors import DecodeError as DecodeError
    from sama.errors import SamaError as SamaError
    from sama.feed import Feed as Feed
    from sama.frames import Clip as Clip
    from sama.frames import Frame as Frame
    from sama.model import QualityModel as QualityModel
    from sama.model import Result as Result
    from sama.model import load_model as load_model
    from sama.model import score as score
    from sama.plan import frame_indices as frame_indices
    from sama.sampler import ImageSampler as ImageSampler
    from sama.sampler import VideoSampler as VideoSampler
    from sama.scorer import Scorer as Scorer

_HOMES = {
    "Clip": "sama.frames",
    "DecodeError": "sama.errors",
    "Feed": "sama.feed",
    "Frame": "sama.frames",
    "ImageSampler": "sama.sampler",
    "QualityModel": "sama.model",
    "Result": "sama.model",
    "SamaError": "sama.errors",
    "Scorer": "sama.scorer",
    "VideoSampler": "sama.sampler",
    "frame_indices": "sama.plan",
    "load_model": "sama.model",
    "open_video": "sama.decode",
    "score": "sama.model",
}
_MODULES = (
    *("backends", "check", "cluster", "corpus", "decode", "devices", "engines", "errors", "evaluate", "evaluation"),
    *("evaluation_report", "export", "feed", "figures", "files", "frames", "inspection", "journal", "kernels"),
    *(
        "labels",
        "metrics",
        "model",
        "models",
        "plan",
        "prefetch",
        "report",
        "sampler",
        "scorer",
        "scoring",
        "storage",
        "tables",
    ),
    *("terminal", "train", "training"),
)

__all__ = ["__version__", *_HOMES]


if not TYPE_CHECKING:  # a type checker would take every name for an attribute

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            return getattr(import_module(_HOMES[name]), name)
        if name in _MODULES:
            return import_module(f"sama.{name}")
        raise AttributeError(f"module 'sama' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES])
