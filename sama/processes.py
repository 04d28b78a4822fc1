"""Score files in several processes, each with the model and a few decoders of its own.

    paths --one at a time, to whoever asks--> process 1: score_files --rows--> rows, in the order of the paths
                                              process 2: score_files --rows-->

One process cannot keep the decoders of a large GPU busy, since Python runs one thread at a time: on an H200 it decoded
at most 1,430 pictures a second (1080p, H.264), however many sessions it had; seven processes of two sessions each
decoded 4,000, which is all that its seven engines can do (`bench/results/gpu-h200-processes.csv`).

A process that ends before its files are done, killed from outside or by a library's fault, costs nothing: its files go
to other processes, each to one of its own, and the file that ends that one too is a row with the reason.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

import torch

from sama.decode import gpu_workers
from sama.devices import pick_device
from sama.errors import SamaError, without_traceback
from sama.prefetch import Meter
from sama.storage import Media
from sama.tables import Row

if TYPE_CHECKING:
    from sama.model import QualityModel

FILES_EACH = 16  # at least, of a process: it takes some ten seconds to start
FILES_AHEAD = 4096  # given out while one before them is not done: their rows wait for it
MEMORY_EACH = 8 << 30  # bytes of a GPU's memory, for a model, a batch, and surfaces of decoders
SESSIONS_EACH = 2  # files decoded at one time by a process; one more is opened meanwhile
MOST_STILLBORN = 2
TAKE = "take"  # what a process says to be given a file


class ProcessError(SamaError):
    """Processes that were to score files ended before they had begun."""


def default_processes(model: QualityModel, decoder: str, files: int) -> int:
    """How many processes are worth it: one for each decoding engine of a GPU, 1 where no GPU decodes."""
    if model.kind != "video" or not gpu_workers(decoder, model.device):
        return 1
    from sama.decode import nvcodec

    device = pick_device(model.device, numbered=True)
    memory = torch.cuda.get_device_properties(device).total_memory
    cores = os.cpu_count() or 1
    return max(1, min(nvcodec.engines(device), cores // 2, memory // MEMORY_EACH, files // FILES_EACH))


def score_in_processes(
    paths: Iterable[str | Media],
    model: QualityModel,
    *,
    processes: int,
    workers: int | None = None,
    decoder: str = "auto",
    meter: Meter | None = None,
    **settings: Any,
) -> Generator[Row]:
    """As `sama.scoring.score_files`, by so many processes.

    workers: files decoded at the same time by all processes together
    decoder: with "hybrid" one more process decodes by CPU cores
    """
    settings["decoder"] = "auto" if decoder == "hybrid" else decoder
    settings["workers"] = max(1, workers // processes) if workers else None
    if workers is None and gpu_workers(decoder, model.device):
        settings["workers"] = SESSIONS_EACH + 1
    kinds = [settings] * processes
    if decoder == "hybrid":
        kinds.append(settings | {"decoder": "pyav", "workers": max(1, (os.cpu_count() or 1) // 2)})
    with contextlib.closing(_Team(paths, model, kinds, meter)) as team:
        yield from team.work()


class _Process:
    """A process that scores, this end of the pipe to it, and the files that it has, by number.

    alone: it is given one file and no more
    """

    def __init__(self, parts: bytes, settings: dict[str, Any], threads: int, *, alone: bool = False):
        context = multiprocessing.get_context("spawn")
        self.settings, self.alone = settings, alone
        self.files: dict[int, str | Media] = {}
        self.began = self.finished = False
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, parts, settings, threads), daemon=True)
        self.process.start()
        theirs.close()

    def close(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()

    def ending(self) -> str:
        """How it ended, in words."""
        self.process.join()
        code = self.process.exitcode or 0
        return f"by signal {signal.Signals(-code).name}" if code < 0 else f"with status {code}"


class _Team:
    """The processes, the files that are to be given out, and the rows that wait for those before them."""

    def __init__(
        self, paths: Iterable[str | Media], model: QualityModel, kinds: list[dict[str, Any]], meter: Meter | None
    ):
        self.attribution = model.attribution(kinds[0].get("every_seconds"))
        self.parts = pickle.dumps(model)
        self.threads = max(1, torch.get_num_threads() // len(kinds))
        self.meter = meter or Meter()
        self.files = enumerate(paths)
        self.stillborn = 0  # processes that ended before they took a file
        self.given = 0  # files given out
        self.over = False  # all files are given out
        self.suspects: deque[tuple[int, str | Media]] = deque()  # files of processes that ended
        self.rows: dict[int, Row] = {}
        self.next = 0  # the row that is to come
        self.waiting: list[_Process] = []  # for a file
        self.team = [_Process(self.parts, settings, self.threads) for settings in kinds]

    def close(self) -> None:
        """End all processes."""
        for process in self.team:
            process.close()

    def work(self) -> Iterator[Row]:
        """Every row, in order."""
        while self.team:
            ready = wait([process.connection for process in self.team])
            for process in [process for process in self.team if process.connection in ready]:
                self._hear(process)
            while self.next in self.rows:
                yield self.rows.pop(self.next)
                self.next += 1
            self.waiting = [process for process in self.waiting if not self._answer(process)]

    def _hear(self, process: _Process) -> None:
        """Take what a process says, or its end."""
        try:
            said = process.connection.recv()
        except (EOFError, OSError):
            self.team.remove(process)
            self.waiting = [other for other in self.waiting if other is not process]
            if not process.finished:
                self._lose(process)
            process.close()
            if self.suspects and not any(other.alone for other in self.team):
                self.team.append(_Process(self.parts, process.settings, self.threads, alone=True))
            return
        if isinstance(said, Exception):
            raise said
        if isinstance(said, Meter):
            process.finished = True
            self.meter.waited += said.waited
            self.meter.running += said.running
        elif isinstance(said, tuple):
            number, row = said
            del process.files[number]
            self.rows[number] = row
        else:
            process.began = True
            self.waiting.append(process)

    def _answer(self, process: _Process) -> bool:
        """Give a process a file, or word that there is none; False where it has to wait until rows have come."""
        file = None
        if process.alone:
            file = self.suspects.popleft() if self.suspects and not process.files else None
        elif not self.over:
            if self.given >= self.next + FILES_AHEAD:
                return False
            file = next(self.files, None)
            self.given += 1
            self.over = file is None
        if file is not None:
            process.files[file[0]] = file[1]
        with contextlib.suppress(OSError):  # it has ended, which `_hear` will be told
            process.connection.send(file)
        return True

    def _lose(self, process: _Process) -> None:
        """Make up for a process that ended before its files were done."""
        ending = process.ending()
        self.stillborn += not process.began
        if self.stillborn > MOST_STILLBORN:
            raise ProcessError(f"processes that were to score files ended {ending} before they began: use one process")
        if process.alone and process.began:
            for number, file in process.files.items():
                reason = f"the process that scored it ended {ending}, as one before had"
                self.rows[number] = Row(
                    file.key if isinstance(file, Media) else file, status="error", reason=reason, **self.attribution
                )
        else:
            self.suspects.extend(process.files.items())
            if not (self.over or process.alone):
                self.team.append(_Process(self.parts, process.settings, self.threads))


def _serve(connection: Connection, parts: bytes, settings: dict[str, Any], threads: int) -> None:
    """In a process of its own: ask for files, and send their numbers and rows; at the end how long was waited."""
    from sama.scoring import score_files

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal tells it to all processes; the first one ends the rest
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    numbers: deque[int] = deque()
    meter = Meter()

    def files() -> Iterator[str | Media]:
        while True:
            connection.send(TAKE)
            given = connection.recv()
            if given is None:
                return
            numbers.append(given[0])
            yield given[1]

    try:
        with contextlib.closing(score_files(files(), pickle.loads(parts), meter=meter, **settings)) as rows:
            for row in rows:
                connection.send((numbers.popleft(), row))
        connection.send(meter)
    except (EOFError, ConnectionError):  # the first process has ended
        return
    except Exception as error:
        connection.send(_as_sent(error))


def _end_with_parent() -> None:
    """End this process as soon as the one that started it has ended, however that was."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _as_sent(error: Exception) -> Exception:
    """An error as another process can have it."""
    error = without_traceback(error)
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
