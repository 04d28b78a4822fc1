"""Scores to look at: a page for a folder of scores or for one file, a comparison of encodes, a log as libvmaf's.

    rows of `sama score` -> pictures of their worst and best moments -> one page, `write_report`
    encodes of one source -> windows matched in time -> differences with intervals, `compare`, `write_comparison`

A page is one file without requests (`sama.report.page`); what it needs of HTML, CSS and JavaScript is in `page/`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sama.report.comparison import Comparison as Comparison
    from sama.report.comparison import compare as compare
    from sama.report.comparison_page import write_comparison as write_comparison
    from sama.report.files import write_report as write_report
    from sama.report.vmaf_log import vmaf_log as vmaf_log

_HOMES = {
    "Comparison": "sama.report.comparison",
    "compare": "sama.report.comparison",
    "vmaf_log": "sama.report.vmaf_log",
    "write_comparison": "sama.report.comparison_page",
    "write_report": "sama.report.files",
}

__all__ = [*_HOMES]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            return getattr(import_module(_HOMES[name]), name)
        raise AttributeError(f"module 'sama.report' has no attribute {name!r}")
