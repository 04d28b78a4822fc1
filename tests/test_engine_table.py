"""`bench/engines.py`: the table goes on where it was left, and is made of its rows. Nothing is measured."""

import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent / "bench"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import engines
    import measure

    def rows(case, threads, repeats):
        title, names = f"{case}, {threads} threads", [provider.name for provider in engines.PROVIDERS[case]]
        return [measure.Row(title, "network", name, "clips/s", 1, 2, 3, repeats, 1) for name in names]

    def memory(case, provider, threads):
        return [measure.Row(f"{case}, {threads} threads", "memory", provider.name, "MiB", 7, 7, 7, 1)]

    monkeypatch.setattr(engines, "speed_rows", rows)
    monkeypatch.setattr(engines, "file_rows", lambda *arguments: [])
    monkeypatch.setattr(engines, "memory_row", memory)
    monkeypatch.setattr(engines, "there", lambda provider: True)
    yield engines
    for name in ("engines", "measure", "media"):
        sys.modules.pop(name)


def test_a_table_goes_on_where_it_was_left(bench, tmp_path, monkeypatch, capsys):
    table = tmp_path / "table.csv"

    def run(minutes):
        arguments = ["--cases", "swin-t", "--threads", "2", "--repeats", "3", "--minutes", minutes, "--out", str(table)]
        monkeypatch.setattr(sys, "argv", ["engines.py", *arguments])
        return bench.main()

    assert run("1") == 1
    assert "swin-t, 2 threads network torchvision swin3d_t: not begun" in capsys.readouterr().out
    assert not table.exists()
    assert run("60") == 0
    lines = table.read_text().splitlines()
    count = len(bench.PROVIDERS["swin-t"])
    assert len(lines) == 1 + 2 * count
    assert run("60") == 0
    assert table.read_text().splitlines() == lines
    made = table.with_suffix(".md").read_text()
    assert "| sama, eager, float32 | 2 | 1 to 3 | 1 | 7 |  |" in made
    assert made.count("| sama, ") == count - 2
