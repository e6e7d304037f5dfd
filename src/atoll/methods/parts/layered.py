"""What layers do to axes over hidden units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from atoll.methods.parts.axes import FIXED, Segment
from atoll.methods.parts.grouping import Grouping, Plain, Several, Value

__all__ = ["ELEMENTWISE", "POOLS", "Layers"]

# fmt: off
ELEMENTWISE = frozenset([
    "relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "leakyrelu", "elu", "elu_", "selu", "celu",
    "gelu", "silu", "silu_", "mish", "tanh", "tanh_", "sigmoid", "sigmoid_", "softplus", "hardtanh",
    "hardtanh_", "hardswish", "hardsigmoid", "softsign", "logsigmoid", "tanhshrink", "hardshrink",
    "softshrink", "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "alphadropout",
    "feature_alpha_dropout", "featurealphadropout", "clamp", "clamp_", "clip", "abs", "neg", "exp",
    "log", "sqrt", "rsqrt", "square", "pow", "sin", "cos", "contiguous", "clone", "detach", "float",
    "double", "half", "to", "type", "identity", "softmax", "log_softmax", "logsoftmax", "threshold",
])
# fmt: on
POOLS = frozenset(
    f"{kind}{joint}pool{n}d"
    for kind in ("max", "avg", "lp", "adaptive_max", "adaptive_avg", "adaptivemax", "adaptiveavg")
    for joint in ("_", "")
    for n in (1, 2, 3)
) | {"interpolate", "upsample", "zeropad1d", "zeropad2d", "reflectionpad2d", "replicationpad2d"}


class Layers(Grouping):
    """Goes through layers."""

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
            if not isinstance(value, Plain):
                raise self.refuse()
            rank = None if value.rank is None else value.rank + 1
            return self.writes(layer, 1, layer.embedding_dim, -1 if rank is None else rank - 1, rank)
        if isinstance(layer, nn.modules.batchnorm._NormBase):  # and instance normalisation
            return self.scaled(layer, value, layer.num_features, axis=1)
        if isinstance(layer, nn.LayerNorm):
            if isinstance(value, Value) and (len(layer.normalized_shape) > 1 or value.from_end != -1):
                raise self.refuse("it normalises over other axes than the units")
            return self.scaled(layer, value, layer.normalized_shape[-1], axis=-1)
        if isinstance(layer, nn.GroupNorm):
            if isinstance(value, Value) and layer.num_groups not in (1, layer.num_channels):
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
        if kind in ELEMENTWISE and not list(layer.parameters()):
            return value
        if kind in POOLS:
            return self.pooled(value)
        if isinstance(value, Plain) and not list(layer.parameters()):
            return Plain()
        raise self.refuse()

    def reads(self, weight: Tensor, dim: int, value: Any, width: int, axis: int) -> None:
        """A layer reads `value` along axis `axis` of it (1, or -1 for the last)."""
        if isinstance(value, Plain):
            if value.number or value.parameter:
                raise self.refuse()
            self.note(weight, dim, "in", (Segment(FIXED, width),))
            return
        if not isinstance(value, Value):
            raise self.refuse()
        if (value.from_end != -1) if axis == -1 else not self.second(value):
            raise self.refuse("it reads another axis than the units")
        self.note(weight, dim, "in", self.sized(value, width))

    def second(self, value: Value) -> bool:
        """Whether axis 1 is the units' (where the rank is not known: if it can be)."""
        return value.axis == 1 or (value.axis == -1 and value.rank is None)

    def writes(self, layer: Any, dim: int, size: int, axis: int, rank: int | None) -> Value:
        """A layer makes units."""
        segments = (self.group(size),)
        self.note(layer.weight, dim, "out", segments)
        self.note(getattr(layer, "bias", None), 0, "out", segments)
        return Value(segments, axis, rank)

    def linear(self, layer: nn.Linear, value: Any) -> Value:
        self.reads(layer.weight, 1, value, layer.in_features, axis=-1)
        rank = value.rank
        return self.writes(layer, 0, layer.out_features, -1 if rank is None else rank - 1, rank)

    def convolution(self, layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, value: Any) -> Value:
        rank = layer.weight.ndim
        if layer.groups == 1:
            self.reads(layer.weight, 1, value, layer.in_channels, axis=1)
            return self.writes(layer, 0, layer.out_channels, 1, rank)
        if isinstance(value, Value) and layer.groups == layer.in_channels and self.second(value):
            each = layer.out_channels // layer.in_channels  # depthwise: the units go through
            segments = tuple(s._replace(inner=s.inner * each) for s in self.sized(value, layer.in_channels))
            self.note(layer.weight, 0, "out", segments)
            self.note(layer.bias, 0, "out", segments)
            return Value(segments, 1, rank)
        if isinstance(value, Value):
            self.fix(value.segments)
        made = self.writes(layer, 0, layer.out_channels, 1, rank)
        self.fix(made.segments)
        return made

    def scaled(self, layer: Any, value: Any, width: int, axis: int) -> Any:
        """Normalisation: numbers for each unit."""
        if isinstance(value, Value) and axis == 1 and not self.second(value):
            raise self.refuse("it normalises another axis than the units")
        segments = self.sized(value, width) if isinstance(value, Value) else (Segment(FIXED, width),)
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.note(getattr(layer, name, None), 0, "unit", segments)
        if not isinstance(value, Value):
            return value
        return replace(value, segments=segments, spread=None)

    def recurrent(self, layer: nn.RNNBase, args: Sequence[Any]) -> Several:
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
            value = Value(tuple(made), 2, 3)
        states: Any = None  # a state for each layer and direction: whose units, only one layer can say
        if layer.num_layers == 1 and not layer.bidirectional:
            states = Several((value, value)) if gates == 4 else value
        return Several((value, states))

    def pooled(self, value: Any) -> Any:
        if isinstance(value, Value) and (value.axis != 1 or value.rank == 2):
            raise self.refuse("it pools over the units")
        return value

    def flatten(self, value: Any, start: int, end: int) -> Any:
        if not isinstance(value, Value):
            return Plain(rank=2 if start == 1 else None)
        if start != 1 or (end != -1 and end != (value.rank or 0) - 1):
            raise self.refuse("only flattening to [batch, -1] is understood")
        if value.rank == 2:
            return value
        if value.from_end == -1:
            return Value(value.segments, 1, 2, "outer")
        if value.axis == 1:
            return Value(value.segments, 1, 2, "inner")
        raise self.refuse()
