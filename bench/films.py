"""What a film costs beside a clip, in seconds and bytes: opened by its tables and by all its packets, local and remote.

    python bench/films.py [--hours 2] [--repeats 3] [--whole-repeats 1] [--folder FOLDER] [--out FILE.csv] [--add]

A clip of 20 seconds at 1080p with sound is repeated, without encoding it again, up to the length of a film: in MP4 with
its moov at the end, and in Matroska. Both are scored by the packaged model. Seconds are those of a clock, and those of
the processor, which other programs beside this one lengthen less. Bytes are those that the process has asked
the system for (rchar in /proc/self/io), or that a server of HTTP on loopback has sent. Films of two hours are 12 GB;
what is made in FOLDER stays there for the next time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import measure
import media
import numpy as np
import torch
from measure import Row

import sama
from sama.corpus.ffmpeg import find_ffmpeg
from sama.decode.pyav import PyavVideo
from sama.limits import Guard
from sama.model import QualityModel
from sama.scoring import score_files

SECONDS = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=2, help="length of the film")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--whole-repeats", type=int, default=1, help="of what reads a film whole")
    parser.add_argument("--folder", type=Path, help="where the films are made, and kept (default: for this run)")
    parser.add_argument("--out", type=Path, default=measure.RESULTS / "films-cpu.csv")
    parser.add_argument("--add", action="store_true", help="to the rows that are there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        clip, films = make(options.folder or Path(temporary), options.hours)
        case = f"1080p, {options.hours:g} hours, beside {SECONDS} s"
        found = all_rows(case, clip, films, options.repeats, options.whole_repeats)
    (measure.extend if options.add else measure.write)(options.out, found)
    print(f"\nrows: {options.out}")
    return 0


def make(folder: Path, hours: float) -> tuple[Path, dict[str, Path]]:
    """The clip, and the films by the ending of their names."""
    program = find_ffmpeg().path
    clip = folder / "clip.mp4"
    if not clip.exists():
        silent = media.clip_path(media.SIZES["1080p"], SECONDS)
        run(program, "-i", silent, "-f", "lavfi", "-i", f"sine=duration={SECONDS}", "-c:v", "copy", "-c:a", "aac", clip)
    films = {suffix: folder / f"film.{suffix}" for suffix in ("mp4", "mkv")}
    for film in films.values():
        if not film.exists():
            run(program, "-stream_loop", round(hours * 3600 / SECONDS) - 1, "-i", clip, "-c", "copy", film)
    return clip, films


def run(program: str, *arguments: object) -> None:
    subprocess.run([program, "-v", "error", "-y", *map(str, arguments)], check=True)


def all_rows(case: str, clip: Path, films: dict[str, Path], repeats: int, whole_repeats: int) -> list[Row]:
    model = sama.load_model(device="cpu")
    model.sampler.prepare()
    check(clip)
    load = f"load of the machine {os.getloadavg()[0]:.1f}"
    found = []
    for metric, use in (("opening", opened), ("a score", lambda path, tables: scored(path, model, tables))):
        tabled = {
            "20 s, mp4": lambda use=use: use(clip, True),
            "film, mp4": lambda use=use: use(films["mp4"], True),
        }
        whole = {
            "film, mp4, all packets": lambda use=use: use(films["mp4"], False),
            "film, mkv": lambda use=use: use(films["mkv"], True),
        }
        calls = {name: Counting(call) for name, call in {**tabled, **whole}.items()}
        seconds = measure.timed(metric, {name: calls[name] for name in tabled}, repeats)
        for name in whole if whole_repeats else ():  # without a call to warm up: they take long
            seconds[name] = [calls[name].timed() for _ in range(whole_repeats)]
        processor = {name: calls[name].processor[-len(values) :] for name, values in seconds.items()}
        sizes = {name: os.path.getsize(films[name.split(", ")[1]] if "film" in name else clip) for name in calls}
        for unit, taken in (("seconds", seconds), ("seconds of the processor", processor)):
            baseline = float(np.median(taken["20 s, mp4"]))
            for name, values in taken.items():
                note = f"{calls[name].bytes:,} bytes read, {calls[name].bytes / sizes[name]:.2%} of the file; {load}"
                spread = [float(np.percentile(values, q)) for q in (20, 50, 80)]
                found.append(Row(case, metric, name, unit, *spread, len(values), spread[1] / baseline, note))
    found += remote_rows(case, {"20 s, mp4": clip, "film, mp4": films["mp4"]}, model)
    measure.show_all(found)
    return found


def check(clip: Path) -> None:
    """RuntimeError unless the clip gives the same frames, whichever way it is opened."""
    frames = []
    for tables in (True, False):
        with PyavVideo(str(clip), guard=guard(clip, tables)) as video:
            last = video.info.num_frames - 1
            shown = video.frames([0, last // 2, last])
            frames.append([(n, [plane.tobytes() for plane in frame.planes]) for n, frame in shown])
            print(f"opened by its {'tables' if tables else 'packets'}: {video.info.opened}")
    if frames[0] != frames[1]:
        raise RuntimeError("frames differ")


def guard(path: Path | str, tables: bool) -> Guard:
    made = Guard(str(path))
    made.by_index = tables
    return made


def opened(path: Path, tables: bool) -> None:
    PyavVideo(str(path), guard=guard(path, tables)).close()


@torch.inference_mode()
def scored(path: Path | str, model: QualityModel, tables: bool) -> None:
    if tables:
        (row,) = score_files([str(path)], model, workers=1)
        if row.status != "ok":
            raise RuntimeError(row.reason)
        return
    with PyavVideo(str(path), guard=guard(path, tables)) as video:
        _, clips = model.sample(video)
        model.values(list(clips))


class Counting:
    """A call, the bytes that the process asked for in its last run, and the processor's seconds of each."""

    def __init__(self, call: Callable[[], None]):
        self.call, self.bytes = call, 0
        self.processor: list[float] = []

    def __call__(self) -> None:
        before, start = asked_for(), time.process_time()
        self.call()
        self.processor.append(time.process_time() - start)
        self.bytes = asked_for() - before

    def timed(self) -> float:
        """Seconds of one call."""
        start = time.perf_counter()
        self()
        return time.perf_counter() - start


def asked_for() -> int:
    """Bytes that this process has read, from files or sockets, in memory of the system or not."""
    return int(Path("/proc/self/io").read_text().split()[1])


class FileServer(ThreadingHTTPServer):
    """Serves files by their names, in ranges, and counts requests and bytes."""

    daemon_threads = True

    def __init__(self, files: dict[str, Path]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.requests, self.sent = files, Counter(), Counter()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FileServer

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def do_GET(self, body: bool = True) -> None:
        name = self.path.lstrip("/")
        size = os.path.getsize(self.server.files[name])
        asked = self.headers.get("Range", "").removeprefix("bytes=")
        first, last = (int(part) for part in (asked or f"0-{size - 1}").split("-"))
        last = min(last, size - 1)
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f"{name}-{size}")
        self.send_header("Content-Length", str(last - first + 1))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.end_headers()
        self.server.requests[name] += 1
        if body:
            with open(self.server.files[name], "rb") as file:
                self.server.sent[name] += self.connection.sendfile(file, first, last - first + 1) or 0


def remote_rows(case: str, files: dict[str, Path], model: QualityModel) -> list[Row]:
    """Bytes and requests of one score through HTTP."""
    server = FileServer({path.name: path for path in files.values()})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    found = []
    try:
        for name, path in files.items():
            scored(f"http://127.0.0.1:{server.server_address[1]}/{path.name}", model, True)
            sent = server.sent[path.name]
            note = f"{sent / path.stat().st_size:.2%} of the file, in {server.requests[path.name]} requests"
            found.append(Row(case, "a score through HTTP", name, "bytes sent", sent, sent, sent, 1, None, note))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    return found


if __name__ == "__main__":
    sys.exit(main())
