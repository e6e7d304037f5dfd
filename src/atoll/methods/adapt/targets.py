"""Clients whose labels are not used: who they are, and what the others' training becomes with them about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from atoll.contract import ClientData, Population, Replies, Reply, Work
from atoll.errors import ConfigError, suggest
from atoll.gradient import grad_and_value
from atoll.methods.fedavg import FedAvg
from atoll.methods.parts.features import features, gradient_with, widths
from atoll.methods.parts.settings import require
from atoll.optimizers import Optimizer, clip_by_norm
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors, map_leaves

__all__ = ["SIDES", "Matched", "Targeted"]

SIDES = ("source", "target")
_TRAINED = ("params", "buffers", "optimizer", "steps", "seen", "loss")


@dataclass(frozen=True, kw_only=True)
class Targeted(FedAvg):
    """FedAvg among clients with labels, the sources; `targets` take part and train nothing.

    A target's reply weighs nothing, so that the model is that of FedAvg among the sources, to the bit. Without targets
    it is FedAvg.

    Args:
        targets: the clients whose labels are not used, by name or number, with commas between them: "usps", "0, 3".
    """

    targets: str = ""

    host: ClassVar[tuple[str, ...]] = ("targets",)

    # ---- server half -----------------------------------------------------------------------------------------

    def setup(self, task: Task, population: Population) -> Record:
        state = super().setup(task, population)
        if not self.targets:
            return state
        found = sorted({self._number(each.strip(), population) for each in self.targets.split(",")})
        if len(found) == population.clients:
            raise ConfigError(
                f"{type(self).__name__}: all {population.clients} clients are targets",
                hint="labels must come from somebody: name fewer of them in targets",
            )
        return state.replace(targets=torch.tensor(found))

    def _number(self, name: str, population: Population) -> int:
        names = population.names
        if name in names:
            return list(names).index(name)
        if name.isdecimal() and int(name) < population.clients:
            return int(name)
        known = [str(each) for each in names[:1000]]
        raise ConfigError(
            f"{type(self).__name__}: there is no client {name!r} for targets",
            hint=suggest(name, known) if known else f"clients go by number, 0 to {population.clients - 1}",
        )

    def broadcast(self, state: Record, cohort: Sequence[int]) -> Work:
        work = super().broadcast(state, cohort)
        if not self.targets:
            return work
        targets = set(state.targets.tolist())
        lr = work.shared.lr
        flags = {True: torch.ones_like(lr), False: torch.zeros_like(lr)}
        return replace(work, own={client: Record(target=flags[client in targets]) for client in cohort})

    # ---- client half -----------------------------------------------------------------------------------------

    def step(self, task: Task, local: Record, batch: Batch) -> Record:
        stepped = super().step(task, local, batch)
        if not self.targets:
            return stepped
        source = local.received.target == 0
        return local.replace(
            **{
                name: map_leaves(partial(torch.where, source), stepped[name], local[name])
                for name in _TRAINED
            }
        )


@dataclass(frozen=True, kw_only=True)
class Matched(Targeted):
    """What features are like at the sources and at the targets is pulled together, from both sides.

    Every client sends sums over its features by the model as it received it, divided by its samples, so that weighted
    means of them, which is all that a server takes, are sums over all samples. Those of the sources and those of the
    targets are kept apart; what they come to is sent out in the next round: a source then trains on its labels and a
    pull to the targets, a target on a pull to the sources alone. The model moves by the mean of the sources' updates
    and the mean of the targets', as by one step on the sum of all that is minimised.

    Args:
        lam: weight of the pull; with 0 this is FedAvg among the sources, to the bit.
    """

    lam: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "lam", self.lam >= 0, "must not be negative")

    @property
    def reads(self) -> tuple[str, ...]:
        return ("train",) if self.pulls else ()

    @property
    def pulls(self) -> bool:
        """Whether it is more than FedAvg among the sources."""
        return bool(self.targets and self.lam)

    def blank(self, width: int) -> Record:
        """What the server knows of features of this width before it has met any, a record of tensors."""
        raise NotImplementedError

    def zeros(self, width: int) -> Record:
        """The sums over no feature."""
        raise NotImplementedError

    def sums(self, local: Record, z: Tensor, mask: Tensor) -> Record:
        """A client's sums over the real rows of all its features [n, d]."""
        raise NotImplementedError

    def learned(self, matched: Record, sums: Record) -> Record:
        """What the server knows with a round's sums, of the `source` and of the `target`, both over the same number."""
        raise NotImplementedError

    def apart(self, local: Record, known: Record, z: Tensor, mask: Tensor) -> Tensor:
        """How far a batch's features [b, d] are from the other side's, a scalar; 0 while nothing is known of them."""
        raise NotImplementedError

    # ---- server half -----------------------------------------------------------------------------------------

    def setup(self, task: Task, population: Population) -> Record:
        state = super().setup(task, population)
        if not self.pulls:
            return state
        name = type(self).__name__
        if population.example is None:
            raise ConfigError(
                f"{name} needs one input to learn the width of features", hint="Population(example=...)"
            )
        width, _ = widths(task, population.example, name)
        return state.replace(
            matched=Record({side: self.blank(width) for side in SIDES}),
            zeros=Record({side: self.zeros(width) for side in SIDES}),
        )

    def broadcast(self, state: Record, cohort: Sequence[int]) -> Work:
        work = super().broadcast(state, cohort)
        if not self.pulls:
            return work
        return replace(work, shared=work.shared.replace(matched=state.matched))

    def update(self, state: Record, replies: Replies) -> Record:
        if not self.pulls:
            return super().update(state, replies)
        mean = replies.mean
        source, target = (_inverse(mean[f"{side}s"]) for side in SIDES)
        among = mean.replace(update=mean.update * source, buffers=mean.buffers * source)
        new = super().update(state, replace(replies, mean=among))
        return new.replace(
            params=new.params + mean.pulled * target, matched=self.learned(state.matched, mean.sums)
        )

    def expects(self, state: Record) -> Record:
        expected = super().expects(state)
        if not self.pulls:
            return expected
        zero = torch.zeros(())
        return expected.replace(sums=state.zeros, pulled=state.params, sources=zero, targets=zero.clone())

    # ---- client half -----------------------------------------------------------------------------------------

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        local = super().begin(task, received, memory, data)
        if not self.pulls:
            return local
        return local.replace(pulled=received.params, pulling=self._free().init(received.params))

    def _free(self) -> Optimizer:
        """A target's optimiser: weights decay at the sources."""
        return replace(self, weight_decay=0.0).solver()

    def step(self, task: Task, local: Record, batch: Batch) -> Record:
        stepped = super().step(task, local, batch)
        if not self.pulls:
            return stepped
        found = self._step_of_target(task, local, batch)
        target = local.received.target > 0
        kept = {name: map_leaves(partial(torch.where, target), found[name], local[name]) for name in found}
        return stepped.replace(**kept)

    def _step_of_target(self, task: Task, local: Record, batch: Batch) -> dict[str, Any]:
        def objective(params: Tensors) -> tuple[Tensor, Tensor]:
            z = features(task, params, local.buffers, batch.inputs, batch=batch)
            apart = self.apart(local, local.received.matched.source, z, batch.mask)
            return self.lam * apart, apart

        gradient = grad_and_value(objective, local.pulled)[0]
        if self.clip:
            gradient = clip_by_norm(gradient, self.clip)
        params, state = self._free().update(gradient, local.pulling, local.pulled, local.lr)
        return {"pulled": params, "pulling": state}

    def gradient(self, task: Task, local: Record, batch: Batch) -> tuple[Tensors, Record]:
        if not self.pulls:
            return super().gradient(task, local, batch)

        def pulled(loss: Tensor, z: Tensor) -> Tensor:
            return loss + self.lam * self.apart(local, local.received.matched.target, z, batch.mask)

        gradient, loss, buffers = gradient_with(task, local.params, local.buffers, batch, pulled)
        return gradient, self.tallied(local, batch, loss, buffers)

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, memory = super().finish(task, local, data)
        if not self.pulls:
            return reply, memory
        assert data.train is not None
        target, received = local.received.target, local.received
        z = features(task, received.params, received.buffers, data.train.inputs)
        per = data.count.clamp(min=1)
        sums = map_leaves(lambda value: value / per, self.sums(local, z, data.train.mask))
        sides = {
            "source": map_leaves(lambda value: torch.where(target > 0, 0, value), sums),
            "target": map_leaves(lambda value: torch.where(target > 0, value, 0), sums),
        }
        values = reply.values.replace(
            sums=Record(sides), pulled=local.pulled - received.params, sources=1 - target, targets=target
        )
        return Reply(values, torch.where(target > 0, data.count, reply.weight), reply.metrics), memory


def _inverse(share: Tensor) -> Tensor:
    """1 / share, and 0 where nobody was there."""
    return torch.where(share > 0, 1 / share.clamp(min=1e-12), torch.zeros_like(share))
