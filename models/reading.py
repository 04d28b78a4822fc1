"""Reads checkpoint files that may come from anybody, without running any code in them.

Safetensors files hold no code. Pickled files are read with `torch.load(weights_only=True)`; of NumPy they may hold
numbers, nothing else.
"""

from __future__ import annotations

import _codecs
import json
import os
import pickle
import re
from typing import Any

import numpy as np
import torch

from sama.errors import CheckpointError

OWN = "our own"  # the format that our own safetensors files name in their header


def read_file(path: str | os.PathLike[str]) -> tuple[Any, dict[str, Any]]:
    """The content of a safetensors or PyTorch file, on the CPU, and its metadata if the file is one of ours.

    The content is a dictionary of tensors, or whatever was pickled.
    `CheckpointError` for a file that is refused, damaged or of another format, OSError for one that cannot be opened.
    """
    if not _is_safetensors(path):
        return _unpickle(os.fspath(path)), {}
    from safetensors.torch import load_file

    metadata = _read_header(path)
    return load_file(path), metadata


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata of one of our files, without its weights; empty for any other file."""
    return _read_header(path) if _is_safetensors(path) else {}


PICKLE_MARKS = (b"PK", b"\x80")  # a zip archive, as PyTorch writes since 1.6, or a bare pickle


def _is_safetensors(path: str | os.PathLike[str]) -> bool:
    """Whether a file starts as a safetensors file does: eight bytes with the length of its header, then the header,
    which is JSON."""
    with open(path, "rb") as f:
        return f.read(9)[8:] == b"{"


def _read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as f:
            header = f.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(f"{os.fspath(path)} is not a whole safetensors file: {error}") from error
    if header.get("format") != json.dumps(OWN):
        return {}
    try:
        return {k: json.loads(v) for k, v in header.items()}
    except ValueError as error:
        raise CheckpointError(f"{os.fspath(path)} has metadata that are no JSON ({error})") from error


def _unpickle(path: str) -> Any:
    with open(path, "rb") as f:
        if not f.read(2).startswith(PICKLE_MARKS):
            raise CheckpointError(f"{path} is no checkpoint: neither a PyTorch nor a safetensors file")
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
    except Exception as error:  # a damaged file raises different errors at different places
        what = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path} is neither a PyTorch nor a safetensors file, or is cut short: {what}") from error


def _number(dtype: np.dtype, data: bytes) -> np.generic:
    """Replaces NumPy's own unpickling of a scalar, which accepts object dtypes too."""
    if dtype.kind not in "biuf" or not isinstance(data, bytes):
        raise pickle.UnpicklingError(f"got a NumPy scalar of {dtype = }, expected a number")
    return np.frombuffer(data, dtype)[0]


def _numpy_numbers() -> list[Any]:
    """What `torch.load` has to allow for pickled numbers of NumPy 1 and 2."""
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    dtypes = {type(np.dtype(t)) for t in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"}
    return [*((_number, name) for name in names), np.dtype, *dtypes, _codecs.encode]
