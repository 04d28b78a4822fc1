"""Cases of `compare_versions.py` that use the package: samplers, plans, files, models, losses, checkpoints."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compare_media import weight
from compare_worker import CROSS, Failure, Places, Text, attempt, case, collect, home, room

MODES = ("sama", "sama-mix", "sama-c", "sama-swm", "sama-spm", "fragments")
OUTPUTS = (("video", "float32"), ("patches", "float32"), ("patches", "float16"), ("video", "bfloat16"))


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Samplers


@case("golden/video")
def golden_video(at: Places):
    """The inputs of the golden vectors: draws given and drawn, both layouts, all dtypes, the reference."""
    from golden import cases

    import sama

    for one in cases("vqa"):
        clip = torch.from_numpy(one.source())
        geometry = tuple(one.grid), tuple(one.fragment), one.aligned
        for layout, dtype in OUTPUTS:
            settings = {"layout": layout, "dtype": getattr(torch, dtype), "backend": "cpu"}
            sampler = sama.VideoSampler(one.mode, *geometry, **settings)
            yield f"{one}/cpu-{layout}-{dtype}", sampler(clip, train=one.train, draws=one.draws)
        yield f"{one}/drawn", sampler(clip, train=True, generator=5)
        clip = clip[:32]
        draws = one.draws and tuple(part[..., :1] for part in one.draws)
        sampler = sama.VideoSampler(one.mode, *geometry, normalize=False, backend="reference")
        yield f"{one}/reference", sampler(clip, train=one.train, draws=draws)


@case("golden/image")
def golden_image(at: Places):
    from golden import cases

    import sama

    for one in cases("iqa"):
        image = torch.from_numpy(one.source())
        turn = {"flip": one.flip, "angle": one.angle} if one.train else {}
        for backend, dtype in (("cpu", "float32"), ("cpu", "float16"), ("cpu", "bfloat16"), ("reference", "float32")):
            settings = {"backend": backend, "dtype": getattr(torch, dtype)}
            sampler = sama.ImageSampler(one.mode, tuple(one.grid), tuple(one.fragment), **settings)
            yield f"{one}/{backend}-{dtype}", sampler(image, train=one.train, draws=one.draws, **turn)
        yield f"{one}/drawn", sampler(image, train=True, generator=torch.Generator().manual_seed(3))


@case("golden/triton")
def golden_triton(at: Places):
    """The Triton kernel in its interpreter: an RGB clip, 4:2:0 frames, a rotated image."""
    from golden import cases

    import sama

    video = next(one for one in cases("vqa") if one.id == "c07")
    for layout in ("video", "patches"):
        sampler = sama.VideoSampler(video.mode, backend="triton", layout=layout)
        yield f"{video}/{layout}", sampler(video.source()[:8], draws=video.draws)
    with sama.open_video(at.media / "videos" / "h264.mp4") as opened:
        frames = [frame for _, frame in opened.frames(range(4))]
        yield "h264.mp4", sama.VideoSampler("sama-spm", (3, 2), (16, 16), backend="triton")(frames)
    image = next(one for one in cases("iqa") if one.id == "c08")
    turn = {"flip": image.flip, "angle": image.angle}
    yield str(image), sama.ImageSampler(image.mode, backend="triton")(image.source(), True, image.draws, **turn)


@case("samplers")
def samplers(at: Places):
    """All modes on sizes, lengths and grids that the golden vectors lack, and on batches of several sizes."""
    import sama

    sizes = {(1, 1): 2, (2, 300): 1, (37, 91): 6, (224, 224): 5, (251, 480): 34, (700, 120): 4}
    for mode, (size, frames) in itertools.product(MODES, sizes.items()):
        clip, geometry = noise(frames, *size, 3), ((5, 6), (12, 20)) if frames == 6 else ((7, 7), (32, 32))
        layout = "video" if frames % 2 else "patches"
        for backend, train in itertools.product(("cpu", "reference"), (False, True)):
            sampler = sama.VideoSampler(mode, *geometry, aligned=4, backend=backend, layout=layout, threads=2)
            x = attempt(sampler, clip, train=train, generator=1 if train else None)
            yield f"{mode}-{frames}x{size[0]}x{size[1]}/{backend}-{'train' if train else 'test'}", x
    batch = [noise(4, 64, 64, 3), noise(4, 300, 200, 3), noise(4, 32, 500, 3)]
    yield "batch/videos", sama.VideoSampler("sama-swm")(batch, train=True, generator=2)
    for mode in ("sama", "sama-spm", "fragment"):
        images = [clip[0] for clip in batch]
        yield f"batch/images-{mode}", sama.ImageSampler(mode)(images, train=True, generator=2)


@case("frame-indices")
def frame_indices(at: Places):
    import sama

    for number, length, clips, interval in itertools.product((1, 2, 31, 64, 250, 1001), (1, 8, 32), (1, 4), (1, 2, 3)):
        settings = number, length, clips, interval
        yield f"{settings}/test", attempt(sama.frame_indices, *settings)
        yield f"{settings}/train", attempt(sama.frame_indices, *settings, train=True, generator=number)


@case("plans")
def plans(at: Places):
    import sama

    sizes = ((1080, 1920), (333, 517), (224, 224), (100, 400), (5, 3), (4000, 300))
    for mode, (height, width), frames in itertools.product(MODES, sizes, (1, 32, 96)):
        sampler = sama.VideoSampler(mode)
        (draws,) = sampler.draws([(height, width)], frames, True, None, 3)
        for name, given in (("test", None), ("train", draws)):
            plan = sampler.plan(height, width, frames, draws=given)
            for field, value in fields(plan).items():
                yield f"{mode}-{frames}x{height}x{width}-{name}/{field}", value


def fields(value: Any, prefix: str = "") -> dict[str, Any]:
    """The fields of a dataclass, those of dataclasses in it among them."""
    out = {}
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        name = f"{prefix}{field.name}"
        out |= fields(inner, f"{name}.") if dataclasses.is_dataclass(inner) else {name: inner}
    return out


# Files


def decoded(path: Path) -> Iterator[tuple[str, Any]]:
    """What is known of a video, and the planes of some of its frames."""
    import sama

    with sama.open_video(path) as video:
        info = {name: value for name, value in dataclasses.asdict(video.info).items() if name != "path"}
        yield "info", info
        last = video.info.num_frames - 1
        yield "seconds", video.seconds(range(last + 1))
        for number, frame in video.frames({0, 1, last // 3, last // 2, last} & {*range(last + 1)}):
            for k, plane in enumerate(frame.planes):
                yield f"frame-{number}-{k}", np.ascontiguousarray(plane)
            yield f"frame-{number}", {"layout": frame.layout, "shown as": repr(frame.correction)}


@case("files/videos")
def files_videos(at: Places):
    """Every video: frames, samples, and scores by the packaged model."""
    import sama

    model = sama.load_model(device="cpu")
    for path in sorted((at.media / "videos").iterdir()):
        found = attempt(collect, decoded, path)
        if isinstance(found, Failure):
            found = {"open": found}
        for name, value in found.items():
            yield f"{path.name}/{name}", value
        for mode, backend in (("sama", "cpu"), ("sama-spm", "reference")):
            sampler, few = sama.VideoSampler(mode, backend=backend), {"clip_len": 4, "num_clips": 2}
            yield f"{path.name}/read-{mode}", attempt(sampler.read, path, **few)
            yield f"{path.name}/read-{mode}-train", attempt(sampler.read, path, **few, train=True, generator=3)
        for every in (None, 0.5):
            result = attempt(model.score, path, every_seconds=every)
            yield f"{path.name}/score-{every}", result if isinstance(result, Failure) else dataclasses.asdict(result)


@case("files/images")
def files_images(at: Places):
    """Every image: pixels, samples, and scores by an image model with random weights."""
    import sama

    read_image = home("read_image", "sama.decode.images", "sama.files")
    model = home("random_model", "sama.model")("image", "cpu")
    for path in sorted((at.media / "images").iterdir()):
        pixels = attempt(read_image, path)
        yield f"{path.name}/pixels", pixels
        if not isinstance(pixels, Failure):
            sampler = sama.ImageSampler("sama-spm")
            yield f"{path.name}/sample", attempt(sampler, pixels)
            yield f"{path.name}/sample-train", attempt(sampler, pixels, train=True, generator=1)
        result = attempt(model.score, path)
        yield f"{path.name}/score", result if isinstance(result, Failure) else dataclasses.asdict(result)


@case("files/random-model")
def files_random_model(at: Places):
    """The published architecture with random weights, on a video: all clips, and one."""
    model = home("random_model", "sama.model")("video", "cpu", mode="sama-spm")
    yield "settings", Text(model.settings)
    yield "h264", dataclasses.asdict(model.score(at.media / "videos" / "h264.mp4", every_seconds=100))
    yield "mpeg4", dataclasses.asdict(model.score(at.media / "videos" / "mpeg4.avi", every_seconds=1))


# Models


def make_model(kind: str, size: str, **options) -> torch.nn.Module:
    from sama.models import ImageQuality, VideoQuality

    torch.manual_seed(3)
    return {"video": VideoQuality, "image": ImageQuality}[kind](size, **options).eval()


def spread(model: torch.nn.Module) -> torch.nn.Module:
    """The model with random values everywhere, so that every parameter counts."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weight(name, parameter.shape))
    return model


MODELS = {
    "video-tiny": ("video", "tiny", {}),
    "video-tiny-scale": ("video", "tiny", {"scale_bias": True, "scale_excitation": True, "scale_steps": 4}),
    "video-nano": ("video", "nano", {"grid": (3, 4)}),
    "video-nano-bias": ("video", "nano", {"scale_bias": True}),
    "video-nano-excitation": ("video", "nano", {"scale_excitation": True, "scale_steps": 4}),
    "video-nano-statistics": ("video", "nano", {"tokens": False}),
    "image-tiny": ("image", "tiny", {}),
    "image-nano": ("image", "nano", {}),
}


@case("models/outputs")
def models_outputs(at: Places):
    for name, (kind, size, options) in MODELS.items():
        model = make_model(kind, size, **options)
        for key, value in model.state_dict().items():
            yield f"{name}/initial/{key}", value
        yield f"{name}/options", {"kind": model.kind, "size": model.size, "options": model.options}
        inputs = {"images": normal(2, 3, 256, 256)}
        if kind == "video":
            inputs = {
                "frames": normal(2, 3, 8, 96, 128),
                "odd": normal(1, 3, 7, 75, 70),
                "patches": normal(2, 4, 24, 24, 96),
            }
        spread(model)
        for (what, x), dtype in itertools.product(inputs.items(), (torch.float32, torch.bfloat16)):
            with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                yield f"{name}/{what}-{dtype}", attempt(model, x)
                yield f"{name}/{what}-{dtype}-score", attempt(model.score, x)
                if options != {"tokens": False}:
                    yield f"{name}/{what}-{dtype}-features", attempt(model.features, x)
    with torch.inference_mode():
        yield "video-tiny/whole", spread(make_model("video", "tiny"))(normal(1, 3, 32, 224, 224))


@case("models/step")
def models_step(at: Places):
    """One training step: losses, and every gradient, with dropout and stochastic depth drawn from a seed."""
    losses = room("sama.training.losses", "sama.losses")
    for name, (kind, size, options) in MODELS.items():
        shape = (3, 3, 256, 256) if kind == "image" else (3, 3, 8, 96, 96)
        for dtype, checkpointing in ((torch.float32, False), (torch.bfloat16, True)):
            if size == "tiny" and kind == "video" and checkpointing:
                continue
            settings = {"drop_path": 0.3, "dropout": 0.4, "checkpointing": checkpointing}
            model = spread(make_model(kind, size, **options, **settings)).train()
            torch.manual_seed(11)
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                tokens = model(normal(*shape))
            scores = tokens.float().flatten(1).mean(1)
            labels = torch.tensor([0.3, -0.2, 1.1])
            loss = losses.image_loss(scores, labels) if kind == "image" else losses.video_loss(scores, labels)
            loss.backward()
            yield f"{name}/{dtype}/loss", loss.detach()
            for key, parameter in model.named_parameters():
                yield f"{name}/{dtype}/gradient/{key}", parameter.grad


@case("losses")
def losses_values(at: Places):
    losses = room("sama.training.losses", "sama.losses")
    pairs = {
        "many": (normal(40, seed=1), normal(40, seed=2)),
        "one": (normal(1), normal(1)),
        "none": (normal(0), normal(0)),
        "constant-prediction": (torch.ones(5), normal(5)),
        "constant-label": (normal(5), torch.ones(5)),
        "ties": (normal(6).round(), normal(6)),
        "double": (normal(8).double(), normal(8)),
        "nan": (normal(3), torch.tensor([1.0, torch.nan, 2.0])),
    }
    for name, (prediction, label) in pairs.items():
        for loss in ("plcc_loss", "rank_loss", "video_loss", "image_loss"):
            given = prediction.clone().requires_grad_()
            value = attempt(getattr(losses, loss), given, label)
            yield f"{name}/{loss}", value
            if not isinstance(value, Failure):
                value.backward()
                yield f"{name}/{loss}-gradient", given.grad


@case("checkpoints/published")
def checkpoints_published(at: Places):
    """Every form of checkpoint: what is loaded of it, and what the model then gives."""
    from sama.models import build, load_weights

    for path in sorted((at.media / "checkpoints").iterdir()):
        torch.manual_seed(5)  # of a head that the file lacks
        built = attempt(build, path)
        if isinstance(built, Failure):
            yield f"{path.name}/build", built
            for kind in ("video", "image"):
                yield f"{path.name}/load-{kind}", attempt(load_weights, make_model(kind, "tiny"), path)
            continue
        yield from ((f"{path.name}/{name}", value) for name, value in outputs(built).items())
    for mode in ("fragments", "sama-swm", "unknown"):
        built = attempt(build, at.media / "checkpoints" / "DOVER.pth", mode=mode)
        yield f"mode-{mode}", built if isinstance(built, Failure) else built.metadata


def outputs(built) -> dict[str, Any]:
    model, metadata, report = built
    shape = (1, 3, 256, 256) if model.kind == "image" else (1, 3, 8, 96, 96)
    with torch.inference_mode():
        scores = model(normal(*shape))
    listed = {name: getattr(report, name) for name in ("source", "loaded", "missing", "dropped")}
    return {"metadata": metadata, "report": listed, "text": Text(report), "outputs": scores}


def safetensors_file(path: Path) -> Iterator[tuple[str, Any]]:
    """The header, whose entries are in no fixed order, and the bytes of the tensors."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    yield f"{path.name}/header", json.loads(content[8:end])
    yield f"{path.name}/tensors", np.frombuffer(content[end:], np.uint8)


@case("checkpoints/own")
def checkpoints_own(at: Places):
    """Files that this version writes, read again by it."""
    from sama.models import build, load_weights, read_metadata, save_weights

    for name, (kind, size, options) in MODELS.items():
        if size == "tiny":
            continue
        path = at.out / f"{name}.safetensors"
        model = spread(make_model(kind, size, **options))
        sampling = {"grid": [7, 7], "fragment": [32, 32], "clip_len": 8, "interval": 2, "num_clips": 2}
        calibration = {"scale": "a set", "kind": "linear", "slope": 10.0, "intercept": 3.0}
        save_weights(model, path, metadata={"mode": "sama", **sampling, "calibration": calibration})
        yield from ((f"{name}/{part}", value) for part, value in safetensors_file(path))
        yield f"{name}/read", read_metadata(path)
        yield from ((f"{name}/{part}", value) for part, value in outputs(build(path)).items())
        torch.save({f"module.{key}": value for key, value in model.state_dict().items()}, at.out / "bare.pth")
        yield f"{name}/flat", Text(load_weights(make_model(kind, size, **options), at.out / "bare.pth"))
        yield f"{name}/flat-build", attempt(build, at.out / "bare.pth")


@case("checkpoints/own", CROSS)
def checkpoints_other(at: Places):
    from sama.models import build

    for name, (_, size, _) in MODELS.items():
        if size == "nano":
            built = build(at.other / f"{name}.safetensors")
            yield from ((f"{name}/{part}", value) for part, value in outputs(built).items())
