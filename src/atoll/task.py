"""What is learned: an `nn.Module`, a loss and metrics, as pure functions of named tensors for ONE client.

A module is used without its state: parameters and buffers come in, outputs and new buffers go out. Dropout, BatchNorm
and recurrent layers need help to be pure, and get it from `atoll.purity`, whatever module they sit in.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from atoll import seeds
from atoll.blocks import blocks, computed_again
from atoll.calling import alike, arguments, main
from atoll.errors import ConfigError
from atoll.gradient import grad_and_value, needs_notes
from atoll.losses import Loss
from atoll.measuring import Measuring
from atoll.metrics import NAMED, Metrics
from atoll.modules import tied, unreadable
from atoll.parts import Inputs, joined, of_tokens
from atoll.purity import Pure, Used, plainly
from atoll.sequences import class_last
from atoll.tensors import Record, Tensors
from atoll.thrift import Thrift

__all__ = ["Batch", "Task", "architecture"]


_PART = 1 << 20
"""What parts of a batch draw lies apart from what a whole one does."""


def architecture(client: int, count: int) -> int:
    """Which of `count` architectures a client has: they come in turns."""
    return client % count


class Batch(NamedTuple):
    """Samples of one client: `inputs` [b, ...], `targets` [b, ...], `mask` [b] (1 real, 0 padding), `key` (scalar).

    Inputs may have several parts (see `atoll.parts`).
    """

    inputs: Inputs
    targets: Tensor
    mask: Tensor
    key: Tensor


class Task(Measuring):
    """A module and a loss, to be trained and judged through pure functions.

    Args:
        module: any `nn.Module`. It is copied; the caller's stays as it is.
        loss: "cross_entropy" (integer targets), "bce" (binary targets, one logit), "mse", "l1", "listwise" and
            "rated" (lists of items, see `atoll.ranking`), "masked:0.15" (the cross-entropy of hidden tokens of a text,
            see `atoll.masking`), or a function
            (outputs, targets) -> per-sample losses of shape [b], which gets whatever the module gives.
        metrics: what to measure beside it: names ("auc, f1", see `atoll.metrics.NAMED`), or name -> `Metric`, or a
            function (outputs, targets) -> per-sample values [b], whose mean counts. Texts, a label a token, are
            measured by their `perplexity` in any case.
        augment: what is done to the inputs of each training batch, which may draw (see `FederatedData.augment`).
        shares: parameters that are not trained are the module's own, over the same memory, and not copies: for large
            ones, which must not change from then on; modules that are loaded share them, too.

    A module may give more than a tensor: something with a field `logits`, or a tuple that begins with the outputs. What
    predicts is that tensor; functions for the loss and metrics get all of it. Of inputs with several parts see
    `atoll.calling.arguments`.

    Trainable parameters are `params`, the module's buffers `buffers`. Parameters that are not trained
    (requires_grad=False) are in neither: they are the same everywhere, so that nobody sends or remembers them. A tensor
    shared by two layers appears once, under its first name, and stays shared.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: str | Loss = "cross_entropy",
        metrics: Metrics | None = None,
        augment: Callable[[Inputs], Inputs] | None = None,
        *,
        shares: bool = False,
    ) -> None:
        super().__init__(loss, metrics)
        kept = {id(p): p for p in module.parameters() if shares and not p.requires_grad}
        self.module = copy.deepcopy(module, kept).cpu()  # what is known is not copied
        self.augment = augment
        self.thrift = Thrift()
        self.normalises = any(
            isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in module.modules()
        )
        self._layers = [layer for layer in self.module.modules() if isinstance(layer, nn.RNNBase)]
        self.recurrent = bool(self._layers)
        self._trainable = [name for name, p in self.module.named_parameters() if p.requires_grad]
        self.frozen = Tensors(
            {name: p.detach() for name, p in self.module.named_parameters() if not p.requires_grad}
        )
        """Parameters that are not trained, in main memory: the module's own, which nobody changes."""
        self._held = {torch.device("cpu"): self.frozen}
        self._shared = frozenset(self.frozen) if shares else frozenset[str]()
        self._tied = tied(self.module)
        self.used: dict[str, int] = {}
        """When the forward uses each tensor for the last time, one that layers share for the first; see `follow`."""

    @property
    def thrift(self) -> Thrift:
        """How gradients are computed.  Setting it raises ConfigError where the module cannot be computed so."""
        return self._thrift

    @thrift.setter
    def thrift(self, thrift: Thrift) -> None:
        self._thrift, self._again = thrift, blocks(self.module) if thrift.recompute else []

    # --- the module's state -------------------------------------------------------------------------------------

    def initial(self) -> tuple[Tensors, Tensors]:
        """The module's own (params, buffers), copied."""
        params = dict(self.module.named_parameters())
        buffers = {name: b.detach().clone() for name, b in self.module.named_buffers()}
        trainable = Tensors({name: params[name].detach().clone() for name in self._trainable})
        if not trainable:
            raise ConfigError("the model has no trainable parameter", hint="is requires_grad off everywhere?")
        return trainable, Tensors(buffers)

    def hold(self, device: torch.device) -> None:
        """Keep frozen parameters on this device, too, for work that is done there."""
        if device not in self._held:
            self._held[device] = self.frozen.map(lambda value: value.to(device))

    def over(self, base: Tensors) -> Task:
        """The task with these values in the place of some of its `frozen` ones; all else is the same, and shared."""
        if not base:
            return self
        found = copy.copy(self)
        found.frozen = Tensors({**self.frozen, **base})
        device = next(iter(base.values())).device
        found._shared = self._shared - base.keys()
        found._held = {device: Tensors({**self._held.get(device, self.frozen), **base})}
        return found

    def load(self, params: Tensors, buffers: Tensors) -> nn.Module:
        """A fresh module with this state, for use outside Atoll. What is given counts before what is `frozen`.

        What is neither is as the task's own module has it: factors of adapters that a method leaves as they were drawn.
        """
        moved = {**params, **buffers}
        kept = {  # over the same memory, as `shares` says
            id(p): nn.Parameter(p.detach(), requires_grad=False)
            for name, p in self.module.named_parameters()
            if name in self._shared and name not in moved
        }
        module = copy.deepcopy(self.module, dict(kept))
        given = {name: value for name, value in self.frozen.items() if name not in self._shared} | moved
        with torch.no_grad():
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
                if name in given:
                    tensor.copy_(given[name])
        return module

    # --- pure functions -----------------------------------------------------------------------------------------

    def predict(
        self, params: Tensors, buffers: Tensors, inputs: Inputs, *, batch: Batch | None = None
    ) -> tuple[Tensor, Tensors]:
        """Outputs and new buffers. With `batch` the module is in training mode, else in evaluation mode."""
        given, buffers = self.called(params, buffers, inputs, batch)
        return main(given), buffers

    def called(
        self, params: Tensors, buffers: Tensors, inputs: Inputs, batch: Batch | None = None
    ) -> tuple[Any, Tensors]:
        """What the module gives, and new buffers. Parameters that are given count before those that are `frozen`."""
        self.module.train(batch is not None)
        state = {**params, **(buffers.map(torch.clone) if batch is not None else buffers)}
        device = next((value.device for value in params.values()), torch.device("cpu"))
        if self.frozen:
            held = self._held.get(device) or self.frozen.map(lambda value: value.to(device))
            state = {**held, **state}
        places, names = arguments(self.module, inputs)
        if self.recurrent:
            needs_notes()

        @contextmanager
        def within(draws: int) -> Iterator[Pure]:
            with Pure(batch, draws) as pure, plainly(self._layers), self.thrift.cast(device):
                yield pure

        with within(0) as pure, computed_again(self._again, lambda: pure.draws, within):
            given = {**state, **{name: state[first] for name, first in self._tied}} if self._tied else state
            # Torch's own tying leaves a layer that has two names without its parameters afterwards.
            outputs = functional_call(self.module, given, places, names, tie_weights=False)
        return outputs, Tensors({name: pure.moved.get(id(state[name]), state[name]) for name in buffers})

    def loss(self, params: Tensors, buffers: Tensors, batch: Batch) -> tuple[Tensor, Tensors]:
        """Mean training loss over the real samples of a batch, and the new buffers."""
        outputs, buffers = self.called(params, buffers, batch.inputs, batch)
        losses = self.losses(outputs, batch.targets)
        return torch.sum(losses * batch.mask) / batch.mask.sum().clamp(min=1), buffers

    def gradient(self, params: Tensors, buffers: Tensors, batch: Batch) -> tuple[Tensors, Tensor, Tensors]:
        """(gradient, loss, new buffers) of the mean training loss of a batch, whole or part by part (`thrift`)."""

        def objective(params: Tensors) -> tuple[Tensor, Tensors]:
            return self.loss(params, buffers, batch)

        goes = self.thrift.goes(len(batch.mask))
        if len(goes) <= 1:
            return grad_and_value(objective, params)
        whole, gradient, total = batch, params.zeros(), torch.zeros_like(batch.mask[0])
        count = whole.mask.sum().clamp(min=1)
        for number, rows in enumerate(goes):
            inputs, targets, mask, key = whole
            batch = Batch(inputs[rows], targets[rows], mask[rows], seeds.fold(key, _PART + number))
            found, loss, buffers = grad_and_value(objective, params)
            share = batch.mask.sum() / count
            gradient, total = gradient + found * share, total + loss * share
        return gradient, total, buffers

    def measure(self, params: Tensors, buffers: Tensors, inputs: Inputs, targets: Tensor) -> Record:
        """Per-sample loss and metrics in evaluation mode: a record of tensors [b] (see `Metric.taken`)."""
        if self.masking is not None:
            inputs, targets = self.masking(inputs, targets)
        return self._measured(self.called(params, buffers, inputs)[0], targets)

    def totals(self, params: Tensors, buffers: Tensors, batch: Batch) -> Record:
        """Of the real samples: their `count` and the sum of the loss, to be pooled, then divided once; metrics too."""
        return self.summed(self.measure(params, buffers, batch.inputs, batch.targets), batch)

    @torch.no_grad()
    def follow(self, inputs: Inputs) -> Any:
        """What the module gives for a few samples, while it is noted in which order the forward uses its tensors.

        Before that, `used` is empty, and layers come in the order in which they are defined.
        """
        params, buffers = self.initial()
        counts = Counter(id(p) for _, p in self.module.named_parameters(remove_duplicate=False))
        shared = {name for name, p in self.module.named_parameters() if counts[id(p)] > 1}
        with Used({**self.frozen, **params, **buffers}) as seen:
            outputs, _ = self.called(params, buffers, inputs)
        self.used = {name: seen.first[name] if name in shared else at for name, at in seen.last.items()}
        return outputs

    def check(self, inputs: Inputs, targets: Tensor, classes: int | None) -> None:
        """Run the model on a few samples and say clearly what does not fit.  Raises ConfigError."""
        self.initial()  # refuses a model that nothing is trained of
        try:
            given = self.follow(inputs)
        except Exception as error:
            raise unreadable(inputs, error) from error
        outputs, self._wrapped = main(given), alike(given)
        if self.masking is not None:
            self.masking(inputs, targets)  # refuses what is no text
        if self.loss_name == "cross_entropy" and targets.ndim == 2 and of_tokens(inputs):
            self.metrics.setdefault("perplexity", NAMED["perplexity"])
        if self.loss_name == "cross_entropy":
            if targets.is_floating_point():
                raise ConfigError(
                    "cross_entropy needs integer class labels, the targets are floating point",
                    hint='use loss="mse" for regression, or convert the labels to integers',
                )
            width = class_last(outputs, targets).shape[-1]
            need = max(classes or 0, int(targets.max()) + 1)
            if width < need:
                raise ConfigError(
                    f"the model has {width} outputs but the data has {need} classes",
                    hint=f"give the last layer {need} outputs"
                    + (
                        f"; if {need - 1} marks what has no label, from_arrays(x, y, ignore={need - 1}) leaves it out"
                        if targets.ndim > 1
                        else ""
                    ),
                )
        elif self.loss_name in ("mse", "l1", "bce") and outputs.numel() != targets.numel():
            raise ConfigError(
                f"the model gives outputs of shape {tuple(outputs.shape)} for targets of shape {tuple(targets.shape)}",
                hint="give the last layer as many outputs as a target has numbers",
            )
        with torch.no_grad():
            self._check_measures(given, targets)
            pair, both = joined([inputs[:1], inputs[:1]]), torch.cat([targets[:1], targets[:1]])
            self._check_rows(self.called(*self.initial(), pair)[0], both)
