"""Score every video below a folder and print the worst first.

    python examples/score_folder.py videos/
    python examples/score_folder.py videos/ --weights SAMA-baseline.pth --worst 20

`sama score FOLDER` does the same on the command line and keeps a table that can be resumed. Use this form where the
scores go on into a program of your own.
"""

import argparse
import sys

import sama
from sama.files import expand
from sama.scoring import score_files


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--weights", help="a checkpoint (default: the packaged model)")
    parser.add_argument("--worst", type=int, default=10, help="how many files to print")
    options = parser.parse_args()

    model = sama.load_model(options.weights)
    paths = expand([options.folder], kind=model.kind)

    # One row per file, in order. Decoding runs ahead of the model in threads. A file that cannot be read is a row too.
    rows = list(score_files(paths, model))

    scored = sorted((row for row in rows if row.status == "ok"), key=lambda row: row.score)
    for row in scored[: options.worst]:
        print(f"{row.score:9.4f}  {row.width}x{row.height}  {row.path}")

    failed = [row for row in rows if row.status != "ok"]
    for row in failed:
        print(f"cannot be scored: {row.path}: {row.reason}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
