"""Files that are not local: the same scores to the bit through real protocols on loopback, and a reason for whatever
goes wrong on the way."""

import dataclasses
import io
import json
import os
import random
import re
import tarfile

import fsspec
import numpy as np
import pytest
import videos
from PIL import Image
from servers import file_server, listener, s3_server
from test_containers import SCRIPTS

import sama
from sama import cli, storage
from sama.decode import open_video
from sama.decode.images import read_image
from sama.errors import DecodeError, InputError, MissingLibraryError
from sama.files import VIDEO_SUFFIXES, expand
from sama.models import ImageQuality, save_weights
from sama.scoring import score_files
from sama.tables import read_table

pytest.importorskip("aiohttp")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:(botocore|moto|boto3|werkzeug)")

NAMES = ("h264-open-gop.mp4", "h264-vfr.mkv", "h264.avi", "h264.ts", "mpeg4.mp4", "mjpeg.avi")
FILES = int(os.environ.get("SAMA_FAULTS", "12"))


@pytest.fixture(scope="module")
def model(weights):
    return sama.load_model(weights, "cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Odd files by name: content."""
    folder = tmp_path_factory.mktemp("odd")
    made = {}
    for name in NAMES:
        codec, arguments, _ = videos.CLIPS[name]
        made[name] = videos.write_video(folder / name, codec, **arguments).read_bytes()
    return made


@pytest.fixture(scope="module")
def local(files, model, tmp_path_factory):
    """Their rows, read as local files, by name."""
    folder = tmp_path_factory.mktemp("local")
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return {name: next(score_files([str(folder / name)], model)) for name in files}


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(storage, "REQUEST_SECONDS", 1.0)
    monkeypatch.setattr(storage, "BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(storage, "ATTEMPTS", 3)


def same(row, expected) -> bool:
    """Whether two rows are the same but for the name and the seconds."""
    return dataclasses.replace(row, path="", seconds=0) == dataclasses.replace(expected, path="", seconds=0)


def tar_of(files, **options) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=options.pop("mode", "w"), **options) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no-ranges"])
def test_http(files, local, model, ranges):
    files = files if ranges else {name: files[name] for name in NAMES[:3]}
    with file_server(ranges=ranges) as server:
        urls = [server.put(name, content) for name, content in files.items()]
        for row, name in zip(score_files(urls, model), files, strict=True):
            assert row.path == server.url(name)
            assert same(row, local[name]), name
        assert set(server.gets.values()) == ({1} if ranges else {2})  # without: one finds out, one brings it


def test_s3_a_folder_a_glob_and_a_tar(files, local, model, monkeypatch, tmp_path):
    pytest.importorskip("moto")
    with s3_server(monkeypatch) as (_, client):
        for name, content in files.items():
            client.put_object(Bucket="films", Key=f"a b/{name}", Body=content)
        client.put_object(Bucket="films", Key="a b/notes.txt", Body=b"no media")
        client.put_object(Bucket="films", Key="shard-0.tar", Body=tar_of({"notes.txt": b"", **files}))
        folder = expand(["s3://films/a b/"])
        assert folder == [f"s3://films/a b/{name}" for name in sorted(files)]
        assert expand(["s3://films/a b"]) == folder
        assert expand(["s3://films/a b/*.avi"]) == [path for path in folder if path.endswith(".avi")]
        shard = expand(["s3://films/shard-0.tar"])
        assert shard == [f"tar://{name}::s3://films/shard-0.tar" for name in sorted(files)]
        for row in score_files([*folder, *shard], model):
            assert same(row, local[storage.plain_name(row.path).rpartition("/")[2]]), row
        (gone,) = score_files(["s3://films/gone.mp4"], model)
        assert gone.reason == "no such file"


def test_the_hub_of_hugging_face(files, local, model, monkeypatch):
    """hf:// through its own library, from a server that answers as the hub does; by ranges."""
    pytest.importorskip("huggingface_hub")
    files = {name: files[name] for name in NAMES[:3]}
    with file_server() as server:
        monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": server.url("").rstrip("/")})
        server.put("api/datasets/me/films", json.dumps({"id": "me/films", "sha": "0" * 40}).encode())
        entries = [{"type": "file", "oid": "0" * 40, "size": len(files[name]), "path": f"set/{name}"} for name in files]
        entries.append({"type": "file", "oid": "0" * 40, "size": 1, "path": "set/notes.txt"})
        folder = {"type": "directory", "oid": "0" * 40, "path": "set"}
        server.put("api/datasets/me/films/tree/main", json.dumps([folder]).encode())
        server.put("api/datasets/me/films/tree/main/set", json.dumps(entries).encode())
        for name, content in files.items():
            server.put(f"datasets/me/films/resolve/main/set/{name}", content)
        paths = expand(["hf://datasets/me/films/set/"])
        assert paths == [f"hf://datasets/me/films/set/{name}" for name in sorted(files)]
        *rows, gone = score_files([*paths, "hf://datasets/me/films/set/gone.mp4"], model)
        for row in rows:
            assert same(row, local[row.path.rpartition("/")[2]]), row
        assert gone.reason == "no such file"
        assert [server.sent[f"datasets/me/films/resolve/main/set/{name}"] for name in files] == [
            len(content) for content in files.values()
        ]


def test_other_storages_in_memory_chained_and_in_tars(files, local, model, tmp_path):
    memory = fsspec.filesystem("memory")
    for name, content in files.items():
        memory.pipe_file(f"/set/{name}", content)
    (tmp_path / "shard.tar").write_bytes(tar_of(files))
    paths = expand(["memory://set/"]) + expand([str(tmp_path / "shard.tar")])
    paths += [f"tar://{NAMES[0]}::file://{tmp_path}/shard.tar", f"simplecache::memory://set/{NAMES[1]}"]
    assert len(paths) == 2 * len(files) + 2
    for row in score_files(paths, model):
        name = storage.plain_name(row.path).rpartition("/")[2]
        assert same(row, local[name]), row


def test_few_blocks_are_kept_and_fewer_bytes_are_read_than_twice_the_file(files, local, model, monkeypatch):
    """Blocks of 1 KiB, eight of them: they are thrown out and asked for again; the frames stay the same."""
    files = {name: files[name] for name in NAMES[:3]}
    monkeypatch.setattr(storage, "BLOCK_BYTES", 1 << 10)
    monkeypatch.setattr(storage, "KEPT_BLOCKS", 8)
    monkeypatch.setattr(storage, "RUN_BLOCKS", 4)
    with file_server() as server:
        urls = [server.put(name, content) for name, content in files.items()]
        for row, name in zip(score_files(urls, model), files, strict=True):
            assert same(row, local[name]), name
        for name, content in files.items():
            assert server.sent[name] < 6 * len(content)
            assert server.gets[name] > len(content) >> 12


def test_ranges_of_a_content_are_those_of_the_file():
    content = random.Random(0).randbytes(3 * storage.BLOCK_BYTES + 1234)
    with file_server() as server:
        remote = storage.find(server.put("x", content))
        for draw in map(random.Random, range(60)):
            start, length = draw.randrange(len(content) + 10), draw.choice([0, 1, 500, 300_000, len(content)])
            assert remote.read_at(start, length) == content[start : start + length]
        remote.check()
        assert server.sent["x"] <= 1.5 * len(content)  # kept, not asked for again


FAULTS = {
    # what happens to the GETs of a file: the reason in its row, "" where it is scored all the same
    "none": "",
    "once-503": "",
    "always-503": r"the server answers 503.*\(3 attempts\)",
    "once-hang": "",
    "always-hang": r"no answer in time \(3 attempts\)",
    "once-truncate": "",
    "always-truncate": r"the answer breaks off \(.*\) \(3 attempts\)",
    "once-change": "it changed while it was read",
}


def fault(name, at=1):
    """What happens to the n-th GET of a file: once, or from then on."""
    when, _, what = name.partition("-")
    return lambda n: what if n == at or (when == "always" and n > at) else ""


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no-ranges"])
def test_each_fault_has_its_own_reason(files, local, model, impatient, ranges):
    name = NAMES[0]
    with file_server(ranges=ranges) as server:
        urls = [server.put(f"{kind}.mp4", files[name], fault(kind)) for kind in FAULTS]
        rows = list(score_files([*urls, server.url("gone.mp4")], model))
    for row, (kind, reason) in zip(rows, FAULTS.items()):
        if not ranges and kind.startswith("once"):
            assert row.status == "ok" or "changed while" in row.reason, row
            continue
        if reason:
            assert row.score is None
            assert re.search(reason, row.reason), row
        else:
            assert same(row, local[name]), row
    assert (rows[-1].status, rows[-1].reason) == ("error", "no such file")


def test_a_file_that_changes_between_two_ranges_is_not_scored(model, impatient, monkeypatch, tmp_path):
    """New bytes that decode as well as the old ones: only the version tells."""
    monkeypatch.setattr(storage, "BLOCK_BYTES", 1 << 12)
    monkeypatch.setattr(storage, "KEPT_BLOCKS", 2)
    monkeypatch.setattr(storage, "RUN_BLOCKS", 1)
    path = videos.write_video(tmp_path / "a.avi", "mjpeg", pix_fmt="yuvj420p", num_frames=60)
    content = path.read_bytes()
    with file_server() as server:
        url = server.put("a.avi", content)

        def change(number):
            if number == 12:  # in the trailing padding of nothing: no frame differs
                server.files["a.avi"] = content[:-1] + bytes([content[-1] ^ 1])
            return ""

        server.faults["a.avi"] = change
        (row,) = score_files([url], model)
        assert server.gets["a.avi"] > 12
    assert (row.status, row.reason) == ("error", "it changed while it was read")


def test_every_row_is_there_and_each_failure_has_its_reason(files, local, model, impatient, monkeypatch):
    """At the first, second or third of many requests; half of the files by HTTP, half by S3. `SAMA_FAULTS=500` for so
    many files."""
    pytest.importorskip("moto")
    monkeypatch.setattr(storage, "BLOCK_BYTES", 1 << 10)
    monkeypatch.setattr(storage, "RUN_BLOCKS", 1)
    draw, expected, due, urls = random.Random(3), {}, {}, []
    with file_server() as server, s3_server(monkeypatch) as (faulty, client):
        faulty.change = lambda key: client.put_object(Bucket="films", Key=key, Body=server.changed(key))
        for k in range(FILES):
            name, kind, at = draw.choice(NAMES[:3]), draw.choice(list(FAULTS)), draw.randint(1, 3)
            key = f"{k}-{name}"
            urls.append(server.put(key, files[name], fault(kind, at)))
            if k % 2:
                client.put_object(Bucket="films", Key=key, Body=files[name])
                faulty.faults[key] = fault(kind, at)
                urls[-1] = f"s3://films/{key}"
            expected[urls[-1]] = name, kind
            due[key] = at
        rows = list(score_files(urls, model, workers=8))
        gets = server.gets + faulty.gets
        assert all(gets[key] >= at for key, at in due.items())  # every fault came about
    assert [row.path for row in rows] == urls
    wrong = []
    for row in rows:
        name, kind = expected[row.path]
        if FAULTS[kind]:
            right = row.score is None and row.status == "error" and re.search(FAULTS[kind], row.reason)
        else:
            right = same(row, local[name])
        if not right:
            wrong.append((kind, row.path, row.status, row.reason))
    assert not wrong, f"{len(wrong)} of {len(rows)}: {wrong[:5]}"


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_remote_script_opens_nothing(name, files):
    """Neither the files beside it, nor a listener, nor a local file."""
    with file_server() as server, listener() as (port, connections):
        server.put("other.ts", files["h264.ts"])
        server.put("other.mp4", files[NAMES[0]])
        text, kind = SCRIPTS[name]
        for target in ("other.ts", f"http://127.0.0.1:{port}/a.ts", server.url("other.ts"), "/etc/hostname"):
            url = server.put(name, text.format(target, port).encode())
            with pytest.raises(DecodeError) as caught:
                open_video(url, decoder="pyav")
            assert caught.value.reason == f"{kind}, not a video"
        assert set(server.gets) == {name}
    assert connections == []


def test_images(tmp_path):
    save_weights(
        ImageQuality("nano"),
        tmp_path / "image.safetensors",
        metadata={"mode": "sama", "grid": [8, 8], "fragment": [32, 32]},
    )
    model = sama.load_model(tmp_path / "image.safetensors", "cpu")
    picture = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    with file_server() as server:
        urls = []
        for name in ("a.png", "b.jpg", "d.tif"):
            Image.fromarray(picture).save(tmp_path / name)
            urls.append(server.put(name, (tmp_path / name).read_bytes()))
        urls.append(server.put("cut.jpg", (tmp_path / "b.jpg").read_bytes()[:900]))
        rows = list(score_files(urls, model))
        for row in rows[:3]:
            name = row.path.rpartition("/")[2]
            assert np.array_equal(read_image(row.path), read_image(tmp_path / name))
            assert same(row, next(score_files([str(tmp_path / name)], model))), row
    assert "damaged image" in rows[3].reason
    (row,) = score_files(["http://127.0.0.1:9/a.mp4?x=1"], model)
    assert row.reason == "is a video; the model scores images"


def test_tars_that_cannot_be_read_in_place(files, model, tmp_path):
    (tmp_path / "packed.tar").write_bytes(tar_of(files, mode="w:gz"))
    (tmp_path / "text.tar").write_bytes(b"no tar at all" * 100)
    (tmp_path / "good.tar").write_bytes(tar_of(files))
    paths = [f"tar://a.mp4::{tmp_path}/{name}.tar" for name in ("packed", "text", "good", "gone")]
    reasons = [row.reason for row in score_files(paths, model)]
    assert all("no tar, or a compressed one" in reason for reason in reasons[:2])
    assert reasons[2] == "the tar has no such member"
    assert "no such file" in reasons[3]
    with pytest.raises(InputError, match="no tar, or a compressed one"):
        expand([str(tmp_path / "packed.tar")])


@pytest.mark.parametrize(
    ("path", "url", "name"),
    [
        ("a.mp4", False, "a.mp4"),
        ("C:\\videos\\a.mp4", False, "C:\\videos\\a.mp4"),
        ("javascript:x//.mp4", False, "javascript:x//.mp4"),
        ("https://host/a.MP4?sig=b.txt#c", True, "https://host/a.MP4"),
        ("s3://bucket/what?.mp4", True, "s3://bucket/what?.mp4"),
        ("tar://a/b.mkv::s3://bucket/x.tar", True, "tar://a/b.mkv"),
        ("simplecache::s3://bucket/a.mp4", True, "s3://bucket/a.mp4"),
    ],
)
def test_what_is_an_address(path, url, name):
    assert storage.is_url(path) is url
    assert storage.plain_name(path) == name


def test_what_is_missing_or_unknown_is_said(model, monkeypatch):
    (row,) = score_files(["nothing://x/a.mp4"], model)
    assert "Protocol not known: nothing" in row.reason
    with pytest.raises(InputError, match="Protocol not known"):
        expand(["nothing://x/"])
    real = fsspec.core.url_to_fs

    def without(url, **options):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", without)
    storage._systems.clear()
    with pytest.raises(MissingLibraryError, match=r's3:// needs s3fs; install that, or `pip install "sama-vqa\[remote'):
        expand(["s3://bucket/"])
    monkeypatch.setattr(fsspec.core, "url_to_fs", real)


def test_the_command_scores_addresses_and_resumes(files, local, weights, tmp_path, capsys):
    out = tmp_path / "scores.parquet"
    with file_server() as server:
        urls = [server.put(name, files[name]) for name in NAMES[:3]]
        arguments = ["--weights", str(weights), "--device", "cpu", "--out", str(out)]
        assert cli.main(["score", *urls[:2], *arguments]) == 0
        assert cli.main(["score", *urls, server.url("gone.mp4"), *arguments, "--resume"]) == 1
        assert [server.gets[name] for name in NAMES[:3]] == [1, 1, 1]
        command = ["compare", urls[0], urls[0], "--weights", str(weights), "--device", "cpu", "--offset", "0"]
        assert cli.main(command) == 0
        assert cli.main(["report", str(out), "-o", str(tmp_path / "r.html"), "--weights", str(weights)]) == 0
    rows = read_table(out)
    assert [row.path for row in rows] == [*urls, server.url("gone.mp4")]
    assert all(same(row, local[name]) for row, name in zip(rows, NAMES[:3]))
    capsys.readouterr()


def test_folders_of_addresses_leave_out_the_other_kind():
    memory = fsspec.filesystem("memory")
    for name in ("a.mp4", "b.png", "c.txt", ".hidden.mp4", "deep/d.webm"):
        memory.pipe_file(f"/mixed/{name}", b"x")
    left_out: list[str] = []
    found = expand(["memory://mixed"], kind="video", left_out=left_out)
    assert found == ["memory:///mixed/a.mp4", "memory:///mixed/deep/d.webm"]
    assert left_out == ["memory:///mixed/b.png"]
    assert storage.listed("memory://mixed/a.mp4", VIDEO_SUFFIXES) == ["memory://mixed/a.mp4"]


def test_labels_of_addresses_are_checked_and_evaluated(files, weights, tmp_path, capsys):
    """ROOT is an address; the labels are a local file."""
    (tmp_path / "labels.csv").write_text("path,mos\n" + "".join(f"{name},{k}\n" for k, name in enumerate(NAMES[:3])))
    memory = fsspec.filesystem("memory")
    for name in NAMES[:3]:
        memory.pipe_file(f"/labelled/{name}", files[name])
    root = "memory://labelled"
    assert cli.main(["data", "check", str(tmp_path / "labels.csv"), root]) == 0
    options = ["--weights", str(weights), "--device", "cpu", "--samples", "5"]
    assert cli.main(["evaluate", str(tmp_path / "labels.csv"), root, *options]) == 0
    assert "3 of 3 items scored" in capsys.readouterr().out
    memory.rm_file(f"/labelled/{NAMES[0]}")
    assert cli.main(["data", "check", str(tmp_path / "labels.csv"), root]) == 1
    assert "no such file" in capsys.readouterr().out
