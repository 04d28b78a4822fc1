"""Tables and journals on a disk that is full: one line says what is kept, and --resume continues."""

import dataclasses
import json
import resource
import signal
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sama import cli
from sama.errors import OutputError
from sama.files import replace_file
from sama.journal import Journal
from sama.tables import FORMATS, Row, read_journal, read_table, table

SCORES_BY = "a model", "its settings"
ROWS = [
    Row(f"{n}.mp4", score=float(n), clips=[n + 0.5], times=[1.0], model=SCORES_BY[0], settings=SCORES_BY[1])
    for n in range(9)
]


@pytest.fixture
def small_disk():
    """A function that limits the size of every file that this process writes, as a full disk does, within a row."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit(size: int | None):
        resource.setrlimit(resource.RLIMIT_FSIZE, before if size is None else (size, before[1]))

    yield limit
    limit(None)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("form", [".csv", ".jsonl", ".json"])
def test_a_full_disk_leaves_whole_rows_and_can_be_resumed(tmp_path, small_disk, form):
    out = tmp_path / f"scores{form}"
    width = len(json.dumps(dataclasses.asdict(ROWS[0]))) + 1
    with Journal(out, SCORES_BY) as journal:
        small_disk(3 * width + width // 2)
        for row in ROWS[:3]:
            journal.add(row)
        with pytest.raises(OutputError) as raised:
            journal.add(ROWS[3])
        small_disk(None)
    assert str(raised.value) == (
        f"{out}.partial cannot be written: File too large; "
        f"3 rows are kept in {out}.partial: --resume continues from them"
    )
    assert read_journal(journal.partial) == ROWS[:3]
    with Journal(out, SCORES_BY, resume=True) as journal:
        assert journal.remaining([row.path for row in ROWS]) == [row.path for row in ROWS[3:]]
        for row in ROWS[3:]:
            journal.add(row)
        journal.finish([row.path for row in ROWS])
    assert read_table(out) == ROWS
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_failed_files_are_scored_again_with_retry(tmp_path):
    """Only when asked for: a file that failed stays failed for a plain --resume."""
    failed = Row("bad.mp4", status="error", reason="damaged", model=SCORES_BY[0], settings=SCORES_BY[1])
    out = tmp_path / "scores.csv"
    with Journal(out, SCORES_BY) as journal:
        for row in (ROWS[0], failed, ROWS[1]):
            journal.add(row)
        journal.finish()
    paths = ["0.mp4", "bad.mp4", "1.mp4", "2.mp4"]
    with Journal(out, SCORES_BY, resume=True) as journal:
        assert journal.remaining(paths) == ["2.mp4"]
    with Journal(out, SCORES_BY, resume=True, retry=True) as journal:
        assert journal.remaining(paths) == ["bad.mp4", "2.mp4"]
        journal.add(dataclasses.replace(ROWS[0], path="bad.mp4"))
        journal.finish(paths)
    assert {row.path: row.status for row in read_table(out)} == dict.fromkeys(["0.mp4", "bad.mp4", "1.mp4"], "ok")


def test_a_full_disk_at_the_end_keeps_the_journal(tmp_path, small_disk):
    out = tmp_path / "scores.json"
    with Journal(out, SCORES_BY) as journal:
        for row in ROWS:
            journal.add(row)
        small_disk(100)
        with pytest.raises(
            OutputError, match=r"scores\.json cannot be written: .*; 9 rows are kept in .*--resume continues"
        ):
            journal.finish()
        small_disk(None)
    assert not out.exists()
    with Journal(out, SCORES_BY, resume=True) as journal:
        journal.finish()
    assert read_table(out) == ROWS


def test_a_replaced_file_is_whole_or_as_it_was(tmp_path, small_disk):
    path = tmp_path / "report.json"
    replace_file(path, b"old")
    small_disk(1000)
    with pytest.raises(
        OutputError, match=r"report\.json cannot be written: File too large; the file that was there is kept"
    ):
        replace_file(path, bytes(5000))
    small_disk(None)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_command_says_in_a_line_what_a_full_disk_kept(tmp_path):
    """The whole program, with files that need no decoding; then the same command with --resume."""
    for n in range(30):
        (tmp_path / f"{n}.mp4").write_bytes(b"no video")
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from sama.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (6000, -1))\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["score", str(tmp_path), "--device", "cpu", "--out", str(tmp_path / "scores.csv")]
    full = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert full.returncode == 2
    assert "Traceback" not in full.stderr
    last = full.stderr.strip().splitlines()[-1]
    kept = len(read_journal(tmp_path / "scores.csv.partial"))
    assert 0 < kept < 30
    assert last.endswith(
        f"File too large; {kept} rows are kept in {tmp_path / 'scores.csv.partial'}: --resume continues from them"
    )
    assert cli.main([*arguments, "--resume"]) == 1  # no file is a video
    assert sorted(row.path for row in read_table(tmp_path / "scores.csv")) == sorted(map(str, tmp_path.glob("*.mp4")))


def test_a_replaced_file_keeps_its_permissions_and_its_link(tmp_path):
    path, link = tmp_path / "real.json", tmp_path / "link.json"
    path.write_bytes(b"old")
    path.chmod(0o600)
    link.symlink_to(path)
    replace_file(link, b"new")
    assert link.is_symlink()
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", 0o600)


@pytest.mark.parametrize("name", ["folder", "folder/none/x.csv", "x" * 250])
def test_what_cannot_be_written_is_named(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=f"^{tmp_path / name} cannot be written: [^;]*$"):
        replace_file(tmp_path / name, b"new")
    assert list(tmp_path.rglob("*")) == [tmp_path / "folder"]


def test_a_second_run_into_the_same_table_is_refused(tmp_path):
    """It would take the first one's rows away. The lock ends with the journal, or the process."""
    out = tmp_path / "scores.csv"
    with Journal(out, SCORES_BY) as journal:
        journal.add(ROWS[0])
        for options in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(OutputError, match=r"another run is writing .*scores\.csv\.partial: wait for it"):
                Journal(out, SCORES_BY, **options)
        journal.add(ROWS[1])
        journal.finish()
    assert read_table(out) == ROWS[:2]
    with Journal(out, SCORES_BY, resume=True) as journal:
        assert list(journal.rows) == ["0.mp4", "1.mp4"]


def test_the_command_refuses_a_second_run_in_one_line(tmp_path, capsys):
    (tmp_path / "x.mp4").write_bytes(b"no video")
    arguments = ["score", str(tmp_path), "--device", "cpu", "--out", str(tmp_path / "scores.csv"), "--resume"]
    holding = (
        "import sys, fcntl; file = open(sys.argv[1], 'ab'); fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holding, str(tmp_path / "scores.csv.partial")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout.readline() == b"locked\n"
        assert cli.main(arguments) == 2
        assert "sama: another run is writing" in capsys.readouterr().err
        other.kill()
    assert cli.main(arguments) == 1


def test_overwriting_keeps_the_old_table_until_the_new_one_is_there(tmp_path, small_disk):
    out = tmp_path / "scores.csv"
    with Journal(out, SCORES_BY) as journal:
        journal.add(ROWS[0])
        journal.finish()
    with Journal(out, SCORES_BY, overwrite=True) as journal:
        journal.add(ROWS[1])
        small_disk(50)
        with pytest.raises(OutputError, match="the file that was there is kept; 1 rows are kept in"):
            journal.finish()
        small_disk(None)
    assert read_table(out) == ROWS[:1]
    with Journal(out, SCORES_BY, resume=True) as journal:
        assert list(journal.rows) == ["1.mp4"]
        journal.finish()
    assert read_table(out) == ROWS[1:2]


def test_a_refused_journal_leaves_nothing_behind(tmp_path):
    out = tmp_path / "scores.csv"
    with Journal(out, SCORES_BY) as journal:
        journal.add(ROWS[0])
        journal.finish()
    with pytest.raises(OutputError, match="cannot be resumed"):
        Journal(out, ("another model", ""), resume=True)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


# What a file system takes for a name: everything but a slash and a zero byte; bytes that are no UTF-8 are surrogates.
NAMES = st.text(
    st.one_of(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), st.sampled_from('\r\n\udcff",;'))
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(NAMES.filter(bool), unique=True, min_size=1, max_size=4), st.sampled_from(FORMATS))
def test_every_name_is_read_back_as_it_is(tmp_path_factory, names, form):
    rows = [dataclasses.replace(ROWS[0], path=name, reason=name) for name in names]
    path = tmp_path_factory.mktemp("names") / f"x{form}"
    path.write_bytes(table(rows, form))
    assert read_table(path) == rows
    with Journal(path, SCORES_BY, resume=True) as journal:
        assert journal.remaining(names) == []


def test_a_table_of_a_long_timeline_is_read_back(tmp_path):
    row = dataclasses.replace(ROWS[0], clips=[0.123456789 * n for n in range(20_000)])
    (tmp_path / "x.csv").write_bytes(table([row], ".csv"))
    assert read_table(tmp_path / "x.csv") == [row]


WRONG = [
    *("5", "null", '"text"', "[1]", "[" * 100_000, "{}", '{"path": 5}', '{"path": "x", "more": 1}'),
    *(
        f'{{"path": "x", "{column}": {value}}}'
        for column in ("clips", "times")
        for value in ("5", '"abc"', "null", "[[]]", "[null]")
    ),
    *(
        f'{{"path": "x", "{column}": {value}}}'
        for column in ("frames", "fps", "score")
        for value in ('"5"', "true", "[]")
    ),
    *(f'{{"path": "x", "{column}": {value}}}' for column in ("model", "reason", "mos_scale") for value in ("5", "{}")),
    f'{{"path": "x", "score": 1{400 * "0"}}}',
]


@pytest.mark.parametrize("line", WRONG, ids=lambda line: line[:40])
def test_rows_of_wrong_types_are_a_line(tmp_path, line):
    for name, content in (("x.jsonl", f"{line}\n"), ("x.json", f"[{line}]"), ("y.json", line)):
        if (name, line) in (("y.json", "[1]"), ("x.json", "{}")):
            continue
        (tmp_path / name).write_text(content)
        with pytest.raises(OutputError, match=f"{name}.*(no table|damaged|wrong type|other columns)"):
            read_table(tmp_path / name)


def test_what_is_no_regular_file_is_not_read(tmp_path):
    for name in ("folder.csv", "folder.json", "folder.jsonl"):
        (tmp_path / name).mkdir()
        with pytest.raises(OutputError, match="is no regular file"):
            read_table(tmp_path / name)
