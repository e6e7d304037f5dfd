"""Which layers of a model can be cut across workers, found by watching one forward pass.

A layer that gives columns (output features, or channels) leaves each worker a part of a tensor, and one that reads rows
takes such parts and gives partial sums. What is done to the parts in between may be done by each worker to its own, if
the parts of the result are the results of the parts. That is tried, on random numbers: activations, pooling,
flattening and attention by heads pass, and whatever mixes features, or counts them, does not.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

__all__ = ["CONVOLUTIONS", "derive"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_KNOWN = (nn.Linear, *CONVOLUTIONS, nn.Embedding, nn.MultiheadAttention, nn.Dropout)
_LARGE = 0.1


def derive(module: nn.Module, call: Callable[[nn.Module], Any], degree: int) -> dict[str, str]:
    """How each layer is cut among `degree` workers, by its name; layers that stay whole are left out.

    "column" and "row" come together, with "dropout:DIMENSION" where there is one between them. An
    `nn.MultiheadAttention` is cut by "heads", unless it drops weights. A layer without a partner that has a tenth of
    the parameters is "gathered" after its columns; an embedding then is cut by its "vocabulary".

    Args:
        call: gives what the module makes of a few samples.
    """
    module = copy.deepcopy(module).train()
    shared = _shared(module)
    excluded: set[str] = set()
    while True:
        watch = _Watch(module, degree, excluded, shared)
        with torch.no_grad(), torch.random.fork_rng(), watch.hooked():
            outputs = call(module)
        watch.spoil(watch.sources(pytree.tree_leaves(outputs)))
        if watch.spoiled <= excluded:
            return watch.plan()
        excluded |= watch.spoiled


def _shared(module: nn.Module) -> set[int]:
    """Parameters that several layers have."""
    counts = Counter(id(p) for _, p in module.named_parameters(remove_duplicate=False))
    return {each for each, count in counts.items() if count > 1}


class _Watch(TorchFunctionMode):
    """Follows tensors of which workers would have parts.

    Args:
        excluded: layers that must not give columns.
        shared: parameters that several layers have, which stay whole.
    """

    def __init__(self, module: nn.Module, degree: int, excluded: set[str], shared: set[int]) -> None:
        super().__init__()
        self.module, self.degree, self.excluded, self.shared = module, degree, excluded, shared
        self.parts: dict[int, tuple[Tensor, int, frozenset[str]]] = {}
        self.layers = {n: layer for n, layer in module.named_modules() if type(layer) in _KNOWN}
        self.owners = {id(p): n for n, layer in self.layers.items() for p in layer.parameters()}
        self.spoiled: set[str] = set()
        self.bare: set[str] = set()  # layers whose parameters are read by others
        self.ways: dict[str, set[str]] = {}
        self.groups: list[set[str]] = []
        self._inside = 0

    def hooked(self) -> _Watch:
        """Itself, told of every call of a layer that it knows."""
        for name, layer in self.layers.items():
            before = layer.register_forward_pre_hook(self._enters)
            after = layer.register_forward_hook(self._leaves(name), with_kwargs=True)
            self._handles = [*getattr(self, "_handles", []), before, after]
        return self

    def __exit__(self, *error: Any) -> None:
        for handle in getattr(self, "_handles", []):
            handle.remove()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def sources(self, values: Iterable[Any]) -> frozenset[str]:
        """The layers that some of these are columns of."""
        return frozenset().union(*(self.parts[id(v)][2] for v in values if id(v) in self.parts))

    def spoil(self, names: Iterable[str]) -> None:
        """These cannot give columns."""
        self.spoiled |= set(names)

    def plan(self) -> dict[str, str]:
        """What has come of it."""
        paired = set().union(*self.groups) if self.groups else set()
        found = {}
        for name, ways in self.ways.items():
            way = next(iter(ways))
            lone = {"column": "gathered", "vocabulary": "vocabulary"}.get(way)
            if name in self.bare or len(ways) > 1:
                continue
            if name in paired or way == "heads":
                found[name] = way
            elif lone and self._large(self.layers[name]):
                found[name] = lone
        return found

    def _large(self, layer: nn.Module) -> bool:
        size = sum(p.numel() for p in self.module.parameters())
        return sum(p.numel() for p in layer.parameters()) >= _LARGE * size

    # --- layers -------------------------------------------------------------------------------------------------

    def _enters(self, layer: nn.Module, args: Any) -> None:
        self._inside += 1

    def _leaves(self, name: str) -> Callable[..., None]:
        def leaves(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if self._inside == 1:
                self._layer(name, layer, pytree.tree_leaves((args, kwargs)), output)
            self._inside -= 1

        return leaves

    def _layer(self, name: str, layer: nn.Module, given: list[Any], output: Any) -> None:
        held = self.parts.get(id(given[0]))
        if isinstance(layer, nn.Dropout) and held is not None:
            _, dim, sources = held
            self._mark(output, dim, sources | {name})
            self._way(name, f"dropout:{dim - output.ndim}", sources)
        elif held is not None and name not in self.excluded and self._reads(layer, given[0], held[1]):
            self._way(name, "row", held[2])
            self._group(held[2] | {name})
        elif (sources := self.sources(given)) or any(id(p) in self.shared for p in layer.parameters()):
            self.spoil(sources)
        elif self._divisible(layer, given):
            way = {nn.Embedding: "vocabulary", nn.MultiheadAttention: "heads"}.get(type(layer), "column")
            self._way(name, way, ())
            if way == "column" and name not in self.excluded:
                self._mark(output, _columns(layer, output), frozenset({name}))

    def _reads(self, layer: nn.Module, value: Tensor, dim: int) -> bool:
        """Whether the layer can read parts along a dimension as its rows."""
        if any(id(p) in self.shared for p in layer.parameters()):
            return False
        if isinstance(layer, CONVOLUTIONS):
            return layer.groups == 1 and value.ndim == layer.weight.ndim and dim == 1
        return isinstance(layer, nn.Linear) and dim == value.ndim - 1

    def _divisible(self, layer: Any, given: list[Any]) -> bool:
        n = self.degree
        if "weight" not in layer._parameters and not isinstance(layer, nn.MultiheadAttention):
            return False  # what makes the weight of other tensors would have to be cut, too
        if isinstance(layer, nn.Linear):
            return layer.out_features % n == 0
        if isinstance(layer, CONVOLUTIONS):
            return bool(
                layer.groups == 1 and layer.out_channels % n == 0 and given[0].ndim == layer.weight.ndim
            )
        if isinstance(layer, nn.Embedding):
            return layer.num_embeddings % n == 0 and layer.max_norm is None and not layer.sparse
        if isinstance(layer, nn.MultiheadAttention):
            plain = layer.in_proj_weight is not None and layer.bias_k is None and not layer.add_zero_attn
            return plain and not layer.dropout and layer.num_heads % n == 0 and given[0].ndim == 3
        return False

    def _way(self, name: str, way: str, sources: Iterable[str]) -> None:
        self.ways.setdefault(name, set()).add(way)
        if len(self.ways[name]) > 1:  # called twice, each time otherwise
            self.spoil({name, *sources})

    def _group(self, names: frozenset[str]) -> None:
        joined = set(names).union(*(each for each in self.groups if each & names))
        self.groups = [each for each in self.groups if not each & names] + [joined]

    def _mark(self, value: Tensor, dim: int, sources: frozenset[str]) -> None:
        self.parts[id(value)] = value, dim, sources

    # --- what is done between layers ----------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        if self._inside:
            return found
        given = pytree.tree_leaves((args, kwargs))
        if read := {self.owners[id(each)] for each in given if id(each) in self.owners}:
            self.bare |= read
            self.spoil(read)
        if sources := self.sources(given):
            try:
                dims = self._tried(func, args, kwargs)
                results = found if isinstance(found, list | tuple) else [found]
                for value, dim in zip(results, dims, strict=True):
                    if dim is not None:
                        self._mark(value, dim, sources)
            except Exception:
                self.spoil(sources)
        return found

    def _tried(self, func: Any, args: Any, kwargs: Any) -> list[int | None]:
        """Along which dimension each result is cut (None: it is not), if what is given is.

        Raises whatever the operation does with parts, or ValueError where it does not fit together.
        """
        drawn: dict[int, Tensor] = {}

        def run(part: int | None) -> list[Any]:
            def leaf(value: Any) -> Any:
                if id(value) not in self.parts:
                    return value
                whole = drawn.setdefault(id(value), torch.randn_like(value))
                dim = self.parts[id(value)][1]
                return (whole if part is None else whole.chunk(self.degree, dim)[part]).clone()

            found = func(*pytree.tree_map(leaf, args), **pytree.tree_map(leaf, kwargs))
            return list(found) if isinstance(found, list | tuple) else [found]

        whole = run(None)
        parts = [run(at) for at in range(self.degree)]
        return [_cut_at(each, some) for each, *some in zip(whole, *parts, strict=True)]


def _columns(layer: nn.Module, output: Tensor) -> int:
    return 1 if isinstance(layer, CONVOLUTIONS) else output.ndim - 1


def _cut_at(whole: Any, parts: list[Any]) -> int | None:
    """The dimension along which the parts make the whole; None where each is equal to it."""
    if not isinstance(whole, Tensor):
        if any(part != whole for part in parts):
            raise ValueError("what is counted differs")
        return None
    dims = [d for d, (n, m) in enumerate(zip(whole.shape, parts[0].shape, strict=True)) if n != m]
    if not dims and all(torch.equal(whole, part) for part in parts):
        return None
    if len(dims) != 1 or not torch.allclose(torch.cat(parts, dims[0]), whole, 1e-4, 1e-5):
        raise ValueError("the parts of the result are not the result of the parts")
    return dims[0]
