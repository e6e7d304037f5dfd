"""Keeping Ctrl-C and SIGTERM out of moments that must not be cut in half."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["undisturbed"]


@contextmanager
def undisturbed() -> Iterator[None]:
    """Inside, SIGINT and SIGTERM wait; what came is handled at the end. Blocks may be nested."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread handles signals
        yield
        return
    came: list[tuple[int, Any]] = []
    before = {
        number: signal.signal(number, lambda *which: came.append(which))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
    for which, frame in came[:1]:
        handler = before[signal.Signals(which)]
        if callable(handler):
            handler(which, frame)
        elif handler == signal.SIG_DFL:
            signal.raise_signal(which)
