"""The contract for scores: one row a file, the same in every form; tables that do not go together are not mixed."""

import csv
import dataclasses
import importlib.util
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import videos
from small_models import save_nano

import sama
from sama import cli
from sama.errors import InputError, MissingLibraryError, OutputError
from sama.journal import Journal
from sama.model import random_model
from sama.scoring import score_files
from sama.tables import COLUMNS, CONTRACT, FORMATS, Row, check_unmixed, read_table, schema, table

DOCS = Path(__file__).parent.parent / "docs"
SETTINGS = {"mode": "sama", "grid": [7, 7], "fragment": [32, 32], "clip_len": 8, "interval": 2, "num_clips": 2}
BY = {
    "model": "m.safetensors (our own, sha256 0123456789ab)",
    "settings": "sama, 2 clips of 8 frames, 2 apart, float32",
}
GOOD = Row(
    "a.mp4", score=1.5, mos=3.0, mos_scale="people", clips=[1.0, 2.0], times=[0.5, 1.5], frames=40, width=96, height=64,
    duration=1.6, fps=25.0, seconds=0.1, decoder="pyav", scale="VMAF", weights_sha256="0123456789ab", mode="sama",
    plan="2 clips of 8 frames, 2 apart", version="1.2.3", **BY,
)  # fmt: skip
FAILED = Row("b.mp4", "error", reason="cut short", **BY)


@pytest.mark.parametrize("form", FORMATS)
def test_a_row_is_read_back_as_it_is(tmp_path, form):
    path = tmp_path / f"x{form}"
    path.write_bytes(table([GOOD, FAILED], form))
    assert read_table(path) == [GOOD, FAILED]


def test_failed_rows_have_null_scores_and_columns_have_their_types_in_every_form(tmp_path):
    for form in FORMATS:
        (tmp_path / f"x{form}").write_bytes(table([GOOD, FAILED], form))
    with open(tmp_path / "x.csv", newline="") as file:
        good, failed = csv.DictReader(file)
    assert (good["score"], failed["score"], failed["clips"]) == ("1.5", "", "")
    lines = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert lines == json.loads((tmp_path / "x.json").read_text())
    assert [line["score"] for line in lines] == [1.5, None]
    parquet = pq.read_table(tmp_path / "x.parquet")
    assert parquet.to_pylist() == lines
    assert parquet.schema.equals(schema(), check_metadata=True)
    assert parquet.column("score").null_count == 1
    assert pa.types.is_float64(parquet.schema.field("mos").type)  # of a column of nulls, too
    assert list(good) == list(lines[0]) == parquet.column_names == list(COLUMNS)


def test_scored_files_say_what_their_score_depends_on(tmp_path):
    weights = save_nano(tmp_path / "nano.safetensors", SETTINGS)
    videos.write_video(tmp_path / "a.mp4", "mpeg4", num_frames=20)
    model = sama.load_model(weights, "cpu")
    good, failed = score_files([str(tmp_path / "a.mp4"), str(tmp_path / "gone.mp4")], model)
    for row in (good, failed):
        assert row.weights_sha256 == re.search(r"sha256 (\w+)", row.model)[1] == sama.model.digest(weights)
        assert (row.mode, row.plan) == ("sama", "2 clips of 8 frames, 2 apart")
        assert (row.version, row.contract) == (sama.__version__, CONTRACT)
    (row,) = score_files([str(tmp_path / "a.mp4")], model, every_seconds=0.5)
    assert row.plan == "one clip of 8 frames, 2 apart, every 0.5 s"
    assert random_model("image", "cpu").attribution()["plan"] == "the whole image"
    assert random_model("image", "cpu").attribution()["weights_sha256"] is None


@pytest.mark.parametrize("every", [None, 2.5])
@pytest.mark.parametrize("kind", ["video", "image"])
def test_tables_of_the_first_version_are_read_with_what_their_settings_say(tmp_path, kind, every):
    """The columns that are new are filled from `model` and `settings`, which have said the same from the start."""
    model = random_model(kind, "cpu")
    model.name, model.sha256 = BY["model"], "0123456789ab"
    now = Row("a.mp4", score=1.0, clips=[1.0], **model.attribution(None if kind == "image" else every))
    old = {name: value for name, value in dataclasses.asdict(now).items() if name in COLUMNS[: COLUMNS.index("scale")]}
    (tmp_path / "old.jsonl").write_text(json.dumps(old) + "\n")
    assert read_table(tmp_path / "old.jsonl") == [dataclasses.replace(now, version="", scale="")]
    with open(tmp_path / "old.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(old))
        writer.writeheader()
        writer.writerow(old | {"clips": "1.0", "times": ""})
    assert read_table(tmp_path / "old.csv") == read_table(tmp_path / "old.jsonl")
    with Journal(tmp_path / "old.csv", (now.model, now.settings), resume=True) as journal:
        assert journal.remaining(["a.mp4", "b.mp4"]) == ["b.mp4"]


def test_a_table_of_a_later_contract_is_refused(tmp_path):
    later = dataclasses.replace(GOOD, contract=CONTRACT + 1)
    for form in FORMATS:
        (tmp_path / f"x{form}").write_bytes(table([later], form))
        with pytest.raises(OutputError, match=f"rows of contract {CONTRACT + 1}; this version of sama reads contract"):
            read_table(tmp_path / f"x{form}")


def test_scores_of_different_models_or_settings_are_not_mixed(tmp_path, capsys):
    other = dataclasses.replace(GOOD, path="c.mp4", settings="sama, 4 clips of 32 frames, 2 apart, float32")
    check_unmixed([GOOD, FAILED], "x")
    with pytest.raises(InputError, match=r"x mixes scores .* a.mp4 by m.safetensors .* c.mp4 by"):
        check_unmixed([GOOD, FAILED, other], "x")
    mixed = tmp_path / "mixed.parquet"
    mixed.write_bytes(table([GOOD, other], ".parquet"))
    (tmp_path / "labels.csv").write_text("path,mos\na.mp4,1\nc.mp4,2\n")
    assert cli.main(["report", str(mixed), "-o", str(tmp_path / "r.html"), "--no-pictures"]) == 2
    assert "mixes scores" in capsys.readouterr().err
    assert cli.main(["evaluate", str(tmp_path / "labels.csv"), str(tmp_path), "--predictions", str(mixed)]) == 2
    assert "mixes scores" in capsys.readouterr().err


def test_without_pyarrow_parquet_is_refused_before_anything_is_scored(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr("sama.tables.find_spec", lambda name: None if name == "pyarrow" else found(name))
    with pytest.raises(MissingLibraryError, match=r'pip install "sama-vqa\[parquet\]"'):
        Journal(tmp_path / "x.parquet", ("model", "settings"))
    assert not list(tmp_path.iterdir())
    Journal(tmp_path / "x.csv", ("model", "settings")).file.close()


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet at all", b"PAR1" + bytes(60) + b"PAR1"])
def test_what_is_no_parquet_file_is_a_line(tmp_path, content):
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(OutputError, match=r"x.parquet is no table that `sama score` wrote"):
        read_table(tmp_path / "x.parquet")


def test_another_parquet_table_is_refused(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "x.parquet")
    with pytest.raises(OutputError, match="has other columns"):
        read_table(tmp_path / "x.parquet")


def test_the_reference_names_every_column_in_its_order():
    lines = (DOCS / "scores.md").read_text().splitlines()
    named = [name for line in lines if line.startswith("| `") for name in re.findall(r"`(\w+)`", line.split("|")[1])]
    assert named == list(COLUMNS)
