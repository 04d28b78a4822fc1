"""Networks with a value for each fragment, pico and lite: their stems, and what videos and images share."""

import numpy as np
import pytest
import timm
import torch

from sama.backends import MEAN, STD
from sama.errors import CheckpointError
from sama.kernels.layout import STEMMED
from sama.model import QualityModel, load_model
from sama.models import ImageQuality, VideoQuality, build, load_weights, save_weights
from sama.models.lite import ScaledConv
from sama.models.stem import FragmentStem, pixels
from sama.models.swin3d import SIZES, cut_patches
from sama.training.augment import jitter


@pytest.fixture(scope="module", params=STEMMED)
def model(request):
    torch.manual_seed(0)
    return VideoQuality(request.param).eval()


def clips(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_the_sizes_with_a_stem_are_those_that_have_one():
    assert set(STEMMED) == {size for size, options in SIZES.items() if "stem" in options}


@pytest.mark.parametrize(("frames", "tokens"), [(1, 1), (2, 1), (5, 3), (8, 4)])
def test_a_value_for_each_fragment_of_each_pair_of_frames(model, frames, tokens):
    with torch.no_grad():
        assert model(clips(1, 3, frames, 224, 224)).shape == (1, 1, tokens, 7, 7)


def test_an_odd_last_frame_stands_still(model):
    x = clips(1, 3, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(model(x), model(torch.cat([x, x[:, :, -1:]], 2)))


def test_patches_and_frames_give_the_same(model):
    x = clips(2, 3, 4, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(model(cut_patches(x)), model(x))


def test_a_score_does_not_depend_on_its_batch(model):
    x = clips(3, 3, 2, 224, 224)
    with torch.inference_mode():
        together = model.score(x)
        alone = torch.cat([model.score(one) for one in x.split(1)])
    assert torch.equal(together, alone)


def test_evaluation_on_a_cpu_is_what_is_trained(model):
    x = clips(1, 3, 4, 224, 224)
    with torch.inference_mode():
        plain = model(x)
    torch.testing.assert_close(plain, model(x).detach(), rtol=1e-4, atol=1e-4)  # with gradients: not in chunks


@pytest.mark.parametrize("fragment", [16, 32, 40])
def test_the_stem_does_not_look_over_a_fragments_border(fragment):
    torch.manual_seed(0)
    stem = FragmentStem(8, (4, 6), (2, 3))
    stem.start()
    x = clips(1, 3, 2, 2 * fragment, 3 * fragment)
    changed = x.clone()
    changed[..., :fragment, fragment : 2 * fragment] += 1
    before, after = (stem(cut_patches(frames)) for frames in (x, changed))
    size = fragment // 8
    assert before.shape == (1, 1, 2 * size, 3 * size, 8)
    differs = (before != after).any(-1)[0, 0]
    assert differs[:size, size : 2 * size].all()
    differs[:size, size : 2 * size] = False
    assert not differs.any()


def test_the_first_filters_see_detail_and_not_brightness():
    stem = VideoQuality("pico").backbone.stem
    weight = stem.filters.weight
    assert not weight.requires_grad
    detail = weight[:-3].flatten(2).sum(-1)
    along_time = weight[:-3].sum((1, 2, 3))
    torch.testing.assert_close(along_time, torch.zeros(17), atol=1e-5, rtol=0)  # an even change of all frames
    assert (detail.abs().amax(1) > 1).sum() == 2  # only the differences of frames see a frame that is brighter


PHOTOGRAPH = {"mean": torch.tensor(MEAN), "std": torch.tensor(STD)}


@pytest.fixture(scope="module")
def efficientnet():
    """timm's EfficientNet-Lite0 with random weights and batch norms."""
    torch.manual_seed(2)
    net = timm.create_model("tf_efficientnet_lite0").eval()
    for layer in net.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(layer.running_var, 0.5, 2)
            torch.nn.init.uniform_(layer.weight, 0.5, 2)
            torch.nn.init.uniform_(layer.bias, -0.5, 0.5)
    return net


def test_the_pretrained_stem_computes_what_efficientnet_does(efficientnet):
    """Away from the borders, where the two pad with other values, and on another side."""
    stem = VideoQuality("lite").backbone.stem.eval()
    stem.start(efficientnet.state_dict(), **PHOTOGRAPH)
    grey = 255 * torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(4))
    x = (grey - PHOTOGRAPH["mean"][:, None, None]) / PHOTOGRAPH["std"][:, None, None]
    with torch.no_grad():
        ours = torch.nn.functional.relu6(stem.first(pixels(cut_patches(x[:, :, None].repeat(1, 1, 2, 1, 1)))))
        padded = torch.nn.functional.pad((grey - 127) / 128, (1, 1, 1, 1))
        theirs = efficientnet.bn1(torch.nn.functional.conv2d(padded, efficientnet.conv_stem.weight, stride=2))
        torch.testing.assert_close(ours[..., 1:, 1:], theirs[..., 1:, 1:], rtol=1e-3, atol=1e-3)
        ours, theirs = stem.stages[0](ours), efficientnet.blocks[0](ours)
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)  # of stride 1: the same padding


def test_a_lite_stem_sees_how_the_second_frame_differs(efficientnet):
    stem = VideoQuality("lite").backbone.stem.eval()
    stem.start(efficientnet.state_dict(), **PHOTOGRAPH)
    x = clips(1, 3, 2, 64, 64)
    still = x[:, :, :1].repeat(1, 1, 2, 1, 1)
    with torch.no_grad():
        assert not torch.allclose(stem(cut_patches(x)), stem(cut_patches(still)), atol=0.01)


@pytest.mark.parametrize("change", ["another network", "too few"])
def test_weights_of_another_network_are_refused(change, efficientnet):
    weights = dict(efficientnet.state_dict())
    if change == "too few":
        weights = dict([*weights.items()][:40])
    else:
        weights = timm.create_model("efficientnet_b0").state_dict()
    with pytest.raises(ValueError, match=r"got shapes .* expected"):
        VideoQuality("lite").backbone.stem.start(weights, **PHOTOGRAPH)


def test_a_factor_of_a_convolution_is_that_of_its_outputs():
    layer, plain = ScaledConv(4, 6, 3, groups=2), torch.nn.Conv2d(4, 6, 3, padding=1, groups=2)
    plain.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    x = clips(1, 4, 8, 8)
    with torch.no_grad():
        layer.gain.copy_(torch.arange(6.0))
        expected = (plain(x) - plain.bias[:, None, None]) * layer.gain[:, None, None] + plain.bias[:, None, None]
        torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("size", STEMMED)
def test_an_untrained_model_learns_the_sharper_of_two(size):
    torch.manual_seed(0)
    model = VideoQuality(size, grid=(2, 2), dropout=0.0, drop_path=0.0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    sharp = clips(4, 3, 2, 64, 64)
    soft = torch.nn.functional.avg_pool3d(sharp, (1, 3, 3), 1, (0, 1, 1))
    x, y = torch.cat([sharp, soft]), torch.tensor([1.0] * 4 + [0.0] * 4)
    losses = []
    for _ in range(12):
        loss = ((model.score(x) - y) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4


def test_a_still_video_and_its_image_share_weights(model, tmp_path):
    metadata = {"mode": "sama-c", "grid": [7, 7], "fragment": [32, 32], "clip_len": 2, "interval": 1, "num_clips": 1}
    save_weights(model, tmp_path / "video.safetensors", metadata=metadata)
    image_model = ImageQuality(model.size, grid=(7, 7)).eval()
    report = load_weights(image_model, tmp_path / "video.safetensors")
    assert (report.missing, report.dropped) == ((), ())
    image = clips(2, 3, 224, 224)
    with torch.no_grad():
        still = model(image[:, :, None].expand(-1, -1, 2, -1, -1))
        torch.testing.assert_close(image_model(image), still.flatten(1))


@pytest.mark.parametrize("size", STEMMED)
@pytest.mark.parametrize("kind", ["video", "image"])
def test_a_checkpoint_says_which_of_the_two_it_is(kind, size, tmp_path):
    torch.manual_seed(3)
    model = VideoQuality(size) if kind == "video" else ImageQuality(size, grid=(5, 5))
    metadata = {"mode": "sama-c" if kind == "video" else "sama", "grid": [5, 5], "fragment": [32, 32]}
    save_weights(model, tmp_path / "x.safetensors", metadata=metadata)
    built = build(tmp_path / "x.safetensors")
    assert (built.model.kind, built.model.size) == (kind, size)
    for name, value in model.state_dict().items():
        assert torch.equal(value, built.model.state_dict()[name])


@pytest.mark.parametrize(("size", "grid"), [("pico", (7, 8)), ("lite", (7, 8)), ("tiny", (7, 7)), ("nano", (7, 7))])
def test_an_image_grid_that_does_not_fit_is_refused(size, grid):
    with pytest.raises(ValueError, match="expected a square one"):
        ImageQuality(size, grid=grid)


def test_an_image_of_another_shape_is_refused():
    model = ImageQuality("pico", grid=(7, 7))
    with pytest.raises(ValueError, match=r"expected \[B, 3, 224, 224\]"):
        model(torch.zeros(1, 3, 224, 200))


SCALED = {"scale": {"name": "VMAF v0.6.1", "least": 0, "most": 100}}
SAMPLING = {"mode": "fragments", "grid": [2, 2], "fragment": [32, 32], "clip_len": 2, "interval": 1, "num_clips": 1}


@pytest.mark.parametrize(("offset", "expected"), [(1e4, 100.0), (-1e4, 0.0)])
def test_scores_stay_on_their_scale(offset, expected):
    module = VideoQuality("pico", grid=(2, 2)).eval()
    with torch.no_grad():
        module.head.fc_last.bias.fill_(offset)
    model = QualityModel(module, {**SAMPLING, **SCALED, "kind": "video"}, "a test")
    result = model.score(np.zeros((4, 64, 64, 3), np.uint8))
    assert (result.score, result.clips, result.scale) == (expected, (expected,), "VMAF v0.6.1")
    assert (result.mos, result.mos_scale) == (None, None)
    assert "scores in VMAF v0.6.1" in repr(model)


@pytest.mark.parametrize(
    "scale", [3, {"name": "x"}, {"name": 4, "least": 0, "most": 1}, {"name": "x", "least": "0", "most": 1}]
)
def test_a_scale_that_is_none_is_refused(scale):
    with pytest.raises(CheckpointError, match="expected a name, least and most"):
        QualityModel(VideoQuality("pico", grid=(2, 2)), {**SAMPLING, "scale": scale, "kind": "video"}, "a test")


def test_jitter_changes_contrast_and_light_alike_in_both_layouts():
    x = clips(2, 3, 4, 32, 32)
    torch.manual_seed(5)
    frames = jitter(x, 0.3)
    torch.manual_seed(5)
    patches = jitter(cut_patches(x), 0.3)
    torch.testing.assert_close(cut_patches(frames), patches)
    for one, changed in zip(x, frames):
        slopes = [np.polyfit(one[c].flatten(), changed[c].flatten(), 1) for c in range(3)]
        assert np.ptp([slope for slope, _ in slopes]) < 1e-4
        assert 0.7 <= slopes[0][0] <= 1.3
        assert abs(slopes[0][1]) <= 0.45
    assert not torch.equal(frames[0] - x[0], frames[1] - x[1])


def test_the_packaged_name_loads_the_packaged_model():
    assert load_model("packaged").module.size == "lite"
