"""What the steps of `gpu_stages.py` share: where they run, how large, how they time, and where their rows go."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import measure
import torch

Value = TypeVar("Value")
TESTS = Path(__file__).parent.parent / "tests"
environment = functools.cache(measure.environment)


@dataclass(frozen=True)
class Run:
    """A step of a stage.

    out: the stage's folder; step: name of the step, and of its table there
    rehearsal: on a CPU, with stand-ins, as small as can be
    """

    out: Path
    step: str
    rehearsal: bool

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return torch.device("cpu" if self.rehearsal else "cuda")

    def pick(self, real: Value, rehearsed: Value) -> Value:
        """One of two sizes."""
        return rehearsed if self.rehearsal else real

    def row(self, **values: Any) -> None:
        """Append a row to the step's table, with the environment, and print it. All rows have the same columns."""
        short = {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in values.items()}
        print(f"{self.step}: " + ", ".join(f"{key} {value}" for key, value in short.items()), flush=True)
        measure.append(self.out / f"{self.step}.csv", short | environment())

    def seconds(self, call: Callable[[], object], repeats: int) -> list[float]:
        """Seconds of every call, after one that does not count, with all that the GPU does of it."""
        found = []
        for _ in range(repeats + 1):
            self.synchronize()
            start = time.perf_counter()
            call()
            self.synchronize()
            found.append(time.perf_counter() - start)
        return found[1:]

    def synchronize(self) -> None:
        if not self.rehearsal:
            torch.cuda.synchronize()

    def peak_bytes(self, call: Callable[[], object]) -> int:
        """What torch allocates on the GPU at its most while `call` runs, without what was there; 0 in a rehearsal."""
        if self.rehearsal:
            call()
            return 0
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    @contextmanager
    def decoding(self) -> Iterator[Any]:
        """The module `sama.decode.nvcodec`; in a rehearsal with a stand-in for the library and the GPU."""
        if not self.rehearsal:
            from sama.decode import nvcodec

            yield nvcodec
            return
        with tests_importable():
            from fake_gpu import fake_gpu

            with fake_gpu() as nvcodec:
                yield nvcodec


@contextmanager
def tests_importable() -> Iterator[None]:
    """The modules of `tests/` can be imported within the block."""
    sys.path.insert(0, str(TESTS))
    try:
        yield
    finally:
        sys.path.remove(str(TESTS))
