"""Clients whose labels are not used: who they are, and what the others' training becomes with them about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from atoll.contract import ClientData, Population, Replies, Reply, Rule, Work
from atoll.errors import ConfigError, suggest
from atoll.methods.fedavg import FedAvg
from atoll.methods.parts.features import gradient_with, widths
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors, map_leaves

__all__ = ["Matched", "Targeted"]

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
    """Sources train with a pull: what their features are like is to be what the targets' are like.

    Targets send sums over their features by the model that they received, which the server puts together, whatever
    weights clients have, and sends out in the next round; so the pull begins in the second round.

    Args:
        lam: weight of the pull; with 0 this is FedAvg among the sources, to the bit.
    """

    lam: float = 1.0

    rules: ClassVar[Mapping[str, Rule]] = {**FedAvg.rules, "sums": "sum"}

    @property
    def reads(self) -> tuple[str, ...]:
        return ("train",) if self.targets else ()

    def blank(self, width: int) -> Record:
        """What the server knows of targets' features of this width before it has met one, a record of tensors."""
        raise NotImplementedError

    def zeros(self, width: int) -> Record:
        """The sums over no feature."""
        raise NotImplementedError

    def sums(self, task: Task, local: Record, data: Batch) -> Record:
        """A client's sums over all its data."""
        raise NotImplementedError

    def learned(self, known: Record, sums: Record) -> Record:
        """What the server knows with the sums of a round's targets, where there were any."""
        raise NotImplementedError

    def apart(self, local: Record, z: Tensor, mask: Tensor) -> Tensor:
        """How far a batch's features [b, d] are from the targets', a scalar; 0 while nothing is known of them."""
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
        return state.replace(matched=self.blank(width), zeros=self.zeros(width))

    def broadcast(self, state: Record, cohort: Sequence[int]) -> Work:
        work = super().broadcast(state, cohort)
        if not self.targets:
            return work
        return replace(work, shared=work.shared.replace(matched=state.matched))

    def update(self, state: Record, replies: Replies) -> Record:
        new = super().update(state, replies)
        if not self.targets:
            return new
        return new.replace(matched=self.learned(state.matched, replies.mean.sums))

    def expects(self, state: Record) -> Record:
        expected = super().expects(state)
        return expected.replace(sums=state.zeros) if self.targets else expected

    # ---- client half -----------------------------------------------------------------------------------------

    def gradient(self, task: Task, local: Record, batch: Batch) -> tuple[Tensors, Record]:
        if not (self.targets and self.lam):
            return super().gradient(task, local, batch)

        def pulled(loss: Tensor, z: Tensor) -> Tensor:
            return loss + self.lam * self.apart(local, z, batch.mask)

        gradient, loss, buffers = gradient_with(task, local.params, local.buffers, batch, pulled)
        rows = batch.mask.sum()
        total = local.loss + (loss * rows).to(local.loss.dtype)
        return gradient, local.replace(buffers=buffers, loss=total, seen=local.seen + rows)

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, memory = super().finish(task, local, data)
        if not self.targets:
            return reply, memory
        assert data.train is not None
        target = local.received.target
        sums = map_leaves(
            lambda value: torch.where(target > 0, value, torch.zeros_like(value)),
            self.sums(task, local, data.train),
        )
        return reply._replace(values=reply.values.replace(sums=sums)), memory
