"""Engines: what computes a network on a CPU, beside torch's eager mode. Runtimes give eager's scores, to rounding."""

import builtins

import numpy as np
import pytest
import torch

import sama
from sama import engines
from sama.cli import main
from sama.errors import DeviceError, InputError, MissingLibraryError
from sama.model import load_model

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def pixels():
    rng = np.random.default_rng(0)
    return np.repeat(np.repeat(rng.integers(0, 256, (8, 24, 32, 3), np.uint8), 4, 1), 4, 2)


@pytest.mark.parametrize("engine", engines.RUNTIMES)
def test_a_runtime_scores_as_eager_does_and_its_rows_say_so(engine, pixels):
    pytest.importorskip(engine)
    for weights, source in (("packaged", pixels), ("packaged-image", pixels[0])):
        eager, model = load_model(weights, "cpu"), load_model(weights, "cpu", engine=engine)
        expected, found = eager.score(source), model.score(source)
        assert np.abs(np.subtract(found.clips, expected.clips)).max() < 1e-3  # of 100
        assert engine in model.settings
        assert engine not in eager.settings
        length = eager.clip_len if source is pixels else 1
        clips = [pixels[:length], pixels[length : 2 * length]]
        x = eager.sampler(clips if source is pixels else [clip[0] for clip in clips])
        maps = model.token_maps(x)
        assert maps.shape == eager.token_maps(x).shape
        assert torch.equal(maps[1:], model.token_maps(x[1:]))  # whatever the batch


def test_auto_takes_what_was_measured_to_be_faster_and_is_installed(monkeypatch):
    pick = engines.pick_engine
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(engines, "installed", lambda engine: True)
    assert pick("auto", CPU, "pico", "float32") == "openvino"
    assert pick("auto", CPU, "tiny", "float32") == "openvino"
    assert pick("auto", CPU, "nano", "float32") == "eager"
    assert pick("auto", CPU, "pico", "bfloat16") == "eager"
    assert pick("auto", GPU, "pico", "float32") == "eager"
    monkeypatch.setattr(engines, "installed", lambda engine: engine == "onnxruntime")
    assert pick("auto", CPU, "pico", "float32") == "onnxruntime"
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(engines, "installed", lambda engine: True)
    assert pick("auto", CPU, "pico", "float32") == "onnxruntime"
    assert pick("auto", CPU, "tiny", "float32") == "eager"
    monkeypatch.setattr(engines, "installed", lambda engine: False)
    assert pick("auto", CPU, "pico", "float32") == "eager"


def test_an_explicit_engine_never_falls_back(monkeypatch):
    pick = engines.pick_engine
    with pytest.raises(InputError, match="unknown engine 'tvm'; known: eager, compile"):
        pick("tvm", CPU, "pico", "float32")
    with pytest.raises(DeviceError, match="engine openvino computes on a CPU; got device cuda"):
        pick("openvino", GPU, "pico", "float32")
    with pytest.raises(InputError, match="computes in float32; got dtype bfloat16"):
        pick("onnxruntime", CPU, "pico", "bfloat16")
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(
        MissingLibraryError, match=r"engine openvino needs openvino: pip install \"sama-vqa\[openvino\]\""
    ):
        pick("openvino", CPU, "pico", "float32")


def test_eager_imports_no_runtime(monkeypatch):
    real = builtins.__import__

    def refuse(name, *arguments, **options):
        assert name.split(".")[0] not in ("onnx", *engines.RUNTIMES)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert sama.load_model("packaged", "cpu").engine == "eager"


def test_the_command_scores_with_an_engine(tmp_path, capsys, monkeypatch):
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)).save(tmp_path / "a.png")
    scores = []
    for engine in ("eager", "onnxruntime"):
        table = tmp_path / f"{engine}.csv"
        assert main(["score", str(tmp_path / "a.png"), "--engine", engine, "-o", str(table), "--device", "cpu"]) == 0
        scores.append(float(capsys.readouterr().out.splitlines()[1].split()[0]))
        assert ("onnxruntime" in table.read_text()) == (engine == "onnxruntime")
    assert scores[0] == pytest.approx(scores[1], abs=0.011)
