"""Compile every variant of the Triton kernel for Hopper, without a GPU, and report what each takes of one.

    python bench/registers.py [--json FILE]

Occupancy: how many of the 64 warps of a multiprocessor its registers leave room for.
"""

import argparse
import itertools
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

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
        modes.items(), ("rgb", "corrected", "yuv420"), ("video", "patches"), DTYPES
    ):
        source = {"yuv": kind == "yuv420", "correct": kind == "corrected"}
        yield f"{mode}-{kind}-{layout}-{dtype}", {"plan": plan, **source, "layout": layout, "dtype": dtype}
    turned = {"plan": plan_image("sama", 768, 1024, flip=True, angle=30.0), "yuv": False, "correct": False}
    for dtype in DTYPES:
        yield (
            f"image-turned-rgb-video-{dtype}",
            {**turned, "layout": "video", "dtype": dtype},
        )


def compile_variant(plan, yuv, correct, layout, dtype, block=None, num_warps=None):
    """Registers, spilled bytes and shared memory of one variant; the launcher's configuration unless told."""
    default_block, default_warps = fused.configuration()
    constants = fused.constants([plan], yuv=yuv, correct=correct, layout=layout) | {"BLOCK": block or default_block}
    signature = {
        name: "constexpr" if name in constants else POINTERS.get(name, "i32" if name == "frames" else "fp32")
        for name in fused.sample_kernel.arg_names
    } | {"p_out": DTYPES[dtype]}
    warps = num_warps or default_warps
    source = ASTSource(fn=fused.sample_kernel, signature=signature, constexprs=constants)
    kernel = triton.compile(source, target=TARGET, options={"num_warps": warps, "enable_fp_fusion": False})
    usage = resource_usage(kernel.asm["cubin"])
    usage["warps_resident"] = min(64, REGISTERS_PER_SM // (max(usage["registers"], 1) * 32) // warps * warps)
    return {"block": constants["BLOCK"], "num_warps": warps, **usage}


def resource_usage(cubin: bytes) -> dict[str, int]:
    cuobjdump = triton.knobs.nvidia.cuobjdump.path
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([cuobjdump, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    fields = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", text)}
    spilled = fields["STACK"] + fields["LOCAL"]
    return {"registers": fields["REG"], "spilled_bytes": spilled, "shared_bytes": fields["SHARED"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows there as well")
    options = parser.parse_args()
    rows = []
    print(f"{'variant':44} {'block':>5} {'warps':>5} {'registers':>9} {'spilled':>7} {'resident warps':>14}")
    for name, arguments in variants():
        row = {
            "variant": name,
            "target": f"sm_{TARGET.arch}",
            "triton": triton.__version__,
            **compile_variant(**arguments),
        }
        rows.append(row)
        print(
            f"{name:44} {row['block']:5} {row['num_warps']:5} {row['registers']:9} {row['spilled_bytes']:7} "
            f"{row['warps_resident']:14}"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 1 if any(row["spilled_bytes"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
