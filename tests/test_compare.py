"""`sama compare`: windows matched in time by content, paired differences with intervals, verdicts, rates."""

import json
import warnings

import av
import numpy as np
import pytest
import videos
from scipy import stats
from small_models import save_sharpness

from sama.cli import main
from sama.decode.pyav import PyavVideo
from sama.errors import InputError
from sama.model import load_model
from sama.report import ladders, statistics
from sama.report.comparison import NOISE_SHARE, Settings, compare
from sama.report.matching import find_offset, probes_of
from sama.report.scale import scale_of


def scene(n, width, height):
    """Frame n of a moving scene without repetition, uint8 [H, W, 3]; its sharp detail is what encodes lose."""
    y, x = np.mgrid[:height, :width] / height
    rng = np.random.default_rng(3)
    image = np.zeros((height, width))
    for k in range(12):
        phase, speed, size = rng.uniform(0, 6), rng.uniform(-0.05, 0.05), rng.uniform(0.05, 0.3)
        cx, cy = 0.9 + 0.7 * np.sin(phase + speed * n), 0.5 + 0.4 * np.cos(1.7 * phase + 0.8 * speed * n)
        image += (30 + 10 * k) * (((x - cx) ** 2 + (y - cy) ** 2) < size**2)
    image += 20 * np.sin(x * 90 + n * 0.3) * np.sin(y * 70)
    return np.repeat(np.clip(image, 0, 255).astype(np.uint8)[..., None], 3, 2)


def write(path, *, first=0, count=100, size=(128, 72), every=1, rate=25, crf=18, codec="libx264", picture=scene):
    """Frames first, first + every, ... of a scene, `rate` a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options={"crf": str(crf), "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        if codec == "libx265":
            stream.options = {"crf": str(crf), "preset": "ultrafast", "x265-params": "log-level=none"}
        for k in range(count):
            image = picture(first + k * every, *size)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def remux(source, target, start=0):
    """The same packets in another container; times begin at `start` seconds."""
    with av.open(str(source)) as given, av.open(str(target), "w") as made:
        stream = made.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.dts is None:
                continue
            shift = round(start / packet.time_base)
            packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
            made.mux(packet)
    return target


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Of a model that prefers what is sharp: how well the packaged one scores is measured elsewhere."""
    return save_sharpness(tmp_path_factory.mktemp("weights") / "sharpness.safetensors")


@pytest.fixture(scope="module")
def model(weights):
    return load_model(weights, device="cpu")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write(tmp_path_factory.mktemp("source") / "a.mp4")


@pytest.fixture(scope="module")
def ladder(source):
    """The source's folder with encodes: crf 30 and 40 of H.264."""
    for crf in (30, 44):
        write(source.with_name(f"crf{crf}.mp4"), crf=crf)
    return source.parent


def offset(a, b, most=5.0):
    with PyavVideo(str(a)) as first, PyavVideo(str(b)) as other:
        return find_offset(probes_of(first), first.info, other, most)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"crf": 44}, 0.0),
        ({"first": 30, "count": 70}, -1.2),
        ({"first": 57, "count": 43, "crf": 40, "size": (64, 36)}, -2.28),
        ({"every": 2, "count": 50, "rate": "25/2"}, 0.0),
        ({"first": -40, "count": 140}, 1.6),
    ],
    ids=["encode", "cut", "cut-small-encode", "half-rate", "longer"],
)
def test_offset_is_found_by_content(source, tmp_path, changes, expected):
    from fractions import Fraction

    changes = {key: Fraction(value) if key == "rate" else value for key, value in changes.items()}
    found = offset(source, write(tmp_path / "b.mp4", **changes))
    assert found.seconds == pytest.approx(expected, abs=0.021)
    assert found.moving
    assert found.correlation > 0.9


def test_of_stills_no_offset_is_claimed(tmp_path):
    a = write(tmp_path / "a.mp4", picture=lambda n, w, h: scene(0, w, h))
    b = write(tmp_path / "b.mp4", picture=lambda n, w, h: scene(0, w, h), crf=40)
    found = offset(a, b)
    assert (found.seconds, found.moving) == (0.0, False)


def test_other_contents_are_refused(source, tmp_path, model):
    other = write(tmp_path / "other.mp4", picture=videos.picture)
    with pytest.raises(InputError, match=r"other\.mp4 does not seem to show what .*a\.mp4 shows.*--offset"):
        compare([source, other], model)
    assert len(compare([source, other], model, Settings(offset_seconds=0)).times) >= 4


def test_a_long_file_is_searched_in_a_few_places(source, monkeypatch):
    """Of two hours, what is decoded to find the offset is bounded: probes, and what is searched around them."""

    class Long:
        """A video of two hours: gives the frames of a scene, and counts them."""

        def __init__(self, shift):
            self.shift, self.count, self.frames_given = shift, 2 * 3600 * 25, 0
            self.info = type(
                "Info", (), {"num_frames": self.count, "fps": 25.0, "duration_seconds": 7200.0, "path": "long.mp4"}
            )

        def seconds(self, numbers):
            return np.asarray(numbers) / 25

        def frames(self, numbers):
            from sama.frames import Frame

            for n in numbers:
                self.frames_given += 1
                yield n, Frame("rgb", (scene(n - self.shift, 64, 36),))

    first, other = Long(0), Long(15)
    found = find_offset(probes_of(first), first.info, other, 10.0)
    assert found.seconds == pytest.approx(0.6, abs=1e-6)
    assert first.frames_given <= 3 * 6 * 25 + 3
    assert other.frames_given <= 3 * (6 + 2 * 1) * 25 + 6


def test_a_remuxed_file_is_no_difference(source, tmp_path, model):
    copies = [remux(source, tmp_path / name, start) for name, start in (("b.mkv", 0), ("c.ts", 0), ("d.mp4", 2))]
    result = compare([source, *copies], model)
    assert [d.verdict for d in result.differences] == ["equal"] * 3
    assert result.verdict.startswith("no difference: A and B have the same score in all")
    assert result.below(0) == []
    assert result.extremes() == []


def test_windows_are_at_the_same_content(source, tmp_path, model):
    """A cut version's windows show what the source's do, so that equal frames give nearly equal scores."""
    cut = write(tmp_path / "cut.mp4", first=25, count=75, crf=18)
    result = compare([source, cut], model)
    a, b = result.versions
    np.testing.assert_allclose(a.seconds - b.seconds, 1.0, atol=0.021)
    assert a.seconds[0] >= 1.0 + 32 / 25 - 0.021
    np.testing.assert_allclose(a.seconds, result.times, atol=0.021)


def test_verdicts_and_swapping(ladder, model):
    """The worse encode is told from the source, whichever comes first, by the same amount."""
    source, worse = ladder / "a.mp4", ladder / "crf44.mp4"
    one, two = compare([source, worse], model), compare([worse, source], model)
    assert [d.verdict for d in one.differences] == ["worse"]
    assert [d.verdict for d in two.differences] == ["better"]
    assert one.verdict.startswith("A is better by ")
    assert two.verdict == one.verdict.replace("A is", "B is")
    d = one.differences[0]
    assert d.low < d.mean < d.high < 0
    assert one.below(d.high + 0.01) == ["B"]
    assert one.below(d.high - 0.01) == []
    assert one.floor == pytest.approx(NOISE_SHARE * (scale_of(model).high - scale_of(model).low))
    assert compare([source, worse], model, Settings(floor=1000)).verdict.startswith("no difference can be told")


def test_every_and_the_stretch_that_all_show(source, tmp_path, model):
    cut = write(tmp_path / "cut.mp4", first=30, count=70)
    times = compare([source, cut], model, Settings(every_seconds=0.5)).times
    np.testing.assert_allclose(np.diff(times), 0.5)
    assert times[0] == pytest.approx(1.2 + 1.28, abs=0.021)
    short = write(tmp_path / "short.mp4", count=20)
    assert len(compare([short, short], model).times) == 1


def test_interval_is_that_of_students_t():
    """Of differences that are independent and normal, the mean interval is about as wide as Student's t's."""
    rng = np.random.default_rng(0)
    for n, tolerance in ((12, 0.3), (40, 0.12)):
        ratios, hits = [], 0
        for k in range(60):
            d = rng.normal(1, 2, n)
            low, high = statistics.interval(d, seed=k, draws=1000)
            t = stats.t.interval(0.95, n - 1, d.mean(), stats.sem(d))
            ratios.append((high - low) / (t[1] - t[0]))
            hits += low <= 1 <= high
        assert np.mean(ratios) == pytest.approx(1, abs=tolerance)
        assert hits >= 49


def test_interval_of_few_and_of_equal_windows():
    assert statistics.interval(np.array([2.5])) == (2.5, 2.5)
    assert statistics.interval(np.full(9, -1.0)) == (-1.0, -1.0)
    low, high = statistics.interval(np.array([1.0, 3.0]))
    assert (low, high) == (1.0, 3.0)  # n = 2: no farther than what was seen
    assert statistics.interval(np.arange(9.0)) == statistics.interval(np.arange(9.0))
    assert statistics.widened(2.0, 1.0, 4.0, 0.0) == (1.0, 4.0)
    assert statistics.widened(2.0, 2.0, 2.0, 1.5) == (0.5, 3.5)


def test_hull():
    rates, scores = [100, 200, 400, 800, 300, 1600], [20, 50, 60, 80, 30, 75]
    assert ladders.hull(rates, scores) == [0, 1, 3]
    assert ladders.hull([100], [50]) == [0]
    assert ladders.hull([200, 100], [50, 60]) == [1]


def test_bjontegaard_deltas():
    rates, scores = [100, 200, 400, 800], [30, 50, 65, 75]
    (same,) = ladders.deltas({"x": (rates, scores), "y": ([0.8 * rate for rate in rates], scores)})
    assert same.rate_percent == pytest.approx(-20)
    (better,) = ladders.deltas({"x": (rates, scores), "y": (rates, [score + 3 for score in scores])})
    assert better.quality == pytest.approx(3)
    (few,) = ladders.deltas({"x": (rates, scores), "y": ([100, 200, 300, 400], [30, 40, 35, 50])})
    assert few.rate_percent is None
    assert "each curve needs 4 points of rising quality; there are 4 and 3" in few.reason
    assert few.left_out == 1
    (apart,) = ladders.deltas({"x": (rates, scores), "y": (rates, [1, 2, 3, 4])})
    assert apart.reason == "the curves have no quality in common"


def test_without_bjontegaard(monkeypatch):
    from sama.errors import MissingLibraryError

    monkeypatch.setattr(ladders, "find_spec", lambda name: None)
    points = [100, 200, 400, 800], [30, 50, 65, 75]
    with pytest.raises(MissingLibraryError, match=r"pip install 'sama-vqa\[compare\]'"):
        ladders.deltas({"x": points, "y": points})


def test_command_text_json_page_and_status(ladder, weights, capsys, tmp_path):
    a, b, c = (str(ladder / name) for name in ("a.mp4", "crf30.mp4", "crf44.mp4"))
    page, out = tmp_path / "compare.html", tmp_path / "compare.json"
    given = ["--weights", str(weights), "--device", "cpu"]
    assert main(["compare", a, b, c, *given, "--report", str(page), "-o", str(out), "--fail-below", "-1"]) == 1
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert [line[0] for line in lines[1:4]] == ["A", "B", "C"]
    assert "C is below the first file by more than --fail-below allows" in captured.err
    found = json.loads(out.read_text())
    assert found["verdict"] in lines
    assert found["failed"][-1] == "C"
    assert [file["label"] for file in found["files"]] == ["A", "B", "C"]
    assert found["files"][0]["bitrate"] > found["files"][2]["bitrate"] > 0
    assert found["order"][-1] == "C"
    assert found["scale"] == {"name": "sharpness", "low": 0, "high": 100}
    text = page.read_text()
    assert text.count("data:image/jpeg;base64,") == 12  # four moments of three files
    with warnings.catch_warnings():
        assert main(["compare", a, a, *given, "--json", "--fail-below", "0"]) == 0
    assert json.loads(capsys.readouterr().out)["differences"][0]["verdict"] == "equal"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("{0}", "give 2 to 26 files to compare; got 1"),
        ("{0} {0} --every 0", "--every must be more than 0"),
        ("{0} {0} --floor -1", "--floor must be at least 0"),
        ("{0} {0} --offset 99", "no moment in common"),
        ("{0} {0} --report x.png", "a page's name must end in .html"),
        ("{0} {0} -o none/x.json", "there is no folder none"),
        ("{0} none.mp4", "none.mp4: no such file"),
        ("{0} {0} --decoder nonsense", "unknown decoder"),
    ],
)
def test_bad_input(source, capsys, words, said):
    assert main(["compare", *words.format(source).split(), "--device", "cpu"]) == 2
    assert said in capsys.readouterr().err
