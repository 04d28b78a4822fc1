"""The precision of networks: which switches are on where, and what is refused."""

import pytest
import torch

from sama.errors import DeviceError, InputError
from sama.model import random_model
from sama.models import VideoQuality, precision, swin3d
from sama.models.heads import exactly
from sama.models.precision import DTYPES, check_precision, computing, default_precision
from sama.training.config import Config, Data

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def switches():
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.is_autocast_enabled("cuda")


class OnGpu:
    """As much of a tensor on a GPU as a context asks for."""

    device = CUDA


@pytest.fixture
def default():
    before = switches()
    yield before
    assert switches() == before


@pytest.mark.parametrize(
    ("name", "within"),
    [
        ("float32", ("highest", False, False)),
        ("tf32", ("high", True, False)),
    ],
)
def test_switches_of_float32(default, name, within):
    """Convolutions too, which torch rounds to TF32 by default; the exact parts stay exact."""
    with computing(name, CUDA):
        assert switches() == within
        with exactly(OnGpu):
            assert switches() == ("highest", False, False)
        assert switches() == within
    with pytest.raises(ZeroDivisionError), computing(name, CUDA):
        raise ZeroDivisionError
    with computing(name, CUDA, backward=True):
        assert switches() == within
    with computing(name, CPU):  # a CPU has no such switch
        assert switches() == default


def test_a_switch_of_the_newer_kind_is_no_obstacle(monkeypatch):
    def refuse():
        raise RuntimeError("mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuse)
    set_to = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", set_to.append)
    with precision.tf32(True):
        pass
    assert set_to == ["high", "highest"]


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_autocast(name):
    with computing(name, CPU):
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("cpu") == DTYPES[name]
        with computing(name, CPU, backward=True):
            assert not torch.is_autocast_enabled("cpu")
    assert not torch.is_autocast_enabled("cpu")


def test_what_is_refused(monkeypatch, tmp_path):
    with pytest.raises(InputError, match="unknown dtype 'int8'; known: float32, tf32, bfloat16, float16"):
        check_precision("int8", CPU)
    with pytest.raises(DeviceError, match="tf32 is for a GPU; got device cpu: take float32"):
        random_model(device="cpu", dtype="tf32")
    with pytest.raises(InputError, match="tf32 cannot be compiled"):
        check_precision("tf32", CUDA, compiled=True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(DeviceError, match=r"needs compute capability 8.0; got 7.5 \(cuda\)"):
        check_precision("tf32", CUDA)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    check_precision("tf32", CUDA)

    from sama.training.loop import train

    with pytest.raises(DeviceError, match="tf32 is for a GPU"):
        train(Config(data=Data(labels=str(tmp_path / "none.csv")), dtype="tf32", device="cpu"))


def test_rows_say_the_precision(monkeypatch):
    model = random_model(device="cpu", dtype="bfloat16")
    assert model.settings.endswith(", bfloat16")
    monkeypatch.setattr("sama.model.check_precision", lambda *arguments, **settings: None)
    model = random_model(device="cpu", dtype="tf32")
    assert (model.settings.endswith(", tf32"), model.dtype) == (True, torch.float32)


def test_inputs_of_16_bits_where_the_network_rounds_them_anyway(monkeypatch):
    """A tiny network under autocast gives the same from rounded inputs; one with statistics measures small differences
    and is never given any. On a CPU nothing changes."""
    model = VideoQuality("tiny").eval()
    monkeypatch.setattr(swin3d, "plain_cpu", lambda module, x: False)  # as on a GPU
    x = torch.randn(1, 1, 8, 8, 96)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(x), model(x.bfloat16()))
    assert model.rounds_input
    assert not VideoQuality("nano").rounds_input
    assert not VideoQuality("nano", tokens=False).rounds_input

    scorer = random_model(device="cpu", dtype="bfloat16")
    assert (scorer.sampler.dtype, scorer._input_dtype()) == (torch.float32, torch.float32)
    scorer.device = CUDA
    assert scorer._input_dtype() == torch.bfloat16
    scorer.dtype = torch.float32
    assert scorer._input_dtype() == torch.float32
    scorer.dtype, scorer.module = torch.bfloat16, VideoQuality("nano")
    assert scorer._input_dtype() == torch.float32


def test_a_gpu_scores_in_float16_by_default(monkeypatch):
    assert default_precision(CPU) == "float32"
    for capability, expected in (((7, 0), "float16"), ((9, 0), "float16"), ((6, 1), "float32")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, capability=capability: capability)
        assert default_precision(CUDA) == expected


def test_what_is_too_large_for_float16_is_computed_in_float32():
    """Each clip for itself: the others keep the values that they have without it."""
    models = [random_model(device="cpu", dtype=dtype) for dtype in ("float16", "float32")]
    for model in models:
        model.module = VideoQuality("nano", grid=(2, 2)).eval()
        torch.manual_seed(0)
        for parameter in model.module.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        model.module.backbone.layers[0].blocks[0].mlp.fc2.weight.data.mul_(3e5)
        model.metadata |= {"clip_len": 4}
    clips = [torch.randn(3, 4, 32, 32), torch.zeros(3, 4, 32, 32)]
    half, full = (model.token_maps(torch.stack(clips)) for model in models)
    assert half.isfinite().all()
    assert torch.equal(half[0], models[0].token_maps(clips[0][None])[0])
    assert (half - full).abs().max() <= 2e-3 * full.abs().max()
    with computing("float16", CPU), torch.inference_mode():
        assert not models[0].module(torch.stack(clips)).isfinite().all()
