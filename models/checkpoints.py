"""Checkpoints: load the weights that people hold into our models, and write our own.

All key surgery of the project is in this file: for each source of checkpoints one function renames the keys of its
files to ours. `sama.models.reading` reads the files.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sama.errors import CheckpointError
from sama.files import replace_file
from sama.models.reading import OWN, read_file
from sama.models.swin2d import ImageQuality
from sama.models.swin3d import VideoQuality

Model = VideoQuality | ImageQuality

WRAPPERS = ("state_dict", "model")  # keys of a file that its weights may be under
BUFFERS = ("relative_position_index", "relative_coords_table", "attn_mask")  # derived from a model's shape
MODELS: dict[str, type[Model]] = {"video": VideoQuality, "image": ImageQuality}
SETTINGS: dict[str, dict[str, Any]] = {
    "video": {"grid": [7, 7], "fragment": [32, 32], "clip_len": 32, "interval": 2, "num_clips": 4},
    "image": {"grid": [8, 8], "fragment": [32, 32]},
}


@dataclass(frozen=True)
class LoadReport:
    """Which weights of a checkpoint were loaded into a model.

    `source` is where the checkpoint comes from. `loaded` and `missing` are names of the model's parameters and buffers;
    missing ones kept their values. `dropped` are the names in the file that the model has no use for. `notes` say what
    was guessed.
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
    """A model in evaluation mode, the settings to sample for it, and what was loaded from its file."""

    model: Model
    metadata: dict[str, Any]
    report: LoadReport


def load_weights(model: Model, weights: str | os.PathLike[str] | Mapping[str, Any]) -> LoadReport:
    """Loads a checkpoint of any known source into a model.

    `weights` is the path of a file, or the dictionary in it. The model changes only if everything fits.

    `CheckpointError` for a file that is refused, damaged or unknown, and for weights of the other kind of model or of
    other shapes (relative-position tables of another window size are not interpolated); OSError for a file that cannot
    be opened.
    """
    checkpoint = _read(weights)
    source = _recognise(checkpoint)
    if source.kind not in (None, model.kind):
        raise CheckpointError(
            f"{checkpoint.name} is of {_an(source.kind)} model ({source.name}), got {_an(model.kind)} model: "
            f"load it into {MODELS[source.kind].__name__}"
        )
    return _load(model, checkpoint, source)


def build(path: str | os.PathLike[str], *, mode: str | None = None) -> Built:
    """Makes the model that a file holds the weights of, and loads them.

    Our own files say which model they hold. All others are of the published "tiny" model, with the published sampling.
    `mode` is the sampling mode. Without it, our own files say it, and for the others it follows from the source. SAMA's
    and FAST-VQA's files have the same keys: the name of the file decides between them, else its `validation_results`,
    and `report.notes` says so.

    `CheckpointError` as in `load_weights`, and for a file whose metadata describe no model; OSError likewise.
    """
    checkpoint = _read(path)
    source = _recognise(checkpoint)
    notes: list[str] = []
    if checkpoint.metadata:
        metadata = dict(checkpoint.metadata)
        if metadata.get("kind") not in [*MODELS]:  # a list too can be asked for
            raise CheckpointError(
                f"{checkpoint.name}: got kind {metadata.get('kind')!r}, expected one of {list(MODELS)}"
            )
    else:
        if source.name == OWN or source.kind is None:
            raise CheckpointError(f"{checkpoint.name} has our names but no metadata: make the model, then load_weights")
        metadata = {"kind": source.kind, "size": "tiny", "options": {}, "mode": source.mode, **SETTINGS[source.kind]}
        if source.mode is None:
            metadata["mode"], why = _sama_or_fast_vqa(checkpoint)
            if mode is None:
                notes.append(f"mode {metadata['mode']!r} is guessed from {why}; give mode= if that is wrong")
    if mode is not None:
        metadata["mode"] = mode
    try:
        model = MODELS[metadata["kind"]](metadata["size"], **metadata["options"])
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{checkpoint.name}: its metadata describe no model of this version ({error})") from error
    report = _load(model, checkpoint, source, notes)
    return Built(model.eval(), metadata, report)


def save_weights(model: Model, path: str | os.PathLike[str], *, metadata: Mapping[str, Any] | None = None) -> None:
    """Writes a safetensors file from which `build` makes the model again; the file appears whole or not at all.

    `metadata` is anything that JSON can hold: mode, grid, fragment, clip_len, interval, num_clips, whole_clips, data,
    calibration. The model's kind, size and options are added.

    TypeError for metadata that JSON cannot hold, `OutputError` where the file cannot be written; an old file is kept
    then.
    """
    from safetensors.torch import save

    own = {"format": OWN, "kind": model.kind, "size": model.size, "options": model.options}
    header = {k: json.dumps(v) for k, v in {**(metadata or {}), **own}.items()}
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    content = _with_sorted_metadata(save(tensors, metadata=header))
    replace_file(path, content)  # safetensors' own `save_file` would let only the owner read it


def _with_sorted_metadata(content: bytes) -> bytes:
    """The same safetensors file with its metadata in alphabetic order. The library writes them in another order each
    time, so that equal models would have files of different SHA-256, which scores are attributed to."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors after it stay aligned
    return len(text).to_bytes(8, "little") + text + content[start:]


@dataclass(frozen=True)
class _Checkpoint:
    """The tensors of a checkpoint, and what its file says about them."""

    name: str  # for messages
    tensors: dict[str, Tensor]
    wrapping: tuple[str, ...] = ()  # keys of the file's outer dictionary
    metadata: dict[str, Any] = field(default_factory=dict)


def _read(weights: str | os.PathLike[str] | Mapping[str, Any]) -> _Checkpoint:
    """The tensors of a file, or of the dictionary in it, without what is wrapped around them."""
    if isinstance(weights, Mapping):
        name, (content, metadata) = "the state dict", (weights, dict[str, Any]())
    else:
        name, (content, metadata) = os.fspath(weights), read_file(weights)
    inner: Any = content
    for wrapper in WRAPPERS:
        if isinstance(inner, Mapping) and isinstance(inner.get(wrapper), Mapping):
            inner = inner[wrapper]
            break
    if not isinstance(inner, Mapping):
        raise CheckpointError(f"{name}: got {type(inner).__name__}, expected a dictionary of tensors. {_known()}")
    tensors = {str(k): v for k, v in inner.items() if isinstance(v, Tensor)}
    if tensors and all(k.startswith("module.") for k in tensors):
        tensors = {k.removeprefix("module."): v for k, v in tensors.items()}
    return _Checkpoint(name, tensors, () if inner is content else tuple(map(str, content)), metadata)


@dataclass(frozen=True)
class _Source:
    """Where checkpoints come from: how to recognise them, and how to rename their keys."""

    name: str
    kind: str | None  # of model; None where both kinds have these names
    mark: str  # a key that only this source has
    rename: Callable[[str], str | None]  # a key of the file to ours; None drops it
    mode: str | None = "sama"
    ndim: int | None = None  # of the marked tensor, where the key alone does not decide


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
    """Published files count the merging of patches to the stage before it, timm to the one after it."""
    name = re.sub(r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample.", name)
    return _swin_v2_timm(name)


def _swin_v2_timm(name: str) -> str | None:
    return _replace_prefix(name, {p: f"backbone.{p}" for p in ("layers.", "patch_embed.", "norm.")})


def _replace_prefix(name: str, prefixes: dict[str, str]) -> str | None:
    for old, new in prefixes.items():
        if name.startswith(old) and not name.endswith(BUFFERS):
            return new + name.removeprefix(old)
    return None


_V2 = "layers.0.blocks.0.attn.logit_scale"
_SOURCES = (  # the first whose mark a file has
    _Source(OWN, None, "backbone.stem.filters.weight", _own),
    _Source(OWN, None, "backbone.stem.first.gain", _own),
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
    """The sampling mode, and what it was guessed from."""
    name = Path(checkpoint.name).name.lower()
    if "sama" in name:
        return "sama", "the file's name"
    if "fast" in name:
        return "fragments", "the file's name"
    if "validation_results" in checkpoint.wrapping:
        return "sama", "its validation_results"
    return "fragments", "its having no validation_results"


def _load(model: Model, checkpoint: _Checkpoint, source: _Source, notes: list[str] | None = None) -> LoadReport:
    """Copies the weights of a checkpoint into a model, if all of them have the right shapes."""
    own = model.state_dict()
    found: dict[str, Tensor] = {}
    dropped, wrong = [], []
    for theirs, tensor in checkpoint.tensors.items():
        ours = source.rename(theirs)
        if ours is None or ours not in own:
            dropped.append(theirs)
            continue
        found[ours] = tensor
        if tensor.ndim > own[ours].ndim:  # a convolution whose kernel is one patch or one token
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
    """Lines for names; names that differ only in numbers share one."""
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
