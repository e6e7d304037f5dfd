"""Tracing: the tensor operations of a pure function, written down one after the other while it runs once.

The function runs on the tensors it is given. What it writes in place becomes new values (`torch.func.functionalize`),
what `vmap` and gradients make of it is what runs, so that the graph is a flat list of operations on plain tensors, the
backward pass among them. `make_fx` of torch does the same, and imports a compiler for it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from atoll.engines.graph import aten, form_of

__all__ = ["Watch", "trace"]

_NODE = "_atoll_node"
"""Where a tensor made during a trace carries its node, which goes when the tensor goes: an id would be given again."""

_SIZED_BY = {aten.index.Tensor: 1, aten.masked_select.default: 1}
"""Of operations whose result may be as large as values say: which argument says it, where it is not all of them."""

_OUTSIDE = {Tensor.numpy, Tensor.__array__, Tensor.__dlpack__, Tensor.data_ptr, Tensor.tolist}
"""What brings values out of torch without an operation."""


def trace(function: Callable[..., Sequence[Any]], inputs: Sequence[Any]) -> tuple[fx.Graph, nn.Module]:
    """The graph of function(*inputs), and a module that holds the tensors which the graph finds elsewhere.

    Each input is a placeholder; numbers among inputs and outputs count as they are. A node's `meta["val"]` is the
    `Form` of what it gives, or a tuple of such. Raises RuntimeError where the function asks for the value of a tensor
    that depends on the inputs, or makes one whose size does.
    """
    recorder = _Recorder()
    # Under other names: an input that is given twice is two, and nothing of the trace stays with what is the caller's.
    given = [leaf.view_as(leaf) if isinstance(leaf, Tensor) else leaf for leaf in inputs]
    for at, value in enumerate(given):
        recorder.enter(at, value)
    with _no_cached_casts(), _Closed(), recorder:
        outputs = torch.func.functionalize(function, remove="mutations")(*given)
    recorder.graph.output(map_aggregate(list(outputs), recorder.named))
    return recorder.graph, recorder.root


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees the operations inside. Torch would have the compiler look away from that, and import it to be asked."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class _Recorder(Watch):  # type: ignore[no-untyped-call]
    """Writes down the operations inside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = fx.Graph()
        self.root = nn.Module()
        self._held: dict[
            int, tuple[Tensor, fx.Node]
        ] = {}  # tensors from elsewhere, which stay while they are here
        self._moving: set[fx.Node] = set()  # what depends on an input

    def enter(self, at: int, value: Any) -> None:
        """An input."""
        node = self.graph.placeholder(f"given_{at}")
        self._moving.add(node)
        if isinstance(value, Tensor):
            self._note(value, node)

    def named(self, value: Any) -> Any:
        """A tensor's node, and everything else as it is."""
        if not isinstance(value, Tensor):
            return value
        node = value.__dict__.get(_NODE)
        if node is not None and node.graph is self.graph:
            return node
        held = self._held.get(id(value))
        if held is None:
            name = f"_held_{len(self._held)}"
            self.root.register_buffer(name, value.detach(), persistent=False)
            node = self.graph.create_node("get_attr", name)
            node.meta["val"] = form_of(value)
            held = self._held[id(value)] = value, node
        return held[1]

    def _note(self, value: Any, node: fx.Node) -> Any:
        """Tie what an operation gave to its node: the form of it."""
        if isinstance(value, Tensor):
            node.meta["val"] = form_of(value)
            value.__dict__[_NODE] = node
        elif isinstance(value, (tuple, list)):
            forms = []
            for at, part in enumerate(value):
                inner = self.graph.create_node("call_function", operator.getitem, (node, at))
                if node in self._moving:
                    self._moving.add(inner)
                self._note(part, inner)
                forms.append(inner.meta.get("val"))
            node.meta["val"] = tuple(forms)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten.lift_fresh.default:  # a tensor that was made of Python's numbers just now
            return args[0]
        if _is_composite(func):  # in inference mode operations come here before they are taken apart
            with self:
                return func.decompose(*args, **kwargs)
        named, options = map_aggregate(args, self.named), map_aggregate(kwargs, self.named)
        if _reads(func, args):
            sources: list[fx.Node] = []
            fx.map_arg(named[_SIZED_BY[func]] if func in _SIZED_BY else (named, options), sources.append)
            if not self._moving.isdisjoint(sources):
                raise RuntimeError(f"it depends on the value of a tensor (by {func})")
        node = self.graph.create_node("call_function", func, named, options)
        if not self._moving.isdisjoint(node.all_input_nodes):
            self._moving.add(node)
        found = func(*args, **kwargs)
        self._note(found, node)
        return found


class _Closed(TorchFunctionMode):
    """Refuses what brings values out of the trace. The tensors inside are shells, whose memory is anybody's."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in _OUTSIDE and torch._C._functorch.is_functorch_wrapped_tensor(args[0]):
            raise RuntimeError(f"it depends on the value of a tensor (by {func.__name__})")
        return func(*args, **(kwargs or {}))


@cache
def _is_composite(func: Any) -> bool:
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return bool(func.has_kernel_for_dispatch_key(key))


def _reads(func: Any, args: Sequence[Any]) -> bool:
    """Whether an operation gives a value to Python, or a tensor as large as values say."""
    if torch.Tag.data_dependent_output in func.tags:
        return True
    if torch.Tag.dynamic_output_shape not in func.tags:
        return False
    masks = (torch.bool, torch.uint8)
    return func is not aten.index.Tensor or any(each is not None and each.dtype in masks for each in args[1])


@contextmanager
def _no_cached_casts() -> Iterator[None]:
    """Inside, autocast makes its copies anew: one from before would be taken for a constant."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
