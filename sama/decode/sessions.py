"""A pool of decoder sessions: as many as the hardware serves at once, kept between files, and waited for.

    with pool.lease(key) as lease:                # waits while all sessions are busy
        for n, frame in lease.session.decode(...):
            with lease.parked():
                yield n, frame                    # whoever takes the frames may never come back
            if lease.taken: ...                   # and the session may serve another file by now

Sessions of one key are interchangeable. One whose lease ends with an error is closed and never used again. Once `limit`
are there, one of another key is closed to make room. Whoever has waited longest is served first, unless another waits
for the key of a session that is free; nobody is passed over more than `limit` times.

So that nobody waits for ever for a session whose frames nobody takes, a parked lease can be taken away: at once by the
thread that parked it, by others after `PATIENCE`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

PATIENCE = 10.0  # seconds that a parked lease is left alone


class Session(Protocol):
    """What a pool keeps. It is used by one thread at a time, not always the same one."""

    def reset(self) -> None:
        """Make it as new, whatever it was doing."""

    def close(self) -> None:
        """Give back what it holds; never raises."""


Key = TypeVar("Key", bound=Hashable)
AnySession = TypeVar("AnySession", bound=Session)


@dataclass
class Counts:
    """What a pool has done: sessions created, leases served by one that was there, sessions dropped after a failure,
    leases taken away, and the most sessions alive at one time."""

    created: int = 0
    reused: int = 0
    dropped: int = 0
    taken: int = 0
    most: int = 0


class Lease(Generic[Key, AnySession]):
    """The right to use one session until the end of a `with` block."""

    def __init__(self, pool: SessionPool[Key, AnySession], key: Key):
        self.pool, self.key = pool, key
        self._session: AnySession | None = None
        self.skipped = 0  # how often it was passed over
        self.parked_since: float | None = None
        self.parked_by = 0

    @property
    def session(self) -> AnySession:
        """The session; only within the block, and while it is not `taken`."""
        assert self._session is not None
        return self._session

    @property
    def taken(self) -> bool:
        """Whether the session was taken away while the lease was parked."""
        return self._session is None

    @contextmanager
    def parked(self) -> Iterator[None]:
        """While this block runs, the session is not in use, and may be taken away."""
        with self.pool.changed:
            self.parked_since, self.parked_by = self.pool.clock(), threading.get_ident()
            self.pool.changed.notify_all()
        try:
            yield
        finally:
            with self.pool.changed:
                self.parked_since = None

    def __enter__(self) -> Lease[Key, AnySession]:
        self._session = self.pool.acquire(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        failed = kind is not None and not issubclass(kind, GeneratorExit)
        self.pool.release(self, self.take(), failed=failed)

    def take(self) -> AnySession | None:
        """Take the session out of the lease."""
        with self.pool.changed:
            session, self._session = self._session, None
        return session


class SessionPool(Generic[Key, AnySession]):
    """At most `limit` sessions alive at one time.

    create: makes a session for a key; what it raises is raised to whoever asked for the session
    clock, condition: of time and of threads, in place of Python's, for simulations
    """

    def __init__(
        self,
        create: Callable[[Key], AnySession],
        limit: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        condition: threading.Condition | None = None,
    ):
        self.create, self.limit, self.clock = create, limit, clock
        self.changed = condition or threading.Condition()
        self.counts = Counts()
        self.alive = 0  # idle, in use, and being created or closed
        self.idle: list[tuple[Key, AnySession]] = []  # the one used last at the end
        self.leases: list[Lease[Key, AnySession]] = []
        self.waiting: deque[Lease[Key, AnySession]] = deque()

    def lease(self, key: Key) -> Lease[Key, AnySession]:
        """A lease; entering it waits for a session."""
        return Lease(self, key)

    def acquire(self, lease: Lease[Key, AnySession]) -> AnySession:
        """Wait for a session; `Lease` calls it."""
        with self.changed:
            self.waiting.append(lease)
        try:
            return self._wait(lease)
        except BaseException:
            with self.changed:
                if lease in self.waiting:
                    self.waiting.remove(lease)
                self.changed.notify_all()
            raise

    def _wait(self, lease: Lease[Key, AnySession]) -> AnySession:
        later: list[Lease[Key, AnySession]] = []
        while True:
            with self.changed:
                while self._next() is not lease or not (self._free() or self._abandoned()):
                    self.changed.wait(self._seconds_to_wait())
                if self._free():
                    session, fits = self._find(lease.key)
                    while (passed_over := self.waiting.popleft()) is not lease:
                        passed_over.skipped += 1
                        later.append(passed_over)
                    self.waiting.extendleft(reversed(later))
                    self.leases.append(lease)
                    self.changed.notify_all()
                    break
                abandoned = self._abandoned()
                assert abandoned is not None
                taken = abandoned.take()
                self.counts.taken += 1
            self.release(abandoned, taken, failed=False)  # so that it is free, and this thread the first to be served
        if session is not None and fits:
            return session
        try:
            if session is not None:
                session.close()
            return self.create(lease.key)
        except BaseException:
            with self.changed:
                self.leases.remove(lease)
                self.alive -= 1
                self.counts.dropped += 1
                self.changed.notify_all()
            raise

    def _next(self) -> Lease[Key, AnySession]:
        """Who is served next."""
        if self.waiting[0].skipped < self.limit:
            keys = {key for key, _ in self.idle}
            for lease in self.waiting:
                if lease.key in keys:
                    return lease
        return self.waiting[0]

    def _free(self) -> bool:
        return bool(self.idle) or self.alive < self.limit

    def _find(self, key: Key) -> tuple[AnySession | None, bool]:
        """An idle session and whether it is of that key; one that is not is closed first; None where there is room."""
        for place in reversed(range(len(self.idle))):
            if self.idle[place][0] == key:
                self.counts.reused += 1
                return self.idle.pop(place)[1], True
        self.counts.created += 1
        if self.alive < self.limit:
            self.alive += 1
            self.counts.most = max(self.counts.most, self.alive)
            return None, False
        return self.idle.pop(0)[1], False

    def _abandoned(self) -> Lease[Key, AnySession] | None:
        """A parked lease that may be taken away by this thread."""
        now, here = self.clock(), threading.get_ident()
        for lease in self.leases:
            since = lease.parked_since
            if since is not None and not lease.taken and (lease.parked_by == here or now - since >= PATIENCE):
                return lease
        return None

    def _seconds_to_wait(self) -> float | None:
        """Until the first parked lease may be taken away."""
        parked = [lease.parked_since for lease in self.leases if lease.parked_since is not None and not lease.taken]
        return max(0.01, min(parked) + PATIENCE - self.clock()) if parked else None

    def release(self, lease: Lease[Key, AnySession], session: AnySession | None, *, failed: bool) -> None:
        """End a lease and keep its session, unless that failed or cannot be reset; `Lease` calls it.

        session: None where it was taken away before
        """
        if session is None:
            return
        if not failed:
            try:
                session.reset()
            except Exception:
                failed = True
        if failed:
            session.close()
        with self.changed:
            self.leases.remove(lease)
            if failed:
                self.alive -= 1
                self.counts.dropped += 1
            else:
                self.idle.append((lease.key, session))
            self.changed.notify_all()

    def clear(self) -> None:
        """Close all sessions that are not in use."""
        with self.changed:
            idle, self.idle = self.idle, []
        for _, session in idle:
            session.close()
        with self.changed:
            self.alive -= len(idle)
            self.changed.notify_all()
