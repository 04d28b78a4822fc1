"""Images decoded by NVIDIA DALI, on the GPU where there is one, ready for `sama.ImageSampler` on the same device.

    images = [x for x in read_images(paths) if not isinstance(x, DecodeError)]
    sama.ImageSampler()(images)        # one launch, whatever their sizes

Only 8-bit RGB and grey JPEGs are DALI's; all other files are read by `sama.files.read_image` and copied to the device,
so that each file gives the same picture, or the same reason, as there. On the CPU DALI's pixels are Pillow's to the
bit; on a GPU its decoder rounds in its own way, not to the bit. The CPU path is tested; the GPU path is the same
code with another device, and was not run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike, fsdecode

import numpy as np
import nvidia.dali.experimental.dynamic as ndd
import torch
from nvidia.dali import types

from sama.decode import DecodeError
from sama.files import MAX_PIXELS, Turn, read_image, read_jpeg_header


def read_images(
    paths: Sequence[str | PathLike], device: str | torch.device | None = None, *, max_pixels: int = MAX_PIXELS
) -> list[torch.Tensor | DecodeError]:
    """A result for each path, in order: uint8 RGB [H, W, 3] on the device, or the error that names the file.

    device: "cpu", "cuda" or "cuda:N"; None is the GPU where there is one. max_pixels: as in `read_image`
    All JPEGs are decoded at once and held at once. No file ends the batch.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    headers = [read_jpeg_header(path, max_pixels=max_pixels) for path in paths]
    found = _decode([_content(path) for path, header in zip(paths, headers) if header], device)
    results = []
    for path, header in zip(paths, headers):
        picture = next(found) if header else None
        if picture is not None and picture.shape == (*header.size, 3):
            results.append(_turned(picture, header.turn))
            continue
        try:
            results.append(torch.from_numpy(read_image(path, max_pixels=max_pixels)).to(device))
        except DecodeError as error:
            results.append(error)
        except RuntimeError as error:  # no memory left on the device
            results.append(DecodeError(fsdecode(path), f"does not fit on {device} ({error})"))
    return results


def _content(path: str | PathLike) -> np.ndarray:
    try:
        return np.fromfile(path, np.uint8)
    except OSError:  # gone since its header was read: no JPEG, then
        return np.zeros(1, np.uint8)


def _decode(encoded: list[np.ndarray], device: torch.device):
    """Pictures as stored, or None where DALI gives none: a bad file fails its batch, so each is tried alone then."""
    if not encoded:
        return
    try:
        yield from _call(encoded, device)
    except RuntimeError:
        if len(encoded) == 1:
            yield None
            return
        for one in encoded:
            yield from _decode([one], device)


def _call(encoded: list[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    where = "cpu" if device.type == "cpu" else f"gpu:{device.index}"
    with ndd.EvalMode.sync_cpu:
        batch = ndd.batch([ndd.as_tensor(one) for one in encoded])
        pictures = ndd.decoders.image(
            batch,
            device=where,
            output_type=types.RGB,
            adjust_orientation=False,  # `turn` knows XMP too, and minds no damage
            jpeg_fancy_upsampling=True,  # as libjpeg
            affine=False,  # or threads are pinned to the first cores, whatever else runs there
        )
        return [tensor.torch() for tensor in pictures.tensors]


def _turned(picture: torch.Tensor, turn: Turn) -> torch.Tensor:
    axes = [axis for axis, is_reversed in enumerate((turn.rows, turn.columns)) if is_reversed]
    picture = picture.flip(axes) if axes else picture
    return picture.transpose(0, 1) if turn.swap else picture
