"""Threads that work ahead of a consumer: jobs begin in order; what they produce is consumed in order or as it comes.

    jobs --threads: produce(job)--> items, each job's own queue --> (job, BEGUN), (job, item), ..., (job, Ended)
                                    or one queue for all of them, so that no job waits for the ones before it

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


class _Started(Generic[Job]):
    """A job that has begun, and where its items go: a queue of `(this, item)`."""

    def __init__(self, number: int, job: Job, items: queue.Queue):
        self.number, self.job, self.items = number, job, items


def ahead(
    jobs: Iterable[Job],
    produce: Callable[[Job, Ticket], Iterable[Item]],
    *,
    workers: int,
    jobs_ahead: int,
    items_ahead: int,
    budget_bytes: int = BUDGET_BYTES,
    meter: Meter | None = None,
    in_order: bool = True,
) -> Generator[tuple[Job, Item | Ended | object], None, None]:
    """Run jobs in threads, ahead of whoever consumes what they produce.

    produce: called with a job and its `Ticket`, in a thread; yields the job's items
    workers: threads
    jobs_ahead: jobs begun and not yet consumed, at most; counted from the oldest of them
    items_ahead: items that wait to be consumed, at most: of each job, or, unless in_order, of all together
    budget_bytes: that all jobs together may hold, by `Ticket.hold`
    meter: records how long the consumer waits
    in_order: yield a job's items only after those of the jobs before it. Otherwise the items of different jobs mix as
        they come, so that a long job holds up no other; those of one job still come in order

    Yields `(job, BEGUN)` in the order of the jobs, then `(job, item)` for each item as soon as it is there, and
    `(job, Ended)`. An error in a job ends that job alone. Closing the generator ends the threads.
    """
    stop, budget, meter = threading.Event(), Budget(budget_bytes), meter or Meter()
    shared: queue.Queue | None = None if in_order else queue.Queue(items_ahead)
    started: deque[_Started[Job]] = deque()  # and not consumed to their end
    announced: deque[_Started[Job]] = deque()  # started, and `BEGUN` not yielded yet
    remaining = enumerate(jobs)
    begun, newest = time.perf_counter(), 0

    def begin(pool: ThreadPoolExecutor) -> None:
        """Begin as many jobs as may be."""
        nonlocal newest
        while in_bounds():
            entry = next(remaining, None)
            if entry is None:
                return
            newest, job = entry
            started.append(_Started(newest, job, shared or queue.Queue(items_ahead)))
            announced.append(started[-1])
            budget.enter(newest)
            pool.submit(_work, started[-1], produce, Ticket(newest, budget, stop))

    def in_bounds() -> bool:
        if in_order:
            return len(started) < max(jobs_ahead, workers)
        return not started or (len(started) <= workers and newest + 1 - started[0].number < jobs_ahead)

    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        try:
            begin(pool)
            while started:
                while announced and (not in_order or announced[0] is started[0]):
                    yield announced.popleft().job, BEGUN
                waiting = time.perf_counter()
                current, item = (shared or started[0].items).get()
                meter.waited += time.perf_counter() - waiting
                meter.running += time.perf_counter() - begun
                begun = time.perf_counter()
                if isinstance(item, Ended):
                    started.remove(current)
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
                started.items.put((started, item), timeout=0.2)
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
