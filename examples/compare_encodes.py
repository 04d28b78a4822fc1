"""Compare two encodes of one source: which one looks better, and where.

    python examples/compare_encodes.py crf20.mp4 crf35.mp4
    python examples/compare_encodes.py crf20.mp4 crf35.mp4 --every 2 --weights SAMA-baseline.pth

Both files are scored window by window, so that like is compared with like: the same seconds of the same content.
"""

import argparse
import sys

import sama


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first")
    parser.add_argument("second")
    parser.add_argument("--every", type=float, default=2.0, metavar="SECONDS", help="length of a window")
    parser.add_argument("--weights", help="a checkpoint (default: the packaged model)")
    options = parser.parse_args()

    model = sama.load_model(options.weights)
    try:
        first, second = (model.score(path, every_seconds=options.every) for path in (options.first, options.second))
    except sama.DecodeError as error:
        print(error, file=sys.stderr)
        return 1
    if len(first.clips) != len(second.clips):
        print("the files differ in length: are they encodes of one source?", file=sys.stderr)
        return 1

    # A timeline entry is the time of a window's middle frame and the score of its clip.
    print(f"{'seconds':>8}  {'first':>9}  {'second':>9}  {'difference':>10}")
    for (seconds, a), (_, b) in zip(first.timeline, second.timeline):
        print(f"{seconds:8.2f}  {a:9.4f}  {b:9.4f}  {b - a:+10.4f}")
    print(f"{'mean':>8}  {first.score:9.4f}  {second.score:9.4f}  {second.score - first.score:+10.4f}")

    wins = sum(b > a for a, b in zip(first.clips, second.clips))
    if first.score == second.score:
        print("the two score the same")
    else:
        better = options.second if second.score > first.score else options.first
        print(f"{better} scores higher; the second file scores higher in {wins} of {len(first.clips)} windows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
