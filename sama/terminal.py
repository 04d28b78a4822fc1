"""What the commands share on a terminal: messages, progress bars, exit statuses."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Callable, Iterator

from sama.errors import OutputError, SamaError

OK, SOME_FAILED, NOT_CARRIED_OUT, INTERRUPTED = 0, 1, 2, 130  # exit statuses


def carry_out(command: Callable[[], int], *, name: str = "sama", traceback: bool = False, hint: str = "") -> int:
    """Run a command and return its exit status.

    What a user can put right (`SamaError`, `OSError`, a GPU out of memory) is printed as one line, with status 2; so is
    an interruption, with status 130. Anything else is a bug and keeps its traceback.

    name: of the program, before the message; traceback: show the traceback of every error
    hint: how to continue, printed after an interruption and where an output file cannot be written
    """
    try:
        return command()
    except KeyboardInterrupt:
        print(f"\ninterrupted{hint}", file=sys.stderr)
        return INTERRUPTED
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
