"""The page as one self-contained HTML file: one run, or several and how they compare."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from atoll.runs.digest import compact
from atoll.runs.events import Event
from atoll.runs.folder import writing

__all__ = ["FILES", "page", "write"]

FILES = Path(__file__).parent / "page"
"""Where the parts of the page are."""

_STYLE = re.compile(r'<link rel="stylesheet" href="([^"]+)">\n')
_SCRIPT = re.compile(r'<script src="([^"]+)"></script>\n')
_ICON = re.compile(r'<link rel="icon"[^>]*>\n')


def page(
    title: str,
    runs: Sequence[Sequence[Event]],
    comparison: Mapping[str, Any] | None = None,
    audits: Sequence[Mapping[str, Any] | None] = (),
) -> str:
    """The page as text; it asks for nothing from outside.

    Args:
        runs: the events of each run. One run is shown at once; of several, the comparison, from which each run opens.
        comparison: `Comparison.to_dict()` of these runs; without it every run is a curve of its own.
        audits: what was found about each (`RunFolder.audit`), where anything was.
    """
    named = []
    for index, events in enumerate(runs):
        start: Event = next((event for event in events if event["event"] == "start"), {})
        name = str(start.get("run") or f"run {index + 1}")
        audit = audits[index] if index < len(audits) else None
        named.append({"name": name, "events": compact(events, share=len(runs)), "audit": audit})
    data = msgspec.json.encode({"title": title, "runs": named, "comparison": comparison})
    text = data.replace(b"<", b"\\u003c").decode()  # nothing in it can end the element that holds it
    before, after = _shell()
    return f'{before}<script type="application/json" id="atoll-data">{text}</script>\n{after}'


def write(
    path: str | Path,
    title: str,
    runs: Sequence[Sequence[Event]],
    comparison: Mapping[str, Any] | None = None,
    audits: Sequence[Mapping[str, Any] | None] = (),
) -> None:
    """Put the page into a file, as a whole or not at all.  Raises RunError where it cannot be written."""
    file = Path(path)
    text = page(title, runs, comparison, audits)
    part = file.with_name(f".{file.name}.part")
    with writing(file, "the report"):
        part.write_text(text, "utf-8")
        os.replace(part, file)


@cache
def _shell() -> tuple[str, str]:
    """The page without data, in two halves: the data belongs between them."""
    html = (FILES / "index.html").read_text("utf-8")
    style = "\n".join((FILES / name).read_text("utf-8") for name in _STYLE.findall(html))
    script = "\n".join((FILES / name).read_text("utf-8") for name in _SCRIPT.findall(html))
    policy = f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:"
    policy += "; base-uri 'none'; form-action 'none'"
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<style>{style}</style>\n'
    html = _ICON.sub("", _STYLE.sub("", html))
    before, _, after = html.partition("</head>")
    body, _, end = after.partition(_SCRIPT.search(after)[0])  # type: ignore[index]
    return f"{before}{head}</head>{body}", f"<script>{script}</script>\n{_SCRIPT.sub('', end)}"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
