"""Features that nobody can tell the side of, and sources that count as much as they help the targets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from atoll import seeds
from atoll.contract import ClientData, Population, Replies, Reply, Work
from atoll.errors import ConfigError
from atoll.gradient import grad_and_value
from atoll.methods.adapt.targets import Targeted
from atoll.methods.fedavg import FedAvg
from atoll.methods.parts.buffers import mean_buffers
from atoll.methods.parts.features import features, gradient_with, watched, widths
from atoll.methods.parts.peers import COMPARED
from atoll.methods.parts.settings import require
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors

__all__ = ["FADA", "identified", "scatter"]

_PASSES = 3  # of k-means, from where predictions put the clusters


@dataclass(frozen=True, kw_only=True)
class FADA(Targeted):
    """Confuse who tells sides by features; weigh sources by gain.   Peng et al., ICLR 2020 (FADA)

    D(f) = relu(f'A + a)'B + b    the identifier: above 0 it takes features f(x) for a source's
    both:    D_k <- D_k - s grad (cross entropy of D_k(f(x)) to the client's own side)(batch)
    source:  w_k <- w_k - lr grad (F_k + lam (cross entropy of D_k(f(x)) to the other side))(batch)
    target:  w_k <- w_k - lr grad (lam (cross entropy of D_k(f(x)) to the other side))(batch)
    target:  gain_i = log W(w) - log W(w + u_i)  for each source i and its update u_i of the round before; W is the
             share of its features' variance that is left within as many clusters as there are classes (k-means)
    server:  alpha = softmax(sharpness gain), the mean gain of targets;  w <- w + sum_i alpha_i u_i + mean of the
             targets' updates;  D moves by the mean of the means of either side

    A source whose update leaves the targets' features in tighter clusters counts for more; alpha is beside checkpoints
    (event `affinity`), and in the state. Features never leave a client: both sides train the identifier at home, and it
    is averaged. Targets see the updates of all sources, one by one, and so does the server: no secure aggregation.

    Args:
        lam: weight of what confuses the identifier; with 0 attention alone is left.
        hidden: width of the identifier.
        identifier_lr: learning rate of it, s; none means lr.
        sharpness: of the attention; 0 weighs all sources alike.

    Traps: gains are one round old, and all alike in the first; they are small, so that sources differ little unless
    `sharpness` is 20 or so, and labels that are wrong hardly show in them. A large `lam` ruins features. The paper
    also disentangles features (mutual information) and has an identifier for each pair of a source and the target;
    here there is one, and no disentangler. Its gain is the drop of W itself, not of its logarithm, which depends on
    how large features are.
    """

    lam: float = 0.1
    hidden: int = 64
    identifier_lr: float | None = None
    sharpness: float = 1.0

    relation: ClassVar[str] = "attention"
    host: ClassVar[tuple[str, ...]] = ("targets", "sources")
    paper: ClassVar[str] = "Peng et al. 2020 (FADA), without its disentangler"
    cost: ClassVar[str] = "1 model up, 1 down, and one a source at targets; 3 passes a step"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "lam", self.lam >= 0, "must not be negative")
        require(self, "hidden", self.hidden >= 1, "must be at least 1")
        require(
            self, "identifier_lr", self.identifier_lr is None or self.identifier_lr > 0, "must be above 0"
        )
        require(self, "sharpness", self.sharpness >= 0, "must not be negative")

    @property
    def reads(self) -> tuple[str, ...]:
        return ("train",) if self.targets else ()

    # ---- server half -----------------------------------------------------------------------------------------

    def setup(self, task: Task, population: Population) -> Record:
        state = super().setup(task, population)
        if not self.targets:
            return state
        if population.example is None:
            raise ConfigError(
                "FADA needs one input to learn the width of features", hint="Population(example=...)"
            )
        width, _ = widths(task, population.example, "FADA")
        targets = set(state.targets.tolist())
        sources = [client for client in range(population.clients) if client not in targets]
        key = torch.tensor(seeds.address(population.seed, "fada"))
        identifier = Tensors(
            {
                "A": seeds.normal(seeds.fold(key, 1), (width, self.hidden)) * (2 / width) ** 0.5,
                "a": torch.zeros(self.hidden),
                "B": seeds.normal(seeds.fold(key, 2), (self.hidden,)) * self.hidden**-0.5,
                "b": torch.zeros(()),
            }
        )
        none = state.params.map(lambda value: torch.zeros(len(sources), *value.shape, dtype=value.dtype))
        return state.replace(
            sources=torch.tensor(sources),
            identifier=identifier,
            base=state.params,
            updates=none,
            attention=torch.full((len(sources),), 1 / len(sources)),
        )

    def broadcast(self, state: Record, cohort: Sequence[int]) -> Work:
        if not self.targets:
            return super().broadcast(state, cohort)
        work = FedAvg.broadcast(self, state, cohort)
        targets = set(state.targets.tolist())
        # What is here tells a target what it is: sources are shown no other source.
        tried = Record(base=state.base, updates=state.updates)
        own = {client: Record(tried=tried) if client in targets else Record() for client in cohort}
        return replace(
            work,
            shared=work.shared.replace(identifier=state.identifier, attention=state.attention),
            own=own,
            reduction="each",
        )

    def update(self, state: Record, replies: Replies) -> Record:
        if not self.targets:
            return super().update(state, replies)
        each = dict(zip(replies.clients, replies.each, strict=True))
        place = {client: at for at, client in enumerate(state.sources.tolist())}
        sources = {client: reply for client, reply in each.items() if client in place}
        targets = {client: reply for client, reply in each.items() if client not in place}
        attention = self._attention(state, targets.values())
        updates, params, buffers = state.updates, state.params, state.buffers
        if sources:
            at = [place[client] for client in sources]
            share = attention[at] / attention[at].sum().clamp(min=1e-12)
            sent = Tensors(
                {name: torch.stack([r.values.update[name] for r in sources.values()]) for name in params}
            )
            params = params + sent.map(lambda value: torch.tensordot(share.to(value.dtype), value, 1))
            updates = updates.map_names(lambda name, value: value.index_copy(0, torch.tensor(at), sent[name]))
            weighed = [
                (client, reply._replace(weight=share[n])) for n, (client, reply) in enumerate(sources.items())
            ]
            buffers = mean_buffers(buffers, weighed)
        if targets:
            params = params + _mean(reply.values.update for reply in targets.values())
        sides = [_mean(r.values.identifier for r in side.values()) for side in (sources, targets) if side]
        return state.replace(
            params=params,
            buffers=buffers,
            base=state.params,
            updates=updates,
            attention=attention,
            identifier=state.identifier + _mean(sides),
            round=state.round + 1,
        )

    def _attention(self, state: Record, targets: Iterable[Reply]) -> Tensor:
        gains = [reply.values.gains for reply in targets]
        if not gains:
            return state.attention  # type: ignore[no-any-return]
        return torch.softmax(self.sharpness * torch.stack(gains).mean(0), 0)

    def expects(self, state: Record) -> Record:
        expected = super().expects(state)
        if not self.targets:
            return expected
        return expected.replace(identifier=state.identifier, gains=state.attention)

    def affinity(self, state: Record) -> tuple[list[int], Tensor] | None:
        """(clients, matrix [n, n]): how much each source counts for each target, 0 between all others."""
        if not self.targets:
            return None
        clients = sorted([*state.sources.tolist(), *state.targets.tolist()])[:COMPARED]
        own = dict(zip(state.sources.tolist(), state.attention.tolist(), strict=True))
        matrix = torch.zeros(len(clients), len(clients))
        for i, one in enumerate(clients):
            for j, other in enumerate(clients):
                if (one in own) != (other in own):
                    matrix[i, j] = own[one if one in own else other]
        return clients, matrix

    # ---- client half -----------------------------------------------------------------------------------------

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        local = super().begin(task, received, memory, data)
        return local.replace(identifier=received.identifier) if self.targets else local

    def step(self, task: Task, local: Record, batch: Batch) -> Record:
        if not self.targets:
            return super().step(task, local, batch)
        target = "tried" in local.received
        z = features(task, local.params, local.buffers, batch.inputs, batch=batch).detach()

        def objective(identifier: Tensors) -> tuple[Tensor, Tensor]:
            value = told(identifier, z, not target, batch.mask)
            return value, value

        slope = grad_and_value(objective, local.identifier)[0]
        # Weights decay at the sources, and a target's steps are no training on labels.
        method = replace(self, weight_decay=0.0) if target else self
        stepped = FedAvg.step(method, task, local, batch)
        rate = local.lr if self.identifier_lr is None else self.identifier_lr
        return stepped.replace(
            identifier=local.identifier - slope * rate, steps=local.steps if target else stepped.steps
        )

    def gradient(self, task: Task, local: Record, batch: Batch) -> tuple[Tensors, Record]:
        if not self.targets:
            return super().gradient(task, local, batch)

        target = "tried" in local.received

        def confused(z: Tensor) -> Tensor:
            return self.lam * told(local.identifier, z, target, batch.mask)

        if not target:
            gradient, loss, buffers = gradient_with(
                task, local.params, local.buffers, batch, lambda loss, z: loss + confused(z)
            )
            return gradient, self.tallied(local, batch, loss, buffers)

        def objective(params: Tensors) -> tuple[Tensor, Tensor]:
            value = confused(features(task, params, local.buffers, batch.inputs, batch=batch))
            return value, value

        return grad_and_value(objective, local.params)[0], local

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, memory = super().finish(task, local, data)
        if not self.targets:
            return reply, memory
        received = local.received
        values = reply.values.replace(identifier=local.identifier - received.identifier)
        if "tried" not in received:
            values = values.replace(gains=torch.zeros_like(received.attention))
            return reply._replace(values=values), memory
        assert data.train is not None
        values = values.replace(gains=self._gains(task, received, data.train))
        return Reply(values, data.count, reply.metrics), memory

    def _gains(self, task: Task, received: Record, data: Batch) -> Tensor:
        """What each source's update does to the clusters of a target's features, [sources]."""

        def within(params: Tensors) -> Tensor:
            with watched(task, len(data.mask)) as seen:
                outputs, _ = task.predict(params, received.buffers, data.inputs)
            return scatter(outputs, seen(), data.mask)

        base, updates = received.tried.base, received.tried.updates
        before = within(base)
        after = [within(base + updates.map(lambda v, at=at: v[at])) for at in range(len(received.attention))]
        return before - torch.stack(after)


def identified(identifier: Tensors, z: Tensor) -> Tensor:
    """By how much features [n, d] look like a source's, [n]."""
    hidden = torch.relu(z @ identifier["A"].to(z.dtype) + identifier["a"].to(z.dtype))
    found: Tensor = hidden @ identifier["B"].to(z.dtype) + identifier["b"].to(z.dtype)
    return found


def told(identifier: Tensors, z: Tensor, source: bool, mask: Tensor) -> Tensor:
    """Mean cross entropy of what the identifier says of features to one side: that they are all a source's, or none."""
    logit = identified(identifier, z)
    loss = F.softplus(-logit if source else logit)
    return torch.sum(loss * mask) / mask.sum().clamp(min=1)


def scatter(outputs: Tensor, z: Tensor, mask: Tensor) -> Tensor:
    """The logarithm of the share of features' variance within clusters, as many as there are outputs.

    k-means of features [n, d], a few passes from the means by predicted shares.
    """
    share = torch.softmax(outputs, 1).to(z.dtype) * mask.unsqueeze(1)
    centres = (share.T @ z) / share.sum(0).clamp(min=1e-6).unsqueeze(1)
    kept = mask.to(z.dtype)
    for _ in range(_PASSES):
        member = F.one_hot(_apart(z, centres).argmin(1), len(centres)).to(z.dtype) * kept.unsqueeze(1)
        size = member.sum(0).unsqueeze(1)
        centres = torch.where(size > 0, (member.T @ z) / size.clamp(min=1), centres)
    own = torch.sum(_apart(z, centres).min(1).values * kept)
    mean = (kept @ z) / kept.sum().clamp(min=1)
    whole = torch.sum((z - mean).square().sum(1) * kept)
    return torch.log(own.clamp(min=1e-12) / whole.clamp(min=1e-12))


def _apart(z: Tensor, centres: Tensor) -> Tensor:
    """Squared distances [n, c]."""
    gaps: Tensor = (z.unsqueeze(1) - centres.unsqueeze(0)).square().sum(2)
    return gaps


def _mean(values: Iterable[Tensors]) -> Tensors:
    """Of some, at least one."""
    found = list(values)
    total = found[0]
    for each in found[1:]:
        total = total + each
    return total * (1 / len(found))
