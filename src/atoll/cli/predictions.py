"""Predictions as they are written: CSV, or JSON line by line."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

from atoll.runs.folder import writing

__all__ = ["Row", "write"]

Row: TypeAlias = tuple[int | str, str | float, Mapping[str, float]]
"""What names it, a class and the share of each, or a number and nothing."""


def write(rows: Iterable[Row], heading: str, as_json: bool, out: str | None) -> None:
    """Write predictions to a file, whole or not at all, or to the terminal.

    Args:
        heading: what the first column is called.
    """
    found = list(rows)
    text = "".join((_json if as_json else _csv)(found, heading))
    if out is None:
        sys.stdout.write(text)
        return
    part = Path(f"{out}.part")
    with writing(Path(out), "the predictions"):
        part.write_text(text, "utf-8")
        os.replace(part, out)
    print(f"{len(found):,} rows written to {out}", file=sys.stderr)


def _csv(found: list[Row], heading: str) -> Iterator[str]:
    """A line for each row: its name, the class and the shares, or the number."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    names = list(found[0][2]) if found else []
    writer.writerow([heading, "class", *(f"share {name}" for name in names)] if names else [heading, "value"])
    for name, value, shares in found:
        told = value if isinstance(value, str) else _plain(value)
        writer.writerow([name, told, *map(_plain, shares.values())])
    yield stream.getvalue()


def _json(found: list[Row], heading: str) -> Iterator[str]:
    """The same, an object a line."""
    for name, value, given in found:
        shares = {each: float(_plain(share)) for each, share in given.items()}
        said = {"class": value, "shares": shares} if shares else {"value": float(_plain(float(value)))}
        yield json.dumps({heading: name, **said}, ensure_ascii=False) + "\n"


def _plain(number: float) -> str:
    """A number to the nine digits that tell any two of single precision apart."""
    return f"{number:.9g}"
