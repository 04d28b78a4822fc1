"""`sama.Scorer`: scores of batches of files, as a stage of somebody else's pipeline.

    {"path": [...], ...} --Scorer--> {"path": [...], "status": [...], "score": [...], ...}

A batch is a dictionary of columns or an Arrow table. The engine is that of `sama score`: `sama.scoring.score_files`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sama.decode import check_decoder
from sama.errors import InputError
from sama.limits import Limits
from sama.model import QualityModel, load_model
from sama.scoring import score_files
from sama.storage import KEYS, Media
from sama.tables import COLUMNS, Row, as_arrow

if TYPE_CHECKING:
    import pyarrow as pa


class Scorer:
    """Scores batches: called with columns, it returns columns, one row a file, as docs/scores.md has them.

    score = sama.Scorer()
    score({"path": ["a.mp4", "s3://bucket/b.mp4"]})["score"]        # [79.5, None]

    weights, device, options: as for `sama.load_model` (mode, dtype, compile, attention, engine)
    column: of the files: paths or addresses, bytes of files, pixels (uint8 [T, H, W, 3] of a video, [H, W, 3] of an
        image), or dictionaries with "bytes" or "path", as Hugging Face's datasets give them; they may be mixed
    key: column that names bytes and pixels in the rows; None takes the first of `sama.storage.KEYS` that is there, else
        they are numbered
    fps: frames a second of pixels, or the column that says it
    keep: columns of the input that are given back beside the scores
    every_seconds, batch, workers, decoder, limits: as for `sama.scoring.score_files`
    threads: of torch on a CPU, in the whole process; None leaves them as they are

    It can be pickled; a process loads its model at the first batch, and keeps it. What is wrong with a file is in its
    row, in the order of the batch, and no error. `InputError` for settings that cannot be used and batches without the
    column, and what `load_model` raises.
    """

    def __init__(
        self,
        weights: str | os.PathLike[str] | None = None,
        *,
        column: str = "path",
        key: str | None = None,
        fps: float | str | None = None,
        keep: Sequence[str] = (),
        device: str = "auto",
        every_seconds: float | None = None,
        batch: int | None = None,
        workers: int | None = None,
        decoder: str = "auto",
        limits: Limits | None = None,
        threads: int | None = None,
        **options: Any,
    ) -> None:
        check_decoder(decoder)
        for name, value in {
            "every_seconds": every_seconds,
            "batch": batch,
            "workers": workers,
            "threads": threads,
        }.items():
            if value is not None and not value > 0:
                raise InputError(f"{name} must be more than 0; got {value}")
        taken = [name for name in keep if name in COLUMNS]
        if taken:
            raise InputError(
                f"keep: the scores have columns of the names {', '.join(taken)}: rename those of the input"
            )
        self.weights, self.device, self.options, self.threads = weights, device, options, threads
        self.column, self.key, self.fps, self.keep = column, key, fps, tuple(keep)
        self.reading: dict[str, Any] = {"every_seconds": every_seconds, "batch": batch, "workers": workers}
        self.reading |= {"decoder": decoder, "limits": limits}
        self._set()

    def _set(self) -> None:
        self._model: QualityModel | None = None
        self._process = 0
        self._lock = threading.Lock()  # one batch at a time

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_model", "_process", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._set()

    @property
    def model(self) -> QualityModel:
        """The model of this process, loaded at the first use."""
        if self._model is None or self._process != os.getpid():
            if self.threads:
                torch.set_num_threads(self.threads)
            self._model, self._process = load_model(self.weights, self.device, **self.options), os.getpid()
        return self._model

    def __call__(self, batch: Mapping[str, Sequence[Any]] | pa.Table) -> Any:
        """The scores of a batch: a dictionary of lists, or, of an Arrow table, a table with `sama.tables.schema`; the
        columns of `keep` come first."""
        if isinstance(batch, Mapping):
            rows = self.rows(batch)
            columns = {name: batch[name] for name in self.keep}
            return columns | {name: [getattr(row, name) for row in rows] for name in COLUMNS}
        names = {
            self.column,
            *self.keep,
            *filter(None, [self.key, self.fps if isinstance(self.fps, str) else None]),
            *KEYS,
        }
        columns = {name: batch.column(name).to_pylist() for name in batch.column_names if name in names}
        scores = as_arrow(self.rows(columns))
        for place, name in enumerate(self.keep):
            scores = scores.add_column(place, batch.schema.field(name), batch.column(name))
        return scores

    def rows(self, batch: Mapping[str, Sequence[Any]]) -> list[Row]:
        """The rows of a batch, in its order."""
        missing = [name for name in (self.column, self.key, *self.keep) if name is not None and name not in batch]
        if missing:
            raise InputError(f"the batch has no column {', '.join(missing)}; it has {', '.join(batch)}")
        with self._lock:
            return list(score_files(list(self._files(batch)), self.model, **self.reading))

    def _files(self, batch: Mapping[str, Sequence[Any]]) -> Iterator[str | Media]:
        named = self.key or next((name for name in KEYS if name in batch and name != self.column), None)
        rates = batch[self.fps] if isinstance(self.fps, str) and self.fps in batch else None
        for n, value in enumerate(batch[self.column]):
            key = str(batch[named][n]) if named else f"#{n}"
            fps = self.fps if rates is None else rates[n]
            yield as_file(value, key, fps if isinstance(fps, int | float) else None)


def as_file(value: Any, key: str, fps: float | None = None) -> str | Media:
    """What is to be scored for a value of a column; nothing is wrong until it is read."""
    if isinstance(value, Mapping):
        data, path = value.get("bytes"), value.get("path")
        return as_file(path if data is None else data, str(path or key), fps)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str) and value:
        return str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return Media(key, bytes(value))
    if isinstance(value, torch.Tensor):
        value = value.cpu().numpy()
    if isinstance(value, np.ndarray) and value.ndim:
        return Media(key, value, fps)
    if value is None or isinstance(value, str):
        return Media(key, None, problem="there is no file: the value is empty")
    kind = type(value).__name__
    return Media(key, None, problem=f"a value of type {kind}; expected a path, an address, bytes or pixels")
