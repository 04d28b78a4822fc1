"""Sample frames that lie between two pages that must not be touched. Run by `test_properties.py`, in its own process.

python tests/guard.py cpu|triton
"""

import ctypes
import mmap
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch

from sama.frames import Frame
from sama.kernels import layout as layouts
from sama.plan import IMAGE_MODES, VIDEO_MODES, draw_flip_angle, plan_image, plan_video

PAGE = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int


def guarded(shape, at_end):
    """A uint8 array of noise whose last byte (or first) touches a page without any right."""
    size = int(np.prod(shape))
    pages = -(-size // PAGE)
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    whole = np.frombuffer(memory, np.uint8)
    start = PAGE + (pages * PAGE - size if at_end else 0)
    array = whole[start : start + size].reshape(shape)
    array[...] = np.random.default_rng(size).integers(0, 256, shape)
    address = whole.ctypes.data
    for page in (0, pages + 1):
        if libc.mprotect(address + page * PAGE, PAGE, 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    return array


def guarded_frame(layout, height, width, at_end):
    half = (height + 1) // 2, (width + 1) // 2
    shapes = {"rgb": [(height, width, 3)], "i420": [(height, width), half, half], "nv12": [(height, width), (*half, 2)]}
    return Frame(layout, tuple(guarded(shape, at_end) for shape in shapes[layout]))


def run(backend, plan, frame):
    out = torch.full((1, *layouts.shape("video", plan.frames, *plan.size)), float("nan"))
    if backend == "cpu":
        from sama.kernels import cpu

        cpu.sample(cpu.Writer(plan, out[0]), [frame] * plan.frames, threads=1)
    else:
        from sama.kernels import fused

        frame = Frame(frame.layout, tuple(torch.from_numpy(plane) for plane in frame.planes))
        fused.sample([plan], [[frame] * plan.frames], out)
    assert not out.isnan().any()


def main(backend):
    rng = np.random.default_rng(0)
    cases = 150 if backend == "cpu" else 40
    for case in range(cases):
        height, width = (int(n) for n in rng.integers(1, 120, 2))
        geometry = {"grid": tuple(rng.integers(1, 6, 2).tolist()), "fragment": tuple(rng.integers(1, 24, 2).tolist())}
        layout = ["rgb", "i420", "nv12"][case % 3]
        # the draws closest to the end of the cells, where a tap could leave the frame
        edge = np.nextafter(np.float32(1), np.float32(0))
        draws = np.full((*geometry["grid"], 1), edge), np.full((*geometry["grid"], 1), edge)
        if case % 5 == 4:
            flip, angle = draw_flip_angle(case)
            mode = sorted(IMAGE_MODES)[case % 3]
            draws = None if mode == "fragment" else draws
            plan = plan_image(mode, height, width, **geometry, draws=draws, flip=flip, angle=angle)
            layout = "rgb"
        else:
            mode = sorted(VIDEO_MODES)[case % 6]
            draws = None if mode == "fragments" else draws
            plan = plan_video(mode, height, width, 1 + case % 3, **geometry, draws=draws)
        for at_end in (True, False):
            run(backend, plan, guarded_frame(layout, height, width, at_end))
    print(f"{cases} cases done")


if __name__ == "__main__":
    main(sys.argv[1])
