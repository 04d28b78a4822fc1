"""Checkpoints: read any that people hold, write our own.

All key surgery of the project is in this file: one renaming function a source, from the file's names to ours. Pickled
files are read with `torch.load(weights_only=True)`; of NumPy they may hold numbers, nothing else.
"""

from __future__ import annotations

import _codecs
import json
import os
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sama.errors import CheckpointError
from sama.models.swin2d import ImageQuality
from sama.models.swin3d import VideoQuality

WRAPPERS = ("state_dict", "model")  # keys under which a file's weights may lie
MODELS = {"video": VideoQuality, "image": ImageQuality}
SETTINGS = {
    "video": {"grid": [7, 7], "fragment": [32, 32], "clip_len": 32, "interval": 2, "num_clips": 4},
    "image": {"grid": [8, 8], "fragment": [32, 32]},
}


@dataclass(frozen=True)
class LoadReport:
    """What became of a checkpoint's weights.

    `loaded` and `missing` are the model's names; missing ones kept their values. `dropped` are the file's names.
    `notes` say what was guessed.
    """

    source: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        lines = [f"{self.source}: {len(self.loaded)} loaded, {len(self.missing)} missing, {len(self.dropped)} dropped"]
        for title in ("missing", "dropped"):
            lines += [f"  {title}: {line}" for line in _summary(getattr(self, title))]
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])


class Built(NamedTuple):
    """A model in evaluation mode, how to sample for it, and what its file held."""

    model: nn.Module
    metadata: dict[str, Any]
    report: LoadReport


def load_weights(model: nn.Module, weights: str | os.PathLike | Mapping[str, Any]) -> LoadReport:
    """Loads a checkpoint of any known source into a `VideoQuality` or `ImageQuality`.

    `weights` is a file or what it holds. Nothing is changed unless everything fits. A relative-position table of
    another window size is refused, not interpolated.

    Raises `CheckpointError` for a file that is refused, unreadable, unknown, of the other kind of model, or of other
    shapes, and `FileNotFoundError`.
    """
    checkpoint = _read(weights)
    source = _recognise(checkpoint)
    if source.kind != model.kind:
        raise CheckpointError(
            f"{checkpoint.name} is of {_an(source.kind)} model ({source.name}), got {_an(model.kind)} model: "
            f"load it into {MODELS[source.kind].__name__}"
        )
    return _load(model, checkpoint, source)


def build(path: str | os.PathLike, *, mode: str | None = None) -> Built:
    """The model that a file was made for, loaded and in evaluation mode, with its settings and a report.

    Our own files say which model they hold. Others are the published "tiny" ones, with the published sampling. SAMA's
    and FAST-VQA's files have the same names inside: which of them it is, and so the mode, is told by the file's name,
    else by its `validation_results`, unless `mode` is given; `report.notes` says so.
    """
    checkpoint = _read(path)
    source = _recognise(checkpoint)
    notes = []
    if checkpoint.metadata:
        metadata = dict(checkpoint.metadata)
        if metadata.get("kind") not in MODELS:
            raise CheckpointError(
                f"{checkpoint.name}: got kind {metadata.get('kind')!r}, expected one of {list(MODELS)}"
            )
    else:
        metadata = {"kind": source.kind, "size": "tiny", "options": {}, "mode": source.mode, **SETTINGS[source.kind]}
        if source.name == OWN:
            raise CheckpointError(f"{checkpoint.name} has our names but no metadata: make the model, then load_weights")
        if source.mode is None:
            metadata["mode"], why = _sama_or_fast_vqa(checkpoint)
            if mode is None:
                notes.append(f"mode {metadata['mode']!r} is told from {why}; give mode= if that is wrong")
    if mode is not None:
        metadata["mode"] = mode
    try:
        model = MODELS[metadata["kind"]](metadata["size"], **metadata["options"])
    except (TypeError, KeyError) as error:
        raise CheckpointError(f"{checkpoint.name}: its metadata describe no model of this version ({error})") from error
    report = _load(model, checkpoint, source, notes)
    return Built(model.eval(), metadata, report)


def save_weights(model: nn.Module, path: str | os.PathLike, *, metadata: Mapping[str, Any] | None = None) -> None:
    """Writes a safetensors file that `build` can make the model from; the file appears whole or not at all.

    `metadata` is anything JSON can hold: mode, grid, fragment, clip_len, interval, num_clips, whole_clips, data,
    calibration. The model's kind, size and options are added.
    """
    from safetensors.torch import save

    own = {"format": OWN, "kind": model.kind, "size": model.size, "options": model.options}
    header = {k: json.dumps(v) for k, v in {**(metadata or {}), **own}.items()}
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_bytes(save(tensors, metadata=header))  # `save_file` lets nobody but its owner read the file
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """The metadata of one of our files, without its weights; empty for any other file."""
    return _read_header(path) if _is_safetensors(path) else {}


# Reading


@dataclass(frozen=True)
class _Checkpoint:
    name: str  # for messages
    tensors: dict[str, Tensor]
    wrapping: tuple[str, ...] = ()  # keys of the file's outer dictionary
    metadata: dict[str, Any] = field(default_factory=dict)


def _read(weights: str | os.PathLike | Mapping[str, Any]) -> _Checkpoint:
    name, metadata = "the state dict", {}
    if not isinstance(weights, Mapping):
        name = os.fspath(weights)
        if _is_safetensors(weights):
            from safetensors.torch import load_file

            metadata, weights = _read_header(weights), load_file(weights)
        else:
            weights = _unpickle(name)
    inner = weights
    for wrapper in WRAPPERS:
        if isinstance(inner, Mapping) and isinstance(inner.get(wrapper), Mapping):
            inner = inner[wrapper]
            break
    if not isinstance(inner, Mapping):
        raise CheckpointError(f"{name}: got {type(inner).__name__}, expected a dictionary of tensors. {_known()}")
    tensors = {str(k): v for k, v in inner.items() if isinstance(v, Tensor)}
    if tensors and all(k.startswith("module.") for k in tensors):
        tensors = {k.removeprefix("module."): v for k, v in tensors.items()}
    return _Checkpoint(name, tensors, () if inner is weights else tuple(map(str, weights)), metadata)


def _is_safetensors(path: str | os.PathLike) -> bool:
    """The format opens with its header's length, eight bytes, and the header, in JSON."""
    with open(path, "rb") as f:
        return f.read(9)[8:] == b"{"


def _read_header(path: str | os.PathLike) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as f:
            header = f.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(f"{os.fspath(path)} is not a whole safetensors file: {error}") from error
    return {k: json.loads(v) for k, v in header.items()} if header.get("format") == json.dumps(OWN) else {}


def _unpickle(path: str) -> Any:
    try:
        with torch.serialization.safe_globals(_numpy_numbers()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it asks for {found[1]}" if found else "it is damaged, or holds more than plain data"
        raise CheckpointError(
            f"{path} is refused: {what}, and unpickling that could run any code. A checkpoint may hold tensors, "
            "numbers, strings, lists and dictionaries"
        ) from error
    except OSError:
        raise
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        what = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path} is neither a PyTorch nor a safetensors file, or is cut short: {what}") from error


def _number(dtype: np.dtype, data: bytes) -> np.generic:
    """Stands in for NumPy's own unpickling of a scalar, which takes object dtypes too."""
    if dtype.kind not in "biuf" or not isinstance(data, bytes):
        raise pickle.UnpicklingError(f"got a NumPy scalar of {dtype = }, expected a number")
    return np.frombuffer(data, dtype)[0]


def _numpy_numbers() -> list:
    """What pickled NumPy numbers, of NumPy 1 and 2, need to be allowed."""
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    dtypes = {type(np.dtype(t)) for t in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"}
    return [*((_number, name) for name in names), np.dtype, *dtypes, _codecs.encode]


# Sources: a renaming function takes a file's name to ours, or to None where it is dropped.

OWN = "our own"
_BUFFERS = ("relative_position_index", "relative_coords_table", "attn_mask")


@dataclass(frozen=True)
class _Source:
    name: str
    kind: str
    mark: str  # a name that only this source has
    rename: Callable[[str], str | None]
    mode: str | None = "sama"
    ndim: int | None = None  # of the marked tensor, where the name alone does not tell


def _own(name: str) -> str | None:
    return name


def _sama(name: str) -> str | None:
    return _replace_prefix(name, {"fragments_backbone.": "backbone.", "vqa_head.": "head."})


def _dover(name: str) -> str | None:
    return _replace_prefix(name, {"technical_backbone.": "backbone.", "technical_head.": "head."})


def _k400(name: str) -> str | None:
    return _replace_prefix(name, {"backbone.": "backbone."})


def _torchvision(name: str) -> str | None:
    name = re.sub(r"\.mlp\.([03])\.", lambda m: f".mlp.fc{1 if m[1] == '0' else 2}.", name)
    name = re.sub(r"^features\.(\d+)\.(\d+)\.", lambda m: f"layers.{int(m[1]) // 2}.blocks.{m[2]}.", name)
    name = re.sub(r"^features\.(\d+)\.", lambda m: f"layers.{int(m[1]) // 2}.downsample.", name)
    return _replace_prefix(name, {p: f"backbone.{p}" for p in ("layers.", "patch_embed.", "norm.")})


def _image_sama(name: str) -> str | None:
    if name.startswith("vqa_head."):
        return name.replace("vqa_head.fc1", "head.fc_hid").replace("vqa_head.fc2", "head.fc_last")
    return _swin_v2(name.removeprefix("backbone."))


def _swin_v2(name: str) -> str | None:
    """Published files merge patches at the end of a stage, timm at the start of the next."""
    name = re.sub(r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample.", name)
    return _swin_v2_timm(name)


def _swin_v2_timm(name: str) -> str | None:
    return _replace_prefix(name, {p: f"backbone.{p}" for p in ("layers.", "patch_embed.", "norm.")})


def _replace_prefix(name: str, prefixes: dict[str, str]) -> str | None:
    for old, new in prefixes.items():
        if name.startswith(old) and not name.endswith(_BUFFERS):
            return new + name.removeprefix(old)
    return None


_V2 = "layers.0.blocks.0.attn.logit_scale"
_SOURCES = (  # the first whose mark a file has
    _Source(OWN, "video", "backbone.patch_embed.proj.weight", _own, ndim=2),
    _Source(OWN, "video", "statistics.proj.weight", _own),
    _Source("SAMA or FAST-VQA", "video", "fragments_backbone.patch_embed.proj.weight", _sama, None),
    _Source("DOVER", "video", "technical_backbone.patch_embed.proj.weight", _dover, "fragments"),
    _Source("Video Swin K400", "video", "backbone.patch_embed.proj.weight", _k400, ndim=5),
    _Source("torchvision swin3d_t", "video", "features.0.0.norm1.weight", _torchvision),
    _Source("SAMA for images", "image", "vqa_head.fc1.weight", _image_sama),
    _Source(OWN, "image", f"backbone.{_V2}", _own),
    _Source("Swin V2 (published)", "image", "layers.0.downsample.reduction.weight", _swin_v2),
    _Source("Swin V2 (timm)", "image", _V2, _swin_v2_timm),
)


def _recognise(checkpoint: _Checkpoint) -> _Source:
    for source in _SOURCES:
        marked = checkpoint.tensors.get(source.mark)
        if marked is not None and source.ndim in (None, marked.ndim):
            return source
    names = list(checkpoint.tensors)
    wrapped = f"wrapped in a dictionary of {', '.join(checkpoint.wrapping)}; " if checkpoint.wrapping else ""
    raise CheckpointError(
        f"{checkpoint.name} is no checkpoint we know: {wrapped}{len(names)} tensors"
        f"{', the first ' + ', '.join(names[:5]) if names else ''}. {_known()}"
    )


def _sama_or_fast_vqa(checkpoint: _Checkpoint) -> tuple[str, str]:
    """The mode, and what told it."""
    name = Path(checkpoint.name).name.lower()
    if "sama" in name:
        return "sama", "the file's name"
    if "fast" in name:
        return "fragments", "the file's name"
    if "validation_results" in checkpoint.wrapping:
        return "sama", "its validation_results"
    return "fragments", "its having no validation_results"


def _load(model: nn.Module, checkpoint: _Checkpoint, source: _Source, notes: list[str] | None = None) -> LoadReport:
    own = model.state_dict()
    found, dropped, wrong = {}, [], []
    for theirs, tensor in checkpoint.tensors.items():
        ours = source.rename(theirs)
        if ours not in own:
            dropped.append(theirs)
            continue
        found[ours] = tensor
        if tensor.ndim > own[ours].ndim:  # convolutions whose kernel is the whole patch or one token
            found[ours] = tensor.flatten(own[ours].ndim - 1)
        if found[ours].shape != own[ours].shape:
            wrong.append((theirs, tuple(tensor.shape), tuple(own[ours].shape)))
    if wrong:
        lines = [f"\n  {name}: got {got}, expected {expected}" for name, got, expected in wrong[:5]]
        tables = any(name.endswith("bias_table") for name, *_ in wrong)
        raise CheckpointError(
            f"{checkpoint.name} ({source.name}) does not fit {type(model).__name__}({model.size!r}): {len(wrong)} "
            f"shapes differ{''.join(lines)}"
            + ("\nRelative-position tables of another window size are not interpolated" if tables else "")
        )
    with torch.no_grad():
        for name, tensor in found.items():
            own[name].copy_(tensor)
    missing = [name for name in own if name not in found]
    return LoadReport(source.name, tuple(found), tuple(missing), tuple(dropped), tuple(notes or ()))


def _summary(names: tuple[str, ...]) -> list[str]:
    """Names that differ in numbers only, on one line."""
    groups: dict[str, int] = {}
    for name in names:
        pattern = re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
        groups[pattern] = groups.get(pattern, 0) + 1
    lines = [pattern if n == 1 and "*" not in pattern else f"{pattern} ({n})" for pattern, n in groups.items()]
    return lines if len(lines) <= 12 else [*lines[:11], f"and {len(lines) - 11} more kinds"]


def _known() -> str:
    return "Known are checkpoints of " + ", ".join(dict.fromkeys(s.name for s in _SOURCES))


def _an(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"
