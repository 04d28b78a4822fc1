"""Threads that work ahead of a consumer: jobs begin in order, and what they produce is consumed in order.

    jobs --threads: produce(job)--> items, each job's own queue --> (job, BEGUN), (job, item), ..., (job, Ended)

How far ahead is bounded three ways: jobs begun, items per job, and bytes that jobs hold at one time (`Budget`).
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from sama.errors import without_traceback

Job = TypeVar("Job")
Item = TypeVar("Item")

BUDGET_BYTES = 2 << 30  # of frames in decoders, at one time
BEGUN = object()  # stands for the beginning of a job among its items


@dataclass(frozen=True)
class Ended:
    """The end of a job: the error that ended it, if one did, and the seconds it worked, without waiting."""

    error: Exception | None
    seconds: float


@dataclass
class Meter:
    """Seconds that a consumer has waited for its producers, and seconds that it has been running."""

    waited: float = 0.0
    running: float = 0.0

    @property
    def share(self) -> float:
        """Part of the time that was spent waiting, 0..1."""
        return self.waited / self.running if self.running else 0.0


class Budget:
    """Bytes that jobs may hold at one time. Jobs are numbered; the oldest is always let through, however large."""

    def __init__(self, limit: int):
        self.limit, self.used = limit, 0
        self._active: set[int] = set()
        self._changed = threading.Condition()

    def enter(self, number: int) -> None:
        with self._changed:
            self._active.add(number)

    def leave(self, number: int) -> None:
        with self._changed:
            self._active.discard(number)
            self._changed.notify_all()

    @contextmanager
    def hold(self, number: int, size: int, stop: threading.Event) -> Iterator[None]:
        """Wait until `size` bytes are free, keep them until the end of the block."""
        with self._changed:
            while not (self.used + size <= self.limit or number == min(self._active) or stop.is_set()):
                self._changed.wait(0.2)
            self.used += size
        try:
            yield
        finally:
            with self._changed:
                self.used -= size
                self._changed.notify_all()


class Ticket:
    """A job's place in the order; `hold(size)` waits until the job may keep that many bytes."""

    def __init__(self, number: int, budget: Budget, stop: threading.Event):
        self.number, self.budget, self.stop = number, budget, stop

    def hold(self, size: int) -> AbstractContextManager[None]:
        return self.budget.hold(self.number, size, self.stop)


class _Started(Generic[Job, Item]):
    """A job that has begun, and the items that it has produced and nobody has consumed."""

    def __init__(self, job: Job, items_ahead: int):
        self.job = job
        self.items: queue.Queue = queue.Queue(items_ahead)


def ahead(
    jobs: Iterable[Job],
    produce: Callable[[Job, Ticket], Iterable[Item]],
    *,
    workers: int,
    jobs_ahead: int,
    items_ahead: int,
    budget_bytes: int = BUDGET_BYTES,
    meter: Meter | None = None,
) -> Generator[tuple[Job, Item | Ended | object], None, None]:
    """Run jobs in threads, ahead of whoever consumes what they produce.

    produce: called with a job and its `Ticket`, in a thread; yields the job's items
    workers: threads
    jobs_ahead: jobs begun and not yet consumed, at most
    items_ahead: items of each such job that wait to be consumed, at most
    budget_bytes: that all jobs together may hold, by `Ticket.hold`
    meter: records how long the consumer waits

    Yields, in the order of the jobs: `(job, BEGUN)`, `(job, item)` for each item as soon as it is there, and
    `(job, Ended)`. An error in a job ends that job alone. Closing the generator ends the threads.
    """
    stop, budget, meter = threading.Event(), Budget(budget_bytes), meter or Meter()
    started: deque[_Started] = deque()
    remaining = enumerate(jobs)
    begun = time.perf_counter()

    def begin(pool: ThreadPoolExecutor) -> None:
        number, job = next(remaining, (None, None))
        if number is not None:
            started.append(_Started(job, items_ahead))
            budget.enter(number)
            pool.submit(_work, started[-1], produce, Ticket(number, budget, stop))

    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        try:
            for _ in range(max(jobs_ahead, workers)):
                begin(pool)
            while started:
                current = started[0]
                yield current.job, BEGUN
                item = None
                while not isinstance(item, Ended):
                    waiting = time.perf_counter()
                    item = current.items.get()
                    meter.waited += time.perf_counter() - waiting
                    meter.running += time.perf_counter() - begun
                    begun = time.perf_counter()
                    if isinstance(item, Ended):
                        started.popleft()
                        begin(pool)
                    yield current.job, item
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


def _work(started: _Started, produce: Callable[[Job, Ticket], Iterable[Item]], ticket: Ticket) -> None:
    """Put everything that a job produces into its queue, then how it ended."""
    start, waited, error = time.perf_counter(), 0.0, None

    def put(item: Item | Ended) -> None:
        nonlocal waited
        began = time.perf_counter()
        while not ticket.stop.is_set():
            try:
                started.items.put(item, timeout=0.2)
                break
            except queue.Full:
                continue
        waited += time.perf_counter() - began

    try:
        for item in produce(started.job, ticket):
            if ticket.stop.is_set():
                return
            put(item)
    except Exception as caught:
        error = without_traceback(caught)
    finally:
        ticket.budget.leave(ticket.number)
        put(Ended(error, time.perf_counter() - start - waited))
