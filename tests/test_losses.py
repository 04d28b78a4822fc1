"""Losses against numbers worked out by hand, and where their formulas would divide by nothing."""

import math

import pytest
import torch

from sama.training.losses import image_loss, plcc_loss, rank_loss, video_loss

LOSSES = [plcc_loss, rank_loss, video_loss, image_loss]


def value_and_gradient(loss, prediction, label, dtype=torch.float64):
    prediction = torch.tensor(prediction, dtype=dtype, requires_grad=True)
    value = loss(prediction, torch.tensor(label, dtype=dtype))
    value.backward()
    return value.item(), prediction.grad


def test_plcc_loss_by_hand():
    """p = (0, 0, 1, 1), y = (0, 1, 1, 2): standardised p = (-1, -1, 1, 1), y = (-1, 0, 0, 1) * sqrt(2).

    rho = 2 * sqrt(2) / 4 = sqrt(1/2); mse(p, y) = 2 - 2 rho; mse(rho p, y) = 1 - rho ** 2 = 1/2; the mean
    of their quarters
    """
    rho = math.sqrt(0.5)
    value, _ = value_and_gradient(plcc_loss, [0, 0, 1, 1], [0, 1, 1, 2])
    assert value == pytest.approx(((2 - 2 * rho) / 4 + 0.5 / 4) / 2, abs=1e-7)


@pytest.mark.parametrize(("scale", "expected"), [(3, 0), (-3, 0.5)], ids=["in-line", "opposed"])
def test_plcc_loss_of_a_line_does_not_depend_on_its_scale(scale, expected):
    """rho = 1: both mse are 0; rho = -1: mse(p, y) = 4, mse(-p, y) = 0, so that (4 / 4 + 0) / 2."""
    label = [1.0, 2.0, 4.0, 7.0, 3.0]
    value, _ = value_and_gradient(plcc_loss, [scale * x + 11 for x in label], label)
    assert value == pytest.approx(expected, abs=1e-7)


def test_rank_loss_by_hand():
    """p = (3, 1, 2), y = (1, 2, 3). Wrong pairs: (1, 2) by 3 - 1 = 2, (1, 3) by 3 - 2 = 1; (2, 3) is right.

    Each counts twice, as ij and ji: 2 * (2 + 1) = 6, over n (n - 1) = 6, over 1 + max = 3: 1/3.
    """
    value, gradient = value_and_gradient(rank_loss, [3, 1, 2], [1, 2, 3])
    assert value == pytest.approx(1 / 3)
    # s = sum / 6 = 1, m = 2: d(s / (1 + m)) = ds / 3 - dm / 9; ds = (2, -1, -1) * 2 / 6, dm = (1, -1, 0)
    assert gradient.tolist() == pytest.approx([2 / 9 - 1 / 9, -1 / 9 + 1 / 9, -1 / 9])


def test_rank_loss_leaves_equal_labels_alone():
    assert value_and_gradient(rank_loss, [3, 1, 2], [5, 5, 5])[0] == 0
    assert value_and_gradient(rank_loss, [1, 2, 3], [4, 4, 9])[0] == 0


def test_video_loss_is_the_weighted_sum():
    """The two cases above: p = (3, 1, 2), y = (1, 2, 3), rho = (1.5 (-1) - 1.5 (0) ...) = -1/2 by the covariance -1/3
    over the variance 2/3; PLCC loss ((2 + 1) / 4 + (3/4) / 4) / 2 = 15/32; rank loss 1/3."""
    arguments = [3, 1, 2], [1, 2, 3]
    assert value_and_gradient(video_loss, *arguments)[0] == pytest.approx(15 / 32 + 0.3 / 3, abs=1e-7)
    half = value_and_gradient(lambda p, y: video_loss(p, y, rank_weight=0.5), *arguments)[0]
    assert half == pytest.approx(15 / 32 + 0.5 / 3, abs=1e-7)


def test_image_loss_by_hand():
    """Differences 0.5 and 3: (0.5 * 0.25 + (3 - 0.5)) / 2."""
    assert value_and_gradient(image_loss, [1.5, 0], [1, 3])[0] == pytest.approx((0.125 + 2.5) / 2)


def test_gradient_of_the_video_loss_is_that_of_finite_differences():
    label = torch.tensor([0.3, 0.9, 0.1, 0.5, 0.7], dtype=torch.float64)
    prediction = torch.tensor([1.0, 0.2, 0.4, 0.3, 0.8], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: video_loss(p, label), prediction)


@pytest.mark.parametrize("loss", [plcc_loss, rank_loss, video_loss], ids=lambda loss: loss.__name__)
def test_batch_of_one_has_no_order(loss):
    value, gradient = value_and_gradient(loss, [0.7], [3.1], torch.float32)
    assert value == 0
    assert gradient.tolist() == [0]


@pytest.mark.parametrize("n", [2, 3, 12])
def test_constant_labels(n):
    """y = 0: mse(p, 0) = 1, mse(0 p, 0) = 0, so that (1 + 0) / 8. Nothing to learn."""
    value, gradient = value_and_gradient(plcc_loss, [0.1 * k for k in range(n)], [0.1] * n, torch.float32)
    assert value == pytest.approx(1 / 8, abs=1e-6)
    assert gradient.abs().max() < 1e-5


@pytest.mark.parametrize("constant", [0.0, 0.1, -7.3, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_constant_predictions_are_pulled_apart_gently(constant, dtype):
    """p = 0: (mse(0, y) + mse(0, y)) / 8 = 1/4; d/dp_i = -2 y_i / (8 n) for y = -1 or 1; rho p has no slope at 0."""
    value, gradient = value_and_gradient(plcc_loss, [constant] * 12, [1.0] * 6 + [2.0] * 6, dtype)
    assert value == pytest.approx(1 / 4, abs=1e-6)
    assert gradient.tolist() == pytest.approx([2 / 96] * 6 + [-2 / 96] * 6, abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("spread", [1e-30, 1e-12, 1e-6, 1.0, 1e6])
def test_gradients_are_finite_at_any_spread(loss, spread):
    draw = torch.Generator().manual_seed(3)
    prediction = (torch.randn(12, generator=draw) * spread).tolist()
    value, gradient = value_and_gradient(loss, prediction, torch.randn(12, generator=draw).tolist(), torch.float32)
    assert math.isfinite(value)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_half_precision_is_summed_in_float32(loss):
    prediction = torch.tensor([0.25, 0.5, 2.0], dtype=torch.bfloat16, requires_grad=True)
    label = torch.tensor([40.0, 60.0, 50.0])
    value = loss(prediction, label)
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(prediction.detach().float(), label).item())
    assert prediction.grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_what_is_not_finite_is_an_error(loss):
    good, bad = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, math.nan, math.inf])
    with pytest.raises(ValueError, match=r"2 of 3 values of the label are not finite: at \[1, 2\]"):
        loss(good, bad)
    with pytest.raises(ValueError, match="2 of 3 values of the prediction are not finite"):
        loss(bad, good)


@pytest.mark.parametrize("shapes", [((3,), (2,)), ((3, 1), (3,)), ((3, 1), (3, 1)), ((0,), (0,)), ((), ())], ids=str)
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_shapes_are_not_broadcast(loss, shapes):
    with pytest.raises(ValueError, match=r"must be \[n\] with n > 0; got \["):
        loss(*map(torch.ones, shapes))
