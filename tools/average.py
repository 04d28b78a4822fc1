"""Write the mean of the weights of several checkpoints of one network, with the last one's metadata.

    python tools/average.py runs/v/best.safetensors runs/v/last.safetensors -o mean.safetensors

Where one was trained from the other, the mean is often better than both.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sama.models import build, save_weights
from sama.models.checkpoints import Built


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="FILE", help="of one network")
    parser.add_argument("-o", "--out", type=Path, required=True, help="checkpoint to write")
    options = parser.parse_args()
    built = mean_of(options.checkpoints)
    metadata = {key: value for key, value in built.metadata.items() if key != "calibration"}  # the last one's alone
    save_weights(built.model, options.out, metadata=metadata)


def mean_of(paths: Sequence[Path]) -> Built:
    """The network of a checkpoint; of several of one network, with the mean of their weights and the last one's
    metadata. RuntimeError where they are not of one network."""
    *others, last = map(build, paths)
    weights = last.model.state_dict()
    for other in others:
        there = other.model.state_dict()
        if {name: value.shape for name, value in there.items()} != {n: value.shape for n, value in weights.items()}:
            raise RuntimeError(f"{', '.join(map(str, paths))} are not of one network: their weights have no mean")
        for name, value in weights.items():
            if value.is_floating_point():
                value.add_(there[name])
    for value in weights.values():
        if value.is_floating_point():
            value.div_(len(paths))
    return last


if __name__ == "__main__":
    main()
