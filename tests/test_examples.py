"""Every example runs, on tiny videos made here: the scripts as they stand, the commands of `finetune.md` in order."""

import csv
import re
import runpy
import shlex
import sys
from pathlib import Path

import av
import numpy as np
import pytest

import sama
from sama.cli import main

EXAMPLES = Path(__file__).parent.parent / "examples"
SMALL = {  # what is added to a command of the page
    "train": "--sampling.clip_len 4 --sampling.num_clips 2 --optim.epochs 2 --optim.batch 4 --device cpu --workers 1",
    "evaluate": "--samples 20",
}


def write(path: Path, *, crf: int, content: int = 0, frames: int = 8, fps: int = 25) -> Path:
    """A moving texture, 96x64, as H.264: the higher the CRF, the less of it is left."""
    texture = np.random.default_rng(content).integers(0, 256, (64, 96 + frames, 1)).repeat(3, 2).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": str(crf), "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for t in range(frames):
            picture = np.ascontiguousarray(texture[:, t : t + 96])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def run(monkeypatch, name: str, *arguments) -> int:
    """The example as a script; its exit status."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return ended.value.code


def test_score_folder_prints_the_worst_first_and_names_what_it_cannot_read(tmp_path, monkeypatch, capsys):
    for k in range(3):
        write(tmp_path / f"{k}.mp4", crf=20 + 12 * k, content=k)
    assert run(monkeypatch, "score_folder.py", tmp_path, "--worst", 2) == 0
    lines = capsys.readouterr().out.splitlines()
    scores = [float(line.split()[0]) for line in lines]
    assert len(scores) == 2
    assert scores == sorted(scores)

    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    assert run(monkeypatch, "score_folder.py", tmp_path) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 3
    assert "cannot be scored" in err
    assert "broken.mp4" in err


def test_compare_encodes_prints_every_window_and_which_file_is_better(tmp_path, monkeypatch, capsys):
    files = [write(tmp_path / f"{crf}.mp4", crf=crf, frames=130) for crf in (18, 45)]
    model = sama.load_model()
    means = [model.score(path, every_seconds=2).score for path in files]
    assert run(monkeypatch, "compare_encodes.py", *files, "--every", 2) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6  # a title, windows of 50, 50 and 30 frames, their mean, the verdict
    assert lines[4].split()[1:3] == [f"{mean:.4f}" for mean in means]
    assert lines[5].startswith(str(files[int(means[1] > means[0])]))

    longer = write(tmp_path / "longer.mp4", crf=18, frames=230)
    assert run(monkeypatch, "compare_encodes.py", files[0], longer) == 1
    assert "differ in length" in capsys.readouterr().err
    assert run(monkeypatch, "compare_encodes.py", files[0], tmp_path / "missing.mp4") == 1
    assert "missing.mp4" in capsys.readouterr().err


def test_onnx_runtime_scores_as_sama_score_does(tmp_path, monkeypatch, capsys):
    files = [write(tmp_path / f"{crf}.mp4", crf=crf, frames=frames) for crf, frames in ((18, 30), (45, 5))]
    assert main(["export", "packaged", "-o", str(tmp_path / "model.onnx")]) == 0
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["score_with_onnxruntime.py", str(tmp_path / "model.onnx"), *map(str, files)])
    runpy.run_path(str(EXAMPLES / "score_with_onnxruntime.py"), run_name="__main__")
    scores = [float(line.split()[0]) for line in capsys.readouterr().out.splitlines()]
    model = sama.load_model()
    assert scores == pytest.approx([model.score(path).score for path in files], abs=1e-3)


@pytest.mark.usefixtures("few_draws")
def test_finetune_commands_run_in_order_and_leave_a_model_on_the_labels_scale(tmp_path, monkeypatch, capsys):
    """Two encodes each of six contents; the commands are those of the page, some made smaller."""
    folder = tmp_path / "videos"
    folder.mkdir()
    with open(tmp_path / "labels.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("path", "mos", "content", "split"))
        for content in range(6):
            for crf in (18, 45):
                path = write(folder / f"{content}-{crf}.mp4", crf=crf, content=content)
                table.writerow((path.name, 100 - crf - content, content, "val" if content < 2 else "train"))
    monkeypatch.chdir(tmp_path)
    page = (EXAMPLES / "finetune.md").read_text()
    commands = [line.strip() for block in re.findall(r"```sh\n(.*?)```", page, re.S) for line in block.splitlines()]
    commands = [shlex.split(command)[1:] for command in commands if command.strip().startswith("sama ")]
    assert [command[0] for command in commands] == ["data", "train", "score", "evaluate", "evaluate"]
    places = {
        "examples/finetune.yaml": str(EXAMPLES / "finetune.yaml"),
    }
    for command in commands:
        command = [places.get(word, word) for word in command]
        assert main(command + shlex.split(SMALL.get(command[0], ""))) == 0, command
    said = capsys.readouterr().err
    result = sama.load_model(tmp_path / "runs/finetune/last.safetensors").score(folder / "0-18.mp4")
    assert result.scale is None  # no longer the packaged model's
    if result.mos is None:  # labels fell as scores rose on the few validation files, which is said
        assert "has no calibration" in said
    else:
        assert result.mos_scale == "labels"
