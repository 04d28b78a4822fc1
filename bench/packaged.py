"""What a score by the packaged video model costs beside decoding: files a second, of 20 seconds at 1080p.

    python bench/packaged.py [--repeats 7] [--out FILE.csv]

Both take the same file and the same planned frames, with as many threads: decoding drops them, and the score samples
them and runs the network. The model is loaded before.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import measure
import media
import torch

import sama
from sama.scoring import score_files

SECONDS = 20
BASELINE = "decoding the planned frames alone"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=measure.RESULTS / "packaged-speed-cpu.csv")
    options = parser.parse_args()
    path = media.clip_path(media.SIZES["1080p"], SECONDS)
    model = sama.load_model(device="cpu")
    model.sampler.prepare()

    def decode() -> int:
        with sama.open_video(path, decoder="pyav", threads=os.cpu_count()) as video:
            indices = model.clip_indices(video.info.num_frames).ravel()
            return sum(1 for _ in video.frames(indices))

    def score() -> None:
        (row,) = score_files([str(path)], model, decoder="pyav")
        if row.status != "ok":
            raise RuntimeError(row.reason)

    providers = {BASELINE: decode, "a score": score}
    seconds = measure.timed("packaged", providers, options.repeats)
    note = f"{model.frame_plan()}; {torch.get_num_threads()} threads; load of the machine {os.getloadavg()[0]:.1f}"
    work = dict.fromkeys(providers, 1.0)
    case, notes = f"1080p, {SECONDS} s", {"a score": note}
    found = measure.rows(case, "packaged model", "files/s", seconds, work, BASELINE, **notes)
    measure.show_all(found)
    measure.write(options.out, found)


if __name__ == "__main__":
    main()
