"""What changes training inputs at random: fragments are left out with their labels, the blur is a Gaussian of each
input's own, within its fragments."""

import numpy as np
import pytest
import torch

from sama.models.swin3d import cut_patches
from sama.training.augment import REACH, soften, thin

MOST = 1.5


def blurred(x, kind):
    """`soften` of clips, of the patches cut from them, or of images; and the deviations that it drew."""
    torch.manual_seed(5)
    deviations = torch.rand(len(x)) * MOST
    torch.manual_seed(5)
    given = {"video": x, "patches": cut_patches(x), "image": x[:, :, 0]}[kind]
    return soften(given, MOST, (2, 3)), deviations.tolist()


@pytest.mark.parametrize("kind", ["video", "patches", "image"])
def test_it_is_a_gaussian_within_each_fragment(kind):
    """By its definition, in plain loops over the rows and columns of one fragment at a time."""
    x = torch.randn(4, 3, 2, 16, 36, generator=torch.Generator().manual_seed(0))
    found, deviations = blurred(x, kind)
    expected = x.double().numpy().copy()
    for sample, deviation in zip(expected, deviations):
        weights = np.exp(-(np.arange(-REACH, REACH + 1) ** 2) / (2 * deviation**2))
        weights /= weights.sum()
        for top, left in np.ndindex(2, 3):
            part = sample[..., 8 * top : 8 * top + 8, 12 * left : 12 * left + 12]
            for axis in (-2, -1):
                width = [(0, 0)] * 4
                width[axis] = (REACH, REACH)
                padded = np.pad(part, width, mode="reflect")
                size = part.shape[axis]
                part = sum(w * np.take(padded, range(k, k + size), axis) for k, w in enumerate(weights))
            sample[..., 8 * top : 8 * top + 8, 12 * left : 12 * left + 12] = part
    expected = torch.from_numpy(expected).float()
    expected = {"video": expected, "patches": cut_patches(expected), "image": expected[:, :, 0]}[kind]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert max(deviations) > 1


def test_fragments_narrower_than_the_blur_keep_their_mean():
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    flat = soften(torch.ones(2, 3, 4, 4), MOST, (2, 2))
    torch.testing.assert_close(flat, torch.ones(2, 3, 4, 4))
    assert soften(x, MOST, (2, 2)).abs().max() < x.abs().max()
    torch.testing.assert_close(soften(x, 0.0, (2, 2)), x)


@pytest.mark.parametrize("kind", ["video", "patches", "image"])
def test_fragments_are_kept_in_their_order_with_their_labels(kind):
    """Every pixel of a fragment holds the fragment's number, and so does its label."""
    numbers = torch.arange(12.0).view(3, 4) + 100 * torch.arange(1.0, 6).view(5, 1, 1)  # [B, rows, columns]
    x = numbers.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None, None].repeat(1, 3, 2, 1, 1)
    given = {"video": x, "patches": cut_patches(x), "image": x[:, :, 0]}[kind]
    torch.manual_seed(1)
    kept, labels = thin(given, numbers[:, None], (3, 4), (2, 3))
    assert labels.shape == (5, 1, 2, 3)
    rows, columns = labels[:, 0, :, :1] - numbers[:, :1, :1], labels[:, 0, :1] - labels[:, 0, :1, :1]
    assert (rows.diff(dim=1) % 4 == 0).all()
    assert (rows.diff(dim=1) > 0).all()
    assert (columns.diff(dim=2) > 0).all()
    assert len({tuple(label.sub(label.min() // 100 * 100).flatten().tolist()) for label in labels}) > 1  # its own each
    expected = labels[:, 0].repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None, None].repeat(1, 3, 2, 1, 1)
    expected = {"video": expected, "patches": cut_patches(expected), "image": expected[:, :, 0]}[kind]
    assert torch.equal(kept, expected)
    finer = numbers[:, None].repeat_interleave(2, 2).repeat_interleave(2, 3)  # four labels in a fragment
    torch.manual_seed(1)
    again, theirs = thin(given, finer, (3, 4), (2, 3))
    assert torch.equal(again, kept)
    assert torch.equal(theirs, labels.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert thin(given, None, (3, 4), (3, 4))[1] is None
    assert torch.equal(thin(given, None, (3, 4), (3, 4))[0], given)
