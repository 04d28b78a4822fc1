"""Compile the fused attention kernels for five architectures, without a GPU, and report what each takes of one.

    python bench/attention_registers.py [--json FILE] [--archs 90,...] [--match EXPRESSION]

The kernels are those of a Swin-T's windows of 8x7x7 tokens, shifted in time and space, on a padded map, with gate and
scale encoding: everything that a kernel can have. The exit status is 1 where registers spill.
"""

import argparse
import itertools
import re
import sys
from pathlib import Path

import torch
import triton
from registers import report, resource_usage
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sama.kernels import attention
from sama.models.windows import WINDOW, Windows

ARCHS = (80, 89, 90, 100, 120)
KERNELS = {
    "forward": attention.forward_kernel,
    "queries": attention.queries_kernel,
    "keys": attention.keys_kernel,
    "bias": attention.bias_kernel,
}
DTYPES = {"float32": "*fp32", "float16": "*fp16", "bfloat16": "*bf16"}
OF_DTYPE = ("p_qkv", "p_pad", "p_out", "p_grad", "p_dqkv")
INTEGERS = ("p_tables", "p_places", "p_padded", "p_marks", "p_order")  # the others are float32


def compile_kernel(name: str, dtype: str, arch: int, *, heads: int = 3, dim: int = 32) -> dict[str, object]:
    """Registers, spilled bytes and shared memory of one kernel."""
    kernel = KERNELS[name]
    windows = Windows.fit((17, 57, 57), WINDOW, shifted=True)
    kind = {"queries": "backward", "keys": "backward"}.get(name, name)
    configuration = attention.configuration(kind, getattr(torch, dtype), arch // 10)
    call = attention.Call(windows, (7, 7), WINDOW, {kind: configuration})
    constants = call.constants(kind, heads, dim, gated=True, scaled=True)
    signature = {}
    for argument in kernel.arg_names:
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument.startswith("p_"):
            floats = DTYPES[dtype] if argument in OF_DTYPE else "*fp32"
            whole = "*i64" if argument == "p_tables" else "*i32"
            signature[argument] = whole if argument in INTEGERS else floats
        else:
            signature[argument] = "fp32" if argument == "scale" else "i32"
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=call.options(kind))
    usage = resource_usage(compiled.asm["cubin"])
    usage["shared_bytes"] = compiled.metadata.shared  # asked for at the launch, not in the file
    return {"block": f"{configuration.queries}x{configuration.keys}", **call.options(kind), **usage}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows there as well")
    parser.add_argument("--archs", default=",".join(map(str, ARCHS)), help="compute capabilities, 90 for 9.0")
    parser.add_argument("--match", default="", help="only kernels whose names (forward-float32) hold this expression")
    options = parser.parse_args()
    rows = (
        {
            "kernel": f"{name}-{dtype}",
            "target": f"sm_{arch}",
            "triton": triton.__version__,
            **compile_kernel(name, dtype, arch),
        }
        for arch, dtype, name in itertools.product(map(int, options.archs.split(",")), DTYPES, KERNELS)
        if re.search(options.match, f"{name}-{dtype}")
    )
    return report(rows, ("kernel", "target", "block", "registers", "spilled_bytes", "shared_bytes"), options.json)


if __name__ == "__main__":
    sys.exit(main())
