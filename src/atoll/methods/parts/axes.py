"""Which axes of a network's tensors run over the same hidden units, read off its graph.

A network computes the same function when the hidden units of a layer change places, if every tensor with an axis over
these units goes along: the rows of the layer and its bias, normalisation, the columns of whatever reads them. Layers
that are added share their units.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from atoll.errors import ConfigError
from atoll.tensors import Tensors

__all__ = ["Axis", "Groups", "Segment", "permutation_groups"]

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
    groups = _Reader(module).read(None if example_inputs is None else example_inputs.ndim)
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


# --- reading the graph ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Value:
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
class _Plain:
    """A tensor of the graph without hidden units (the input), or a number."""

    number: bool = False
    rank: int | None = None
    parameter: str | None = None


@dataclass(frozen=True)
class _Several:
    """What a recurrent layer gives: (outputs, hidden states)."""

    parts: tuple[Any, ...]


# fmt: off
_ELEMENTWISE = frozenset([
    "relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "leakyrelu", "elu", "elu_", "selu", "celu",
    "gelu", "silu", "silu_", "mish", "tanh", "tanh_", "sigmoid", "sigmoid_", "softplus", "hardtanh",
    "hardtanh_", "hardswish", "hardsigmoid", "softsign", "logsigmoid", "tanhshrink", "hardshrink",
    "softshrink", "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "alphadropout",
    "feature_alpha_dropout", "featurealphadropout", "clamp", "clamp_", "clip", "abs", "neg", "exp",
    "log", "sqrt", "rsqrt", "square", "pow", "sin", "cos", "contiguous", "clone", "detach", "float",
    "double", "half", "to", "type", "identity", "softmax", "log_softmax", "logsoftmax", "threshold",
])
# fmt: on
_POOLS = frozenset(
    f"{kind}{joint}pool{n}d"
    for kind in ("max", "avg", "lp", "adaptive_max", "adaptive_avg", "adaptivemax", "adaptiveavg")
    for joint in ("_", "")
    for n in (1, 2, 3)
) | {"interpolate", "upsample", "zeropad1d", "zeropad2d", "reflectionpad2d", "replicationpad2d"}
# fmt: off
_BINARY = frozenset([
    "add", "sub", "mul", "truediv", "div", "iadd", "isub", "imul", "itruediv", "add_", "sub_", "mul_",
    "div_", "maximum", "minimum",
])
# fmt: on
_RESHAPES = frozenset({"view", "reshape"})


class _Reader:
    """Walks through the graph once, and notes who has an axis over what."""

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
                values[node] = _Plain(rank=rank)
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

    # --- groups ---------------------------------------------------------------------------------------------------

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
        if isinstance(value, _Several):
            return [g for part in value.parts for g in self.outputs(part)]
        if not isinstance(value, _Value):
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

    def sized(self, value: _Value, width: int) -> tuple[Segment, ...]:
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

    # --- layers -----------------------------------------------------------------------------------------------------

    def layer(self, layer: nn.Module, kind: str, args: Sequence[Any]) -> Any:
        value = args[0]
        if isinstance(layer, nn.Linear):
            return self.linear(layer, value)
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            return self.convolution(layer, value)
        if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            if layer.groups != 1:
                raise self.refuse("groups")
            self.reads(layer.weight, 0, value, layer.in_channels, axis=1)
            return self.writes(layer, 1, layer.out_channels, 1, layer.weight.ndim)
        if isinstance(layer, nn.Embedding):
            if not isinstance(value, _Plain):
                raise self.refuse()
            rank = None if value.rank is None else value.rank + 1
            return self.writes(layer, 1, layer.embedding_dim, -1 if rank is None else rank - 1, rank)
        if isinstance(layer, nn.modules.batchnorm._NormBase):  # and instance normalisation
            return self.scaled(layer, value, layer.num_features, axis=1)
        if isinstance(layer, nn.LayerNorm):
            if isinstance(value, _Value) and (len(layer.normalized_shape) > 1 or value.from_end != -1):
                raise self.refuse("it normalises over other axes than the units")
            return self.scaled(layer, value, layer.normalized_shape[-1], axis=-1)
        if isinstance(layer, nn.GroupNorm):
            if isinstance(value, _Value) and layer.num_groups not in (1, layer.num_channels):
                self.fix(value.segments)
            return self.scaled(layer, value, layer.num_channels, axis=1)
        if isinstance(layer, nn.PReLU):
            if layer.num_parameters > 1:
                return self.scaled(layer, value, layer.num_parameters, axis=1)
            return value
        if isinstance(layer, nn.LSTM | nn.GRU | nn.RNN):
            return self.recurrent(layer, args)
        if isinstance(layer, nn.Flatten):
            return self.flatten(value, layer.start_dim, layer.end_dim)
        if kind in _ELEMENTWISE and not list(layer.parameters()):
            return value
        if kind in _POOLS:
            return self.pooled(value)
        if isinstance(value, _Plain) and not list(layer.parameters()):
            return _Plain()
        raise self.refuse()

    def reads(self, weight: Tensor, dim: int, value: Any, width: int, axis: int) -> None:
        """A layer reads `value` along axis `axis` of it (1, or -1 for the last)."""
        if isinstance(value, _Plain):
            if value.number or value.parameter:
                raise self.refuse()
            self.note(weight, dim, "in", (Segment(FIXED, width),))
            return
        if not isinstance(value, _Value):
            raise self.refuse()
        if (value.from_end != -1) if axis == -1 else not self.second(value):
            raise self.refuse("it reads another axis than the units")
        self.note(weight, dim, "in", self.sized(value, width))

    def second(self, value: _Value) -> bool:
        """Whether axis 1 is the units' (where the rank is not known: if it can be)."""
        return value.axis == 1 or (value.axis == -1 and value.rank is None)

    def writes(self, layer: Any, dim: int, size: int, axis: int, rank: int | None) -> _Value:
        """A layer makes units."""
        segments = (self.group(size),)
        self.note(layer.weight, dim, "out", segments)
        self.note(getattr(layer, "bias", None), 0, "out", segments)
        return _Value(segments, axis, rank)

    def linear(self, layer: nn.Linear, value: Any) -> _Value:
        self.reads(layer.weight, 1, value, layer.in_features, axis=-1)
        rank = value.rank
        return self.writes(layer, 0, layer.out_features, -1 if rank is None else rank - 1, rank)

    def convolution(self, layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, value: Any) -> _Value:
        rank = layer.weight.ndim
        if layer.groups == 1:
            self.reads(layer.weight, 1, value, layer.in_channels, axis=1)
            return self.writes(layer, 0, layer.out_channels, 1, rank)
        if isinstance(value, _Value) and layer.groups == layer.in_channels and self.second(value):
            each = layer.out_channels // layer.in_channels  # depthwise: the units go through
            segments = tuple(s._replace(inner=s.inner * each) for s in self.sized(value, layer.in_channels))
            self.note(layer.weight, 0, "out", segments)
            self.note(layer.bias, 0, "out", segments)
            return _Value(segments, 1, rank)
        if isinstance(value, _Value):
            self.fix(value.segments)
        made = self.writes(layer, 0, layer.out_channels, 1, rank)
        self.fix(made.segments)
        return made

    def scaled(self, layer: Any, value: Any, width: int, axis: int) -> Any:
        """Normalisation: numbers for each unit."""
        if isinstance(value, _Value) and axis == 1 and not self.second(value):
            raise self.refuse("it normalises another axis than the units")
        segments = self.sized(value, width) if isinstance(value, _Value) else (Segment(FIXED, width),)
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.note(getattr(layer, name, None), 0, "unit", segments)
        if not isinstance(value, _Value):
            return value
        return replace(value, segments=segments, spread=None)

    def recurrent(self, layer: nn.RNNBase, args: Sequence[Any]) -> _Several:
        if len(args) > 1 and args[1] is not None:
            raise self.refuse("it is given a hidden state")
        if getattr(layer, "proj_size", 0):
            raise self.refuse("proj_size")
        gates = {"LSTM": 4, "GRU": 3}.get(type(layer).__name__, 1)
        value = args[0]
        for level in range(layer.num_layers):
            made: list[Segment] = []
            for suffix in ("", "_reverse") if layer.bidirectional else ("",):
                weights = {
                    name: getattr(layer, f"{name}_l{level}{suffix}", None)
                    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                }
                assert weights["weight_ih"] is not None and weights["weight_hh"] is not None
                unit = self.group(layer.hidden_size)
                gated = (unit._replace(outer=gates),)
                self.reads(weights["weight_ih"], 1, value, weights["weight_ih"].shape[1], axis=-1)
                self.note(weights["weight_hh"], 1, "in", (unit,))
                for weight in weights.values():
                    self.note(weight, 0, "out", gated)
                made.append(unit)
            value = _Value(tuple(made), 2, 3)
        states: Any = None  # a state for each layer and direction: whose units, only one layer can say
        if layer.num_layers == 1 and not layer.bidirectional:
            states = _Several((value, value)) if gates == 4 else value
        return _Several((value, states))

    # --- functions --------------------------------------------------------------------------------------------------

    def attribute(self, name: str) -> Any:
        tensor = operator.attrgetter(name)(self.module)
        if not isinstance(tensor, Tensor) or tensor.numel() == 1:
            return _Plain(number=True)
        return _Plain(parameter=self.names.get(id(tensor)), rank=tensor.ndim)

    def function(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        values = [v for v in _flat(args) + _flat(kwargs) if isinstance(v, _Value | _Several)]
        if name in ("size", "dim", "getattr"):  # shapes: numbers
            return _Plain(number=True)
        if name == "getitem":
            return self.item(args[0], args[1])
        if not values:
            known = [v for v in _flat(args) + _flat(kwargs) if isinstance(v, _Plain)]
            if name == "flatten" and (args[1:] or (kwargs.get("start_dim"),))[0] == 1:
                return _Plain(rank=2)
            return _Plain(number=all(v.number for v in known))
        value = args[0] if args else None
        if name in _BINARY:
            return self.joined(args[0], args[1])
        if not isinstance(value, _Value) and name not in ("cat", "concat"):
            raise self.refuse()
        if name in _ELEMENTWISE:
            for other in _flat(args[1:]) + _flat(kwargs):
                value = self.joined(value, other) if isinstance(other, _Value | _Plain) else value
            return value
        if name in _POOLS:
            return self.pooled(value)
        if name in ("cat", "concat"):
            return self.concatenated(args, kwargs)
        assert isinstance(value, _Value)
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

    def pooled(self, value: Any) -> Any:
        if isinstance(value, _Value) and (value.axis != 1 or value.rank == 2):
            raise self.refuse("it pools over the units")
        return value

    def flatten(self, value: Any, start: int, end: int) -> Any:
        if not isinstance(value, _Value):
            return _Plain(rank=2 if start == 1 else None)
        if start != 1 or (end != -1 and end != (value.rank or 0) - 1):
            raise self.refuse("only flattening to [batch, -1] is understood")
        if value.rank == 2:
            return value
        if value.from_end == -1:
            return _Value(value.segments, 1, 2, "outer")
        if value.axis == 1:
            return _Value(value.segments, 1, 2, "inner")
        raise self.refuse()

    def reshaped(self, value: _Value, width: Any) -> Any:
        """[batch, width], or [batch x time, width] where the units are the last axis."""
        if not isinstance(width, int) or width < 0:
            return self.flatten(value, 1, -1)
        if value.from_end == -1 and not value.spread and width == sum(s.length for s in value.segments):
            return _Value(value.segments, 1, 2)
        flat = self.flatten(value, 1, -1)
        return _Value(self.sized(flat, width), 1, 2)

    def joined(self, one: Any, other: Any) -> Any:
        """A sum, a product: elementwise with broadcasting."""
        if not isinstance(one, _Value):
            one, other = other, one
        if not isinstance(other, _Value):
            if isinstance(other, _Several) or not isinstance(one, _Value):
                raise self.refuse()
            if isinstance(other, _Plain) and other.parameter:
                return self.parameter(one, other.parameter)
            if isinstance(other, _Plain) and not other.number:  # the input, say: it keeps its places
                self.fix(one.segments)
            return one
        if one.from_end != other.from_end or one.spread != other.spread:
            raise self.refuse("the units are on different axes")
        self.tie(one.segments, other.segments)
        return one if (one.rank or 0) >= (other.rank or 0) else other

    def parameter(self, value: _Value, name: str) -> _Value:
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
        if isinstance(value, _Several):
            return value.parts[index] if isinstance(index, int) else None
        if isinstance(value, _Plain):
            return _Plain(number=value.number)
        entries = index if isinstance(index, tuple) else (index,)
        if not isinstance(value, _Value) or value.rank is None or value.spread:
            raise self.refuse()
        axis, rank = value.axis % value.rank, value.rank
        if not all(isinstance(e, int | slice) for e in entries) or len(entries) > rank:
            raise self.refuse()
        if len(entries) > axis and entries[axis] != slice(None):
            raise self.refuse("it picks units")
        gone = [at for at, e in enumerate(entries) if isinstance(e, int)]
        return _Value(value.segments, axis - sum(at < axis for at in gone), rank - len(gone))

    def reduced(self, value: _Value, dims: Any, keep: bool) -> _Value:
        dims = (dims,) if isinstance(dims, int) else dims
        if dims is None or value.rank is None or value.spread:
            raise self.refuse()
        gone = {d % value.rank for d in dims}
        if value.axis in gone:
            raise self.refuse("it sums over the units")
        if keep:
            return value
        return _Value(value.segments, value.axis - sum(d < value.axis for d in gone), value.rank - len(gone))

    def squeezed(self, value: _Value, dim: int, by: int) -> _Value:
        if value.rank is None or value.spread:
            raise self.refuse()
        at = dim % (value.rank + max(by, 0))
        if by < 0 and at == value.axis:
            raise self.refuse()
        before = at < value.axis if by < 0 else at <= value.axis
        return _Value(value.segments, value.axis + by * before, value.rank + by)

    def turned(self, value: _Value, name: str, dims: Sequence[Any]) -> _Value:
        if value.rank is None or value.spread:
            raise self.refuse()
        order = list(range(value.rank))
        if name == "transpose":
            a, b = (d % value.rank for d in dims)
            order[a], order[b] = order[b], order[a]
        else:
            given = dims[0] if isinstance(dims[0], tuple | list) else dims
            order = [d % value.rank for d in given]
        return _Value(value.segments, order.index(value.axis), value.rank)

    def concatenated(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Value:
        parts = args[0] if args else kwargs["tensors"]
        dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
        if not all(isinstance(p, _Value) for p in parts):
            raise self.refuse("something without hidden units is among them")
        first = parts[0]
        along = dim - first.rank if dim >= 0 and first.rank else dim
        same = all(p.from_end == first.from_end and p.rank == first.rank and not p.spread for p in parts)
        if not same or along != first.from_end:
            raise self.refuse("units are concatenated along their own axis only")
        return _Value(tuple(s for p in parts for s in p.segments), first.axis, first.rank)


def _flat(tree: Any) -> list[Any]:
    if isinstance(tree, Mapping):
        return [leaf for value in tree.values() for leaf in _flat(value)]
    if isinstance(tree, tuple | list):
        return [leaf for value in tree for leaf in _flat(value)]
    return [tree]
