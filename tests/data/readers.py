"""Reading tables with one frame library alone, or with none."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from atoll.data import delimited

LIBRARIES = ("pandas", "polars")


@contextmanager
def only(library: str) -> Iterator[None]:
    """Files of any size are read as large ones, where of the frame libraries this one is installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "_LARGE", 0)
        for each in LIBRARIES:
            if each != library:
                patch.setitem(sys.modules, each, None)
        yield
