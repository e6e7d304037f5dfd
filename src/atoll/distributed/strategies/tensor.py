"""Tensor parallel training: each worker has a part of every large layer."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor as Value
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from atoll import spec
from atoll.calling import arguments, main
from atoll.distributed.cutlayers import cut
from atoll.distributed.cutting import derive
from atoll.distributed.learner import Context, Learner
from atoll.distributed.reading import Share
from atoll.distributed.sharded import Sharded, local
from atoll.distributed.strategy import Strategy
from atoll.errors import ConfigError

__all__ = ["Tensor"]


@dataclass(frozen=True)
class Tensor(Strategy):
    """Layers in parts, one for each of `degree` workers; they read the same samples.   Shoeybi et al., 2019

    Of a pair of layers the first is cut by columns and the second by rows, so that a forward pass has one sum over
    workers for both, and a backward pass one:

        y = sum_i f(x A_i) B_i,   A = [A_1 ... A_W],  B = [B_1; ...; B_W]

    with f whatever treats features alike. Pairs of Linear and convolutions, attention by heads, wide last layers and
    large embeddings are found by themselves (`cutting.derive`); all else every worker has whole: normalisations,
    recurrent layers, layers whose features the workers do not divide. More workers than `degree` have further copies.

    Args:
        plan: layers' names with "column", "row", "gathered" (columns, of which everybody gets all), "vocabulary",
            "heads" or "dropout:DIMENSION"; None to have it found. It must compute what the model computes.
    """

    name: ClassVar[str] = "tensor"
    apart: ClassVar[bool] = True
    says: ClassVar[str] = (
        "layers in parts; N workers hold one model, and sum what they make of the same samples"
    )
    takes: ClassVar[tuple[spec.Parameter, ...]] = (spec.whole("degree", at_least=2),)

    degree: int = 2
    plan: Mapping[str, str] | None = field(default=None, hash=False)

    @property
    def text(self) -> str:
        return f"{self.name}:{self.degree}"

    def learner(self, context: Context) -> Learner:
        return _Learner(context, self)


class _Learner(Sharded):
    def __init__(self, context: Context, strategy: Tensor) -> None:
        assert context.within is not None
        self.links = context.within
        whole, module = (copy.deepcopy(context.task.module).to(context.device).train() for _ in range(2))
        plan = strategy.plan
        if plan is None:
            plan = derive(whole, lambda each: _called(context, each), strategy.degree)
        if not plan:
            raise ConfigError(
                f"strategy = {strategy.text!r}: no layer of the model can be cut in {strategy.degree}",
                hint="it cuts pairs of Linear or convolutions, attention by heads, and large last layers, where widths"
                f' can be divided by {strategy.degree}; strategy = "fsdp" cuts any model',
            )
        mesh = DeviceMesh.from_group(self.links.group or dist.group.WORLD, context.device.type)  # type: ignore[arg-type]
        for name, way in plan.items():
            cut(module, name, way, mesh, self.links)
        super().__init__(context, module)
        _compare(context, whole, module)

    def step(self, number: int, share: Share, lr: float) -> Value:
        return super().step(number, share, lr) / self.links.size

    def pull(self, loss: Value) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def exchange(self) -> None:
        """Sum over the copies of the model."""
        held = [local(p.grad) for p in self.params.values() if p.grad is not None]
        if self.context.beside.size == 1:
            return
        flat = self.context.beside.sum(torch.cat([each.reshape(-1) for each in held]))
        for each, part in zip(held, torch.split(flat, [each.numel() for each in held]), strict=True):
            each.copy_(part.view_as(each))


def _called(context: Context, module: nn.Module) -> Any:
    """What a module makes of two samples."""
    places, names = arguments(module, context.data.take(slice(0, 2)).inputs.to(context.device))
    return module(*places, **names)


def _compare(context: Context, whole: nn.Module, module: nn.Module) -> None:
    """Raise ConfigError where the parts together do not compute what the whole does."""
    buffers = [(b, b.clone()) for b in module.buffers()]
    why = ""
    try:
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(context.seed)
            one = main(_called(context, whole))
            torch.manual_seed(context.seed)
            other = main(_called(context, module))
        close = torch.finfo(one.dtype).eps ** 0.5 * max(1.0, float(one.abs().max()))
        same = one.shape == other.shape and float((one - other).abs().max()) <= close
    except (RuntimeError, ValueError, TypeError) as error:
        same, why = False, f": {error}"
    if not same:
        raise ConfigError(
            f"the plan cuts the model into parts that together do not compute what it computes{why}",
            hint='each "column" needs its "row", and nothing between them that mixes features; plan=None finds pairs',
        )
    for b, value in buffers:
        b.copy_(value)
