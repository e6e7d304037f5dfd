"""Clients whose labels are not used: who they are, and what the others' training becomes with them about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from atoll.contract import ClientData, Population, Replies, Reply, Rule, Work
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

    Every client sends sums over its features by the model as it received it. The server puts those of the sources
    together, and those of the targets, and sends out what they come to in the next round: a source then trains on its
    labels and a pull to the targets, a target on a pull to the sources alone. The model moves by the mean of the
    sources' updates and the mean of the targets', as by one step on the sum of all that is minimised.

    Args:
        lam: weight of the pull; with 0 this is FedAvg among the sources, to the bit.
    """

    lam: float = 1.0

    rules: ClassVar[Mapping[str, Rule]] = {**FedAvg.rules, "sums": "sum", "pulled": "sum", "there": "sum"}

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "lam", self.lam >= 0, "must not be negative")

    @property
    def reads(self) -> tuple[str, ...]:
        return ("train",) if self.targets else ()

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
        """What the server knows with a round's sums, of the `source` and of the `target`; of none where none came."""
        raise NotImplementedError

    def apart(self, local: Record, known: Record, z: Tensor, mask: Tensor) -> Tensor:
        """How far a batch's features [b, d] are from the other side's, a scalar; 0 while nothing is known of them."""
        raise NotImplementedError

    # ---- server half -----------------------------------------------------------------------------------------

    def setup(self, task: Task, population: Population) -> Record:
        state = super().setup(task, population)
        if not self.targets:
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
        if not self.targets:
            return work
        return replace(work, shared=work.shared.replace(matched=state.matched))

    def update(self, state: Record, replies: Replies) -> Record:
        new = super().update(state, replies)
        if not self.targets:
            return new
        mean = replies.mean
        if self.lam:
            new = new.replace(params=new.params + mean.pulled / mean.there.clamp(min=1))
        return new.replace(matched=self.learned(state.matched, mean.sums))

    def expects(self, state: Record) -> Record:
        expected = super().expects(state)
        if not self.targets:
            return expected
        more = {"pulled": state.params, "there": torch.zeros(())} if self.lam else {}
        return expected.replace(sums=state.zeros, **more)

    # ---- client half -----------------------------------------------------------------------------------------

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        local = super().begin(task, received, memory, data)
        if not (self.targets and self.lam):
            return local
        return local.replace(pulled=received.params, pulling=self._free().init(received.params))

    def _free(self) -> Optimizer:
        """A target's optimiser: weights decay at the sources."""
        return replace(self, weight_decay=0.0).solver()

    def step(self, task: Task, local: Record, batch: Batch) -> Record:
        stepped = super().step(task, local, batch)
        if not (self.targets and self.lam):
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
        if not (self.targets and self.lam):
            return super().gradient(task, local, batch)

        def pulled(loss: Tensor, z: Tensor) -> Tensor:
            return loss + self.lam * self.apart(local, local.received.matched.target, z, batch.mask)

        gradient, loss, buffers = gradient_with(task, local.params, local.buffers, batch, pulled)
        rows = batch.mask.sum()
        total = local.loss + (loss * rows).to(local.loss.dtype)
        return gradient, local.replace(buffers=buffers, loss=total, seen=local.seen + rows)

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, memory = super().finish(task, local, data)
        if not self.targets:
            return reply, memory
        assert data.train is not None
        target, received = local.received.target, local.received
        z = features(task, received.params, received.buffers, data.train.inputs)
        sums = self.sums(local, z, data.train.mask)
        sides = {
            "source": map_leaves(lambda value: torch.where(target > 0, 0, value), sums),
            "target": map_leaves(lambda value: torch.where(target > 0, value, 0), sums),
        }
        values = reply.values.replace(sums=Record(sides))
        if self.lam:
            values = values.replace(pulled=local.pulled - received.params, there=target)
        return reply._replace(values=values), memory
