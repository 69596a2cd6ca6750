"""Files within a page."""

from __future__ import annotations

import base64
from pathlib import Path

VIDEO = "videos/best.webm"  # in the directory of a run, or of a sweep
LARGEST = 30 * 2**20  # bytes of a video in the page
PICTURES = {".webm": "video/webm", ".gif": "image/gif", ".png": "image/png"}  # that browsers show


def embedded(path: Path) -> dict[str, str] | None:
    """A picture or a video in the page; one that is too large is told by its place. None where there is none."""
    if not path.exists():
        return None
    if path.stat().st_size > LARGEST:
        return {"kind": "large", "uri": str(path)}
    kind = PICTURES[path.suffix]
    return {"kind": kind.partition("/")[0], "uri": data_uri(path.read_bytes(), kind)}


def data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
