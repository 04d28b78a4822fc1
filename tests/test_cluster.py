"""A corpus on Ray: the table of one process, to the bit; nothing twice and nothing lost; folders of parts.

Tests with Ray itself take a minute and more: SAMA_RAY=1 runs them.
"""

import csv
import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import videos

import sama
from sama import cli, cluster
from sama.errors import InputError, OutputError
from sama.manifests import Manifest
from sama.parts import Parts, digests, in_sorted, read_scores, sorted_digests
from sama.scorer import Scorer
from sama.scoring import score_files
from sama.storage import Media
from sama.tables import Row, read_table

BY = "a model", "its settings"
RAY_SECONDS = 600  # within which a run must end
needs_ray = pytest.mark.skipif(os.environ.get("SAMA_RAY") != "1", reason="takes a minute: SAMA_RAY=1 runs it")


def row(key: str, **more) -> Row:
    return dataclasses.replace(Row(key, score=float(len(key)), model=BY[0], settings=BY[1]), **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    for k in range(6):
        videos.write_video(root / f"{k}.mp4", "mpeg4", num_frames=10 + k)
    (root / "bad.mp4").write_text("no video")
    return root


@pytest.fixture(params=["local", "memory"])
def out(request, tmp_path):
    if request.param == "local":
        return str(tmp_path / "scores")
    return f"memory://parts-{random.random()}/scores"


def test_parts_are_written_once_read_and_resumed(out):
    parts = Parts(out)
    parts.begin(BY, resume=False, overwrite=False)
    first, second = [row("a"), row("b\udcff")], [row("c", status="error", score=None, reason="bad")]
    for rows in (first, second, first):
        parts.write(rows, parts.name_of([one.path for one in rows]))
    assert len(parts.names()) == 2
    assert read_scores(out) == [*first, *second]
    with pytest.raises(OutputError, match="holds scores already: --resume continues them"):
        Parts(out).begin(BY, resume=False, overwrite=False)
    with pytest.raises(
        OutputError, match=r"cannot be resumed: it was scored by a model, its settings; now it is other"
    ):
        Parts(out).begin(("other", ""), resume=True, overwrite=False)
    again = Parts(out)
    again.begin(BY, resume=True, overwrite=False)
    rows, failed, known = again.finish()
    assert (rows, failed) == (3, 1)
    assert in_sorted(digests(["c", "d", "b\udcff", "a", ""]), known).tolist() == [True, False, True, True, False]
    again.without_failed()
    assert read_scores(out) == first
    again.begin(BY, resume=False, overwrite=True)
    assert again.names() == []


def test_a_run_that_was_taken_over_writes_no_more_and_doubles_are_left_out(out):
    """The driver was killed; its actors write on for a moment while the next driver has begun."""
    old = Parts(out)
    old.begin(BY, resume=False, overwrite=False)
    old.write([row("a"), row("b")], "part-1.parquet")
    new = Parts(out)
    new.begin(BY, resume=True, overwrite=False)
    with pytest.raises(OutputError, match="another run writes to"):
        old.write([row("c")], "part-2.parquet")
    new.write([row("b"), row("c"), row("c")], "part-3.parquet")  # as if it had come in before
    assert new.finish()[:2] == (3, 0)
    assert sorted(key for _, keys, _ in new.contents() for key in keys) == ["a", "b", "c"]
    assert [one.path for one in read_scores(out)] == ["a", "b", "c"]


def test_digests_are_found_whatever_their_last_bytes():
    keys = [str(n) for n in range(5000)]
    known = sorted_digests(digests(keys[::2]))
    assert in_sorted(digests(keys), known).tolist() == [n % 2 == 0 for n in range(5000)]
    assert not in_sorted(digests(keys), known[:0]).any()


def test_a_stage_scores_a_batch_once(folder, weights, tmp_path):
    """An actor that was lost after it had written: the work that is done again finds its part."""
    parts = Parts(str(tmp_path / "out"))
    parts.begin(BY, resume=False, overwrite=False)
    batch = pa.table({"path": sorted(map(str, folder.glob("*.mp4")))})
    counts = cluster.PartScorer(Scorer(weights, device="cpu"), parts)(batch).to_pylist()
    assert counts == [{"rows": 7, "failed": 1}]
    again = cluster.PartScorer(Scorer(tmp_path / "no weights", device="cpu"), parts)
    assert again(batch).to_pylist() == counts
    assert again(batch.slice(0, 0)).num_rows == 0
    assert len(parts.names()) == 1
    expected = {one.path: one for one in score_files(batch.column("path").to_pylist(), sama.load_model(weights, "cpu"))}
    for one in read_scores(str(tmp_path / "out")):
        assert dataclasses.replace(one, seconds=0) == dataclasses.replace(expected[one.path], seconds=0)


def test_reports_and_evaluations_read_a_folder_of_parts(tmp_path, capsys):
    parts = Parts(str(tmp_path / "parts"))
    parts.begin(BY, resume=False, overwrite=False)
    for k in range(4):
        parts.write([row(f"{k}.mp4", score=float(k), clips=[float(k)])], f"part-{k}.parquet")
    (tmp_path / "labels.csv").write_text("path,mos\n" + "".join(f"{k}.mp4,{k}\n" for k in range(4)))
    options = ["--predictions", str(tmp_path / "parts"), "--samples", "5"]
    assert cli.main(["evaluate", str(tmp_path / "labels.csv"), str(tmp_path), *options]) == 0
    assert "4 of 4 items scored" in capsys.readouterr().out
    page = str(tmp_path / "page.html")
    assert cli.main(["report", str(tmp_path / "parts"), "-o", page, "--no-pictures", "--device", "cpu"]) == 0
    (tmp_path / "empty").mkdir()
    assert cli.main(["report", str(tmp_path / "empty"), "-o", page]) == 2
    assert "holds no parts of a table" in capsys.readouterr().err
    parts.write([row("x.mp4", settings="others")], "part-x.parquet")
    assert cli.main(["report", str(tmp_path / "parts"), "-o", page, "--no-pictures"]) == 2
    assert "mixes scores" in capsys.readouterr().err


@pytest.mark.parametrize("form", [".parquet", ".csv", ".jsonl"])
def test_the_command_scores_a_manifest_of_paths(folder, weights, tmp_path, form):
    paths = [str(folder / name) for name in ("3.mp4", "1.mp4", "bad.mp4", "1.mp4")]
    manifest = tmp_path / f"files{form}"
    if form == ".parquet":
        pq.write_table(pa.table({"id": [1, 2, 3, 4], "url": paths}), manifest)
    elif form == ".csv":
        with open(manifest, "w", newline="") as file:
            csv.writer(file).writerows([["id", "url"], *enumerate(paths)])
    else:
        manifest.write_text("".join(json.dumps({"id": n, "url": path}) + "\n" for n, path in enumerate(paths)))
    out = tmp_path / "scores.csv"
    options = ["--manifest", str(manifest), "--weights", str(weights), "--device", "cpu", "--out", str(out)]
    assert cli.main(["score", *options]) == 1
    expected = score_files(paths[:3], sama.load_model(weights, "cpu"))
    for got, want in zip(read_table(out), expected, strict=True):
        assert dataclasses.replace(got, seconds=0) == dataclasses.replace(want, seconds=0)


def test_the_command_scores_a_manifest_of_bytes_and_resumes(folder, weights, tmp_path):
    content = [(folder / name).read_bytes() for name in ("0.mp4", "bad.mp4", "2.mp4")]
    pq.write_table(pa.table({"video": content, "__key__": ["x", "y", "z"]}), tmp_path / "all.parquet")
    pq.write_table(pa.table({"video": content[:1], "__key__": ["x"]}), tmp_path / "some.parquet")
    out = tmp_path / "scores.jsonl"
    options = ["--weights", str(weights), "--device", "cpu", "--out", str(out), "--resume"]
    assert cli.main(["score", "--manifest", str(tmp_path / "some.parquet"), *options]) == 0
    assert cli.main(["score", "--manifest", str(tmp_path / "all.parquet"), *options]) == 1
    rows = read_table(out)
    assert [(one.path, one.status) for one in rows] == [("x", "ok"), ("y", "error"), ("z", "ok")]
    (want,) = score_files([str(folder / "2.mp4")], sama.load_model(weights, "cpu"))
    assert rows[2].clips == want.clips


def test_a_manifest_that_cannot_be_read_says_why(tmp_path):
    pq.write_table(pa.table({"a": [1], "b": [b"x"]}), tmp_path / "x.parquet")
    (tmp_path / "x.jsonl").write_text('{"path": "a.mp4"}\n5\n')
    (tmp_path / "y.parquet").write_bytes(b"nothing")
    with pytest.raises(
        InputError, match=r"x.parquet has no column of the names path, .*say which one \(--column\); it"
    ):
        Manifest(str(tmp_path / "x.parquet"))
    with pytest.raises(InputError, match="has no column c; it has a, b"):
        Manifest(str(tmp_path / "x.parquet"), column="c")
    with pytest.raises(InputError, match="is no Parquet file"):
        Manifest(str(tmp_path / "y.parquet"))
    with pytest.raises(InputError, match="line 2: got '5', expected an object"):
        list(Manifest(str(tmp_path / "x.jsonl")).files())
    with pytest.raises(FileNotFoundError):
        Manifest(str(tmp_path / "gone.csv"))
    with pytest.raises(InputError, match=r"must end in .parquet, .csv, .jsonl"):
        Manifest(str(tmp_path / "x.txt"))
    assert list(Manifest(str(tmp_path / "x.parquet"), column="b").files()) == [Media("#0", b"x")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.mp4", "--ray"], "--ray writes a folder of parts: give --out a folder; got None"),
        (["a.mp4", "--ray", "--out", "x.csv"], "--ray writes a folder of parts"),
        (["a.mp4", "--ray", "--out", "x", "--random-weights"], "--random-weights and --ray do not go together"),
        (["a.mp4", "--ray", "--out", "x", "--part-rows", "0"], "part_rows must be more than 0"),
        (["a.mp4", "--manifest", "b.csv"], "give either PATHs or --manifest"),
        ([], "give either PATHs or --manifest"),
    ],
)
def test_options_that_do_not_go_together(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["score", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_rows_without_a_file_are_left_out():
    batch = pa.table({"path": ["a", None, "", "b"], "n": [1, 2, 3, 4]})
    assert cluster.with_file(batch, "path").column("n").to_pylist() == [1, 4]
    batch = pa.table({"data": [b"x", None, b""], "n": [1, 2, 3]})
    assert cluster.with_file(batch, "data").column("n").to_pylist() == [1, 3]


def test_a_listing_is_split_into_parts_whatever_its_names_are():
    ray = SimpleNamespace(data=SimpleNamespace(from_arrow=lambda blocks: blocks))
    names = ["a", "b\udcff", "c\x1a", "d\ue000\ufffd", "e"]
    blocks = cluster.listing(ray, names, 2)
    assert [block.num_rows for block in blocks] == [2, 2, 1]
    assert [key for block in blocks for key in cluster.keys_of(block, cluster.LISTED, None)] == names
    assert [block.num_rows for block in cluster.listing(ray, [], 2)] == [0]


def test_every_actor_has_parts():
    assert cluster.rows_of_part(256, 200, 1) == 50
    assert cluster.rows_of_part(256, 200, 3) == 17
    assert cluster.rows_of_part(256, 1_000_000, 3) == 256
    assert cluster.rows_of_part(256, 0, 3) == 256  # not known
    assert cluster.rows_of_part(256, 5, 3) == 1


class FakeRay:
    def __init__(self, *nodes):
        self.found = [{"Alive": True, "Resources": dict(zip(("CPU", "GPU"), node))} for node in nodes]

    def nodes(self):
        return self.found


@pytest.mark.parametrize(
    ("nodes", "asked", "expected"),
    [
        ([(8.0,)], {}, (7.0, 0.0, 1, 8)),
        ([(8.0,)], {"actors": 2}, (3.5, 0.0, 2, 4)),
        ([(1.0,)] * 3, {}, (0.0, 0.0, 3, 1)),
        ([(16.0, 4.0)] * 2, {}, (15 / 4, 1.0, 8, 4)),
        ([(16.0, 4.0)], {"gpus": 0.5}, (15 / 8, 0.5, 8, 2)),
        ([(16.0,), (8.0,)], {"actors": 4, "cpus": 3.0}, (3.0, 0.0, 4, 3)),
    ],
)
def test_one_cpu_of_a_cluster_is_left_for_reading(nodes, asked, expected):
    """Otherwise Ray's tasks that list and read would wait for the actors, which wait for what they read."""
    options = cluster.ClusterOptions("auto", **asked)
    assert cluster.resources(FakeRay(*nodes), options) == expected
    cpus, _, actors, _ = expected
    assert cpus * actors <= sum(node[0] for node in nodes) - 1 or cpus == 0


def test_more_than_the_cluster_has_is_refused():
    for asked in ({"cpus": 8.0}, {"cpus": 9.0}, {"gpus": 1.0}, {"actors": 3, "cpus": 3.0}):
        with pytest.raises(InputError, match="the cluster has"):
            cluster.resources(FakeRay((8.0,)), cluster.ClusterOptions("auto", **asked))


def by_path(rows):
    return {one.path: dataclasses.replace(one, seconds=0) for one in rows}


def command(*arguments):
    environment = os.environ | {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    return [sys.executable, "-m", "sama.cli", "score", *map(str, arguments), "--device", "cpu"], environment


@needs_ray
def test_ray_gives_the_table_of_one_process_and_resumes(folder, weights, tmp_path):
    pytest.importorskip("ray")
    out, corpus = tmp_path / "parts", tmp_path / "corpus"
    shutil.copytree(folder, corpus)
    (corpus / os.fsdecode(b"caf\xe9.mp4")).write_bytes((folder / "0.mp4").read_bytes())
    expected = by_path(score_files(sorted(map(str, corpus.glob("*.mp4"))), sama.load_model(weights, "cpu")))
    some = sorted(expected)[:3]
    for paths in (some, [corpus]):
        words, environment = command(*paths, "--weights", weights, "--out", out, "--part-rows", 2, "--resume", "--ray")
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=RAY_SECONDS)
        assert done.returncode == (0 if paths is some else 1), done.stderr
    assert "3 rows of an earlier run" in done.stderr
    assert "7 scored, 1 failed; 5 of them now" in done.stderr
    assert by_path(read_scores(str(out))) == expected
    rows = [key for _, keys, _ in Parts(str(out)).contents() for key in keys]
    assert len(rows) == len(set(rows)) == 8


@needs_ray
@pytest.mark.usefixtures("one_thread")
def test_ray_reads_each_form_of_manifest(folder, weights, tmp_path):
    """One after the other in one process; a manifest in one block is split among the actors."""
    pytest.importorskip("ray")
    paths = sorted(map(str, folder.glob("*.mp4")))
    expected = by_path(score_files(paths, sama.load_model(weights, "cpu")))
    urls = [*paths, None, paths[0]]
    pq.write_table(pa.table({"n": range(9), "url": urls}), tmp_path / "a.parquet")
    with open(tmp_path / "b.csv", "w", newline="") as file:
        csv.writer(file).writerows([["url", "note"], *([url, 'two\nlines, "quoted"'] for url in urls)])
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"url": url, "n": n}) + "\n" for n, url in enumerate(urls)))
    content = [Path(path).read_bytes() for path in paths]
    pq.write_table(pa.table({"bytes": content, "key": [f"{n:02}" for n in range(7)]}), tmp_path / "d.parquet")
    named = {f"{n:02}": dataclasses.replace(expected[path], path=f"{n:02}") for n, path in enumerate(paths)}
    commands, environment = [], command()[1]
    for name, out in (("a.parquet", "a"), ("b.csv", "b"), ("c.jsonl", "c"), ("d.parquet", "d")):
        words, _ = command("--manifest", tmp_path / name, "--weights", weights, "--out", tmp_path / out, "--ray")
        commands.append([*words[3:], "--part-rows", "2", "--actors", "2", "--actor-cpus", "1"])
    script = "import json, sys; from sama.cli import main; print([main(words) for words in json.loads(sys.argv[1])])"
    words = [sys.executable, "-c", script, json.dumps(commands)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=RAY_SECONDS)
    assert done.stdout.strip().endswith("[1, 1, 1, 1]"), done.stdout + done.stderr  # one file fails
    for out in "abc":
        assert by_path(read_scores(str(tmp_path / out))) == expected, out
    assert by_path(read_scores(str(tmp_path / "d"))) == named
    for out in "abcd":
        found = [len(keys) for _, keys, _ in Parts(str(tmp_path / out)).contents()]
        assert sum(found) == 7
        assert max(found) <= 2


@needs_ray
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("one_thread")
def test_the_example_for_ray_scores_as_sama_does(folder, tmp_path):
    pytest.importorskip("ray")
    example = Path(__file__).parent.parent / "examples" / "score_with_ray.py"
    _, environment = command()
    subprocess.run(
        [sys.executable, example, folder, tmp_path / "out"],
        env=environment,
        check=True,
        capture_output=True,
        timeout=RAY_SECONDS,
    )
    got = {one["path"]: one["score"] for one in pq.read_table(tmp_path / "out").to_pylist()}
    assert got == {
        one.path: one.score for one in score_files(sorted(map(str, folder.glob("*.mp4"))), sama.load_model())
    }
