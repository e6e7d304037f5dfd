"""Tells a coordinator's notebook of rounds."""

from __future__ import annotations

import hashlib
from typing import Any

from atoll.callbacks import Callback
from atoll.codec import pieces
from atoll.network.notebook import Notebook

__all__ = ["Told"]


class Told(Callback):
    """Writes down that a run begins or goes on, and each round that counts with the hash of its model.

    The hash is the SHA-256 of the encoded state (`atoll.codec`): what nodes get as `shared` holds the same tensors.
    """

    def __init__(self, notebook: Notebook) -> None:
        self.notebook = notebook

    def on_start(self, federation: Any) -> None:
        event = "run-resumed" if federation.number else "run-begun"
        self.notebook.note(event, round=federation.number, folder=_name(federation))

    def on_round_end(self, federation: Any, record: Any) -> None:
        book = self.notebook
        book.phases["round"].add(record.seconds)
        if record.spent is not None:
            book.epsilon = _number(record.spent.epsilon)
        model = hashlib.sha256()
        for piece in pieces(federation.state):
            model.update(piece)
        book.note("round-committed", round=record.number, model=model.hexdigest(), loss=_number(record.loss),
                  seconds=round(record.seconds, 3))  # fmt: skip


def _name(federation: Any) -> str | None:
    return None if federation.folder is None else str(federation.folder.name)


def _number(value: float) -> float | None:
    return value if value == value and abs(value) != float("inf") else None
