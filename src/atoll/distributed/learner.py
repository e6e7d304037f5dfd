"""One worker's part of the training of one model: what every strategy gives, and the usual form of it."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from atoll.calling import arguments
from atoll.data import Samples
from atoll.distributed.links import Links
from atoll.distributed.reading import Share
from atoll.errors import ConfigError
from atoll.optimizers import Optimizer
from atoll.task import Task
from atoll.tensors import Record, Tensors

__all__ = ["Context", "Learner", "Replica", "objective"]


@dataclass
class Context:
    """Where a learner is, and what it learns.

    `links` joins all workers; `beside` those that hold other copies of what this one holds (the same ones, unless
    several workers hold one model together), among which batches are divided; `within` those that hold one model with
    this one and read the same samples, None where it has a model of its own.
    """

    task: Task
    data: Samples
    device: torch.device
    optimizer: Optimizer
    links: Links
    beside: Links
    seed: int = 0
    clip: float | None = None
    accumulate: int = 1
    precision: torch.dtype | None = None
    within: Links | None = None

    def cast(self) -> AbstractContextManager[Any]:
        """Inside, operations that can compute in the run's precision do."""
        if self.precision is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.precision)


class Learner(ABC):
    """What a strategy makes of a worker. All workers of a run call the same functions in the same order.

    `waits`: what it sends it sends by `Links`, and does nothing meanwhile, so that the time is known.
    """

    waits: ClassVar[bool] = True

    @abstractmethod
    def step(self, number: int, share: Share, lr: float) -> Tensor:
        """One step, counted from 0; what this worker's samples add to the mean loss of the step."""

    @abstractmethod
    def whole(self) -> Record | None:
        """The model as it is now, at the first worker: `params`, `buffers`, `optimizer` (its state, named alike), and
        `own`, what each worker has besides; the tensors are nobody else's. None elsewhere.
        """

    @abstractmethod
    def take(self, whole: Record) -> None:
        """Go on from what `whole` gave, also where there were more workers or fewer."""

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Nothing more will be asked."""

    def figures(self) -> dict[str, float]:
        """Further figures of this worker since it began."""
        return {}


def objective(context: Context, forward: Any, module: nn.Module, rows: Any, count: int) -> Tensor:
    """The sum of the losses of these samples, divided by `count`. Without rows: 0, with a gradient of zeros."""
    samples = context.data.take(rows if len(rows) else np.zeros(1, np.int64))
    inputs, targets = samples.inputs.to(context.device), samples.targets.to(context.device)
    places, names = arguments(module, inputs)
    with context.cast():
        losses = context.task.losses(forward(*places, **names), targets)
    return losses.float().sum() / count if len(rows) else losses.float().sum() * 0.0


class Replica(Learner):
    """A worker with the whole model. What strategies have of their own is between the gradient and the step.

    Parameters, and gradients likewise, lie one after the other in one tensor, [n] with n padded to a multiple of the
    workers, so that they are summed, cut and stepped at once. Workers divide each batch; what each adds is the sum over
    its samples divided by all samples of the batch, so that uneven parts count for what they are.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.module = copy.deepcopy(context.task.module).to(context.device).train()
        self.module.zero_grad()
        self.names = [(name, p) for name, p in self.module.named_parameters() if p.requires_grad]
        kinds = {p.dtype for _, p in self.names}
        if len(kinds) > 1:
            raise ConfigError(
                f"the model's parameters are {' and '.join(sorted(map(str, kinds)))}, and this strategy needs one type",
                hint='convert the module, or take strategy = "fsdp"',
            )
        size = sum(p.numel() for _, p in self.names)
        width = context.beside.size
        self.size = size
        self.params = torch.zeros(-(-size // width) * width, dtype=kinds.pop(), device=context.device)
        self.grads = torch.zeros_like(self.params)
        self._lay()
        self.state = context.optimizer.init(Tensors(all=self.held(self.params)))
        self.forward: Any = self.module

    def _lay(self) -> None:
        """Have the module's parameters and gradients lie in the two tensors."""
        at = 0
        with torch.no_grad():
            for _, p in self.names:
                part = slice(at, at + p.numel())
                self.params[part] = p.reshape(-1)
                p.data = self.params[part].view_as(p)
                p.grad = self.grads[part].view_as(p)
                at += p.numel()

    # --- a step -------------------------------------------------------------------------------------------------

    def step(self, number: int, share: Share, lr: float) -> Tensor:
        self.grads.zero_()
        loss = self.backward(share)
        with torch.no_grad():
            self.exchange(number)
            self.limit()
            self.advance(lr)
        return loss

    def backward(self, share: Share) -> Tensor:
        """Add this worker's part of the gradient to `grads`, in so many goes as are accumulated."""
        goes = np.array_split(share.rows, self.context.accumulate)
        total = torch.zeros((), device=self.context.device)
        for at, rows in enumerate(goes):
            with self.quiet() if at < len(goes) - 1 else nullcontext():
                loss = objective(self.context, self.forward, self.module, rows, share.count)
                self.pull(loss)
            total += loss.detach()
        return total

    def pull(self, loss: Tensor) -> None:
        """The backward pass."""
        loss.backward()  # type: ignore[no-untyped-call]

    def quiet(self) -> AbstractContextManager[Any]:
        """Inside, a backward pass sends nothing."""
        return nullcontext()

    def exchange(self, number: int) -> None:
        """Make of this worker's part the gradient of the batch."""

    def held(self, whole: Tensor) -> Tensor:
        """The part of a tensor like `params` that this worker steps."""
        return whole

    def squares(self) -> Tensor:
        """The squared norm of the gradient."""
        return self.held(self.grads).float().square().sum()

    def limit(self) -> None:
        """Shorten the gradient where there is a bound on its norm."""
        if self.context.clip is not None:
            norm = self.squares().sqrt()
            self.held(self.grads).mul_(self.context.clip / norm.clamp(min=self.context.clip))

    def advance(self, lr: float) -> None:
        """The optimiser's step, in place."""
        params, grads = self.held(self.params), self.held(self.grads)
        new, self.state = self.context.optimizer.at_once(
            Tensors(all=grads), self.state, Tensors(all=params), lr, own=True
        )
        if new["all"].data_ptr() != params.data_ptr():
            params.copy_(new["all"])

    # --- all of it ----------------------------------------------------------------------------------------------

    def named(self, flat: Tensor) -> Tensors:
        """A copy of a tensor like `params`, as named tensors."""
        at, found = 0, {}
        for name, p in self.names:
            found[name] = flat[at : at + p.numel()].detach().clone().view(p.shape)
            at += p.numel()
        return Tensors(found)

    def flat(self, named: Tensors, into: Tensor) -> None:
        """Named tensors, back into a tensor like `params`."""
        at = 0
        for name, p in self.names:
            into[at : at + p.numel()] = named[name].reshape(-1)
            at += p.numel()

    def filled(self, part: Tensor) -> Tensor:
        """The whole of what workers hold parts of."""
        return part

    def own(self) -> Record:
        """What this worker has besides the model and the optimiser's state."""
        return Record()

    def take_own(self, own: Record) -> None:
        """Go on with it."""

    def agreed(self) -> tuple[Tensor, Record]:
        """What all workers have in common: a tensor like `params`, and the state of what moves it; all call it."""
        filled = {
            name: Tensors(all=self.filled(value["all"])) if isinstance(value, Tensors) else value
            for name, value in self.state.items()
        }
        return self.params, Record(filled)

    def whole(self) -> Record | None:
        with torch.no_grad():
            params, state = self.agreed()
            own = self.own()
            collected = self.context.links.collected(own) if own else []
            if self.context.links.rank:
                return None
            return Record(
                params=self.named(params),
                buffers=Tensors({name: b.detach().clone() for name, b in self.module.named_buffers()}),
                optimizer=Record(
                    {
                        name: self.named(value["all"]) if isinstance(value, Tensors) else value.clone()
                        for name, value in state.items()
                    }
                ),
                own=Record({str(rank): each for rank, each in enumerate(collected)}),
            )

    def take(self, whole: Record) -> None:
        with torch.no_grad():
            self.flat(whole.params, self.params)
            room = torch.zeros_like(self.params)
            state: dict[str, Any] = {}
            for name, value in whole.optimizer.items():
                if isinstance(value, Tensors):
                    self.flat(value, room)
                    state[name] = Tensors(all=self.held(room).clone())
                else:
                    state[name] = value.to(self.context.device)
            self.state = Record(state)
            for name, b in self.module.named_buffers():
                b.copy_(whole.buffers[name])
            rank = str(self.context.links.rank)
            if rank in whole.own:
                self.take_own(whole.own[rank])
