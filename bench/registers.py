"""Compile every variant of the Triton kernel for Hopper, without a GPU, and report what each takes of one.

    python bench/registers.py [--json FILE] [--match EXPRESSION]

Occupancy: how many of the 64 warps of a multiprocessor its registers leave room for. Instructions: of the machine's own
(SASS), that a thread executes for each of its output pixels; the kernel has no loop, so that they can be counted.
"""

import argparse
import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sama.kernels import fused
from sama.plan import plan_image, plan_video

TARGET = GPUTarget("cuda", 90, 32)
REGISTERS_PER_SM = 65536
POINTERS = {"p_frames": "*i64", "p_places": "*i64", "p_samples": "*i32", "p_slots": "*i32", "p_steps": "*fp32"}
POINTERS |= {"p_origins": "*i32", "p_warps": "*fp32", "p_corrections": "*fp32"}
DTYPES = {"float32": "*fp32", "float16": "*fp16", "bfloat16": "*bf16"}


def variants():
    """(name, keyword arguments of `compile_variant`) of everything that the launcher can ask for."""
    modes = {mode: plan_video(mode, 1080, 1920) for mode in ("sama", "sama-swm", "sama-spm")}
    modes["fragments"] = plan_video("fragments", 180, 240)
    for (mode, plan), kind, layout, dtype in itertools.product(
        modes.items(), ("rgb", "corrected", "nv12"), ("video", "patches"), DTYPES
    ):
        source = {"yuv": kind == "nv12", "correct": kind == "corrected"}
        yield f"{mode}-{kind}-{layout}-{dtype}", {"plan": plan, **source, "layout": layout, "dtype": dtype}
    rgb = {"plan": modes["sama"], "yuv": False, "correct": False, "layout": "patches", "dtype": "float32"}
    yield "sama-rgb-planar-patches-float32", rgb | {"packed": False}
    yield "sama-i420-patches-float32", rgb | {"yuv": True, "packed": False}
    yield "sama-nv12-beyond-2-GiB-patches-float32", rgb | {"yuv": True, "wide": True}
    turned = {"plan": plan_image("sama", 768, 1024, flip=True, angle=30.0), "yuv": False, "correct": False}
    for dtype in DTYPES:
        yield (
            f"image-turned-rgb-video-{dtype}",
            {**turned, "layout": "video", "dtype": dtype},
        )


def compile_variant(plan, yuv, correct, layout, dtype, packed=True, wide=False, block=None, num_warps=None):
    """Registers, spilled bytes and shared memory of one variant; the launcher's configuration unless told."""
    default_block, default_warps = fused.configuration()
    source = {"yuv": yuv, "correct": correct, "packed": packed, "wide": wide}
    constants = fused.constants([plan], **source, layout=layout, block=block or default_block)
    signature = {
        name: "constexpr" if name in constants else POINTERS.get(name, "i32" if name == "frames" else "fp32")
        for name in fused.sample_kernel.arg_names
    } | {"p_out": DTYPES[dtype]}
    warps = num_warps or default_warps
    source = ASTSource(fn=fused.sample_kernel, signature=signature, constexprs=constants)
    kernel = triton.compile(source, target=TARGET, options={"num_warps": warps, "enable_fp_fusion": False})
    usage = resource_usage(kernel.asm["cubin"])
    usage["instructions_per_pixel"] = instructions(kernel.asm["cubin"]) * 32 * warps / constants["BLOCK"]
    usage["warps_resident"] = min(64, REGISTERS_PER_SM // (max(usage["registers"], 1) * 32) // warps * warps)
    return {"block": constants["BLOCK"], "num_warps": warps, **usage}


def disassembly(cubin: bytes, option: str) -> str:
    cuobjdump = triton.knobs.nvidia.cuobjdump.path
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([cuobjdump, option, file.name], capture_output=True, text=True, check=True).stdout


def instructions(cubin: bytes) -> int:
    """What a thread executes at most: everything up to the end, behind which there is filling.

    RuntimeError for a kernel with a loop, whose instructions cannot be counted so.
    """
    lines = re.findall(r"^\s+/\*([0-9a-f]+)\*/\s+([^;]+);", disassembly(cubin, "-sass"), re.M)
    end = max(number for number, (_, text) in enumerate(lines) if "EXIT" in text)
    for address, text in lines[:end]:
        jump = re.search(r"BRA (?:`?\(?[\w.]*\)?,? ?)?(0x[0-9a-f]+)", text)
        if jump and int(jump[1], 16) <= int(address, 16):
            raise RuntimeError(f"the kernel has a loop: {address}: {text}")
    return sum(not text.startswith("NOP") for _, text in lines[: end + 1])


def resource_usage(cubin: bytes) -> dict[str, int]:
    text = disassembly(cubin, "-res-usage")
    fields = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", text)}
    spilled = fields["STACK"] + fields["LOCAL"]
    return {"registers": fields["REG"], "spilled_bytes": spilled, "shared_bytes": fields["SHARED"]}


def report(rows: Iterable[dict[str, Any]], columns: Sequence[str], path: Path | None) -> int:
    """Print some columns of rows as they come, and write the rows as JSON where there is a path. 1 where one spills."""
    every = []
    print(f"{columns[0]:44}", *columns[1:])
    for row in rows:
        every.append(row)
        first, *values = (row[column] for column in columns)
        cells = (f"{value:.1f}" if isinstance(value, float) else str(value) for value in values)
        print(f"{first:44}", *(cell.rjust(len(column)) for cell, column in zip(cells, columns[1:])), flush=True)
    if path:
        path.write_text(json.dumps(every, indent=1) + "\n")
    return 1 if any(row["spilled_bytes"] for row in every) else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows there as well")
    parser.add_argument("--match", default="", help="only variants whose names this expression is found in")
    options = parser.parse_args()
    about = {"target": f"sm_{TARGET.arch}", "triton": triton.__version__}
    rows = (
        {"variant": name, **about, **compile_variant(**arguments)}
        for name, arguments in variants()
        if re.search(options.match, name)
    )
    usage = ("registers", "spilled_bytes", "warps_resident", "instructions_per_pixel")
    return report(rows, ("variant", "block", "num_warps", *usage), options.json)


if __name__ == "__main__":
    sys.exit(main())
