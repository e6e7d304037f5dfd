"""A client's text, as bytes."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atoll.errors import DataError

__all__ = ["VOCABULARY", "Text"]

VOCABULARY = 256
"""Tokens are bytes."""


@dataclass(frozen=True)
class Text:
    """What one client brings.

    Attributes:
        tokens: uint8 [n].
        name: what errors call it.
    """

    tokens: Tensor
    name: str = "the text"

    @staticmethod
    def of(source: Any) -> Text:
        """From a file's path, or the text itself as bytes.  Raises DataError for a file that is not there, or empty."""
        if isinstance(source, Text):
            return source
        name = "the text"
        if not isinstance(source, bytes):
            path = Path(source)
            if not path.is_file():
                raise DataError(
                    f"{path}: there is no such file", hint="a text, of which every byte is a token"
                )
            source, name = path.read_bytes(), str(path)
        if not source:
            raise DataError(f"{name} is empty", hint="a text, of which every byte is a token")
        return Text(torch.from_numpy(np.frombuffer(source, np.uint8).copy()), name)

    def divided(self, window: int, share: float) -> tuple[Tensor, Tensor]:
        """Windows to learn from and, from the end of the text, this share of them to judge on: int64 [k, window + 1].

        A window's inputs are all of its tokens but the last, its targets all but the first; windows follow each other,
        each beginning with the last token of the one before.

        Raises DataError where the text is too short for one of both.
        """
        count = (len(self.tokens) - 1) // window
        held = round(count * share)
        if count - held < 1 or (share and not held):
            raise DataError(
                f"{self.name} has {len(self.tokens):,} tokens, too few for windows of {window} to learn from"
                + (" and to judge on" if share else ""),
                hint="set a smaller window, or bring more text",
            )
        starts = torch.arange(count) * window
        windows = self.tokens[starts[:, None] + torch.arange(window + 1)].long()
        return windows[: count - held], windows[count - held :]

    def digest(self) -> str:
        """Which text it is."""
        return sha256(self.tokens.numpy().tobytes()).hexdigest()
