"""What only a GPU can tell, in stages for a rented machine whose commands end after ten minutes: `bench/gpu_all.sh`.

python bench/gpu_stages.py STAGE --out FOLDER [--rehearse] [--seconds 500] [--steps NAME,...]

A stage is a list of steps, the most valuable first. Each runs in a process of its own: one that crashes, hangs, or
leaves the GPU in an error, costs its own rows alone. Rows go to FOLDER/STEP.csv as they are measured, how each step
ended to FOLDER/ended.csv. A library that is missing leaves out its steps, and is named.

--rehearse: every step on a CPU, as small as can be, the Triton kernel in its interpreter, with a stand-in for the
decoding library and the GPU. Nothing that it measures means anything; what breaks in it would break on the GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import sys
import time
import traceback
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import gpu_attention
import gpu_decoding
import gpu_parity
import gpu_speed
import measure
import torch
from gpu_run import Run

from sama.backends import cpu_kernel
from sama.decode import nvdec

SECONDS = 500  # of a stage; the machine's limit is ten minutes
NVDEC = "PyNvVideoCodec"


class Step(NamedTuple):
    """A function of a `Run`, how long it may take, and the libraries without which it is left out."""

    run: Callable[[Run], None]
    seconds: int
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.run.__name__

    def lacks(self) -> list[str]:
        """What is missing of what it needs."""
        missing = [name for name in self.needs if importlib.util.find_spec(name) is None]
        if NVDEC in self.needs and not nvdec.driver_available():
            missing.append(f"{nvdec.DRIVER_LIBRARY}, the driver's video library")
        return missing


def suite(run: Run) -> None:
    """All tests, none skipped: what cannot run on this machine fails or is counted."""
    import subprocess

    found, report = run.pick(["-n", "14"], ["tests/test_choosing.py"]), run.out / "suite.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rs",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:benchmark",
        f"--junitxml={report}",
        *found,
    ]
    required = run.pick({"SAMA_REQUIRE_CUDA": "1"}, {})
    ended = subprocess.run(command, cwd=Path(__file__).parent.parent, env=os.environ | required).returncode
    cases = [case for case in ElementTree.parse(report).iter("testcase")]
    for tag in ("failure", "error", "skipped"):
        for case in cases:
            for problem in case.findall(tag):
                first = (problem.get("message") or "").partition("\n")[0][:300]
                run.row(result=tag, test=f"{case.get('classname')}::{case.get('name')}", message=first)
    run.row(result="all", test=f"{len(cases)} tests", message=f"pytest ended with {ended}")
    if ended:
        raise RuntimeError(f"pytest ended with {ended}")


STAGES = {
    "a": [
        Step(gpu_parity.facts, 60),
        Step(gpu_parity.network, 120),
        Step(gpu_parity.vectors, 150),
        Step(gpu_attention.attention, 120),
        Step(gpu_parity.engines, 30, (NVDEC,)),
        Step(gpu_parity.frames, 60, (NVDEC,)),
        Step(gpu_parity.graphs, 120),
        Step(gpu_parity.drift, 120, ("skimage",)),
    ],
    "b": [
        Step(gpu_speed.kernel, 120),
        Step(gpu_speed.network, 150),
        Step(gpu_attention.attention_speed, 150),
        Step(gpu_speed.sweep, 90),
        Step(gpu_speed.throughput, 240, ("skimage",)),
        Step(gpu_speed.images, 120, ("skimage",)),
    ],
    "c": [
        Step(gpu_decoding.sessions, 200, (NVDEC, "skimage")),
        Step(gpu_decoding.processes, 200, (NVDEC, "skimage")),
        Step(gpu_decoding.construction, 60, (NVDEC, "skimage")),
        Step(gpu_decoding.others, 150, ("skimage",)),
    ],
    "d": [Step(gpu_decoding.scores, 480, (NVDEC, "skimage"))],
    "e": [Step(gpu_speed.training, 240), Step(gpu_speed.train, 240, ("skimage",))],
    "f": [Step(suite, 490)],
}


def carry_out(stage: str, out: Path, *, rehearsal: bool, seconds: float, only: Sequence[str] = ()) -> int:
    """Run a stage; returns how many steps failed. only: names of steps, in place of all"""
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    failed = 0
    if rehearsal and stage != "f":  # once, for the processes of all steps
        cpu_kernel().prepare("yuv", torch.float32)
    for step in STAGES[stage]:
        if only and step.name not in only:
            continue
        missing = [] if rehearsal else step.lacks()
        limit = min(step.seconds, end - time.monotonic())
        start = time.monotonic()
        if missing:
            status = f"left out: {', '.join(missing)} not there"
        elif limit < 1:
            status = "left out: the stage's time is over"
        else:
            print(f"== {stage}: {step.name}, {limit:.0f} s at most", flush=True)
            status = in_a_process(step, Run(out, step.name, rehearsal), limit)
            failed += status != "ok"
        took = time.monotonic() - start
        print(f"== {stage}: {step.name}: {status}, {took:.0f} s", flush=True)
        measure.append(out / "ended.csv", {"step": step.name, "status": status, "seconds": f"{took:.1f}"})
    return failed


def in_a_process(step: Step, run: Run, limit: float) -> str:
    """Run a step in a copy of this process, in which no GPU has been touched; "ok", or how it ended."""
    process = multiprocessing.get_context("fork").Process(target=guarded, args=(step, run))
    process.start()
    process.join(limit)
    if process.is_alive():
        process.kill()
        process.join(10)
        return f"stopped after {limit:.0f} s"
    if process.exitcode:
        return f"failed ({process.exitcode})"
    return "ok"


def guarded(step: Step, run: Run) -> None:
    """A step, with its traceback in the log."""
    try:
        step.run(run)
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        sys.stdout.flush()
        os._exit(1)  # a GPU in an error may keep a process from ending
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=[*STAGES])
    parser.add_argument("--out", type=Path, required=True, help="folder for the stage's tables")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, with stand-ins")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for the whole stage")
    parser.add_argument("--steps", default="", help="only these, with commas between")
    options = parser.parse_args(arguments)
    only = [name for name in options.steps.split(",") if name]
    unknown = {*only} - {step.name for step in STAGES[options.stage]}
    if unknown:
        names = ", ".join(step.name for step in STAGES[options.stage])
        parser.error(f"stage {options.stage} has no step {', '.join(sorted(unknown))}; it has {names}")
    if options.rehearse and os.environ.get("TRITON_INTERPRET") != "1":
        parser.error("--rehearse needs TRITON_INTERPRET=1 from the start, as bench/gpu_all.sh sets it")
    return carry_out(options.stage, options.out, rehearsal=options.rehearse, seconds=options.seconds, only=only)


if __name__ == "__main__":
    sys.exit(main())
