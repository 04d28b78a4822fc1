"""The command `sama`: score files, inspect one, report and compare, evaluate scores against labels, make and check
data, check weights, export them, train."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ArgumentParser, Namespace

import sama
from sama import cluster, export
from sama.errors import InputError, OutputError
from sama.files import printable
from sama.report import commands as report
from sama.terminal import OK, SOME_FAILED, carry_out, interruption, progress_bar

if TYPE_CHECKING:
    from sama.journal import Journal
    from sama.limits import Limits
    from sama.manifests import Manifest
    from sama.model import QualityModel
    from sama.prefetch import Meter
    from sama.tables import Row


ENGINES = ("eager", "compile", "onnxruntime", "openvino", "auto")  # of `sama.engines`
DTYPES = ("auto", "float32", "tf32", "bfloat16", "float16", "int8")
SCORING_WORKERS = "files decoded at the same time (half of the cores, at most 4; 3 for each decoding engine of a GPU)"
SCORING_PROCESSES = (
    "processes that score, each with the model (one for each decoding engine of a GPU, if the files are many; else 1)"
)


def parser() -> ArgumentParser:
    about = "Quality of videos and images, without a reference to compare with."
    main = ArgumentParser(prog="sama", description=about, version=sama.__version__)
    commands = main.add_subcommands(required=True, dest="command")

    score = ArgumentParser(description="Score files: one row for each, on the terminal and in a table.")
    files = "files, folders, globs, addresses, tars; - for names on standard input"
    score.add_argument("paths", nargs="*", metavar="PATH", help=files)
    score.add_argument("-o", "--out", type=str, help="table to write: .csv, .jsonl, .json or .parquet")
    score.add_argument(
        "--resume", action="store_true", help="continue an interrupted or earlier run into the same --out"
    )
    score.add_argument("--retry", action="store_true", help="with --resume: score again what failed before")
    score.add_argument("--overwrite", action="store_true", help="begin anew although --out exists")
    score.add_argument("--batch", type=int, help="clips that go through the model at once (1 on a CPU, 8 on a GPU)")
    score.add_argument("--workers", type=int, help=SCORING_WORKERS)
    score.add_argument("--processes", type=int, help=SCORING_PROCESSES)
    report.add_score_options(score)
    cluster.add_options(score)
    _add_reading(score)
    _add_model(score)
    commands.add_subcommand("score", score, help="score files")

    inspect = ArgumentParser(
        description="Draw the input that the model gets of a file, its quality map and its timeline."
    )
    inspect.add_argument("path", metavar="PATH", help="a video or an image")
    inspect.add_argument(
        "-o",
        "--out",
        type=str,
        default="inspect.png",
        help="picture to write (.png, .jpg, .pdf, .svg) or page (.html)",
    )
    _add_reading(inspect)
    _add_model(inspect)
    commands.add_subcommand("inspect", inspect, help="draw input, quality map and timeline of a file")

    comparing = report.add_compare(commands)
    _add_decoder(comparing)
    _add_model(comparing)
    reporting = report.add_report(commands)

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
    evaluate.add_argument("--resume", action="store_true", help="continue from the scores that are in --out already")
    evaluate.add_argument("--overwrite", action="store_true", help="write to --out and --save although they exist")
    evaluate.add_argument("--calibrate", choices=("linear", "logistic"), help="fit scores to labels, for --save")
    evaluate.add_argument("--scale", type=str, metavar="NAME", help="name of the labels' scale, e.g. KoNViD-1k")
    evaluate.add_argument("--save", type=str, metavar="FILE", help="copy of the checkpoint with the calibration in it")
    evaluate.add_argument("--samples", type=int, default=1000, help="bootstrap draws for the intervals")
    evaluate.add_argument("--seed", type=int, default=0, help="of the bootstrap draws")
    evaluate.add_argument("--batch", type=int, help="clips that go through the model at once (1 on a CPU, 8 on a GPU)")
    evaluate.add_argument("--workers", type=int, help=SCORING_WORKERS)
    _add_decoder(evaluate)
    _add_limits(evaluate)
    _add_model(evaluate)
    commands.add_subcommand("evaluate", evaluate, help="compare scores with labels")

    data = ArgumentParser(description="Label files and the files they name.")
    commands.add_subcommand("data", data, help="look into a data set")
    actions = data.add_subcommands(required=True, dest="action")
    check = ArgumentParser(description="Missing, unreadable and double files, bad lines, leaking splits, label scale.")
    _add_labels(check)
    check.add_argument("--workers", type=int, help="files opened at the same time (the number of cores, at most 8)")
    _add_limits(check)
    actions.add_subcommand("check", check, help="look for problems")

    demo = ArgumentParser(description="A labelled set of videos or images to try training on, made without a download.")
    demo.add_argument("folder", metavar="FOLDER", help="folder for the set; one that holds it already is left as it is")
    demo.add_argument("--size", choices=("small", "full"), default="small", help="how many contents and strengths")
    demo.add_argument("--images", action="store_true", help="images in place of clips")
    demo.add_argument("--workers", type=int, help="contents made at the same time (the number of cores)")
    commands.add_subcommand("demo-data", demo, help="make a set to try training on")

    _add_corpus(commands)
    commands.add_subcommand("train", ArgumentParser(), help="train a model: sama train --help")

    weights = ArgumentParser(description="List what a checkpoint holds and which of its weights fit.")
    weights.add_argument("weights", metavar="FILE", help="a checkpoint")
    commands.add_subcommand("weights", weights, help="list what a checkpoint holds")
    exporting = export.add_command(commands)
    for command in (main, score, inspect, comparing, reporting, evaluate, check, demo, weights, exporting):
        command.add_argument("--traceback", action="store_true", help="show where an error comes from")
    return main


def _add_corpus(commands: Any) -> None:
    corpus = ArgumentParser(description="A labelled set made of undegraded videos and photographs; VMAF is the label.")
    corpus.add_argument("masters", nargs="*", metavar="MASTERS", help="files and folders of undegraded material")
    corpus.add_argument("-o", "--out", type=str, required=True, metavar="FOLDER", help="folder for the set")
    corpus.add_argument("--resume", action="store_true", help="continue the set in FOLDER; no need to name masters")
    corpus.add_argument("--dry-run", action="store_true", help="judge masters and say what the set would cost; no more")
    corpus.add_argument("--hours", type=float, help="as many contents as this much time allows")
    corpus.add_argument("--gigabytes", type=float, help="as many contents as this much disk allows")
    corpus.add_argument("--total", type=int, metavar="N", help="as many contents")
    corpus.add_argument("--contents", type=int, default=4, metavar="N", help="contents of a master, at most")
    corpus.add_argument("--versions", type=int, default=16, metavar="N", help="degraded versions of each content")
    corpus.add_argument("--frames", type=int, default=64, metavar="N", help="frames of a clip")
    images = "still images in place of clips, this many of each content (1 where no number follows)"
    corpus.add_argument("--images", type=int, nargs="?", const=1, default=0, metavar="N", help=images)
    looks = "share of contents that look as other cameras' do: softer, noisier"
    corpus.add_argument("--looks", type=float, default=0.0, metavar="SHARE", help=looks)
    corpus.add_argument("--sizes", type=str, default="", metavar="360,720,...", help="rows of a frame, 360 to 2160")
    corpus.add_argument("--kinds", type=str, default="", metavar="NAME,...", help="kinds of degradation (all)")
    corpus.add_argument("--unseen", type=str, default="", metavar="NAME,...", help="kinds for the test split only")
    corpus.add_argument("--metrics", type=str, metavar="NAME,...", help="columns beside VMAF (all)")
    corpus.add_argument("--val", type=float, default=0.15, help="share of the masters for validation")
    corpus.add_argument("--test", type=float, default=0.15, help="share of the masters for testing")
    corpus.add_argument("--split-by", choices=("master", "content"), default="master", help="what splits do not share")
    corpus.add_argument("--seed", type=int, default=0, help="of contents, kinds, strengths and splits")
    corpus.add_argument("--trust", action="store_true", help="take masters that would be refused")
    corpus.add_argument("--workers", type=int, help="contents made at the same time (cores, if memory holds as many)")
    corpus.add_argument("--ffmpeg", type=str, metavar="FILE", help="FFmpeg with libvmaf (imageio-ffmpeg's, or on PATH)")
    corpus.add_argument("--traceback", action="store_true", help="show where an error comes from")
    commands.add_subcommand("corpus", corpus, help="make a labelled set of undegraded material")


def _add_labels(command: ArgumentParser) -> None:
    command.add_argument("labels", metavar="LABELS", help="label file; a CSV with path,mos, or any published form")
    command.add_argument("root", metavar="ROOT", help="folder that its paths are relative to")
    command.add_argument(
        "--label", type=str, default="", metavar="COLUMN", help="column of the labels (mos, vmaf, ...)"
    )


def _add_reading(command: ArgumentParser) -> None:
    windows = "one clip in each window of this many seconds, instead of a few for the whole video"
    command.add_argument("--every", type=float, metavar="SECONDS", help=windows)
    _add_decoder(command)
    _add_limits(command)


def _add_limits(command: ArgumentParser) -> None:
    command.add_argument(
        "--max-pixels", type=int, metavar="N", help="pixels that a frame or image may have (videos 2^27, images 2^28)"
    )
    seconds = "that reading one file may take (600, and 120 more a clip and 100 more a GB); inf for no limit"
    command.add_argument("--timeout", type=float, metavar="SECONDS", help=seconds)


def _add_decoder(command: ArgumentParser) -> None:
    decoders = "pyav, dali, nvcodec; auto: for each file the GPU's where it can, else pyav; hybrid: GPU and CPU cores"
    command.add_argument("--decoder", type=str, default="auto", help=decoders)


def _add_model(command: ArgumentParser) -> None:
    files = "checkpoint: ours (.safetensors), SAMA, FAST-VQA or DOVER; default: packaged"
    command.add_argument("--weights", type=str, metavar="FILE", help=files)
    command.add_argument(
        "--random-weights", action="store_true", help="a model without training, to try things out; every row says so"
    )
    command.add_argument("--mode", type=str, help="sampling mode, in place of the checkpoint's")
    command.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1, ...")
    command.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="precision of the model; auto: float16 on a GPU, else float32; int8: on a CPU, with engine openvino",
    )
    engines = "on a CPU: eager, compile, onnxruntime, openvino, or auto; eager is the reference"
    command.add_argument("--engine", choices=ENGINES, default="eager", help=engines)
    command.add_argument("--attention", choices=("plain", "fused"), default="plain", help="fused: one kernel, on a GPU")
    command.add_argument(
        "--compile", action="store_true", help="compile the model first: minutes, for thousands of clips"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns 0 where all went well, 1 where some files failed, 2 where the command could not be carried out, 130 where
    it was interrupted.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["train"]:  # it has a parser of its own, of the run's config
        from sama.train import main as train

        return train(arguments[1:])
    options = parser().parse_args(arguments)
    commands = {"score": score, "inspect": inspect, "evaluate": evaluate, "data": data, "weights": weights}
    commands |= {"demo-data": demo_data, "corpus": corpus}
    commands |= {"report": report.report, "compare": compare, "export": export.run}
    command, own = commands[options.command], options[options.command]
    return carry_out(lambda: command(own), traceback="--traceback" in arguments)


def score(options: Namespace) -> int:
    """`sama score`: print a row for each file, and keep it in the table."""
    from sama.decode import check_decoder
    from sama.files import expand
    from sama.journal import Journal
    from sama.manifests import Manifest
    from sama.prefetch import Meter
    from sama.processes import default_processes
    from sama.scoring import score_files

    if bool(options.paths) == bool(options.manifest):
        raise InputError("give either PATHs or --manifest")
    on_ray = cluster.run_options(options) if options.ray else None
    manifest = Manifest(options.manifest, options.column, options.key) if options.manifest else None
    if (options.resume or options.overwrite) and not options.out:
        raise InputError("--resume and --overwrite are about --out, which is not given")
    if options.retry and not options.resume:
        raise InputError("--retry is about the failed files of an earlier run: give --resume too")
    check_positive(options, "batch", "workers", "processes", "every", "max_pixels", "timeout")
    check_decoder(options.decoder)
    named = [] if manifest and on_ray else list(dict.fromkeys(manifest.keys())) if manifest else None
    model = load(options, options.paths, named)
    if model.kind == "image" and options.every is not None:
        raise InputError("--every is about videos; the model scores images")
    left_out: list[str] = []
    paths = expand(options.paths, kind=model.kind, left_out=left_out) if named is None else named
    if left_out:
        other = "images" if model.kind == "video" else "videos"
        print(f"{len(left_out)} {other} in folders are left out: the model scores {model.kind}s", file=sys.stderr)
    if not paths and not (manifest and on_ray):
        raise InputError(f"no {model.kind} files in {options.manifest or ' '.join(options.paths)}")
    if on_ray:
        return score_on_ray(options, on_ray, manifest or paths, model, paths)
    journal = None
    if options.out:
        scores_by = model.name, model.describe(options.every)
        journal = Journal(
            options.out, scores_by, resume=options.resume, retry=options.retry, overwrite=options.overwrite
        )
        if journal.rows:
            failed = sum(row.status != "ok" for row in journal.rows.values())
            hint = "; --retry scores those again" if failed else ""
            print(f"{len(journal.rows)} rows of an earlier run, {failed} of them failed{hint}", file=sys.stderr)
    outputs = report.Outputs(options, paths, journal, model)
    remaining = journal.remaining(paths) if journal else paths
    meter = Meter()
    rows = score_files(
        remaining if manifest is None or not manifest.has_bytes() else manifest.files(remaining),
        model,
        batch=options.batch,
        workers=options.workers,
        every_seconds=options.every,
        decoder=options.decoder,
        meter=meter,
        limits=limits(options),
        processes=options.processes or default_processes(model, options.decoder, len(remaining)),
    )
    if journal:
        interruption.hint = lambda: f"; {journal.kept()}"
    with journal or contextlib.nullcontext(), contextlib.closing(rows):
        try:
            failed = print_rows(outputs.watch(rows), remaining, model, journal, meter)
        except OutputError:  # its message says what is kept
            raise
        except Exception:  # a closed terminal, a GPU out of memory, a bug
            if journal:
                print(f"sama: {journal.kept()}", file=sys.stderr)
            raise
        if journal:
            failed = sum(journal.rows[path].status != "ok" for path in paths)
            journal.finish(paths)
            print(f"{len(journal.rows)} rows: {options.out}", file=sys.stderr)
    outputs.write(progress_bar)
    return SOME_FAILED if failed else OK


def score_on_ray(
    options: Namespace,
    on_ray: cluster.ClusterOptions,
    files: Sequence[str] | Manifest,
    model: QualityModel,
    paths: Sequence[str],
) -> int:
    """`sama score --ray`: score into a folder of parts."""
    from sama.scorer import Scorer

    column, key = (cluster.LISTED, None) if isinstance(files, Sequence) else (files.column, files.key)
    scorer = Scorer(
        options.weights or packaged_name(paths),
        column=column,
        key=key,
        device=options.device,
        every_seconds=options.every,
        batch=options.batch,
        workers=options.workers,
        decoder=options.decoder,
        limits=limits(options),
        **{name: getattr(options, name) for name in ("mode", *MODEL_OPTIONS)},
    )
    interruption.hint = lambda: f"; the parts so far are in {options.out}, --resume continues from them"
    scores_by = model.name, model.describe(options.every)
    how = {name: getattr(options, name) for name in ("resume", "retry", "overwrite")}
    with progress_bar("scoring") as progress:
        failed = cluster.run(files, scorer, scores_by, options.out, on_ray, progress=progress, **how)
    return SOME_FAILED if failed else OK


def print_rows(
    rows: Generator[Row], paths: Sequence[str], model: QualityModel, journal: Journal | None, meter: Meter
) -> int:
    """Print every row as it comes, and append it to the journal; returns the number of files that failed."""
    failed = 0
    scale = model.scale and printable(model.scale)
    score = printable(model.score_scale or "score")
    columns = [f"{score:>9}", *([f"{scale:>7}"] if scale else []), f"{'size':>9}", f"{'frames':>7}", "file"]
    print("  ".join(columns))
    with progress_bar("scoring") as progress:
        progress(0, len(paths))
        for done, row in enumerate(rows, start=1):
            if journal:
                journal.add(row)
            failed += row.status != "ok"
            print(as_line(row, scale, model.score_scale), flush=True)
            progress(done, len(paths))
    scored = len(paths) - failed
    print(f"{scored} scored, {failed} failed; scores by {model.name}; {model.settings}", file=sys.stderr)
    print(f"the model waited for decoding {meter.share:.0%} of the time", file=sys.stderr)
    return failed


def as_line(row: Row, scale: str | None, score_scale: str | None = None) -> str:
    """A row on the terminal. scale: the name of the scale that scores are calibrated to, or None; score_scale: that of
    the score itself"""
    path = printable(row.path)
    width = max(9, len(printable(score_scale or "")))
    if row.status != "ok":
        return f"{'error':>{width}}  {path}: {printable(row.reason)}"
    calibrated = f"{row.mos:{max(7, len(scale))}.3f}  " if scale else ""
    score = f"{row.score:{width}.2f}" if score_scale else f"{row.score:9.5f}"
    line = f"{score}  {calibrated}{f'{row.width}x{row.height}':>9}  {row.frames:7}  {path}"
    return f"{line}: {printable(row.reason)}" if row.reason else line


def inspect(options: Namespace) -> int:
    """`sama inspect`: draw the picture or the page of a file."""
    check_positive(options, "max_pixels", "timeout")
    page = options.out.lower().endswith(report.PAGE_SUFFIXES)
    if page:
        report.check_page(options.out)
    model = load(options, [options.path])
    reading = {"every_seconds": options.every, "decoder": options.decoder, "limits": limits(options)}
    if page:
        from sama.report.files import report_file

        report_file(options.path, model, options.out, **reading)
    else:
        from sama.inspection import draw

        draw(options.path, model, options.out, **reading)
    print(options.out)
    return OK


def compare(options: Namespace) -> int:
    """`sama compare`: compare encodes of one source."""
    return report.compare(options, load)


def evaluate(options: Namespace) -> int:
    """`sama evaluate`: compare scores with labels."""
    from sama.evaluate import EvaluateOptions, run

    asked = EvaluateOptions(**{name: getattr(options, name) for name in EvaluateOptions.__dataclass_fields__})
    if asked.out and not asked.predictions:
        interruption.hint = lambda: f"; the scores so far are in {asked.out}, --resume continues from them"
    evaluation = run(asked, lambda paths: load(options, paths), progress=progress_bar)
    print(evaluation)
    if asked.save:
        print(f"calibrated: {asked.save}", file=sys.stderr)
    return SOME_FAILED if evaluation.failed else OK


def data(options: Namespace) -> int:
    """`sama data check`: look for problems in a label file and its files."""
    from sama.check import check
    from sama.storage import is_url

    options = options.check
    check_positive(options, "workers", "max_pixels", "timeout")
    if not (is_url(options.root) or os.path.isdir(options.root)):
        raise InputError(f"there is no folder {options.root}")
    with progress_bar("checking") as progress:
        report = check(
            options.labels,
            options.root,
            label=options.label,
            workers=options.workers,
            progress=progress,
            limits=limits(options),
        )
    print(report)
    return OK if report.ok else SOME_FAILED


def demo_data(options: Namespace) -> int:
    """`sama demo-data`: make the demo's set."""
    from sama.corpus.make import make

    check_positive(options, "workers")
    with progress_bar("images" if options.images else "clips") as progress:
        labels = make(
            options.folder, size=options.size, images=options.images, workers=options.workers, progress=progress
        )
    print(labels)
    return OK


def corpus(options: Namespace) -> int:
    """`sama corpus`: make a labelled set of masters."""
    from sama.corpus.corpus import CorpusOptions, make_corpus
    from sama.corpus.masters import SIZES
    from sama.corpus.vmaf import METRICS

    given = {name: getattr(options, name) for name in CorpusOptions.__dataclass_fields__}
    try:
        sizes = [int(size) for size in listed(options.sizes)]
    except ValueError:
        raise InputError(f"--sizes must be numbers of rows, as in 360,720; got {options.sizes}") from None
    metrics = tuple(METRICS) if options.metrics is None else listed(options.metrics)
    given |= {"sizes": sizes or SIZES, "metrics": metrics}
    given |= {name: listed(getattr(options, name)) for name in ("kinds", "unseen")}
    interruption.hint = lambda: f"; sama corpus --resume -o {options.out} continues"
    labels = make_corpus(CorpusOptions(**given), lambda line: print(line, file=sys.stderr), progress_bar)
    if labels:
        print(labels)
    return OK


def listed(text: str) -> tuple[str, ...]:
    """The parts of a text between commas."""
    return tuple(part for part in (part.strip() for part in text.split(",")) if part)


def weights(options: Namespace) -> int:
    """`sama weights`: what a checkpoint holds."""
    from sama.model import find_weights
    from sama.models import build

    built = build(find_weights(options.weights))
    print(built.report)
    for key, value in built.metadata.items():
        print(f"  {key}: {value}")
    return OK


MODEL_OPTIONS = ("dtype", "compile", "attention", "engine")


def packaged_name(paths: Sequence[str]) -> str:
    """The packaged model for some files."""
    from sama.model import packaged_for

    return packaged_for(paths)


def load(options: Namespace, paths: Sequence[str], named: Sequence[str] | None = None) -> QualityModel:
    """The model that the options ask for, described on standard error.

    paths: arguments, whose kind random weights follow; named: the files themselves, where they are known already
    """
    from sama.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, expand, suffix
    from sama.model import load_model, packaged_for, random_model

    settings = {name: getattr(options, name) for name in MODEL_OPTIONS}
    if options.random_weights:
        # standard input can be read once
        files = named if named is not None else [] if "-" in paths else expand(paths)
        images, videos = (sum(suffix(file) in of for file in files) for of in (IMAGE_SUFFIXES, VIDEO_SUFFIXES))
        kind: Literal["video", "image"] = "image" if images > videos else "video"
        model = random_model(kind, options.device, mode=options.mode or "sama", **settings)
    else:
        chosen = options.weights
        if chosen is None and "-" not in paths:
            chosen = packaged_for(expand(paths) if named is None else named)
        model = load_model(chosen, options.device, mode=options.mode, **settings)
    print(f"model: {model.name}; {model.settings}; {model.device}", file=sys.stderr)
    if model.report:
        print(model.report, file=sys.stderr)
    return model


def limits(options: Namespace) -> Limits:
    """What a file may cost, as the options say."""
    from sama.limits import Limits

    return Limits(options.max_pixels, options.timeout)


def check_positive(options: Namespace, *names: str) -> None:
    """`InputError` where one of the options is given and not above 0."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise InputError(f"--{name.replace('_', '-')} must be more than 0; got {value}")


if __name__ == "__main__":
    sys.exit(main())
