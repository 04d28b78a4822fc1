"""CUDA graphs without CUDA: when a recording is made, replayed, forgotten; a stand-in records."""

import gc
import threading
import weakref

import pytest
import torch

from sama.graphs import Graphs
from sama.model import QualityModel, random_model
from sama.models import VideoQuality

SETTINGS = {"kind": "video", "mode": "sama", "grid": (2, 2), "fragment": (16, 16), "clip_len": 4, "interval": 1}


class Recorder:
    """Records as CUDA does: what was read is read again at each replay, at the same place, the input at its own."""

    def __init__(self):
        self.made = []
        self.fail = None

    def __call__(self, function, x):
        if self.fail:
            raise RuntimeError(self.fail)
        own = x.clone()
        output = function(own)
        self.made.append(tuple(x.shape))

        def replay(x):
            own.copy_(x)
            output.copy_(function(own))
            return output.clone()

        return replay


@pytest.fixture
def model():
    torch.manual_seed(0)
    module = VideoQuality("nano", grid=(2, 2)).eval()
    model = QualityModel(module, SETTINGS | {"num_clips": 1}, "random nano", "cpu")
    model.graphs.record = Recorder()
    model.graphs.suits = lambda x: True
    return model


def batch(seed, count=2):
    return torch.randn(count, 2, 8, 8, 96, generator=torch.Generator().manual_seed(seed))


def plain(model, x):
    model.graphs.enabled = False
    values = model.token_maps(x)
    model.graphs.enabled = True
    return values


def test_on_a_cpu_nothing_is_recorded():
    model = random_model(device="cpu")
    assert not model.graphs.suits(torch.zeros(1))
    assert model.graphs.enabled


def test_recorded_once_a_shape_comes_again(model):
    for call in range(6):
        x = batch(call)
        expected = plain(model, x)
        assert torch.equal(model.token_maps(x), expected)
        assert len(model.graphs.record.made) == (call >= Graphs.WARM_UP)
    assert model.graphs.replays == 6 - Graphs.WARM_UP
    for call in range(4):  # another shape gets one of its own
        assert torch.equal(model.token_maps(batch(call, 3)), plain(model, batch(call, 3)))
    assert model.graphs.record.made == [(2, 2, 8, 8, 96), (3, 2, 8, 8, 96)]


def test_scores_of_padded_batches(model):
    """As scoring does on a GPU: the last batch is filled up, and served by the same recording."""
    model.device = type("Gpu", (), {"type": "cuda", "__str__": lambda self: "cuda"})()
    model.token_maps = lambda x: model.graphs(x)[:, 0]
    model.graphs.function = lambda x: x.flatten(1).mean(1)[:, None, None]
    for count in (4, 4, 4, 1, 3):
        samples = [*batch(count, count)]
        expected = [float(sample.mean()) for sample in samples]
        assert model.values(samples, 4) == pytest.approx(expected, abs=1e-6)
    assert model.graphs.record.made == [(4, 2, 8, 8, 96)]
    assert model.graphs.replays == 3


def test_forgotten_when_weights_change(model):
    for call in range(4):
        model.token_maps(batch(call))
    with torch.no_grad():
        model.module.head.fc_last.weight.add_(1)
    changed = plain(model, batch(0))
    for _ in range(4):
        assert torch.equal(model.token_maps(batch(0)), changed)
    assert len(model.graphs.record.made) == 2
    model.module.train()
    assert model.graphs._recording(batch(0)) is None


def test_biases_that_a_recording_reads_stay(model):
    """The network keeps the bias of the last geometry only; a recording's are kept with it."""
    for call in range(4):
        model.token_maps(batch(call))
    attention = model.module.backbone.layers[0].blocks[0].attn
    read = weakref.ref(attention._cached[1].whole)
    plain(model, torch.randn(1, 2, 4, 12, 96))
    gc.collect()
    assert read() is not None
    assert attention._cached[1].whole is not read()
    model.graphs._recordings.clear()
    gc.collect()
    assert read() is None


@pytest.mark.parametrize("problem", ["operation not permitted when stream is capturing", "CUDA out of memory"])
def test_plain_calls_where_recording_fails(model, problem):
    model.graphs.record.fail = problem
    for call in range(5):
        assert torch.equal(model.token_maps(batch(call)), plain(model, batch(call)))
    assert (model.graphs.problem, model.graphs.replays) == (problem, 0)


def test_bounded(model):
    """Many shapes: the first ones keep their recordings, the others are called plainly."""
    for count in range(1, Graphs.MOST + 3):
        for call in range(4):
            assert torch.equal(model.token_maps(batch(call, count)), plain(model, batch(call, count)))
    assert len(model.graphs.record.made) == Graphs.MOST


def test_threads_take_turns(model):
    """The input of a recording belongs to one call at a time."""
    for call in range(3):
        model.token_maps(batch(call))
    expected = [plain(model, batch(seed)) for seed in range(4)]
    wrong = []

    def work(seed):
        for _ in range(5):
            if not torch.equal(model.token_maps(batch(seed)), expected[seed]):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_compiled_models_are_not_recorded(monkeypatch):
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: None)
    assert not random_model(device="cpu", compile=True).graphs.enabled


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", ["float32", "tf32", "bfloat16", "float16"])
def test_on_a_gpu_recorded_values_are_plain_ones_to_the_bit(dtype):
    model = random_model(device="cuda", dtype=dtype)
    for call in range(6):
        x = torch.randn(2, 16, 56, 56, 96, generator=torch.Generator().manual_seed(call))
        assert torch.equal(model.token_maps(x), plain(model, x))
    assert (model.graphs.problem, model.graphs.replays) == (None, 6 - Graphs.WARM_UP)
