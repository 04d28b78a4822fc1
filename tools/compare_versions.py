"""Whether two versions of the project compute the same, to the bit, on one machine.

    python tools/compare_versions.py OLD NEW        # folders with a checkout, or git revisions of this repository
    python tools/compare_versions.py 38ae8b6 . --only 'models|losses'

Each version runs the same cases in a process of its own that imports `sama` from its tree; then NEW goes on with what
OLD has left: an interrupted training run, tables of scores, checkpoints. The table says how many results of a case are

    same        equal, bit by bit
    wording     equal but for words: messages of errors, texts of commands with the same numbers in them
    failed      errors of the same class in both, as broken files should give (counted in `same` or `wording` too)
    different   anything else, and results that only one version has

The exit status is 1 where something is different or a case itself breaks down. It takes minutes, on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import compare_media
import numpy as np

HERE = Path(__file__).resolve().parent
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
SHOWN = 12  # differences that are shown of a case


class Results(NamedTuple):
    """What a version gave: entries by name, and samples of the arrays among them."""

    entries: dict[str, dict[str, Any]]
    samples: dict[str, np.ndarray]

    @classmethod
    def read(cls, path: Path) -> Results:
        content = json.loads(path.read_text())
        with np.load(path.with_suffix(".npz")) as archive:
            return cls(content["entries"], {name: archive[place] for name, place in content["samples"].items()})


def check_out(version: str, folder: Path) -> Path:
    """The tree of a version: a folder as it is, a git revision unpacked below `folder`."""
    if Path(version).is_dir():
        return Path(version).resolve()
    archive = subprocess.run(["git", "-C", str(HERE.parent), "archive", version], capture_output=True)
    if archive.returncode:
        sys.exit(f"{version} is neither a folder nor a revision: {archive.stderr.decode().strip()}")
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def start(tree: Path, out: Path, other: Path, media: Path, *options: str) -> subprocess.Popen:
    """A worker on a version's tree; what it says goes to `out`.log."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "NUMBA", "SAMA"))}
    env |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "NUMBA_CACHE_DIR": str(out / "numba")}
    env |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "SVT_LOG": "0"}
    arguments = ["--tree", tree, "--out", out, "--other", other, "--media", media, *options]
    command = [sys.executable, "-P", str(HERE / "compare_worker.py"), *map(str, arguments)]
    out.mkdir(exist_ok=True)
    with out.with_suffix(".log").open("a") as log:
        return subprocess.Popen(command, env=env, cwd=out, stdout=log, stderr=log)


def finish(workers: dict[Path, subprocess.Popen]) -> None:
    for out, worker in workers.items():
        if worker.wait():
            sys.exit(f"{out.name} broke down:\n{out.with_suffix('.log').read_text()[-4000:]}")


def judge(a: dict[str, Any], b: dict[str, Any], old: np.ndarray | None, new: np.ndarray | None) -> tuple[str, str]:
    """Entries of both versions, with samples of arrays: "same", "wording" or "different", and how they differ."""
    if a["kind"] != b["kind"]:
        return "different", f"{a['kind']} {shorten(a['value'])} became {b['kind']} {shorten(b['value'])}"
    if a["kind"] == "array":
        if (a["sha256"], a["value"]) == (b["sha256"], b["value"]):
            return "same", ""
        return "different", f"{a['value']} -> {b['value']}{distance(old, new)}"
    if a["kind"] == "failure" and a["classes"][0] not in b["classes"]:
        return "different", f"{a['classes'][0]} became {b['classes'][0]}: {shorten(b['value'])}"
    if a["value"] == b["value"]:
        return "same", ""
    wording = a["kind"] == "failure" or (
        a["kind"] == "text" and NUMBER.findall(a["value"]) == NUMBER.findall(b["value"])
    )
    return ("wording" if wording else "different"), parting(a["value"], b["value"])


def distance(a: np.ndarray, b: np.ndarray) -> str:
    if a.shape != b.shape:
        return ""
    with np.errstate(invalid="ignore"):
        worst = np.nan_to_num(np.abs(a - b), nan=np.inf).max(initial=0)
    return f"; largest difference {worst:.3g} (of {a.size} values compared)"


def shorten(text: str, length: int = 300) -> str:
    text = text.strip()
    return text if len(text) <= length else f"{text[: length // 2]} ... {text[-length // 2 :]}"


def parting(a: str, b: str) -> str:
    """Two texts from shortly before the first place where they differ."""
    place = next((k for k, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    begin = max(0, place - 40)
    return f"{a[begin : place + 120]!r} -> {b[begin : place + 120]!r}"


def compare(old: Results, new: Results, names: list[str]) -> dict[str, tuple[Counter, list[str]]]:
    """Of each case: how many results are what, and a line of each that is not the same."""
    cases: dict[str, tuple[Counter, list[str]]] = {}
    for name in names:
        counts, lines = cases.setdefault(name.split(": ")[0], (Counter(), []))
        found = [version.entries[name] for version in (old, new) if name in version.entries]
        if any(entry["kind"] == "broken" for entry in found):
            verdict, how = "broken", "\n".join(entry["value"] for entry in found)
        elif len(found) == 1:
            verdict, how = (
                "different",
                f"only in {'OLD' if name in old.entries else 'NEW'}: {shorten(found[0]['value'])}",
            )
        else:
            verdict, how = judge(*found, old.samples.get(name), new.samples.get(name))
            counts["failed"] += found[0]["kind"] == found[1]["kind"] == "failure"
        counts[verdict] += 1
        if verdict != "same":
            lines.append(f"  {verdict}  {name}: {how}")
    return cases


def show(cases: dict[str, tuple[Counter, list[str]]], shown: int) -> bool:
    """Print the table and the differences; whether nothing but wording differs."""
    columns = ("same", "wording", "failed", "different", "broken")
    print(f"{'case':<28}" + "".join(f"{column:>11}" for column in columns))
    for name, (counts, _) in cases.items():
        print(f"{name:<28}" + "".join(f"{counts[column] or '-':>11}" for column in columns))
    total = sum((counts for counts, _ in cases.values()), Counter())
    print(f"{'all':<28}" + "".join(f"{total[column] or '-':>11}" for column in columns))
    for name, (_, lines) in cases.items():
        lines = sorted(lines, key=lambda line: line.startswith("  wording"))
        if lines:
            print(f"\n{name}", *lines[:shown], sep="\n")
            if len(lines) > shown:
                print(f"  and {len(lines) - shown} more")
    return not (total["different"] or total["broken"])


def run(old: Path, new: Path, work: Path, only: str) -> dict[str, tuple[Counter, list[str]]]:
    """All cases on both trees, side by side; then NEW with what OLD has left."""
    media = work / "media"
    compare_media.make(media)
    outs = {"old": work / "old", "new": work / "new"}
    trees = {"old": old, "new": new}
    finish({out: start(trees[k], out, out, media, "--only", only) for k, out in outs.items()})
    finish({outs["new"]: start(new, outs["new"], outs["old"], media, "--only", only, "--cross")})
    before, after = (Results.read(out / "results.json") for out in outs.values())
    cases = compare(before, after, [*dict.fromkeys([*before.entries, *after.entries])])
    crossed = Results.read(outs["new"] / "cross.json")
    cross = compare(before, crossed, [*crossed.entries])
    return cases | {f"OLD to NEW, {name}": found for name, found in cross.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", metavar="OLD", help="folder or git revision")
    parser.add_argument("new", metavar="NEW", help="folder or git revision")
    parser.add_argument("--only", default="", metavar="PATTERN", help="only cases whose name this expression matches")
    parser.add_argument("--all", action="store_true", help=f"show all differences, not {SHOWN} of each case")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where to leave files and results; must be new")
    options = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="compare-") as temporary:
        work = Path(temporary)
        if options.keep:
            options.keep.mkdir(parents=True)
            work = options.keep.resolve()
        trees = [check_out(version, work / f"tree-{k}") for k, version in enumerate((options.old, options.new))]
        good = show(run(*trees, work, options.only), sys.maxsize if options.all else SHOWN)
    print(f"\n{'the same' if good else 'DIFFERENT'}; {time.perf_counter() - started:.0f} s")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
