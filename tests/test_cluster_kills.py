"""A corpus on a cluster of three Ray nodes whose processes are killed at random moments: the table of an undisturbed
run all the same, nothing twice and nothing lost.

SAMA_RAY_KILLS=20 kills so often, SAMA_RAY_SEED=1 at other moments: some ten minutes of two free cores for the command,
some five for a scorer that takes no core's time.
"""

import dataclasses
import hashlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import videos
from servers import file_server
from test_cluster import by_path, command

import sama
from sama.parts import Parts, read_scores
from sama.scoring import score_files
from sama.tables import Row

KILLS = int(os.environ.get("SAMA_RAY_KILLS", "0"))
FILES, PART_ROWS = 120, 2
PARTS = FILES // PART_ROWS
ANSWER_SECONDS = 0.4  # that the server takes for a file: a run takes long enough to be disturbed, and no core's time
RUN_SECONDS = 300.0  # within which a run must end
NODE = {"num_cpus": 2, "object_store_memory": 80 << 20}
NO_WORK = ("ray::IDLE", "ray::RuntimeEnvAgent", "ray::DashboardAgent")  # agents: a node ends with them
KINDS = ("worker", "node", "driver"), ("worker", "node", "head")  # of a run: this, in three runs of four, or that


class Disturbed:
    """Three Ray nodes on this machine, and what is killed of them."""

    def __init__(self, draw: random.Random):
        self.draw = draw
        self.begin()

    def begin(self):
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        self.nodes = [self.add_node() for _ in range(2)]

    def add_node(self):
        for _ in range(3):
            with suppress(Exception):  # not up within the 30 seconds that Ray gives it, on a busy machine
                return self.cluster.add_node(**NODE)
        return self.cluster.add_node(**NODE)

    def kill(self, kind: str, driver: subprocess.Popen) -> str:
        """Kill what is asked for, at once; what it was, "" where the driver ended before."""
        if driver.poll() is not None:
            return ""
        if kind == "driver":
            driver.kill()
        elif kind == "node":
            self.cluster.remove_node(self.nodes.pop(self.draw.randrange(2)), allow_graceful=False)
            self.nodes.append(self.add_node())
        elif kind == "head":  # Ray does not outlive it
            for node in (self.cluster.head_node, *self.nodes):
                self.cluster.remove_node(node, allow_graceful=False)
            self.begin()
        else:
            return self.kill_worker(driver)
        return kind

    def kill_worker(self, driver: subprocess.Popen) -> str:
        while driver.poll() is None:
            workers = dict(self.workers())
            scorers = [process for process, does in workers.items() if does.startswith("ray::MapWorker")]
            if workers:
                process = self.draw.choice(sorted(scorers or workers, key=lambda one: one.pid))
                process.send_signal(signal.SIGKILL)
                return workers[process]
            time.sleep(0.05)
        return ""

    def workers(self):
        """Ray's processes that do work, and what each does."""
        import psutil

        for process in psutil.Process().children(recursive=True):
            try:
                does = process.cmdline()[0].strip()
            except (psutil.Error, IndexError):  # it has ended
                continue
            if does.startswith("ray::") and not does.startswith(NO_WORK):
                yield process, does


# Ray's way from listing to parts, without the network: a row says what is in its file.
HASHES = """
import hashlib, json, sys, time
from types import SimpleNamespace
from sama.cluster import ClusterOptions, PartScorer, score_on_ray
from sama.parts import Parts
from sama.tables import Row

class Hashes(PartScorer):
    def score(self, batch):
        rows = []
        for path in batch["path"].to_pylist():
            time.sleep(SECONDS)
            content = open(path, "rb").read()
            score = int.from_bytes(hashlib.sha256(content).digest()[:4], "big") / 2**32
            status = "ok" if content else "error"
            rows.append(Row(path, status, score if content else None, reason="" if content else "the file is empty"))
        return rows

if __name__ == "__main__":
    out, address, *paths = sys.argv[1:]
    parts = Parts(out)
    parts.begin(("hashes", ""), resume=True, overwrite=False)
    scorer = SimpleNamespace(column="path", key=None, threads=None)
    options = ClusterOptions(address, cpus=1, actors=3, part_rows=PART_ROWS)
    rows, failed = score_on_ray(paths, scorer, parts, options, stage=Hashes)
    sys.exit(1 if failed else 0)
"""


@pytest.fixture(params=["hashes", "command"])
def corpus(request, tmp_path):
    """What starts a run, as words, and the rows of an undisturbed one."""
    make = hashes if request.param == "hashes" else scored
    with make(request, tmp_path) as made:
        yield made


@contextmanager
def hashes(request, tmp_path):
    paths = [tmp_path / f"{n:03}.bin" for n in range(FILES)]
    for n, path in enumerate(paths):
        path.write_bytes(bytes([n]) * (n % 60))  # two are empty
    script = tmp_path / "hashes.py"
    script.write_text(HASHES.replace("SECONDS", str(ANSWER_SECONDS)).replace("PART_ROWS", str(PART_ROWS)))
    expected = {}
    for path in map(str, paths):
        content = Path(path).read_bytes()
        score = int.from_bytes(hashlib.sha256(content).digest()[:4], "big") / 2**32
        row = Row(path, score=score) if content else Row(path, "error", reason="the file is empty")
        expected[path] = dataclasses.replace(row, seconds=0)

    yield lambda out, address: [sys.executable, script, out, address, *paths], expected


@contextmanager
def scored(request, tmp_path):
    """The command, on a manifest of addresses; two files cannot be scored, and the server takes its time."""
    weights = request.getfixturevalue("weights")
    request.getfixturevalue("one_thread")  # as the actors have
    with file_server() as server:
        contents = [
            videos.write_video(tmp_path / f"{k}.mp4", "mpeg4", num_frames=10 + k).read_bytes() for k in range(6)
        ]
        urls = [server.put(f"{k:03}.mp4", contents[k % 6]) for k in range(FILES - 2)]
        urls += [server.put("bad.mp4", b"no video"), server.url("gone.mp4")]
        expected = by_path(score_files(urls, sama.load_model(weights, "cpu")))
        for name in server.files:
            server.faults[name] = lambda number: time.sleep(ANSWER_SECONDS) or ""
        pq.write_table(pa.table({"url": urls}), tmp_path / "files.parquet")

        def words(out, address):
            files = "--manifest", tmp_path / "files.parquet", "--weights", weights, "--out", out, "--resume"
            return command(*files, "--part-rows", PART_ROWS, "--actor-cpus", 1, f"--ray={address}")[0]

        yield words, expected


def wait_for_parts(parts: Parts, least: int, driver: subprocess.Popen):
    """Until so many parts are there, or the driver has ended."""
    end = time.monotonic() + RUN_SECONDS
    while len(parts.names()) < least and driver.poll() is None and time.monotonic() < end:
        time.sleep(0.02)


def finish(driver: subprocess.Popen) -> int:
    """The exit status of a driver; 0 that of one which is not done in time."""
    try:
        return driver.wait(RUN_SECONDS)
    except subprocess.TimeoutExpired:
        driver.kill()
        driver.wait()
        return 0


@pytest.mark.skipif(not KILLS, reason="takes minutes: SAMA_RAY_KILLS=20 kills so often")
@pytest.mark.filterwarnings("ignore")
def test_killed_workers_nodes_and_drivers_lose_nothing_and_double_nothing(corpus, tmp_path, monkeypatch, capsys):
    pytest.importorskip("ray")
    environment = {"RAY_worker_niceness": "0", "RAY_prestart_worker_first_driver": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    words, expected = corpus
    assert sum(row.status == "error" for row in expected.values()) == 2
    draw, killed = random.Random(int(os.environ.get("SAMA_RAY_SEED", "0"))), 0
    disturbed = Disturbed(draw)

    def say(text):
        with capsys.disabled():
            print(text, flush=True)

    try:
        for run in itertools.count():
            if killed >= KILLS:
                break
            out, log = str(tmp_path / f"parts-{run}"), tmp_path / f"log-{run}"

            def start(out=out, log=log):
                with open(log, "a") as said:
                    return subprocess.Popen(words(out, disturbed.cluster.address), stdout=said, stderr=said)

            began, driver = time.monotonic(), start()
            kinds = draw.sample(KINDS[run % 4 == 3], 3)[: KILLS - killed]
            moments = sorted(draw.randrange(3 * PARTS // 4) for _ in kinds)
            for kind, least in zip(kinds, moments):
                wait_for_parts(Parts(out), least, driver)
                time.sleep(draw.uniform(0, 2 * ANSWER_SECONDS if least else 20))
                there, seconds = len(Parts(out).names()), time.monotonic() - began
                what = disturbed.kill(kind, driver)
                if not what:
                    break  # it was done before
                if kind in ("driver", "head"):
                    assert finish(driver) != 0, log.read_text()
                    driver = start()
                killed += 1
                say(f"{killed}: {what} killed after {seconds:.1f} s, {there} of {PARTS} parts there")
            assert finish(driver) == 1, log.read_text()  # two files fail
            assert by_path(read_scores(out)) == expected
            keys = [key for _, keys, _ in Parts(out).contents() for key in keys]
            assert len(keys) == len(set(keys)) == FILES
            say(f"run {run}: {FILES} rows as expected after {time.monotonic() - began:.1f} s")
    finally:
        disturbed.cluster.shutdown()
