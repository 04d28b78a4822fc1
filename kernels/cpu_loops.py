"""The loops of the CPU kernel, compiled by numba: four taps for every output pixel.

    out[c, t, y, x] = ((1 - wy) * blend(row y0) + wy * blend(row y1) - mean[c]) / std[c]
    blend(row)      =  (1 - wx) * rgb[row, x0, c] + wx * rgb[row, x1, c]

The correction of a frame that has one comes between the blend and the normalisation.

A blended row is kept, since the next output row often starts from it; only taps are converted to RGB. Compiled by
numba without the GIL, and kept on disk. Everything is indexed in place, unsigned: slices would count references.
"""

from __future__ import annotations

import logging
import threading
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from llvmlite import ir
from numba import boolean, float32, int32, int64, njit, none, types, uint16
from numba.core import cgutils
from numba.extending import intrinsic

if TYPE_CHECKING:
    from collections.abc import Callable

PREFETCH_ROWS = 2  # how far ahead memory is asked for: addresses jump from row to row, so the processor cannot guess
CACHE_LINE = 64
SILENT_SECONDS = 3.0  # of compiling, before a message says what takes so long; loading from disk takes less

_log = logging.getLogger("sama")
_compiling = threading.Lock()
_kernels: dict[tuple[str, bool], Callable[..., None]] = {}

_ONE, _HALF = np.float32(1), np.float32(0.5)
_U1 = np.uint64(1)

_jit = njit(nogil=True, error_model="numpy")


class _Taps(NamedTuple):
    """Where a fragment's taps are in a source row, their weights, and room for what is read there.

    columns   int64 [4, fw]      byte offsets of both taps in plane 0, then in planes 1 and 2
    weights   float32 [3 * fw]   of the second tap, for each channel
    words     int32 [2, fw]      whole pixels, as they were read
    values    int32 [2, 3, fw]   both taps of each channel; flat: the same memory, [2, 3 * fw]
    """

    columns: np.ndarray
    weights: np.ndarray
    words: np.ndarray
    values: np.ndarray
    flat: np.ndarray


def _loading(bits: int):
    """A compiled function of an address that gives the `bits` there, as int64. Planes come with any strides; indexing
    arrays would multiply by them for each tap."""

    @intrinsic
    def load(typing_context, address):
        def generate(context, builder, signature, arguments):
            pointer = builder.inttoptr(arguments[0], ir.IntType(bits).as_pointer())
            return builder.zext(builder.load(pointer, align=1), ir.IntType(64))

        return int64(int64), generate

    return load


_byte, _word = _loading(8), _loading(32)


def _prefetching(write: int):
    """A compiled function of an address that asks for its cache line, to read or to write; no effect on any value."""

    @intrinsic
    def prefetch(typing_context, address):
        def generate(context, builder, signature, arguments):
            i32 = ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, i32, i32, i32])
            function = builder.module.declare_intrinsic("llvm.prefetch", [cgutils.voidptr_t], kind)
            pointer = builder.inttoptr(arguments[0], cgutils.voidptr_t)
            builder.call(function, [pointer, i32(write), i32(3), i32(1)])  # to all levels, data

        return types.void(int64), generate

    return prefetch


_fetch_to_read, _fetch_to_write = _prefetching(0), _prefetching(1)


@_jit
def _set_taps(origin, step, size, low, high, weight):
    """Source index of both taps, and weight of the second, for every pixel of a fragment on one axis."""
    for k in range(weight.size):
        at = max(step * (np.float32(origin + k) + _HALF) - _HALF, np.float32(0))
        first = min(np.int64(at), size - 1)
        low[k] = first
        high[k] = min(first + 1, size - 1)
        weight[k] = at - np.float32(first)


@_jit
def _clip(value):
    return min(max(np.int32(value), np.int32(0)), np.int32(255))


@_jit
def _scaled(value, factor):
    """`value * factor >> 16` in 32 bits, as FFmpeg does it and as vector units can."""
    return np.int32(np.int32(value * factor) >> np.int32(16))


@_jit
def _read(rows, taps):
    """One source row at the taps of a fragment. rows: its address in each of the three planes."""
    first, second, third = rows
    columns, values = taps.columns, taps.values
    for k in range(columns.shape[1]):
        values[0, 0, k] = _byte(first + columns[0, k])
        values[1, 0, k] = _byte(first + columns[1, k])
        values[0, 1, k] = _byte(second + columns[2, k])
        values[1, 1, k] = _byte(second + columns[3, k])
        values[0, 2, k] = _byte(third + columns[2, k])
        values[1, 2, k] = _byte(third + columns[3, k])


@_jit
def _read_pixels(row, taps):
    """As `_read`, of packed RGB: three channels and a byte of the next pixel in one load, little end first."""
    columns, words, values = taps.columns, taps.words, taps.values
    for k in range(columns.shape[1]):
        words[0, k] = _word(row + columns[0, k])
        words[1, k] = _word(row + columns[1, k])
    for tap in range(2):
        for k in range(columns.shape[1]):
            values[tap, 0, k] = words[tap, k] & np.int32(255)
            values[tap, 1, k] = np.int32(words[tap, k] >> np.int32(8)) & np.int32(255)
            values[tap, 2, k] = np.int32(words[tap, k] >> np.int32(16)) & np.int32(255)


@_jit
def _convert(color, values):
    """Y, U, V to R, G, B in place, see `kernels.color`."""
    offset, factor, vr, ub, ug, vg = color
    for tap in range(2):
        for k in range(values.shape[2]):
            luma = _scaled(np.int32(8) * values[tap, 0, k] + offset, factor)
            u = np.int32(8) * values[tap, 1, k] - np.int32(1024)
            v = np.int32(8) * values[tap, 2, k] - np.int32(1024)
            values[tap, 0, k] = _clip(luma + _scaled(v, vr))
            values[tap, 1, k] = _clip(luma + _scaled(u, ug) + _scaled(v, vg))
            values[tap, 2, k] = _clip(luma + _scaled(u, ub))


@_jit
def _blend_row(rows, color, packed, taps, line, slot):
    """Read one source row and blend it across: float32 `line[slot]`, [3 * fw]. packed: `_read_pixels` may read it."""
    if packed:
        _read_pixels(rows[0], taps)
    else:
        _read(rows, taps)
    if color is not None:
        _convert(color, taps.values)
    weights, flat = taps.weights, taps.flat
    for k in range(weights.size):
        left, right = np.float32(flat[0, k]), np.float32(flat[1, k])
        line[slot, k] = (_ONE - weights[k]) * left + weights[k] * right


@_jit
def _correct_lines(line, top, bottom, weight, correction, truncate, mean, scale, result):
    """`_blend_lines` with a correction, float32 [3, 4]: see `sama.frames.Frame`."""
    over, width = _ONE - weight, result.size // 3
    for c in range(3):
        red, green, blue, offset = correction[c, 0], correction[c, 1], correction[c, 2], correction[c, 3]
        for k in range(width):
            r = over * line[top, k] + weight * line[bottom, k]
            g = over * line[top, width + k] + weight * line[bottom, width + k]
            b = over * line[top, 2 * width + k] + weight * line[bottom, 2 * width + k]
            value = min(max(red * r + green * g + blue * b + offset, np.float32(0)), np.float32(255))
            value = np.floor(value) if truncate else value
            result[c * width + k] = (value - mean[c * width + k]) * scale[c * width + k]


@_jit
def _blend_lines(line, top, bottom, weight, truncate, mean, scale, result):
    """Blend two rows and normalise: float32 [3 * fw]; mean and scale for every value."""
    over = _ONE - weight
    if truncate:
        for k in range(result.size):
            value = np.floor(over * line[top, k] + weight * line[bottom, k])
            result[k] = (value - mean[k]) * scale[k]
    else:
        for k in range(result.size):
            value = over * line[top, k] + weight * line[bottom, k]
            result[k] = (value - mean[k]) * scale[k]


@_jit
def _rows(planes, strides, color, y):
    """Address of row y in each of the three planes; chroma has half of the rows."""
    half = y if color is None else y >> 1
    return planes[0] + y * strides[0], planes[1] + half * strides[1], planes[2] + half * strides[1]


@_jit
def _fetch_rows(rows, color, columns):
    last = columns.shape[1] - 1
    for at in range(columns[0, 0], columns[1, last] + 1, CACHE_LINE):
        _fetch_to_read(rows[0] + at)
    if color is not None:
        for at in range(columns[2, 0], columns[3, last] + 1, CACHE_LINE):
            _fetch_to_read(rows[1] + at)
            _fetch_to_read(rows[2] + at)


@_jit
def _fetch_output(out, start, channel, count):
    """Own the cache lines of the three channels before they are written: otherwise every store waits for memory."""
    for c in range(3):
        for at in range(start + c * channel, start + c * channel + count, CACHE_LINE // out.itemsize):
            _fetch_to_write(out.ctypes.data + at * out.itemsize)


@_jit
def _half_bits(value, bfloat16):
    """The 16 bits of a float32 as bfloat16 or float16, rounded to nearest even; finite values only."""
    bits = np.float32(value).view(np.uint32)
    if bfloat16:
        return np.uint16(
            np.uint32(bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        )
    sign = (bits >> np.uint32(16)) & np.uint32(0x8000)
    size = np.uint32(bits & np.uint32(0x7FFFFFFF))
    if size < np.uint32(0x38800000):  # subnormal: adding one half rounds at the right bit
        half = np.uint32(np.float32(abs(value) + _HALF).view(np.uint32) - np.uint32(0x3F000000))
    else:
        half = np.uint32(size + np.uint32(0xC8000FFF) + ((size >> np.uint32(13)) & np.uint32(1))) >> np.uint32(13)
    return np.uint16(half | sign)


@_jit
def _store(out, at, value, bfloat16):
    if bfloat16 is None:
        out[at] = value
    else:
        out[at] = _half_bits(value, bfloat16)


def _sample_frame(
    planes, strides, color, correction, steps, origins, size, fragment, cell, mixed, truncate,
    mean, scale, out, bfloat16, base, places, bands,
):  # fmt: skip
    """One frame, the fragment rows `bands[0]` to `bands[1]`.

    planes: int64 x3, addresses; strides: int64 x4, bytes from row to row in plane 0 and in planes 1 and 2, then from
    pixel to pixel; color: int32 x6, None for RGB; correction: float32 [3, 4], or None
    steps: float32 [2, 2]; origins: int32 [2, Gh, Gw, 2]: for mask bit 0 and 1; mixed: whether these differ
    out: 1-D, float32 with bfloat16 None, or uint16 with bfloat16 True or False
    base: int64 (frame offset, channel step); places: int64 rows [Sh], columns [Sw]; see `kernels.layout`
    """
    fh, fw = fragment
    rows, cols = places
    contiguous = cols[cols.size - 1] == cols.size - 1
    low, high = np.empty(fh, np.int64), np.empty(fh, np.int64)
    wy, wx = np.empty(fh, np.float32), np.empty((3, fw), np.float32)
    columns, values = np.empty((4, fw), np.int64), np.empty((2, 3, fw), np.int32)
    taps = _Taps(columns, wx.reshape(-1), np.empty((2, fw), np.int32), values, values.reshape((2, 3 * fw)))
    line, result = np.empty((2, 3 * fw), np.float32), np.empty(3 * fw, np.float32)
    means, scales = np.repeat(mean, fw), np.repeat(scale, fw)
    whole = not mixed or cell == fragment
    adjacent = color is None and strides[2] == 3 and planes[1] - planes[0] == 1 and planes[2] - planes[0] == 2
    for i in range(bands[0], bands[1]):
        for j in range(origins.shape[2]):
            for bit in range(2):
                if whole and bit != (mixed and (i + j) % 2 == 0):
                    continue
                _set_taps(origins[bit, i, j, 0], steps[bit, 0], size[0], low, high, wy)
                _set_taps(origins[bit, i, j, 1], steps[bit, 1], size[1], columns[0], columns[1], wx[0])
                wx[1:] = wx[0]
                packed = adjacent and columns[1, fw - 1] < size[1] - 1  # the last pixel has no next one
                for tap in range(2):
                    for k in range(fw):
                        x = columns[tap, k]
                        columns[tap, k] = x * strides[2]
                        columns[2 + tap, k] = (x if color is None else x >> 1) * strides[3]
                top, kept = np.uint64(0), -1
                for r in range(fh):
                    if r + PREFETCH_ROWS < fh:
                        _fetch_rows(_rows(planes, strides, color, low[r + PREFETCH_ROWS]), color, columns)
                        _fetch_rows(_rows(planes, strides, color, high[r + PREFETCH_ROWS]), color, columns)
                        _fetch_output(out, base[0] + rows[i * fh + r + PREFETCH_ROWS] + cols[j * fw], base[1], fw)
                    if low[r] != kept:
                        _blend_row(_rows(planes, strides, color, low[r]), color, packed, taps, line, top)
                    bottom = _U1 - top
                    _blend_row(_rows(planes, strides, color, high[r]), color, packed, taps, line, bottom)
                    if correction is None:
                        _blend_lines(line, top, bottom, wy[r], truncate, means, scales, result)
                    else:
                        _correct_lines(line, top, bottom, wy[r], correction, truncate, means, scales, result)
                    y = i * fh + r
                    for c in range(3):
                        start = np.uint64(base[0] + base[1] * c + rows[y])
                        if whole and contiguous:
                            for k in range(fw):
                                at = start + np.uint64(j * fw + k)
                                _store(out, at, result[np.uint64(c * fw + k)], bfloat16)
                        else:
                            for k in range(fw):
                                x = j * fw + k
                                if whole or ((y // cell[0] + x // cell[1]) % 2 == 0) == (bit == 1):
                                    _store(out, start + np.uint64(cols[x]), result[c * fw + k], bfloat16)
                    top, kept = bottom, high[r]


@_jit
def _nearest(position, size):
    """The pixel that `position` in [-1, 1] falls on, half to even, still as float32; may lie outside 0..size-1."""
    return np.rint(((position + _ONE) * size - _ONE) * _HALF)


@_jit
def _turn_taps(y, columns, strides, matrix, flip, size, offsets, inside):
    """Where a flip and a rotation bring the taps of one row from: byte offsets, and 1 or 0 for outside.

    y: row of the turned image; columns: float32 [2, fw], both taps, from the centre
    offsets: int64 [2, fw], 0 outside; inside: int32 [2, fw]
    """
    height, width = np.float32(size[0]), np.float32(size[1])
    from_y = np.float32(y) - height * _HALF + _HALF
    along_x, along_y = from_y * matrix[0, 1], from_y * matrix[1, 1]
    step = -strides[2] if flip else strides[2]
    start = (size[1] - 1) * strides[2] if flip else 0
    for tap in range(2):
        for k in range(columns.shape[1]):
            x = _nearest(columns[tap, k] * matrix[0, 0] + along_x, width)
            y = _nearest(columns[tap, k] * matrix[1, 0] + along_y, height)
            is_inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            inside[tap, k] = is_inside
            offsets[tap, k] = np.int64(np.int32(y)) * strides[0] + np.int64(np.int32(x)) * step + start
            if not is_inside:
                offsets[tap, k] = 0


def _sample_turned(
    planes, strides, matrix, flip, steps, origins, size, fragment, cell,
    mean, scale, out, bfloat16, base, places, bands,
):  # fmt: skip
    """One image as in `_sample_frame`, each tap looked up through the flip and rotation in packed RGB."""
    fh, fw = fragment
    rows, cols = places
    low, high = np.empty((2, max(fh, fw)), np.int64), np.empty((2, max(fh, fw)), np.int64)
    wy, wx = np.empty(fh, np.float32), np.empty((3, fw), np.float32)
    weights, columns = wx.reshape(-1), np.empty((2, fw), np.float32)
    offsets, inside = np.empty((2, fw), np.int64), np.empty((2, fw), np.int32)
    values = np.empty((2, 3, fw), np.int32)
    flat, line, result = values.reshape((2, 3 * fw)), np.empty((2, 3 * fw), np.float32), np.empty(3 * fw, np.float32)
    means, scales = np.repeat(mean, fw), np.repeat(scale, fw)
    half = np.float32(size[1]) * _HALF
    whole = cell == fragment
    for i in range(bands[0], bands[1]):
        for j in range(origins.shape[2]):
            for bit in range(2):
                if whole and bit != ((i + j) % 2 == 0):
                    continue
                _set_taps(origins[bit, i, j, 0], steps[bit, 0], size[0], low[0], high[0], wy)
                _set_taps(origins[bit, i, j, 1], steps[bit, 1], size[1], low[1], high[1], wx[0])
                wx[1:] = wx[0]
                for k in range(fw):
                    columns[0, k] = np.float32(low[1, k]) - half + _HALF
                    columns[1, k] = np.float32(high[1, k]) - half + _HALF
                top, kept = np.uint64(0), -1
                for r in range(fh):
                    bottom = _U1 - top
                    for source, slot in ((low[0, r], top), (high[0, r], bottom)):
                        if slot == top and source == kept:
                            continue
                        _turn_taps(source, columns, strides, matrix, flip, size, offsets, inside)
                        for tap in range(2):
                            for k in range(fw):
                                at, is_inside = offsets[tap, k], inside[tap, k]
                                values[tap, 0, k] = np.int32(_byte(planes[0] + at)) * is_inside
                                values[tap, 1, k] = np.int32(_byte(planes[1] + at)) * is_inside
                                values[tap, 2, k] = np.int32(_byte(planes[2] + at)) * is_inside
                        for k in range(3 * fw):
                            left, right = np.float32(flat[0, k]), np.float32(flat[1, k])
                            line[slot, k] = (_ONE - weights[k]) * left + weights[k] * right
                    _blend_lines(line, top, bottom, wy[r], False, means, scales, result)
                    y = i * fh + r
                    for c in range(3):
                        start = base[0] + base[1] * c + rows[y]
                        for k in range(fw):
                            x = j * fw + k
                            if whole or ((y // cell[0] + x // cell[1]) % 2 == 0) == (bit == 1):
                                _store(out, start + cols[x], result[c * fw + k], bfloat16)
                    top, kept = bottom, high[0, r]


_PAIR = types.UniTuple(int64, 2)


def _constant(dtype, ndim):
    return types.Array(dtype, ndim, "C", readonly=True)


def compiled(kind: str, half: bool):
    """The compiled kernel for "rgb", "corrected", "yuv" or "turned" sources and float32 or 16-bit output.

    Says so where compiling takes longer than `SILENT_SECONDS`: it happens once, then the code is kept on disk.
    """
    kernel = _kernels.get((kind, half))
    if kernel is not None:
        return kernel
    with _compiling:
        if (kind, half) not in _kernels:
            message = threading.Timer(SILENT_SECONDS, _announce)
            message.daemon = True
            message.start()
            try:
                _kernels[kind, half] = _compile(kind, half)
            finally:
                message.cancel()
    return _kernels[kind, half]


@cache
def _announce() -> None:
    _log.warning("compiling the CPU kernel, once")


def _compile(kind: str, half: bool) -> Callable[..., None]:
    planes, table = [types.UniTuple(int64, 3), types.UniTuple(int64, 4)], _constant(int64, 1)
    geometry = [_constant(float32, 2), _constant(int32, 4), _PAIR, _PAIR, _PAIR]
    scaling = [_constant(float32, 1)] * 2
    output = [types.Array(uint16 if half else float32, 1, "C"), boolean if half else none]
    where = [_PAIR, types.UniTuple(table, 2), _PAIR]
    function: Callable[..., None]
    if kind == "turned":
        signature = [*planes, _constant(float32, 2), boolean, *geometry, *scaling, *output, *where]
        function = _sample_turned
    else:
        color = types.UniTuple(int32, 6) if kind == "yuv" else none
        correction = _constant(float32, 2) if kind == "corrected" else none
        signature = [*planes, color, correction, *geometry, boolean, boolean, *scaling, *output, *where]
        function = _sample_frame
    signature = types.void(*signature)
    try:
        return njit(signature, nogil=True, cache=True, error_model="numpy")(function)
    except (RuntimeError, OSError):  # nowhere to keep compiled code: no folder can be written, or the disk is full
        return njit(signature, nogil=True, error_model="numpy")(function)
