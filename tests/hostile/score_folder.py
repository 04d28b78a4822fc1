"""Score a folder into a table, in a process of its own. Run by `test_hostile.py`.

python score_folder.py FOLDER TABLE WORKERS

Prints the most memory that the process has held, in bytes. With one worker also watches what is opened in the folder
while each file is read, and ends with status 1 and a line for each where that is another file.
"""

import json
import os
import resource
import sys
from pathlib import Path

from watch import Watch

import sama
from sama import scoring
from sama.journal import Journal
from sama.limits import Limits
from sama.model import random_model

TIMEOUT = 60  # seconds of a file; none of these takes as long


def main(folder: str, out: str, workers: int) -> int:
    model = random_model(device="cpu")
    model.metadata |= {"clip_len": 4, "num_clips": 2}
    model.sampler = sama.VideoSampler(grid=(2, 2), fragment=(16, 16), layout="patches")
    model.token_maps = lambda samples: samples.flatten(1).double().cos().mean(1)[:, None]  # every pixel counts
    paths = sorted(str(path) for path in Path(folder).iterdir())
    others = watched(folder) if workers == 1 else []
    limits = Limits(timeout=TIMEOUT)
    with Journal(out, ("model", "settings")) as journal:
        for row in scoring.score_files(paths, model, decoder="pyav", workers=workers, limits=limits):
            row.model, row.settings = "model", "settings"
            journal.add(row)
        journal.finish(paths)
    for name, opened in others:
        print(f"while {json.dumps(name)} was read: {json.dumps(opened)} were opened", file=sys.stderr)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    return bool(others)


def watched(folder: str) -> list[tuple[str, list[str]]]:
    """Names of files and of those that were opened in the folder while they were read; grows as files are scored."""
    watch, read, found = Watch(Path(folder)), scoring._samples, []

    def read_watched(file, *how):
        watch.opened()
        try:
            yield from read(file, *how)
        finally:
            name = os.path.basename(file.row.path)
            if others := watch.opened() - {name}:
                found.append((name, sorted(others)))

    scoring._samples = read_watched
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
