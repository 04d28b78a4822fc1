"""Manifests: tables that name what is to be scored, a row each, by paths, addresses, or the bytes of files.

Parquet, CSV with a header, and JSON Lines, local or on any storage; read row by row, never as a whole.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from sama.errors import DecodeError, InputError, MissingFileError
from sama.files import suffix
from sama.scorer import as_file
from sama.storage import KEYS, Handle, Media, find
from sama.tables import check_library

FORMS = (".parquet", ".csv", ".jsonl")
COLUMNS = ("path", "url", "file", "file_name", "video", "image", "bytes")  # of files, where none is named
ROWS = 64  # of a Parquet file at once: they may hold whole videos


class Manifest:
    """A table of files.

    column: of paths, addresses or bytes; None takes the first of `COLUMNS` that is there
    key: column that names bytes in the rows of scores; None takes the first of `sama.storage.KEYS`, else numbers. Paths
        and addresses name themselves
    `InputError` where the table has no such column or another form, `MissingFileError` where it is not there.
    """

    def __init__(self, path: str, column: str | None = None, key: str | None = None):
        self.path, self.form = path, suffix(path)
        if self.form not in FORMS:
            raise InputError(f"{path}: a manifest's name must end in {', '.join(FORMS)}")
        check_library(self.form)
        names = self._names()
        self.column = column or next((name for name in COLUMNS if name in names), None) or ""
        keys = [key] if key else [name for name in KEYS if name in names and name != self.column][:1]
        missing = [name for name in (self.column, *keys) if name not in names]
        if missing:
            asked = f"{missing[0]}" if missing[0] else f"of the names {', '.join(COLUMNS)}; say which one (--column)"
            raise InputError(f"{path} has no column {asked}; it has {', '.join(names)}")
        self.key = keys[0] if keys and self.has_bytes() else None  # paths name themselves

    def files(self, wanted: Iterable[str] | None = None) -> Iterator[str | Media]:
        """What is to be scored, in order. wanted: only what has these names, each once"""
        left = None if wanted is None else set(wanted)
        for n, entry in enumerate(self._entries(self.columns)):
            key = self._key(entry, n)
            if left is None or key in left:
                yield as_file(entry.get(self.column), key)
                (left or set()).discard(key)

    def keys(self) -> list[str]:
        """The names that `files` has in the rows of scores; without reading bytes, where the form allows that."""
        if self.has_bytes():
            wanted = [self.key] if self.key else []
            return [self._key(entry, n) for n, entry in enumerate(self._entries(wanted))]
        return [file.key if isinstance(file, Media) else file for file in self.files()]

    @property
    def columns(self) -> list[str]:
        """The columns that are needed."""
        return [self.column, *filter(None, [self.key])]

    def count(self) -> int:
        """The number of rows; 0 where it is not known without reading them."""
        if self.form != ".parquet":
            return 0
        import pyarrow.parquet as pq

        with self._open() as file:
            return int(pq.read_metadata(file).num_rows)

    def has_bytes(self) -> bool:
        """Whether the column of files holds their bytes."""
        if self.form != ".parquet":
            return False
        import pyarrow as pa

        kind = self._schema().field(self.column).type
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    def _key(self, entry: dict[str, Any], n: int) -> str:
        return str(entry.get(self.key)) if self.key else f"#{n}"

    def _open(self) -> BinaryIO:
        try:
            content = find(self.path)
        except DecodeError as error:
            raise InputError(str(error)) from None
        if content is not None:
            return io.BufferedReader(Handle(content))
        try:
            return open(self.path, "rb")
        except FileNotFoundError:
            raise MissingFileError(self.path) from None

    def _schema(self) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with self._open() as file:
                return pq.read_schema(file)
        except pa.ArrowException as error:
            raise InputError(f"{self.path} is no Parquet file ({error})") from None

    def _names(self) -> list[str]:
        if self.form == ".parquet":
            return list(self._schema().names)
        first: dict[str, Any] = next(self._entries([]), {})
        return list(first)

    def _entries(self, names: list[str]) -> Iterator[dict[str, Any]]:
        """The rows, as dictionaries with at least these columns."""
        with self._open() as file:
            if self.form == ".parquet":
                yield from self._parquet(file, names)
            elif self.form == ".csv":
                text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
                yield from csv.DictReader(text)
            else:
                for number, line in enumerate(file, start=1):
                    yield self._line(line, number)

    def _parquet(self, file: BinaryIO, names: list[str]) -> Iterator[dict[str, Any]]:
        import pyarrow.parquet as pq

        with pq.ParquetFile(file) as table:
            if not names:
                yield from ({} for _ in range(table.metadata.num_rows))
                return
            for batch in table.iter_batches(batch_size=ROWS, columns=names):
                yield from batch.to_pylist()

    def _line(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise InputError(f"{self.path}, line {number}, is no JSON ({error})") from None
        if not isinstance(entry, dict):
            raise InputError(f"{self.path}, line {number}: got {str(entry)[:40]!r}, expected an object with columns")
        return entry
