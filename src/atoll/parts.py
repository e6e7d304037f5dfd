"""Inputs of several parts: what a model with more than one argument reads, with the first axis counting the samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from atoll.errors import ConfigError

__all__ = ["Inputs", "Parts", "alone", "each_part", "joined", "of_tokens", "pieces", "shapes", "tensors"]


class Parts:
    """Tensors of which each holds a part of every sample: token ids and their mask, nodes and edges of graphs.

    Parts have names, and then they are arguments of the model by name, or numbers 0, 1, ... by position. Whatever picks
    samples picks them of all parts. A pytree.
    """

    __slots__ = ("_parts",)

    def __init__(self, parts: Mapping[str, Tensor] | Sequence[Tensor]) -> None:
        """Raises ValueError where there are none."""
        self._parts: dict[str | int, Tensor]
        self._parts = dict(parts.items() if isinstance(parts, Mapping) else enumerate(parts))
        if not self._parts:
            raise ValueError("inputs of no parts")

    @property
    def named(self) -> bool:
        """Whether parts go by name, and not by position."""
        return isinstance(next(iter(self._parts)), str)

    def items(self) -> Iterator[tuple[str | int, Tensor]]:
        """Names, or positions, and tensors."""
        return iter(self._parts.items())

    def values(self) -> tuple[Tensor, ...]:
        """The tensors."""
        return tuple(self._parts.values())

    def map(self, function: Callable[[Tensor], Tensor]) -> Parts:
        """Apply `function` to every part."""
        made = object.__new__(Parts)
        made._parts = {name: function(value) for name, value in self._parts.items()}
        return made

    # --- what is asked of a tensor of samples ---------------------------------------------------------------------

    def __len__(self) -> int:
        return len(next(iter(self._parts.values())))

    def __getitem__(self, rows: Any) -> Parts:
        return self.map(lambda part: part[rows])

    @property
    def device(self) -> torch.device:
        return next(iter(self._parts.values())).device

    def to(self, device: torch.device) -> Parts:
        return self.map(lambda part: part.to(device))

    def index_select(self, axis: int, index: Tensor) -> Parts:
        return self.map(lambda part: part.index_select(axis, index))

    def __repr__(self) -> str:
        return f"Parts({shapes(self, 0)})"


Inputs = Tensor | Parts
"""Samples' inputs, the first axis counting the samples."""


def _flatten(parts: Parts) -> tuple[list[Any], list[str | int]]:
    return list(parts._parts.values()), list(parts._parts)


def _unflatten(values: Any, names: list[str | int]) -> Parts:
    made = object.__new__(Parts)
    made._parts = dict(zip(names, values, strict=True))
    return made


pytree.register_pytree_node(
    Parts,
    _flatten,
    _unflatten,
    flatten_with_keys_fn=lambda parts: (
        [(pytree.MappingKey(name), value) for name, value in parts.items()],
        list(parts._parts),
    ),
    serialized_type_name="atoll.Parts",
    to_dumpable_context=list,
    from_dumpable_context=list,
)


def each_part(function: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """`function` of the inputs, or of each of their parts."""
    return inputs.map(function) if isinstance(inputs, Parts) else function(inputs)


def tensors(several: Sequence[Inputs]) -> list[Tensor]:
    """The tensors, with parts one by one: the leaves of the sequence, found fast."""
    return [leaf for each in several for leaf in (each.values() if isinstance(each, Parts) else (each,))]


def alone(inputs: Inputs, who: str) -> Tensor:
    """Inputs that are one tensor.  Raises ConfigError, naming who wants that."""
    if isinstance(inputs, Parts):
        raise ConfigError(
            f"{who} needs inputs that are one tensor, and these have the parts {shapes(inputs)}",
            hint="keys names the field that is the input; or choose something else",
        )
    return inputs


def of_tokens(inputs: Inputs) -> bool:
    """Whether inputs are texts: whole numbers in rows [b, t], or with a part of that kind."""
    return any(part.ndim == 2 and not part.is_floating_point() for part in tensors([inputs]))


def pieces(inputs: Inputs, rows: int) -> list[Inputs]:
    """The inputs, so many samples at a time."""
    return [inputs[start : start + rows] for start in range(0, len(inputs), rows)]


def joined(several: Sequence[Inputs]) -> Inputs:
    """All samples of several inputs, in order."""
    first = several[0]
    if isinstance(first, Parts):
        return pytree.tree_map(lambda *parts: torch.cat(parts), *several)  # type: ignore[no-any-return]
    return torch.cat(list(several))  # type: ignore[arg-type]


def shapes(inputs: Inputs, skip: int = 1) -> str:
    """The shape of a sample for people, or with `skip` 0 of all: "28x28", "input_ids 12, mask 12"."""

    def text(part: Tensor) -> str:
        return "x".join(map(str, part.shape[skip:])) or "scalar"

    if isinstance(inputs, Parts):
        return ", ".join(f"{name} {text(part)}" for name, part in inputs.items())
    return text(inputs)
