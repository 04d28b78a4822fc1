"""A corpus on a cluster of three Ray nodes whose processes are killed at random moments: the table of an undisturbed
run all the same, nothing twice and nothing lost.

Half a minute a kill: SAMA_RAY_KILLS=20 kills so often, SAMA_RAY_SEED=1 at other moments.
"""

import os
import random
import signal
import subprocess
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import videos
from servers import file_server
from test_cluster import by_path, command

import sama
from sama.parts import Parts, read_scores
from sama.scoring import score_files

KILLS = int(os.environ.get("SAMA_RAY_KILLS", "0"))
FILES, PART_ROWS = 120, 2
KILLS_OF_A_RUN = 3
ANSWER_SECONDS = 0.4  # that the server takes for a file: a run takes long enough to be disturbed, and no core's time
RUN_SECONDS = 300.0  # within which a run must end
NODE = {"num_cpus": 2, "object_store_memory": 80 << 20}
KINDS = ("worker", "node", "driver", "head")


class Disturbed:
    """Three Ray nodes on this machine, and what is killed of them."""

    def __init__(self, draw: random.Random):
        self.draw = draw
        self.begin()

    def begin(self):
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        self.nodes = [self.cluster.add_node(**NODE) for _ in range(2)]

    def kill(self, kind: str, driver: subprocess.Popen) -> str:
        """Kill one of `KINDS`, at once; what it was, "" where the driver ended before."""
        if kind == "driver":
            driver.kill()
        elif kind == "node":
            self.cluster.remove_node(self.nodes.pop(self.draw.randrange(2)), allow_graceful=False)
            self.nodes.append(self.cluster.add_node(**NODE))
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
            if workers:
                process = self.draw.choice(sorted(workers, key=lambda one: one.pid))
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
            if does.startswith("ray::") and not does.startswith(("ray::IDLE", "ray::RuntimeEnvAgent")):
                yield process, does


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


@pytest.fixture
def corpus(weights, tmp_path):
    """Addresses of files, two of which cannot be scored, and their rows; from then on the server takes its time."""
    with file_server() as server:
        contents = [
            videos.write_video(tmp_path / f"{k}.mp4", "mpeg4", num_frames=10 + k).read_bytes() for k in range(6)
        ]
        urls = [server.put(f"{k:03}.mp4", contents[k % 6]) for k in range(FILES - 2)]
        urls += [server.put("bad.mp4", b"no video"), server.url("gone.mp4")]
        rows = by_path(score_files(urls, sama.load_model(weights, "cpu")))
        assert sum(row.status == "error" for row in rows.values()) == 2
        for name in server.files:
            server.faults[name] = lambda number: time.sleep(ANSWER_SECONDS) or ""
        yield urls, rows


@pytest.mark.skipif(not KILLS, reason="takes minutes: SAMA_RAY_KILLS=20 kills so often")
@pytest.mark.filterwarnings("ignore")
def test_killed_workers_nodes_and_drivers_lose_nothing_and_double_nothing(
    corpus, weights, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    urls, expected = corpus
    draw = random.Random(int(os.environ.get("SAMA_RAY_SEED", "0")))
    draw.shuffle(urls)
    pq.write_table(pa.table({"url": urls}), tmp_path / "files.parquet")
    disturbed = Disturbed(draw)
    try:
        for first in range(0, KILLS, KILLS_OF_A_RUN):
            out, log = str(tmp_path / f"parts-{first}"), tmp_path / f"log-{first}"

            def start(out=out, log=log):
                words, environment = command(
                    *("--manifest", tmp_path / "files.parquet", "--weights", weights, "--out", out, "--resume"),
                    *("--part-rows", PART_ROWS, "--actor-cpus", 1, f"--ray={disturbed.cluster.address}"),
                )
                with open(log, "a") as said:
                    return subprocess.Popen(words, env=environment, stdout=said, stderr=said)

            began, driver = time.monotonic(), start()
            kinds = draw.sample(KINDS, min(KILLS_OF_A_RUN, KILLS - first))
            moments = sorted(draw.randrange(3 * FILES // PART_ROWS // 4) for _ in kinds)
            for kind, least in zip(kinds, moments):
                wait_for_parts(Parts(out), least, driver)
                time.sleep(draw.uniform(0, 2 * ANSWER_SECONDS if least else 20))
                there, seconds = len(Parts(out).names()), time.monotonic() - began
                assert driver.poll() is None, log.read_text()
                killed = disturbed.kill(kind, driver)
                assert killed, log.read_text()
                if kind in ("driver", "head"):
                    assert finish(driver) != 0, log.read_text()
                    driver = start()
                with capsys.disabled():
                    print(f"after {seconds:.1f} s, {there} parts there: {killed} killed", flush=True)
            assert finish(driver) == 1, log.read_text()  # two files fail
            assert by_path(read_scores(out)) == expected
            keys = [key for _, keys, _ in Parts(out).contents() for key in keys]
            assert len(keys) == len(set(keys)) == FILES
            with capsys.disabled():
                print(f"after {time.monotonic() - began:.1f} s: {FILES} rows in {len(Parts(out).names())} parts")
    finally:
        disturbed.cluster.shutdown()
