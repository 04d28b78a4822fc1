"""What the commands share on a terminal: messages, progress bars, exit statuses."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from sama.errors import OutputError, SamaError

OK, SOME_FAILED, NOT_CARRIED_OUT, INTERRUPTED = 0, 1, 2, 130  # exit statuses; 143 after SIGTERM
GRACE_SECONDS = 1.0  # after Ctrl-C or SIGTERM, in which a command may end by itself
SIGNALS: dict[int, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
}  # and what handles them before


class Interruption:
    """Ctrl-C and SIGTERM: what is said then, once, and the exit status.

    hint: how to continue; may be called in another thread
    """

    def __init__(self) -> None:
        self.begin("")

    def begin(self, hint: str) -> None:
        """Begin anew, for another command."""
        self.hint: Callable[[], str] = lambda: hint
        self.status = INTERRUPTED
        self._said = False

    def say(self) -> None:
        if not self._said:
            self._said = True
            print(f"\ninterrupted{self.hint()}", file=sys.stderr, flush=True)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Of a signal, in the main thread as soon as it is in Python's code."""
        self.status = 128 + number
        raise KeyboardInterrupt

    def watch(self, signals: int) -> None:
        """In a thread: end the process `GRACE_SECONDS` after a signal, at once after another one.

        A decoder that is at work in another thread cannot be ended, nor can the main thread where it is in a library's
        code. What is finished is on disk by then. signals: a file descriptor that numbers of signals are read from
        """
        first = None
        while True:
            ready = select.select([signals], [], [], None if first is None else GRACE_SECONDS)[0]
            numbers = os.read(signals, 64) if ready else b""
            if ready and not numbers:  # closed: the command has ended by itself
                os.close(signals)
                return
            wanted = [number for number in numbers if number in SIGNALS]
            if first is not None and (wanted or not ready):
                self.say()
                if sys.stderr.isatty():
                    print("\x1b[?25h", end="", file=sys.stderr, flush=True)  # the cursor, hidden by progress bars
                os._exit(128 + first)
            first = wanted[0] if wanted and first is None else first

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """While the block runs, Ctrl-C and SIGTERM raise KeyboardInterrupt and end the process soon, whatever it is at.

        Signals that are ignored, or handled by somebody else, stay so; and all of them outside the main thread.
        """
        ours = [number for number, before in SIGNALS.items() if signal.getsignal(number) is before]
        if threading.current_thread() is not threading.main_thread() or not ours:
            yield
            return
        read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        for number in ours:
            signal.signal(number, self.handle)
        before = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        threading.Thread(target=self.watch, args=(read_end,), name="signals", daemon=True).start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            os.close(write_end)
            for number in ours:
                signal.signal(number, SIGNALS[number])


interruption = Interruption()


def carry_out(command: Callable[[], int], *, name: str = "sama", traceback: bool = False, hint: str = "") -> int:
    """Run a command and return its exit status.

    What a user can put right (`SamaError`, `OSError`, a GPU out of memory) is printed as one line, with status 2; so is
    an interruption, with status 130, or 143 after SIGTERM. Anything else is a bug and keeps its traceback.

    name: of the program, before the message; traceback: show the traceback of every error
    hint: how to continue, printed after an interruption and where an output file cannot be written; a command that
        knows it later sets `interruption.hint`
    """
    interruption.begin(hint)
    try:
        from sama.decode import images

        with interruption.watched(), images.quiet():
            return command()
    except KeyboardInterrupt:
        interruption.say()
        return interruption.status
    except Exception as error:
        if traceback or not (isinstance(error, SamaError | OSError) or type(error).__name__ == "OutOfMemoryError"):
            raise
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        print(f"{name}: {error}{hint if full or isinstance(error, OutputError) else ''}", file=sys.stderr)
        return NOT_CARRIED_OUT


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error. Yields a function to be called with (number done, number in all)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=sys.stderr.isatty()) as bar:
        task = bar.add_task(title, total=None)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield update
