"""Without a GPU the Triton kernel runs in Triton's interpreter, which must be asked for before Triton is imported."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available() or os.environ.get("SAMA_REQUIRE_CUDA") == "1":
        return
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no GPU"))


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
