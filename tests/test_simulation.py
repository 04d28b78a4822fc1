"""The simulation of decoding: the engines are busy from fourteen sessions on, and the table is its own."""

import csv
import importlib
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent / "bench"


@pytest.fixture(scope="module")
def simulation():
    sys.path.insert(0, str(BENCH))
    try:
        import simulate_decoding
    finally:
        sys.path.remove(str(BENCH))
    return simulate_decoding


def test_engines_are_busy_from_fourteen_sessions_on(simulation):
    """A mixed corpus; seven engines of 730 pictures a second. The table is of 1,000 files, whose packets are counted
    here; 300 of them are decoded."""
    rates = simulation.Rates()
    assert (rates.engines, rates.fps, simulation.FILES) == (7, 730.0, 1000)
    files = simulation.corpus(simulation.FILES)
    assert len({file.kind for file in files}) == len(simulation.CORPUS)
    with simulation.installed(simulation.VirtualGpu(rates, simulation.VirtualTime(1))):
        nvcodec = importlib.import_module("sama.decode.nvcodec")
        packets = [sum(bool(unit.data) for unit in file.units(nvcodec)) for file in files]
    row = simulation.simulate(files[:300], 14, 21, rates)
    assert 0.95 <= row.share <= 1
    assert row.made + row.reused == row.files == 300
    assert row.reused > 180
    assert row.packets == sum(packets[:300])
    with open(BENCH / "results" / "simulate-decoding.csv", newline="") as file:
        table = [entry for entry in csv.DictReader(file) if entry["case"] == simulation.AS_SCORED]
    assert [int(entry["sessions"]) for entry in table] == [1, 7, 14, 21]
    assert {int(entry["packets"]) for entry in table} == {sum(packets)}
    assert all(float(entry["share"]) >= 0.95 for entry in table[2:])


def test_fewer_sessions_use_less(simulation):
    files = simulation.corpus(60)
    shares = [simulation.simulate(files, sessions, sessions, simulation.Rates()).share for sessions in (1, 4, 14)]
    assert shares == sorted(shares)
    assert shares[0] < 1 / 7
