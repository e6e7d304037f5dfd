"""What was said, counted: who sent whom how much of what kind, under which cipher."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from atoll.parties.kind import Kind
from atoll.tensors import Record

__all__ = ["Count", "Transcript"]


@dataclass
class Count:
    """Messages of one kind from one party to another.

    `nbytes` are those of what is in them, `framing` those around it. `under` names the cipher ("ou-2048"), None for
    what is sent open; `ciphertexts` counts them.
    """

    sender: str
    receiver: str
    kind: str
    tells: str
    under: str | None = None
    messages: int = 0
    nbytes: int = 0
    framing: int = 0
    ciphertexts: int = 0


class Transcript:
    """What one party, or a whole stage, has sent and received.

    Args:
        keep: whether the records themselves are kept in `said`, as (sender, receiver, kind, record): for tests.
    """

    def __init__(self, keep: bool = False) -> None:
        self._counts: dict[tuple[str, str, str], Count] = {}
        self.keep = keep
        self.said: list[tuple[str, str, str, Record]] = []

    def add(
        self, sender: str, receiver: str, kind: Kind, record: Record, framed: int,
        under: str | None = None, ciphertexts: int = 0,
    ) -> None:  # fmt: skip
        """A message went its way; `framed` are its bytes with all that is around it."""
        count = self._counts.setdefault(
            (sender, receiver, kind.name), Count(sender, receiver, kind.name, kind.tells)
        )
        content = payload(record)
        count.under = under or count.under
        count.messages += 1
        count.nbytes += content
        count.framing += framed - content
        count.ciphertexts += ciphertexts
        if self.keep:
            self.said.append((sender, receiver, kind.name, record))

    def counts(self) -> list[Count]:
        """In the order in which each sort of message came up first."""
        return list(self._counts.values())

    def rows(self) -> list[dict[str, Any]]:
        """The same as plain values."""
        return [asdict(count) for count in self.counts()]

    def nbytes(self) -> dict[str, int]:
        """Bytes by kind, over all who said it."""
        return _summed((count.kind, count.nbytes) for count in self.counts())

    def ciphertexts(self) -> int:
        """How many were sent in all."""
        return sum(count.ciphertexts for count in self.counts())


def payload(record: Record) -> int:
    """Bytes of what is in a message: its tensors, and eight for each single number, the text for a text."""
    total = 0
    for value in record.values():
        if isinstance(value, torch.Tensor):
            total += value.numel() * value.element_size()
        else:
            total += len(value.encode()) if isinstance(value, str) else 8
    return total


def _summed(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for key, value in pairs:
        found[key] = found.get(key, 0) + value
    return found
