"""The pool of decoder sessions: bounds, reuse, order, failures, sessions taken away, and many threads at once."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from sama.decode.sessions import PATIENCE, SessionPool


class FakeSession:
    def __init__(self, key):
        self.key, self.resets, self.closed, self.failed = key, 0, False, False
        self.busy = threading.Lock()

    def reset(self):
        assert not self.closed
        self.resets += 1

    def close(self):
        assert not self.closed
        self.closed = True


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def waiting(pool, count):
    """Wait until that many threads wait for a session."""
    while len(pool.waiting) < count:
        threading.Event().wait(0.001)


def test_a_session_serves_one_file_after_another():
    pool = SessionPool(FakeSession, 2)
    with pool.lease("a") as first:
        session = first.session
    with pool.lease("a") as again, pool.lease("a") as other:
        assert again.session is session
        assert other.session is not session
    assert (pool.counts.created, pool.counts.reused, pool.alive, session.resets) == (2, 1, 2, 2)


def test_the_session_used_longest_ago_makes_room():
    pool = SessionPool(FakeSession, 2)
    sessions = {}
    for key in ("a", "b", "a"):
        with pool.lease(key) as lease:
            sessions[key] = lease.session
    with pool.lease("c") as lease:
        assert sessions["b"].closed
        assert not sessions["a"].closed
        assert lease.session.key == "c"
    assert (pool.alive, pool.counts.most) == (2, 2)


def test_a_session_that_failed_is_never_used_again():
    pool, broken = SessionPool(FakeSession, 1), []

    def fail(error):
        with pool.lease("a") as lease:
            broken.append(lease.session)
            raise error

    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error):
            fail(error)
        assert broken[-1].closed
    with pool.lease("a") as lease:
        assert lease.session not in broken
    assert (pool.counts.created, pool.counts.dropped, pool.alive) == (3, 2, 1)


def test_a_session_that_cannot_be_reset_is_dropped(monkeypatch):
    def fail(self):
        raise RuntimeError("stuck")

    pool = SessionPool(FakeSession, 1)
    with monkeypatch.context() as patch, pool.lease("a") as lease:
        patch.setattr(FakeSession, "reset", fail)
        broken = lease.session
        lease.__exit__(None)
    assert broken.closed
    assert (pool.alive, pool.idle, pool.counts.dropped) == (0, [], 1)


def test_a_session_that_cannot_be_made_leaves_its_place():
    made = []

    def create(key):
        made.append(key)
        if len(made) < 3:
            raise RuntimeError("out of memory")
        return FakeSession(key)

    pool = SessionPool(create, 1)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of memory"), pool.lease("a"):
            pass
        assert (pool.alive, len(pool.leases), len(pool.waiting)) == (0, 0, 0)
    with pool.lease("a") as lease:
        assert lease.session.key == "a"


def test_who_waits_longest_is_served_first_but_for_keys():
    """Of waiting b, c, a: a is passed on the session of its key; the others follow in order."""
    pool = SessionPool(FakeSession, 1)
    order = []

    def use(key):
        with pool.lease(key) as lease:
            assert lease.session.key == key
            order.append(key)

    threads = []
    with pool.lease("a"):
        for number, key in enumerate("bca"):
            threads.append(threading.Thread(target=use, args=key))
            threads[-1].start()
            waiting(pool, number + 1)
    for thread in threads:
        thread.join()
    assert order == ["a", "b", "c"]


def test_nobody_is_passed_over_for_ever():
    """The one that waits for b is passed over as often as there may be sessions, by a stream of threads for a."""
    pool = SessionPool(FakeSession, 2)
    order = []

    def use(key):
        with pool.lease(key):
            order.append(key)

    threads = []
    with pool.lease("a"), pool.lease("a"):
        for number, key in enumerate("b" + "a" * 9):
            threads.append(threading.Thread(target=use, args=key))
            threads[-1].start()
            waiting(pool, number + 1)
    for thread in threads:
        thread.join()
    assert order.index("b") <= 3  # two before it, and one at the same time
    assert len(order) == 10


def test_its_own_parked_session_is_taken_away_at_once():
    """As where one thread reads three videos in turn, with two sessions: none of them waits for ever."""
    pool = SessionPool(FakeSession, 2)

    def frames(key):
        left = 5
        while left:
            with pool.lease(key) as lease:
                while left:
                    assert lease.session.key == key
                    left -= 1
                    with lease.parked():
                        yield left
                    if lease.taken:
                        break

    assert [left for together in zip(*map(frames, "abc")) for left in together] == [
        n for n in (4, 3, 2, 1, 0) for _ in "abc"
    ]
    assert pool.counts.most == 2
    assert pool.counts.taken > 0
    abandoned = [frames(key) for key in "defg"]
    for one in abandoned:
        next(one)
    for one in abandoned:
        one.close()
    assert (pool.alive, len(pool.idle), pool.leases) == (2, 2, [])


def test_a_parked_session_of_another_thread_is_taken_after_a_while():
    clock = Clock()
    pool = SessionPool(FakeSession, 1, clock=clock)
    got = threading.Event()

    def use():
        with pool.lease("b"):
            got.set()

    with pool.lease("a") as lease:
        thread = threading.Thread(target=use)
        thread.start()
        waiting(pool, 1)
        clock.now = 2 * PATIENCE
        assert not got.wait(0.05)  # not parked
        with lease.parked():
            assert not got.wait(0.05)
            assert not lease.taken
            clock.now += PATIENCE
            with pool.changed:
                pool.changed.notify_all()
            assert got.wait(10)
            thread.join()
        assert lease.taken
    assert pool.counts.taken == 1
    assert [key for key, _ in pool.idle] == ["b"]


def test_clear_closes_what_is_not_in_use():
    pool = SessionPool(FakeSession, 3)
    with pool.lease("a") as lease:
        with pool.lease("b") as other:
            idle = other.session
        pool.clear()
        assert idle.closed
        assert not lease.session.closed
        assert pool.alive == 1
    assert len(pool.idle) == 1


def test_many_threads_and_failures():
    """Sixty threads, fourteen sessions, ten keys, every tenth job failing, making sessions failing too."""
    rng, lock, alive, most = random.Random(0), threading.Lock(), 0, 0
    draws = [rng.random() for _ in range(20_000)]

    def draw():
        with lock:
            return draws.pop()

    class Counted(FakeSession):
        def __init__(self, key):
            nonlocal alive, most
            if draw() < 0.05:
                raise OSError("no more sessions")
            super().__init__(key)
            with lock:
                alive += 1
                most = max(most, alive)

        def close(self):
            nonlocal alive
            super().close()
            with lock:
                alive -= 1

    pool = SessionPool(Counted, 14)
    outcomes = []

    def use(number):
        try:
            with pool.lease(number % 10) as lease:
                session = lease.session
                assert session.key == number % 10
                assert session.busy.acquire(blocking=False)
                assert not session.failed
                try:
                    for _ in range(3):
                        threading.Event().wait(0.0002)
                        if draw() < 0.03:
                            session.failed = True
                            raise ValueError
                finally:
                    session.busy.release()
            outcomes.append("done")
        except (ValueError, OSError) as error:
            outcomes.append(type(error).__name__)

    with ThreadPoolExecutor(60) as threads:
        list(threads.map(use, range(1000)))
    assert len(outcomes) == 1000
    assert outcomes.count("ValueError") > 30
    assert pool.counts.most <= 14
    assert most <= 14
    assert pool.alive == len(pool.idle) == alive
    assert (pool.leases, list(pool.waiting)) == ([], [])
    assert pool.counts.created + pool.counts.reused == 1000
