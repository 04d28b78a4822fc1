"""One version's part of `compare_versions.py`: runs the cases and writes what each gives as a digest, in JSON.

It runs in a process of its own, with the version's tree first on `sys.path`. Cases use only names that versions have in
common; where one has moved, `home` looks in several modules.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch

SAMPLE = 1024  # values of an array that are kept, to say by how much it differs
BROKEN = (AttributeError, NameError, KeyError, AssertionError, TypeError)  # of a case itself, not what a user meets


class Places(NamedTuple):
    """Folders: of the files that all versions read, of this version's results, and of another version's."""

    media: Path
    out: Path
    other: Path


class Text(str):
    """Words for people: the numbers in them are results, the rest is wording."""


class Failure(NamedTuple):
    """An exception as a result: its class is compared, its message is wording."""

    error: BaseException


Case = Callable[[Places], Iterator[tuple[str, Any]]]
CASES: dict[str, Case] = {}  # each yields names and results
CROSS: dict[str, Case] = {}  # the same from what another version has left; compared with that version's case


def case(name: str, cases: dict[str, Case] = CASES) -> Callable[[Case], Case]:
    def register(function: Case) -> Case:
        cases[name] = function
        return function

    return register


def attempt(function: Callable, *arguments, **settings) -> Any:
    """What a call returns, or what it raises."""
    try:
        return function(*arguments, **settings)
    except BROKEN:
        raise
    except Exception as error:
        return Failure(error)


def collect(function: Callable, *arguments, **settings) -> dict[str, Any]:
    """The results of a generator by name."""
    return dict(function(*arguments, **settings))


def home(name: str, *modules: str) -> Any:
    """The object of that name in the first of the modules that has it."""
    for module in modules:
        with contextlib.suppress(ImportError, AttributeError):
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"none of {', '.join(modules)} has {name}")


def room(*modules: str) -> ModuleType:
    """The first of the modules that is there."""
    for module in modules:
        with contextlib.suppress(ImportError):
            return importlib.import_module(module)
    raise AttributeError(f"there is none of {', '.join(modules)}")


class Record:
    """Results as entries for JSON: digests of arrays, of which a sample is kept, and everything else as text."""

    def __init__(self, replaced: dict[str, str]):
        self.entries: dict[str, dict[str, Any]] = {}
        self.samples: dict[str, np.ndarray] = {}
        self.replaced = replaced  # folders that differ between versions, in messages

    def add(self, name: str, value: Any) -> None:
        if name in self.entries:
            raise AssertionError(f"{name} comes twice")
        if isinstance(value, torch.Tensor | np.ndarray):
            self.entries[name] = self._array(name, value)
        elif isinstance(value, Failure):
            classes = [kind.__name__ for kind in type(value.error).__mro__]
            self.entries[name] = {"kind": "failure", "classes": classes, "value": self._plain(str(value.error))}
        elif isinstance(value, Text):
            self.entries[name] = {"kind": "text", "value": self._plain(value)}
        else:
            self.entries[name] = {"kind": "value", "value": self._plain(json.dumps(value, sort_keys=True, default=str))}

    def _array(self, name: str, value: torch.Tensor | np.ndarray) -> dict[str, Any]:
        tensor = torch.as_tensor(np.ascontiguousarray(value) if isinstance(value, np.ndarray) else value)
        tensor = tensor.detach().contiguous()
        digest = hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy().data).hexdigest()
        sample = tensor.flatten()[:: tensor.numel() // SAMPLE + 1].double().numpy()
        self.samples[name] = sample
        shown = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}, mean {tensor.double().mean():.9g}"
        return {"kind": "array", "sha256": digest, "value": shown}

    def _plain(self, text: str) -> str:
        for folder, name in self.replaced.items():
            text = text.replace(folder, name)
        return text

    def run(self, name: str, function: Case, at: Places) -> None:
        """Add a case's results; where it breaks down, an entry that counts as an error of the case."""
        started, before = time.perf_counter(), len(self.entries)
        try:
            for part, value in function(at):
                self.add(f"{name}: {part}", value)
        except Exception:
            self.entries[f"{name}: (the rest)"] = {"kind": "broken", "value": traceback.format_exc(limit=-4)}
        seconds = time.perf_counter() - started
        print(f"{name}: {len(self.entries) - before} results, {seconds:.1f} s", file=sys.stderr, flush=True)


def check_tree(tree: Path) -> None:
    """AssertionError where `sama` or a part of it is imported from anywhere but the tree."""
    import sama

    parts = (sama, importlib.import_module("sama.kernels"), importlib.import_module("sama.models"))
    for module in parts:
        file = Path(module.__file__).resolve()
        assert file.is_relative_to(tree.resolve()), f"{module.__name__} is imported from {file}, not from {tree}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("tree", "media", "out", "other"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--cross", action="store_true")
    options = parser.parse_args()
    here = Path(__file__).resolve().parent
    check_tree(options.tree)
    sys.path += [str(here), str(here.parent / "tests")]
    sys.modules["compare_worker"] = sys.modules["__main__"]
    for name in ("compare_cases", "compare_commands"):
        importlib.import_module(name)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    results = options.out / "cross" if options.cross else options.out
    record = Record({str(results): "OUT", str(options.tree.resolve()): "TREE"})
    for name, function in (CROSS if options.cross else CASES).items():
        if re.search(options.only, name):
            folder = name.replace("/", "-")
            at = Places(options.media, results / folder, options.other / folder)
            at.out.mkdir(parents=True, exist_ok=True)
            record.run(name, function, at)
    stem = "cross" if options.cross else "results"
    np.savez(options.out / f"{stem}.npz", **{str(k): value for k, value in enumerate(record.samples.values())})
    places = {name: str(k) for k, name in enumerate(record.samples)}
    content = {"entries": record.entries, "samples": places, "torch": torch.__version__, "pid": os.getpid()}
    (options.out / f"{stem}.json").write_text(json.dumps(content))


if __name__ == "__main__":
    main()
