"""Files scored by several processes: the same rows, in order, whatever becomes of a process."""

import multiprocessing
import os
import signal
import subprocess
import sys
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import psutil
import pytest
import torch
import videos
from fake_gpu import fake_gpu
from videos import write_video

from sama import processes
from sama.model import QualityModel
from sama.models import VideoQuality
from sama.prefetch import Meter
from sama.processes import default_processes
from sama.scoring import score_files

METADATA = {"kind": "video", "mode": "sama", "grid": (2, 2), "fragment": (16, 16), "clip_len": 4, "interval": 1}


class Deadly(VideoQuality):
    """A network that ends its process, as a fault in a library does, where it is given a clip that is all black."""

    def forward(self, x):
        if x.max() < -1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


class Failing(VideoQuality):
    """A network that cannot be passed."""

    def forward(self, x):
        raise ZeroDivisionError("no memory left, say")


def make_model(network):
    torch.manual_seed(0)
    module = network("nano", grid=(2, 2)).eval()
    return QualityModel(module, METADATA | {"num_clips": 1}, "random nano", "cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    paths = [write_video(folder / f"{n}.mp4", "libx264", num_frames=6, size=(96, 64 + 2 * n)) for n in range(5)]
    with mock.patch.object(videos, "picture", lambda n, width, height: np.zeros((height, width, 3), np.uint8)):
        paths.insert(2, write_video(folder / "black.mp4", "libx264", num_frames=6))
    return [*map(str, paths), str(folder / "missing.mp4")]


def told(rows):
    """What rows say, without the time that was spent."""
    return [asdict(row) | {"seconds": 0} for row in rows]


def test_rows_are_those_of_one_process(files):
    model = make_model(VideoQuality)
    expected = told(score_files(files, model))
    meter = Meter()
    rows = list(score_files(files, model, processes=2, meter=meter))
    assert told(rows) == expected
    assert [row.path for row in rows] == files
    assert meter.running > 0
    assert not multiprocessing.active_children()


def test_a_process_that_is_killed_loses_nothing(files):
    model = make_model(VideoQuality)
    expected = told(score_files(files, model)) * 8
    with closing(score_files(files * 8, model, processes=2)) as rows:
        found = [next(rows)]
        multiprocessing.active_children()[0].kill()
        found += rows
    assert told(found) == expected


def test_a_file_that_ends_two_processes_is_a_row(files):
    rows = list(score_files(files, make_model(Deadly), processes=2, workers=2))
    reasons = {Path(row.path).name: row.reason for row in rows if row.status != "ok"}
    assert reasons == {
        "black.mp4": "the process that scored it ended by signal SIGKILL, as one before had",
        "missing.mp4": "no such file",
    }
    assert [row.path for row in rows] == files
    assert {row.model for row in rows} == {"random nano"}
    assert all(row.clips for row in rows if row.status == "ok")


def test_an_error_that_is_no_files_ends_the_run(files):
    with pytest.raises(ZeroDivisionError, match="no memory left"):
        list(score_files(files, make_model(Failing), processes=2))
    assert not multiprocessing.active_children()


def test_processes_end_with_the_one_that_started_them(files, tmp_path):
    """However that ends: no process goes on by itself."""
    script = tmp_path / "main.py"
    script.write_text(
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_processes import VideoQuality, make_model, score_files\n"
        "if __name__ == '__main__':\n"
        "    for row in score_files(sys.argv[2:] * 1000, make_model(VideoQuality), processes=2):\n"
        "        print(row.path, flush=True)\n"
    )
    command = [sys.executable, script, Path(__file__).parent, *files]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout.readline()
        ours = psutil.Process(run.pid).children(recursive=True)
        assert len(ours) >= 2
        run.kill()
        _, alive = psutil.wait_procs(ours, timeout=20)
        assert not alive


@pytest.mark.parametrize(
    ("files", "memory", "expected"), [(10_000, 140, 4), (10_000, 20, 2), (40, 140, 2), (3, 140, 1)]
)
def test_a_process_for_each_engine_of_a_gpu(monkeypatch, files, memory, expected):
    model = make_model(VideoQuality)
    assert default_processes(model, "auto", files) == 1 or torch.cuda.is_available()
    with fake_gpu() as nvcodec:
        monkeypatch.setattr(processes, "gpu_workers", lambda decoder, device: 3)
        monkeypatch.setattr(processes, "pick_device", lambda device, numbered: device)
        monkeypatch.setattr(processes.os, "cpu_count", lambda: 8)
        monkeypatch.setattr(nvcodec, "engines", lambda device: 7)
        properties = SimpleNamespace(total_memory=memory << 30)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        assert default_processes(model, "auto", files) == expected
