"""The packaged model: a first command, without weights, puts versions of a clip in order."""

import csv

import pytest

from sama import cli
from sama.corpus.codec import Stream, write_video
from sama.corpus.degrade import KINDS, UNSEEN
from sama.corpus.sources import CONTENTS, SOURCES
from sama.model import DEFAULT_WEIGHTS
from sama.models import build

NAME = "astronaut"  # of the test split: never trained on


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """Versions of one clip, scored by the command, by name."""
    folder = tmp_path_factory.mktemp("versions")
    frames = CONTENTS[NAME].pristine(64)
    versions = {"pristine-0": Stream(frames)}
    for kind, strengths in {"x264": (30, 44), "blur": (1.2, 4), "noise": (8, 28), "resize": (2.2, 6)}.items():
        for n, strength in enumerate(strengths):
            versions[f"{kind}-{n}"] = KINDS[kind].apply(frames, strength, NAME)
    for name, stream in versions.items():
        write_video(str(folder / f"{name}.mp4"), stream)
    assert cli.main(["score", str(folder), "--device", "cpu", "--out", str(folder / "scores.csv")]) == 0
    with open(folder / "scores.csv", newline="") as file:
        return {row["path"].rpartition("/")[2][:-4]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize("kind", ["x264", "blur", "noise", "resize"])
def test_a_clip_and_its_degraded_copies_come_in_order(scores, kind):
    clean, weak, strong = (float(scores[name]["mos"]) for name in ("pristine-0", f"{kind}-0", f"{kind}-1"))
    assert clean > weak > strong
    assert clean - strong > 10


def test_scores_say_whose_scale_they_are_on(scores):
    assert {row["mos_scale"] for row in scores.values()} == {"demo"}
    assert all(0 <= float(row["mos"]) <= 100 for row in scores.values())
    assert all(row["model"].startswith("default.safetensors (our own, sha256 ") for row in scores.values())
    assert {len(row["clips"].split(";")) for row in scores.values()} == {1}  # 64 frames hold one whole clip


def test_the_file_is_small_and_its_card_names_every_source():
    assert DEFAULT_WEIGHTS.stat().st_size < 10e6
    card = DEFAULT_WEIGHTS.with_suffix(".md").read_text()
    for name, source in SOURCES.items():
        assert f"- `{name}`: " in card
        assert source.license in card
    for kind in KINDS:
        assert f"| {kind} | {'no' if kind in UNSEEN else 'yes'} | " in card
    metadata = build(DEFAULT_WEIGHTS).metadata
    assert metadata["whole_clips"]
    assert f"seed {metadata['training']['seed']}" in card
