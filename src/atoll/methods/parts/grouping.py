"""Groups of hidden units as they are found: who has an axis over what, and which are the same seen in two places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from atoll.errors import ConfigError
from atoll.methods.parts.axes import FIXED, Axis, Groups, Role, Segment

__all__ = ["Grouping", "Plain", "Several", "Value"]


@dataclass(frozen=True)
class Value:
    """A tensor in the graph whose axis `axis` runs over hidden units; `rank` None and axis -1 where unknown.

    `spread`: a flattened tensor; every unit has further entries next to each other ("inner") or apart ("outer"),
    how many shows when the next layer reads them.
    """

    segments: tuple[Segment, ...]
    axis: int
    rank: int | None = None
    spread: Literal["inner", "outer"] | None = None

    @property
    def from_end(self) -> int:
        return self.axis if self.axis < 0 else self.axis - self.rank  # type: ignore[operator]


@dataclass(frozen=True)
class Plain:
    """A tensor of the graph without hidden units (the input), or a number."""

    number: bool = False
    rank: int | None = None
    parameter: str | None = None


@dataclass(frozen=True)
class Several:
    """What a recurrent layer gives: (outputs, hidden states)."""

    parts: tuple[Any, ...]


class Grouping:
    """Notes who has an axis over what, and which units are the same."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.parent: list[int] = []  # of provisional groups, as a forest
        self.sizes: list[int] = []
        self.fixed: set[int] = set()
        self.noted: dict[str, dict[int, Axis]] = {}
        self.modules = dict(module.named_modules())
        self.names: dict[int, str] = {}
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            self.names.setdefault(id(tensor), name)
        self.where = ""

    def group(self, size: int) -> Segment:
        self.parent.append(len(self.parent))
        self.sizes.append(size)
        return Segment(len(self.parent) - 1, size)

    def root(self, group: int) -> int:
        while self.parent[group] != group:
            group = self.parent[group]
        return group

    def fix(self, segments: Sequence[Segment]) -> None:
        self.fixed |= {s.group for s in segments if s.group != FIXED}

    def tie(self, one: Sequence[Segment], other: Sequence[Segment]) -> None:
        """The same units, seen in two places."""
        alike = [(s.size, s.outer, s.inner) for s in one] == [(s.size, s.outer, s.inner) for s in other]
        if not alike or any(
            (a.group == FIXED) != (b.group == FIXED) for a, b in zip(one, other, strict=False)
        ):
            self.fix(one)
            self.fix(other)
            return
        for a, b in zip(one, other, strict=True):
            if a.group != FIXED:
                first, second = sorted((self.root(a.group), self.root(b.group)))
                self.parent[second] = first

    def note(self, tensor: Tensor | None, dim: int, role: Role, segments: Sequence[Segment]) -> None:
        """This axis of the tensor runs over these units."""
        if tensor is None:
            return
        axes = self.noted.setdefault(self.names[id(tensor)], {})
        if dim in axes:  # a tensor that is used twice
            self.tie(axes[dim].segments, segments)
        else:
            axes[dim] = Axis(dim, role, tuple(segments))
        if isinstance(tensor, nn.Parameter) and not tensor.requires_grad:
            self.fix(segments)

    def result(self, outputs: Sequence[int]) -> Groups:
        fixed = {self.root(g) for g in self.fixed}
        ends = {self.root(g) for g in outputs} - fixed
        order: dict[int, int] = {}
        for group in range(len(self.parent)):
            root = self.root(group)
            if root not in fixed | ends:
                order.setdefault(root, len(order))

        def named(segment: Segment) -> Segment:
            known = order.get(self.root(segment.group), FIXED) if segment.group != FIXED else FIXED
            return segment._replace(group=known)

        axes: dict[str, tuple[Axis, ...]] = {}
        for name, noted in self.noted.items():
            kept = []
            for axis in noted.values():
                segments = tuple(map(named, axis.segments))
                if any(s.group != FIXED for s in segments):
                    kept.append(axis._replace(segments=segments))
                elif (
                    axis.role in ("out", "unit")
                    and len(segments) == 1
                    and axis.segments[0].group != FIXED
                    and self.root(axis.segments[0].group) in ends
                ):
                    kept.append(Axis(axis.dim, "class", segments))
            if kept:
                axes[name] = tuple(sorted(kept))
        return Groups(tuple(self.sizes[root] for root in order), axes)

    def outputs(self, value: Any) -> list[int]:
        """Groups that the network's outputs show: they keep their places."""
        if isinstance(value, Several):
            return [g for part in value.parts for g in self.outputs(part)]
        if not isinstance(value, Value):
            return []
        if value.spread or len(value.segments) > 1:
            self.fix(value.segments)
        return [s.group for s in value.segments if s.group != FIXED]

    def refuse(self, why: str = "") -> ConfigError:
        return ConfigError(
            f"the hidden units of {type(self.module).__name__} cannot be matched through {self.where}"
            f"{': ' + why if why else ''}",
            hint="matched averaging knows linear, convolutional and recurrent layers, normalisation, pooling, "
            "flattening, sums and concatenation; use fedavg for other models",
        )

    def sized(self, value: Value, width: int) -> tuple[Segment, ...]:
        """The segments of an axis of this length, where flattening has left open how long they are."""
        total = sum(s.length for s in value.segments)
        if value.spread is None or total == 0:
            if total != width:
                raise self.refuse(f"{total} units come to {width} places")
            return value.segments
        ratio, left = divmod(width, total)
        if left or ratio < 1 or (value.spread == "outer" and ratio > 1 and len(value.segments) > 1):
            raise self.refuse(f"{total} flattened units come to {width} places")
        if value.spread == "inner":
            return tuple(s._replace(inner=s.inner * ratio) for s in value.segments)
        return tuple(s._replace(outer=s.outer * ratio) for s in value.segments)
