"""Readers of labels, tables, metadata and checkpoints, fed with mutated input: a `SamaError`, or what it says; no more.

The inputs are the same every time; `SAMA_FUZZ=1` tries fifty times as many.
"""

from __future__ import annotations

import json
import os
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_models import save_nano

from sama.errors import CheckpointError, InputError, OutputError, SamaError
from sama.labels import LabelError, read_labels
from sama.model import load_model
from sama.tables import FORMATS, Row, read_table, table

TIMES = 50 if os.environ.get("SAMA_FUZZ") else 1
SETTINGS = {"mode": "sama", "grid": [7, 7], "fragment": [32, 32], "clip_len": 4, "interval": 2, "num_clips": 1}
CALIBRATION = {"scale": "x", "kind": "linear", "slope": 1.0, "intercept": 2.0}
LABELS = [
    b'path,mos,content\na.mp4,1,x\n"b,c.mp4",2.5,y\n',
    b"a.mp4, 10, 25, 3.2\nb.mp4,-1,-1,2\n",
    b"a.jpg 3\nb.jpg 4\n",
    "\ufeffpath;mos\nä;1\n".encode("utf-16-le"),
]
ODD = (b'"', b"\r", b"\n", b"\0", b",", b"\xff", b"1e999", b"nan", b"9" * 5000, b"x" * 140_000, b"[" * 3000, b"null")


def mutated(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    """One of the seeds with a few bytes changed, put in, left out or doubled."""

    @st.composite
    def draw_one(draw):
        data = bytearray(draw(st.sampled_from(seeds)))
        for _ in range(draw(st.integers(1, 5))):
            at, kind = draw(st.integers(0, len(data))), draw(st.integers(0, 3))
            if kind == 0:
                data[at : at + 1] = bytes([draw(st.integers(0, 255))])
            elif kind == 1:
                data[at:at] = draw(st.sampled_from(ODD))
            elif kind == 2:
                del data[at : at + draw(st.integers(1, 9))]
            else:
                data += data[at : at + 20]
        return bytes(data)

    return draw_one()


def fuzzed(examples: int):
    return settings(max_examples=examples * TIMES, deadline=None, derandomize=True, database=None)


@fuzzed(100)
@given(mutated(LABELS))
def test_labels(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzzed.csv"
    path.write_bytes(data)
    try:
        assert read_labels(path)
    except LabelError as error:
        assert str(path) in str(error)  # noqa: PT017


ROWS = [Row("a.mp4", score=0.5, clips=[0.5, 1.0], times=[1.0, 2.0], frames=9, model="m"), Row("é\r", status="error")]


@fuzzed(100)
@given(st.sampled_from(FORMATS).flatmap(lambda form: st.tuples(st.just(form), mutated([table(ROWS, form)]))))
def test_tables(tmp_path_factory, case):
    form, data = case
    path = tmp_path_factory.getbasetemp() / f"fuzzed{form}"
    path.write_bytes(data)
    try:
        rows = read_table(path)
    except OutputError as error:
        assert str(path) in str(error)  # noqa: PT017
    else:
        assert table(rows, form)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_nano(tmp_path_factory.mktemp("fuzz") / "good.safetensors", SETTINGS | {"calibration": CALIBRATION})


KEYS = ["kind", "size", "options", "format", *SETTINGS, "whole_clips", "calibration"]
VALUES = [None, 5, -1, 2.5, "x", [], [1], [1, "x"], {}, {"a": 1}, True, 10**30, float("nan"), [[1]]]
CALIBRATIONS = [
    {"scale": "x", "kind": kind, "slope": value, "intercept": 1.0, "beta": beta}
    for kind in ("linear", "logistic", 5, [])
    for value in (None, "a", [], 1e400)
    for beta in (5, [1], [1, 2, 3, "a"], [1, 2, 3, 0], None)
]


@pytest.mark.parametrize("key", KEYS)
def test_metadata_of_every_type(weights, tmp_path, key):
    with safe_open(weights, "pt") as file:
        metadata = dict(file.metadata())
    tensors = load_file(weights)
    for value in [*VALUES, *(CALIBRATIONS if key == "calibration" else ())]:
        save_file(tensors, tmp_path / "x.safetensors", metadata=metadata | {key: json.dumps(value)})
        try:
            model = load_model(tmp_path / "x.safetensors", "cpu")
        except CheckpointError as error:
            assert "x.safetensors" in str(error)  # noqa: PT017
        except InputError as error:
            assert "unknown mode" in str(error)  # noqa: PT017
        else:
            assert repr(model)
            assert model.clip_indices(40).shape[1] == model.clip_len
            model.mos(0.5)


@pytest.mark.filterwarnings("ignore")
def test_tensors_of_every_kind(weights, tmp_path):
    tensors = load_file(weights)
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 2)
    plain = tensors[name]
    kinds = {
        "sparse": plain.to_sparse(),
        "CSR": plain.to_sparse_csr(),
        "meta": plain.to("meta"),
        "quantised": torch.quantize_per_tensor(plain, 0.1, 0, torch.qint8),
        "complex": plain.to(torch.complex64),
        "whole numbers": plain.to(torch.int8),
        "8 bits": plain.to(torch.float8_e4m3fn),
        "scalar": torch.tensor(1.0),
        "none": plain[:0],
        "text": "x",
        "dictionary": {"a": plain},
    }
    for kind, tensor in kinds.items():
        for content in (tensors | {name: tensor}, {"state_dict": tensors | {name: tensor}}):
            torch.save(content, tmp_path / f"{kind}.pth")
            with pytest.raises(SamaError, match=f"{kind}.pth"):
                load_model(tmp_path / f"{kind}.pth", "cpu")


@pytest.mark.parametrize("form", ["safetensors", "pth"])
@pytest.mark.filterwarnings("ignore")
def test_bytes_of_checkpoints(weights, tmp_path, form):
    whole = weights.read_bytes()
    if form == "pth":
        torch.save(load_file(weights), tmp_path / "x.pth")
        whole = (tmp_path / "x.pth").read_bytes()
    for seed in range(12 * TIMES):
        draw, data = random.Random(seed), bytearray(whole)
        for _ in range(draw.randrange(1, 8)):
            data[draw.randrange(min(len(data), 2000) if draw.random() < 0.7 else len(data))] = draw.randrange(256)
        path = tmp_path / f"x.{form}"
        path.write_bytes(data[: draw.randrange(len(data))] if draw.random() < 0.2 else data)
        try:
            load_model(path, "cpu")
        except SamaError as error:
            assert str(path) in str(error)  # noqa: PT017
