"""What both models share: the head, which gives every token a value, and evaluation one sample at a time."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sama.models.precision import tf32


class TokenHead(nn.Module):
    """Dropout, linear to `hidden`, GELU, dropout, linear to one value.

    It computes in the weights' dtype, under autocast too.
    """

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


def exactly(x: Tensor) -> AbstractContextManager[object]:
    """A context without autocast on the device of `x`, and without TF32, unless a compiler looks on."""
    if x.device.type != "cuda" or torch.compiler.is_compiling():
        return without_autocast(x)
    return _in_full(x)


@contextmanager
def _in_full(x: Tensor) -> Iterator[None]:
    with without_autocast(x), tf32(False):
        yield


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A context without autocast on the device of `x`."""
    return torch.autocast(x.device.type, enabled=False) if autocasting(x) else nullcontext()


def autocasting(x: Tensor) -> bool:
    """Whether autocast is on for the device of `x`."""
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def plain_cpu(module: nn.Module, x: Tensor) -> bool:
    """Whether this is plain evaluation on a CPU: without gradients and not under a compiler."""
    return not (module.training or torch.is_grad_enabled() or torch.compiler.is_compiling()) and x.device.type == "cpu"


def by_sample(module: nn.Module, f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`f(x)`; in plain evaluation on a CPU for one sample at a time, so that no result depends on the batch.

    The shape of a matrix product decides how it is split, and so how it rounds. Inputs as large as a clip or an image
    take no longer one by one.
    """
    if x.shape[0] > 1 and plain_cpu(module, x):
        return torch.cat([f(sample) for sample in x.split(1)])
    return f(x)
