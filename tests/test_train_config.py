"""Settings of a training run: the shipped files, the command, sweeps, and what is refused."""

import re

import pytest
import torch
from training_runs import config

from sama import train as train_command
from sama.labels import Item
from sama.train import CONFIGS, configure
from sama.training.config import Config, Data, LabelledSet, Model, Optim, Sampling, Sweep
from sama.training.ranks import Ranks
from sama.training.setup import make_feed
from sama.training.sweep import parse_sampling, run

pytestmark = pytest.mark.usefixtures("few_draws")


def test_settings_of_statistics_are_checked(labels, tmp_path):
    with pytest.raises(ValueError, match="are for a nano video model"):
        config(labels, tmp_path, model=Model(size="tiny"), optim={"statistics_epochs": 1})
    with pytest.raises(ValueError, match="are for a nano video model"):
        config(labels, tmp_path, model=Model(size="tiny", tokens=False))
    with pytest.raises(ValueError, match=r"must be fewer than optim\.epochs, .* got 2 and 2"):
        config(labels, tmp_path, optim={"statistics_epochs": 2})
    with pytest.raises(ValueError, match="for a model that starts from random weights"):
        config(labels, tmp_path, model=Model(size="nano", weights="some.pth"), optim={"statistics_epochs": 1})


def test_settings_of_fragments_and_of_a_pretrained_stem_are_checked(labels, tmp_path):
    lite, image = Model(size="lite"), Model(kind="image", size="lite")
    with pytest.raises(ValueError, match=r"at most sampling\.grid; got 9x5 of 7x7 and a lite model on 32x32"):
        config(labels, tmp_path, model=lite, data=Data(labels=str(labels), fragments=(9, 5)), sampling=Sampling())
    with pytest.raises(ValueError, match=r"data\.fragments of images must be square; got 1x2"):
        config(labels, tmp_path, model=image, data=Data(labels=str(labels), fragments=(1, 2)), sampling=Sampling())
    with pytest.raises(ValueError, match=r"data\.fragments is for a model of size pico or lite"):
        config(labels, tmp_path, data=Data(labels=str(labels), fragments=(5, 5)), sampling=Sampling())
    large = Sampling(grid=(4, 4), fragment=(56, 56))
    with pytest.raises(ValueError, match=r"on fragments of whole squares of 32x32, .* model on 56x56"):
        config(labels, tmp_path, model=lite, data=Data(labels=str(labels), fragments=(2, 2)), sampling=large)
    with pytest.raises(ValueError, match=r"starts a model of size lite, without model\.weights; got size nano"):
        config(labels, tmp_path, model=Model(size="nano", pretrained="some.pth"))
    with pytest.raises(ValueError, match=r"got size lite and packaged"):
        config(labels, tmp_path, model=Model(size="lite", pretrained="some.pth", weights="packaged"))


def test_a_sweep_compares_samplings(labels, tmp_path):
    told = config(
        labels,
        tmp_path / "sweep",
        sweep=Sweep(samplings=["sama", "resize 1x1 32x32"], seeds=[0, 1]),
        optim={"epochs": 1},
    )
    assert len(run(told)) == 4
    assert {path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir()} == {
        *("sama-0", "sama-1", "resize-1x1-32x32-0", "resize-1x1-32x32-1")
    }
    table = (tmp_path / "sweep" / "sweep.md").read_text()
    assert "| sama | test | 2 |" in table
    assert "| resize 1x1 32x32 | val | 2 |" in table
    assert "| sama | val | best |" in table
    assert "| sama | test | last |" in table
    assert "| sama | test | best |" not in table  # it was scored at the end alone
    with pytest.raises(ValueError, match=r"sweep\.samplings takes"):
        parse_sampling("resize 1x1", told)


def test_shipped_configs_are_whole(tmp_path, monkeypatch):
    """Every one is parsed, says at its top what it costs and gives and how it is run, and that command names it."""
    names = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    assert "demo" in names
    for name in names:
        told = configure(["--config", name])
        assert isinstance(told, Config)
        text = (CONFIGS / f"{name}.yaml").read_text()
        assert "Cost: " in text
        assert "Expected" in text or "Result" in text
        assert re.search(r"Command: python -m sama.train" + ("\n" if name == "demo" else f" --config {name}\\b"), text)
    assert configure([]) == configure(["--config", "demo"])
    assert configure(["--config=demo", "--optim.epochs", "9"]).optim.epochs == 9
    lsvq = configure(["--config", "lsvq"]).data
    assert ([one.name for one in lsvq.tests], lsvq.validate) == (["test", "1080p"], ["test", "1080p"])
    other = configure(["--config", "lsvq", "--data.tests", "[{labels: F, root: D, name: test}]"])
    assert other.data.tests == [LabelledSet("F", "D", "test")]
    (tmp_path / "demo").mkdir()  # a folder of that name is in nobody's way
    monkeypatch.chdir(tmp_path)
    assert configure([]).data.demo == "small"


def test_shipped_batches_are_shared_by_eight_ranks():
    """As the README's command has it."""
    for path in CONFIGS.glob("*.yaml"):
        told = configure(["--config", path.stem])
        items = [Item(f"{k}.mp4", 0.0, str(k)) for k in range(99)]
        shares = [make_feed(told, items, Ranks(k, 8, torch.device("cpu")), train=True) for k in (0, 7)]
        assert all(len(share.batches()[0]) > 0 for share in shares)


def test_what_is_told_wrongly_is_refused(tmp_path, capsys):
    for arguments in (["--optim.epoch", "3"], ["--optim.epochs", "many"], ["--config", "none.yaml"]):
        with pytest.raises(SystemExit):
            configure(["--data.demo", "small", *arguments])
    with pytest.raises(ValueError, match=r"optim\.epochs must be at least 1; got 0"):
        Config(data=Data(demo="small"), optim=Optim(epochs=0))
    with pytest.raises(ValueError, match=r"optim\.batch must be at least 2; got 1"):  # of videos: losses compare them
        Config(data=Data(demo="small"), optim=Optim(batch=1))
    assert Config(data=Data(demo="small"), model=Model(kind="image"), optim=Optim(batch=1)).optim.batch == 1
    (tmp_path / "mine.yaml").write_text("optim: {epoch: 3}\ndata: {demo: small}\n")
    with pytest.raises(SystemExit):
        configure(["--config", str(tmp_path / "mine.yaml")])
    with pytest.raises(ValueError, match=r"one of them; got data\.labels='', data\.demo=''"):
        Config()


def test_mistakes_are_said_in_a_line(capsys):
    assert train_command.main(["--data.demo", "small", "--optim.epochs", "0"]) == 2
    assert "optim.epochs must be at least 1; got 0" in capsys.readouterr().err
