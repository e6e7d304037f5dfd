"""What is known of each client in rounds that are over, in a file: of many clients it would fill the memory."""

from __future__ import annotations

import os
import tempfile
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from atoll.rounds.history import Round

__all__ = ["Archive"]

_MANY = 100
"""Clients from which on what is known of each is worth a file."""

V = TypeVar("V")


class Archive:
    """A file without a name in which figures lie, client by client; it ends with the last round that reads there.

    What is read is what was laid there, to the bit.
    """

    def __init__(self) -> None:
        self._file: int | None = None
        self._end = 0

    def laid(self, record: Round, before: Round | None = None) -> Round:
        """The same round, with its clients' figures in the file where they are many; as it is where there is no room.

        The numbers of clients that were in the cohort `before`, too, are held once.
        """
        try:
            found = record.evaluation
            if found is not None:
                found = replace(found, each={kind: self._values(each) for kind, each in found.each.items()})
            if len(record.cohort) < _MANY:
                return replace(record, evaluation=found)
            clients = _Laid({name: self._lay("d", column) for name, column in record.clients.items()})
        except OSError:
            return record
        cohort = record.cohort if before is None else _shared(record.cohort, before.cohort)
        return replace(record, cohort=cohort, clients=clients, evaluation=found)

    def _values(self, each: Mapping[str, Mapping[int, float]]) -> Mapping[str, Mapping[int, float]]:
        if all(len(values) < _MANY for values in each.values()):
            return each
        return _Laid(
            {name: partial(_by_client, self._lay("q", values), self._lay("d", values.values()))
             for name, values in each.items()}
        )  # fmt: skip

    def _lay(self, kind: str, values: Iterable[Any]) -> Callable[[], list[Any]]:
        """Write numbers ("d" or "q", see `array`); what reads them again.  Raises OSError."""
        if self._file is None:
            handle, path = tempfile.mkstemp(prefix="atoll-rounds-")
            os.unlink(path)
            weakref.finalize(self, os.close, handle)
            self._file = handle
        content, at = array(kind, values).tobytes(), self._end
        while content:
            done = os.pwrite(self._file, content, self._end)
            content, self._end = content[done:], self._end + done
        return partial(self._read, kind, at, self._end - at)

    def _read(self, kind: str, at: int, size: int) -> list[Any]:
        assert self._file is not None
        numbers = array(kind)
        while size:
            content = os.pread(self._file, size, at)
            numbers.frombytes(content)
            at, size = at + len(content), size - len(content)
        return numbers.tolist()


class _Laid(Mapping[str, V]):
    """Figures by name, each read when somebody asks for it."""

    __slots__ = ("_found",)

    def __init__(self, found: Mapping[str, Callable[[], V]]) -> None:
        self._found = found

    def __getitem__(self, name: str) -> V:
        return self._found[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def __reduce__(self) -> tuple[type[dict[str, V]], tuple[dict[str, V]]]:
        """A copy, or what another process gets, is a dict: the file is this one's."""
        return dict, (dict(self),)


def _by_client(clients: Callable[[], list[int]], values: Callable[[], list[float]]) -> dict[int, float]:
    return dict(zip(clients(), values(), strict=True))


def _shared(clients: Sequence[int], others: Sequence[int]) -> Sequence[int]:
    """The same clients; the numbers of those among the others are the others' objects."""
    if clients == others:
        return others
    known = {client: client for client in others}
    return [known.get(client, client) for client in clients]
