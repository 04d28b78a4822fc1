"""Scalars for TensorBoard, on the disk as they come.

TensorBoard's own writer is a thread, which prints a traceback where the disk is full, and names no file.
"""

from __future__ import annotations

import io
import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from sama.errors import OutputError


class EventFile:
    """A new file of events in a folder. `OutputError` where it cannot be written, here and later."""

    def __init__(self, folder: Path) -> None:
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        count = sum(path.name.startswith(name) for path in folder.iterdir())
        self.path = folder / f"{name}.{count}"
        self._add(file_version="brain.Event:2")

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Note a value."""
        self._add(step=step, summary=Summary(value=[Summary.Value(tag=name, simple_value=value)]))

    def _add(self, **content: object) -> None:
        record = io.BytesIO()
        RecordWriter(record).write(Event(wall_time=time.time(), **content).SerializeToString())
        try:
            with open(self.path, "ab") as file:
                file.write(record.getvalue())
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error.strerror or error}") from error
