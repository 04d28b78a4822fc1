"""The front door: lazy and typed names, one call to a score, errors in a line, bugs with their traceback."""

import ast
import inspect
import logging
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import sama
from sama import cli, errors, terminal
from sama.errors import InputError, SamaError
from sama.kernels import cpu, cpu_loops

ROOT = Path(sama.__file__).parent


def test_names_for_the_type_checker_are_those_of_the_interpreter():
    """An editor sees the imports under `TYPE_CHECKING`, the interpreter the table: they must be the same."""
    tree = ast.parse((ROOT / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    typed = {alias.asname: node.module for node in block.body for alias in node.names}
    assert typed == sama._HOMES
    for name, module in sama._HOMES.items():
        assert getattr(sama, name) is getattr(sys.modules[module], name)
    assert set(sama._HOMES) < set(dir(sama))
    with pytest.raises(AttributeError, match="VideoSmapler"):
        sama.VideoSmapler  # noqa: B018


def test_a_type_checker_gets_no_name_for_free():
    """A module-level `__getattr__` that a type checker sees would make every misspelt name an `Any`."""
    tree = ast.parse((ROOT / "__init__.py").read_text())
    visible = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert "__getattr__" not in visible
    assert (ROOT / "py.typed").exists()


def test_one_call_scores(monkeypatch):
    clip = np.random.default_rng(0).integers(0, 256, (70, 48, 64, 3), dtype=np.uint8)
    model = sama.load_model(device="cpu")
    assert sama.score(clip, device="cpu", fps=25) == model.score(clip, fps=25)
    assert repr(model).startswith("<QualityModel for videos: default.safetensors (our own, sha256 ")
    assert repr(model).endswith(f"; {model.settings}; on cpu, scores in {model.score_scale}>")


def test_every_exception_of_the_project_has_one_root():
    found = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)]
    assert len(found) >= 8
    assert all(issubclass(kind, SamaError) for kind in found)
    assert issubclass(InputError, ValueError)  # what Python programs expect of a bad argument


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("--mode must be known; got x"), "sama: --mode must be known; got x"),
        (
            FileNotFoundError(2, "No such file or directory", "a.pth"),
            "sama: [Errno 2] No such file or directory: 'a.pth'",
        ),
        (torch.OutOfMemoryError("CUDA out of memory"), "sama: CUDA out of memory"),
    ],
    ids=["input", "file", "memory"],
)
def test_what_a_user_can_put_right_is_one_line(monkeypatch, capsys, error, line):
    monkeypatch.setattr(cli, "load", lambda *_: (_ for _ in ()).throw(error))
    assert cli.main(["inspect", "x.mp4"]) == terminal.NOT_CARRIED_OUT
    assert capsys.readouterr().err == line + "\n"
    with pytest.raises(type(error)):
        cli.main(["inspect", "x.mp4", "--traceback"])
    with pytest.raises(type(error)):
        cli.main(["--traceback", "inspect", "x.mp4"])


@pytest.mark.parametrize("error", [KeyError("bug"), RuntimeError("bug"), ValueError("bug"), TypeError("bug")])
def test_a_bug_keeps_its_traceback(monkeypatch, error):
    monkeypatch.setattr(cli, "load", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(type(error), match="bug"):
        cli.main(["inspect", "x.mp4"])


def test_an_interruption_says_how_to_continue(monkeypatch, capsys):
    from sama import train

    monkeypatch.setattr(train, "run", lambda config: (_ for _ in ()).throw(KeyboardInterrupt()))
    assert train.main([]) == terminal.INTERRUPTED
    assert capsys.readouterr().err == "\ninterrupted; the same command with --resume true continues\n"


def test_a_full_disk_in_training_says_how_to_continue(monkeypatch, capsys):
    from sama import train

    error = errors.OutputError("last.pt cannot be written: No space left on device; the file that was there is kept")
    monkeypatch.setattr(train, "run", lambda config: (_ for _ in ()).throw(error))
    assert train.main([]) == terminal.NOT_CARRIED_OUT
    assert capsys.readouterr().err == f"sama.train: {error}; the same command with --resume true continues\n"


def test_compiling_the_kernel_is_announced_once(monkeypatch, caplog):
    """Only where it takes long, and once, however many kernels are compiled."""
    monkeypatch.setattr(cpu_loops, "_kernels", {})
    monkeypatch.setattr(cpu_loops, "_compile", lambda kind, half: time.sleep(0.3) or (kind, half))
    monkeypatch.setattr(cpu_loops, "SILENT_SECONDS", 10)
    cpu_loops._announce.cache_clear()
    with caplog.at_level(logging.WARNING, "sama"):
        cpu.prepare("rgb", torch.float32)
        assert caplog.messages == []
        monkeypatch.setattr(cpu_loops, "SILENT_SECONDS", 0.05)
        cpu.prepare("yuv", torch.float32)
        cpu.prepare("yuv", torch.bfloat16)
    assert caplog.messages == ["compiling the CPU kernel, once"]
    assert cpu_loops._kernels == {key: key for key in (("rgb", False), ("yuv", False), ("yuv", True))}


def test_compiling_is_no_waiting_for_decoding(monkeypatch, tmp_path):
    """The kernel is compiled before the meter runs, so that the first run does not blame the decoder."""
    from sama.prefetch import Meter
    from sama.scoring import score_files

    model = sama.load_model(device="cpu")
    prepare = type(model.sampler).prepare
    compiled = []

    def slow(self):
        time.sleep(0.5)
        compiled.append(self)
        prepare(self)

    monkeypatch.setattr(type(model.sampler), "prepare", slow)
    meter = Meter()
    (tmp_path / "empty.mp4").touch()
    (row,) = score_files([str(tmp_path / "empty.mp4")], model, meter=meter)
    assert row.status == "error"
    assert compiled == [model.sampler]
    assert meter.running < 0.4
