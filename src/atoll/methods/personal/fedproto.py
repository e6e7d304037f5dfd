"""Models of clients' own, of any architecture, that agree on a mean feature vector a class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from atoll.contract import ClientData, Population, Program, Replies, Reply, Work
from atoll.errors import ConfigError
from atoll.methods.local import Local
from atoll.methods.parts.features import features, gradient_with, watched, widths
from atoll.methods.parts.settings import require
from atoll.parts import Inputs
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors

__all__ = ["FedProto"]

_UNKNOWN = 1e4  # how much farther than all others a class without a prototype is


@dataclass(frozen=True, kw_only=True)
class FedProto(Local):
    """Share class prototypes instead of models.   Tan et al., AAAI 2022, Algorithm 1

    client:  w_k <- w_k - lr grad (F_k + lam R)(w_k; batch)  for E epochs, from where it stopped,
             R = mean over the batch of ||f(x) - p_y||^2 / d,  0 for samples whose class y has no prototype yet
             sends  s_kc = sum of f(x) over its samples of class c,  and their number n_kc,  both over n_k;
             to predict:  the class whose prototype is nearest to f(x)
    server:  p_c <- sum_k s_kc / sum_k n_kc = sum_k n_kc mean_kc / sum_k n_kc  for every class that somebody has (both
             sums are means over clients by n_k);  the others stay as they were

    f(x) are the d features that the last layer with parameters reads. A client's model, buffers included, is its
    memory; it starts from the initial model of its architecture and never leaves the client, so that architectures
    may differ as long as their features have one width. With lam=0 clients train as in Local, to the bit.

    Outputs are the squared distances to the prototypes with a minus sign, and the loss reported is theirs: accuracy is
    that of the nearest prototype, a class without one is never chosen and costs a loss of 10,000 or more. Before the
    first round there is no prototype, and clients predict with their models.

    Args:
        lam: weight of the pull to the prototypes; 1 in the paper.
        predict: "prototype", the nearest one, or "model", the client's own outputs.

    Traps: the pull is the one of the authors' code, per sample and divided by d; the paper's formula sums distances
    between class means over classes. Sums are taken in evaluation mode over all local samples once training is over;
    the authors' code gathers them while the last epoch changes the model, and averages clients' means without n_kc.
    The global model is the initial one, which nobody trains.
    """

    lam: float = 1.0
    predict: Literal["prototype", "model"] = "prototype"

    paper: ClassVar[str] = "Tan et al. 2022 (FedProto), Algorithm 1"
    cost: ClassVar[str] = "a feature vector a class up and down; 1 more pass; 1 model remembered"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "lam", self.lam >= 0, "must not be negative")
        require(self, "predict", self.predict in ("prototype", "model"), "must be prototype or model")

    @property
    def reads(self) -> tuple[str, ...]:
        return ("train",)

    # ---- server half -------------------------------------------------------------------------------------

    def setup(self, task: Task, population: Population) -> Record:
        state = super().setup(task, population)
        d, classes = _common(population.tasks or (task,), population.example)
        like = next(p for p in state.params.values() if p.is_floating_point())
        return state.replace(prototypes=like.new_zeros(classes, d), known=like.new_zeros(classes))

    def broadcast(self, state: Record, cohort: Sequence[int]) -> Work:
        work = super().broadcast(state, cohort)
        return replace(work, shared=work.shared.replace(prototypes=state.prototypes, known=state.known))

    def update(self, state: Record, replies: Replies) -> Record:
        sums, counts = (replies.mean[name].to(state.known.dtype) for name in ("sums", "counts"))
        seen = counts > 0
        means = sums / torch.where(seen, counts, 1.0).unsqueeze(1)
        prototypes = torch.where(seen.unsqueeze(1), means, state.prototypes)
        known = torch.where(seen, 1.0, state.known)
        return super().update(state, replies).replace(prototypes=prototypes, known=known)

    def expects(self, state: Record) -> Record:
        return Record(sums=state.prototypes, counts=state.known)

    # ---- client half -------------------------------------------------------------------------------------

    @property
    def beside(self) -> str:
        return "the nearest of all classes' prototypes" if self.predict == "prototype" else ""

    def programs(self) -> Mapping[str, Program]:
        return {"personal": Nearest(self)} if self.predict == "prototype" else {}

    def gradient(self, task: Task, local: Record, batch: Batch) -> tuple[Tensors, Record]:
        if not self.lam:
            return super().gradient(task, local, batch)
        prototype = local.received.prototypes[batch.targets]
        counted = local.received.known[batch.targets] * batch.mask

        def pulled(loss: Tensor, z: Tensor) -> Tensor:
            apart = (z - prototype).square().mean(1)
            return loss + self.lam * torch.sum(apart * counted) / batch.mask.sum().clamp(min=1)

        gradient, loss, buffers = gradient_with(task, local.params, local.buffers, batch, pulled)
        return gradient, self.tallied(local, batch, loss, buffers)

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, memory = super().finish(task, local, data)
        sums, counts = torch.zeros_like(local.received.prototypes), torch.zeros_like(local.received.known)
        if data.train is not None:
            z = features(task, local.params, local.buffers, data.train.inputs).to(sums.dtype)
            classes = torch.arange(len(counts), device=z.device)
            member = (data.train.targets.unsqueeze(1) == classes) * data.train.mask.unsqueeze(1).to(z.dtype)
            sums, counts = member.T @ z, member.sum(0)
        per = data.count.clamp(min=1)  # a sample's share of the client, which counts for all of its samples
        return reply._replace(values=Record(sums=sums / per, counts=counts / per), weight=per), memory


@dataclass(frozen=True)
class Nearest(Program):
    """The client program that judges the nearest prototype on the client's test data."""

    method: FedProto

    @property
    def reads(self) -> tuple[str, ...]:
        return ("test",)

    def remember(self, task: Task, received: Record) -> Record:
        return self.method.remember(task, received)

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        return Record(prototypes=received.prototypes, known=received.known, memory=memory)

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        assert data.test is not None
        with watched(task, len(data.test.mask)) as seen:
            outputs, _ = task.predict(local.memory.params, local.memory.buffers, data.test.inputs)
        near = nearness(seen(), local.prototypes, local.known)
        outputs = torch.where(local.known.sum() > 0, near, outputs.to(near.dtype))
        totals = task.summed(task.judged(outputs, data.test.targets), data.test)
        return Reply(Record(), totals.count, totals), local.memory


def nearness(z: Tensor, prototypes: Tensor, known: Tensor) -> Tensor:
    """Squared distances from features [n, d] to prototypes [C, d], times -1: [n, C]; least for unknown classes."""
    apart = torch.stack([(z - each).square().sum(1) for each in prototypes.to(z.dtype).unbind()], 1)
    farthest = torch.where(known > 0, apart, 0.0).amax(1, keepdim=True)
    return -torch.where(known > 0, apart, farthest + _UNKNOWN)


def _common(tasks: Sequence[Task], example: Inputs | None) -> tuple[int, int]:
    """The width of features and the number of classes that all architectures share."""
    if example is None:
        raise ConfigError(
            "FedProto needs one input to learn the width of features", hint="Population(example=...)"
        )
    found = [widths(task, example, "FedProto") for task in tasks]
    for at, what in enumerate(("features", "outputs")):
        if len({each[at] for each in found}) > 1:
            numbers = ", ".join(str(each[at]) for each in found)
            raise ConfigError(
                f"FedProto compares {what} of different architectures, and they have {numbers} {what}",
                hint=f"give all models as many {what}"
                + (" before the last layer" if what == "features" else ""),
            )
    return found[0]
