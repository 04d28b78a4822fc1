"""Threads that work ahead of a consumer: jobs begin in order; what they produce is consumed in order or as it comes.

    jobs --threads: produce(job)--> items, each job's own queue --> (job, BEGUN), (job, item), ..., (job, Ended)
                                    or one queue for all of them, so that no job waits for the ones before it

How far ahead is bounded three ways: jobs begun, items per job, and bytes that jobs hold at one time (`Budget`).

A thread that is in a library's code cannot be ended. A job that is later than its guard allows, and does not end by
itself, is given up: it ends with an error for the consumer, another thread takes the place of its thread, and what it
may still produce is dropped.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from sama.errors import without_traceback
from sama.limits import Guard

Job = TypeVar("Job")
Item = TypeVar("Item")

BUDGET_BYTES = 2 << 30  # of frames in decoders, at one time
SPARE_SECONDS = 5.0  # between the moment when a job should have ended by itself and when it is given up
LOOK_SECONDS = 0.5  # between two looks at jobs that may be late
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
    """A job's place in the order; `hold(size)` waits until the job may keep that many bytes.

    guard: of the file that the job reads, where it has one
    """

    def __init__(self, number: int, budget: Budget, stop: threading.Event):
        self.number, self.budget, self.stop = number, budget, stop
        self.guard: Guard | None = None

    def hold(self, size: int) -> AbstractContextManager[None]:
        return self.budget.hold(self.number, size, self.stop)


class _Started(Generic[Job]):
    """A job that has begun, and where its items go: a queue of `(this, item)`. given_up: how it ended, if so."""

    def __init__(self, job: Job, items: queue.Queue, ticket: Ticket):
        self.job, self.items, self.ticket = job, items, ticket
        self.given_up: Ended | None = None

    def late(self) -> bool:
        """Whether the job is to be given up; it is then."""
        guard = self.ticket.guard
        if self.given_up is None and guard is not None and (error := guard.late(SPARE_SECONDS)):
            self.given_up = Ended(error, guard.seconds)
            self.ticket.budget.leave(self.ticket.number)
            return True
        return False


class _Threads:
    """Threads that carry out tasks in order. They do not keep the process alive."""

    def __init__(self, count: int):
        self.tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.threads: list[threading.Thread] = []
        for _ in range(count):
            self.add()

    def add(self) -> None:
        name = f"decode_{len(self.threads)}"
        self.threads.append(threading.Thread(target=self._run, name=name, daemon=True))
        self.threads[-1].start()

    def _run(self) -> None:
        while (task := self.tasks.get()) is not None:
            task()

    def end(self, given_up: int) -> None:
        """Wait for all threads but those whose jobs were given up."""
        for _ in self.threads:
            self.tasks.put(None)
        while sum(thread.is_alive() for thread in self.threads) > given_up:
            for thread in self.threads:
                thread.join(0.05)


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
    given_up: list[_Started[Job]] = []
    remaining = enumerate(jobs)
    begun, newest = time.perf_counter(), 0
    threads = _Threads(workers)

    def begin() -> None:
        """Begin as many jobs as may be."""
        nonlocal newest
        while in_bounds():
            entry = next(remaining, None)
            if entry is None:
                return
            newest, job = entry
            one = _Started(job, shared or queue.Queue(items_ahead), Ticket(newest, budget, stop))
            started.append(one)
            announced.append(one)
            budget.enter(newest)
            threads.tasks.put(partial(_work, one, produce))

    def in_bounds() -> bool:
        if in_order:
            return len(started) < max(jobs_ahead, workers)
        return not started or (len(started) <= workers and newest + 1 - started[0].ticket.number < jobs_ahead)

    def take() -> tuple[_Started[Job], Item | Ended]:
        """The next item, or the end of a job that is given up."""
        while True:
            for one in [started[0]] if in_order else list(started):
                if one.given_up is not None:
                    return one, one.given_up
            try:
                current, item = (shared or started[0].items).get(timeout=LOOK_SECONDS)
            except queue.Empty:
                late = [one for one in started if one.late()]
                for _ in late:
                    threads.add()
                given_up.extend(late)
                continue
            if current.given_up is None:
                return current, item

    try:
        begin()
        while started:
            while announced and (not in_order or announced[0] is started[0]):
                yield announced.popleft().job, BEGUN
            waiting = time.perf_counter()
            current, item = take()
            meter.waited += time.perf_counter() - waiting
            meter.running += time.perf_counter() - begun
            begun = time.perf_counter()
            if isinstance(item, Ended):
                started.remove(current)
                begin()
            yield current.job, item
    finally:
        stop.set()
        threads.end(len(given_up))


def _work(started: _Started, produce: Callable[[Job, Ticket], Iterable[Item]]) -> None:
    """Put everything that a job produces into its queue, then how it ended."""
    ticket = started.ticket
    start, waited, error = time.perf_counter(), 0.0, None

    def put(item: Item | Ended) -> None:
        nonlocal waited
        began = time.perf_counter()
        while not (ticket.stop.is_set() or started.given_up):
            try:
                started.items.put((started, item), timeout=0.2)
                break
            except queue.Full:
                continue
        waited += time.perf_counter() - began

    if ticket.stop.is_set():
        return
    try:
        for item in produce(started.job, ticket):
            if ticket.stop.is_set() or started.given_up:
                return
            put(item)
    except Exception as caught:
        error = without_traceback(caught)
    finally:
        ticket.budget.leave(ticket.number)
        put(Ended(error, time.perf_counter() - start - waited))
