"""Making any `nn.Module` a pure function of one client's tensors, by interception of the calls inside its forward.

Three kinds of call are not pure as they stand: random ones (dropout and the like), which take their numbers from the
client's stream (`atoll.draws`); BatchNorm, which must not see the padded rows of a batch and whose new statistics
become values; and recurrent layers, whose kernels cannot be batched over weights, nor on a GPU differentiated in a
function transform, and get a plain form where they have to be.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from atoll import seeds
from atoll.attention import attention, multi_head
from atoll.draws import Drawn, dropout
from atoll.errors import EngineError

if TYPE_CHECKING:
    from atoll.task import Batch

__all__ = ["Pure", "Used", "as_batched", "plainly"]

_batched: ContextVar[bool] = ContextVar("atoll_batched", default=False)


@contextmanager
def as_batched() -> Iterator[None]:
    """Inside, recurrent layers take the plain form that `vmap` can batch (engines enter this, users need not)."""
    token = _batched.set(True)
    try:
        yield
    finally:
        _batched.reset(token)


@contextmanager
def plainly(layers: Sequence[nn.RNNBase]) -> Iterator[None]:
    """Inside, layers do without what works on plain tensors only, since tensors may be those of a function transform.

    On a GPU these recurrent layers would pack what they are given into one storage: tensors inside a function transform
    have none, and those of a state are not theirs to move. Transformers have a fast path in evaluation mode, and
    attention a fused kernel, for which there are no batching rules.
    """
    fast, fused = torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()  # type: ignore[no-untyped-call]
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.cuda.enable_flash_sdp(fused and not _batched.get())
    for layer in layers:
        layer.__dict__["flatten_parameters"] = lambda: None
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch.backends.cuda.enable_flash_sdp(fused)
        for layer in layers:
            del layer.__dict__["flatten_parameters"]


class Used(TorchFunctionMode):
    """Notes when a module uses the tensors of a state: `first` and `last`, name -> number of the call of torch."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._names = {id(tensor): name for name, tensor in state.items()}
        self.calls = 0
        self.first: dict[str, int] = {}
        self.last: dict[str, int] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        self.calls += 1
        for value in pytree.tree_leaves((args, kwargs)):
            name = self._names.get(id(value))
            if name is not None:
                self.first.setdefault(name, self.calls)
                self.last[name] = self.calls
        return func(*args, **(kwargs or {}))


class Pure(Drawn):
    """Replaces the calls inside a module that are not pure functions of one client's tensors.

    Args:
        batch: what the module is trained on; None in evaluation mode.
        draws: random numbers that it has asked for already.
    """

    def __init__(self, batch: Batch | None, draws: int = 0) -> None:
        super().__init__(None if batch is None else batch.key, "the model")
        self.batch, self.draws = batch, draws
        self.moved: dict[int, Tensor] = {}  # a buffer's id -> its new value

    def key(self, name: str) -> Tensor:
        if self.stream is None:
            raise EngineError(
                f"the model calls {name} in evaluation mode",
                hint="draw random numbers only while self.training is true",
            )
        self.draws += 1
        return seeds.fold(self.stream, self.draws)

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        replacement = _REPLACED.get(func)
        if replacement is not None:
            return replacement(self, func, *args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in _RECURRENT:
            if _batched.get() or (self.batch is not None and _drops(args)) or _without_storage(args):
                return _recurrent(self, name, *args)
            if args[0].is_cuda:
                with warnings.catch_warnings():  # torch's advice is to pack the weights
                    warnings.filterwarnings("ignore", "RNN module weights are not part")
                    return func(*args, **kwargs)
        if name == "_pack_padded_sequence" and self.batch is not None:
            return _pack(*args)
        return super().__torch_function__(func, types, args, kwargs)


def _batch_norm(
    pure: Pure,
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


def _attention(pure: Pure, func: Any, *args: Any, **kwargs: Any) -> Tensor:
    return attention(pure, func, *args, batched=_batched.get(), **kwargs)


def _conv2d(
    pure: Pure,
    func: Any,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """On CPU images go with channels last: max pooling is then ten times faster, and everything after follows."""
    if pure.batch is not None and not _batched.get() and input.ndim == 4 and input.device.type == "cpu":
        _, channels, height, width = input.shape
        if _narrow(width, weight, stride, padding, dilation):
            input = input.contiguous()
            input = input.as_strided(input.shape, (channels * height * width, height * width, width, 1))
        else:
            input = input.contiguous(memory_format=torch.channels_last)
            if channels == 1:  # both layouts at once: say which is meant
                input = input.as_strided(input.shape, (height * width, 1, width, 1))
    return func(input, weight, bias, stride, padding, dilation, groups)  # type: ignore[no-any-return]


def _narrow(width: int, weight: Tensor, stride: Any, padding: Any, dilation: Any) -> bool:
    """Whether images or what becomes of them are one column wide.

    With channels last oneDNN (3.12) reads beside some of these: garbage in the output, or a segmentation fault.
    """
    if width == 1 or isinstance(padding, str):
        return width == 1
    across, around, apart = (
        each if isinstance(each, int) else each[-1] for each in (stride, padding, dilation)
    )
    return bool(width + 2 * around - apart * (weight.shape[-1] - 1) - 1 < across)


_Replacement = Callable[..., Any]
_REPLACED: dict[Any, _Replacement] = {
    F.batch_norm: _batch_norm,
    F.scaled_dot_product_attention: _attention,
    torch.conv2d: _conv2d,
    F.multi_head_attention_forward: multi_head,
}


# --- recurrent layers in plain operations ---------------------------------------------------------------------------

_RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}


def _drops(args: Any) -> bool:
    """Whether a recurrent call drops units between its layers."""
    layers, p, train = args[5:8] if _packed(args) else args[4:7]
    return layers > 1 and p > 0 and bool(train)


def _packed(args: Any) -> bool:
    """Whether a recurrent call has the form (data, batch_sizes, hx, weights, ...), not (input, hx, weights, ...)."""
    return isinstance(args[3], (list, tuple))


def _without_storage(args: Any) -> bool:
    """Whether a kernel is asked to look into the storage of tensors inside a function transform.

    Those of a GPU do, and on the CPU those of packed sequences.
    """
    return (args[0].device.type != "cpu" or _packed(args)) and any(
        torch._C._functorch.is_functorch_wrapped_tensor(value)
        for value in pytree.tree_leaves(args)
        if isinstance(value, Tensor)
    )


def _pack(input: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    """Torch's packing of padded sequences, longest first, as (data, batch_sizes); its kernel has no pure gradient."""
    if _batched.get():
        raise EngineError(
            "packed sequences cannot be batched over clients",
            hint='pad the sequences, or use engine="processes" or "loop"',
        )
    rows = input if batch_first else input.transpose(0, 1)
    sizes = (torch.arange(int(lengths.max())).unsqueeze(1) < lengths.cpu()).sum(1)
    at = [k * rows.shape[1] + t for t, going in enumerate(sizes.tolist()) for k in range(going)]
    return rows.flatten(0, 1).index_select(0, torch.tensor(at, device=input.device)), sizes


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


def _recurrent(pure: Pure, kind: str, *args: Any) -> tuple[Tensor, ...]:
    """Torch's lstm, gru and rnn kernels in both forms: padded, (input, hx, weights, ...), and packed.

    Packed sequences lie step by step, the longest first: `batch_sizes` says how many still go on at each step. Those
    that are over keep their state.
    """
    sizes: list[int] | None = None
    if _packed(args):
        sizes = args[1].tolist()
        input, _, hx, weights, has_biases, layers, p, train, bidirectional = args[:9]
        batch_first = False
    else:
        input, hx, weights, has_biases, layers, p, train, bidirectional, batch_first = args[:9]
    hidden, cells = (hx[0], hx[1]) if kind == "lstm" else (hx, hx)
    steps = input.transpose(0, 1) if batch_first else input
    directions = 2 if bidirectional else 1
    width = len(weights) // (layers * directions)
    if width not in (2, 4):
        raise EngineError(
            "LSTM projections cannot be batched over clients, nor trained on a GPU",
            hint='use engine="processes"',
        )
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
            parts = gates.unbind() if sizes is None else gates.split(sizes)
            for part in parts if direction == 0 else parts[::-1]:
                if len(part) == len(h):
                    h, c = _cell(kind, part, h, c, own[1], b_hidden)
                    line.append(h)
                    continue
                few = len(part)
                new, cell = _cell(kind, part, h[:few], c[:few], own[1], b_hidden)
                h, c = torch.cat([new, h[few:]]), torch.cat([cell, c[few:]])
                line.append(new)
            join = torch.stack if sizes is None else torch.cat
            outputs.append(join(line if direction == 0 else line[::-1]))
            last_hidden.append(h)
            last_cells.append(c)
        steps = torch.cat(outputs, -1)
        if p > 0 and train and layer + 1 < layers and sizes is not None:
            steps = dropout(pure, steps, p)
        elif p > 0 and train and layer + 1 < layers:  # streams go by sample
            steps = dropout(pure, steps.transpose(0, 1), p).transpose(0, 1)
    output = steps.transpose(0, 1) if batch_first else steps
    if kind == "lstm":
        return output, torch.stack(last_hidden), torch.stack(last_cells)
    return output, torch.stack(last_hidden)
