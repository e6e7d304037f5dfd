"""Buffers as they travel: how far floating-point ones moved, counters as they are.

What a server has of a buffer stays equal to the bit where nothing moved, and counters (BatchNorm's number of batches)
never pass through floating point: replies declare that the maximum counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from atoll.contract import Mean, Reply, Rule
from atoll.tensors import Record, Tensors

__all__ = ["RULES", "averaged", "form", "mean_buffers", "moved"]

RULES: Mapping[str, Rule] = {"counters": "max"}
"""What becomes of the fields of `moved` that are not averaged."""


def moved(buffers: Tensors, received: Tensors) -> dict[str, Tensors]:
    """Fields of a reply: `buffers`, how far floating-point ones moved, and `counters`, the others as they are."""
    floats, counters = _split(buffers)
    return {"buffers": floats.map_names(lambda name, value: value - received[name]), "counters": counters}


def form(buffers: Tensors) -> dict[str, Tensors]:
    """The form of what `moved` gives for such buffers."""
    floats, counters = _split(buffers)
    return {"buffers": floats, "counters": counters}


def averaged(buffers: Tensors, mean: Mapping[str, Any]) -> Tensors:
    """The server's side of `moved`: buffers after the mean of the replies, of the same names, order and types."""
    floats, counters = mean["buffers"], mean["counters"]
    return buffers.map_names(
        lambda name, value: value + floats[name] if name in floats else counters[name].to(value.dtype)
    )


def mean_buffers(buffers: Tensors, replies: Iterable[tuple[int, Reply]]) -> Tensors:
    """Buffers after the mean of these replies by client; as they were if the replies weigh nothing."""
    reducer = Mean(RULES)
    for client, reply in replies:
        values = Record(buffers=reply.values.buffers, counters=reply.values.counters)
        reducer.add(client, reply._replace(values=values))
    found = reducer.result()
    return buffers if found is None else averaged(buffers, found.mean)


def _split(buffers: Tensors) -> tuple[Tensors, Tensors]:
    floats = Tensors({name: value for name, value in buffers.items() if value.is_floating_point()})
    return floats, Tensors({name: value for name, value in buffers.items() if name not in floats})
