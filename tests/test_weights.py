"""Every checkpoint people hold, made small here: what is loaded, what is missing, what is refused."""

import errno
import io
import json
import os
import pickle
import re
import zipfile

import numpy as np
import pytest
import torch

from sama.errors import CheckpointError, OutputError
from sama.models import ImageQuality, VideoQuality, build, load_weights, read_metadata, save_weights, swin2d, swin3d


def nano(model, seed=0):
    """A small model with every parameter at random."""
    torch.manual_seed(seed)
    model = model("nano")
    model.statistics = None  # no published model has them
    for p in model.parameters():
        torch.nn.init.normal_(p)
    return model.eval()


@pytest.fixture
def small(monkeypatch):
    """Makes the published size the small one, so that `build` is quick."""
    for module in (swin3d, swin2d):
        monkeypatch.setitem(module.SIZES, "tiny", module.SIZES["nano"])


# Our names to those of each source, and what else its files hold


def published_video(state, backbone, head):
    out = {"relative_position_index": torch.zeros(2, 2, dtype=torch.long)}
    out = {f"{backbone}layers.0.blocks.0.attn.{k}": v for k, v in out.items()}
    for name, v in state.items():
        if name == "backbone.patch_embed.proj.weight":
            v = v.reshape(-1, 3, 2, 4, 4)
        if name.startswith("head.") and v.ndim == 2:
            v = v[..., None, None, None]
        out[re.sub("^head.", head, re.sub("^backbone.", backbone, name))] = v
    return out


def sama(state):
    results = {"srocc": np.float64(0.8827), "best": np.int64(3), "plain": 0.5, "half": np.float32(2), "ok": np.True_}
    return {"state_dict": published_video(state, "fragments_backbone.", "vqa_head."), "validation_results": results}


def fast_vqa(state):
    return {"state_dict": published_video(state, "fragments_backbone.", "vqa_head.")}


def dover(state):
    aesthetic = {"aesthetic_backbone.norm.weight": torch.ones(3), "aesthetic_head.fc_hid.weight": torch.ones(2, 2)}
    return published_video(state, "technical_backbone.", "technical_head.") | aesthetic


def k400(state):
    out = published_video(state, "backbone.", "head.")
    out = {k: v for k, v in out.items() if "fragment" not in k and not k.startswith("head.")}
    return {"meta": {"epoch": 30}, "state_dict": out | {"cls_head.fc_cls.weight": torch.ones(400, 2)}}


def sama_image(state):
    out = {}
    for name, v in swin_v2(state)["model"].items():
        out[f"backbone.{name}"] = v
    head = {"fc_hid": "fc1", "fc_last": "fc2"}
    for name, v in state.items():
        if name.startswith("head."):
            _, layer, leaf = name.split(".")
            out[f"vqa_head.{head[layer]}.{leaf}"] = v
    return {"state_dict": out}


def swin_v2(state):
    out = {"head.weight": torch.ones(1000, 2), "layers.0.blocks.1.attn_mask": torch.zeros(2)}
    for name, v in state.items():
        if name.startswith("backbone."):
            name = name.removeprefix("backbone.")
            out[re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name)] = v
    return {"model": out}


def swin_v2_timm(state):
    out = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    return out | {"head.fc.weight": torch.ones(1000, 2)}


SOURCES = {  # form, model, source, dropped, missing
    "sama": (sama, VideoQuality, "SAMA or FAST-VQA", "position_index", None),
    "fast-vqa": (fast_vqa, VideoQuality, "SAMA or FAST-VQA", "position_index", None),
    "dover": (dover, VideoQuality, "DOVER", "position_index|aesthetic_", None),
    "k400": (k400, VideoQuality, "Video Swin K400", "position_index|cls_head", "fragment_position|head."),
    "image-sama": (sama_image, ImageQuality, "SAMA for images", "head.weight|attn_mask", None),
    "swin-v2": (swin_v2, ImageQuality, "Swin V2 (published)", "head.weight|attn_mask", "head."),
    "swin-v2-timm": (swin_v2_timm, ImageQuality, "Swin V2 (timm)", "head.fc.weight", "head."),
    "our-video": (dict, VideoQuality, "our own", None, None),
    "our-image": (dict, ImageQuality, "our own", None, None),
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_source(source, tmp_path):
    form, kind, name, dropped, missing = SOURCES[source]
    state = nano(kind).state_dict()
    torch.save(form(state), tmp_path / "file.pth")
    model = nano(kind, seed=1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    report = load_weights(model, tmp_path / "file.pth")
    assert report.source == name
    assert set(report.loaded) | set(report.missing) == set(state)
    assert bool(report.missing) == bool(missing)
    assert bool(report.dropped) == bool(dropped)
    assert all(re.search(missing, k) for k in report.missing)
    assert all(re.search(dropped, k) for k in report.dropped)
    for k, v in model.state_dict().items():
        assert torch.equal(v, (before if k in report.missing else state)[k]), k
    text = str(report)
    assert text.startswith(f"{name}: {len(report.loaded)} loaded, {len(report.missing)} missing")
    assert text.count("missing: ") == len({re.sub(r"\.\d+\.", ".*.", k) for k in report.missing} or ())


def test_data_parallel_names():
    state = nano(VideoQuality).state_dict()
    report = load_weights(nano(VideoQuality, 1), {"state_dict": {f"module.{k}": v for k, v in state.items()}})
    assert len(report.loaded) == len(state)


def test_torchvision_features_are_equal():
    from torchvision.models.video import swin3d_t

    torch.manual_seed(0)
    theirs, ours = swin3d_t().eval(), VideoQuality().eval()
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if "bias_table" in name:
                p.normal_()
    report = load_weights(ours, theirs.state_dict())
    assert report.source == "torchvision swin3d_t"
    assert {re.sub(r"\d", "*", k) for k in report.missing} == {
        "backbone.layers.*.blocks.*.attn.fragment_position_bias_table",
        "head.fc_hid.weight",
        "head.fc_hid.bias",
        "head.fc_last.weight",
        "head.fc_last.bias",
    }
    assert all(k.startswith("head.") or k.endswith("relative_position_index") for k in report.dropped)
    x = torch.randn(1, 3, 4, 224, 224)
    with torch.inference_mode():
        for block in (b for layer in ours.backbone.layers[:-1] for b in layer.blocks):
            block.attn.fragment_position_bias_table.copy_(block.attn.relative_position_bias_table)
        expected = theirs.norm(theirs.features(theirs.patch_embed(x))).movedim(-1, 1)
        assert (ours.features(x) - expected).abs().max() < 1e-4 * expected.abs().max()


def renamed(path, old, new):
    """The same file with other bytes in its pickle."""
    out = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w") as target:
        for entry in source.infolist():
            data = source.read(entry)
            target.writestr(entry.filename, data.replace(old, new) if entry.filename.endswith("data.pkl") else data)
    path.write_bytes(out.getvalue())


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_numbers_pickled_by_either_numpy(module, tmp_path):
    path = tmp_path / "sama.pth"
    torch.save(sama(nano(VideoQuality).state_dict()), path)
    here = np.float64(0).__reduce__()[0].__module__
    renamed(path, f"c{here}\nscalar".encode(), f"c{module}\nscalar".encode())
    assert f"c{module}\nscalar".encode() in path.read_bytes()
    assert load_weights(nano(VideoQuality, 1), path).missing == ()


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("/nowhere/at/all",)


class ObjectScalar:
    def __reduce__(self):
        return np.float64(0).__reduce__()[0], (np.dtype("O"), b"")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (Malicious(), r"is refused: it asks for \w+\.mkdir"),
        (ObjectScalar(), r"is refused"),
        (np.zeros(3), r"is refused: it asks for numpy.*_reconstruct"),
    ],
    ids=["code", "object-scalar", "array"],
)
def test_what_is_no_plain_data_is_refused(content, says, tmp_path):
    path = tmp_path / "file.pth"
    torch.save({"state_dict": nano(VideoQuality).state_dict(), "extra": content}, path)
    with pytest.raises(CheckpointError, match=says):
        load_weights(nano(VideoQuality), path)
    with pytest.raises(CheckpointError, match=says):
        build(path)


def test_files_that_are_no_checkpoint(tmp_path):
    path = tmp_path / "file.pth"
    torch.save(nano(VideoQuality).state_dict(), path)
    whole = path.read_bytes()
    page = b"<html>Not found</html>"
    for content in (
        b"",
        page,
        whole[: len(whole) // 2],
        pickle.dumps([1, 2, 3], protocol=2),
        b"\x08" + bytes(7) + b'{"a": 1}',
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=re.escape(str(path))):
            load_weights(nano(VideoQuality), path)
    with pytest.raises(FileNotFoundError):
        load_weights(nano(VideoQuality), tmp_path / "none.pth")


def test_unknown_names_are_shown(tmp_path):
    path = tmp_path / "resnet.pth"
    torch.save({"epoch": 3, "state_dict": {f"layer{i}.weight": torch.zeros(1) for i in range(9)}}, path)
    with pytest.raises(CheckpointError) as error:
        load_weights(nano(VideoQuality), path)
    for part in ("resnet.pth", "epoch, state_dict", "9 tensors", "layer0.weight, layer1.weight", "FAST-VQA", "DOVER"):
        assert part in str(error.value)
    for empty in ({}, {"state_dict": {}}, {"a": 1}):
        with pytest.raises(CheckpointError, match="0 tensors"):
            load_weights(nano(VideoQuality), empty)


def test_the_other_kind_of_model():
    image, video = nano(ImageQuality), nano(VideoQuality)
    with pytest.raises(CheckpointError, match=r"of an image model .Swin V2.*got a video model: load it into ImageQual"):
        load_weights(video, swin_v2(image.state_dict()))
    with pytest.raises(CheckpointError, match=r"of a video model .SAMA.*got an image model: load it into VideoQuality"):
        load_weights(image, sama(video.state_dict()))


def test_other_shapes_are_refused_and_nothing_changes():
    model = nano(VideoQuality)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    other = fast_vqa(nano(VideoQuality, 1).state_dict())
    name = "fragments_backbone.layers.1.blocks.0.attn.relative_position_bias_table"
    other["state_dict"][name] = torch.zeros(343, 2)
    says = (
        rf"1 shapes differ\n  {name}: got \(343, 2\), expected \(2535, 2\)\n.*another window size are not interpolated"
    )
    with pytest.raises(CheckpointError, match=says):
        load_weights(model, other)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with pytest.raises(CheckpointError, match=r"does not fit VideoQuality\('tiny'\)"):
        load_weights(VideoQuality(), before)


@pytest.mark.parametrize("kind", [VideoQuality, ImageQuality])
def test_our_own_file(kind, tmp_path):
    torch.manual_seed(0)
    options = {"grid": (5, 6), "scale_bias": True, "dropout": 0.25} if kind is VideoQuality else {"dropout": 0.25}
    model = kind("nano", **options)
    settings = {"mode": "sama", "grid": [5, 6], "clip_len": 32, "calibration": {"a": 0.1, "b": None}}
    path = tmp_path / "mine.safetensors"
    save_weights(model, path, metadata=settings)
    assert os.listdir(tmp_path) == ["mine.safetensors"]
    metadata = read_metadata(path)
    assert {k: metadata[k] for k in settings} == settings
    assert (metadata["kind"], metadata["size"]) == (model.kind, "nano")

    built = build(path)
    assert built.metadata == metadata
    assert built.report.missing == built.report.dropped == ()
    assert not built.model.training
    assert built.model.options == model.options
    assert built.model.head.dropout.p == 0.25
    state = model.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in built.model.state_dict().items())
    assert build(path, mode="fragments").metadata["mode"] == "fragments"


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "mine.safetensors"
    save_weights(nano(VideoQuality), path)
    old = path.read_bytes()

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OutputError, match="No space left on device; the file that was there is kept"):
            save_weights(nano(VideoQuality, 1), path)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["mine.safetensors"]
    with pytest.raises(TypeError, match="JSON"):
        save_weights(nano(VideoQuality), path, metadata={"data": object()})


def test_a_checkpoint_is_as_readable_as_any_new_file(tmp_path):
    save_weights(nano(VideoQuality), tmp_path / "mine.safetensors")
    (tmp_path / "plain").touch()
    assert (tmp_path / "mine.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    ("form", "file", "mode", "note"),
    [
        (sama, "SAMA-baseline_val-ltest_s_dev_v0.0.pth", "sama", "the file's name"),
        (fast_vqa, "FAST_VQA_B_1_4.pth", "fragments", "the file's name"),
        (sama, "best.pth", "sama", "its validation_results"),
        (fast_vqa, "best.pth", "fragments", "its having no validation_results"),
        (dover, "DOVER.pth", "fragments", None),
        (k400, "swin_tiny_patch244_window877_kinetics400_1k.pth", "sama", None),
    ],
)
def test_building_from_published_video_files(small, form, file, mode, note, tmp_path):
    torch.save(form(nano(VideoQuality).state_dict()), tmp_path / file)
    model, metadata, report = build(tmp_path / file)
    assert isinstance(model, VideoQuality)
    assert metadata["mode"] == mode
    assert {k: metadata[k] for k in ("grid", "fragment", "clip_len", "interval", "num_clips")} == {
        "grid": [7, 7],
        "fragment": [32, 32],
        "clip_len": 32,
        "interval": 2,
        "num_clips": 4,
    }
    assert bool(report.notes) == bool(note)
    assert all(note in n and f"note: {n}" in str(report) for n in report.notes)
    json.dumps(metadata)
    given = build(tmp_path / file, mode="sama-swm")
    assert given.metadata["mode"] == "sama-swm"
    assert given.report.notes == ()


@pytest.mark.parametrize("form", [sama_image, swin_v2, swin_v2_timm])
def test_building_from_published_image_files(small, form, tmp_path):
    torch.save(form(nano(ImageQuality).state_dict()), tmp_path / "file.pth")
    model, metadata, _ = build(tmp_path / "file.pth")
    assert isinstance(model, ImageQuality)
    assert (metadata["mode"], metadata["grid"]) == ("sama", [8, 8])
    assert read_metadata(tmp_path / "file.pth") == {}


def test_building_needs_metadata(tmp_path):
    torch.save(nano(VideoQuality).state_dict(), tmp_path / "bare.pth")
    with pytest.raises(CheckpointError, match="no metadata: make the model, then load_weights"):
        build(tmp_path / "bare.pth")


def test_equal_models_are_equal_files(tmp_path):
    """A score names the SHA-256 of its model's file; the library writes metadata in another order each time."""
    metadata = {f"key {k}": k for k in range(20)} | {"data": "ü"}
    files = [tmp_path / f"{k}.safetensors" for k in range(4)]
    for path in files:
        save_weights(nano(VideoQuality), path, metadata=metadata)
    assert len({path.read_bytes() for path in files}) == 1
    assert metadata.items() <= read_metadata(files[0]).items()
