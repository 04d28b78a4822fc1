"""What training minimises, over a whole batch: `video_loss` is PLCC loss + 0.3 * rank loss, `image_loss` smooth L1.

All take prediction and label of shape [n], of any floating type, and give a scalar in float32 (float64 for float64).
Where the formulas divide by nothing they are defined here, and gradients are finite everywhere:

    a batch of one          PLCC loss 0, rank loss 0, no gradient: one item has no order
    constant labels         PLCC loss 1/8, rank loss 0, no gradient but rounding
    constant predictions    PLCC loss 1/4, rank loss 0; the gradient pulls towards the labels, as if their spread were 1

A label or a prediction that is not finite raises `InputError`, and never becomes a loss. That check waits for the
device of the tensors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sama.errors import InputError


def plcc_loss(prediction: Tensor, label: Tensor) -> Tensor:
    """(mse(p, y) + mse(rho * p, y)) / 8 for p and y standardised over the batch, rho = mean(p * y); 0 to 1/2.

    For spreads far from zero that is (3 - 2 * rho - rho ** 2) / 8, of the Pearson correlation rho.
    """
    return _plcc_loss(*_checked(prediction, label))


def rank_loss(prediction: Tensor, label: Tensor) -> Tensor:
    """Pairs in the wrong order, by how much: m_ij = relu((p_i - p_j) * sign(y_j - y_i)), its mean over the
    n * (n - 1) ordered pairs, divided by 1 + max(m); from 0, all in order, to below 1."""
    return _rank_loss(*_checked(prediction, label))


def video_loss(prediction: Tensor, label: Tensor, rank_weight: float = 0.3) -> Tensor:
    """plcc_loss + rank_weight * rank_loss."""
    prediction, label = _checked(prediction, label)
    return _plcc_loss(prediction, label) + rank_weight * _rank_loss(prediction, label)


def image_loss(prediction: Tensor, label: Tensor) -> Tensor:
    """Mean of d ** 2 / 2 where |d| < 1, else |d| - 1/2, for d = prediction - label, on the labels' own scale."""
    return F.smooth_l1_loss(*_checked(prediction, label))


def _plcc_loss(prediction: Tensor, label: Tensor) -> Tensor:
    p, y = _standardised(prediction), _standardised(label)
    rho = (p * y).mean()
    return (F.mse_loss(p, y) + F.mse_loss(rho * p, y)) / 8


def _rank_loss(prediction: Tensor, label: Tensor) -> Tensor:
    n = len(label)
    if n == 1:
        return (prediction * 0).sum()
    wrong = F.relu((prediction[:, None] - prediction) * torch.sign(label - label[:, None]))
    return wrong.sum() / (n * (n - 1)) / (1 + wrong.max())


def _standardised(x: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 (biased, + 1e-8); zeros where the values differ by no more than rounding."""
    deviation, mean = torch.std_mean(x, unbiased=False)
    constant = deviation <= 4 * torch.finfo(x.dtype).eps * x.detach().abs().max()
    spread = torch.where(constant, torch.ones_like(deviation), deviation + 1e-8)
    return (x - mean) / spread


def _checked(prediction: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Both as float32 or wider, after a look at shapes and values."""
    if prediction.shape != label.shape or prediction.ndim != 1 or not len(label):
        raise InputError(
            f"prediction and label must be [n] with n > 0; got {list(prediction.shape)} and {list(label.shape)}"
        )
    dtype = torch.promote_types(torch.promote_types(prediction.dtype, label.dtype), torch.float32)
    prediction, label = prediction.to(dtype), label.to(prediction.device, dtype)
    finite = torch.isfinite(torch.stack([prediction.detach(), label.detach()]))
    if not finite.all():
        for name, row in zip(("prediction", "label"), finite.cpu()):
            if not row.all():
                wrong = (~row).nonzero().flatten().tolist()
                raise InputError(f"{len(wrong)} of {len(row)} values of the {name} are not finite: at {wrong[:8]}")
    return prediction, label
