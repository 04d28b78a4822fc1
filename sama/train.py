"""Train a model: `python -m sama.train`, or `sama train`.

python -m sama.train                                       # the demo: no data needed, a laptop is enough
python -m sama.train --config lsvq --data.root LSVQ        # a shipped config, with overrides
python -m sama.train --config mine.yaml --optim.epochs 5
torchrun --nproc-per-node 8 -m sama.train --config lsvq    # batches shared among 8 GPUs, the losses over whole batches

This file is the command line; the training itself is `sama.training.loop.train`.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist
from jsonargparse import ArgumentParser

from sama.terminal import OK, carry_out
from sama.training.config import Config
from sama.training.sweep import run

CONFIGS = Path(__file__).parent / "configs"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the command line says; 0 where all went well, 2 where it could not be carried out, 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    settings = [argument for argument in given if argument != "--traceback"]  # no setting of the run

    def command() -> int:
        run(configure(settings))
        return OK

    try:
        return carry_out(
            command,
            name="sama.train",
            traceback="--traceback" in given,
            hint="; the same command with --resume true continues",
        )
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def configure(arguments: Sequence[str]) -> Config:
    """The config that a command line asks for: the demo's where it names neither a config nor data."""
    arguments = list(arguments)
    given = {argument.partition("=")[0] for argument in arguments}
    if not {"--config", "--data.labels", "--data.demo", "--print_config", "--help", "-h"} & given:
        arguments = ["--config", "demo", *arguments]
    for k, argument in enumerate(arguments):  # the name of a shipped config becomes its path
        joined = argument.startswith("--config=")
        name = argument.removeprefix("--config=")
        if (joined or (k and arguments[k - 1] == "--config")) and (CONFIGS / f"{name}.yaml").exists():
            shipped = str(CONFIGS / f"{name}.yaml")
            arguments[k] = f"--config={shipped}" if joined else shipped
    parsing = parser()
    values = parsing.instantiate(parsing.parse_args(arguments))
    return Config(**{field.name: values[field.name] for field in dataclasses.fields(Config)})


def parser() -> ArgumentParser:
    """The parser of the command line: every setting of `Config`."""
    about = (
        "Train a model. Without --config and --data.labels: the demo, which needs no data. --traceback shows where an "
        "error comes from."
    )
    names = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
    parsing = ArgumentParser(prog="python -m sama.train", description=about, allow_abbrev=False)
    parsing.add_argument("--config", action="config", help=f"a YAML file, or the name of a shipped one: {names}")
    parsing.add_class_arguments(Config)
    return parsing


if __name__ == "__main__":
    sys.exit(main())
