"""Folders, import names, and what an import may bring in."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


# What each may not bring in. They are imported in this order by one process, which forgets our modules before each but
# keeps what they brought: what one of them brings in can fail a later one too, and hide from none.
LIGHT = {
    "import sama": {"torch", "triton", "numba", "av", "nvidia", "timm", "torchvision", "numpy"},
    "import sama.decode": {"av"},
    "import sama.models": {"timm", "torchvision"},
    "import sama, sama.decode, sama.scoring": {"nvidia.dali"},
}
COMMON = (
    "from sama.sampler import VideoSampler",
    "import sama.models, sama.kernels.cpu",
    "import sama.train",
    "import sama; sama.VideoSampler, sama.ImageSampler, sama.models",
)
IMPORTS = """
import json, os, sys, traceback, warnings
warnings.simplefilter("error")
loaded = []
for statement, folder in json.loads(sys.argv[1]):
    os.chdir(folder)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("sama", "kernels", "models")]:
        del sys.modules[name]
    try:
        exec(statement, {})
        loaded.append(sorted(sys.modules))
    except Exception:
        loaded.append(traceback.format_exc())
import torch
print(json.dumps([loaded, torch.cuda.is_initialized()]))
"""


@pytest.fixture(scope="module")
def imports(tmp_path_factory):
    """(statement, "root" or "elsewhere") -> the modules that are loaded after it; whether any of them touched CUDA."""
    folders = {"root": ROOT, "elsewhere": tmp_path_factory.mktemp("elsewhere")}
    cases = [(statement, where) for statement in (*LIGHT, *COMMON) for where in folders]
    said = json.dumps([(statement, str(folders[where])) for statement, where in cases])
    run = subprocess.run([sys.executable, "-c", IMPORTS, said], capture_output=True, text=True, check=True)
    loaded, cuda = json.loads(run.stdout.splitlines()[-1])
    return dict(zip(cases, loaded)), cuda


@pytest.mark.parametrize("where", ["root", "elsewhere"])
@pytest.mark.parametrize("statement", LIGHT)
def test_import_is_light(imports, statement, where):
    loaded = imports[0][statement, where]
    assert isinstance(loaded, list), loaded
    assert "sama" in loaded
    assert not LIGHT[statement].intersection(loaded)


@pytest.mark.parametrize("where", ["root", "elsewhere"])
@pytest.mark.parametrize("statement", COMMON)
def test_no_top_level_kernels_or_models(imports, statement, where):
    loaded = imports[0][statement, where]
    assert isinstance(loaded, list), loaded
    assert {"kernels", "models"}.isdisjoint(loaded)
    assert "sama.kernels" in loaded


def test_imports_touch_no_cuda(imports):
    assert imports[1] is False


def test_links():
    for name in ("kernels", "models"):
        assert (ROOT / "sama" / name).samefile(ROOT / name)


def test_public_names_resolve():
    import sama

    for name in sama.__all__:
        assert getattr(sama, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sama.nothing
