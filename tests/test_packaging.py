"""What a user installs: a wheel and an sdist, each in a fresh virtual environment, and what their metadata say."""

import email
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import videos

import sama

ROOT = Path(__file__).parent.parent
FOLDERS = ("bench", "docs", "examples", "kernels", "models", "sama", "tests", "tools")
PACKAGES = {"kernels": "sama/kernels", "models": "sama/models", "sama": "sama"}  # folder of the checkout, of the wheel
BUILD = "from setuptools import build_meta; print(build_meta.build_{}({!r}))"
SETTINGS = ("--no-index", "--no-deps", "--no-build-isolation", "--ignore-installed", "--disable-pip-version-check")


def python(executable, *arguments, cwd):
    """Run Python where nothing but its own environment says what can be imported; its standard output."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run([executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr + run.stdout
    return run.stdout


def sama_of(executable):
    """The command of an environment, by its Python."""
    return str(Path(executable).with_name("sama"))


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The wheel and the sdist of a copy of the checkout, by kind; a warning of the build is an error."""
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in FOLDERS:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "clips")
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, source)
    built = {}
    for kind in ("sdist", "wheel"):
        said = python(sys.executable, "-W", "error", "-c", BUILD.format(kind, str(dist)), cwd=source)
        built[kind] = dist / said.splitlines()[-1]
    return built


@pytest.fixture(scope="module")
def installed(archives, tmp_path_factory):
    """By kind of archive: Python of a fresh environment with that one installed, and the folder that it was installed
    into; only dependencies are the parent environment's."""
    found = {}
    for kind, archive in archives.items():
        home = tmp_path_factory.mktemp(f"installed-{kind}")
        python(sys.executable, "-m", "venv", "--without-pip", str(home), cwd=home)
        executable = str(home / "bin" / "python")
        packages = python(executable, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home).strip()
        parents = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
        depend = "\n".join(parents) + "\n"  # paths alone: no editable install's hook
        Path(packages, "dependencies.pth").write_text(depend)
        python(executable, "-m", "pip", "install", *SETTINGS, str(archive), cwd=home)
        found[kind] = executable, Path(packages)
    return found


def test_wheel_holds_every_module_and_all_data(archives):
    with zipfile.ZipFile(archives["wheel"]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = {"sama/py.typed"}
    for folder, package in PACKAGES.items():
        modules = (path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*.py"))
        expected |= {f"{package}/{path.as_posix()}" for path in modules}
    for pattern in ("configs/*.yaml", "report/page/*", "weights/*"):
        data = [path.relative_to(ROOT).as_posix() for path in (ROOT / "sama").glob(pattern)]
        assert data
        expected |= set(data)
    assert names == expected


def test_wheel_says_its_version_and_its_licence(archives):
    with zipfile.ZipFile(archives["wheel"]) as wheel:
        (home,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
        metadata = email.message_from_bytes(wheel.read(f"{home}/METADATA"))
        licence = wheel.read(f"{home}/licenses/LICENSE")
    assert metadata["Name"] == "sama-vqa"
    assert metadata["Version"] == sama.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert "License ::" not in str(metadata.get_all("Classifier"))  # PEP 639: the expression alone
    assert licence == (ROOT / "LICENSE").read_bytes()
    assert licence.split()[:4] == [b"Apache", b"License", b"Version", b"2.0,"]


def test_sdist_holds_what_tests_and_benchmarks_need(archives):
    with tarfile.open(archives["sdist"]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert names >= {"LICENSE", "README.md", "pyproject.toml", "setup.py", "sama/py.typed"}
    for folder in FOLDERS:
        modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.py") if path.is_file()}
        through_links = {name for name in modules if name.startswith(("sama/kernels/", "sama/models/"))}
        assert modules - through_links <= names
    assert {f"tests/data/{path.name}" for path in (ROOT / "tests" / "data").iterdir()} <= names


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_installed_package_is_found(installed, kind, tmp_path):
    """From a folder that is not the checkout: the package and the command."""
    executable, packages = installed[kind]
    where = python(executable, "-c", "import sama, sama.kernels as k; print(sama.__file__, k.__file__)", cwd=tmp_path)
    assert where.split() == [str(packages / "sama" / "__init__.py"), str(packages / "sama" / "kernels" / "__init__.py")]
    assert python(sama_of(executable), "--version", cwd=tmp_path).strip() == f"sama {sama.__version__}"


def test_installed_package_scores_and_trains(installed, tmp_path):
    """From a folder that is not the checkout: the packaged model, the shipped configs."""
    executable, _ = installed["wheel"]
    videos.write_video(tmp_path / "video.mp4", "libx264", num_frames=8)
    scored = python(sama_of(executable), "score", "video.mp4", "--device", "cpu", cwd=tmp_path)
    assert "video.mp4" in scored.splitlines()[-1]
    said = python(executable, "-m", "sama.train", "--help", cwd=tmp_path)
    for name in ("--data.labels", "lsvq", "konvid"):
        assert name in said


def test_sdist_installs_what_the_wheel_does(installed, archives):
    """To the byte, so that it scores and trains as well."""
    with zipfile.ZipFile(archives["wheel"]) as wheel:
        expected = {name: wheel.read(name) for name in wheel.namelist() if ".dist-info/" not in name}
    _, packages = installed["sdist"]
    paths = [path for path in (packages / "sama").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert {path.relative_to(packages).as_posix(): path.read_bytes() for path in paths} == expected
