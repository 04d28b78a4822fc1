"""Training repeats itself to the bit on a CPU, also on several threads."""

import torch

from sama.models.attention import Attention
from sama.models.windows import WINDOW, Windows


def test_gradients_of_bias_tables_are_summed_in_a_fixed_order(two_threads):
    """A row of a table serves many pairs of tokens; threads that add to it as they come round in any order."""
    windows = Windows.fit((8, 14, 14), WINDOW, shifted=True)
    attention = Attention(32, 1, gated=True, scale_bias=True)
    generator = torch.Generator().manual_seed(0)
    upstream, found = None, []
    for _ in range(30):
        attention.zero_grad()
        bias = attention._build_bias(windows, (7, 7))
        upstream = torch.randn(bias.shape, generator=generator) if upstream is None else upstream
        bias.backward(upstream)
        found.append([table.grad.clone() for name, table in attention.named_parameters() if "bias_table" in name])
    assert len(found[0]) == 3
    for gradients in found[1:]:
        for first, again in zip(found[0], gradients, strict=True):
            assert torch.equal(first, again)
