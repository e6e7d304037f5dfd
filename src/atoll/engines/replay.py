"""Steps as CUDA graphs: one launch a step, where the host would ask for each of its operations alone.

A step of many small clients is dozens of operations of a few microseconds each, and a GPU waits for the host that asks
for them. A graph has asked for them all. It works on fixed memory, so that the state is brought there before the first
step and fetched after the last, and each batch is copied there before its step.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor

from atoll.parts import each_part, tensors

__all__ = ["Play", "Replayed", "Replays", "Step", "in_turn"]

Step = Callable[[list[Any], list[Any]], list[Any]]
"""(leaves of the state, batch) -> leaves of the new state; those it renews may be written over."""

Play = Callable[[list[Any], Iterable[list[Any]]], list[Any]]
"""(leaves of the state, batches) -> leaves of the state after a step for each; the caller must own those it renews."""

_PLAIN = 2  # steps before one is recorded: what comes once or twice is not worth a graph
_MOST = 64  # graphs that are kept


def in_turn(step: Step) -> Play:
    """Steps as they are, one after the other."""

    def play(state: list[Any], batches: Iterable[list[Any]]) -> list[Any]:
        for batch in batches:
            state = step(state, batch)
        return state

    return play


class Replayed:
    """A step that is recorded when it has been taken a few times, and replayed from then on.

    Args:
        step: what is done.
        changed: positions of the leaves that it renews.
        record: makes something that can be called from work on fixed memory; see `Replays.graph`.
    """

    def __init__(
        self, step: Step, changed: set[int], record: Callable[[Callable[[], None]], Callable[[], None]]
    ) -> None:
        self.step, self.changed, self.record = step, changed, record
        self.taken = 0
        self.replay: Callable[[], None] | None = None
        self.state: list[Any] = []
        self.batch: list[Any] = []

    def __call__(self, state: list[Any], batches: Iterable[list[Any]]) -> list[Any]:
        there = False
        for batch in batches:
            if self.replay is None and not self._ready(state, batch):
                state = self.step(state, batch)
                continue
            if not there:
                _copy(self.state, state)
                there = True
            _copy(tensors(self.batch), tensors(batch))
            assert self.replay is not None
            self.replay()
        if there:
            for at in self.changed:
                state[at].copy_(self.state[at])
        return state

    def _ready(self, state: list[Any], batch: list[Any]) -> bool:
        """Whether the step is recorded, which is done now if it is time."""
        self.taken += 1
        if self.taken <= _PLAIN:
            return False
        self.state = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in state]
        self.batch = [each_part(torch.clone, part) for part in batch]
        here = {_address(leaf) for leaf in self.state if isinstance(leaf, Tensor)}

        def in_place() -> None:
            new = self.step(self.state, self.batch)
            moved = {at: new[at] for at in self.changed if new[at] is not self.state[at]}
            for at, leaf in moved.items():  # an old leaf in another's place is needed until that is filled
                moved[at] = leaf.clone() if _address(leaf) in here else leaf
            for at, leaf in moved.items():
                self.state[at].copy_(leaf)

        self.replay = self.record(in_place)
        return True


class Replays:
    """The recorded steps of an engine, which share the memory of what lies between their operations."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._known: dict[Hashable, Replayed] = {}
        self._pool: Any = None

    def find(self, key: Hashable, step: Callable[[], Step], changed: set[int]) -> Replayed:
        """The step under this key, made of `step()` if there is none yet."""
        found = self._known.pop(key, None) or Replayed(step(), changed, self.graph)
        self._known[key] = found  # the last is the one that was asked for last
        if len(self._known) > _MOST:
            del self._known[next(iter(self._known))]
        return found

    @property
    def recorded(self) -> bool:
        """Whether there are graphs, which hold memory."""
        return any(each.replay for each in self._known.values())

    def forget(self) -> bool:
        """Drop all graphs, and give back their memory; False if there were none."""
        had = self.recorded
        self._known.clear()
        self._pool = None
        torch.cuda.empty_cache()
        return had

    def graph(self, work: Callable[[], None]) -> Callable[[], None]:
        """`work`, which reads and writes fixed memory only, as a CUDA graph. It is done once, to set up libraries."""
        with torch.cuda.device(self.device):
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            now, aside = torch.cuda.current_stream(), _aside(self.device)
            aside.wait_stream(now)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.stream(aside):
                work()
                graph.capture_begin(self._pool, capture_error_mode="thread_local")
                try:
                    work()
                except BaseException:
                    with suppress(RuntimeError):  # what went wrong says more
                        graph.capture_end()
                    raise
                graph.capture_end()
            now.wait_stream(aside)
        return graph.replay


@cache
def _aside(device: torch.device) -> torch.cuda.Stream:
    """The stream on which graphs are recorded: one, since libraries keep a workspace for each that they have seen."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _address(leaf: Tensor) -> int:
    return leaf.untyped_storage().data_ptr()


def _copy(to: list[Any], values: list[Any]) -> None:
    for held, value in zip(to, values, strict=True):
        if isinstance(held, Tensor) and held is not value:
            held.copy_(value)
