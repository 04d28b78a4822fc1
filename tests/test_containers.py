"""Only the file itself is opened: playlists, lists and patterns of names are refused by what they are."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import sys
import threading

import pytest
from PIL import Image
from videos import full_decode, picture, write_video
from watch import Watch

from sama.decode import open_video
from sama.errors import DecodeError
from sama.files import VIDEO_SUFFIXES

HLS = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{0}\n#EXT-X-ENDLIST\n"
MPD = """<?xml version="1.0"?>
<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011" type="static">
<Period><AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="9"><BaseURL>{0}</BaseURL>
</Representation></AdaptationSet></Period></MPD>
"""
SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {1} RTP/AVP 96\na=rtpmap:96 H264/90000\n"
SVG = '<svg xmlns="http://www.w3.org/2000/svg"><image href="{0}"/></svg>'
SCRIPTS = {
    # name of the file: (its text, where {0} is another file or address and {1} a port; what the error calls it)
    "list.mp4": ("ffconcat version 1.0\nfile {0}\n", "a list of other files (concat)"),
    "list.ffconcat": ("ffconcat version 1.0\nfile {0}\n", "a list of other files (concat)"),
    "playlist.m3u8": (HLS, "a playlist (hls)"),
    "playlist.mkv": (HLS, "a playlist (hls)"),
    "manifest.mpd": (MPD, "a playlist (dash)"),
    "manifest.mp4": (MPD, "a playlist (dash)"),
    "stream.sdp": (SDP, "a description of a network stream (sdp)"),
    "stream.ts": (SDP, "a description of a network stream (sdp)"),
    "drawing.svg": (SVG, "a drawing (svg)"),
    "titles.idx": ("# VobSub index file, v7\nid: en, index: 0\n", "an index of subtitles (vobsub)"),
    "titles.srt": ("1\n00:00:01,000 --> 00:00:02,000\n{0}\n", "a text file"),
}


@pytest.fixture
def folder(tmp_path):
    """A folder with videos, pictures and a watch on what is opened in it."""
    if sys.platform != "linux":
        pytest.skip("watches files by inotify")
    for name in ("other.mp4", "other.ts"):
        write_video(tmp_path / name, "libx264", num_frames=5)
    for n in range(4):
        Image.fromarray(picture(n, 64, 48)).save(tmp_path / f"{n:03d}.png")
    watch = Watch(tmp_path)
    yield tmp_path, watch
    os.close(watch.fd)


@pytest.fixture
def server():
    """A listener on the loopback interface: its port, and the connections that were made."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        connections, stop = [], threading.Event()

        def listen():
            while not stop.is_set():
                try:
                    connection, address = listener.accept()
                except TimeoutError:
                    continue
                connection.close()
                connections.append(address)

        thread = threading.Thread(target=listen)
        thread.start()
        yield listener.getsockname()[1], connections
        stop.set()
        thread.join()


def test_the_watch_sees_what_ffmpeg_opens(folder):
    root, watch = folder
    full_decode(root / "other.ts")
    assert watch.opened() == {"other.ts"}


@pytest.mark.parametrize("target", ["other.ts", "absolute", "http"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_nothing_that_a_file_names_is_opened(folder, server, name, target):
    root, watch = folder
    port, connections = server
    text, kind = SCRIPTS[name]
    target = {"absolute": str(root / "other.ts"), "http": f"http://127.0.0.1:{port}/a.ts"}.get(target, target)
    (root / name).write_text(text.format(target, port))
    watch.opened()
    with pytest.raises(DecodeError) as caught:
        open_video(root / name, decoder="pyav")
    assert caught.value.reason == f"{kind}, not a video"
    assert watch.opened() == {name}
    assert connections == []


def test_lists_that_name_each_other(folder):
    root, watch = folder
    for name, other in (("a.mp4", "b.mp4"), ("b.mp4", "a.mp4")):
        (root / name).write_text(f"ffconcat version 1.0\nfile {other}\n")
    watch.opened()
    with pytest.raises(DecodeError, match=r"a list of other files \(concat\), not a video"):
        open_video(root / "a.mp4", decoder="pyav")
    assert watch.opened() == {"a.mp4"}


@pytest.mark.parametrize("name", ["%03d.png", "%d.jpg"])
def test_names_that_stand_for_pictures(folder, name):
    root, watch = folder
    shutil.copy(root / "000.png", root / name)
    watch.opened()
    with pytest.raises(DecodeError, match=r"a name that stands for many pictures \(image2\), not a video"):
        open_video(root / name, decoder="pyav")
    assert watch.opened() == {name}


def test_an_mp4_whose_media_are_elsewhere(folder):
    """Its data reference names another file; the samples are looked for in the file itself."""
    root, watch = folder
    data = (root / "other.mp4").read_bytes()
    alias = bytearray(150)
    alias[10 : 10 + 28] = bytes([4]) + b"disk".ljust(27, b"\0")
    name = str(root / "other.ts").encode()
    end = struct.pack(">hh", 2, len(name)) + name + b"\0" * (len(name) % 2) + struct.pack(">hh", -1, 0)
    entry = struct.pack(">I4sI", 12 + len(alias) + len(end), b"alis", 0) + alias + end
    start = data.index(b"url \0\0\0\1") - 4
    longer = len(entry) - 12
    data = bytearray(data[:start] + entry + data[start + 12 :])
    for box in (b"dref", b"dinf", b"minf", b"mdia", b"trak", b"moov"):
        at = data.index(box) - 4
        data[at : at + 4] = struct.pack(">I", struct.unpack(">I", data[at : at + 4])[0] + longer)
    (root / "refers.mp4").write_bytes(data)
    watch.opened()
    with pytest.raises(DecodeError), open_video(root / "refers.mp4", decoder="pyav") as video:
        list(video.frames([0]))
    assert watch.opened() == {"refers.mp4"}


CODECS = {
    # suffixes: (codec, pixel format)
    "mov mp4 3gp 3g2 m4v qt f4v mkv flv ts m2ts mts avi divx nut h264": ("libx264", "yuv420p"),
    "h265 hevc": ("libx265", "yuv420p"),
    "mpeg mpg vob m2v mxf": ("mpeg2video", "yuv420p"),
    "webm ivf": ("libvpx-vp9", "yuv420p"),
    "ogv ogm": ("libvpx", "yuv420p"),
    "obu": ("libsvtav1", "yuv420p"),
    "asf wmv": ("wmv2", "yuv420p"),
    "rm rmvb": ("rv20", "yuv420p"),
    "mj2": ("jpeg2000", "yuv420p"),
    "mjpeg": ("mjpeg", "yuvj420p"),
    "y4m": ("wrapped_avframe", "yuv420p"),
    "apng": ("apng", "rgb24"),
    "gif": ("gif", "rgb8"),
}
FORMATS = {"h265": "hevc", "qt": "mov", "divx": "avi", "f4v": "mp4", "m4v": "mp4", "mts": "mpegts", "m2ts": "mpegts"}
FORMATS |= {"m2v": "mpeg2video", "rmvb": "rm", "ogm": "ogg", "mj2": "mov"}
SUFFIXES = {suffix: codec for suffixes, codec in CODECS.items() for suffix in suffixes.split()}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_of_a_video_is_read(suffix, tmp_path):
    codec, pix_fmt = SUFFIXES[suffix]
    size = (352, 288) if codec == "rv20" or suffix.startswith("3g") else (96, 64)
    options = {"libx265": {"x265-params": "log-level=none"}, "libsvtav1": {"preset": "12"}}.get(codec)
    path = tmp_path / f"a.{suffix}"
    write_video(path, codec, size=size, num_frames=6, pix_fmt=pix_fmt, options=options, format=FORMATS.get(suffix))
    with open_video(path, decoder="pyav") as video:
        assert video.info.num_frames == len(full_decode(path)) == 6
        assert len(list(video.frames(range(6)))) == 6


def test_the_suffixes_are_all_there():
    assert {f".{suffix}" for suffix in SUFFIXES} - {".apng", ".gif"} == VIDEO_SUFFIXES


NAMES = [
    "a%d",
    "a%03d",
    "50%",
    "a*",
    "a?b",
    "a[1]",
    "a{1,2}",
    "a:b",
    "-a",
    "a b",
    "http:a",
    "concat:a|b",
    "\udcff",
    "%d.",
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_mean_themselves(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for suffix, codec in (("mp4", "libx264"), ("mjpeg", "mjpeg"), ("gif", "gif")):
        pix_fmt = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(suffix, "yuv420p")
        clip = write_video(tmp_path / f"clip.{suffix}", codec, num_frames=4, pix_fmt=pix_fmt)
        os.replace(clip, f"{name}.{suffix}")
        with open_video(f"{name}.{suffix}", decoder="pyav") as video:
            assert len(list(video.frames(range(4)))) == 4
