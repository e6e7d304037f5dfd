"""Draws of user code from streams that have an address: what methods, models and losses ask of random functions.

On the server everything runs once, in one process: there the global generators themselves are set to an address and
put back (`atoll.seeds.scoped`). A client's work runs in any engine, captured or batched over clients, and a global
generator has no place in it. So the calls are intercepted (`Drawn`), and take their numbers from the client's stream;
what cannot be intercepted moves a global state, and is refused (`untouched`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from atoll import seeds
from atoll.errors import EngineError

__all__ = ["STREAMS", "Drawn", "dropout", "states", "touched", "untouched"]

T = TypeVar("T")

_OWN = 0x6D657468
"""What a method draws without an address of its own lies apart from the model's streams, `fold(key, 1)` and so on."""

STREAMS = "torch.rand, randn, randint, randperm, normal, bernoulli and multinomial draw from the client's own stream"
"""What to do instead of a draw that has none."""


class Drawn(TorchFunctionMode):
    """Inside, torch's random functions draw from a stream, never from the global state.

    Args:
        key: the stream, an int64 scalar; None where nothing may be drawn.
        who: whose code runs, for errors.
    """

    def __init__(self, key: Tensor | None, who: str) -> None:
        super().__init__()
        self.stream, self.who = key, who
        self.draws = 0

    def key(self, name: str) -> Tensor:
        """The stream of the next draw."""
        if self.stream is None:
            raise EngineError(
                f"{self.who} calls {name}, and has no random stream here",
                hint="draw in begin, step or finish, where the client has one",
            )
        self.draws += 1
        return seeds.fold(seeds.fold(self.stream, _OWN), self.draws)

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        draw = _DROPOUTS.get(func) or _DRAWS.get(name)
        if draw is not None:
            self.plain(name, kwargs)
            return draw(self, *args, **kwargs)
        if name in _REFUSED:
            raise EngineError(
                f"{self.who} calls torch.{name}, which draws from the global random state", hint=STREAMS
            )
        return func(*args, **kwargs)

    def plain(self, name: str, kwargs: Mapping[str, Any]) -> None:
        """Refuse what a stream cannot give.  Raises EngineError."""
        if kwargs.get("generator") is not None:
            raise EngineError(
                f"{self.who} gives torch.{name} a generator, whose numbers depend on who else has drawn from it",
                hint="leave it out: in clients' work the numbers come from the client's own stream",
            )
        if kwargs.get("out") is not None or getattr(kwargs.get("dtype"), "is_complex", False):
            raise EngineError(
                f"{self.who} calls torch.{name} with out= or a complex dtype, for which there is no stream",
                hint="draw real numbers, and use what is returned",
            )


# --- dropout --------------------------------------------------------------------------------------------------------


def dropout(
    drawn: Drawn, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """Dropout (Srivastava et al. 2014) from a stream."""
    return _dropped(drawn, input, p, training, input.shape)


def _channel_dropout(
    drawn: Drawn, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    return _dropped(drawn, input, p, training, tuple(input.shape[:2]) + (1,) * (input.ndim - 2))


def _dropped(drawn: Drawn, input: Tensor, p: float, training: bool, shape: Sequence[int]) -> Tensor:
    if not training or p == 0.0:
        return input
    if p == 1.0:
        return torch.zeros_like(input)
    keep = (seeds.uniform(drawn.key("dropout"), shape, input.dtype) >= p).to(input.dtype)
    return input * keep * (1.0 / (1.0 - p))


def _alpha_dropout(
    drawn: Drawn, input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    """Klambauer 2017, section 3: dropped units take the negative saturation value, then mean and variance are kept."""
    if not training or p == 0.0:
        return input
    low = -1.7580993408473766
    scale = 1.0 / math.sqrt((1 - p) * (1 + p * low * low))
    keep = (seeds.uniform(drawn.key("alpha_dropout"), input.shape, input.dtype) >= p).to(input.dtype)
    return (input * keep + low * (1 - keep)) * scale - scale * low * p


# --- numbers --------------------------------------------------------------------------------------------------------


def _shape(size: Sequence[Any], kwargs: dict[str, Any]) -> tuple[int, ...]:
    """The size that a factory is asked for: numbers, or one sequence of them."""
    given = kwargs.pop("size", None)
    if given is None:
        given = size[0] if len(size) == 1 and isinstance(size[0], Sequence) else size
    return tuple(int(length) for length in given)


def _made(values: Tensor, kwargs: Mapping[str, Any], like: Tensor | None = None) -> Tensor:
    """Numbers of the type and on the device that a factory was asked for."""
    dtype = kwargs.get("dtype") or (torch.get_default_dtype() if like is None else like.dtype)
    device = kwargs.get("device") or (torch.get_default_device() if like is None else like.device)
    values = values.to(device=device, dtype=dtype)
    return values.requires_grad_() if kwargs.get("requires_grad") else values


def _float(kwargs: Mapping[str, Any], like: Tensor | None = None) -> torch.dtype:
    return kwargs.get("dtype") or (torch.get_default_dtype() if like is None else like.dtype)


def _fine(key: Tensor, shape: Sequence[int]) -> Tensor:
    """Uniform numbers in [0, 1) with 48 random bits, float64."""
    coarse, rest = (seeds.uniform(seeds.fold(key, part), shape, torch.float64) for part in (1, 2))
    return coarse + rest * 2.0**-24


def _rand(drawn: Drawn, *size: Any, **kwargs: Any) -> Tensor:
    shape = _shape(size, kwargs)
    return _made(seeds.uniform(drawn.key("rand"), shape, _float(kwargs)), kwargs)


def _randn(drawn: Drawn, *size: Any, **kwargs: Any) -> Tensor:
    shape = _shape(size, kwargs)
    return _made(seeds.normal(drawn.key("randn"), shape, _float(kwargs)), kwargs)


def _rand_like(drawn: Drawn, input: Tensor, **kwargs: Any) -> Tensor:
    return _made(seeds.uniform(drawn.key("rand_like"), input.shape, _float(kwargs, input)), kwargs, input)


def _randn_like(drawn: Drawn, input: Tensor, **kwargs: Any) -> Tensor:
    return _made(seeds.normal(drawn.key("randn_like"), input.shape, _float(kwargs, input)), kwargs, input)


def _whole(drawn: Drawn, name: str, low: int, high: int, shape: Sequence[int]) -> Tensor:
    return (_fine(drawn.key(name), shape) * (high - low)).floor().to(torch.int64) + low


def _randint(drawn: Drawn, *args: Any, **kwargs: Any) -> Tensor:
    given = [*args]
    shape = _shape([given.pop()], kwargs) if isinstance(given[-1], Sequence) else _shape([], kwargs)
    low, high = _bounds(given, kwargs)
    return _made(_whole(drawn, "randint", low, high, shape), {"dtype": torch.int64, **kwargs})


def _randint_like(drawn: Drawn, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    low, high = _bounds(args, kwargs)
    return _made(_whole(drawn, "randint_like", low, high, input.shape), kwargs, input)


def _bounds(given: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[int, int]:
    low, high = (given[0], given[1]) if len(given) == 2 else (0, given[0]) if given else (0, None)
    return int(kwargs.get("low", low)), int(kwargs.get("high", high))


def _randperm(drawn: Drawn, n: int, **kwargs: Any) -> Tensor:
    order = _fine(drawn.key("randperm"), (n,)).argsort()
    return _made(order, {"dtype": torch.int64, **kwargs})


def _bernoulli(drawn: Drawn, input: Tensor, p: float | None = None, **_: Any) -> Tensor:
    drawn_ = seeds.uniform(drawn.key("bernoulli"), input.shape, input.dtype)
    return (drawn_ < (input if p is None else p)).to(input.dtype)


def _normal(drawn: Drawn, mean: Any, std: Any = 1.0, size: Any = None, **kwargs: Any) -> Tensor:
    parts = [part for part in (mean, std) if isinstance(part, Tensor)]
    if not parts:
        return _made(mean + std * seeds.normal(drawn.key("normal"), size, _float(kwargs)), kwargs)
    shape = torch.broadcast_shapes(*(part.shape for part in parts))  # type: ignore[no-untyped-call]
    return mean + std * seeds.normal(drawn.key("normal"), shape, parts[0].dtype)  # type: ignore[no-any-return]


def _multinomial(
    drawn: Drawn, input: Tensor, num_samples: int, replacement: bool = False, **_: Any
) -> Tensor:
    """By exponential races: the smallest of Exp(1) / p is the one drawn, the k smallest are k without replacement."""
    shape = (*input.shape[:-1], num_samples, input.shape[-1]) if replacement else input.shape
    race = -torch.log1p(-_fine(drawn.key("multinomial"), shape))
    if replacement:
        return (input.unsqueeze(-2) / race).argmax(-1)
    return (input / race).topk(num_samples, -1).indices


# --- numbers into a tensor that is there ----------------------------------------------------------------------------


def _bernoulli_(drawn: Drawn, input: Tensor, p: Any = 0.5, **_: Any) -> Tensor:
    values = seeds.uniform(drawn.key("bernoulli_"), input.shape)
    return input.copy_((values < p).to(input.dtype))


def _normal_(drawn: Drawn, tensor: Tensor, mean: float = 0.0, std: float = 1.0, **_: Any) -> Tensor:
    return tensor.copy_(mean + std * seeds.normal(drawn.key("normal_"), tensor.shape))


def _uniform_(drawn: Drawn, tensor: Tensor, *bounds: float, **kwargs: Any) -> Tensor:
    low, high = (*bounds, *(0.0, 1.0)[len(bounds) :])
    low, high = kwargs.get("from", kwargs.get("a", low)), kwargs.get("to", kwargs.get("b", high))
    return tensor.copy_(low + (high - low) * seeds.uniform(drawn.key("uniform_"), tensor.shape))


def _exponential_(drawn: Drawn, input: Tensor, lambd: float = 1.0, **_: Any) -> Tensor:
    return input.copy_(-torch.log1p(-_fine(drawn.key("exponential_"), input.shape)) / lambd)


_DROPOUTS: dict[Any, Callable[..., Tensor]] = {
    F.dropout: dropout,
    torch.dropout: dropout,
    F.dropout1d: _channel_dropout,
    F.dropout2d: _channel_dropout,
    F.dropout3d: _channel_dropout,
    torch.feature_dropout: _channel_dropout,
    F.alpha_dropout: _alpha_dropout,
}
_DRAWS: dict[str, Callable[..., Tensor]] = {
    "rand": _rand,
    "randn": _randn,
    "rand_like": _rand_like,
    "randn_like": _randn_like,
    "randint": _randint,
    "randint_like": _randint_like,
    "randperm": _randperm,
    "bernoulli": _bernoulli,
    "normal": _normal,
    "multinomial": _multinomial,
    "bernoulli_": _bernoulli_,
    "normal_": _normal_,
    "uniform_": _uniform_,
    "exponential_": _exponential_,
}
_REFUSED = {"random_", "cauchy_", "log_normal_", "geometric_", "poisson", "binomial", "_standard_gamma"}
_REFUSED |= {"rrelu", "rrelu_", "gumbel_softmax", "feature_alpha_dropout"}
_REFUSED |= {"fractional_max_pool2d", "fractional_max_pool3d", "_sample_dirichlet"}


# --- the global states ----------------------------------------------------------------------------------------------


def states() -> Mapping[str, Any]:
    """The global random states, by whose they are."""
    return {
        "torch's": torch.get_rng_state(),
        "NumPy's": np.random.get_state(),  # noqa: NPY002
        "Python's": random.getstate(),
    }


def touched(before: Mapping[str, Any]) -> str | None:
    """Whose global state has changed since, or None."""
    now = states()
    if not torch.equal(before["torch's"], now["torch's"]):
        return "torch's"
    one, two = before["NumPy's"], now["NumPy's"]
    if one[2:] != two[2:] or one[1].tobytes() != two[1].tobytes():
        return "NumPy's"
    return "Python's" if before["Python's"] != now["Python's"] else None


def untouched(
    work: Callable[[], T], where: Callable[[], str], *, again: bool = True, whole: bool = True
) -> T:
    """What `work` gives, where it draws from no global random state.

    Args:
        where: whose work it is, for errors.
        again: whether it may be done twice. Something else in this process may have drawn meanwhile, in a thread, and
            only what draws a second time is refused.
        whole: whether all states are looked at; else torch's, which takes no time.

    Raises EngineError, and puts the states back.
    """
    if not whole:
        held = torch.get_rng_state()
        found = work()
        if torch.equal(held, torch.get_rng_state()):
            return found
        torch.set_rng_state(held)
        return untouched(work, where, again=False)
    found, whose = _marked(work) if seeds.free() else _compared(work)
    if whose is None:
        return found
    if again:
        return untouched(work, where, again=False)
    raise EngineError(
        f"{where()}: clients' work draws from {whose} global random state",
        hint=STREAMS
        if whose == "torch's"
        else "use torch's functions, whose numbers are then the client's own",
    )


def _compared(work: Callable[[], T]) -> tuple[T, str | None]:
    """What `work` gives, and whose global state it has moved; the states are put back then."""
    before = states()
    found = work()
    whose = touched(before)
    if whose is not None:
        torch.set_rng_state(before["torch's"])
        np.random.set_state(before["NumPy's"])  # noqa: NPY002
        random.setstate(before["Python's"])
    return found, whose


_MARK = 0x61746F6C
_NEXT = np.random.RandomState(_MARK).random_sample(), random.Random(_MARK).random()


def _marked(work: Callable[[], T]) -> tuple[T, str | None]:
    """The same where the states may be moved: generators that start at a known place, and give its next numbers.

    To look at whole states of NumPy's and Python's takes ten times as long, in every round.
    """
    with seeds.claimed():
        held = torch.get_rng_state()
        np.random.seed(_MARK)  # noqa: NPY002
        random.seed(_MARK)
        found = work()
        if not torch.equal(held, torch.get_rng_state()):
            return found, "torch's"
        now = np.random.random_sample(), random.random()  # noqa: NPY002
    return found, "NumPy's" if now[0] != _NEXT[0] else "Python's" if now[1] != _NEXT[1] else None
