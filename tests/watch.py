"""Which files are opened in a folder."""

import ctypes
import os
import struct
from pathlib import Path

IN_OPEN, IN_ISDIR, IN_NONBLOCK = 0x20, 0x40000000, 0o4000


class Watch:
    """Names of the files that anyone opens in a folder, by inotify: calls of C code are seen too."""

    def __init__(self, folder: Path):
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self.libc.inotify_init1(IN_NONBLOCK)
        assert self.fd >= 0
        assert self.libc.inotify_add_watch(self.fd, os.fsencode(folder), IN_OPEN) >= 0

    def opened(self) -> set[str]:
        names = set()
        while True:
            try:
                events = os.read(self.fd, 1 << 16)
            except BlockingIOError:
                return names
            while events:
                _, mask, _, length = struct.unpack_from("iIII", events)
                if not mask & IN_ISDIR:
                    names.add(os.fsdecode(events[16 : 16 + length].rstrip(b"\0")))
                events = events[16 + length :]
