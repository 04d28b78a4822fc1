"""Writing a matplotlib figure: whole or not at all, in a format that its name tells."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from sama.errors import InputError
from sama.files import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "jpg", "jpeg", "pdf", "svg", "webp", "tif", "tiff")


def check_format(path: str | os.PathLike[str]) -> str:
    """The format that the ending of a path names, one of `FORMATS`; `InputError` for any other ending."""
    form = Path(path).suffix.lower().removeprefix(".")
    if form not in FORMATS:
        raise InputError(f"{os.fspath(path)}: cannot tell the format; the name must end in .{', .'.join(FORMATS)}")
    return form


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure at 120 dots per inch. `InputError` for an unknown ending, `OutputError` for a full disk."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # of names in other scripts
        figure.savefig(content, format=check_format(path), dpi=120)
    replace_file(path, content.getvalue())
