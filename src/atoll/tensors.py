"""`Tensors`, named tensors with arithmetic, and `Record`, a structure of them. Both are pytrees."""

from __future__ import annotations

import math
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = [
    "RESERVED",
    "Record",
    "Tensors",
    "fields_of",
    "finite",
    "leaves",
    "map_leaves",
    "named_tensors",
    "nbytes",
    "to_device",
]

Scalar = int | float | Tensor


class Tensors(dict[str, Tensor]):
    """Tensors by name, with elementwise arithmetic between equal names: ``w - lr * g``.

    Scalars may be numbers or 0-dimensional tensors. Names must agree exactly; anything else is a mistake upstream and
    raises `KeyError` with the names that differ.
    """

    def _zip(self, other: Tensors | Scalar, op: Callable[[Any, Any], Tensor]) -> Tensors:
        if isinstance(other, Tensors):
            if self.keys() != other.keys():
                differ = sorted(self.keys() ^ other.keys())
                raise KeyError(f"tensors differ in their names: {', '.join(differ)}")
            return Tensors({name: op(value, other[name]) for name, value in self.items()})
        return Tensors({name: op(value, other) for name, value in self.items()})

    def __add__(self, other: Tensors | Scalar) -> Tensors:
        return self._zip(other, torch.add)

    def __sub__(self, other: Tensors | Scalar) -> Tensors:
        return self._zip(other, torch.sub)

    def __mul__(self, other: Tensors | Scalar) -> Tensors:
        return self._zip(other, torch.mul)

    __rmul__ = __mul__

    def __truediv__(self, other: Tensors | Scalar) -> Tensors:
        return self._zip(other, torch.div)

    def __neg__(self) -> Tensors:
        return self.map(torch.neg)

    def map(self, function: Callable[[Tensor], Tensor]) -> Tensors:
        """Apply `function` to every tensor."""
        return Tensors({name: function(value) for name, value in self.items()})

    def map_names(self, function: Callable[[str, Tensor], Tensor]) -> Tensors:
        """Apply `function` to every name and tensor."""
        return Tensors({name: function(name, value) for name, value in self.items()})

    def zeros(self) -> Tensors:
        """Zeros of the same names, shapes and types."""
        return self.map(torch.zeros_like)

    def dot(self, other: Tensors) -> Tensor:
        """Inner product over all names, a scalar."""
        parts = [torch.sum(value * other[name]) for name, value in self.items()]
        return torch.stack(parts).sum() if parts else torch.zeros(())

    def norm(self) -> Tensor:
        """Euclidean norm over all names together, a scalar: of rows first, which is exact enough and reads once."""
        rows = [value.flatten(1) if value.ndim > 1 else value for value in self.values()]
        parts = [torch.linalg.vector_norm(torch.linalg.vector_norm(value, dim=-1)) for value in rows]
        return torch.linalg.vector_norm(torch.stack(parts)) if parts else torch.zeros(())

    def flat(self) -> Tensor:
        """All values in one vector, in the order of the names as they stand."""
        return torch.cat([value.reshape(-1) for value in self.values()]) if self else torch.zeros(0)

    def unflat(self, vector: Tensor) -> Tensors:
        """The inverse of `flat`: cut `vector` into the shapes of these tensors."""
        sizes = [value.numel() for value in self.values()]
        parts = torch.split(vector, sizes)
        return Tensors(
            {name: part.view_as(value) for (name, value), part in zip(self.items(), parts, strict=True)}
        )

    def size(self) -> int:
        """How many numbers there are."""
        return sum(value.numel() for value in self.values())

    def nbytes(self) -> int:
        """How many bytes they take."""
        return sum(value.numel() * value.element_size() for value in self.values())

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}: {tuple(getattr(value, 'shape', ()))}" for name, value in self.items())
        return f"Tensors({inside})"


class Record(Mapping[str, Any]):
    """A structure with named fields: tensors, `Tensors`, records, or Python numbers. Fields read as attributes.

    Server state, what a client receives, what it holds while it trains and what it remembers are all records.
    Records are values: `replace` gives a changed copy. A field may have any name but those of a record's own
    methods (`get`, `items`, `keys`, `replace`, `values`), which raise ValueError.
    """

    __slots__ = ("_fields",)
    _fields: dict[str, Any]

    def __init__(self, fields: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), /, **more: Any) -> None:
        found = dict(fields, **more)
        if not RESERVED.isdisjoint(found):
            taken = ", ".join(sorted(RESERVED & found.keys()))
            raise ValueError(f"a record cannot have a field called {taken}: its methods are")
        object.__setattr__(self, "_fields", found)

    def __getitem__(self, name: str) -> Any:
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __contains__(self, name: object) -> bool:
        return name in self._fields

    def get(self, name: str, default: Any = None) -> Any:
        return self._fields.get(name, default)

    def keys(self) -> KeysView[str]:
        return self._fields.keys()

    def values(self) -> ValuesView[Any]:
        return self._fields.values()

    def items(self) -> ItemsView[str, Any]:
        return self._fields.items()

    def __getattr__(self, name: str) -> Any:
        if name == "_fields":  # not made yet
            raise AttributeError(name)
        try:
            return self._fields[name]
        except KeyError:
            pass
        raise AttributeError(f"no field {name!r}; there are: {', '.join(self._fields) or 'none'}")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"records are values: use replace({name}=...)")

    def __reduce__(self) -> tuple[type[Record], tuple[dict[str, Any]]]:
        return Record, (self._fields,)  # for `copy`

    def __repr__(self) -> str:
        return f"Record({', '.join(f'{name}={value!r}' for name, value in self._fields.items())})"

    def replace(self, **fields: Any) -> Record:
        """A copy with some fields changed or added."""
        return Record(self._fields, **fields)


RESERVED = frozenset(("get", "items", "keys", "replace", "values"))
"""Names that no field of a record can have."""


def fields_of(level: Record | Tensors) -> dict[str, Any]:
    """What a level is made of, to be filled by who makes it: nobody else has seen it yet."""
    return level._fields if isinstance(level, Record) else level


def _register(kind: type[Tensors] | type[Record]) -> None:
    pytree.register_pytree_node(
        kind,
        lambda tree: (list(tree.values()), list(tree)),
        lambda values, names: kind(zip(names, values, strict=True)),
        flatten_with_keys_fn=lambda tree: (
            [(pytree.MappingKey(name), value) for name, value in tree.items()],
            list(tree),
        ),
        serialized_type_name=f"atoll.{kind.__name__}",
        to_dumpable_context=list,
        from_dumpable_context=list,
    )


_register(Tensors)
_register(Record)
_LEVELS = frozenset((Tensors, Record))


def finite(value: Tensor) -> bool:
    """Whether every number is finite. A sum tells in one pass over memory; where it overflows, each is looked at."""
    return math.isfinite(float(value.sum())) or bool(torch.isfinite(value).all())


def leaves(tree: Any) -> list[Any]:
    """The leaves of any structure, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    if type(tree) not in _LEVELS:
        return pytree.tree_leaves(tree)
    return [leaf for part in tree.values() for leaf in leaves(part)]


def map_leaves(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Apply `function` to the leaves of one or several structures of the same form."""
    # Records and tensors are gone through here, since a round does it many times for every client. Whatever else is
    # in them, and forms that differ, are torch's business.
    if isinstance(tree, Tensor):
        return function(tree, *rest)
    kind = type(tree)
    if kind not in _LEVELS:
        return pytree.tree_map(function, tree, *rest)
    if not rest:
        return _level(kind, {name: map_leaves(function, part) for name, part in tree.items()})
    names = list(tree)
    if any(type(other) is not kind or list(other) != names for other in rest):
        return pytree.tree_map(function, tree, *rest)
    return _level(
        kind,
        {name: map_leaves(function, part, *(o[name] for o in rest)) for name, part in tree.items()},
    )


def _level(kind: type[Tensors] | type[Record], fields: dict[str, Any]) -> Tensors | Record:
    """A level of fields whose names another level has."""
    if kind is Tensors:
        return Tensors(fields)
    made = object.__new__(Record)
    object.__setattr__(made, "_fields", fields)
    return made


def to_device(tree: Any, device: torch.device) -> Any:
    """The same structure with its tensors on `device`; itself where all of them are there."""
    if _all_there(tree, device):
        return tree
    return map_leaves(
        lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) and leaf.device != device else leaf, tree
    )


def _all_there(tree: Any, device: torch.device) -> bool:
    """Whether a structure of records and tensors has all of them on `device`."""
    if isinstance(tree, Tensor):
        return tree.device == device
    if type(tree) not in _LEVELS:
        return False
    return False not in [_all_there(part, device) for part in tree.values()]


def nbytes(tree: Any) -> int:
    """How many bytes the tensors in a structure take."""
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves(tree) if isinstance(leaf, Tensor))


def named_tensors(tree: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield ("params.0.weight", tensor) for the tensors in a structure of records."""
    if isinstance(tree, Tensor):
        yield path, tree
    elif isinstance(tree, (Record, Tensors)):
        for name, value in tree.items():
            yield from named_tensors(value, f"{path}.{name}" if path else name)
