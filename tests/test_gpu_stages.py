"""The script for a rented GPU: every stage and step runs here on a CPU, with stand-ins, and leaves its tables."""

import csv
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
BENCH = ROOT / "bench"
STAGES = ("a", "b", "c", "d", "e", "f")
LIMIT = 16 << 20  # bytes of an archive
TEN_MINUTES = 600
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TRITON_", "OUT"))}


@pytest.fixture(scope="module")
def stages():
    """The module `bench/gpu_stages.py`."""
    sys.path.insert(0, str(BENCH))
    try:
        import gpu_stages
    finally:
        sys.path.remove(str(BENCH))
    return gpu_stages


@pytest.mark.parametrize("stage", STAGES)
def test_rehearsal(stages, stage, tmp_path):
    command = ["bash", "bench/gpu_all.sh", "--rehearse", "--out", tmp_path, stage]
    run = subprocess.run(command, cwd=ROOT, env=CLEAN, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert [path.name for path in tmp_path.glob("*.tar.gz")] == [f"gpu-{stage}.tar.gz"]
    assert (tmp_path / f"gpu-{stage}.tar.gz").stat().st_size < LIMIT
    with tarfile.open(tmp_path / f"gpu-{stage}.tar.gz") as archive:
        archive.extractall(tmp_path / "there", filter="data")
    folder = tmp_path / "there" / f"gpu-{stage}"
    steps = [step.name for step in stages.STAGES[stage]]
    assert [(row["step"], row["status"]) for row in rows(folder / "ended.csv")] == [(name, "ok") for name in steps]
    for name in steps:
        found = rows(folder / f"{name}.csv")
        assert found
        assert all({"device", "versions", "date", "commit"} <= {*row} and None not in row.values() for row in found)
    log = (folder / "log.txt").read_text()
    assert f"== {stage}: {steps[-1]}: ok" in log
    if stage == "a":
        assert "driver's video library" in json.loads((folder / "facts.json").read_text())
    if stage == "d":  # whoever decoded
        assert {row["equal_to_first"] for row in rows(folder / "scores.csv")} == {"True"}


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_stages_are_those_of_the_script_and_end_in_time(stages):
    assert (*stages.STAGES,) == STAGES
    script = (BENCH / "gpu_all.sh").read_text()
    limit = int(script.partition("--kill-after=5 ")[2].partition(" ")[0])
    assert stages.SECONDS < limit <= TEN_MINUTES - 60
    for steps in stages.STAGES.values():
        assert all(step.seconds < stages.SECONDS for step in steps)
        assert len({step.name for step in steps}) == len(steps)


def measured(run):
    run.row(value=1.0)


def breaking(run):
    run.row(value=2.0)
    raise RuntimeError("this one breaks")


def dying(run):
    run.row(value=3.0)
    os.kill(os.getpid(), 9)


def hanging(run):
    run.row(value=4.0)
    import time

    time.sleep(60)


def test_a_step_that_fails_costs_its_own_rows_alone(stages, tmp_path, monkeypatch, capfd):
    """What was measured before an error, a crash or a time-out is there, and the next steps run."""
    step = stages.Step
    plan = [
        *(step(breaking, 60), step(dying, 60), step(hanging, 2), step(measured, 60, ("no_such_library",))),
        step(measured, 60),
    ]
    monkeypatch.setattr(stages, "STAGES", {"a": plan})
    assert stages.carry_out("a", tmp_path, rehearsal=False, seconds=60) == 3
    ended = [(row["step"], row["status"]) for row in rows(tmp_path / "ended.csv")]
    assert ended == [
        ("breaking", "failed (1)"),
        ("dying", "failed (-9)"),
        ("hanging", "stopped after 2 s"),
        ("measured", "left out: no_such_library not there"),
        ("measured", "ok"),
    ]
    for name, value in (("breaking", "2"), ("dying", "3"), ("hanging", "4"), ("measured", "1")):
        assert [row["value"] for row in rows(tmp_path / f"{name}.csv")] == [value]
    assert "RuntimeError: this one breaks" in capfd.readouterr().out
    assert stages.carry_out("a", tmp_path / "late", rehearsal=False, seconds=0) == 0
    assert {row["status"] for row in rows(tmp_path / "late" / "ended.csv")} == {
        "left out: the stage's time is over",
        "left out: no_such_library not there",
    }


def test_a_decoding_step_asks_for_the_driver(stages, monkeypatch):
    monkeypatch.setattr(stages.nvdec, "driver_available", lambda: False)
    lacks = stages.Step(measured, 1, ("PyNvVideoCodec", "json")).lacks()
    assert "json" not in lacks
    assert any("driver's video library" in what for what in lacks)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_script_says_so(tmp_path):
    for arguments, message in ((["a"], "no GPU: --rehearse runs without one"), (["g"], "unknown argument g")):
        command = ["bash", "bench/gpu_all.sh", "--out", tmp_path, *arguments]
        run = subprocess.run(command, cwd=ROOT, env=CLEAN, capture_output=True, text=True)
        assert (run.returncode, message in run.stderr) == (100, True)
