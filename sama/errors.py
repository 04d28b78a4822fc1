"""The project's exceptions. `SamaError` is the root of them all: what a user can put right, said in one line.

Anything else that escapes is a bug of this project or of a library, and keeps its traceback.
"""

from __future__ import annotations

from typing import TypeVar

AnyError = TypeVar("AnyError", bound=Exception)


class SamaError(Exception):
    """Root of the exceptions that this project raises on purpose."""


class InputError(SamaError, ValueError):
    """An argument, option or setting that cannot be used: what was got, what was expected, what to do."""


class DeviceError(InputError, RuntimeError):
    """The device that was asked for is not there."""


class MissingLibraryError(SamaError, ImportError):
    """An optional library is needed and not installed, or cannot run here; says how to install it."""


class MissingFileError(SamaError, FileNotFoundError):
    """A file that the user named, of weights or labels, does not exist."""

    def __init__(self, path: str) -> None:
        super().__init__(f"no such file: {path}")


class DecodeError(SamaError):
    """A file that cannot be read as a video or an image: `path` and `reason`. The only error that a bad file raises."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class DamageError(DecodeError):
    """The stream of a video reports damage: whoever reads whole files decodes it again, see `sama.decode.again`."""


class IndexMismatchError(DecodeError):
    """A video is not as its file's tables say: it is to be opened by reading all packets, see `sama.decode.again`."""


class LabelError(InputError):
    """A label file that cannot be trusted: the file, the line, what was got and what was expected."""


class CheckpointError(SamaError, ValueError):
    """A checkpoint that cannot be read, is not known, or does not fit the model."""


class NoWeightsError(SamaError):
    """There is no model to score with: the packaged file is missing, or the file given has no trained head."""


class FfmpegError(SamaError):
    """The FFmpeg program cannot be run, failed, or took too long."""


class OutputError(SamaError):
    """An output file cannot be written, or cannot be resumed."""


def reason(error: Exception) -> str:
    """Why a file failed, in words for a table: the reason of a `DecodeError`, else the type and text of the error."""
    return error.reason if isinstance(error, DecodeError) else f"{type(error).__name__}: {error}"


def without_traceback(error: AnyError) -> AnyError:
    """The error without its traceback and causes, which would keep the frames of its job in memory."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
