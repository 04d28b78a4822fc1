"""Rows of scores while files are scored: a journal on disk, turned into a table at the end.

A row is appended to the journal, `OUT.partial`, as soon as its file is done; the table `OUT` appears whole at the end,
and until then an older one stays as it is. Whatever interrupts the run (kill -9, a full disk), `resume` continues from
the rows that are there. One run at a time writes a journal: it holds a lock on it, which ends with its process.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from sama.errors import OutputError
from sama.files import replace_file
from sama.tables import ANEW, FORMATS, Row, as_line, check_library, read_journal, read_table, table

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


class Journal:
    """Rows on disk: appended one by one to `OUT.partial`, turned into `OUT` at the end.

    out: the table to write; its ending, one of `FORMATS`, tells the form
    scores_by: model and settings, as in every row
    resume: keep the rows of an earlier run, in `OUT` or `OUT.partial`, so that their files are not scored again
    retry: with resume, forget the rows of files that failed, so that they are scored again
    overwrite: begin anew although `OUT` exists
    `OutputError` where `OUT` has another ending, exists and neither resume nor overwrite is asked for, holds rows of
    another model or other settings, or cannot be written.
    """

    def __init__(
        self,
        out: str | os.PathLike[str],
        scores_by: tuple[str, str],
        *,
        resume: bool = False,
        retry: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.out = Path(out)
        self.partial = self.out.with_name(self.out.name + ".partial")
        self.rows: dict[str, Row] = {}
        if self.out.suffix.lower() not in FORMATS:
            raise OutputError(f"{out}: cannot tell the format; the name must end in {', '.join(FORMATS)}")
        check_library(self.out.suffix)
        if not self.out.parent.is_dir():
            raise OutputError(f"{out}: there is no folder {self.out.parent}")
        if not (resume or overwrite) and (self.out.exists() or self.partial.exists()):
            there = self.partial if self.partial.exists() else self.out
            raise OutputError(f"{there} exists already: --resume continues it, --overwrite begins anew")
        is_new = not self.partial.exists()
        self.file = self._open()
        try:
            if resume:
                self._resume(scores_by, retry)
            elif overwrite:
                self.file.truncate(0)
                self._append(ANEW)
        except BaseException:
            if is_new:
                self.partial.unlink(missing_ok=True)
            self.file.close()
            raise

    def _open(self) -> io.FileIO:
        """The journal, locked; `OutputError` where another run writes it."""
        while True:
            try:
                file = open(self.partial, "ab", buffering=0)  # noqa: SIM115 - closed by __exit__
            except OSError as error:
                raise OutputError(f"{self.partial} cannot be written: {error.strerror or error}") from error
            try:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.close()
                raise OutputError(
                    f"another run is writing {self.partial}: wait for it, or give another --out"
                ) from error
            except OSError:  # a file system without locks
                return file
            if self.partial.exists() and os.path.samestat(os.fstat(file.fileno()), self.partial.stat()):
                return file
            file.close()  # its run has ended meanwhile and removed it

    def _resume(self, scores_by: tuple[str, str], retry: bool) -> None:
        """Take over the rows of earlier runs, and cut off a row that was being written."""
        content = self.partial.read_bytes()
        self.file.truncate(content.rfind(b"\n") + 1)
        older = [] if content.startswith(ANEW) else read_table(self.out)
        self.rows = {row.path: row for row in [*older, *read_journal(self.partial)]}
        for row in self.rows.values():
            if (row.model, row.settings) != scores_by:
                raise OutputError(
                    f"{self.out} cannot be resumed: {row.path} was scored by {row.model}, {row.settings}; now it is "
                    f"{', '.join(scores_by)}. Give another --out, or --overwrite"
                )
        if retry:
            self.rows = {path: row for path, row in self.rows.items() if row.status == "ok"}

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.file.close()

    def remaining(self, paths: Iterable[str]) -> list[str]:
        """The paths that have no row yet."""
        return [path for path in paths if path not in self.rows]

    def add(self, row: Row) -> None:
        """Append a row and bring it to the disk; `OutputError` where that fails, with all rows before it kept."""
        self._append(as_line(row))
        self.rows[row.path] = row

    def _append(self, line: bytes) -> None:
        whole = self.file.seek(0, os.SEEK_END)
        try:
            left = memoryview(line)
            while left:
                left = left[self.file.write(left) :]
            os.fsync(self.file.fileno())
        except OSError as error:
            self.file.truncate(whole)  # a row that was cut off
            raise OutputError(f"{self.partial} cannot be written: {error.strerror or error}; {self.kept()}") from error

    def kept(self) -> str:
        """What an interrupted run leaves and how to continue it, for a message."""
        return f"{len(self.rows)} rows are kept in {self.partial}: --resume continues from them"

    def finish(self, order: Sequence[str] = ()) -> None:
        """Write `OUT` and remove the journal. Rows are in the given order of paths, rows of other paths before them."""
        place = {path: k for k, path in enumerate(order)}
        rows = sorted(self.rows.values(), key=lambda row: place.get(row.path, -1))
        try:
            replace_file(self.out, table(rows, self.out.suffix.lower()))
        except OutputError as error:
            raise OutputError(f"{error}; {self.kept()}") from error
        self.partial.unlink()
        self.file.close()
