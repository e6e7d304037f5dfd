"""Programs around a program: one that watches what it does, one that pads what it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from atoll.contract import ClientData, Program, Reply, Through
from atoll.parts import each_part
from atoll.task import Batch, Task
from atoll.tensors import Record
from atoll.testing.compared import copied, differs, reformed
from atoll.testing.draws import states, touched
from atoll.testing.report import Notes

__all__ = ["Padded", "Watched", "global_draw"]

_PADDING = 3
_STEPS = 6  # of a client's round that are watched: the rest is more of the same
T = TypeVar("T")


class _Seen(ClientData):
    """A client's data that remembers which splits were looked at."""

    touched: set[str]

    @staticmethod
    def of(data: ClientData) -> _Seen:
        found = _Seen(*data)
        found.touched = set()
        return found

    def _look(self, name: str) -> Any:
        self.touched.add(name)
        return tuple.__getitem__(self, ClientData._fields.index(name))

    train = property(lambda self: self._look("train"))
    validation = property(lambda self: self._look("validation"))
    test = property(lambda self: self._look("test"))
    public = property(lambda self: self._look("public"))


class Watched(Through):
    """Does what the program does, and notes what it must not do: change what it is given, draw from global states,
    look at splits that it does not declare, or give its working state another form."""

    def __init__(self, inner: Program, name: str, notes: Notes) -> None:
        self.inner, self.notes = inner, notes
        self._steps = 0
        self.name = "" if name == "train" else f'program "{name}", '

    def remember(self, task: Task, received: Record) -> Record:
        return self._call("remember", lambda: self.inner.remember(task, received), {"received": received})

    def recall(self, task: Task, received: Record, stored: Record | None) -> Record:
        given = {"received": received, "memory": stored}
        return self._call("recall", lambda: self.inner.recall(task, received, stored), given)

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        given = {"received": received, "memory": memory, "data": data}
        return self._reading(
            "begin", lambda seen: self.inner.begin(task, received, memory, seen), data, given
        )

    def step(self, task: Task, local: Record, batch: Batch) -> Record:
        self._steps += 1
        if self._steps > _STEPS:
            return self.inner.step(task, local, batch)
        given = {"local": local, "batch": batch}
        after = self._call("step", lambda: self.inner.step(task, local, batch), given)
        how = reformed(local, after)
        if how is not None:
            self.notes.wrong(
                "steps",
                f"{self.name}step changes the form of the working state: {how}",
                "begin makes every field, step keeps its type and shape; count in tensors, not in Python",
            )
        return after

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        given = {"local": local, "data": data}
        return self._reading("finish", lambda seen: self.inner.finish(task, local, seen), data, given)

    def _reading(
        self, stage: str, run: Callable[[ClientData], T], data: ClientData, given: Mapping[str, Any]
    ) -> T:
        """A stage that may look at whole splits."""
        seen = _Seen.of(data)
        try:
            return self._call(stage, lambda: run(seen), given)
        except Exception:
            undeclared = sorted(seen.touched - set(self.inner.reads))
            if undeclared:
                names = ", ".join(repr(name) for name in (*self.inner.reads, *undeclared))
                self.notes.wrong(
                    "reads",
                    f"{self.name}{stage} looks at data.{undeclared[0]}, which `reads` does not name: it is None there",
                    f"declare it: reads = ({names},)",
                )
            raise

    def _call(self, stage: str, run: Callable[[], T], given: Mapping[str, Any]) -> T:
        before, random = copied(given), states()
        found = run()
        name = differs(before, given)
        if name is not None:
            self.notes.wrong(
                "values",
                f"{self.name}{stage} changes {name} in place",
                "give new tensors: x + y instead of x.add_(y), record.replace(...) instead of filling one",
            )
        global_draw(self.notes, f"{self.name}{stage}", random)
        return found


def global_draw(notes: Notes, where: str, before: Mapping[str, Any]) -> None:
    """Note a draw from a global random state since `before`."""
    whose = touched(before)
    if whose is not None:
        notes.wrong(
            "draws",
            f"{where} draws from {whose} global random state",
            "draw from an address: seeds.normal(seeds.fold(batch.key, 1000), shape) on clients, "
            "seeds.rng(population.seed, ...) on the server",
        )


class Padded(Through):
    """Does what the program does on batches and whole splits with further rows in them, of mask 0."""

    def __init__(self, inner: Program) -> None:
        self.inner = inner

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        return self.inner.begin(task, received, memory, _padded_data(data))

    def step(self, task: Task, local: Record, batch: Batch) -> Record:
        return self.inner.step(task, local, _padded(batch))

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        return self.inner.finish(task, local, _padded_data(data))


def _padded_data(data: ClientData) -> ClientData:
    train, validation, test, public = (
        None if part is None else _padded(part)
        for part in (data.train, data.validation, data.test, data.public)
    )
    return ClientData(data.count, data.key, train, validation, test, public)


def _padded(batch: Batch) -> Batch:
    """The batch with rows at its end that mean nothing. Whole numbers may name things, so known ones are repeated."""

    def other(part: Tensor) -> Tensor:
        return _longer(part, 2 - 3 * part[:1] if part.is_floating_point() else part[:1])

    return batch._replace(
        inputs=each_part(other, batch.inputs),
        targets=_longer(batch.targets, batch.targets[:1]),
        mask=torch.cat([batch.mask, batch.mask.new_zeros(_PADDING)]),
    )


def _longer(rows: Tensor, row: Tensor) -> Tensor:
    return torch.cat([rows, *[row] * _PADDING])
