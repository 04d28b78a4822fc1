"""What tests share: Triton's interpreter where there is no GPU, and two small labelled sets to train on."""

import csv
import os
import zlib

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # or torch's threads spin while they wait: slow on busy cores

import av
import numpy as np
import pytest
import torch
from PIL import Image

if not torch.cuda.is_available():  # Triton reads it when it is imported
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available() or os.environ.get("SAMA_REQUIRE_CUDA") == "1":
        return
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no GPU"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With `-n`: a file's tests run in one process and in their order, as they do without, and share its fixtures."""
    from xdist.scheduler import LoadFileScheduling

    if config.getoption("dist") != "load":  # asked for by --dist
        return None
    config.option.loadscopereorder = False  # long files with few tests would come last, one process waiting for them
    return LoadFileScheduling(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item):
    """SVT-AV1, run by root, gives the thread that opens an encoder real-time priority: all that follows would starve
    the other processes of the tests."""
    _usual_priority()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item):
    _usual_priority()


def _usual_priority():
    if hasattr(os, "sched_setscheduler") and os.sched_getscheduler(0) != os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@pytest.fixture(autouse=True)
def seeded(request):
    """The same random numbers of torch for a test, whatever ran before it in its process."""
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(scope="module")
def few_draws():
    """Reports of training without exact intervals: see `training_runs.few_draws`."""
    import training_runs

    with training_runs.few_draws():
        yield


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """The checkpoint of a nano model that scores one clip of a video."""
    from small_models import ONE_CLIP, save_nano

    return save_nano(tmp_path_factory.mktemp("weights") / "nano.safetensors", ONE_CLIP)


@pytest.fixture(scope="session")
def labels(tmp_path_factory):
    """Twelve videos of grey noise, the darker the better; eight are for training, two each for validation and test."""
    root = tmp_path_factory.mktemp("set")
    rows = []
    for k in range(12):
        rng = np.random.default_rng(k)
        with av.open(str(root / f"{k}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"crf": "1", "preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for _ in range(6):
                picture = (20 + 18 * k + 4 * rng.standard_normal((48, 64, 1))).clip(0, 255).astype(np.uint8)
                frame = av.VideoFrame.from_ndarray(np.repeat(picture, 3, axis=2), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        split = {3: "val", 8: "val", 5: "test", 10: "test"}.get(k, "train")
        rows.append({"path": f"{k}.mp4", "mos": 100 - 7 * k, "content": k, "split": split})
    with open(root / "labels.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return root / "labels.csv"


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Ten pictures of noise, the noisier the worse; eight are for training, two for validation."""
    root, rng, lines = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0), ["path,mos,split"]
    for k in range(10):
        picture = np.clip(128 + 12 * k * rng.standard_normal((90 + k, 120, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(picture).save(root / f"{k}.png")
        lines.append(f"{k}.png,{9 - k},{'val' if k in (1, 4) else 'train'}")
    (root / "labels.csv").write_text("\n".join(lines))
    return root / "labels.csv"


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """A function of a name in `videos.CLIPS`: its file, made once."""
    from videos import CLIPS, write_video

    folder = tmp_path_factory.mktemp("clips")

    def make(name):
        codec, arguments, _ = CLIPS[name]
        path = folder / name
        return path if path.exists() else write_video(path, codec, **arguments)

    return make


def on_threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_thread():
    """As an actor that has one CPU computes."""
    yield from on_threads(1)


@pytest.fixture
def two_threads():
    yield from on_threads(2)
