"""Join sets that `sama corpus` made into one label file to train on.

    python tools/join_sets.py sets/v.csv train=sets/real train=sets/collage train=sets/art val=sets/val [--aligned]

With --aligned, versions that show other frames than their reference at some time are left out. A row keeps its set's
path, below the label file's folder. `content` is the file name of the master, which no two splits may share, in any of
the sets; `name` is the content, whose versions are compared with one another.
"""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path

COLUMNS = ("path", "vmaf", "content", "name", "kind", "strength", "split", "width", "height", "reference", "aligned")


def main(arguments: list[str]) -> int:
    if len(arguments) < 2 or not all("=" in argument or argument == "--aligned" for argument in arguments[1:]):
        print(__doc__, file=sys.stderr)
        return 2
    aligned = "--aligned" in arguments
    arguments = [argument for argument in arguments if argument != "--aligned"]
    out = Path(arguments[0])
    rows = []
    for argument in arguments[1:]:
        split, _, folder = argument.partition("=")
        below = os.path.relpath(folder, out.parent)
        with open(Path(folder) / "labels.csv", newline="") as file:
            for row in csv.DictReader(file):
                name = f"{Path(folder).name}-{row['content']}"
                if aligned and float(row.get("aligned") or 1) < 1:
                    continue
                place = {"path": f"{below}/{row['path']}", "content": row["master"], "name": name}
                if row.get("reference"):
                    place["reference"] = f"{below}/{row['reference']}"
                rows.append({**{column: row.get(column, "") for column in COLUMNS}, **place, "split": split})
    with open(out, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    print(f"{out}: {len(rows)} files")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
