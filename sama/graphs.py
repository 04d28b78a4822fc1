"""CUDA graphs: the kernels of a network's forward pass, recorded once for a shape and then launched by one call.

A forward pass of the tiny network is some 500 launches. Scoring on a GPU passes batches of one shape, padded where
fewer clips are left, so that the same recording serves all of them.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sama.models.attention import kept_biases

Function = Callable[[Tensor], Tensor]


class Recording:
    """One forward pass, as a CUDA graph with an input and an output of its own."""

    def __init__(self, function: Function, x: Tensor) -> None:
        self.input = x.clone()
        self.graph = torch.cuda.CUDAGraph()
        self.done = torch.cuda.Event()
        # Other threads go on allocating while this one records: only this one's calls are held to what a graph allows.
        with torch.cuda.device(x.device), torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.output = function(self.input)

    def __call__(self, x: Tensor) -> Tensor:
        stream = torch.cuda.current_stream(x.device)
        stream.wait_event(self.done)  # of the replay before, which may have been another stream's
        self.input.copy_(x)
        self.graph.replay()
        output = self.output.clone()
        self.done.record(stream)
        return output


class Graphs:
    """Calls `function(x)`; on a GPU, once a shape has come `WARM_UP` times, replays a recording of it.

    function: of a batch, by the weights of `module` alone; without gradients, and without waiting for the GPU
    record: makes a recording; another one in tests

    When a weight changes, what was recorded is forgotten. Where recording fails, every call is a plain one from then
    on, and `problem` says why. `enabled` can be set to False.
    """

    WARM_UP = 2  # plain calls, in which libraries set themselves up and biases are built
    MOST = 4  # recordings: each keeps the memory of a forward pass

    def __init__(
        self,
        function: Function,
        module: nn.Module,
        *,
        record: Callable[[Function, Tensor], Function] = Recording,
        enabled: bool = True,
    ) -> None:
        self.function, self.module, self.record, self.enabled = function, module, record, enabled
        self.problem: str | None = None
        self.replays = 0
        self._lock = threading.Lock()
        self._calls: Counter[Any] = Counter()
        self._recordings: dict[Any, tuple[Function, Any]] = {}  # and what its kernels read beside the weights
        self._weights: Any = None

    def __call__(self, x: Tensor) -> Tensor:
        if not self.enabled or self.problem or not self.suits(x):
            return self.function(x)
        with self._lock:
            recording = self._recording(x)
            if recording is None:
                return self.function(x)
            self.replays += 1
            return recording(x)

    def suits(self, x: Tensor) -> bool:
        """Whether this batch is on a device that has graphs."""
        return x.is_cuda

    def _recording(self, x: Tensor) -> Function | None:
        """The recording for a batch, made where it is due; None where the call is to be a plain one."""
        weights = self._state_of_weights()
        if weights != self._weights:
            self._weights = weights
            self._recordings.clear()
            self._calls.clear()
        key = x.shape, x.dtype, x.device
        if key not in self._recordings:
            self._calls[key] += 1
            if self._calls[key] <= self.WARM_UP or len(self._recordings) == self.MOST:
                return None
            try:
                self._recordings[key] = self.record(self.function, x), kept_biases(self.module)
            except RuntimeError as error:  # CUDA's, out of memory among them
                self.problem = str(error)
                return None
        return self._recordings[key][0]

    def _state_of_weights(self) -> Any:
        """What changes when a weight is replaced or written to."""
        weights = [*self.module.parameters(), *self.module.buffers()]
        versions = [(w.data_ptr(), None if w.is_inference() else w._version) for w in weights]
        return self.module.training, versions
