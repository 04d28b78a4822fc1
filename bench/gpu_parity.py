"""Stage (a): what the GPU computes, beside what is right: sampler, network, CUDA graphs, decoded frames."""

from __future__ import annotations

import importlib
import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from gpu_run import Run, environment, tests_importable
from PIL import Image, ImageFilter

import sama
from sama.decode import nvdec, open_video
from sama.model import QualityModel, load_model, random_model
from sama.models import ImageQuality, VideoQuality, load_weights
from sama.models.precision import DTYPES, computing

LIBRARIES = (
    *("av", "numba", "triton", "timm", "PIL", "simplejpeg", "jsonargparse", "safetensors", "scipy", "matplotlib"),
    *("tensorboard", "filelock", "rich", "tqdm", "skimage", "sklearn", "skvideo", "pywt", "pyarrow", "imageio_ffmpeg"),
    *("PyNvVideoCodec", "nvidia.dali", "pynvml", "pytest", "xdist", "hypothesis", "psutil"),
)
DISTANCE_OF_EXACT = 1e-4  # relative, of the network in float32 from the published values


def facts(run: Run) -> None:
    """The machine: what is installed, the driver, the GPU and its decoding engines."""
    for name in run.pick(LIBRARIES, ("av", "PyNvVideoCodec")):
        try:
            found, problem = getattr(importlib.import_module(name), "__version__", "there"), ""
        except Exception as error:  # some libraries raise errors of their own where the driver is missing
            found, problem = "", str(error).partition("\n")[0]
        run.row(library=name, version=found, problem=problem)
    about = dict(environment())
    about["driver's video library"] = str(nvdec.driver_available())
    if shutil.which("nvidia-smi"):
        about["nvidia-smi"] = subprocess.run(["nvidia-smi", "-q"], capture_output=True, text=True).stdout
    if not run.rehearsal:
        about["properties"] = str(torch.cuda.get_device_properties(0))
        about["memory, free and all"] = str(torch.cuda.mem_get_info())
    (run.out / "facts.json").write_text(json.dumps(about, indent=1) + "\n")


def engines(run: Run) -> None:
    """What the decoding library says of the GPU: not asked before, since a wrong answer may end the process."""
    with run.decoding() as nvcodec:
        device = run.pick(torch.device("cuda", 0), run.device)
        caps = nvcodec.PyNvVideoCodec.GetDecoderCaps(gpuid=0)
        run.row(engines=nvcodec.engines(device), sessions=nvcodec.sessions(device), caps=json.dumps(caps))


def vectors(run: Run) -> None:
    """Every vector of the published samplers, by the Triton kernel and by the reference on the GPU."""
    with tests_importable():
        from golden import cases
        from tolerances import FUSED, PIXEL, VALUE

    wrong = 0
    for kind, rehearsed in (("vqa", "c07"), ("iqa", "c09")):
        for case in cases(kind):
            if run.rehearsal and case.id != rehearsed:
                continue
            for backend in run.pick(("triton", "reference"), ("cpu", "reference")):
                tolerance = FUSED if backend == "reference" else PIXEL
                if kind == "iqa":
                    tolerance = FUSED / 57 if backend == "reference" else VALUE
                error, share = vector_error(case, kind, backend, run.device, tolerance)
                agrees = share <= (1e-3 if kind == "iqa" and case.train else 0)  # ties of a rotation
                wrong += not agrees
                run.row(
                    vector=str(case), backend=backend, error=error, tolerance=tolerance, beyond=share, agrees=agrees
                )
    if wrong:
        raise RuntimeError(f"{wrong} vectors do not agree")


def vector_error(case, kind: str, backend: str, device: torch.device, tolerance: float) -> tuple[float, float]:
    """Largest distance from a vector, and the share of its values that are further off than the tolerance."""
    source = torch.from_numpy(case.source()).to(device)
    if kind == "vqa":
        sampler = sama.VideoSampler(
            case.mode, tuple(case.grid), tuple(case.fragment), case.aligned, normalize=False, backend=backend
        )
        x = sampler(source, train=case.train, draws=case.draws)[0]
    else:
        sampler = sama.ImageSampler(case.mode, tuple(case.grid), tuple(case.fragment), backend=backend)
        turn = {"flip": case.flip, "angle": case.angle} if case.train else {}
        x = sampler(source, train=case.train, draws=case.draws, **turn)[0]
    off = np.abs(x.cpu().numpy().reshape(-1)[case.array("pos")] - case.array("val"))
    return float(off.max()), float((~(off <= tolerance)).mean())


def network(run: Run) -> None:
    """Both published networks on their vectors, in every precision."""
    with tests_importable():
        from test_models import error, published

    wrong = []
    for kind, build, wrapped in (("vqa", VideoQuality, "state_dict"), ("iqa", ImageQuality, "model")):
        if run.rehearsal:
            model, x, score, features = small_vector(kind, build)
        else:
            weights, x, score, features = published(kind)
            model = build().eval()
            load_weights(model, {wrapped: weights})
        model.to(run.device)
        for dtype in run.pick([*DTYPES], ["float32", "tf32"]):
            with torch.inference_mode(), computing(dtype, run.device):
                given = x.to(run.device)
                got = model(given) if kind == "vqa" else model.score(given)
                found = model.features(given)
            found = found[:, ::8] if kind == "vqa" else found[:, :, ::8]
            off = {
                "score": error(got.float().cpu().reshape(score.shape), score),
                "features": error(found.float().cpu(), features),
            }
            run.row(network=kind, dtype=dtype, **{f"{name}_error": value for name, value in off.items()})
            if dtype == "float32" and not max(off.values()) <= DISTANCE_OF_EXACT:
                wrong.append(kind)
    if wrong:
        raise RuntimeError(f"in float32 the networks {wrong} are further than {DISTANCE_OF_EXACT} off")


@torch.inference_mode()
def small_vector(kind: str, build) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor, torch.Tensor]:
    """In place of a published network and its vectors: a small one, and what it gives."""
    model = build("nano").eval()
    x = torch.randn(1, *((3, 2, 32, 32) if kind == "vqa" else (3, 256, 256)))
    if kind == "vqa":
        return model, x, model(x), model.features(x)[:, ::8]
    return model, x, model.score(x), model.features(x)[:, :, ::8]


def drift(run: Run) -> None:
    """What a precision changes of a score: clips of photographs, some degraded, beside float32 on the CPU."""
    clips = list(natural_clips(run))
    models = {"packaged": load_model} | run.pick({"random tiny": random_model}, {})
    for name, load in models.items():
        right = load(device="cpu").values
        expected: list[float] = []
        for dtype in run.pick([*DTYPES], ["float32"]):
            model = load(device=str(run.device), dtype=dtype)
            samples = [(label, model.sampler(clip[: model.clip_len])[0]) for label, clip in clips]
            expected = expected or right([x.float().cpu() for _, x in samples])
            for (label, _), value, exact in zip(samples, model.values([x for _, x in samples], len(samples)), expected):
                run.row(model=name, dtype=dtype, clip=label, score=value, on_cpu=exact, difference=value - exact)


def natural_clips(run: Run) -> Iterator[tuple[str, torch.Tensor]]:
    """Photographs under a moving camera, as they are, blurred, as JPEG, with noise: uint8 [32, H, W, 3]."""
    import skimage.data

    rng = np.random.default_rng(0)
    names = ("rocket", "coffee", "chelsea", "astronaut", "retina", "hubble_deep_field")
    for name in run.pick(names, names[2:3]):
        picture = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
        for change in run.pick(("none", "blur", "jpeg", "noise"), ("none", "jpeg")):
            changed = degraded(picture, change, rng)
            height, width = (n - 32 for n in changed.shape[:2])
            frames = [changed[t : t + height, t // 2 : t // 2 + width] for t in range(32)]
            yield f"{name}, {change}", torch.from_numpy(np.stack(frames)).to(run.device)


def degraded(picture: Image.Image, change: str, rng: np.random.Generator) -> np.ndarray:
    """uint8 [H, W, 3]"""
    if change == "blur":
        picture = picture.filter(ImageFilter.GaussianBlur(2))
    elif change == "jpeg":
        memory = io.BytesIO()
        picture.save(memory, "jpeg", quality=15)
        picture = Image.open(memory)
    pixels = np.asarray(picture)
    if change == "noise":
        pixels = np.clip(pixels + rng.normal(0, 15, pixels.shape), 0, 255).astype(np.uint8)
    return pixels


def graphs(run: Run) -> None:
    """A recorded forward pass gives what a plain one does, to the bit; and what each takes."""
    wrong = []
    for dtype in run.pick([*DTYPES], ["float32"]):
        for batch in run.pick((1, 8, 32), (1,)):
            model = small_model() if run.rehearsal else random_model(device="cuda", dtype=dtype)
            if run.rehearsal:
                model.graphs.suits, model.graphs.record = lambda x: True, lambda function, x: function
            x = torch.randn(batch, *input_shape(model), generator=torch.Generator().manual_seed(0))
            x = x.to(run.device, model.sampler.dtype)
            model.graphs.enabled = False
            plain = model.token_maps(x)
            without = run.seconds(lambda x=x, model=model: model.token_maps(x), run.pick(20, 1))
            model.graphs.enabled = True
            recorded = [model.token_maps(x) for _ in range(4)][-1]
            replayed = run.seconds(lambda x=x, model=model: model.token_maps(x), run.pick(20, 1))
            equal = torch.equal(plain, recorded)
            run.row(
                dtype=dtype,
                batch=batch,
                equal=equal,
                replays=model.graphs.replays,
                problem=model.graphs.problem or "",
                plain_ms=1e3 * float(np.median(without)),
                replayed_ms=1e3 * float(np.median(replayed)),
            )
            if not equal or not model.graphs.replays:
                wrong.append((dtype, batch))
    if wrong:
        raise RuntimeError(f"not recorded, or other values: {wrong}")


def small_model() -> QualityModel:
    """A network that a CPU passes in no time, with a sampler for it."""
    metadata = {"kind": "video", "mode": "sama", "grid": (2, 2), "fragment": (16, 16), "clip_len": 8, "interval": 2}
    torch.manual_seed(0)
    module = VideoQuality("nano", grid=(2, 2)).eval()
    return QualityModel(module, metadata | {"num_clips": 2}, "random nano", "cpu")


def input_shape(model: QualityModel) -> tuple[int, ...]:
    """Of one clip, as the sampler gives it."""
    from sama.kernels.layout import shape

    return shape(model.sampler.layout, model.clip_len, *model.sampler.size)


def frames(run: Run) -> None:
    """Frames of the GPU's decoder beside PyAV's, and the inputs sampled from each: both equal to the bit."""
    with tests_importable():
        from test_nvcodec import CLIPS, SIZE
        from videos import write_video

    wrong = []
    with run.decoding():
        for name in run.pick([*CLIPS], ["h264.mp4", "hevc.mp4"]):
            codec, arguments = CLIPS[name]
            path = write_video(Path(run.out) / f"clip-{name}", codec, size=SIZE, **arguments)
            for chosen, (off, count, refused) in compare(path).items():
                run.row(file=name, frames=chosen, number=count, differing=off, refused=refused)
                if off:
                    wrong.append(f"{name}, {chosen}")
            path.unlink()
    if wrong:
        raise RuntimeError(f"frames or inputs differ, or are missing: {wrong}")


def compare(path: Path) -> dict[str, tuple[int, int, str]]:
    """Of some choices of frames: how many differ, of how many, and why the GPU gave none or no more."""
    with open_video(path, decoder="pyav") as right:
        count = right.info.num_frames
        expected = {n: [np.asarray(p).copy() for p in frame.channels()] for n, frame in right.frames(range(count))}
        choices = {"all": range(count), "every third": range(1, count, 3), "the last": [count - 1]}
        choices |= {f"from {n}": [n, n + 1, count - 2] for n in range(12, count - 4, 3)}
        found = {}
        try:
            video = open_video(path, decoder="nvcodec", device="cuda")
        except sama.DecodeError as error:
            return {"all": (0, count, error.reason)}
        with video:
            for name, chosen in choices.items():
                off, seen, problem = 0, set(), ""
                try:
                    for n, frame in video.frames(chosen):
                        seen.add(n)
                        got = [torch.as_tensor(plane).cpu().numpy() for plane in frame.channels()]
                        off += not all(map(np.array_equal, got, expected[n]))
                except sama.DecodeError as error:
                    problem = error.reason
                found[name] = off + len({*chosen} - seen), len({*chosen}), problem
            sampler = sama.VideoSampler(grid=(2, 2), fragment=(16, 16), layout="patches")
            indices = np.arange(0, 32, 2).reshape(1, 16)
            pair = [next(sampler.stream(one, indices)).cpu() for one in (video, right)]
            found["sampled"] = int(not torch.equal(*pair)), 1, ""
    return found
