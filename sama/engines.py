"""What computes a network on a CPU: torch, or a runtime that is given the graph of `sama.export`.

eager        torch, one sample at a time: the reference; the same bits for any batch, and the default
compile      torch's compiler, as `--compile`
onnxruntime  ONNX Runtime
openvino     OpenVINO
auto         of what is installed the fastest for networks of the size, as far as that is known (`FASTEST`)

Runtimes are given one sample at a time too; for dtype int8 OpenVINO is given the graph of `sama.quantize`. Their
scores differ from eager's in the last digits (of int8 in more), and may between versions: rows name engine and version.
On a GPU there is eager and compile.
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

INT8 = "int8"
ENGINES = ("eager", "compile", "onnxruntime", "openvino", "auto")
RUNTIMES = ("onnxruntime", "openvino")
FASTEST = {  # by widest vectors of the processor and size of the network, the first that is installed; else eager
    ("AVX512", "tiny"): ("openvino",),
    ("AVX512", "pico"): ("openvino", "onnxruntime"),
    ("AVX2", "pico"): ("onnxruntime",),
}
NOT_OFFERED = {  # int8, by size of the network, with the reason (docs/benchmarks.md)
    "pico": "it would be at most 1.2 times as fast as float32 by the same engine, less than the 1.6 asked of it",
    "lite": "it moved scores by up to 2.6 points on six pictures, and its gain has not been measured",
}
EXTRAS = {"onnxruntime": "export", "openvino": "openvino", INT8: "int8"}
Tokens = Callable[[torch.Tensor], torch.Tensor]


def pick_engine(name: str, device: torch.device, size: str, dtype: str) -> str:
    """The engine for a network of a size on a device, once it is known to be there.

    An explicit choice never falls back: `InputError` for an unknown engine, for a runtime with a dtype that it does not
    have, and for int8 with an engine or a network that does not have it; `DeviceError` for a runtime on a GPU;
    `MissingLibraryError` where it is not installed.
    """
    if name not in ENGINES:
        raise InputError(f"unknown engine {name!r}; known: {', '.join(ENGINES)}")
    if dtype == INT8:
        return _int8_engine(name, device, size)
    if name == "auto":
        if device.type != "cpu" or dtype != "float32":
            return "eager"
        known = FASTEST.get((torch.backends.cpu.get_cpu_capability(), size), ())
        return next((engine for engine in known if installed(engine)), "eager")
    if name in RUNTIMES:
        if device.type != "cpu":
            raise DeviceError(f"engine {name} computes on a CPU; got device {device}: take eager or compile there")
        if dtype != "float32":
            also = " or int8" if name == "openvino" else ""
            raise InputError(f"engine {name} computes in float32{also}; got dtype {dtype}")
        if not installed(name):
            missing = "onnx" if find_spec(name) else name
            raise MissingLibraryError(f'engine {name} needs {missing}: pip install "sama-vqa[{EXTRAS[name]}]"')
    return name


def _int8_engine(name: str, device: torch.device, size: str) -> str:
    if name not in ("auto", "openvino"):
        raise InputError(f"dtype int8 is computed by engine openvino; got engine {name}: give engine openvino or auto")
    if device.type != "cpu":
        raise DeviceError(f"dtype int8 is for a CPU; got device {device}: take bfloat16 or float16 there")
    if size in NOT_OFFERED:
        raise InputError(f"dtype int8 is not offered for networks of size {size}: {NOT_OFFERED[size]}; give float32")
    missing = [library for library in ("onnx", *RUNTIMES) if not find_spec(library)]
    if missing:
        raise MissingLibraryError(f'dtype int8 needs {", ".join(missing)}: pip install "sama-vqa[{EXTRAS[INT8]}]"')
    return "openvino"


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
    layout = getattr(model.sampler, "layout", "video")
    if model.precision == INT8:
        from sama.quantize import int8_graph

        content = int8_graph(model, layout)
    else:
        from sama.export import graph

        content = graph(model, layout, single=True).SerializeToString()
    run = session(engine, content, torch.get_num_threads())

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
