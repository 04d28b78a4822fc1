"""A folder of parts: a table of scores that many processes write at one time, each row once.

    OUT/part-<digest of its keys>.parquet ...      whole or not at all; the rows of docs/scores.md
    OUT/_run.json                                  the run that writes here, and what its scores depend on

A part's name follows from the keys of its rows, so work that is done again gives the same part. A later run takes the
folder over: a part of an earlier one, whose processes have not ended yet, is refused from then on.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sama.errors import OutputError
from sama.files import replace_file
from sama.storage import call, filesystem, is_url
from sama.tables import FORMATS, Row, as_arrow, check_library, from_arrow, parquet_bytes, read_table, unescaped

RUN = "_run.json"
DIGEST_BYTES = 16


def digests(keys: Sequence[str]) -> np.ndarray:
    """Digests of keys, [N] of `DIGEST_BYTES` bytes each."""
    made = [hashlib.blake2b(os.fsencode(key), digest_size=DIGEST_BYTES).digest() for key in keys]
    return np.frombuffer(b"".join(made), f"V{DIGEST_BYTES}").copy()


def in_sorted(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Whether each digest is among the known ones, which are sorted as `sorted_digests` does."""
    if not len(known):
        return np.zeros(len(values), bool)
    mine, theirs = values.view("S16"), known.view("S16")
    at = np.minimum(np.searchsorted(theirs, mine), len(theirs) - 1)
    return np.asarray(theirs[at] == mine)


def sorted_digests(values: np.ndarray) -> np.ndarray:
    return np.sort(values.view("S16")).view(f"V{DIGEST_BYTES}")


class Parts:
    """The parts in a folder, local or on any storage. Can be pickled.

    token: of the run that writes; only the run that came last writes
    """

    def __init__(self, out: str, token: str = "") -> None:
        check_library(".parquet")
        self.out, self.token = out.rstrip("/"), token

    def begin(self, scores_by: tuple[str, str], *, resume: bool, overwrite: bool) -> None:
        """Take the folder over for a new run. scores_by: model and settings of its rows

        `OutputError` where there are parts and neither resume nor overwrite is asked for, or rows of another model or
        other settings.
        """
        if not is_url(self.out):
            try:
                os.makedirs(self.out, exist_ok=True)
            except OSError as error:
                raise OutputError(f"{self.out} cannot be written: {error.strerror or error}") from error
        names = self.names()
        run = self._run()
        if names and not (resume or overwrite):
            raise OutputError(f"{self.out} holds scores already: --resume continues them, --overwrite begins anew")
        if resume and run and (run.get("model"), run.get("settings")) != scores_by:
            raise OutputError(
                f"{self.out} cannot be resumed: it was scored by {run.get('model')}, {run.get('settings')}; now it is "
                f"{', '.join(scores_by)}. Give another --out, or --overwrite"
            )
        self.token = uuid.uuid4().hex
        about = {"token": self.token, "model": scores_by[0], "settings": scores_by[1]}
        self._put(RUN, json.dumps(about).encode() + b"\n")
        if overwrite:
            for name in names:
                self._remove(name)

    def names(self) -> list[str]:
        """The names of all parts."""
        if not is_url(self.out):
            found = os.listdir(self.out) if os.path.isdir(self.out) else []
        else:
            fs, path = filesystem(self.out)
            try:
                found = [os.path.basename(name) for name in call(fs, "ls", path, detail=False, wait=True)]
            except FileNotFoundError:
                found = []
        return sorted(name for name in found if name.startswith("part-") and name.endswith(".parquet"))

    def name_of(self, keys: Sequence[str]) -> str:
        """The name of the part that holds rows of these keys."""
        return f"part-{hashlib.blake2b(digests(keys).tobytes(), digest_size=12).hexdigest()}.parquet"

    def write(self, rows: Sequence[Row], name: str) -> None:
        """Write a part; `OutputError` where another run has taken the folder over."""
        content = parquet_bytes(as_arrow(rows))
        if self._run().get("token") != self.token:
            raise OutputError(f"another run writes to {self.out}: it has taken the folder over, and this one stops")
        self._put(name, content)

    def rows(self, name: str) -> list[Row]:
        """The rows of a part."""
        import pyarrow.parquet as pq

        return from_arrow(pq.read_table(self._source(name)), Path(self.out) / name)

    def contents(self) -> Iterator[tuple[str, list[str], list[str]]]:
        """Of each part its name, and the keys and statuses of its rows."""
        import pyarrow.parquet as pq

        for name in self.names():
            content = pq.read_table(self._source(name), columns=["path", "status"])
            paths, statuses = content.column("path").to_pylist(), content.column("status").to_pylist()
            yield name, [unescaped(path) for path in paths], statuses

    def has(self, name: str) -> bool:
        if not is_url(self.out):
            return os.path.exists(os.path.join(self.out, name))
        fs, path = filesystem(self.out)
        return bool(call(fs, "exists", f"{path}/{name}"))

    def leave_out(self, name: str, keep: Sequence[bool]) -> None:
        """Write a part anew with some of its rows only."""
        rows = [row for row, wanted in zip(self.rows(name), keep, strict=True) if wanted]
        if rows:
            self.write(rows, name)
        else:
            self._remove(name)

    def without_failed(self) -> None:
        """Forget the rows of files that failed."""
        for name, _, statuses in list(self.contents()):
            if "error" in statuses:
                self.leave_out(name, [status == "ok" for status in statuses])

    def finish(self) -> tuple[int, int, np.ndarray]:
        """Number of rows, of those that failed, and the sorted digests of their keys. A row that is there twice,
        because one run ended while another began, is left out once."""
        found, failed = [np.empty(0, f"V{DIGEST_BYTES}")], 0
        for _, keys, statuses in self.contents():
            found.append(digests(keys))
            failed += sum(status != "ok" for status in statuses)
        known = np.concatenate(found)
        if len(np.unique(known.view("S16"))) < len(known):
            self._leave_out_doubles()
            return self.finish()
        if not is_url(self.out):
            for unfinished in Path(self.out).glob(".part-*.tmp"):
                unfinished.unlink(missing_ok=True)
        return len(known), failed, sorted_digests(known)

    def _leave_out_doubles(self) -> None:
        seen: set[str] = set()
        for name, keys, _ in list(self.contents()):
            keep = [not (key in seen or seen.add(key)) for key in keys]  # type: ignore[func-returns-value]
            if not all(keep):
                self.leave_out(name, keep)

    def _run(self) -> dict[str, Any]:
        try:
            found = json.loads(self._get(RUN))
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _get(self, name: str) -> bytes:
        if not is_url(self.out):
            return Path(self.out, name).read_bytes()
        fs, path = filesystem(self.out)
        return bytes(call(fs, "cat_file", f"{path}/{name}"))

    def _put(self, name: str, content: bytes) -> None:
        if not is_url(self.out):
            replace_file(Path(self.out, name), content)
            return
        fs, path = filesystem(self.out)
        call(fs, "pipe_file", f"{path}/{name}", content, wait=True)  # storages of objects show it whole

    def _remove(self, name: str) -> None:
        if not is_url(self.out):
            Path(self.out, name).unlink(missing_ok=True)
            return
        fs, path = filesystem(self.out)
        call(fs, "rm_file", f"{path}/{name}")

    def _source(self, name: str) -> Any:
        if not is_url(self.out):
            return os.path.join(self.out, name)
        import pyarrow as pa

        return pa.BufferReader(self._get(name))


def read_scores(path: str) -> list[Row]:
    """The rows of a table, or of a folder of parts: each key once, in the order of the keys. None where there is no
    such table. `OutputError` for a folder without parts."""
    if not (is_url(path) or os.path.isdir(path)) or Path(path).suffix.lower() in FORMATS:
        return read_table(Path(path))
    parts = Parts(path)
    rows: dict[str, Row] = {}
    for name in parts.names():
        for row in parts.rows(name):
            rows.setdefault(row.path, row)
    if not rows:
        raise OutputError(f"{path} holds no parts of a table that `sama score --ray` wrote")
    return [rows[key] for key in sorted(rows)]
