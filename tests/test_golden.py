"""Every backend against the published sampler, on every vector in `tests/data`."""

import os

import numpy as np
import pytest
import torch
from golden import cases
from tolerances import FUSED, PIXEL, VALUE, assert_close, reference_tolerance

import sama

VIDEO, IMAGE = cases("vqa"), cases("iqa")
INTERPRETED_VIDEO = ("c00", "c07", "c15", "c19")  # seconds each in the interpreter: a train case of each kind of plan

interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU runs all of them")


def tolerance_of(backend, device):
    """Kernels round as the published sampler did; torch's interpolation does so on a CPU, in most builds."""
    if backend != "reference":
        return PIXEL
    return FUSED if device == "cuda" else reference_tolerance()


def check_video(case, backend, device="cpu"):
    sampler = sama.VideoSampler(
        case.mode, tuple(case.grid), tuple(case.fragment), case.aligned, normalize=False, backend=backend
    )
    clip = torch.from_numpy(case.source()).to(device)
    x = sampler(clip, train=case.train, draws=case.draws)[0].cpu().numpy()
    tolerance = tolerance_of(backend, device)
    assert_close(x.reshape(-1)[case.array("pos")], case.array("val"), tolerance)
    assert_close(x.mean((2, 3), dtype=np.float64), case.array("mean"), tolerance)


def check_image(case, backend, device="cpu"):
    sampler = sama.ImageSampler(case.mode, tuple(case.grid), tuple(case.fragment), backend=backend)
    image = torch.from_numpy(case.source()).to(device)
    turn = {"flip": case.flip, "angle": case.angle} if case.train else {}
    x = sampler(image, train=case.train, draws=case.draws, **turn)[0].cpu().numpy()
    # a rotated coordinate half way between two pixels may go either way: at most 1 in 1,000, none seen
    outliers = 1e-3 if case.train else 0.0
    exact = tolerance_of(backend, device) == PIXEL
    assert_close(x.reshape(-1)[case.array("pos")], case.array("val"), VALUE if exact else FUSED / 57, outliers=outliers)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("case", VIDEO, ids=str)
def test_video(case, backend):
    check_video(case, backend)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("case", IMAGE, ids=str)
def test_image(case, backend):
    check_image(case, backend)


@interpreted
@pytest.mark.parametrize("case", [case for case in VIDEO if case.id in INTERPRETED_VIDEO], ids=str)
def test_video_triton_interpreted(case):
    assert os.environ["TRITON_INTERPRET"] == "1"
    check_video(case, "triton")


@interpreted
@pytest.mark.parametrize("case", IMAGE, ids=str)
def test_image_triton_interpreted(case):
    check_image(case, "triton")


@pytest.mark.cuda
@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize("case", VIDEO, ids=str)
def test_video_cuda(case, backend):
    check_video(case, backend, "cuda")


@pytest.mark.cuda
@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize("case", IMAGE, ids=str)
def test_image_cuda(case, backend):
    check_image(case, backend, "cuda")
