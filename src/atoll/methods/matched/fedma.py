"""Matched averaging as federated methods: all layers at once, or layer by layer with training in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from atoll import seeds
from atoll.contract import Change, ClientData, Model, Population, Replies, Reply, Work
from atoll.methods.fedavg import FedAvg
from atoll.methods.matched.bbp import assignment_solver
from atoll.methods.matched.networks import Matched, match_models
from atoll.methods.parts.axes import Groups
from atoll.methods.parts.bank import held, keep, without
from atoll.methods.parts.settings import require
from atoll.methods.parts.units import permutation_groups
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors

__all__ = ["PFNM", "FedMA"]


@dataclass(frozen=True, kw_only=True)
class PFNM(FedAvg):
    """Match the hidden units of all layers, then average.   Yurochkin et al., ICML 2019

    client:  w_k <- w_t;  for each batch of E epochs:  w_k <- w_k - lr grad F_k(w_k; batch);  sends w_k, class counts
    server:  for each hidden layer from the inputs up:  permute each w_k's units, to be most like the others'
             hidden layers:  the mean of w_k;   outputs of class c:  sum_k (n_kc / n_c) w_k

    `match_models` says how layers are matched, and for networks of which layers; the global model keeps the width of
    the task's, so units are assigned one to one. Every round is one-shot matching of the clients that took part.
    Meant for networks that were trained apart (start="own", one round of many epochs).

    Args:
        start: in the first round clients start from the "shared" initial model, or each from one of its "own": the
            initial values of every tensor in an order of the client's own, which is what initialising anew gives.
        weighting: hidden units count "equal" for every client, as in the paper, or by "samples".
        outgoing: whether units are compared by what flows out of them too, where the other end has its place (the
            outputs): one hidden layer has nothing else in common.
        shrink: whether hidden units are drawn to zero by the prior, as in the authors' code.
        sweeps: how often each client is matched anew to all others.
        passes: how often all layers are matched; 2 or more for residual networks.

    Traps: with shrink a network and its copies do not average to that network, J / (J + 1) of it comes out. With
    start="shared" and few local steps units have kept their places, and this is FedAvg up to the outputs' layer.
    BatchNorm's statistics are averaged like everything else; those of averaged weights would be narrower.
    """

    start: Literal["shared", "own"] = "shared"
    weighting: Literal["equal", "samples"] = "equal"
    outgoing: bool = False
    shrink: bool = False
    sweeps: int = 5
    passes: int = 1

    reduction: ClassVar[Literal["mean", "each"]] = "each"
    change: ClassVar[Change | None] = Change("params", since="params")
    broadcasts: ClassVar[tuple[str, ...]] = ()
    paper: ClassVar[str] = "Yurochkin et al. 2019; Wang et al. 2020"
    cost: ClassVar[str] = "1 model up, 1 down; class counts up; matching on the server"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "start", self.start in ("shared", "own"), "must be shared or own")
        require(self, "weighting", self.weighting in ("equal", "samples"), "must be equal or samples")
        require(self, "sweeps", self.sweeps >= 0, "must not be negative")
        require(self, "passes", self.passes >= 1, "must be at least 1")

    @property
    def reads(self) -> tuple[str, ...]:
        return ("train",)

    # ---- server half -------------------------------------------------------------------------------------

    def setup(self, task: Task, population: Population) -> Record:
        assignment_solver()  # what is missing must be known before the first round
        state = super().setup(task, population)
        groups = permutation_groups(task.module)
        ends = {
            state.params[name].shape[axis.dim]
            for name, axes in groups.axes.items()
            for axis in axes
            if axis.role == "class" and name in state.params
        }
        classes = ends.pop() if len(ends) == 1 and task.loss_name == "cross_entropy" else 0
        return state.replace(
            axes=groups.table(_names(state)), classes=torch.zeros(classes), seed=population.seed
        )

    def broadcast(self, state: Record, cohort: Sequence[int]) -> Work:
        work = super().broadcast(state, cohort)
        work = replace(work, shared=work.shared.replace(classes=state.classes))
        if self.start == "own" and state.round == 0:
            work = replace(
                work, own={k: Record(params=_shuffled(state.params, state.seed, k)) for k in cohort}
            )
        return work

    def update(self, state: Record, replies: Replies) -> Record:
        models = [(reply.values.params, reply.values.buffers) for reply in replies.each]
        counts = [Tensors(samples=r.weight, classes=r.values.classes) for r in replies.each]
        matched = self.matched(state, models, counts)
        return state.replace(params=matched.params, buffers=matched.buffers, round=state.round + 1)

    def matched(
        self, state: Record, models: Sequence[Model], counts: Sequence[Tensors], known: int = 0
    ) -> Matched:
        """The matched average of these models, trained on so many samples, of so many of each class."""
        samples = [float(each["samples"]) for each in counts]
        there = [at for at, n in enumerate(samples) if n > 0]
        weights = [samples[at] for at in there]
        return match_models(
            Groups.of_table(state.axes, _names(state)),
            [models[at] for at in there],
            weights,
            torch.stack([_weighed(counts[at]) for at in there]) if state.classes.numel() else None,
            precision=weights if self.weighting == "samples" else None,
            shrink=self.shrink,
            outgoing=self.outgoing,
            sweeps=self.sweeps,
            passes=self.passes,
            known=known,
            seed=state.seed,
            round=state.round,
        )

    def expects(self, state: Record) -> Record:
        return Record(params=state.params, buffers=state.buffers, classes=state.classes)

    # ---- client half -------------------------------------------------------------------------------------

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, memory = super().finish(task, local, data)
        assert data.train is not None
        values = Record(
            params=local.params, buffers=local.buffers, classes=_counted(data.train, local.received.classes)
        )
        return reply._replace(values=values), memory


@dataclass(frozen=True, kw_only=True)
class FedMA(PFNM):
    """Match one layer, freeze it, train the rest, match the next.   Wang et al., ICLR 2020

    round n of a pass, n = 1 .. hidden layers + 1:
    client:  w_k <- w_t (n = 1) or w_k with the matched layers in it;  trains layers n and up;  sends them
    server:  matches layer n, replaces it in every w_k by the mean, and permutes the inputs of layer n + 1
    at the end of the pass:  outputs of class c:  sum_k (n_kc / n_c) w_k;   the next pass starts from w_{t+1}

    A pass is as many rounds as the network has groups of hidden units, and one. In between the global model is what
    matching the remaining layers untrained gives. A client that sits out keeps the model it sent last in this pass;
    one that comes in late starts from the global model.

    Args:
        later: what clients go on with in the layers that are not matched yet: their "own", as in the paper, or the
            "matched" mean of all, which the server has anyway.

    Traps: with later="own" a layer is averaged once a pass and drifts until then: from a shared start FedAvg is ahead
    at equal rounds, and "matched", which is not in the paper, gains several points in the first pass (narrow VGG,
    CIFAR-10, a few hundred images a client); later passes of many epochs can lose what the first one won. The server
    holds the model of every client of a pass, unless later="matched". What is learned shows at the end of a pass.
    """

    later: Literal["own", "matched"] = "own"

    paper: ClassVar[str] = "Wang et al. 2020 (ICLR)"
    cost: ClassVar[str] = (
        "each layer up once a pass or more, 1 model down; class counts up; matching on the server"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "later", self.later in ("own", "matched"), "must be own or matched")

    # ---- server half -------------------------------------------------------------------------------------

    def setup(self, task: Task, population: Population) -> Record:
        return super().setup(task, population).replace(stage=0, models=Record(), counts=Record())

    def broadcast(self, state: Record, cohort: Sequence[int]) -> Work:
        work = super().broadcast(state, cohort)
        # The names of what is trained: structure, not values.
        training = Tensors({name: torch.zeros(()) for name in self._training(state)})
        own = dict(work.own) if state.stage == 0 else {}
        if state.models:
            for k in cohort:
                both = state.models.get(str(k), {**state.params, **state.buffers})
                params, buffers = _split(both, state)
                own[k] = Record(params=params, buffers=buffers)
        return replace(work, shared=work.shared.replace(training=training), own=own)

    def update(self, state: Record, replies: Replies) -> Record:
        groups, stage = Groups.of_table(state.axes, _names(state)), state.stage
        models, counts = {}, {}
        for client, reply in zip(replies.clients, replies.each, strict=True):
            before = state.models.get(str(client), {**state.params, **state.buffers})
            values = reply.values
            models[client] = Tensors({**before, **values.params, **values.buffers})
            counts[client] = Tensors(samples=reply.weight, classes=values.classes)
        bank, tally = keep(state.models, models), keep(state.counts, counts)
        clients = held(bank)
        each = [_split(bank[str(k)], state) for k in clients]
        matched = self.matched(state, each, [tally[str(k)] for k in clients], known=stage)
        whole = Tensors({**matched.params, **matched.buffers})
        frozen = {n: t for n, t in state.params.items() if n in set(groups.settled(stage))}
        whole = Tensors({**whole, **frozen})
        params, buffers = _split(whole, state)
        state = state.replace(params=params, buffers=buffers, round=state.round + 1)
        following = 0 if stage == len(groups) else stage + 1
        if following == 0 or self.later == "matched":
            return state.replace(stage=following, models=Record(), counts=Record())
        ready = set(groups.settled(stage + 1))
        there = [k for k in clients if float(tally[str(k)]["samples"]) > 0]
        places = {k: {stage: ids} for k, ids in zip(there, matched.assignments[stage], strict=True)}
        permuted = {
            k: Tensors(
                {
                    name: whole[name] if name in ready else groups.move(name, tensor, places[k], groups.sizes)
                    for name, tensor in bank[str(k)].items()
                }
            )
            for k in there
        }
        kept = Record({str(k): tally[str(k)] for k in there})
        return state.replace(stage=following, models=keep(Record(), permuted), counts=kept)

    def leave(self, state: Record, clients: Sequence[int]) -> Record:
        return state.replace(models=without(state.models, clients), counts=without(state.counts, clients))

    def expects(self, state: Record) -> Record:
        params = Tensors({name: state.params[name] for name in self._training(state)})
        return Record(params=params, buffers=state.buffers, classes=state.classes)

    def _training(self, state: Record) -> list[str]:
        """Parameters that are trained in this round."""
        settled = set(Groups.of_table(state.axes, _names(state)).settled(state.stage))
        return [name for name in state.params if name not in settled]

    # ---- client half -------------------------------------------------------------------------------------

    def gradient(self, task: Task, local: Record, batch: Batch) -> tuple[Tensors, Record]:
        gradient, local = super().gradient(task, local, batch)
        training = local.received.training
        return Tensors({n: g if n in training else torch.zeros_like(g) for n, g in gradient.items()}), local

    def step(self, task: Task, local: Record, batch: Batch) -> Record:
        new, training = super().step(task, local, batch), local.received.training
        params = {n: p if n in training else local.params[n] for n, p in new.params.items()}
        return new.replace(params=Tensors(params))

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, memory = super().finish(task, local, data)
        params = Tensors({name: local.params[name] for name in local.received.training})
        return reply._replace(values=reply.values.replace(params=params)), memory


# --- helpers --------------------------------------------------------------------------------------------------------


def _names(state: Record) -> list[str]:
    """All tensors of the model, in an order of their own."""
    return sorted([*state.params, *state.buffers])


def _split(both: Mapping[str, Tensor], state: Record) -> Model:
    return Tensors({n: both[n] for n in state.params}), Tensors({n: both[n] for n in state.buffers})


def _shuffled(params: Tensors, seed: int, client: int) -> Tensors:
    """Parameters with the entries of every tensor in an order of the client's own."""
    result = {}
    for at, (name, value) in enumerate(sorted(params.items())):
        order = torch.from_numpy(seeds.rng(seed, "own start", at, client).permutation(value.numel()))
        result[name] = value.reshape(-1)[order.to(value.device)].view_as(value)
    return Tensors({name: result[name] for name in params})


def _weighed(tally: Tensors) -> Tensor:
    """A client's class counts, such that it counts for its weight in all."""
    classes = tally["classes"]
    return classes * (tally["samples"] / classes.sum().clamp(min=1))


def _counted(train: Batch, classes: Tensor) -> Tensor:
    """How many samples of each class there are (of each token, in sequences)."""
    if not classes.numel():
        return classes
    labels = torch.arange(len(classes), device=classes.device)
    hits = (train.targets.unsqueeze(-1) == labels).to(classes.dtype)
    hits = hits.reshape(hits.shape[0], -1, len(classes)).sum(1)
    return (hits * train.mask.to(classes.dtype).unsqueeze(-1)).sum(0)
