"""What is learned: an `nn.Module`, a loss and metrics, as pure functions of named tensors for ONE client.

A module is used without its state: parameters and buffers come in, outputs and new buffers go out. Three kinds of
layer need help to be pure, and get it from `_Pure`, whatever module they sit in: dropout (and other random layers)
draw from a counter-based stream, BatchNorm ignores the padded rows of a batch, and recurrent layers have a plain
form that can be batched over clients.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from torch.overrides import TorchFunctionMode

from atoll import seeds
from atoll.errors import ConfigError, EngineError
from atoll.tensors import Record, Tensors

__all__ = ["Batch", "Loss", "Task", "as_batched"]

Loss = Callable[[Tensor, Tensor], Tensor]

_batched: ContextVar[bool] = ContextVar("atoll_batched", default=False)


@contextmanager
def as_batched() -> Iterator[None]:
    """Inside, recurrent layers take the plain form that `vmap` can batch (engines enter this, users need not)."""
    token = _batched.set(True)
    try:
        yield
    finally:
        _batched.reset(token)


class Batch(NamedTuple):
    """Samples of one client: `inputs` [b, ...], `targets` [b, ...], `mask` [b] (1 real, 0 padding), `key` (scalar)."""

    inputs: Tensor
    targets: Tensor
    mask: Tensor
    key: Tensor


class Task:
    """A module and a loss, to be trained and judged through pure functions.

    Args:
        module: any `nn.Module`. It is copied; the caller's stays as it is.
        loss: "cross_entropy" (integer targets), "bce" (binary targets, one logit), "mse", "l1", or a function
            (outputs, targets) -> per-sample losses of shape [b].
        metrics: extra per-sample measures, name -> function(outputs, targets) -> [b]; their means are reported.

    Trainable parameters are `params`. Everything else in the module's state, buffers and frozen parameters, is
    `buffers`. A tensor shared by two layers appears once, under its first name, and stays shared.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: str | Loss = "cross_entropy",
        metrics: Mapping[str, Loss] | None = None,
    ) -> None:
        if isinstance(loss, str) and loss not in _LOSSES:
            raise ConfigError(f"unknown loss {loss!r}", hint=f"known: {', '.join(_LOSSES)}, or a function")
        self.module = copy.deepcopy(module).cpu()
        self.loss_name = loss if isinstance(loss, str) else getattr(loss, "__name__", "custom")
        self.loss_function: Loss = _LOSSES[loss] if isinstance(loss, str) else loss
        self.metrics: dict[str, Loss] = dict(metrics or {})
        if self.loss_name in ("cross_entropy", "bce"):
            self.metrics.setdefault("accuracy", _ACCURACIES[self.loss_name])
        self.normalises = any(
            isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in module.modules()
        )
        self.recurrent = any(isinstance(layer, nn.RNNBase) for layer in module.modules())
        self._trainable = [name for name, p in self.module.named_parameters() if p.requires_grad]

    # --- the module's state -------------------------------------------------------------------------------------

    def initial(self) -> tuple[Tensors, Tensors]:
        """The module's own (params, buffers), copied."""
        params = {name: p.detach().clone() for name, p in self.module.named_parameters()}
        buffers = {name: b.detach().clone() for name, b in self.module.named_buffers()}
        trainable = Tensors({name: params.pop(name) for name in self._trainable})
        if not trainable:
            raise ConfigError("the model has no trainable parameter", hint="is requires_grad off everywhere?")
        return trainable, Tensors({**params, **buffers})

    def load(self, params: Tensors, buffers: Tensors) -> nn.Module:
        """A fresh module with this state, for use outside Atoll."""
        module = copy.deepcopy(self.module)
        state = {**params, **buffers}
        with torch.no_grad():
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
                tensor.copy_(state[name])
        return module

    # --- pure functions -----------------------------------------------------------------------------------------

    def predict(
        self, params: Tensors, buffers: Tensors, inputs: Tensor, *, batch: Batch | None = None
    ) -> tuple[Tensor, Tensors]:
        """Outputs and new buffers. With `batch` the module is in training mode, else in evaluation mode."""
        self.module.train(batch is not None)
        state = {**params, **(buffers.map(torch.clone) if batch is not None else buffers)}
        with _Pure(batch) as pure:
            outputs = functional_call(self.module, state, (inputs,))
        return outputs, Tensors({name: pure.moved.get(id(state[name]), state[name]) for name in buffers})

    def loss(self, params: Tensors, buffers: Tensors, batch: Batch) -> tuple[Tensor, Tensors]:
        """Mean training loss over the real samples of a batch, and the new buffers."""
        outputs, buffers = self.predict(params, buffers, batch.inputs, batch=batch)
        losses = self._per_sample(self.loss_function, outputs, batch.targets)
        return torch.sum(losses * batch.mask) / batch.mask.sum().clamp(min=1), buffers

    def gradient(self, params: Tensors, buffers: Tensors, batch: Batch) -> tuple[Tensors, Tensor, Tensors]:
        """(gradient, loss, new buffers) of the mean training loss of a batch."""

        def objective(params: Tensors) -> tuple[Tensor, Tensors]:
            return self.loss(params, buffers, batch)

        gradient, (loss, buffers) = grad_and_value(objective, has_aux=True)(params)
        return gradient, loss, buffers

    def measure(self, params: Tensors, buffers: Tensors, inputs: Tensor, targets: Tensor) -> Record:
        """Per-sample loss and metrics in evaluation mode: a record of tensors [b]."""
        outputs, _ = self.predict(params, buffers, inputs)
        losses = self._per_sample(self.loss_function, outputs, targets)
        return Record(
            loss=losses, **{n: self._per_sample(f, outputs, targets) for n, f in self.metrics.items()}
        )

    def totals(self, params: Tensors, buffers: Tensors, batch: Batch) -> Record:
        """Sums over the real samples of loss and metrics, and their `count`; to be pooled, then divided once."""
        measured = self.measure(params, buffers, batch.inputs, batch.targets)
        sums = {name: torch.sum(value * batch.mask) for name, value in measured.items()}
        return Record(count=batch.mask.sum(), **sums)

    @staticmethod
    def _per_sample(function: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
        values = function(outputs, targets)
        if values.ndim == 0 or values.shape[0] != targets.shape[0]:
            raise ConfigError(
                f"{getattr(function, '__name__', 'the loss')} returned shape {tuple(values.shape)} "
                f"for {targets.shape[0]} samples",
                hint="return one value per sample (reduction='none'); Atoll takes the means",
            )
        return values.reshape(values.shape[0], -1).mean(1) if values.ndim > 1 else values

    def check(self, inputs: Tensor, targets: Tensor, classes: int | None) -> None:
        """Run the model on a few samples and say clearly what does not fit.  Raises ConfigError."""
        params, buffers = self.initial()
        shape = tuple(inputs.shape[1:])
        try:
            with torch.no_grad():
                outputs, _ = self.predict(params, buffers, inputs)
        except Exception as error:
            raise ConfigError(
                f"the model cannot read the data: inputs of shape {shape} a sample gave "
                f"{type(error).__name__}: {error}",
                hint="choose a model for this shape (for example mlp flattens, cnn wants [channels, height, width])",
            ) from error
        if self.loss_name == "cross_entropy":
            if targets.is_floating_point():
                raise ConfigError(
                    "cross_entropy needs integer class labels, the targets are floating point",
                    hint='use loss="mse" for regression, or convert the labels to integers',
                )
            width = _class_last(outputs, targets).shape[-1]
            need = max(classes or 0, int(targets.max()) + 1)
            if width < need:
                raise ConfigError(
                    f"the model has {width} outputs but the data has {need} classes",
                    hint=f"give the last layer {need} outputs",
                )
        elif self.loss_name in ("mse", "l1", "bce") and outputs.numel() != targets.numel():
            raise ConfigError(
                f"the model gives outputs of shape {tuple(outputs.shape)} for targets of shape {tuple(targets.shape)}",
                hint="give the last layer as many outputs as a target has numbers",
            )
        with torch.no_grad():
            self.measure(params, buffers, inputs, targets)


# --- losses and metrics, per sample ---------------------------------------------------------------------------------


def _class_last(outputs: Tensor, targets: Tensor) -> Tensor:
    """Logits with classes on the last axis. Accepts [b, ..., classes] and torch's [b, classes, ...]."""
    if outputs.ndim == targets.ndim + 1:
        if outputs.shape[:-1] == targets.shape:
            return outputs
        if outputs.shape[:1] + outputs.shape[2:] == targets.shape:
            return outputs.movedim(1, -1)
    raise ConfigError(
        f"the model gives outputs of shape {tuple(outputs.shape)} for labels of shape {tuple(targets.shape)}",
        hint="cross_entropy wants one row of logits a label: [batch, classes] for labels [batch]",
    )


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    logits = torch.log_softmax(_class_last(outputs, targets), -1)
    if targets.ndim == 1:
        return -logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    real = (targets >= 0).to(logits.dtype)  # negative labels are padding inside a sequence
    losses = -logits.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1) * real
    return losses.flatten(1).sum(1) / real.flatten(1).sum(1).clamp(min=1)


def _accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    right = (_class_last(outputs, targets).argmax(-1) == targets).to(torch.float32)
    if targets.ndim == 1:
        return right
    real = (targets >= 0).to(torch.float32)
    return right.flatten(1).sum(1) / real.flatten(1).sum(1).clamp(min=1)


def _flat(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return outputs.reshape(targets.shape[0], -1), targets.reshape(targets.shape[0], -1).to(outputs.dtype)


def _bce(outputs: Tensor, targets: Tensor) -> Tensor:
    logits, labels = _flat(outputs, targets)
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)


def _binary_accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    logits, labels = _flat(outputs, targets)
    return ((logits > 0) == (labels > 0.5)).to(torch.float32).mean(1)


def _mse(outputs: Tensor, targets: Tensor) -> Tensor:
    predicted, wanted = _flat(outputs, targets)
    return (predicted - wanted).square().mean(1)


def _l1(outputs: Tensor, targets: Tensor) -> Tensor:
    predicted, wanted = _flat(outputs, targets)
    return (predicted - wanted).abs().mean(1)


_LOSSES: dict[str, Loss] = {"cross_entropy": _cross_entropy, "bce": _bce, "mse": _mse, "l1": _l1}
_ACCURACIES: dict[str, Loss] = {"cross_entropy": _accuracy, "bce": _binary_accuracy}


# --- purity ---------------------------------------------------------------------------------------------------------


class _Pure(TorchFunctionMode):
    """Replaces the calls inside a module that are not pure functions of one client's tensors."""

    def __init__(self, batch: Batch | None) -> None:
        super().__init__()
        self.batch = batch
        self.draws = 0
        self.moved: dict[int, Tensor] = {}  # a buffer's id -> its new value

    def key(self, name: str) -> Tensor:
        if self.batch is None:
            raise EngineError(
                f"the model calls {name} in evaluation mode",
                hint="draw random numbers only while self.training is true",
            )
        self.draws += 1
        return seeds.fold(self.batch.key, self.draws)

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        replacement = _REPLACED.get(func)
        if replacement is not None:
            return replacement(self, func, *args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in _RECURRENT and (_batched.get() or (self.batch is not None and _drops(args))):
            return _recurrent(self, name, *args)
        if name in _UNSUPPORTED:
            raise EngineError(
                f"the model calls torch.{name}, which draws from the global random state",
                hint="use nn.Dropout, torch.rand_like, torch.randn_like or torch.bernoulli",
            )
        return func(*args, **kwargs)


def _dropout(
    pure: _Pure, func: Any, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    if not training or p == 0.0:
        return input
    if p == 1.0:
        return torch.zeros_like(input)
    keep = (seeds.uniform(pure.key("dropout"), input.shape, input.dtype) >= p).to(input.dtype)
    return input * keep * (1.0 / (1.0 - p))


def _channel_dropout(
    pure: _Pure, func: Any, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    if not training or p == 0.0:
        return input
    shape = tuple(input.shape[:2]) + (1,) * (input.ndim - 2)
    keep = (seeds.uniform(pure.key("dropout"), shape, input.dtype) >= p).to(input.dtype)
    return input * keep * (1.0 / (1.0 - p))


def _alpha_dropout(
    pure: _Pure, func: Any, input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    """Klambauer 2017, section 3: dropped units take the negative saturation value, then mean and variance are kept."""
    if not training or p == 0.0:
        return input
    low = -1.7580993408473766
    scale = 1.0 / math.sqrt((1 - p) * (1 + p * low * low))
    keep = (seeds.uniform(pure.key("alpha_dropout"), input.shape, input.dtype) >= p).to(input.dtype)
    return (input * keep + low * (1 - keep)) * scale - scale * low * p


def _rand_like(pure: _Pure, func: Any, input: Tensor, **_: Any) -> Tensor:
    return seeds.uniform(pure.key("rand_like"), input.shape, input.dtype)


def _randn_like(pure: _Pure, func: Any, input: Tensor, **_: Any) -> Tensor:
    return seeds.normal(pure.key("randn_like"), input.shape, input.dtype)


def _bernoulli(pure: _Pure, func: Any, input: Tensor, **_: Any) -> Tensor:
    return (seeds.uniform(pure.key("bernoulli"), input.shape, input.dtype) < input).to(input.dtype)


def _batch_norm(
    pure: _Pure,
    func: Any,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Batch normalisation (Ioffe and Szegedy 2015) whose statistics are those of the real rows only."""
    if not training or pure.batch is None:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    mask = pure.batch.mask
    if input.shape[0] != mask.shape[0]:
        raise EngineError(
            f"BatchNorm sees {input.shape[0]} rows for a batch of {mask.shape[0]}",
            hint="keep the batch on the first axis before BatchNorm, or use GroupNorm or LayerNorm",
        )
    shape = (1, -1) + (1,) * (input.ndim - 2)
    axes = [0, *range(2, input.ndim)]
    rows = mask.reshape(-1, *(1,) * (input.ndim - 1)).to(input.dtype)
    count = (mask.sum() * math.prod(input.shape[2:])).clamp(min=1)
    mean = (input * rows).sum(axes) / count
    centred = input - mean.reshape(shape)
    variance = (centred.square() * rows).sum(axes) / count
    if running_mean is not None and running_var is not None:
        old = pure.moved.get(id(running_mean), running_mean)  # moved already where a layer is called twice
        pure.moved[id(running_mean)] = old * (1 - momentum) + mean * momentum
        old = pure.moved.get(id(running_var), running_var)
        unbiased = variance * (count / (count - 1).clamp(min=1))
        pure.moved[id(running_var)] = torch.where(count > 1, old * (1 - momentum) + unbiased * momentum, old)
    output = centred * torch.rsqrt(variance + eps).reshape(shape)
    if weight is not None:
        output = output * weight.reshape(shape)
    return output if bias is None else output + bias.reshape(shape)


def _attention(
    pure: _Pure, func: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """Scaled dot-product attention; with dropout it is spelt out, so that the dropout is the stream's."""
    names = ("attn_mask", "dropout_p", "is_causal")
    kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
    p = float(kwargs.get("dropout_p") or 0.0)
    if p == 0.0 or pure.batch is None:
        return F.scaled_dot_product_attention(query, key, value, **{**kwargs, "dropout_p": 0.0})
    if kwargs.get("enable_gqa"):
        raise EngineError(
            "attention dropout with grouped queries cannot be made pure", hint="set dropout to 0"
        )
    scale = kwargs.get("scale") or query.shape[-1] ** -0.5
    scores = query @ key.transpose(-2, -1) * scale
    mask = kwargs.get("attn_mask")
    if kwargs.get("is_causal"):
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return _dropout(pure, func, torch.softmax(scores, -1), p) @ value


def _multi_head(
    pure: _Pure,
    func: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    **kwargs: Any,
) -> Any:
    """Multi-head attention (Vaswani et al. 2017). Without dropout torch's own; with it, spelt out for the stream."""
    if not training or dropout_p == 0.0:
        return func(
            query, key, value, embed_dim_to_check, num_heads, in_proj_weight, in_proj_bias, bias_k, bias_v,
            add_zero_attn, 0.0, out_proj_weight, out_proj_bias, training, **kwargs,
        )  # fmt: skip
    if in_proj_weight is None or bias_k is not None or add_zero_attn or query.ndim != 3:
        raise EngineError("this attention layer's dropout cannot be made pure", hint="set its dropout to 0")
    weights = in_proj_weight.chunk(3)
    biases = in_proj_bias.chunk(3) if in_proj_bias is not None else (None, None, None)

    def heads(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # [t, b, e] -> [b, h, t, e/h]
        projected = F.linear(x, weight, bias)
        return projected.reshape(*x.shape[:2], num_heads, -1).permute(1, 2, 0, 3)

    q, k, v = (heads(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
    mask = kwargs.get("attn_mask")
    padding = kwargs.get("key_padding_mask")
    bias = torch.zeros((), dtype=q.dtype, device=q.device)
    if mask is not None and mask.ndim == 3:  # one mask a head
        mask = mask.reshape(-1, num_heads, *mask.shape[1:])
    if padding is not None:
        padding = padding[:, None, None, :]
    for part in (mask, padding):
        if part is not None:
            bias = bias + (
                torch.zeros_like(part, dtype=q.dtype).masked_fill(part, -math.inf)
                if part.dtype == torch.bool
                else part
            )
    weight = torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + bias, -1)
    mixed = (_dropout(pure, func, weight, dropout_p) @ v).permute(2, 0, 1, 3).flatten(2)
    output = F.linear(mixed, out_proj_weight, out_proj_bias)
    if not kwargs.get("need_weights", True):
        return output, None
    return output, weight.mean(1) if kwargs.get("average_attn_weights", True) else weight


def _conv2d(pure: _Pure, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """On CPU images go with channels last: max pooling is then ten times faster, and everything after follows."""
    if pure.batch is not None and not _batched.get() and input.ndim == 4 and input.device.type == "cpu":
        _, channels, height, width = input.shape
        input = input.contiguous(memory_format=torch.channels_last)
        if channels == 1:  # both layouts at once: say which is meant
            input = input.as_strided(input.shape, (height * width, 1, width, 1))
    return func(input, *args, **kwargs)  # type: ignore[no-any-return]


_Replacement = Callable[..., Any]
_REPLACED: dict[Any, _Replacement] = {
    F.dropout: _dropout,
    torch.dropout: _dropout,
    F.dropout1d: _channel_dropout,
    F.dropout2d: _channel_dropout,
    F.dropout3d: _channel_dropout,
    torch.feature_dropout: _channel_dropout,
    F.alpha_dropout: _alpha_dropout,
    torch.rand_like: _rand_like,
    torch.randn_like: _randn_like,
    torch.bernoulli: _bernoulli,
    F.batch_norm: _batch_norm,
    F.scaled_dot_product_attention: _attention,
    torch.conv2d: _conv2d,
    F.multi_head_attention_forward: _multi_head,
}
_UNSUPPORTED = {"rand", "randn", "randint", "randint_like", "randperm", "multinomial", "normal", "rrelu"}
_UNSUPPORTED |= {"bernoulli_", "normal_", "uniform_", "exponential_", "random_", "gumbel_softmax"}
_UNSUPPORTED |= {"feature_alpha_dropout", "fractional_max_pool2d", "fractional_max_pool3d"}


# --- recurrent layers in plain operations ---------------------------------------------------------------------------

_RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}


def _drops(args: Any) -> bool:
    """Whether a recurrent call drops units between its layers (padded form: dropout and train are at 5 and 6)."""
    return len(args) == 9 and args[4] > 1 and args[5] > 0 and bool(args[6])


def _cell(
    kind: str, gates: Tensor, hidden: Tensor, state: Tensor, w: Tensor, b: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One time step from the input's share of the gates; returns (hidden, cell state)."""
    recurrent = hidden @ w.transpose(0, 1) if b is None else hidden @ w.transpose(0, 1) + b
    if kind == "lstm":
        i, f, g, o = (gates + recurrent).chunk(4, -1)
        state = torch.sigmoid(f) * state + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(state), state
    if kind == "gru":
        (ir, iz, inew), (hr, hz, hnew) = gates.chunk(3, -1), recurrent.chunk(3, -1)
        update = torch.sigmoid(iz + hz)
        new = torch.tanh(inew + torch.sigmoid(ir + hr) * hnew)
        return (1 - update) * new + update * hidden, state
    activation = torch.tanh if kind == "rnn_tanh" else torch.relu
    return activation(gates + recurrent), state


def _recurrent(pure: _Pure, kind: str, *args: Any) -> tuple[Tensor, ...]:
    """The padded form of torch's lstm, gru and rnn kernels: (input, hx, weights, has_biases, layers, ...)."""
    if isinstance(args[3], (list, tuple)):
        raise EngineError(
            "packed sequences cannot be batched over clients",
            hint='pad the sequences, or use engine="processes"',
        )
    input, hx, weights, has_biases, layers, dropout, train, bidirectional, batch_first = args[:9]
    hidden, cells = (hx[0], hx[1]) if kind == "lstm" else (hx, hx)
    steps = input.transpose(0, 1) if batch_first else input
    directions = 2 if bidirectional else 1
    width = len(weights) // (layers * directions)
    if width not in (2, 4):
        raise EngineError("LSTM projections cannot be batched over clients", hint='use engine="processes"')
    last_hidden: list[Tensor] = []
    last_cells: list[Tensor] = []
    for layer in range(layers):
        outputs: list[Tensor] = []
        for direction in range(directions):
            at = layer * directions + direction
            own = list(weights[at * width : (at + 1) * width])
            b_input, b_hidden = (own[2], own[3]) if has_biases else (None, None)
            gates = steps @ own[0].transpose(0, 1)
            gates = gates if b_input is None else gates + b_input
            h, c = hidden[at], cells[at]
            line: list[Tensor] = []
            for t in range(gates.shape[0]) if direction == 0 else reversed(range(gates.shape[0])):
                h, c = _cell(kind, gates[t], h, c, own[1], b_hidden)
                line.append(h)
            outputs.append(torch.stack(line if direction == 0 else line[::-1]))
            last_hidden.append(h)
            last_cells.append(c)
        steps = torch.cat(outputs, -1)
        if dropout > 0 and train and layer + 1 < layers:
            steps = _dropout(pure, None, steps.transpose(0, 1), dropout).transpose(
                0, 1
            )  # streams go by sample
    output = steps.transpose(0, 1) if batch_first else steps
    if kind == "lstm":
        return output, torch.stack(last_hidden), torch.stack(last_cells)
    return output, torch.stack(last_hidden)
