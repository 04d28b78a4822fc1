"""`sama report`, `sama score --report`, `sama inspect -o x.html`: what goes into their pages; the pages themselves are
tested in a browser."""

import io
import json
import re
import tracemalloc

import numpy as np
import pytest
import report_rows
import videos
from PIL import Image
from small_models import save_nano

import sama.report.pictures as pictures
from sama.cli import main
from sama.decode.pyav import PyavVideo
from sama.errors import InputError, OutputError
from sama.kernels import reference
from sama.model import load_model
from sama.report.files import POINTS_OF_A_FILE, reduced, write_report
from sama.report.page import page
from sama.report.pictures import PictureStore, choose, look, nearest, shrink
from sama.report.scale import Scale, meaning, scale_of, scale_of_rows
from sama.tables import Row, read_table, table

NANO = {"kind": "video", "mode": "sama", "grid": [2, 2], "fragment": [32, 32], "clip_len": 4, "interval": 1}
NANO["num_clips"] = 2


def data_of(path):
    """The data within a page."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.S)
    return json.loads(found[1])


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """A model with tokens, of random weights, calibrated to a scale with ends."""
    calibration = {"scale": "pretend VMAF", "kind": "linear", "slope": 10.0, "intercept": 50.0, "range": [0, 100]}
    path = tmp_path_factory.mktemp("nano") / "nano.safetensors"
    return save_nano(path, {**NANO, "calibration": calibration})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two videos and a file that is none; the working folder."""
    monkeypatch.chdir(tmp_path)
    for k in range(2):
        videos.write_video(tmp_path / f"{k}.mp4", "libx264", num_frames=12 + k)
    (tmp_path / "bad.mp4").write_bytes(b"nothing")
    return tmp_path


def test_score_and_report_make_the_same_page(folder, tokens, capsys):
    """By the way of a table, or at once; with quality maps, of the model's own tokens, on its scale."""
    model = ["--weights", str(tokens), "--device", "cpu"]
    assert main(["score", ".", *model, "-o", "scores.csv", "--report", "at-once.html"]) == 1
    assert main(["report", "scores.csv", "-o", "later.html", *model]) == 0
    at_once, later = data_of(folder / "at-once.html"), data_of(folder / "later.html")
    assert at_once == later
    assert at_once["scale"] == {"name": "pretend VMAF", "low": 0.0, "high": 100.0, "digits": 1}
    best = max(at_once["files"], key=lambda file: file.get("score", -1))
    assert [file["name"] for file in at_once["files"]][-1] == "bad.mp4"
    assert best["codec"] == "h264"
    rows = {row.path: row for row in read_table(folder / "scores.csv")}
    row = rows[f"./{best['name']}"]
    assert best["score"] == pytest.approx(50 + 10 * row.score, abs=0.006)
    for moment in best["moments"]:
        cells = np.array(moment["cells"])
        assert cells.shape == (2, 2)
        assert cells.mean() == pytest.approx(moment["score"], abs=0.02)  # a score is the mean over tokens
    assert "VMAF is Netflix's measure" in " ".join(at_once["meaning"])


def test_report_without_its_model_or_files(folder, capsys):
    """Of a table alone: scores on the model's own scale, and words for what is missing."""
    made = report_rows.rows(3)
    for row in made:
        row.mos, row.mos_scale = row.score / 20, "votes"
    (folder / "scores.jsonl").write_bytes(table(made, ".jsonl"))
    assert main(["report", "scores.jsonl", "-o", "page.html"]) == 0
    data = data_of(folder / "page.html")
    assert data["scale"]["name"] == "the model's own scale"
    assert "the file was not there" in data["files"][0]["problem"]
    assert "on the scale “votes”" in data["files"][0]["also"]
    assert "--weights" in data["hints"]["maps"]
    assert main(["report", "scores.jsonl", "-o", "page.html", "--no-pictures"]) == 0
    assert data_of(folder / "page.html")["hints"]["pictures"] == "This page was made without pictures."


def test_running_table_and_root(folder):
    row = Row("0.mp4", score=1.0, clips=[1.0], times=[0.2], frames=12, decoder="pyav", model="m", settings="s")
    (folder / "scores.csv.partial").write_bytes(table([row], ".jsonl"))
    assert main(["report", "scores.csv", "-o", "page.html", "--root", str(folder)]) == 0
    assert data_of(folder / "page.html")["files"][0]["thumbnail"] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("none.csv", "no such file: none.csv"),
        ("bad.csv", "no table that `sama score` wrote"),
        ("empty.csv", "empty.csv has no rows"),
        ("good.csv -o page.txt", "a page's name must end in .html"),
        ("good.csv -o none/page.html", "there is no folder none"),
        ("good.csv --maps -1", "--maps must be at least 0"),
        ("good.csv --weights {0}", "the scores are by m"),
    ],
)
def test_bad_input(folder, tokens, capsys, words, said):
    (folder / "bad.csv").write_text('path,score\n"x.mp4",nonsense\n')
    (folder / "empty.csv").write_bytes(table([], ".csv"))
    (folder / "good.csv").write_bytes(table(report_rows.rows(1), ".csv"))
    assert main(["report", *words.format(tokens).split()]) == 2
    assert said in capsys.readouterr().err


def test_inspect_page(folder, tokens, capsys):
    """One file: more of its moments, each with a quality map."""
    given = ["inspect", "0.mp4", "-o", "page.html", "--every", "0.1", "--weights", str(tokens), "--device", "cpu"]
    assert main(given) == 0
    assert capsys.readouterr().out.strip() == "page.html"
    data = data_of(folder / "page.html")
    (file,) = data["files"]
    assert data["title"] == "0.mp4"
    assert [moment["what"] for moment in file["moments"]].count("lowest") >= 2
    assert all("cells" in moment for moment in file["moments"])
    assert main(["inspect", "bad.mp4", "-o", "page.html", "--weights", str(tokens), "--device", "cpu"]) == 2
    assert main(["inspect", "0.mp4", "-o", "none/page.html"]) == 2


def test_an_image_has_its_picture(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(videos.picture(0, 300, 200)).save(path)
    row = Row(str(path), score=2.0, clips=[2.0], frames=1, width=300, height=200, decoder="pillow")
    seen = look(row, str(path), choose(row.clips, row.times))
    assert seen.codec == "png"
    assert Image.open(io.BytesIO(seen.thumbnail)).size == (122, 81)
    assert Image.open(io.BytesIO(seen.moments[0].picture)).size == (300, 200)
    assert seen.moments[0].seconds is None


def test_pictures_are_the_frames_of_their_times(clip):
    """The frame of a moment is the one shown then, at a variable frame rate too."""
    path = str(clip("h264-vfr.mp4"))
    with PyavVideo(path) as video:
        times = video.seconds(range(60))
        (_, frame), *_ = video.frames([41])
        expected = np.asarray(reference.to_rgb(frame), np.int16)
    row = Row(path, score=0.0, clips=[0.0], times=[float(times[41]) + 1e-4], frames=60, decoder="pyav")
    (moment,) = look(row, path, choose(row.clips, row.times)).moments
    got = np.asarray(Image.open(io.BytesIO(moment.picture)), np.int16)
    assert np.abs(got - expected).mean() < 12  # of JPEG; another frame's noise is twice as far
    with PyavVideo(path) as video:
        (_, frame), *_ = video.frames([40])
    assert np.abs(got - np.asarray(reference.to_rgb(frame), np.int16)).mean() > 12


def test_shrunk_planes_have_the_frames_colours(clip):
    with PyavVideo(str(clip("h264.mp4"))) as video:
        (_, frame), *_ = video.frames([3])
    whole = np.asarray(shrink(frame, None), np.float64)
    small = np.asarray(shrink(frame, (48, 48)), np.float64)
    assert small.shape == (32, 48, 3)
    np.testing.assert_allclose(small.mean((0, 1)), whole.mean((0, 1)), atol=2)
    assert shrink(frame, (5000, 5000)).size == (96, 64)


def test_nearest_and_choice_of_moments():
    times = np.array([0.0, 0.1, 0.3, 0.4])
    assert [nearest(times, t) for t in (-1, 0.04, 0.06, 0.19, 0.21, 9)] == [0, 0, 1, 1, 2, 3]
    assert nearest(np.array([0.0]), 5.0) == 0
    chosen = choose([3.0, 1.0, 2.0, 5.0, 4.0], [0, 1, 2, 3, 4])
    assert [(m.window, m.what) for m in chosen] == [(1, "lowest"), (2, "lowest"), (3, "highest"), (4, "highest")]
    assert [m.what for m in choose([1.0], [])] == ["lowest"]
    assert [m.window for m in choose([2.0, 1.0], [0, 1])] == [1, 0]


def test_two_hours_give_a_page_of_a_second(folder, monkeypatch):
    """A timeline of two hours, its file replaced by a video that counts what is asked of it: bounded frames, points and
    memory; no bad moment is lost."""
    windows = 3600
    values = (50 + 20 * np.sin(np.arange(windows) / 50)).tolist()
    values[1777] = 3.0
    facts = {"clips": values, "times": (np.arange(windows) * 2 + 1.0).tolist(), "frames": 180_000, "duration": 7200.0}
    row = Row("0.mp4", score=float(np.mean(values)), fps=25.0, width=1920, height=1080, decoder="pyav", **facts)
    asked = []

    class Long:
        info = type("Info", (), {"num_frames": 180_000, "codec": "h264"})
        frame = Image.fromarray(videos.picture(0, 1920, 1080))

        def __enter__(self):
            return self

        def __exit__(self, *exc_info):
            pass

        def seconds(self, numbers):
            return np.asarray(numbers) / 25

        def frames(self, numbers):
            for number in sorted(numbers):
                asked.append(number)
                yield number, pictures.Frame("rgb", (np.asarray(self.frame),))

    monkeypatch.setattr(pictures, "open_video", lambda path, decoder, guard: Long())
    tracemalloc.start()
    write_report([row, row], folder / "page.html")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(asked) == 2 * 4
    assert 1777 * 50 + 25 in asked
    assert most < 100 << 20
    data = data_of(folder / "page.html")
    assert len(data["files"][0]["values"]) == POINTS_OF_A_FILE
    assert min(data["files"][0]["values"]) == 3.0
    assert (folder / "page.html").stat().st_size < 2_000_000


def test_a_long_timeline_is_read_from_csv(tmp_path):
    """Its cell is longer than what Python's csv takes by default."""
    row = Row("x", score=0.1, clips=[0.1234567890123456] * 9000, times=[1.0] * 9000, model="m", settings="s")
    (tmp_path / "x.csv").write_bytes(table([row], ".csv"))
    assert read_table(tmp_path / "x.csv") == [row]


def test_reduced_keeps_the_lowest_of_each_stretch():
    times, values = reduced(list(range(10)), [5, 1, 7, 7, 9, 8, 3, 2, 4, 4], 5)
    assert (times, values) == ([1, 2, 5, 7, 8], [1, 7, 8, 2, 4])
    assert reduced([1, 2], [3, 4], 16) == ([1, 2], [3, 4])


def test_pictures_move_out_of_the_page(tmp_path):
    store = PictureStore(tmp_path / "a.html", limit=10)
    assert [store.add(b"12345"), store.add(b""), store.add(b"67890")] == [0, -1, 1]
    assert store.sources()[0].startswith("data:image/jpeg;base64,")
    assert store.add(b"x") == 2
    assert store.sources() == [f"a_files/00000{k}.jpg" for k in range(3)]
    assert (tmp_path / "a_files" / "000001.jpg").read_bytes() == b"67890"
    again = PictureStore(tmp_path / "a.html")
    again.add(b"12345")
    again.close()
    assert not (tmp_path / "a_files").exists()
    (tmp_path / "a_files").mkdir()
    (tmp_path / "a_files" / "mine.txt").touch()
    again.close()
    assert (tmp_path / "a_files" / "mine.txt").exists()
    (tmp_path / "b_files").touch()
    with pytest.raises(OutputError, match="b_files cannot be made"):
        PictureStore(tmp_path / "b.html", limit=0).add(b"1")


def test_scale_comes_from_the_metadata(tokens):
    model = load_model(tokens, device="cpu")
    scale = scale_of(model)
    assert (scale.name, scale.low, scale.high) == ("pretend VMAF", 0.0, 100.0)
    assert scale(1.5) == 65.0
    assert scale.limits([120.0]) == (0.0, 120.0)
    assert scale_of_rows(report_rows.rows(2), None).name == "the model's own scale"
    model.metadata = {**model.metadata, "calibration": {**model.metadata["calibration"], "range": [1, 0]}}
    with pytest.raises(Exception, match=r"calibration range = \[1, 0\]"):
        scale_of(model)
    del model.metadata["calibration"]
    assert scale_of(model)(1.5) == 1.5
    assert "random weights" in meaning(Scale("x"), Row("x", model="RANDOM WEIGHTS"), None)[0]


def test_packaged_models_limits_are_on_its_page():
    model = load_model(device="cpu")
    said = " ".join(meaning(scale_of(model), None, model))
    assert "not for" in said
    assert "**" not in said


def test_no_tag_ends_within_the_data():
    text = page("report", "x", {"name": "</script><!--\u2028&"}, beside=False)
    assert text.count("</script>") == 2
    assert "\\u003c/script\\u003e\\u003c!--\\u2028\\u0026" in text


def test_no_rows(tmp_path):
    with pytest.raises(InputError, match="no rows"):
        write_report([], tmp_path / "x.html")
