"""`Tensors`, named tensors with arithmetic, and `Record`, a structure of them. Both are pytrees."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = [
    "Record",
    "Tensors",
    "flatten_record",
    "leaves",
    "map_leaves",
    "nbytes",
    "to_device",
    "unflatten_record",
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

    def zeros(self) -> Tensors:
        """Zeros of the same names, shapes and types."""
        return self.map(torch.zeros_like)

    def dot(self, other: Tensors) -> Tensor:
        """Inner product over all names, a scalar."""
        parts = [torch.sum(value * other[name]) for name, value in self.items()]
        return torch.stack(parts).sum() if parts else torch.zeros(())

    def norm(self) -> Tensor:
        """Euclidean norm over all names together, a scalar."""
        return torch.sqrt(self.dot(self))

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


class Record(dict[str, Any]):
    """A structure with named fields: tensors, `Tensors`, records, or Python numbers. Fields read as attributes.

    Server state, what a client receives, what it holds while it trains and what it remembers are all records.
    Records are treated as values: `replace` gives a changed copy.
    """

    def __getattribute__(self, name: str) -> Any:
        # Fields come before the methods of dict: a reply has a field "update".
        if not name.startswith("__") and dict.__contains__(self, name):
            return dict.__getitem__(self, name)
        return super().__getattribute__(name)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"no field {name!r}; there are: {', '.join(dict.keys(self)) or 'none'}")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"records are values: use replace({name}=...)")

    def replace(self, **fields: Any) -> Record:
        """A copy with some fields changed or added."""
        return Record({**self, **fields})


def _register(kind: type[dict[str, Any]]) -> None:
    pytree.register_pytree_node(
        kind,
        lambda tree: (list(dict.values(tree)), list(dict.keys(tree))),
        lambda values, names: kind(zip(names, values, strict=True)),
        flatten_with_keys_fn=lambda tree: (
            [(pytree.MappingKey(name), value) for name, value in dict.items(tree)],
            list(dict.keys(tree)),
        ),
        serialized_type_name=f"atoll.{kind.__name__}",
        to_dumpable_context=list,
        from_dumpable_context=list,
    )


_register(Tensors)
_register(Record)


def leaves(tree: Any) -> list[Any]:
    """The leaves of any structure, in order."""
    return pytree.tree_leaves(tree)


def map_leaves(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Apply `function` to the leaves of one or several structures of the same form."""
    return pytree.tree_map(function, tree, *rest)


def to_device(tree: Any, device: torch.device) -> Any:
    """The same structure with its tensors on `device`."""
    return map_leaves(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, tree)


def flatten_record(tree: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield (path, leaf) for a nested record: the form in which structures are stored and sent.

    Names inside a `Tensors` are marked with "@", so that the path says which kind of level it goes through. An empty
    level is a leaf of its own.
    """
    return _walk(tree, ())


def _walk(tree: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not isinstance(tree, dict) or (not tree and path):
        yield path, tree
        return
    mark = "@" if isinstance(tree, Tensors) else ""
    for name, value in dict.items(tree):
        yield from _walk(value, (*path, mark + name))


def unflatten_record(items: Iterable[tuple[Sequence[str], Any]]) -> Record:
    """The inverse of `flatten_record`."""
    root: dict[str, Any] = {}
    for path, leaf in items:
        level = root
        for name in path[:-1]:
            level = level.setdefault(name, {})
        level[path[-1]] = leaf

    def build(level: dict[str, Any]) -> Record | Tensors:
        values: dict[str, Any] = {
            name: build(value) if type(value) is dict else value for name, value in level.items()
        }
        if any(name.startswith("@") for name in values):
            return Tensors({name[1:]: value for name, value in values.items()})
        return Record(values)

    built = build(root)
    assert isinstance(built, Record)
    return built


def nbytes(record: Record) -> int:
    """Bytes of the tensors in a record."""
    return sum(v.numel() * v.element_size() for v in leaves(record) if isinstance(v, Tensor))
