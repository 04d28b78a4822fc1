"""Folders, import names, and what an import may bring in."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def modules_after(statement, cwd):
    code = f"import sys, json\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=cwd)
    return set(json.loads(run.stdout.splitlines()[-1]))


@pytest.mark.parametrize("where", ["root", "elsewhere"])
def test_import_is_light(where, tmp_path):
    loaded = modules_after("import sama", ROOT if where == "root" else tmp_path)
    assert not loaded & {"torch", "triton", "numba", "av", "nvidia.dali", "timm", "torchvision", "numpy"}


@pytest.mark.parametrize("where", ["root", "elsewhere"])
@pytest.mark.parametrize(
    "statement",
    ["from sama.sampler import VideoSampler", "import sama.models, sama.kernels.cpu", "import sama.train"],
)
def test_no_top_level_kernels_or_models(statement, where, tmp_path):
    loaded = modules_after(statement, ROOT if where == "root" else tmp_path)
    assert {"kernels", "models"}.isdisjoint(loaded)
    assert "sama.kernels" in loaded


def test_import_touches_no_cuda(tmp_path):
    code = "import sama, torch\nsama.VideoSampler, sama.ImageSampler, sama.models\nprint(torch.cuda.is_initialized())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert run.stdout.strip() == "False"


def test_links():
    for name in ("kernels", "models"):
        assert (ROOT / "sama" / name).samefile(ROOT / name)


def test_public_names_resolve():
    import sama

    for name in sama.__all__:
        assert getattr(sama, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sama.nothing
