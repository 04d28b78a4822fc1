"""The command `sama`: score files, look at one, compare with labels, and what there is to know of data and weights."""

from __future__ import annotations

import contextlib
import sys

from jsonargparse import ArgumentParser

from sama.errors import InputError
from sama.files import printable

DTYPES = ("float32", "bfloat16", "float16")


def parser() -> ArgumentParser:
    about = "Quality of videos and images, without a reference to compare with."
    main = ArgumentParser(prog="sama", description=about, version=_version())
    commands = main.add_subcommands(required=True, dest="command")

    score = ArgumentParser(description="Score files: a row each, on the terminal and in a table.")
    score.add_argument("paths", nargs="+", metavar="PATH", help="files, folders, globs; - for names on standard input")
    score.add_argument("-o", "--out", type=str, help="table to write: .csv, .jsonl or .json")
    score.add_argument(
        "--resume", action="store_true", help="go on with an interrupted or earlier run into the same --out"
    )
    score.add_argument("--overwrite", action="store_true", help="begin anew although --out is there")
    score.add_argument("--batch", type=int, help="clips that go through the model at once (1 on a CPU, 8 on a GPU)")
    score.add_argument("--workers", type=int, help="files decoded at the same time (half of the cores, at most 4)")
    _add_reading(score)
    _add_model(score)
    commands.add_subcommand("score", score, help="score files")

    inspect = ArgumentParser(description="Draw what the model sees of a file and what it says: a picture.")
    inspect.add_argument("path", metavar="PATH", help="a video or an image")
    inspect.add_argument(
        "-o", "--out", type=str, default="inspect.png", help="picture to write: .png, .jpg, .pdf or .svg"
    )
    _add_reading(inspect)
    _add_model(inspect)
    commands.add_subcommand("inspect", inspect, help="draw input, quality map and timeline of a file")

    evaluate = ArgumentParser(description="How well scores follow labels: SROCC, PLCC, KROCC, RMSE, with intervals.")
    _add_labels(evaluate)
    evaluate.add_argument("--split", type=str, metavar="NAME", help="only the items of this split of the label file")
    evaluate.add_argument("--splits", type=int, metavar="N", help="also medians over N of the protocol's random splits")
    evaluate.add_argument("--by", type=str, metavar="COLUMN", help="also metrics for each value of a column")
    evaluate.add_argument(
        "--predictions", type=str, metavar="TABLE", help="scores of `sama score --out`, in place of scoring"
    )
    evaluate.add_argument(
        "-o", "--out", type=str, metavar="FOLDER", help="for report.md, report.json, scatter.png, scores.csv"
    )
    evaluate.add_argument("--resume", action="store_true", help="go on with the scores that are in --out already")
    evaluate.add_argument("--overwrite", action="store_true", help="write to --out and --save although they are there")
    evaluate.add_argument("--calibrate", choices=("linear", "logistic"), help="fit scores to labels, for --save")
    evaluate.add_argument("--scale", type=str, metavar="NAME", help="name of the labels' scale, e.g. KoNViD-1k")
    evaluate.add_argument("--save", type=str, metavar="FILE", help="copy of the checkpoint with the calibration in it")
    evaluate.add_argument("--samples", type=int, default=1000, help="bootstrap draws for the intervals")
    evaluate.add_argument("--seed", type=int, default=0, help="of the bootstrap draws")
    evaluate.add_argument("--batch", type=int, help="clips that go through the model at once (1 on a CPU, 8 on a GPU)")
    evaluate.add_argument("--workers", type=int, help="files decoded at the same time (half of the cores, at most 4)")
    evaluate.add_argument("--decoder", type=str, default="auto", help="auto or pyav")
    _add_model(evaluate)
    commands.add_subcommand("evaluate", evaluate, help="compare scores with labels")

    data = ArgumentParser(description="Label files and the files they name.")
    commands.add_subcommand("data", data, help="look into a data set")
    actions = data.add_subcommands(required=True, dest="action")
    check = ArgumentParser(description="Missing, unreadable and double files, bad lines, leaking splits, label scale.")
    _add_labels(check)
    check.add_argument("--workers", type=int, help="files opened at the same time (the number of cores, at most 8)")
    actions.add_subcommand("check", check, help="look for problems")

    demo = ArgumentParser(description="A labelled set of videos or images to try training on, made without a download.")
    demo.add_argument("folder", metavar="FOLDER", help="where to; a set that is there is left as it is")
    demo.add_argument("--size", choices=("small", "full"), default="small", help="how many contents and strengths")
    demo.add_argument("--images", action="store_true", help="images in place of clips")
    demo.add_argument("--workers", type=int, help="contents made at the same time (the number of cores)")
    commands.add_subcommand("demo-data", demo, help="make a set to try training on")

    commands.add_subcommand("train", ArgumentParser(), help="train a model: sama train --help")

    weights = ArgumentParser(description="What a checkpoint holds, and what of it fits.")
    weights.add_argument("weights", metavar="FILE", help="a checkpoint")
    commands.add_subcommand("weights", weights, help="look into a checkpoint")
    return main


def _add_labels(command: ArgumentParser):
    command.add_argument("labels", metavar="LABELS", help="label file; a CSV with path,mos, or any published form")
    command.add_argument("root", metavar="ROOT", help="folder that its paths are relative to")


def _add_reading(command: ArgumentParser):
    windows = "one clip in each window of this many seconds, instead of a few for the whole video"
    command.add_argument("--every", type=float, metavar="SECONDS", help=windows)
    decoders = "pyav, dali, nvcodec, or auto: for each file the GPU's where it can decode it, else pyav"
    command.add_argument("--decoder", type=str, default="auto", help=decoders)


def _add_model(command: ArgumentParser):
    files = "checkpoint: ours (.safetensors), SAMA, FAST-VQA or DOVER (default: the packaged model)"
    command.add_argument("--weights", type=str, metavar="FILE", help=files)
    command.add_argument(
        "--random-weights", action="store_true", help="try things out; every row says that it means nothing"
    )
    command.add_argument("--mode", type=str, help="sampling mode, in place of the one the checkpoint tells")
    command.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1, ...")
    command.add_argument("--dtype", choices=DTYPES, default="float32", help="precision of the model")
    command.add_argument(
        "--compile", action="store_true", help="compile the model first: minutes, for thousands of clips"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0 where all went well, 1 where some files failed, 2 where the command could not be carried out."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["train"]:  # it has a parser of its own, of the run's config
        from sama.train import main as train

        return train(arguments[1:])
    options = parser().parse_args(arguments)
    known = {"score": score, "inspect": inspect, "evaluate": evaluate, "data": data, "weights": weights}
    known |= {"demo-data": demo_data}
    command = known[options.command]
    try:
        return command(options[options.command])
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


def score(options) -> int:
    from sama.decode import DECODERS
    from sama.files import expand
    from sama.prefetch import Meter
    from sama.score import Journal, describe, score_files

    if (options.resume or options.overwrite) and not options.out:
        return _fail("--resume and --overwrite are about --out, which is not given")
    for name in ("batch", "workers", "every"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            return _fail(f"--{name} must be more than 0; got {value}")
    if options.decoder not in ("auto", *DECODERS):
        return _fail(f"unknown decoder {options.decoder!r}; known: auto, {', '.join(DECODERS)}")
    try:
        model = _model(options, options.paths)
        if model.kind == "image" and options.every is not None:
            return _fail("--every is about videos; the model scores images")
        paths = expand(options.paths, kind=model.kind)
        if not paths:
            return _fail(f"no {model.kind} files in {' '.join(options.paths)}")
        scores_by = model.name, describe(model, options.every)
        journal = None
        if options.out:
            journal = Journal(options.out, scores_by, resume=options.resume, overwrite=options.overwrite)
    except _expected() as error:
        return _fail(error)
    remaining = journal.remaining(paths) if journal else paths
    meter = Meter()
    rows = score_files(
        remaining,
        model,
        batch=options.batch or (1 if model.device.type == "cpu" else 8),
        workers=options.workers,
        every_seconds=options.every,
        decoder=options.decoder,
        meter=meter,
    )
    with journal or contextlib.nullcontext():
        try:
            failed = _print_rows(rows, remaining, model, journal, meter)
        except KeyboardInterrupt:
            rows.close()
            kept = f"; {len(journal.rows)} rows are in {journal.partial}, --resume goes on" if journal else ""
            print(f"\ninterrupted{kept}", file=sys.stderr)
            return 130
        except (OSError, RuntimeError) as error:  # a full disk, a GPU out of memory, a closed terminal
            rows.close()
            return _fail(f"{error}{f'; the rows so far are in {journal.partial}, --resume goes on' if journal else ''}")
        if journal:
            failed = sum(journal.rows[path].status != "ok" for path in paths)
            journal.finish(paths)
            print(f"{len(journal.rows)} rows: {options.out}", file=sys.stderr)
    return 1 if failed else 0


def _print_rows(rows, paths, model, journal, meter) -> int:
    """Print and keep every row as it comes; the number of failures."""
    failed = 0
    calibrated = bool(model.metadata.get("calibration"))
    header = f"{'score':>9}  {'MOS':>7}  {'size':>9}  {'frames':>7}  file" if calibrated else None
    print(header or f"{'score':>9}  {'size':>9}  {'frames':>7}  file")
    with _bar("scoring") as progress:
        progress(0, len(paths))
        for done, row in enumerate(rows, start=1):
            if journal:
                journal.add(row)
            failed += row.status != "ok"
            print(_text(row, calibrated), flush=True)
            progress(done, len(paths))
    scored = len(paths) - failed
    print(f"{scored} scored, {failed} failed; scores by {model.name}; {model.settings}", file=sys.stderr)
    print(f"the model waited for decoding {meter.share:.0%} of the time", file=sys.stderr)
    return failed


def _text(row, calibrated: bool) -> str:
    path = printable(row.path)
    if row.status != "ok":
        return f"{'error':>9}  {path}: {row.reason}"
    mos = f"{row.mos:7.3f}  " if calibrated else ""
    return f"{row.score:9.5f}  {mos}{f'{row.width}x{row.height}':>9}  {row.frames:7}  {path}"


def inspect(options) -> int:
    from sama.inspection import draw

    try:
        model = _model(options, [options.path])
        draw(options.path, model, options.out, every_seconds=options.every, decoder=options.decoder)
    except _expected() as error:
        return _fail(error)
    print(options.out)
    return 0


def evaluate(options) -> int:
    from sama.evaluate import Plan, run

    asked = {name: getattr(options, name) for name in Plan.__dataclass_fields__}
    try:
        plan = Plan(**asked)
        evaluation = run(plan, lambda paths: _model(options, paths), progress=_bar)
    except KeyboardInterrupt:
        hint = (
            f"; the scores so far are in {options.out}, --resume goes on" if plan.out and not plan.predictions else ""
        )
        print(f"\ninterrupted{hint}", file=sys.stderr)
        return 130
    except (*_expected(), RuntimeError) as error:  # also a GPU out of memory
        return _fail(error)
    print(evaluation)
    if plan.save:
        print(f"calibrated: {plan.save}", file=sys.stderr)
    return 1 if evaluation.failed else 0


def data(options) -> int:
    import os

    from sama.data import check

    options = options.check
    if options.workers is not None and options.workers < 1:
        return _fail(f"--workers must be more than 0; got {options.workers}")
    try:
        if not os.path.isdir(options.root):
            raise InputError(f"there is no folder {options.root}")
        with _bar("checking") as progress:
            report = check(options.labels, options.root, workers=options.workers, progress=progress)
    except _expected() as error:
        return _fail(error)
    print(report)
    return 0 if report.ok else 1


@contextlib.contextmanager
def _bar(title: str):
    """A progress bar on standard error; what it gives is called with what is done and what there is in all."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=sys.stderr.isatty()) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def demo_data(options) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from sama import demo

    if options.workers is not None and options.workers < 1:
        return _fail(f"--workers must be more than 0; got {options.workers}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("images" if options.images else "clips", total=None)

        def tell(done, total):
            bar.update(task, completed=done, total=total)

        try:
            labels = demo.make(
                options.folder, size=options.size, images=options.images, workers=options.workers, progress=tell
            )
        except _expected() as error:
            return _fail(error)
    print(labels)
    return 0


def weights(options) -> int:
    from sama.models import build

    try:
        built = build(options.weights)
    except _expected() as error:
        return _fail(error)
    print(built.report)
    for key, value in built.metadata.items():
        print(f"  {key}: {value}")
    return 0


def _model(options, paths):
    """The model that the options ask for, described on standard error."""
    from sama.files import IMAGE_SUFFIXES, expand, suffix
    from sama.model import load_model, random_model

    settings = {"dtype": options.dtype, "compile": options.compile}
    if options.random_weights:
        files = [] if "-" in paths else expand(paths)  # standard input can be read once
        kind = "image" if files and all(suffix(file) in IMAGE_SUFFIXES for file in files) else "video"
        model = random_model(kind, options.device, mode=options.mode or "sama", **settings)
    else:
        model = load_model(options.weights, options.device, mode=options.mode, **settings)
    print(f"model: {model.name}; {model.settings}; {model.device}", file=sys.stderr)
    if model.report:
        print(model.report, file=sys.stderr)
    return model


def _expected() -> tuple[type[Exception], ...]:
    """What a user can put right: said in a line, without a traceback."""
    from sama.errors import CheckpointError, DecodeError, NoWeightsError, OutputError

    return NoWeightsError, CheckpointError, OutputError, DecodeError, ValueError, OSError, ImportError


def _fail(reason) -> int:
    print(f"sama: {reason}", file=sys.stderr)
    return 2


def _version() -> str:
    from sama import __version__

    return __version__


if __name__ == "__main__":
    sys.exit(main())
