"""What changes training inputs at random: the blur is a Gaussian of each input's own, within its fragments."""

import numpy as np
import pytest
import torch

from sama.models.swin3d import cut_patches
from sama.training.augment import REACH, soften

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
