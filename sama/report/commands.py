"""`sama report`, `sama compare`, and `--report` and `--log` of `sama score`: their arguments and their work."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from sama.errors import InputError, MissingFileError, OutputError, SamaError
from sama.files import printable
from sama.terminal import OK, SOME_FAILED, progress_bar

if TYPE_CHECKING:
    from sama.journal import Journal
    from sama.model import QualityModel
    from sama.tables import Row

    Load = Callable[[Namespace, Sequence[str]], QualityModel]
    Bar = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]

PAGE_SUFFIXES = (".html", ".htm")


def add_score_options(score: ArgumentParser) -> None:
    score.add_argument("--report", type=str, metavar="FILE.html", help="page to look at the scores, worst first")
    logs = "scores in the shape of libvmaf's log; of several files: a folder, for a log of each"
    score.add_argument("--log", type=str, metavar="FILE.json", help=logs)


def add_report(commands: Any) -> ArgumentParser:
    """Add `sama report` to the commands."""
    report = ArgumentParser(description="A page of scores to look at: worst first, with pictures; it needs no network.")
    report.add_argument("scores", metavar="SCORES", help="table or folder that `sama score --out` wrote, or writes")
    report.add_argument("-o", "--out", type=str, default="report.html", metavar="FILE.html", help="page to write")
    report.add_argument("--title", type=str, default="", help="heading of the page")
    report.add_argument("--root", type=str, default="", metavar="FOLDER", help="folder that paths are relative to")
    report.add_argument("--no-pictures", action="store_true", help="from the table alone; files need not be there")
    pictures = "files, lowest scores first, with pictures of their worst and best moments"
    report.add_argument("--pictures", type=int, default=200, metavar="N", help=pictures)
    maps = "files, lowest scores first, with quality maps, where the model has them"
    report.add_argument("--maps", type=int, default=20, metavar="N", help=maps)
    report.add_argument("--weights", type=str, metavar="FILE", help="checkpoint of the scores (the packaged model's)")
    report.add_argument("--device", type=str, default="auto", help="where quality maps are computed: auto, cpu, cuda")
    commands.add_subcommand("report", report, help="make a page of scores")
    return report


def add_compare(commands: Any) -> ArgumentParser:
    """Add `sama compare` to the commands, as yet without the options of the model."""
    compare = ArgumentParser(description="Which of several encodes or versions of one source looks better, and where.")
    compare.add_argument("paths", nargs="+", metavar="FILE", help="two or more files; the first is compared with")
    compare.add_argument("--every", type=float, metavar="SECONDS", help="length of a window (by the files' length)")
    offsets = "seconds by which the other files' content is later than the first one's (found by content)"
    compare.add_argument("--offset", type=float, metavar="SECONDS", help=offsets)
    search = "offsets up to which content is searched for"
    compare.add_argument("--max-offset", type=float, default=30.0, metavar="SECONDS", help=search)
    floor = "half width of the 95 %% interval that the model's own noise adds (2 %% of the scale)"
    compare.add_argument("--floor", type=float, metavar="POINTS", help=floor)
    fails = "exit status 1 where a file is below the first by more than this with 95 %% confidence, e.g. -1"
    compare.add_argument("--fail-below", type=float, metavar="DIFFERENCE", help=fails)
    compare.add_argument("--by", choices=("codec", "folder"), help="what makes a rate-quality curve of its own")
    compare.add_argument("--report", type=str, metavar="FILE.html", help="page to look at the comparison")
    compare.add_argument("-o", "--out", type=str, metavar="FILE.json", help="the comparison as JSON")
    compare.add_argument("--json", action="store_true", help="print JSON in place of text")
    commands.add_subcommand("compare", compare, help="compare encodes of one source")
    return compare


def check_page(path: str) -> None:
    """`OutputError` unless a page can be written there."""
    if not path.lower().endswith(PAGE_SUFFIXES):
        raise OutputError(f"{path}: a page's name must end in .html")
    check_folder(path)


def check_folder(path: str) -> None:
    """`OutputError` unless the folder of a file to write exists."""
    if not Path(path).parent.is_dir():
        raise OutputError(f"{path}: there is no folder {Path(path).parent}")


class Outputs:
    """`--report` and `--log` of `sama score`: remembers the rows as they come, writes at the end.

    `InputError` or `OutputError` at once where they cannot be written.
    """

    def __init__(self, options: Namespace, paths: Sequence[str], journal: Journal | None, model: QualityModel) -> None:
        self.report, self.log, self.paths, self.model = options.report, options.log, paths, model
        self.journal = journal
        self.rows: dict[str, Row] = {}
        if self.report:
            check_page(self.report)
        if not self.log:
            return
        if len(paths) > 1 and not os.path.isdir(self.log):
            raise InputError(
                f"a log is of one file; got {len(paths)} files: give --log a folder that exists, for a log of each"
            )
        if len(paths) == 1 and not os.path.isdir(self.log):
            if not self.log.lower().endswith(".json"):
                raise OutputError(f"{self.log}: a log's name must end in .json")
            check_folder(self.log)

    def watch(self, rows: Generator[Row]) -> Generator[Row]:
        """The same rows."""
        for row in rows:
            if self.report or self.log:
                self.rows[row.path] = row
            yield row

    def write(self, bar: Bar) -> None:
        """Write what was asked for, of the rows of this run and of those that a table held before."""
        if not (self.report or self.log):
            return
        known = (self.journal.rows if self.journal else {}) | self.rows
        rows = [known[path] for path in self.paths if path in known]
        if self.log:
            self._write_logs([row for row in rows if row.status == "ok" and row.clips])
        if self.report:
            from sama.report.files import write_report

            with bar("pictures") as progress:
                write_report(rows, self.report, model=self.model, progress=progress)
            print(f"page: {self.report}", file=sys.stderr)

    def _write_logs(self, rows: Iterable[Row]) -> None:
        from sama.report.scale import scale_of
        from sama.report.vmaf_log import write_log

        scale = scale_of(self.model)
        used: set[str] = set()
        for row in rows:
            out = self.log
            if os.path.isdir(self.log):
                name = base = printable(os.path.basename(row.path))
                count = 1
                while name in used:
                    count += 1
                    name = f"{base}-{count}"
                used.add(name)
                out = os.path.join(self.log, f"{name}.json")
            write_log(row, scale, out)


def report(options: Namespace) -> int:
    """`sama report`: the page of a table."""
    from sama.report.files import write_report

    check_page(options.out)
    for name in ("pictures", "maps"):
        if getattr(options, name) < 0:
            raise InputError(f"--{name} must be at least 0; got {getattr(options, name)}")
    rows = read_rows(options.scores)
    model = model_of(rows, options.weights, options.device)
    with progress_bar("files") as progress:
        write_report(
            rows,
            options.out,
            model=model,
            title=options.title,
            root=options.root,
            thumbnails=not options.no_pictures,
            pictured=options.pictures,
            mapped=options.maps,
            progress=progress,
        )
    print(options.out)
    return OK


def read_rows(path: str) -> list[Row]:
    """The rows of a table, or of the journal of a run that is not finished.

    `MissingFileError` where there is none, `OutputError` where it is no such table, `InputError` where it is empty
    or mixes models or settings.
    """
    from sama.parts import read_scores
    from sama.storage import is_url
    from sama.tables import check_unmixed, read_journal

    if not (os.path.exists(path) or is_url(path)):
        partial = f"{path}.partial"
        if not os.path.exists(partial):
            raise MissingFileError(path)
        path = partial
    rows = read_journal(Path(path)) if path.endswith(".partial") else read_scores(path)
    if not rows:
        raise InputError(f"{path} has no rows")
    check_unmixed(rows, path)
    return list({row.path: row for row in rows}.values())


def model_of(rows: Sequence[Row], weights: str | None, device: str) -> QualityModel | None:
    """The model that gave the scores: the checkpoint named, or the packaged one if it is that; else None.

    `InputError` where a checkpoint is named and the scores are of another.
    """
    from sama.model import find_weights, load_model

    names = {row.model for row in rows}
    dtypes = {word for row in rows for word in row.settings.split(", ")} & {"bfloat16", "float16"}
    try:
        model = load_model(find_weights(weights), device, dtype=min(dtypes, default="float32"))
    except SamaError:
        if weights:
            raise
        return None
    if names == {model.name}:
        return model
    if weights:
        raise InputError(f"{weights} is {model.name}; the scores are by {', '.join(sorted(names))}")
    return None


def compare(options: Namespace, load: Load) -> int:
    """`sama compare`: the verdict, on the terminal, as JSON, as a page."""
    from sama.files import replace_file
    from sama.report.comparison import Settings
    from sama.report.comparison import compare as compared
    from sama.report.comparison_page import write_comparison

    if options.report:
        check_page(options.report)
    if options.out:
        check_folder(options.out)
    settings = Settings(
        every_seconds=options.every,
        offset_seconds=options.offset,
        max_offset_seconds=options.max_offset,
        floor=options.floor,
        by=options.by,
        decoder=options.decoder,
    )
    settings.check(options.paths)
    model = load(options, options.paths)
    with progress_bar("comparing") as progress:
        comparison = compared(options.paths, model, settings, progress=progress)
    result = json.dumps(comparison.as_dict(options.fail_below), indent=2)
    if options.out:
        replace_file(options.out, result.encode() + b"\n")
    print(result if options.json else comparison)
    if options.report:
        with progress_bar("pictures") as progress:
            write_comparison(comparison, options.report, progress=progress)
        print(f"page: {options.report}", file=sys.stderr)
    below = [] if options.fail_below is None else comparison.below(options.fail_below)
    for label in below:
        print(f"{label} is below the first file by more than --fail-below allows", file=sys.stderr)
    return SOME_FAILED if below else OK
