"""Label files of every form, bad ones by line, the protocol's splits, and what `sama data check` finds."""

import os
import random
import shutil

import av
import numpy as np
import pytest
import videos
from PIL import Image

from sama import cli
from sama.check import check
from sama.errors import LabelError
from sama.labels import Item, leakage, named_split, protocol_split, read_labels, with_split

INDEX_FIRST = {"movflags": "faststart"}  # as downloads of the web have it

LSVQ = "p05/a b.mp4, -1, -1, 83.0\nx/c.mp4,8.01,29.97,41.5\n"
KONIQ = (
    '"image_name","c1","c2","c3","c4","c5","c_total","MOS","SD","MOS_zscore"\n'
    '"10004473376.jpg",0,0,25,73,7,105,3.83,0.53,67.5\n10007357496.jpg,0,3,45,47,1,96,3.48,0.54,57.25\n'
)
SPAQ = "00001.jpg 67.5\nmy photo, 2.jpg\t12\n"
KADID = "dist_img,ref_img,dmos,var\nI01_01_01.png,I01.png,4.57,0.496\nI02_01_02.png,I02.png,2.5,0.6\n"
OWN = 'mos,Path,content,split,kind\n3.5,"a, b.mp4",beach,train,blur\n1e0,c.mp4,city,val,\n'


@pytest.fixture
def written(tmp_path):
    def write(text, name="labels.xyz"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LSVQ, [("p05/a b.mp4", 83.0), ("x/c.mp4", 41.5)]),
        ('"a, b.mp4", -1, -1, 5\nc, d.mp4, -1, -1, 6\n', [("a, b.mp4", 5.0), ("c, d.mp4", 6.0)]),
        (KONIQ, [("10004473376.jpg", 67.5), ("10007357496.jpg", 57.25)]),
        (SPAQ, [("00001.jpg", 67.5), ("my photo, 2.jpg", 12.0)]),
        (KADID, [("I01_01_01.png", 4.57), ("I02_01_02.png", 2.5)]),
        (OWN, [("a, b.mp4", 3.5), ("c.mp4", 1.0)]),
        ("path;mos\na.mp4;2\n", [("a.mp4", 2.0)]),
        ("filename\tMOS\na b.mp4\t2\n", [("a b.mp4", 2.0)]),
        ("path,mos\na.mp4,2", [("a.mp4", 2.0)]),
    ],
    ids=["lsvq", "lsvq-commas", "koniq", "spaq", "kadid", "own", "semicolon", "tab", "no-newline"],
)
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\n\n"], ids=["lf", "crlf", "blank-lines"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_forms(written, text, expected, ending, encoding):
    path = written(text.replace("\n", ending).encode(encoding))
    items = read_labels(path, "/data")
    assert [(item.path, item.mos) for item in items] == [(f"/data/{name}", mos) for name, mos in expected]
    assert [item.group for item in items] == [item.path for item in items] or text in (KADID, OWN)


def test_what_else_the_columns_say(written):
    first, second = read_labels(written(OWN), "/data")
    assert first == Item("/data/a, b.mp4", 3.5, "beach", "train", {"kind": "blur"})
    assert (second.group, second.split, second.extra) == ("city", "val", {"kind": ""})
    kadid = read_labels(written(KADID))
    assert [item.group for item in kadid] == ["I01.png", "I02.png"]
    assert kadid[0].extra == {"var": "0.496"}
    assert hash(first) != hash(second)


def test_paths_are_joined_to_the_root_or_the_files_own_folder(written, tmp_path):
    path = written("path,mos\nsub/a.mp4,1\n/abs/b.mp4,2\n")
    assert [item.path for item in read_labels(path)] == [str(tmp_path / "sub/a.mp4"), "/abs/b.mp4"]
    assert read_labels(path, tmp_path / "videos")[0].path == str(tmp_path / "videos/sub/a.mp4")


def test_names_that_are_no_utf8_open_the_file(written, tmp_path):
    name = b"\xe4.mp4"
    (item,) = read_labels(written(b"path,mos\n" + name + b",3\n"))
    with open(item.path, "wb"):
        pass
    assert name in [entry.encode(errors="surrogateescape") for entry in map(lambda p: p.name, tmp_path.iterdir())]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a.mp4, -1, -1, 3\nb.mp4, -1, -1, nan\n", 2, "got 'nan' for the label of b.mp4, expected a finite number"),
        ("a.mp4, -1, -1, 3\n\nb.mp4, -1, -1, inf\n", 3, "got 'inf' for the label"),
        ("a.mp4, -1, -1,\nb.mp4, -1, -1, 3\n", 1, "got nothing for the label of a.mp4"),
        ("a.mp4, -1, -1, 3\nb.mp4, -1, 3\n", 2, "got 3 columns in 'b.mp4, -1, 3', expected four"),
        ("a.mp4, long, -1, 3\n", 1, "got 'long' for the duration"),
        ("a.mp4, -1, -1, 3\n, -1, -1, 3\n", 2, "got an empty path"),
        ("a.jpg 3\nb.jpg three\n", 2, "got 'three' for the label of b.jpg"),
        ("a.jpg 3\nb.jpg\n", 2, "got 'b.jpg', expected a name, white space and a score"),
        ("path,mos\na.mp4,3\nb.mp4,1_000\n", 3, "got '1_000' for the label"),
        ("path,mos\na.mp4,3,4\n", 2, "got 3 columns in 'a.mp4,3,4', expected 2"),
        ('path,mos,note\n"a.mp4",3,"two\nlines"\nb.mp4,x,y\n', 4, "got 'x' for the label"),
        ("path,mos\na.mp4,3\n./a.mp4,4\n", 3, "got the label 4 for ./a.mp4, which has 3 on line 2"),
        ("path,quality\na.mp4,3\n", 1, "got the header path,quality, expected a column for the mos: mos or mos_zscore"),
        ("score,mos\n2,3\n", 1, "expected a column for the path: path or file"),
        ("path,mos,MOS\na,2,3\n", 1, "got the column 'mos' twice"),
        ("path,status,score,clips,mos\na,ok,2,3,4\n", 1, "got a table of scores"),
        ("\na.mp4,3\n", 2, "got 'a.mp4,3', which is of no known form; known forms:"),
        ("a.mp4, 3\n", 1, "which is of no known form"),
        ("only one thing\n", 1, "which is of no known form"),
    ],
)
def test_a_bad_line_is_named(written, text, line, message):
    path = written(text)
    with pytest.raises(LabelError) as caught:
        read_labels(path)
    assert str(caught.value).startswith(f"{path}, line {line}: ")
    assert message in str(caught.value)


def test_more_bad_lines_are_counted(written):
    with pytest.raises(LabelError, match=r"line 2: .* \(and 2 more bad lines\)"):
        read_labels(written("a 1\nb x\nc y\nd 2\ne z\n"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"\n \n", "the file is empty"),
        (b"path,mos\n", "a header and no line below it"),
        (b"a\n\x00\x01", "got a binary file (a zero byte in line 2)"),
        (b"\xff\xfea", "begins as UTF-16 but is none"),
    ],
    ids=["empty", "blank", "header", "binary", "half-utf16"],
)
def test_files_without_labels(written, data, message):
    with pytest.raises(LabelError) as caught:
        read_labels(written(data))
    assert message in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_labels(tmp_path / "none.csv")


def items_of(groups, per_group=1):
    return [Item(f"{g}-{n}.png", 1.0, str(g)) for g in range(groups) for n in range(per_group)]


def test_protocol_split_is_the_shuffle_of_the_protocol():
    """random.Random(123).shuffle(list(range(10))), of any Python since 3.2, is the order below; 8 of 10 train."""
    train, test = protocol_split(items_of(10), k=1)
    assert [int(item.group) for item in train + test] == [8, 7, 5, 9, 2, 3, 6, 1, 4, 0]
    assert (len(train), len(test)) == (8, 2)
    for k in range(10):
        items = items_of(1200)
        expected = list(items)
        random.Random(123 * k).shuffle(expected)
        assert protocol_split(items, k) == (expected[:960], expected[960:])


def test_protocol_split_goes_by_groups():
    """81 references of KADID: int(0.8 * 81) = 64 train, 17 test, each with all of its 125 images."""
    train, test = protocol_split(items_of(81, 125), k=3)
    assert (len(train), len(test)) == (64 * 125, 17 * 125)
    assert not {item.group for item in train} & {item.group for item in test}
    assert leakage({"train": train, "test": test}) == {}
    assert len(protocol_split(items_of(10), 0, train_share=0.5)[0]) == 5


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_groups_are_not_split(n):
    with pytest.raises(ValueError, match=f"{n} groups cannot be split with 0.8 of them for training"):
        protocol_split(items_of(n, 5), 0)


def test_named_split():
    a, b, c = Item("a", 1, "x", "train"), Item("b", 2, "y", "val"), Item("c", 3, "x", "test")
    assert named_split([a, b, c]) == ([a], [b])
    assert with_split([a, b, c], "test") == [c]
    with pytest.raises(ValueError, match=r"in split 'valid'; its splits: 'train' \(1\), 'val' \(1\), 'test' \(1\)"):
        named_split([a, b, c], val="valid")
    with pytest.raises(ValueError, match=r"1 contents lie in both 'train' and 'test', .*: x"):
        named_split([a, b, c], val="test")
    with pytest.raises(ValueError, match="its splits: it has none"):
        named_split(items_of(3))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("files")
    videos.write_video(root / "a.mp4", "libx264", num_frames=12)
    videos.write_video(root / "b.mp4", "libx264", num_frames=9, size=(64, 64))
    shutil.copy(root / "a.mp4", root / "copy of a.mp4")
    (root / "text.mp4").write_text("no video at all\n" * 50)
    with av.open(str(root / "a.mp4")) as source, av.open(str(root / "cut.mp4"), "w", options=INDEX_FIRST) as copy:
        stream = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                copy.mux(packet)
    data = (root / "cut.mp4").read_bytes()  # opens, but its last frames are not there
    (root / "cut.mp4").write_bytes(data[: len(data) * 2 // 3])
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(root / "image.png")
    (root / "broken.png").write_bytes((root / "image.png").read_bytes()[:40])
    return root


def test_check_of_good_files(written, files):
    steps = []
    path = written("path,mos\na.mp4,1\nb.mp4,3\nimage.png,5\n")
    report = check(path, files, progress=lambda done, total: steps.append((done, total)))
    assert report.ok
    assert (report.items, report.groups, report.splits) == (3, 3, {})
    assert report.scale == {"min": 1, "max": 5, "mean": 3, "deviation": pytest.approx((8 / 3) ** 0.5)}
    assert report.histogram == [1, 0, 0, 0, 0, 1, 0, 0, 0, 1]
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert "no problem found" in str(report)


def test_check_finds_every_problem(written, files):
    text = (
        "path,mos,content,split\na.mp4,1,beach,train\nb.mp4,3,beach,val\nb.mp4,3,beach,val\ncopy of a.mp4,2,sea,val\n"
        "gone.mp4,2,w,train\ntext.mp4,2,x,train\ncut.mp4,2,y,train\nbroken.png,2,z,train\nimage.png,?,q,train\n"
    )
    path = written(text)
    report = check(path, files)
    found = {kind: [case.replace(f"{files}/", "") for case in cases] for kind, cases in report.problems.items()}
    assert found.pop("bad lines") == [f"{path}, line 10: got '?' for the label of image.png, expected a finite number"]
    assert found.pop("missing") == ["gone.mp4: line 6"]
    assert found.pop("double paths") == ["b.mp4: lines 3, 4"]
    assert found.pop("double contents") == [
        "a.mp4 (1) = copy of a.mp4 (2); their groups differ, so that a random split can part them"
    ]
    assert found.pop("leakage") == ["beach: in train, val", "a.mp4 = copy of a.mp4: the same file in train, val"]
    assert [case.split(":")[0] for case in found.pop("unreadable")] == ["text.mp4", "cut.mp4", "broken.png"]
    assert not found
    assert report.splits == {"train": 5, "val": 3}
    assert "9 problems" in str(report)


@pytest.mark.parametrize(
    ("text", "published"),
    [
        ("".join(f"{k}.mp4, -1, -1, {k}\n" for k in range(585)), "585 items: as many as published for LIVE-VQC"),
        (KADID, "published: KADID-10k (81 references x 125) 10,125; here 2"),
        (OWN, ""),
    ],
    ids=["live-vqc", "kadid", "own"],
)
def test_check_compares_with_the_published_counts(written, text, published):
    assert check(written(text), "/nowhere").published == published


def test_check_of_constant_labels(written, files):
    report = check(written("a.mp4 2\nb.mp4 2\n"), files)
    assert report.problems == {"labels": ["all 2 labels are 2: there is nothing to learn or to compare"]}
    assert report.scale["deviation"] == 0
    assert "labels: min 2, max 2" in str(report)


def test_the_command(written, files, capsys):
    assert cli.main(["data", "check", str(written("a.mp4 1\nb.mp4 2\n")), str(files)]) == 0
    assert "no problem found" in capsys.readouterr().out
    assert cli.main(["data", "check", str(written("a.mp4 1\ngone.mp4 2\n")), str(files)]) == 1
    assert "missing: 1\n" in capsys.readouterr().out
    for argument, message in (("none.csv", "none.csv"), (written("what\n"), "of no known form")):
        assert cli.main(["data", "check", str(argument), str(files)]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["data", "check", str(written("a.mp4 1\nb.mp4 2\n")), str(files / "none")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_what_is_no_regular_file_is_said_before_it_is_read(tmp_path):
    """A device is as endless as a pipe that nobody writes to; also where two of one size would be compared."""
    os.mkfifo(tmp_path / "pipe.mp4")
    for name in ("zero.mp4", "zero.png"):
        (tmp_path / name).symlink_to("/dev/zero")
    (tmp_path / "labels.csv").write_text("path,mos\npipe.mp4,1\nzero.mp4,2\nzero.png,3\n")
    report = check(tmp_path / "labels.csv", tmp_path)
    assert report.problems["unreadable"] == [
        f"{tmp_path / name}: not a regular file" for name in ("pipe.mp4", "zero.mp4", "zero.png")
    ]
    for name in ("pipe.mp4", "zero.mp4"):
        with pytest.raises(LabelError, match=f"{name}: got no regular file"):
            read_labels(tmp_path / name)
    with pytest.raises(LabelError, match="got a folder"):
        read_labels(tmp_path)
