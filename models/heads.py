"""What both models share: a head that gives every token a value, and evaluation sample by sample."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TokenHead(nn.Module):
    """Dropout, linear to `hidden`, GELU, dropout, linear to one value; in the weights' dtype, under autocast too."""

    def __init__(self, dim: int, *, hidden: int = 64, dropout: float = 0.5) -> None:
        super().__init__()
        self.fc_hid = nn.Linear(dim, hidden)
        self.fc_last = nn.Linear(hidden, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., dim]` to `[..., 1]`."""
        with exactly(x):
            x = x.to(self.fc_hid.weight.dtype)
            return self.fc_last(self.dropout(F.gelu(self.fc_hid(self.dropout(x)))))


def exactly(x: Tensor) -> AbstractContextManager:
    """Without autocast on the device of `x`."""
    return torch.autocast(x.device.type, enabled=False) if autocasting(x) else nullcontext()


def autocasting(x: Tensor) -> bool:
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def plain_cpu(module: nn.Module, x: Tensor) -> bool:
    """Whether this is plain evaluation on a CPU: nothing to differentiate, no compiler looking on."""
    return not (module.training or torch.is_grad_enabled() or torch.compiler.is_compiling()) and x.device.type == "cpu"


def by_sample(module: nn.Module, f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`f(x)`; in plain evaluation on a CPU one sample at a time, so that no result depends on the batch.

    How a matrix product is split, and so how it rounds, depends on its shape. Large inputs lose no time by it.
    """
    if len(x) > 1 and plain_cpu(module, x):
        return torch.cat([f(sample) for sample in x.split(1)])
    return f(x)
