"""What computes a network on a CPU: torch, or a runtime that is given the graph of `sama.export`.

eager        torch, one sample at a time: the reference; the same bits for any batch, and the default
compile      torch's compiler, as `--compile`
onnxruntime  ONNX Runtime
openvino     OpenVINO
auto         of what is installed the fastest for networks of the size, as far as that is known (`FASTEST`)

Runtimes are given one sample at a time too. Their scores differ from eager's in the last digits, and may between
versions: rows name the engine and its version. On a GPU there is eager and compile.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from sama.errors import DeviceError, InputError, MissingLibraryError

if TYPE_CHECKING:
    from sama.model import QualityModel

ENGINES = ("eager", "compile", "onnxruntime", "openvino", "auto")
RUNTIMES = ("onnxruntime", "openvino")
FASTEST = {"pico": ("onnxruntime",)}  # by size of the network, the first that is installed; else eager
EXTRAS = {"onnxruntime": "export", "openvino": "openvino"}
Tokens = Callable[[torch.Tensor], torch.Tensor]


def pick_engine(name: str, device: torch.device, size: str, dtype: str) -> str:
    """The engine for a network of a size on a device, once it is known to be there.

    An explicit choice never falls back: `InputError` for an unknown engine, and for a runtime with another dtype than
    float32; `DeviceError` for a runtime on a GPU; `MissingLibraryError` where it is not installed.
    """
    if name not in ENGINES:
        raise InputError(f"unknown engine {name!r}; known: {', '.join(ENGINES)}")
    if name == "auto":
        if device.type != "cpu" or dtype != "float32":
            return "eager"
        return next((engine for engine in FASTEST.get(size, ()) if installed(engine)), "eager")
    if name in RUNTIMES:
        if device.type != "cpu":
            raise DeviceError(f"engine {name} computes on a CPU; got device {device}: take eager or compile there")
        if dtype != "float32":
            raise InputError(f"engine {name} computes in float32; got dtype {dtype}")
        if not installed(name):
            missing = "onnx" if find_spec(name) else name
            raise MissingLibraryError(f'engine {name} needs {missing}: pip install "sama-vqa[{EXTRAS[name]}]"')
    return name


def installed(engine: str) -> bool:
    return find_spec("onnx") is not None and find_spec(engine) is not None


def label(engine: str) -> str:
    """An engine and its version, as rows name it; empty for torch's own."""
    if engine not in RUNTIMES:
        return ""
    try:
        return f"{engine} {version(engine)}"
    except PackageNotFoundError:  # a build under another name
        return engine


def tokens_of(model: QualityModel, engine: str) -> Tokens:
    """A function from a batch on the CPU to its token maps, by a runtime, with as many threads as torch has."""
    from sama.export import graph

    layout = getattr(model.sampler, "layout", "video")
    run = session(engine, graph(model, layout).SerializeToString(), torch.get_num_threads())

    def tokens(samples: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.from_numpy(run(sample.numpy())) for sample in samples.float().split(1)])

    return tokens


def session(engine: str, content: bytes, threads: int) -> Callable[[Any], Any]:
    """A function from an input, as an array, to its token map, by a runtime. content: the graph, serialised"""
    return (_onnxruntime if engine == "onnxruntime" else _openvino)(content, threads)


def _onnxruntime(content: bytes, threads: int) -> Callable[[Any], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(["tokens"], {name: x})[0]


def _openvino(content: bytes, threads: int) -> Callable[[Any], Any]:
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(core.read_model(content), "CPU", settings)
    output = compiled.output("tokens")
    return lambda x: compiled(x)[output].copy()
