"""Which axes of a network's tensors run over the same hidden units, read off its graph.

A network computes the same function when the hidden units of a layer change places, if every tensor with an axis over
these units goes along: the rows of the layer and its bias, normalisation, the columns of whatever reads them. Layers
that are added share their units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from atoll.tensors import Tensors

__all__ = ["FIXED", "ROLES", "Axis", "Groups", "Role", "Segment"]

FIXED = -1
Role = Literal["out", "unit", "in", "class"]
ROLES: tuple[Role, ...] = ("out", "unit", "in", "class")


class Segment(NamedTuple):
    """A piece of an axis, [outer, size, inner] in this order: `size` units of a group, FIXED for none.

    A convolution that is flattened has `inner` = height x width; the gates of an LSTM are `outer` = 4.
    """

    group: int
    size: int
    outer: int = 1
    inner: int = 1

    @property
    def length(self) -> int:
        return self.outer * self.size * self.inner


class Axis(NamedTuple):
    """An axis of a tensor. `role`: "out" (what flows into the units), "unit" (a number for each: normalisation),

    "in" (what flows out of them), or "class" (the outputs of the network, which keep their places).
    """

    dim: int
    role: Role
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Groups:
    """Groups of hidden units, from the input to the output: how many units each has, and who has an axis over them."""

    sizes: tuple[int, ...]
    axes: Mapping[str, tuple[Axis, ...]]

    def __len__(self) -> int:
        return len(self.sizes)

    def of(self, name: str) -> set[int]:
        """The groups that a tensor has an axis over."""
        found = {s.group for axis in self.axes.get(name, ()) for s in axis.segments}
        return found - {FIXED}

    def settled(self, count: int) -> list[str]:
        """Tensors that belong to the first `count` groups and to nothing later."""
        return [
            name
            for name, axes in self.axes.items()
            if any(axis.role in ("out", "unit") for axis in axes)
            and max(self.of(name), default=count) < count
        ]

    def widths(self, tensors: Mapping[str, Tensor]) -> list[int]:
        """How many units each group has in a network with these tensors, which may be wider or narrower."""
        widths = list(self.sizes)
        for name, axes in self.axes.items():
            for axis in axes:
                if len(axis.segments) == 1 and axis.segments[0].group != FIXED:
                    (segment,) = axis.segments
                    widths[segment.group] = tensors[name].shape[axis.dim] // (segment.outer * segment.inner)
        return widths

    def places(self, axis: Axis, maps: Mapping[int, Tensor], widths: Sequence[int]) -> Tensor:
        """Where the entries of an axis go when unit l of group g goes to maps[g][l]; others stay.

        `widths` are those of the groups afterwards.
        """
        start, parts = 0, []
        for segment in axis.segments:
            width, ids = segment.size, torch.arange(segment.size)
            if segment.group != FIXED and segment.group in maps:
                width, ids = widths[segment.group], maps[segment.group]
            outer = torch.arange(segment.outer)[:, None, None] * (width * segment.inner)
            inner = torch.arange(segment.inner)
            parts.append((start + outer + ids[:, None] * segment.inner + inner).reshape(-1))
            start += segment.outer * width * segment.inner
        return torch.cat(parts)

    def length(self, axis: Axis, widths: Sequence[int]) -> int:
        """The length of an axis where groups have these widths."""
        return sum(
            s.length if s.group == FIXED else s.outer * widths[s.group] * s.inner for s in axis.segments
        )

    def move(self, name: str, tensor: Tensor, maps: Mapping[int, Tensor], widths: Sequence[int]) -> Tensor:
        """A tensor with its units moved, 0 where none comes to stand. `widths` are those of the groups afterwards."""
        for axis in self.axes.get(name, ()):
            if not any(s.group in maps for s in axis.segments):
                continue
            shape = list(tensor.shape)
            shape[axis.dim] = self.length(axis, widths)
            places = self.places(axis, maps, widths).to(tensor.device)
            tensor = tensor.new_zeros(shape).index_copy(axis.dim, places, tensor)
        return tensor

    def moved(self, tensors: Tensors, maps: Mapping[int, Tensor]) -> Tensors:
        """A network of the module's own widths with its units in other places: the same function."""
        return Tensors({n: self.move(n, t, maps, self.sizes) for n, t in tensors.items()})

    # --- as a tensor, for a server's state ------------------------------------------------------------------------

    def table(self, names: Sequence[str]) -> Tensor:
        """All of it as integers; tensors are named by their place in `names`."""
        rows = [
            (at, axis.dim, ROLES.index(axis.role), *segment)
            for at, name in enumerate(names)
            for axis in self.axes.get(name, ())
            for segment in axis.segments
        ]
        return torch.tensor(rows, dtype=torch.int64).reshape(-1, 7)

    @staticmethod
    def of_table(table: Tensor, names: Sequence[str]) -> Groups:
        """The inverse of `table`."""
        axes: dict[str, list[Axis]] = {}
        sizes: dict[int, int] = {}
        for at, dim, role, *rest in table.tolist():
            segment, known = Segment(*rest), axes.setdefault(names[at], [])
            if known and known[-1].dim == dim:
                known[-1] = known[-1]._replace(segments=(*known[-1].segments, segment))
            else:
                known.append(Axis(dim, ROLES[role], (segment,)))
            sizes[segment.group] = segment.size
        sizes.pop(FIXED, None)
        return Groups(tuple(sizes[g] for g in sorted(sizes)), {n: tuple(a) for n, a in axes.items()})
