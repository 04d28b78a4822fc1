"""Exported networks: files that ONNX Runtime and torch load without this package, and what is in them.

Networks of size tiny are tested on inputs of 2x2 fragments; SAMA_WHOLE_EXPORTS=1 takes those of their whole size.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import sama
from sama import export as exports
from sama.backends import MEAN
from sama.cli import main
from sama.errors import InputError, MissingLibraryError, OutputError
from sama.model import QualityModel, load_model
from sama.models import ImageQuality, VideoQuality
from sama.models.onnx_networks import image_graph, length_is_free, video_graph

WHOLE = os.environ.get("SAMA_WHOLE_EXPORTS") == "1"
SAMPLING = {"mode": "sama", "fragment": [32, 32], "clip_len": 32, "interval": 2, "num_clips": 4}
CALIBRATION = {"scale": "labels", "kind": "linear", "slope": 2.0, "intercept": 1.0}

# Runs in a process that can import neither this package nor torch. Arguments: a folder of packages, then the folder
# with `NAME.onnx` and `NAME.npy`; writes NAME-tokens.npy and NAME-score.npy, and prints the metadata of each file.
ALONE = """
import sys
sys.modules["sama"] = sys.modules["torch"] = None
sys.path.append(sys.argv[1])
import json, pathlib
import numpy, onnxruntime
about = {}
for path in sorted(pathlib.Path(sys.argv[2]).glob("*.onnx")):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = numpy.load(path.with_suffix(".npy"))
    tokens, score = session.run(["tokens", "score"], {session.get_inputs()[0].name: x})
    numpy.save(path.with_name(path.stem + "-tokens.npy"), tokens)
    numpy.save(path.with_name(path.stem + "-score.npy"), score)
    about[path.stem] = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
print(json.dumps(about))
"""


def trained(model):
    """The model with tables and last layers as training leaves them: of some size, different everywhere."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bias_table", "fc_last.weight", "excitation.fc2.weight", "fc3.weight")):
                parameter.normal_(0, 0.5)
    return model.eval()


def random(module, grid, **metadata):
    about = {**SAMPLING, "kind": module.kind, "grid": grid, **metadata}
    return QualityModel(trained(module), about, "random weights", "cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Exported files with sampled inputs, what this package's networks make of these, and what ONNX Runtime does."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("exports")
    grid, encoded = ([7, 7] if WHOLE else [2, 2]), {"scale_bias": True, "scale_excitation": True}
    models = {
        "packaged": load_model("packaged", "cpu"),
        "packaged-image": load_model("packaged-image", "cpu"),
        "swin-t": random(VideoQuality("tiny", grid=grid), grid, calibration=CALIBRATION),
        "swin-t-encoded": random(VideoQuality("tiny", grid=grid, **encoded), grid),
        "swin-v2": random(ImageQuality("tiny"), [8, 8]),
    }
    expected = {}
    for name, model in models.items():
        layout = "patches" if name == "swin-t" else "video"
        exports.write(model, root / f"{name}.onnx", layout)
        pixels = torch.randint(0, 256, (2, 60, 80, 3), dtype=torch.uint8)
        sampler = model.sampler
        if model.kind == "video":
            pixels = [picture.expand(model.clip_len, -1, -1, -1) for picture in pixels[: 1 + (name == "packaged")]]
            about = model.metadata
            sampler = sama.VideoSampler(about["mode"], about["grid"], about["fragment"], layout=layout)
        x = sampler(list(pixels))
        np.save(root / f"{name}.npy", x.numpy())
        with torch.inference_mode():
            expected[name] = model, x, model.module(x)
    packages = Path(onnxruntime.__file__).parent.parent
    run = subprocess.run(
        [sys.executable, "-S", "-c", ALONE, packages, root], capture_output=True, text=True, cwd=root, check=False
    )
    assert run.returncode == 0, run.stderr
    return root, expected, json.loads(run.stdout)


@pytest.mark.parametrize("name", ["packaged", "packaged-image", "swin-t", "swin-t-encoded", "swin-v2"])
def test_onnx_runtime_alone_gives_the_token_map_and_the_score(folder, name):
    root, expected, about = folder
    model, x, tokens = expected[name]
    found = np.load(root / f"{name}-tokens.npy")
    assert found.shape == tokens.shape
    assert tokens.std() > 0.01  # or anything would do
    size = max(1.0, float(tokens.abs().max()))
    assert np.abs(found - tokens.numpy()).max() < exports.PARITY * size
    assert np.abs(np.load(root / f"{name}-score.npy") - model.values(list(x))).max() < exports.PARITY * size
    metadata = about[name]
    for key in ("mode", "grid", "fragment"):
        assert metadata[key] == model.metadata[key]
    assert metadata["weights"] == model.name
    assert metadata.get("calibration") == model.metadata.get("calibration")
    assert metadata.get("scale") == model.metadata.get("scale")
    assert metadata["mean"] == list(MEAN)


def test_files_are_as_large_as_the_weights(folder):
    """No bias of all windows, no index per block."""
    root, expected, _ = folder
    for name, (model, *_) in expected.items():
        weights = sum(p.nbytes for p in model.module.parameters())
        assert (root / f"{name}.onnx").stat().st_size < weights + 2e6


@pytest.mark.parametrize(
    ("options", "frames", "side"),
    [
        ({"size": "nano"}, 5, 90),  # an odd frame, patches that windows do not divide
        ({"size": "nano"}, 20, 64),  # two windows along time, the second one padded
        ({"size": "nano", "tokens": False}, 8, 64),
        ({"size": "pico", "scale_bias": True}, 3, 96),
        ({"size": "pico"}, 2, 100),  # sizes that neither patches nor fragments divide
        ({"size": "lite"}, 3, 96),
        ({"size": "lite", "scale_bias": True}, 2, 100),
    ],
    ids=["nano-5x90", "nano-20x64", "statistics", "pico-3x96", "pico-2x100", "lite-3x96", "lite-2x100"],
)
def test_clips_of_any_size(options, frames, side):
    model = trained(VideoQuality(**options, grid=(3, 3)))
    assert not length_is_free(model, frames)
    with torch.no_grad():
        graph = video_graph(model, layout="video", frames=frames, height=side, width=side, scale=None)
    x = torch.randn(2, 3, frames, side, side)
    with torch.inference_mode():
        expected = model(x)
    for count in (1, 2):
        tokens, score = run(graph, x[:count])
        assert tokens.shape == expected[:count].shape
        assert np.abs(tokens - expected[:count].numpy()).max() < 1e-4
        assert np.abs(score - model.score(x[:count]).detach().numpy()).max() < 1e-4


@pytest.mark.parametrize(
    ("options", "frames", "side"),
    [
        ({"size": "nano", "scale_bias": True}, 20, 90),  # shifted along all axes; both windows and patches are padded
        ({"size": "pico"}, 48, 160),  # three slabs
        ({"size": "pico"}, 2, 96),
        ({"size": "lite"}, 2, 224),
    ],
    ids=["nano-20x90", "pico-48x160", "pico-2x96", "lite-2x224"],
)
def test_graphs_of_a_single_clip_cut_attention_into_parts(options, frames, side):
    model = trained(VideoQuality(**options, grid=(3, 3)))
    with torch.no_grad():
        graph = video_graph(model, layout="video", frames=frames, height=side, width=side, scale=None, single=True)
    x = torch.randn(1, 3, frames, side, side)
    with torch.inference_mode():
        expected = model(x)
    assert expected.std() > 0.01
    tokens, _ = run(graph, x)
    assert tokens.shape == expected.shape
    assert np.abs(tokens - expected.numpy()).max() < 1e-4


@pytest.mark.parametrize("layout", ["video", "patches"])
def test_pairs_of_frames_may_count_differently(layout, tmp_path):
    about = {"pair_weights": [0.75, 0.25], "clip_len": 4, "fragment": [32, 32]}
    model = random(VideoQuality("pico", grid=(2, 2)), [2, 2], **about)
    x = exports.example(model, layout)
    maps = model.token_maps(x)
    expected = 0.75 * maps[:, 0].mean((1, 2)) + 0.25 * maps[:, 1].mean((1, 2))
    assert (expected - maps.mean((1, 2, 3))).abs().max() > 1e-3  # or any weights would do
    torch.testing.assert_close(torch.tensor(model.values(list(x))), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="got clips of 3 pairs of frames, expected 2"):
        model.values([torch.zeros(3, 6, 64, 64)])
    for name in ("x.onnx", "x.pt2"):  # each compares its scores with those before it is written
        assert exports.write(model, tmp_path / name, layout).metadata["pair_weights"] == [0.75, 0.25]
    proto = video_graph(model.module, layout="video", frames=32, height=64, width=64, scale=None, weights=[1 / 16] * 16)
    assert proto.graph.input[0].type.tensor_type.shape.dim[2].dim_value == 32  # not free: so many weights


@pytest.mark.parametrize("layout", ["video", "patches"])
def test_the_length_of_a_clip_is_free_in_whole_windows(layout):
    model = trained(VideoQuality("pico", grid=(2, 2)))
    assert length_is_free(model, 32)
    with torch.no_grad():
        graph = video_graph(model, layout=layout, frames=32, height=64, width=64, scale=None)
    for frames in (32, 48, 80):
        x = torch.randn(2, *((3, frames, 64, 64) if layout == "video" else (frames // 2, 16, 16, 96)))
        with torch.inference_mode():
            expected = model(x, patches=layout == "patches").numpy()
        assert np.abs(run(graph, x)[0] - expected).max() < 1e-4


def test_a_nano_image_network_and_the_scale_of_scores():
    model = trained(ImageQuality("nano"))
    x = torch.randn(3, 3, 256, 256)
    with torch.inference_mode():
        tokens = model(x).numpy()
    means = np.sort(tokens.mean(1))
    scale = {"least": float(means[0] + means[1]) / 2, "most": float(means[1] + means[2]) / 2}
    with torch.no_grad():
        graph = image_graph(model, height=256, width=256, scale=scale)
    found, score = run(graph, x)
    assert np.abs(found - tokens).max() < 1e-4
    assert np.abs(score - tokens.mean(1).clip(scale["least"], scale["most"])).max() < 1e-4


def run(graph: onnx.ModelProto, x: torch.Tensor):
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["tokens", "score"], {session.get_inputs()[0].name: x.numpy()})


def test_pt2_holds_the_network_and_its_metadata(tmp_path):
    written = exports.export("packaged", tmp_path / "model.pt2", layout="patches")
    assert 0 <= written.parity <= exports.PARITY
    extra = {"metadata.json": ""}
    network = torch.export.load(tmp_path / "model.pt2", extra_files=extra).module()
    model = load_model("packaged", "cpu")
    assert json.loads(extra["metadata.json"])["scale"] == model.metadata["scale"]
    x = torch.randn(3, *exports.shape(model, "patches"))
    with torch.no_grad():
        for count in (1, 3):
            tokens, score = network(x[:count])
            assert (tokens - model.module(x[:count])).abs().max() < 1e-2  # of 100
            assert np.abs(score.numpy() - model.values(list(x[:count]))).max() < 1e-2


def test_the_command_says_what_it_wrote_and_how_far_it_is_off(tmp_path, capsys, monkeypatch):
    path = tmp_path / "model.onnx"
    assert main(["export", "packaged", "-o", str(path)]) == 0
    out, err = capsys.readouterr()
    assert f"{path}: video model of size lite" in out
    assert "off this package's network" in out
    assert not err
    monkeypatch.setattr(exports, "find_spec", lambda name: None if name == "onnxruntime" else object())
    assert main(["export", "packaged", "-o", str(path)]) == 0
    assert "onnxruntime is not installed" in capsys.readouterr().err


def test_what_cannot_be_exported_is_refused_and_nothing_is_written(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"got the ending '\.pt', expected \.onnx or \.pt2"):
        exports.export("packaged", tmp_path / "model.pt")
    with pytest.raises(InputError, match="layout patches is for videos"):
        exports.export("packaged-image", tmp_path / "model.onnx", layout="patches")
    monkeypatch.setattr(exports, "PARITY", 1e-9)
    with pytest.raises(OutputError, match=r"is not written: what was exported is .* off"):
        exports.export("packaged", tmp_path / "model.onnx")
    monkeypatch.setattr(exports, "find_spec", lambda name: None)
    with pytest.raises(MissingLibraryError, match=r"sama-vqa\[export\]"):
        exports.export("packaged", tmp_path / "model.onnx")
    assert not [*tmp_path.iterdir()]
