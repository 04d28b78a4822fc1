"""The command `python -m sama.demo FOLDER`, which is `sama demo-data FOLDER`. The code is in `sama.corpus`."""

import sys

from sama.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["demo-data", *sys.argv[1:]]))
