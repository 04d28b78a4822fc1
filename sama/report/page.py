"""A page of one file: template, style, script and data put together, with a policy that allows nothing else.

The Content-Security-Policy of a page allows its own style and script, known by their SHA-256, and pictures inside it or
in the folder beside it. It can load nothing, send nothing, and be sent nowhere by a name in its data: data are JSON in
which no tag can end, and the scripts write them as text.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
from pathlib import Path
from typing import Any

from sama.files import printable, replace_file

PAGES = Path(__file__).parent / "page"
UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def write_page(out: str | os.PathLike[str], name: str, title: str, data: dict[str, Any], *, beside: bool) -> None:
    """Write a page.

    name: "report" or "compare", the template and script in `page/`; title: any text; data: what JSON can hold
    beside: pictures lie in a folder beside the page. `OutputError` where `out` cannot be written.
    """
    replace_file(out, page(name, title, data, beside=beside).encode())


def page(name: str, title: str, data: dict[str, Any], *, beside: bool) -> str:
    """As `write_page`, the text of the page."""
    style = _read("style.css")
    script = _read("common.js") + _read(f"{name}.js")
    pictures = "data: 'self' file:" if beside else "data:"
    policy = (
        f"default-src 'none'; img-src {pictures}; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "connect-src 'none'; base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": policy,
        "title": html.escape(printable(title)),
        "style": style,
        "script": script,
        "data": as_json(data),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _read(f"{name}.html"))  # once: data stay as they are


def as_json(data: Any) -> str:
    """JSON that can stand in a page: no tag begins or ends in it. `ValueError` for numbers that are none."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029]", lambda found: UNSAFE[found[0]], text)


def _read(name: str) -> str:
    return (PAGES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
