"""Optimisers as pure functions, the same objects for clients and servers.

`init(params)` makes the state, `update(gradient, state, params, lr)` returns new (params, state). A server passes the
pseudo-gradient, minus the mean of the clients' updates (Reddi et al., ICLR 2021), where a client passes a gradient.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from atoll import spec
from atoll.rooms import blank
from atoll.tensors import Record, Tensors

__all__ = ["SGD", "Adagrad", "Adam", "Optimizer", "Yogi", "clip_by_norm", "optimizer", "schedule_factor"]

Rate = float | Tensor


class Optimizer(ABC):
    """Two functions: `init` and `update`."""

    @abstractmethod
    def init(self, params: Tensors) -> Record:
        """The state before the first step."""

    @abstractmethod
    def update(self, gradient: Tensors, state: Record, params: Tensors, lr: Rate) -> tuple[Tensors, Record]:
        """One step against `gradient`: new (params, state)."""

    def at_once(
        self, gradient: Tensors, state: Record, params: Tensors, lr: float, *, own: bool = False
    ) -> tuple[Tensors, Record]:
        """`update` in as few passes over memory as torch offers, equal up to rounding, for servers with much to move.

        With `own`, params and state are the caller's, to be written over.
        """
        return self.update(gradient, state, params, lr)


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent: v <- momentum v + g + weight_decay w;  w <- w - lr v  (Nesterov: g + momentum v)."""

    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def init(self, params: Tensors) -> Record:
        return Record(velocity=params.zeros()) if self.momentum else Record()

    def update(self, gradient: Tensors, state: Record, params: Tensors, lr: Rate) -> tuple[Tensors, Record]:
        if self.weight_decay:
            gradient = gradient + params * self.weight_decay
        if self.momentum:
            velocity = state.velocity * self.momentum + gradient
            state = state.replace(velocity=velocity)
            gradient = gradient + velocity * self.momentum if self.nesterov else velocity
        return params - gradient * lr, state

    def at_once(
        self, gradient: Tensors, state: Record, params: Tensors, lr: float, *, own: bool = False
    ) -> tuple[Tensors, Record]:
        if not own:
            return self.update(gradient, state, params, lr)
        for name, value in params.items():  # the operations of `update`, in place: the same bits
            step = gradient[name]
            if self.weight_decay:
                step = step + value * self.weight_decay
            if self.momentum:
                velocity = state.velocity[name].mul_(self.momentum).add_(step)
                step = step + velocity * self.momentum if self.nesterov else velocity
            value.sub_(step * lr)
        return params, state


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam (Kingma and Ba 2015); `decoupled` weight decay makes it AdamW (Loshchilov and Hutter 2019).

    For the server variant of Reddi et al. (2021, Algorithm 2) use `eps` = tau, `start` = tau**2 and
    `bias_correction=False`.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = False
    bias_correction: bool = True
    start: float = 0.0

    def init(self, params: Tensors) -> Record:
        first = params.zeros()
        second = params.map(lambda p: torch.full_like(p, self.start))
        device = next(iter(params.values())).device
        return Record(first=first, second=second, steps=torch.zeros((), device=device))

    def second_moment(self, second: Tensors, gradient: Tensors) -> Tensors:
        square = gradient.map(torch.square)
        return second * self.beta2 + square * (1 - self.beta2)

    def update(self, gradient: Tensors, state: Record, params: Tensors, lr: Rate) -> tuple[Tensors, Record]:
        if self.weight_decay and not self.decoupled:
            gradient = gradient + params * self.weight_decay
        steps = state.steps + 1
        first = state.first * self.beta1 + gradient * (1 - self.beta1)
        second = self.second_moment(state.second, gradient)
        root = second.map(torch.sqrt)
        if self.weight_decay and self.decoupled:
            params = params - params * (self.weight_decay * lr)
        if self.bias_correction:
            root = root / torch.sqrt(1 - self.beta2**steps)
            lr = lr / (1 - self.beta1**steps)
        step = Tensors({name: first[name] / (root[name] + self.eps) for name in params})
        return params - step * lr, Record(first=first, second=second, steps=steps)

    def at_once(
        self, gradient: Tensors, state: Record, params: Tensors, lr: float, *, own: bool = False
    ) -> tuple[Tensors, Record]:
        kinds = {(value.dtype, value.device) for part in (params, gradient) for value in part.values()}
        fits = len(kinds) == 1 and all(d.is_floating_point and v.type in ("cpu", "cuda") for d, v in kinds)
        if type(self) is not Adam or not self.bias_correction or not fits:
            return self.update(gradient, state, params, lr)
        first, second, steps = state.first, state.second, state.steps + 1
        if not own:
            params, first, second = (
                part.map(lambda old: blank(old).copy_(old)) for part in (params, first, second)
            )
        kernel = torch._fused_adamw_ if self.decoupled else torch._fused_adam_
        kernel(
            list(params.values()),
            [gradient[name] for name in params],
            [first[name] for name in params],
            [second[name] for name in params],
            [],
            [steps] * len(params),
            lr=lr, beta1=self.beta1, beta2=self.beta2, weight_decay=self.weight_decay, eps=self.eps,
            amsgrad=False, maximize=False,
        )  # fmt: skip
        return params, Record(first=first, second=second, steps=steps)


@dataclass(frozen=True)
class Yogi(Adam):
    """Yogi (Zaheer et al. 2018): the second moment moves by a bounded amount, v <- v - (1-beta2) g^2 sign(v - g^2)."""

    def second_moment(self, second: Tensors, gradient: Tensors) -> Tensors:
        square = gradient.map(torch.square)
        return second - square * (second - square).map(torch.sign) * (1 - self.beta2)


@dataclass(frozen=True)
class Adagrad(Adam):
    """Adagrad (Duchi et al. 2011) with an optional first moment: v <- v + g^2."""

    def second_moment(self, second: Tensors, gradient: Tensors) -> Tensors:
        return second + gradient.map(torch.square)


_MOMENTUM = spec.number("momentum", optional=True, at_least=0, below=1)
_DECAY = spec.number("weight_decay", optional=True, at_least=0, below=math.inf)
_NAMED: dict[str, tuple[spec.Parameter, ...]] = {
    "sgd": (_MOMENTUM, _DECAY),
    "nesterov": (_MOMENTUM, _DECAY),
    "adam": (_DECAY,),
    "adamw": (_DECAY,),
    "yogi": (),
    "adagrad": (),
}


def optimizer(text: str) -> Optimizer:
    """The optimiser that a text names: "sgd", "sgd:0.9", "nesterov:0.9,1e-4", "adamw:0.01" ...

    Raises ConfigError for anything else.
    """
    call = spec.parse(text, "optimizer")
    given = {key: value for key, value in call.read(_NAMED).items() if value is not None}
    match call.name:
        case "nesterov":
            return SGD(**{"momentum": 0.9, **given}, nesterov=True)
        case "adam":
            return Adam(**given)
        case "adamw":
            return Adam(**{"weight_decay": 0.01, **given}, decoupled=True)
        case "yogi":
            return Yogi()
        case "adagrad":
            return Adagrad()
    return SGD(**given)


def clip_by_norm(gradient: Tensors, limit: float) -> Tensors:
    """Scale all tensors together so that their joint Euclidean norm is at most `limit`."""
    return gradient * (limit / gradient.norm().clamp(min=limit))


_SCHEDULES: dict[str, tuple[spec.Parameter, ...]] = {
    "constant": (),
    "exponential": (spec.number("factor", above=0),),
    "step": (spec.number("rounds", at_least=1, below=math.inf), spec.number("factor")),
    "cosine": (spec.number("rounds", at_least=1),),
    "warmup": (spec.number("rounds", at_least=1),),
}


def schedule_factor(schedule: str | spec.Call, round: int) -> float:
    """The factor on the learning rate in a round (counted from 0).

    "constant" is 1; "exponential:g" is g**round; "step:n,g" multiplies by g every n rounds; "cosine:n" falls from 1
    to 0 over n rounds; "warmup:n" rises linearly to 1 over n rounds. Several with + in between are multiplied, as in
    "warmup:10 + cosine:200". Raises ConfigError for anything else.
    """
    if isinstance(schedule, str):
        parts = spec.chain(schedule.removesuffix(":"), "schedule", "+")
        return math.prod(schedule_factor(part, round) for part in parts)
    call = schedule
    given = call.read(_SCHEDULES)
    match call.name:
        case "exponential":
            return float(given["factor"] ** round)
        case "step":
            return float(given["factor"] ** (round // int(given["rounds"])))
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(round / given["rounds"], 1.0)))
        case "warmup":
            return float(min((round + 1) / given["rounds"], 1.0))
    return 1.0
