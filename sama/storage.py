"""Media that is no local file: on any storage that fsspec opens, within a tar, or in memory.

    "s3://bucket/a.mp4", "https://host/a.mp4", "tar://a.mp4::s3://bucket/shard.tar" --find--> Content --Handle--> FFmpeg

A `Content` gives bytes by their place. That of a remote file asks for ranges, keeps a few blocks, waits and tries again
where the network fails, and says what went wrong; it never gives bytes of two versions of a file without saying so.
"""

from __future__ import annotations

import io
import os
import random
import re
import tarfile
import tempfile
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sama.errors import DecodeError, InputError, MissingLibraryError

if TYPE_CHECKING:
    import numpy as np

BLOCK_BYTES = 1 << 18
RUN_BLOCKS = 32  # asked for at once where a file is read on and on: 8 MiB
KEPT_BLOCKS = 128  # of a file: 32 MiB
KEPT_INDEXES = 64  # of tars
REQUEST_SECONDS = 20.0  # within which an answer must be there, and
SLOW_BYTES_PER_SECOND = 1 << 18  # more for what is asked for
ATTEMPTS = 5
BACKOFF_SECONDS = 0.5  # before the second attempt; twice as long before each one after it
HTTP = ("http", "https")
WEB = re.compile(r"https?://", re.I)
URL = re.compile(r"[a-z][a-z0-9+.-]+(://|::)", re.I)  # of two letters at least: "C:\\" is a drive
VERSION_KEYS = ("size", "ETag", "etag", "LastModified", "Last-Modified", "mtime", "generation", "VersionId", "created")
PERMANENT = (
    *(FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError),
    *(NotImplementedError, TypeError, ValueError, ImportError),  # of a library that is asked for what it cannot do
)
KEYS = ("path", "key", "__key__", "id")  # columns that name what has no path, where no other is given
EXTRAS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}
EXTRAS |= {"hf": "huggingface_hub", "abfs": "adlfs", "az": "adlfs"}


@dataclass(frozen=True)
class Media:
    """What is scored beside files that have a path: `data` under the name `key`.

    data: the bytes of a file, or pixels, uint8 [T, H, W, 3] of a video, [H, W, 3] of an image; None for nothing at all
    fps: of pixels, for their times; problem: why there are no data, else ""
    """

    key: str
    data: bytes | np.ndarray | None
    fps: float | None = None
    problem: str = ""


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether a path names something other than a local file: an address, or a member of a tar."""
    name = os.fsdecode(path)
    return "://" in name and URL.match(name) is not None and not os.path.lexists(name)


def plain_name(path: str | os.PathLike[str]) -> str:
    """The name of a file without what stands around it in an address: the chain, the query, the fragment."""
    name = os.fsdecode(path)
    if not is_url(name):
        return name
    name = next(part for part in name.split("::") if "://" in part)
    return re.split("[?#]", name)[0] if WEB.match(name) else name


def find(path: str) -> Content | None:
    """The content of what is no local file, None for a local path. `DecodeError` where it cannot be had."""
    if not is_url(path):
        return None
    if path.startswith("file://"):
        return LocalFile(path.removeprefix("file://"), path)
    member, chained, base = path.partition("::")
    try:
        if chained and member.startswith("tar://"):
            return Member(path, member.removeprefix("tar://"), base)
        return Remote(path)
    except (InputError, MissingLibraryError) as error:
        raise DecodeError(path, str(error).removeprefix(f"{path}: ")) from error


class Content:
    """The bytes of one file. For one thread at a time.

    name: of the file, for messages; size: in bytes
    error: what made it impossible to read on: from then on there are no more bytes
    """

    name: str
    size: int
    error: DecodeError | None = None

    def read_at(self, start: int, length: int) -> bytes:
        """Bytes from `start` on, at most to the end; fewer, and `error` set, where they cannot be had."""
        raise NotImplementedError

    def check(self) -> None:
        """`DecodeError` where bytes could not be had, or the file has changed since it was opened."""
        if self.error is not None:
            raise self.error

    def whole(self) -> bytes:
        """All bytes. `DecodeError` where they cannot be had."""
        data = self.read_at(0, self.size)
        self.check()
        return data


class InMemory(Content):
    """Bytes that are at hand."""

    def __init__(self, data: bytes, name: str):
        self.name, self.size, self._data = name, len(data), data

    def read_at(self, start: int, length: int) -> bytes:
        return self._data[start : start + length]


class LocalFile(Content):
    """A local file that is read in part, such as a tar."""

    def __init__(self, path: str, name: str):
        from sama.decode.packets import check_file

        try:
            check_file(path)
            self._file = os.open(path, os.O_RDONLY)
        except (OSError, DecodeError) as error:
            raise DecodeError(name, error.reason if isinstance(error, DecodeError) else str(error.strerror)) from None
        weakref.finalize(self, os.close, self._file)
        self.name, self.size = name, os.fstat(self._file).st_size

    def read_at(self, start: int, length: int) -> bytes:
        return os.pread(self._file, length, start)

    @property
    def version(self) -> object:
        found = os.fstat(self._file)
        return found.st_ino, found.st_size, found.st_mtime_ns


class Remote(Content):
    """A file on any storage of fsspec's, by ranges, with its last `KEPT_BLOCKS` blocks kept.

    Where a server does not give ranges, the file is brought to a temporary file first.
    """

    def __init__(self, url: str):
        self.name = url
        self._fs, self._path = filesystem(url)
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._next, self._run = 0, 1  # the block after the last request; how many to ask for if it goes on there
        self._local: LocalFile | None = None
        self._unchecked = False  # whether bytes have come since the version was looked at
        info = self._attempts(lambda: call(self._fs, "info", self._path))
        if info.get("type") == "directory":
            raise DecodeError(url, "a directory, not a file")
        self.version = _version(info)
        if info.get("size") is None or info.get("partial") is False:
            self._bring(info.get("size"))
        else:
            self.size = int(info["size"])

    def read_at(self, start: int, length: int) -> bytes:
        end = min(start + length, self.size)
        if self.error is not None or start >= end:
            return b""
        if self._local is not None:
            return self._local.read_at(start, length)
        parts = []
        try:
            for number in range(start // BLOCK_BYTES, (end - 1) // BLOCK_BYTES + 1):
                block = self._block(number, (end - 1) // BLOCK_BYTES + 1 - number)
                if self._local is not None:  # the server turned out to give no ranges
                    return self._local.read_at(start, length)
                parts.append(block[max(0, start - number * BLOCK_BYTES) : end - number * BLOCK_BYTES])
        except DecodeError as error:
            self.error = error
        return b"".join(parts)

    def check(self) -> None:
        super().check()
        if self._unchecked:
            self._unchecked = False
            if _version(self._attempts(lambda: call(self._fs, "info", self._path))) != self.version:
                self.error = DecodeError(self.name, "it changed while it was read")
                raise self.error

    def _block(self, number: int, wanted: int) -> bytes:
        """A block; `wanted` of them are needed from here on."""
        if number in self._blocks:
            self._blocks.move_to_end(number)
            return self._blocks[number]
        self._run = min(2 * self._run, RUN_BLOCKS) if number == self._next else 1
        count = min(max(self._run, wanted), RUN_BLOCKS)
        kept = [at for at in range(1, count) if number + at in self._blocks]
        count = min(kept, default=count)
        first, last = number * BLOCK_BYTES, min((number + count) * BLOCK_BYTES, self.size)
        try:
            data = self._attempts(lambda: self._range(first, last))
        except _NoRangesError:
            self._bring(self.size)
            return b""
        for at in range(0, len(data), BLOCK_BYTES):
            self._blocks[number + at // BLOCK_BYTES] = data[at : at + BLOCK_BYTES]
        self._next = number + count
        while len(self._blocks) > KEPT_BLOCKS:
            self._blocks.popitem(last=False)
        return self._blocks[number]

    def _range(self, start: int, end: int) -> bytes:
        if is_web(self._fs):
            data = call(self._fs, _web_range, self._path, start, end, seconds=allowed(end - start))
        else:
            data = call(self._fs, "cat_file", self._path, start=start, end=end, seconds=allowed(end - start))
        if len(data) != end - start:
            raise _ShortError(f"the answer has {len(data)} bytes of the {end - start} that were asked for")
        self._unchecked = True
        return bytes(data)

    def _bring(self, size: int | None) -> None:
        """The whole file into a temporary one."""
        handle, place = tempfile.mkstemp(prefix="sama-")
        os.close(handle)
        try:
            seconds = allowed(size or 0) if size else None
            self._attempts(lambda: call(self._fs, "get_file", self._path, place, seconds=seconds, wait=True))
            if size is not None and os.path.getsize(place) != size:
                raise DecodeError(self.name, "the answer breaks off, or the file changed while it was read")
            self._local = LocalFile(place, self.name)
        finally:
            os.unlink(place)
        self.size, self._unchecked = self._local.size, True

    def _attempts(self, request: Callable[[], Any]) -> Any:
        return attempts(request, self.name)


class Member(Content):
    """A file within a tar, read where it lies."""

    def __init__(self, url: str, member: str, base: str):
        self.name = url
        try:
            shard = find(base) or LocalFile(base, base)
            place = members(shard).get(member)
        except DecodeError as error:
            raise DecodeError(url, f"{error.path}: {error.reason}" if error.path != url else error.reason) from error
        if place is None:
            raise DecodeError(url, "the tar has no such member")
        self._shard, (self._start, self.size) = shard, place

    def read_at(self, start: int, length: int) -> bytes:
        data = self._shard.read_at(self._start + start, max(0, min(length, self.size - start)))
        if self._shard.error is not None:
            self.error = DecodeError(self.name, self._shard.error.reason)
        return data

    def check(self) -> None:
        super().check()
        try:
            self._shard.check()
        except DecodeError as error:
            raise DecodeError(self.name, error.reason) from error


class Handle(io.RawIOBase):
    """A position in a content, for FFmpeg and others that read files. Errors are kept in the content."""

    def __init__(self, content: Content):
        self._content, self._at = content, 0
        self.name = os.path.basename(plain_name(content.name))  # FFmpeg looks at the ending

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._content.read_at(self._at, len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._content.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at


class _NoRangesError(Exception):
    """The server gives whole files alone."""


class _ShortError(Exception):
    """Fewer bytes than were asked for."""


def attempts(request: Callable[[], Any], name: str) -> Any:
    """What a request gives, tried `ATTEMPTS` times. `DecodeError` where it fails for good."""
    for attempt in range(ATTEMPTS):
        try:
            return request()
        except (_NoRangesError, DecodeError, MissingLibraryError):
            raise
        except Exception as caught:
            error = _cause(caught)
            if _is_permanent(error):
                raise DecodeError(name, _reason(error)) from error
            if attempt + 1 == ATTEMPTS:
                raise DecodeError(name, f"{_reason(error)} ({ATTEMPTS} attempts)") from error
        time.sleep(BACKOFF_SECONDS * 2**attempt * random.uniform(0.5, 1.0))


def _cause(error: Exception) -> Exception:
    """The error of a request: fsspec's HTTP calls whatever goes wrong a missing file."""
    cause = error.__cause__
    return cause if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) else error


def _is_permanent(error: Exception) -> bool:
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return 400 <= status < 500 and status not in (408, 425, 429)
    return isinstance(error, PERMANENT) or "Credentials" in type(error).__name__


def _status(error: Exception) -> int | None:
    """The status of an answer that was no good; of S3's it is in the error behind s3fs's."""
    status = getattr(error, "status", None)
    answer = getattr(error.__cause__, "response", None)
    if status is None and isinstance(answer, dict):
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status if isinstance(status, int) else None


def _reason(error: Exception) -> str:
    """What went wrong with a request, for a row."""
    status = _status(error)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return "no such file"
    if isinstance(error, PermissionError) or status in (401, 403) or "Credentials" in type(error).__name__:
        return f"may not be read: permission denied ({error})" if str(error) else "may not be read: permission denied"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, _ShortError) or type(error).__name__ in ("ClientPayloadError", "IncompleteRead"):
        return f"the answer breaks off ({error})"
    if isinstance(status, int):
        said = getattr(error, "message", None) or getattr(error, "strerror", None) or ""
        return f"the server answers {status} {said}".strip()
    return f"cannot be read ({type(error).__name__}: {error})"


def allowed(size: int) -> float:
    """Seconds that a request of so many bytes may take."""
    return REQUEST_SECONDS + size / SLOW_BYTES_PER_SECOND


def is_web(fs: Any) -> bool:
    return any(name in HTTP for name in ([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol))


def call(fs: Any, method: Any, *arguments: Any, seconds: float | None = None, wait: bool = False, **named: Any) -> Any:
    """Call a method of a file system, or a coroutine function of (file system, ...), within so many seconds.

    wait: without a limit where `seconds` is None, in place of `REQUEST_SECONDS`
    """
    if not getattr(fs, "async_impl", False):
        return getattr(fs, method)(*arguments, **named)
    from fsspec.asyn import sync

    function = getattr(fs, f"_{method}") if isinstance(method, str) else lambda *a, **n: method(fs, *a, **n)
    return sync(fs.loop, function, *arguments, timeout=seconds or (None if wait else REQUEST_SECONDS), **named)


async def _web_range(fs: Any, url: str, start: int, end: int) -> bytes:
    """Bytes of a file on the web; `_NoRangesError` before anything is read where the server gives it whole."""
    options = dict(fs.kwargs)
    headers = {**options.pop("headers", {}), "Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    session = await fs.set_session()
    async with session.get(fs.encode_url(url), headers=headers, **options) as answer:
        answer.raise_for_status()
        if answer.status != 206:
            raise _NoRangesError
        data: bytes = await answer.read()
        return data


_systems: dict[tuple[int, str], Any] = {}
_systems_lock = threading.Lock()


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system of an address, and the path there. `MissingLibraryError` where its library is missing,
    `InputError` for an address that fsspec does not know."""
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise MissingLibraryError(f'{url}: install fsspec with `pip install "sama-vqa[remote]"`') from None
    protocol = re.split("://|::", url)[0].lower()
    key = (os.getpid(), protocol)
    with _systems_lock:
        try:
            known = _systems.get(key)
            if known is not None:
                return known, known._strip_protocol(url)
            fs, path = url_to_fs(url, **_options(protocol))
        except ImportError as error:
            library = EXTRAS.get(protocol, "its library")
            raise MissingLibraryError(
                f'{protocol}:// needs {library}; install that, or `pip install "sama-vqa[remote]"` ({error})'
            ) from None
        except ValueError as error:
            raise InputError(f"{url}: {error}") from None
        if protocol in ("s3", "s3a"):
            fs.retries = 1  # it is tried again here
        if getattr(fs, "async_impl", False) and "::" not in url:
            _systems[key] = fs  # for all threads: fsspec makes one for each, whose connections are never closed
    return fs, path


def _options(protocol: str) -> dict[str, Any]:
    """Options of a file system beside those of the user's fsspec configuration."""
    options: dict[str, Any] = {}
    if protocol in ("s3", "s3a", "gs", "gcs", *HTTP):
        options["use_listings_cache"] = False  # a changed file would not be noticed
    if protocol in ("s3", "s3a"):
        from fsspec.config import conf

        given = conf.get(protocol, {}).get("config_kwargs", {})
        options["config_kwargs"] = {"retries": {"max_attempts": 0}, "read_timeout": REQUEST_SECONDS, **given}
    return options


def _version(info: dict[str, Any]) -> dict[str, str]:
    return {key: str(info[key]) for key in VERSION_KEYS if info.get(key) is not None}


_indexes: OrderedDict[tuple[str, str], dict[str, tuple[int, int]]] = OrderedDict()


def members(shard: Content) -> dict[str, tuple[int, int]]:
    """Place and size of the files in a tar, by their names; those of the last `KEPT_INDEXES` tars are remembered.

    `DecodeError` where it is no tar, or a compressed one.
    """
    key = shard.name, str(getattr(shard, "version", ""))
    if key in _indexes:
        return _indexes[key]
    found = {}
    try:
        with tarfile.open(fileobj=io.BufferedReader(Handle(shard), 1 << 12), mode="r:") as tar:
            for member in tar:
                if member.isreg() and not member.issparse():
                    found[member.name] = (member.offset_data, member.size)
                tar.members = []  # type: ignore[attr-defined] # or it keeps them all
    except tarfile.TarError as error:
        shard.check()
        raise DecodeError(shard.name, f"no tar, or a compressed one, whose members cannot be read ({error})") from None
    shard.check()
    _indexes[key] = found
    while len(_indexes) > KEPT_INDEXES:
        _indexes.popitem(last=False)
    return found


def listed(url: str, suffixes: Iterable[str]) -> list[str]:
    """The files that an address stands for: itself, those below a folder, those of a glob, or the members of a tar,
    in sorted order; of folders and tars those with one of the suffixes. `InputError` where it cannot be listed."""
    wanted = tuple(suffixes)
    if plain_name(url).lower().endswith(".tar"):
        try:
            shard = find(url) or LocalFile(url, url)
            names = sorted(members(shard))
        except DecodeError as error:
            raise InputError(str(error)) from None
        return [f"tar://{name}::{url}" for name in names if _is_media(name, wanted)]
    if "::" in url or url.startswith("file://"):
        return [url]
    fs, path = filesystem(url)
    if WEB.match(url) or (_is_media(url, wanted) and not any(mark in path for mark in "*?[")):
        return [url]
    if any(mark in path for mark in "*?["):
        found, folder = attempts(lambda: call(fs, "glob", path, wait=True), url), False
    elif url.endswith("/") or attempts(lambda: call(fs, "isdir", path), url):
        found, folder = attempts(lambda: call(fs, "find", path, wait=True), url), True
    else:
        return [url]
    names = [fs.unstrip_protocol(name) for name in sorted(found)]
    return [name for name in names if not folder or _is_media(name, wanted)]


def _is_media(name: str, suffixes: tuple[str, ...]) -> bool:
    return name.lower().endswith(suffixes) and not os.path.basename(name).startswith(".")
