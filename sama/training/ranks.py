"""The processes of a distributed run: which one this is, what all of them know, and randomness of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from sama.devices import pick_device
from sama.errors import InputError


@dataclass(frozen=True)
class Ranks:
    """This process among those that `torchrun` started; the only one without it.

    rank: number of this process, from 0 on; world_size: number of processes; device: where this process computes
    """

    rank: int
    world_size: int
    device: torch.device

    @classmethod
    def join(cls, device: str) -> Ranks:
        """Join the other processes. device: "auto" or "cuda" gives each process the GPU of its local rank."""
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        chosen = pick_device(device)
        if world_size == 1:
            return cls(0, 1, chosen)
        if chosen.type == "cuda" and chosen.index is None:
            chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(chosen)
        if not dist.is_initialized():
            try:
                dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
            except ValueError as error:  # an environment variable that torchrun sets is missing
                raise InputError(
                    f"{world_size} processes cannot be joined ({error}): start them by torchrun"
                ) from error
        return cls(dist.get_rank(), world_size, chosen)

    @classmethod
    def alone(cls, device: torch.device) -> Ranks:
        """A world of one process on a device."""
        return cls(0, 1, device)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and messages."""
        return self.rank == 0

    def gather(self, values: Tensor) -> Tensor:
        """The values [n] of all ranks, concatenated in their order; n may differ between ranks.

        Gradients flow to this rank's part alone.
        """
        if self.world_size == 1:
            return values
        sizes = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.world_size)]
        dist.all_gather(sizes, torch.tensor([len(values)], device=self.device))
        longest = max(int(size) for size in sizes)
        if not longest:
            return values
        padded = torch.zeros(longest, dtype=values.dtype, device=self.device)
        padded[: len(values)] = values.detach()
        parts = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(parts, padded)
        parts = [part[: int(size)] for part, size in zip(parts, sizes)]
        parts[self.rank] = values
        return torch.cat(parts)

    def all(self, value: Any) -> list[Any]:
        """The values that all ranks pass, in the order of the ranks."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value)
        return values

    def leave(self) -> None:
        """Wait until every rank is done."""
        if self.world_size > 1:
            dist.barrier()


@contextmanager
def seeded(ranks: Ranks, seed: int, *place: int) -> Iterator[None]:
    """Draw dropout and stochastic depth from the seed, the place in training (epoch, batch) and the rank alone, and
    restore torch's generators afterwards."""
    devices = [ranks.device] if ranks.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(int(np.random.SeedSequence([seed, *place, ranks.rank]).generate_state(1)[0]))
        yield
