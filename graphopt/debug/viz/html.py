"""The report as one HTML file that needs nothing else, neither network nor server.

The page is built from viewer/ (TypeScript) into static/; the document of the compilation goes into it gzipped, and the
browser unpacks it.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
from pathlib import Path

from graphopt.debug.history import Compilation
from graphopt.debug.viz.model import View, document

STATIC = Path(__file__).parent / "static"


def page(compilation: Compilation, view: View) -> bytes:
    """The report of one compilation, UTF-8. The same compilation gives the same bytes."""
    found = json.dumps(document(compilation, view), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    packed = gzip.compress(found.encode(), mtime=0)
    parts = {
        "title": html.escape(" · ".join(filter(None, (compilation.name, view.pipeline, "graphopt")))),
        "style": _static("report.css"),
        "document": base64.b64encode(packed).decode(),
        "script": _static("report.js"),
    }
    head, *rest = _static("report.html").split("{")
    pieces = [head]
    for piece in rest:  # each starts with the name of a part
        name, _, text = piece.partition("}")
        pieces += [parts[name], text]
    return "".join(pieces).encode()


def _static(name: str) -> str:
    return (STATIC / name).read_text(encoding="utf-8")
