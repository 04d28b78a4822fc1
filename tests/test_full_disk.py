"""Training on a disk that is full: one line names the file, the last resume point is kept, nothing half-written stays.

Tables and journals on such a disk: `test_journal.py`.
"""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_journal import small_disk  # noqa: F401 - a fixture
from training_runs import assert_equal_weights

from sama.train import main
from sama.training import loop

pytestmark = pytest.mark.usefixtures("few_draws")


@pytest.fixture
def common(labels):
    return [
        *("--data.labels", str(labels), "--model.size", "nano", "--sampling.grid", "[2,2]"),
        *("--sampling.fragment", "[16,16]", "--sampling.clip_len", "4", "--sampling.interval", "1"),
        *("--sampling.num_clips", "1", "--optim.batch", "4", "--optim.epochs", "2"),
        *("--device", "cpu", "--checkpoint_minutes", "0", "--workers", "1"),
    ]


def names(folder: Path) -> set[str]:
    """What lies in a folder, events of TensorBoard by one name."""
    return {"events" if path.name.startswith("events.") else path.name for path in folder.iterdir()}


def test_the_last_resume_point_is_kept(common, tmp_path, small_disk, monkeypatch, capsys):  # noqa: F811
    """The disk is full at the third resume point, in the second epoch; then there is room again."""
    assert main([*common, "--out", str(tmp_path / "whole")]) == 0
    out, save, saved = tmp_path / "full", loop.save_state, []

    def save_until_full(folder, *state):
        if len(saved) == 2:
            small_disk(saved[-1] // 2)
        save(folder, *state)
        saved.append((folder / "last.pt").stat().st_size)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_state", save_until_full)
        assert main([*common, "--out", str(out)]) == 2
    small_disk(None)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.splitlines()[-1] == (
        f"sama.train: {out / 'last.pt'} cannot be written: File too large; the file that was there is kept; "
        "the same command with --resume true continues"
    )
    assert names(out) == {"events", "last.pt", "best.safetensors"}
    assert (out / "last.pt").stat().st_size == saved[-1]
    assert main([*common, "--out", str(out), "--resume", "true"]) == 0
    assert_equal_weights(tmp_path / "whole", out)


def test_events_name_their_file(common, tmp_path, small_disk, capsys):  # noqa: F811
    """They are the first that is written, at each step."""
    small_disk(150)
    assert main([*common, "--out", str(tmp_path)]) == 2
    small_disk(None)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    (events,) = tmp_path.iterdir()
    assert said.splitlines()[-1] == (
        f"sama.train: {events} cannot be written: File too large; the same command with --resume true continues"
    )


def test_tensorboard_reads_the_events(common, tmp_path):
    assert main([*common, "--out", str(tmp_path)]) == 0
    events = EventAccumulator(str(tmp_path)).Reload()
    assert {"train/loss", "train/learning rate", "epoch/clips per second", "val/srocc"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/loss")] == [0, 1, 2, 3]
