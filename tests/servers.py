"""Servers on the loopback interface for tests: files over HTTP with and without ranges and with faults, and S3."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Fault = Callable[[int], str]  # of the number of a GET, from 1: "", or what goes wrong


class FileServer(ThreadingHTTPServer):
    """Serves `files` by their names.

    ranges: whether it gives ranges. faults: by name, a function of the number of the GET that says what goes wrong:
    "503", "404", "hang", "truncate", "change" (the file is another one from then on), or nothing
    gets, heads: how many requests there were by name; sent: bytes of bodies by name
    """

    daemon_threads = True

    def __init__(self, *, ranges: bool = True):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.ranges, self.files, self.faults = ranges, {}, {}
        self.gets, self.heads, self.sent = Counter(), Counter(), Counter()
        self.stopping = threading.Event()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"

    def put(self, name: str, content: bytes, fault: Fault | None = None) -> str:
        """Serve a file; its address."""
        self.files[name] = content
        if fault:
            self.faults[name] = fault
        return self.url(name)

    def changed(self, name: str) -> bytes:
        """Another content of the same size for a file."""
        content = self.files[name]
        return content[: len(content) // 2] + bytes(len(content) - len(content) // 2)

    def handle_error(self, request, client_address):
        """Clients that hang up are no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FileServer

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.server.heads[self.name] += 1
        self.answer(body=False)

    def do_GET(self):
        self.server.gets[self.name] += 1
        fault = self.server.faults.get(self.name, lambda number: "")(self.server.gets[self.name])
        if fault == "503":
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault == "hang":
            self.server.stopping.wait(60)
            self.close_connection = True
            return
        if fault == "change":
            self.server.files[self.name] = self.server.changed(self.name)
        self.answer(body=True, truncated=fault == "truncate")

    @property
    def name(self) -> str:
        return self.path.lstrip("/").partition("?")[0]

    def answer(self, *, body: bool, truncated: bool = False):
        content = self.server.files.get(self.name)
        if content is None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        asked = self.headers.get("Range") if self.server.ranges else None
        part = content
        if asked:
            first, last = asked.removeprefix("bytes=").split("-")
            first, last = int(first), min(int(last), len(content) - 1)
            part = content[first : last + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        else:
            self.send_response(200)
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", hashlib.md5(content).hexdigest())
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if not body:
            return
        if truncated:
            part = part[: len(part) // 2]
            self.close_connection = True
        self.server.sent[self.name] += len(part)
        with contextlib.suppress(OSError):
            self.wfile.write(part)


@contextlib.contextmanager
def file_server(*, ranges: bool = True) -> Iterator[FileServer]:
    server = FileServer(ranges=ranges)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.stopping.set()
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def listener() -> Iterator[tuple[int, list]]:
    """A port that nobody should connect to, and the connections that were made."""
    connections: list = []
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.settimeout(0.05)
        stop = threading.Event()

        def listen():
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    connection, address = sock.accept()
                    connections.append(address)
                    connection.close()

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield sock.getsockname()[1], connections
        finally:
            time.sleep(0.1)
            stop.set()
            thread.join()


class _Faulty:
    """A WSGI application with faults, as those of `FileServer`: by the end of the path, of the number of the GET.

    change: called with the name of a file that is to be another one from now on
    """

    def __init__(self, application):
        self.application, self.faults, self.gets = application, {}, Counter()
        self.stopping = threading.Event()
        self.change: Callable[[str], object] = lambda name: None

    def __call__(self, environ, start_response):
        name = environ["PATH_INFO"].rpartition("/")[2]
        fault = ""
        if environ["REQUEST_METHOD"] == "GET" and name in self.faults:
            self.gets[name] += 1
            fault = self.faults[name](self.gets[name])
        if fault == "503":
            start_response("503 Service Unavailable", [("Content-Length", "0")])
            return []
        if fault == "hang":
            self.stopping.wait(60)
        if fault == "change":
            self.change(name)
        body = b"".join(self.application(environ, start_response))
        return [body[: len(body) // 2]] if fault == "truncate" else [body]


@contextlib.contextmanager
def s3_server(monkeypatch) -> Iterator[tuple[_Faulty, object]]:
    """moto as a server on loopback, and a boto3 client with the bucket "films" in it; s3:// leads there."""
    import boto3
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    from sama import storage

    faulty = _Faulty(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, faulty, threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": address,
    }.items():
        monkeypatch.setenv(name, value)
    storage._systems.clear()
    client = boto3.client("s3")
    client.create_bucket(Bucket="films")
    try:
        yield faulty, client
    finally:
        storage._systems.clear()
        client.close()
        faulty.stopping.set()
        server.shutdown()
        thread.join()
        server.server_close()
