"""The hidden units of a network, read off its graph: through its layers and functions, once."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from atoll.errors import ConfigError
from atoll.methods.parts.axes import Groups
from atoll.methods.parts.grouping import Plain, Several, Value
from atoll.methods.parts.layered import ELEMENTWISE, POOLS, Layers
from atoll.tensors import Tensors

__all__ = ["permutation_groups"]

# fmt: off
_BINARY = frozenset([
    "add", "sub", "mul", "truediv", "div", "iadd", "isub", "imul", "itruediv", "add_", "sub_", "mul_",
    "div_", "maximum", "minimum",
])
# fmt: on
_RESHAPES = frozenset({"view", "reshape"})


def permutation_groups(module: nn.Module, example_inputs: Tensor | None = None) -> Groups:
    """The groups of hidden units of a module, in the order in which they are computed.

    Inputs and outputs are in none, nor is a layer that is added to the input or has a frozen tensor. Known are linear
    and convolutional layers (depthwise ones too), embeddings, LSTM, GRU and RNN, normalisation by batch, instance
    and layer, pooling, flattening, elementwise functions, sums and concatenation.

    Args:
        module: any module that `torch.fx` can trace.
        example_inputs: if given, the module is run on them with its units shuffled, as a check; and their number of
            axes helps with modules that turn tensors around.

    Raises ConfigError, naming the operation, where the module cannot be traced or does something else with its units.
    """
    groups = Reader(module).read(None if example_inputs is None else example_inputs.ndim)
    if example_inputs is not None:
        _check(module, groups, example_inputs)
    return groups


def _check(module: nn.Module, groups: Groups, inputs: Tensor) -> None:
    state = Tensors({n: t.detach() for n, t in [*module.named_parameters(), *module.named_buffers()]})
    generator = torch.Generator().manual_seed(0)
    maps = {g: torch.randperm(size, generator=generator) for g, size in enumerate(groups.sizes)}
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            before = functional_call(module, dict(state), (inputs,))
            after = functional_call(module, dict(groups.moved(state, maps)), (inputs,))
    finally:
        module.train(training)
    if not torch.allclose(before, after, rtol=1e-3, atol=1e-4 * float(before.abs().max() + 1e-12)):
        raise ConfigError(
            "the hidden units of this model cannot be matched: in other places they compute something else"
        )


class Reader(Layers):
    """Walks through the graph once, and notes who has an axis over what."""

    def read(self, rank: int | None) -> Groups:
        try:
            graph = fx.symbolic_trace(self.module).graph
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(
                f"the hidden units of {type(self.module).__name__} cannot be matched: "
                f"torch.fx cannot trace its forward ({reason})",
                hint="matched averaging needs a forward without branches on tensors; use fedavg",
            ) from error
        values: dict[fx.Node, Any] = {}
        outputs: list[int] = []
        for node in graph.nodes:
            self.where = f"{node.op} {node.target}"
            if node.op == "placeholder":
                values[node] = Plain(rank=rank)
            elif node.op == "output":
                for value in (values[n] for n in node.all_input_nodes):
                    outputs += self.outputs(value)
            else:
                values[node] = self.value(node, values)
        return self.result(outputs)

    def value(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        args = fx.map_arg(node.args, lambda n: values[n])
        kwargs = fx.map_arg(node.kwargs, lambda n: values[n])
        if node.op == "get_attr":
            return self.attribute(str(node.target))
        if node.op == "call_module":
            layer = self.modules[str(node.target)]
            kind = type(layer).__name__
            self.where = f"{kind} ({node.target})"
            return self.layer(layer, kind.lower(), args)
        name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
        self.where = f"{name}()"
        return self.function(name, args, kwargs)

    # --- functions --------------------------------------------------------------------------------------------------

    def attribute(self, name: str) -> Any:
        tensor = operator.attrgetter(name)(self.module)
        if not isinstance(tensor, Tensor) or tensor.numel() == 1:
            return Plain(number=True)
        return Plain(parameter=self.names.get(id(tensor)), rank=tensor.ndim)

    def function(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        values = [v for v in _flat(args) + _flat(kwargs) if isinstance(v, Value | Several)]
        if name in ("size", "dim", "getattr"):  # shapes: numbers
            return Plain(number=True)
        if name == "getitem":
            return self.item(args[0], args[1])
        if not values:
            known = [v for v in _flat(args) + _flat(kwargs) if isinstance(v, Plain)]
            if name == "flatten" and (args[1:] or (kwargs.get("start_dim"),))[0] == 1:
                return Plain(rank=2)
            return Plain(number=all(v.number for v in known))
        value = args[0] if args else None
        if name in _BINARY:
            return self.joined(args[0], args[1])
        if not isinstance(value, Value) and name not in ("cat", "concat"):
            raise self.refuse()
        if name in ELEMENTWISE:
            for other in _flat(args[1:]) + _flat(kwargs):
                value = self.joined(value, other) if isinstance(other, Value | Plain) else value
            return value
        if name in POOLS:
            return self.pooled(value)
        if name in ("cat", "concat"):
            return self.concatenated(args, kwargs)
        assert isinstance(value, Value)
        if name == "flatten":
            given = {
                "start_dim": 0,
                "end_dim": -1,
                **dict(zip(("start_dim", "end_dim"), args[1:], strict=False)),
            }
            given |= kwargs
            return self.flatten(value, given["start_dim"], given["end_dim"])
        if name in _RESHAPES:
            sizes = args[1] if len(args) == 2 and isinstance(args[1], tuple | list) else args[1:]
            if len(sizes) == 2:
                return self.reshaped(value, sizes[1])
            raise self.refuse("only flattening to [batch, -1] is understood")
        if name in ("mean", "amax", "sum"):
            dims = args[1] if len(args) > 1 else kwargs.get("dim")
            keep = bool(kwargs.get("keepdim", args[2] if len(args) > 2 else False))
            return self.reduced(value, dims, keep)
        if name in ("squeeze", "unsqueeze") and len(args) > 1:
            return self.squeezed(value, args[1], -1 if name == "squeeze" else 1)
        if name in ("transpose", "permute"):
            return self.turned(value, name, args[1:])
        raise self.refuse()

    def reshaped(self, value: Value, width: Any) -> Any:
        """[batch, width], or [batch x time, width] where the units are the last axis."""
        if not isinstance(width, int) or width < 0:
            return self.flatten(value, 1, -1)
        if value.from_end == -1 and not value.spread and width == sum(s.length for s in value.segments):
            return Value(value.segments, 1, 2)
        flat = self.flatten(value, 1, -1)
        return Value(self.sized(flat, width), 1, 2)

    def joined(self, one: Any, other: Any) -> Any:
        """A sum, a product: elementwise with broadcasting."""
        if not isinstance(one, Value):
            one, other = other, one
        if not isinstance(other, Value):
            if isinstance(other, Several) or not isinstance(one, Value):
                raise self.refuse()
            if isinstance(other, Plain) and other.parameter:
                return self.parameter(one, other.parameter)
            if isinstance(other, Plain) and not other.number:  # the input, say: it keeps its places
                self.fix(one.segments)
            return one
        if one.from_end != other.from_end or one.spread != other.spread:
            raise self.refuse("the units are on different axes")
        self.tie(one.segments, other.segments)
        return one if (one.rank or 0) >= (other.rank or 0) else other

    def parameter(self, value: Value, name: str) -> Value:
        """Elementwise with a tensor of the module's own."""
        tensor = operator.attrgetter(name)(self.module)
        at = tensor.ndim + value.from_end
        if value.spread:
            raise self.refuse()
        if at < 0 or tensor.shape[at] == 1:
            return value
        self.note(tensor, at, "unit", self.sized(value, tensor.shape[at]))
        return value

    def item(self, value: Any, index: Any) -> Any:
        if isinstance(value, Several):
            return value.parts[index] if isinstance(index, int) else None
        if isinstance(value, Plain):
            return Plain(number=value.number)
        entries = index if isinstance(index, tuple) else (index,)
        if not isinstance(value, Value) or value.rank is None or value.spread:
            raise self.refuse()
        axis, rank = value.axis % value.rank, value.rank
        if not all(isinstance(e, int | slice) for e in entries) or len(entries) > rank:
            raise self.refuse()
        if len(entries) > axis and entries[axis] != slice(None):
            raise self.refuse("it picks units")
        gone = [at for at, e in enumerate(entries) if isinstance(e, int)]
        return Value(value.segments, axis - sum(at < axis for at in gone), rank - len(gone))

    def reduced(self, value: Value, dims: Any, keep: bool) -> Value:
        dims = (dims,) if isinstance(dims, int) else dims
        if dims is None or value.rank is None or value.spread:
            raise self.refuse()
        gone = {d % value.rank for d in dims}
        if value.axis in gone:
            raise self.refuse("it sums over the units")
        if keep:
            return value
        return Value(value.segments, value.axis - sum(d < value.axis for d in gone), value.rank - len(gone))

    def squeezed(self, value: Value, dim: int, by: int) -> Value:
        if value.rank is None or value.spread:
            raise self.refuse()
        at = dim % (value.rank + max(by, 0))
        if by < 0 and at == value.axis:
            raise self.refuse()
        before = at < value.axis if by < 0 else at <= value.axis
        return Value(value.segments, value.axis + by * before, value.rank + by)

    def turned(self, value: Value, name: str, dims: Sequence[Any]) -> Value:
        if value.rank is None or value.spread:
            raise self.refuse()
        order = list(range(value.rank))
        if name == "transpose":
            a, b = (d % value.rank for d in dims)
            order[a], order[b] = order[b], order[a]
        else:
            given = dims[0] if isinstance(dims[0], tuple | list) else dims
            order = [d % value.rank for d in given]
        return Value(value.segments, order.index(value.axis), value.rank)

    def concatenated(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Value:
        parts = args[0] if args else kwargs["tensors"]
        dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
        if not all(isinstance(p, Value) for p in parts):
            raise self.refuse("something without hidden units is among them")
        first = parts[0]
        along = dim - first.rank if dim >= 0 and first.rank else dim
        same = all(p.from_end == first.from_end and p.rank == first.rank and not p.spread for p in parts)
        if not same or along != first.from_end:
            raise self.refuse("units are concatenated along their own axis only")
        return Value(tuple(s for p in parts for s in p.segments), first.axis, first.rank)


def _flat(tree: Any) -> list[Any]:
    if isinstance(tree, Mapping):
        return [leaf for value in tree.values() for leaf in _flat(value)]
    if isinstance(tree, tuple | list):
        return [leaf for value in tree for leaf in _flat(value)]
    return [tree]
