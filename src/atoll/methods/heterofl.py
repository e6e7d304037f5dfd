"""Clients that train as much of the global model as they can carry: its first units."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from atoll import seeds, spec
from atoll.contract import ClientData, Evaluate, Model, Population, Program, Replies, Reply, Work
from atoll.errors import ConfigError
from atoll.methods.fedavg import FedAvg
from atoll.methods.parts.axes import Groups
from atoll.methods.parts.bank import keep
from atoll.methods.parts.buffers import form, mean_buffers
from atoll.methods.parts.settings import require
from atoll.methods.parts.units import permutation_groups
from atoll.parts import Inputs
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors

__all__ = ["HeteroFL"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class HeteroFL(FedAvg):
    """Clients train sub-models as wide as they can carry.   Diao, Ding, Tarokh, ICLR 2021, Algorithm 1

    client:  w_k <- the first ceil(r_k c) of the c units of every hidden layer of w_t;
             for each batch of E epochs:  w_k <- w_k - lr grad F_k(w_k; batch)
             in training, what a hidden linear or convolutional layer gives is divided by r_k (Scaler), and the
             logits of classes that the client has no sample of are set to 0 (masked cross-entropy)
    server:  w_{t+1}[i] = w_t[i] + sum_k n_k (w_k[i] - w_t[i]) / sum_k n_k   over the clients that have coordinate i;
             what nobody has stays. A class's row of the outputs' layer is had by clients with samples of the class

    Inputs and outputs stay whole. Which axes run over the units of one layer is read off the model's graph
    (`permutation_groups`), so residual sums and concatenations go along. Clients predict with the sub-model of their
    rate, the global model is the whole one. With all rates 1 and masked=False this is FedAvg.

    Args:
        rates: shares r of the units that clients train, such as "1,0.5,0.25"; client k has the one at k modulo their
            number. The largest must be 1, or some units would never be trained.
        dynamic: whether a client's rate is drawn anew every round instead, each as likely as the others.
        masked: whether logits and rows of the outputs' layer are masked by class. Clients then tell which classes
            they have, once. For cross_entropy and models that end in a layer with a row a class; nothing happens
            elsewhere.

    Traps: the paper takes the plain mean of those that have a coordinate; here it is weighted by samples as in FedAvg,
    the same where clients have equally many. A logit set to 0, as in the authors' code, still stands in the softmax
    with exp(0) and only gets no gradient. Averaging sub-models padded with zeros shrinks the units that few clients
    have. A sub-model predicts as it was trained, divided and masked: it is another function without. Without a
    normalisation behind the divided layers gradients of narrow sub-models explode (`with_batchnorm`). BatchNorm trains
    on the statistics of the batch, as in the paper, which then estimates those for predictions anew, by a pass of the
    whole model over all clients' data (static BatchNorm). Here buffers are kept for each rate, running statistics of
    sub-models of other widths being incomparable, and averaged over the clients of that rate: no client has to run a
    model that it cannot carry, and the whole model's statistics are those of the clients with rate 1.
    """

    rates: str = "1,0.5,0.25,0.125,0.0625"
    dynamic: bool = False
    masked: bool = True

    reduction: ClassVar[Literal["mean", "each"]] = "each"
    broadcasts: ClassVar[tuple[str, ...]] = ()
    paper: ClassVar[str] = "Diao et al. 2021 (ICLR), Algorithm 1"
    cost: ClassVar[str] = "1 sub-model up, 1 down; once the classes it has up"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self, "rates", max(self.levels) == 1, "must have a 1: units that nobody trains spoil the model"
        )

    @cached_property
    def levels(self) -> tuple[float, ...]:
        """The rates as numbers."""
        rate = spec.number("rate", above=0, at_most=1)
        return tuple(spec.values(self.rates, f"{type(self).__name__}: rates =", rate))

    def rate(self, state: Record, client: int) -> float:
        """The rate of a client in this round."""
        levels = self.levels
        if self.dynamic:
            return levels[int(seeds.rng(state.seed, "rate", state.round, client).integers(len(levels)))]
        return levels[client % len(levels)]

    def programs(self) -> Mapping[str, Program]:
        return {"classes": Classes(), "personal": Personal(self)}

    # ---- server half -----------------------------------------------------------------------------------------

    def setup(self, task: Task, population: Population) -> Record:
        state = super().setup(task, population)
        groups = _groups(task.module)
        if not len(groups) and min(self.levels) < 1:
            raise ConfigError(
                f"{type(task.module).__name__} has no hidden units that a sub-model could leave out",
                hint='choose a model with hidden layers, or rates = "1"',
            )
        if min(self.levels) < 1 and not task.normalises:
            log.warning(
                "HeteroFL: at rate %g what a layer gives is made %g times as large, and %s has no normalisation "
                "behind its layers, as the paper's models have: training may diverge. Take BatchNorm "
                '(model = "mlp-bn" or "lenet-bn", atoll.models.with_batchnorm), or a lower lr',
                min(self.levels), 1 / min(self.levels), type(task.module).__name__,
            )  # fmt: skip
        models = {r: _narrowed(groups, state.params, state.buffers, r) for r in set(self.levels)}
        _try(task, models[1.0], models[min(self.levels)], population.example, min(self.levels))
        ends = {
            state.params[name].shape[axis.dim]
            for name, axes in groups.axes.items()
            for axis in axes
            if axis.role == "class" and name in state.params
        }
        classes = ends.pop() if self.masked and task.loss_name == "cross_entropy" and len(ends) == 1 else 0
        return state.replace(
            axes=groups.table(_names(state)),
            scaled=Tensors({name: torch.zeros(()) for name in _scaled_layers(task.module, groups)}),
            classes=classes,
            present=Record(),
            seed=population.seed,
            narrow=Record({str(rate): buffers for rate, (_, buffers) in models.items() if rate < 1}),
        )

    def enrol(self, state: Record, cohort: Sequence[int]) -> tuple[Sequence[int], Work] | None:
        new = [client for client in cohort if str(client) not in state.present]
        if not state.classes or not new:
            return None
        return new, Work(Record(classes=torch.zeros(state.classes)), program="classes")

    def welcome(self, state: Record, replies: Replies) -> Record:
        """Keep which classes new clients have."""
        found = {
            k: Tensors(classes=r.values["classes"])
            for k, r in zip(replies.clients, replies.each, strict=True)
        }
        return state.replace(present=keep(state.present, found))

    def broadcast(self, state: Record, cohort: Sequence[int]) -> Work:
        lr = super().broadcast(state, ()).shared.lr
        groups = Groups.of_table(state.axes, _names(state))
        rates = {k: self.rate(state, k) for k in cohort}
        made = {}
        for rate in set(rates.values()):
            params, _ = _narrowed(groups, state.params, Tensors(), rate)
            scales = state.scaled.map(lambda _, r=rate: torch.tensor(r))
            made[rate] = Record(params=params, buffers=self._buffers(state)[rate], scales=scales)
        own = {k: made[rate].replace(**self._classes(state, k)) for k, rate in rates.items()}
        forms = {k: Record(update=made[r].params, **form(made[r].buffers)) for k, r in rates.items()}
        return Work(Record(lr=lr), own, forms=forms)

    def update(self, state: Record, replies: Replies) -> Record:
        groups = Groups.of_table(state.axes, _names(state))
        parts: dict[float, list[_Part]] = {}
        alike: dict[float, list[tuple[int, Reply]]] = {}
        for client, reply in zip(replies.clients, replies.each, strict=True):
            rate = self.rate(state, client)
            classes = self._classes(state, client).get("classes")
            parts.setdefault(rate, []).append(_Part(reply.values["update"], float(reply.weight), classes))
            alike.setdefault(rate, []).append((client, reply))
        buffers = self._buffers(state)
        for rate, found in alike.items():
            buffers[rate] = mean_buffers(buffers[rate], found)
        return state.replace(
            params=Tensors({name: _combined(groups, name, old, parts) for name, old in state.params.items()}),
            buffers=buffers.pop(1.0),
            narrow=Record({str(rate): values for rate, values in buffers.items()}),
            round=state.round + 1,
        )

    @staticmethod
    def _buffers(state: Record) -> dict[float, Tensors]:
        """The buffers of each rate."""
        return {1.0: state.buffers, **{float(rate): values for rate, values in state.narrow.items()}}

    @staticmethod
    def _classes(state: Record, client: int) -> dict[str, Tensor]:
        """Which classes a client has [classes], 1 or 0; of one that was not asked yet, all."""
        if not state.classes:
            return {}
        known = state.present.get(str(client))
        return {"classes": torch.ones(state.classes) if known is None else known["classes"]}

    # ---- client half -----------------------------------------------------------------------------------------

    def gradient(self, task: Task, local: Record, batch: Batch) -> tuple[Tensors, Record]:
        received = local.received
        with scaled(task, received.scales), masked(task, received.get("classes"), batch.targets):
            return super().gradient(task, local, batch)


class Classes(Program):
    """Tells which classes a client has training samples of [classes], 1 or 0."""

    @property
    def reads(self) -> tuple[str, ...]:
        return ("train",)

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        if data.train is None:  # no samples, no classes
            return Record(classes=torch.zeros_like(received.classes))
        labels = torch.arange(len(received.classes), device=received.classes.device)
        hits = (data.train.targets.unsqueeze(-1) == labels).to(received.classes.dtype)
        hits = hits.reshape(len(data.train.mask), -1, len(labels)).amax(1)
        return Record(classes=(hits * data.train.mask.to(hits.dtype).unsqueeze(-1)).amax(0))

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        return Reply(local, torch.ones_like(data.count), Record()), Record()


@dataclass(frozen=True)
class Personal(Evaluate):
    """Judges the sub-model of the client's rate on its test data, as it was trained: scaled and masked."""

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        return Record(received=received, memory=memory)

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        assert data.test is not None
        received = local.received
        with scaled(task, received.scales), masked(task, received.get("classes"), data.test.targets):
            totals = task.totals(received.params, received.buffers, data.test)
        return Reply(Record(), totals.count, totals), local.memory


# --- the client's network -------------------------------------------------------------------------------------------


@contextmanager
def scaled(task: Task, scales: Tensors) -> Iterator[None]:
    """Inside, what the layers of these names give is divided by their scale (Scaler)."""

    def divided(scale: Tensor) -> Any:
        return lambda layer, args, output: output / scale.to(output.dtype)

    with ExitStack() as hooks:
        for name, scale in scales.items():
            handle = task.module.get_submodule(name).register_forward_hook(divided(scale))
            hooks.callback(handle.remove)
        yield


@contextmanager
def masked(task: Task, classes: Tensor | None, targets: Tensor) -> Iterator[None]:
    """Inside, logits of classes [classes] that are 0 there are 0. The classes' axis is the one that targets lack."""

    def mask(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        assert classes is not None
        there = classes > 0
        if output.shape[:-1] != targets.shape:  # [b, classes, ...]
            there = there.reshape(-1, *[1] * (output.ndim - 2))
        return torch.where(there, output, torch.zeros_like(output))

    if classes is None:
        yield
        return
    handle = task.module.register_forward_hook(mask)
    try:
        yield
    finally:
        handle.remove()


def _scaled_layers(module: nn.Module, groups: Groups) -> list[str]:
    """Layers that make hidden units."""
    parameters = dict(module.named_parameters())
    makers = {
        id(parameters[name])
        for name, axes in groups.axes.items()
        if name in parameters and any(axis.role == "out" for axis in axes)
    }
    return [
        name
        for name, layer in module.named_modules()
        if name and any(id(own) in makers for own in layer.parameters(recurse=False))
    ]


# --- cutting and putting together -----------------------------------------------------------------------------------


class _Part(NamedTuple):
    """How far a client moved, its weight, and which classes it has."""

    update: Tensors
    weight: float
    classes: Tensor | None


def _names(state: Record) -> list[str]:
    """All tensors of the model, in an order of their own."""
    return sorted([*state.params, *state.buffers])


def _groups(module: nn.Module) -> Groups:
    try:
        return permutation_groups(module)
    except ConfigError as error:
        raise ConfigError(
            f"HeteroFL cannot tell the hidden units of {type(module).__name__} apart: {error.message}",
            hint="choose a model of linear and convolutional layers that torch.fx can trace",
        ) from error


def _first(groups: Groups, rate: float) -> dict[int, Tensor]:
    """The units of a sub-model, for each group."""
    return {g: torch.arange(ceil(rate * size)) for g, size in enumerate(groups.sizes)}


def _narrowed(groups: Groups, params: Tensors, buffers: Tensors, rate: float) -> Model:
    """The sub-model of a rate."""
    units = _first(groups, rate)

    def cut(tensors: Tensors) -> Tensors:
        result = Tensors(tensors)
        for name in groups.axes.keys() & tensors.keys():
            for axis in groups.axes[name]:
                places = groups.places(axis, units, groups.sizes).to(tensors[name].device)
                result[name] = result[name].index_select(axis.dim, places)
        return result

    return cut(params), cut(buffers)


def _try(task: Task, whole: Model, narrow: Model, example: Inputs | None, rate: float) -> None:
    """Run a sub-model once.  Raises ConfigError where a layer insists on its size."""
    if example is None:
        return
    kind = type(task.module).__name__
    hint = (
        "linear and convolutional layers and BatchNorm can be narrower; GroupNorm, LayerNorm, recurrent layers, "
        "depthwise convolutions and reshapes to fixed sizes cannot"
    )
    try:
        with torch.no_grad():
            outputs, wanted = task.predict(*narrow, example)[0], task.predict(*whole, example)[0]
    except Exception as error:
        raise ConfigError(
            f"{kind} does not run with {rate:g} of its hidden units: {str(error).splitlines()[0]}", hint=hint
        ) from error
    if outputs.shape != wanted.shape:
        raise ConfigError(f"{kind} has other outputs with {rate:g} of its hidden units", hint=hint)


def _combined(groups: Groups, name: str, old: Tensor, parts: Mapping[float, Sequence[_Part]]) -> Tensor:
    """The new values of one parameter: every coordinate moves by the mean of those that have it."""
    kind = torch.promote_types(old.dtype, torch.float32)
    ends = next((axis.dim for axis in groups.axes.get(name, ()) if axis.role == "class"), None)
    total, weight = torch.zeros_like(old, dtype=kind), torch.zeros_like(old, dtype=kind)
    for rate, alike in parts.items():
        moved = torch.zeros_like(alike[0].update[name], dtype=kind)
        weights = moved.clone()
        for part in alike:
            has = torch.ones_like(moved)
            if ends is not None and part.classes is not None:
                has = has * part.classes.to(has).reshape([-1 if d == ends else 1 for d in range(has.ndim)])
            moved.add_(part.update[name].to(kind) * has, alpha=part.weight)
            weights.add_(has, alpha=part.weight)
        units = _first(groups, rate)
        total += groups.move(name, moved, units, groups.sizes)
        weight += groups.move(name, weights, units, groups.sizes)
    known = weight > 0
    return (old + torch.where(known, total / torch.where(known, weight, 1.0), 0.0)).to(old.dtype)
