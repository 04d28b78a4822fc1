"""`--log`: the shape of libvmaf's log, read by a tool that reads those."""

import json

import numpy as np
import pytest
import videos
from report_rows import rows

from sama.cli import main
from sama.model import load_model
from sama.report.scale import OWN, Scale, scale_of
from sama.report.vmaf_log import metric_name, pooled, vmaf_log, write_log
from sama.tables import Row

VMAF = Scale("predicted VMAF", 0, 100)


def test_shape_is_libvmafs():
    (row,) = rows(1)
    log = vmaf_log(row, VMAF)
    assert list(log) == ["version", "fps", "frames", "pooled_metrics", "aggregate_metrics", "sama"]
    assert [frame["metrics"]["vmaf"] for frame in log["frames"]] == pytest.approx(row.clips, abs=1e-6)
    assert [frame["frameNum"] for frame in log["frames"]] == [25 * t for t in (1, 3, 5, 7, 9, 11)]
    x = np.array(row.clips)
    expected = {"min": x.min(), "max": x.max(), "mean": x.mean(), "harmonic_mean": 1 / np.mean(1 / (x + 1)) - 1}
    assert log["pooled_metrics"]["vmaf"] == pytest.approx(expected, abs=1e-5)
    assert "window" in log["sama"]["note"]
    assert log["sama"]["range"] == [0, 100]


def test_pooled_is_libvmafs_own(tmp_path):
    """The means of a real log of libvmaf, recomputed from its frames."""
    from sama.corpus.ffmpeg import find_ffmpeg

    ffmpeg = find_ffmpeg()
    videos.write_video(tmp_path / "a.mp4", "libx264", num_frames=6)
    videos.write_video(tmp_path / "b.mp4", "libx264", num_frames=6, options={"crf": "45"})
    inputs = ["-i", str(tmp_path / "b.mp4"), "-i", str(tmp_path / "a.mp4")]
    ffmpeg.run([*inputs, "-lavfi", "libvmaf=log_fmt=json:log_path=log.json", "-f", "null", "-"], folder=tmp_path)
    log = json.loads((tmp_path / "log.json").read_text())
    ours = pooled([frame["metrics"]["vmaf"] for frame in log["frames"]])
    assert ours == pytest.approx(log["pooled_metrics"]["vmaf"], abs=1e-4)
    assert {"frames", "pooled_metrics", "aggregate_metrics", "version", "fps"} <= set(vmaf_log(rows(1)[0], VMAF))
    assert {"frameNum", "metrics"} <= set(log["frames"][0])


def test_a_reader_of_such_logs_reads_it(tmp_path):
    """ffmpeg-quality-metrics, from the file on."""
    metrics = pytest.importorskip("ffmpeg_quality_metrics")
    (row,) = rows(1)
    write_log(row, VMAF, tmp_path / "log.json")
    reader = metrics.FfmpegQualityMetrics.__new__(metrics.FfmpegQualityMetrics)  # it would run FFmpeg to make a log
    reader.temp_files = {"libvmaf": str(tmp_path / "log.json")}
    reader.data = {name: [] for name in ("psnr", "ssim", "vmaf", "vif", "msad")}
    reader.global_stats = {}
    reader._read_vmaf_temp_file()
    found = reader.get_global_stats()["vmaf"]["vmaf"]
    assert found["average"] == pytest.approx(np.mean(row.clips), abs=1e-2)
    assert found["min"] == pytest.approx(min(row.clips), abs=1e-2)


def test_names_and_values_of_other_scales():
    assert metric_name(VMAF) == "vmaf"
    assert metric_name(Scale("KoNViD-1k")) == "konvid_1k"
    assert metric_name(Scale(OWN)) == "the_model_s_own_scale"
    row = Row("x.mp4", score=-3.0, clips=[-4.0, -2.0], times=[0.5, 1.5], fps=25.0, model="m", settings="s")
    log = vmaf_log(row, Scale(OWN))
    (means,) = log["pooled_metrics"].values()
    assert means == {"min": -4.0, "max": -2.0, "mean": -3.0, "harmonic_mean": None}


def test_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        videos.write_video(tmp_path / f"{name}.mp4", "libx264", num_frames=8)
    options = ["--device", "cpu", "--log"]
    assert main(["score", "a.mp4", *options, "log.json"]) == 0
    model = load_model(device="cpu")
    log = json.loads((tmp_path / "log.json").read_text())
    name = metric_name(scale_of(model))
    expected = [scale_of(model)(clip) for clip in model.score("a.mp4").clips]
    assert [frame["metrics"][name] for frame in log["frames"]] == pytest.approx(expected, abs=1e-5)
    (tmp_path / "logs").mkdir()
    (tmp_path / "broken.mp4").touch()
    assert main(["score", "a.mp4", "b.mp4", "broken.mp4", *options, "logs"]) == 1
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["a.mp4.json", "b.mp4.json"]
    capsys.readouterr()
    for words, said in (
        ("a.mp4 b.mp4 --log log.json", "a log is of one file; got 2 files"),
        ("a.mp4 --log log.csv", "must end in .json"),
        ("a.mp4 --log none/log.json", "there is no folder none"),
        ("a.mp4 --report page.txt", "a page's name must end in .html"),
    ):
        assert main(["score", *words.split(), "--device", "cpu"]) == 2
        assert said in capsys.readouterr().err
