"""`sama score --ray`: a corpus scored by Ray Data, on one machine or many.

    listing or manifest --blocks--> without what has a row already, of a part each --> actors: score, write the part
                                                                                   --> counts, for the progress bar

Ray schedules, starts again what was lost, and moves blocks; `sama.Scorer` scores; `sama.parts` keeps the rows. The
driver holds a digest of 16 bytes for each row that exists, and the listing where there is no manifest in Parquet.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sama.errors import InputError, MissingLibraryError, OutputError, SamaError
from sama.kernels.layout import ceil_div
from sama.parts import Parts, digests, in_sorted
from sama.storage import KEYS, filesystem, is_url
from sama.tables import FORMATS, escaped, unescaped

if TYPE_CHECKING:
    import pyarrow as pa

    from sama.manifests import Manifest
    from sama.scorer import Scorer

PART_ROWS = 256
LISTED = "path"  # the column of a listing
PARTS_OF_AN_ACTOR = 4  # at least, or some would wait for others at the end
READING_CPUS = 1  # of a task that lists, reads, or leaves out rows: what Ray takes where nothing is said
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ClusterOptions:
    """How Ray is used.

    address: of a cluster, "auto" for the one of this machine, "local" to start one here
    actors: processes that score; None is one for each GPU, or where there are none one for each node
    cpus, gpus: of each of them; None is all of the smallest node but one for reading, and one GPU where there are any
    part_rows: rows of a part at most: what is lost with a process. Fewer where not every actor would have
        `PARTS_OF_AN_ACTOR`
    """

    address: str = "local"
    actors: int | None = None
    cpus: float | None = None
    gpus: float | None = None
    part_rows: int = PART_ROWS

    def __post_init__(self) -> None:
        for name in ("actors", "cpus", "gpus", "part_rows"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} must be more than 0; got {value}")


class Unscored:
    """Leaves out rows without a file, and those whose keys are known. A stage of Ray Data."""

    def __init__(self, column: str, key: str | None, known: Any) -> None:
        self.column, self.key, self.known = column, key, known

    def __call__(self, batch: pa.Table) -> pa.Table:
        import pyarrow as pa
        import ray

        batch = with_file(batch, self.column)
        known = ray.get(self.known)
        return batch.filter(pa.array(~in_sorted(digests(keys_of(batch, self.column, self.key)), known)))


class PartScorer:
    """Scores a batch and writes its part, unless it is there. A stage of Ray Data, one in each actor."""

    def __init__(self, scorer: Scorer, parts: Parts) -> None:
        self.scorer, self.parts = scorer, parts

    def __call__(self, batch: pa.Table) -> pa.Table:
        import pyarrow as pa

        if not batch.num_rows:
            return pa.table({"rows": pa.array([], pa.int64()), "failed": pa.array([], pa.int64())})
        keys = keys_of(batch, self.scorer.column, self.scorer.key)
        name = self.parts.name_of(keys)
        if self.parts.has(name):  # of an actor that was lost after it had written
            rows = self.parts.rows(name)
        else:
            rows = self.score(batch)
            self.parts.write(rows, name)
        return pa.table({"rows": [len(rows)], "failed": [sum(row.status != "ok" for row in rows)]})

    def score(self, batch: pa.Table) -> list[Any]:
        """The rows of a batch."""
        columns = {name: batch.column(name).to_pylist() for name in batch.column_names}
        files = columns[self.scorer.column]
        return self.scorer.rows(columns | {self.scorer.column: [unescaped(file) for file in files]})


def with_file(batch: pa.Table, column: str) -> pa.Table:
    """The rows of a batch that name a file or hold one."""
    import pyarrow as pa
    import pyarrow.compute as pc

    values = batch.column(column)
    batch = batch.filter(pc.is_valid(values))
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        batch = batch.filter(pc.not_equal(batch.column(column), ""))
    return batch


def keys_of(batch: pa.Table, column: str, key: str | None) -> list[str]:
    """The keys of a batch's rows, as `Scorer` gives them."""
    return [unescaped(str(value)) for value in batch.column(key or column).to_pylist()]


def score_on_ray(
    files: Sequence[str] | Manifest,
    scorer: Scorer,
    parts: Parts,
    options: ClusterOptions,
    *,
    progress: Progress | None = None,
    stage: type[PartScorer] = PartScorer,
) -> tuple[int, int]:
    """Score what has no row in the parts yet; returns the number of rows and of those that failed.

    files: paths and addresses, or a manifest; progress: called with (rows done, rows in all, 0 where that is not known)
    stage: what scores a batch, for a measurement without scoring
    """
    ray = connect(options.address)
    cpus, gpus, actors, threads = resources(ray, options)
    scorer.threads = threads
    rows, failed, known = parts.finish()
    if isinstance(files, Sequence):
        total = len(files)
        left = [str(path) for path in np.asarray(files, object)[~in_sorted(digests(files), known)]]
        part_rows = rows_of_part(options.part_rows, len(left), actors)
        data = listing(ray, left, part_rows)
    else:
        total = files.count()
        part_rows = rows_of_part(options.part_rows, total, actors)
        unscored = Unscored(scorer.column, scorer.key, ray.put(known))
        data = manifest_rows(ray, files)
        data = data.map_batches(unscored, batch_size=part_rows, batch_format="pyarrow", num_cpus=READING_CPUS)
        data = data.repartition(target_num_rows_per_block=part_rows)  # an actor takes whole blocks
    named: dict[str, Any] = {"scorer": scorer, "parts": parts}
    counts = data.map_batches(
        stage,
        fn_constructor_kwargs=named,
        zero_copy_batch=True,
        batch_size=part_rows,
        batch_format="pyarrow",
        num_cpus=cpus,
        num_gpus=gpus or None,
        compute=ray.data.ActorPoolStrategy(size=actors),
    )
    if progress:
        progress(rows, total)
    try:
        for batch in counts.iter_batches(batch_size=None, batch_format="numpy"):
            rows += int(batch["rows"].sum())
            if progress:
                progress(rows, total)
    except Exception as error:
        raise_own(error)
        raise
    rows, failed, _ = parts.finish()
    return rows, failed


def raise_own(error: BaseException) -> None:
    """Raise the `SamaError` that Ray has wrapped, if there is one."""
    seen: BaseException | None = error
    while seen is not None:
        for found in (seen, getattr(seen, "cause", None)):
            if isinstance(found, SamaError):
                raise type(found)(*found.args) from error
        seen = seen.__cause__
    if "another run writes to" in str(error):
        raise OutputError(str(error).strip().splitlines()[-1]) from error


def connect(address: str) -> Any:
    """Ray, connected to a cluster or started here. `MissingLibraryError` where it is not installed, `InputError` where
    there is no such cluster."""
    if address == "local":
        os.environ.setdefault("RAY_worker_niceness", "0")  # as for the plain command; Ray's own is 15
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingLibraryError(f'--ray needs Ray; install it with `pip install "sama-vqa[ray]"` ({error})') from None
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.log_internal_stack_trace_to_stdout = False
    if ray.is_initialized():
        return ray
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        if address == "local":
            cpus = (os.cpu_count() or 1) + 1  # in Ray's books: one for reading, which is seldom at work
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        if address == "local":
            raise InputError(f"Ray cannot be started on this machine ({error})") from error
        raise InputError(f"there is no Ray cluster at {address} ({error}); --ray alone starts one here") from error
    return ray


def rows_of_part(most: int, total: int, actors: int) -> int:
    """Rows of a part, so that each actor has some parts. total: rows in all, 0 where that is not known"""
    return min(most, max(1, ceil_div(total, PARTS_OF_AN_ACTOR * actors))) if total else most


def listing(ray: Any, files: Sequence[str], part_rows: int) -> Any:
    """Ray's data set of paths, a block for each part; characters that are no UTF-8 are escaped, as in a table."""
    import pyarrow as pa

    blocks = [list(map(escaped, files[at : at + part_rows])) for at in range(0, len(files), part_rows)]
    return ray.data.from_arrow([pa.table({LISTED: pa.array(block, pa.string())}) for block in blocks or [[]]])


def manifest_rows(ray: Any, manifest: Manifest) -> Any:
    """Ray's data set of the rows of a manifest."""
    import pyarrow as pa
    from pyarrow import csv

    place: dict[str, Any] = {"paths": os.path.abspath(manifest.path), "num_cpus": READING_CPUS}
    if is_url(manifest.path):
        fs, path = filesystem(manifest.path)
        place |= {"paths": path, "filesystem": fs}
    if manifest.form == ".parquet":
        return ray.data.read_parquet(**place, columns=manifest.columns)
    if manifest.form == ".csv":
        types = {name: pa.string() for name in manifest.columns}  # not guessed: a name may be a number
        convert = csv.ConvertOptions(column_types=types, include_columns=manifest.columns)
        return ray.data.read_csv(
            **place, convert_options=convert, parse_options=csv.ParseOptions(newlines_in_values=True)
        )
    return ray.data.read_json(**place).select_columns(manifest.columns)


def resources(ray: Any, options: ClusterOptions) -> tuple[float, float, int, int]:
    """CPUs and GPUs of an actor, the number of actors, and the threads of each."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    of_nodes = [node["CPU"] for node in nodes if node.get("CPU")] or [1.0]
    smallest = min(of_nodes)
    all_gpus = sum(node.get("GPU", 0.0) for node in nodes)
    gpus = options.gpus if options.gpus is not None else (1.0 if all_gpus else 0.0)
    if gpus > all_gpus:
        raise InputError(f"--actor-gpus asks for {gpus:g}; the cluster has {all_gpus:g}")
    actors = options.actors or max(1, int(all_gpus / gpus) if gpus else len(nodes))
    on_a_node = max(1, -(-actors // len(nodes)))
    cpus = options.cpus if options.cpus is not None else max(0.0, smallest - 1) / on_a_node
    if cpus > smallest or cpus * actors > sum(of_nodes) - 1 > 0:
        raise InputError(
            f"{actors} actors of {cpus:g} CPUs: the cluster has {sum(of_nodes):g}, of which one is for reading, and "
            f"{smallest:g} on its smallest node; see --actors and --actor-cpus"
        )
    if options.cpus is not None:
        return cpus, gpus, actors, max(1, round(cpus))
    import torch

    of_a_node = torch.get_num_threads() if options.address == "local" else int(smallest)
    return cpus, gpus, actors, max(1, of_a_node // on_a_node)


def add_options(score: Any) -> None:
    """Add the options about manifests and Ray to `sama score`."""
    score.add_argument("--manifest", type=str, metavar="TABLE", help="files from a table: .parquet, .csv or .jsonl")
    score.add_argument(
        "--column", type=str, help="column of the manifest with paths, addresses or bytes (path, url, ...)"
    )
    score.add_argument("--key", type=str, metavar="COLUMN", help="column of the manifest that names bytes")
    address = "score with Ray, on a cluster (auto, host:6379) or one started here; --out is a folder of parts"
    score.add_argument("--ray", type=str, nargs="?", const="local", metavar="ADDRESS", help=address)
    score.add_argument(
        "--actors", type=int, metavar="N", help="with --ray: processes that score (one a node, or a GPU)"
    )
    score.add_argument("--actor-cpus", type=float, metavar="X", help="with --ray: CPUs of each (those of the node)")
    score.add_argument("--actor-gpus", type=float, metavar="X", help="with --ray: GPUs of each, 0.5 for two on one (1)")
    score.add_argument("--part-rows", type=int, default=PART_ROWS, metavar="N", help="with --ray: rows of a part")


def run_options(options: Any) -> ClusterOptions:
    """The options of the command; `InputError` where they do not go together."""
    for name in ("report", "log", "random_weights"):
        if getattr(options, name):
            raise InputError(f"--{name.replace('_', '-')} and --ray do not go together; sama report reads the folder")
    if not options.out or Path(options.out).suffix.lower() in FORMATS:
        raise InputError(f"--ray writes a folder of parts: give --out a folder; got {options.out}")
    return ClusterOptions(options.ray, options.actors, options.actor_cpus, options.actor_gpus, options.part_rows)


def check_manifest(files: Manifest) -> None:
    """`InputError` where the rows of a manifest have no names that every process can tell."""
    if files.key is None and files.has_bytes():
        raise InputError(f"{files.path}: with --ray, bytes need a column that names them: {', '.join(KEYS)}, or --key")


def report(rows: int, failed: int, before: int, seconds: float, out: str) -> None:
    """The summary on standard error."""
    rate = (rows - before) / seconds if seconds else 0.0
    print(f"{rows - failed} scored, {failed} failed; {rows - before} of them now, {rate:.2f} a second", file=sys.stderr)
    print(f"{rows} rows: {out}", file=sys.stderr)


def run(
    files: Sequence[str] | Manifest,
    scorer: Scorer,
    scores_by: tuple[str, str],
    out: str,
    options: ClusterOptions,
    *,
    resume: bool,
    retry: bool,
    overwrite: bool,
    progress: Progress,
) -> int:
    """Score into the folder `out`; the number of files that failed."""
    if not isinstance(files, Sequence):
        check_manifest(files)
    parts = Parts(out)
    parts.begin(scores_by, resume=resume, overwrite=overwrite)
    if retry:
        parts.without_failed()
    before = sum(len(keys) for _, keys, _ in parts.contents())
    if before:
        print(f"{before} rows of an earlier run", file=sys.stderr)
    began = time.perf_counter()
    rows, failed = score_on_ray(files, scorer, parts, options, progress=progress)
    report(rows, failed, before, time.perf_counter() - began, out)
    return failed
