"""Workers that train by themselves and meet now and then: local SGD, and DiLoCo, which is FedOpt among workers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from atoll import compress, spec
from atoll.distributed.learner import Context, Learner, Replica
from atoll.distributed.packed import packed_sum
from atoll.distributed.reading import Share
from atoll.distributed.strategy import Strategy
from atoll.errors import ConfigError
from atoll.optimizers import SGD, Optimizer
from atoll.task import Task
from atoll.tensors import Record, Tensors

__all__ = ["DiLoCo", "LocalSGD"]


@dataclass(frozen=True)
class _Meeting(Strategy):
    """Local steps, and every `every` of them a step of the outer optimiser along the mean of what workers moved."""

    every: int = 50

    local: ClassVar[bool] = True

    @property
    def grain(self) -> int:
        return self.every

    def outer(self) -> tuple[Optimizer, float]:
        """The outer optimiser, and its step size."""
        raise NotImplementedError

    @property
    def synchronous(self) -> int:
        """So many first steps are taken together."""
        return 0

    @property
    def streams(self) -> tuple[int, int, float]:
        """Fragments that meet in turn, steps that a meeting takes meanwhile, and what the local value counts for."""
        return 1, 0, 0.0

    @property
    def packing(self) -> compress.Codec | None:
        """What makes the moves smaller on their way."""
        return None

    def learner(self, context: Context) -> Learner:
        return _Learner(context, self)


@dataclass(frozen=True)
class DiLoCo(_Meeting):
    """Many inner steps, then one outer step with Nesterov momentum.   Douillard et al. 2023, Algorithm 1

    worker:  w_k <- w;  `every` steps of the run's optimiser on samples of its own;  D_k = w_k - w
    all:     w <- outer(w, gradient = -sum_k (n_k / n) D_k, lr)

    The outer step is FedOpt's (Reddi et al., ICLR 2021) by the same optimiser object, with everybody present; inner
    states stay from one meeting to the next. With every = 1, plain inner SGD of step size a, lr = 1 and momentum = 0 a
    step is DDP's. `every` times less is sent than by DDP.

    With `fragments` the parameters meet in so many parts, in turn, `every` steps apart each, and a meeting may take
    `overlap` steps, during which workers go on: then w_k <- mix w_k + (1 - mix) w.   Douillard et al. 2025,
    "Streaming DiLoCo"

    Args:
        every: H, local steps between two meetings.
        lr: of the outer step.
        momentum: of the outer step.
        fragments: parts that meet in turn.
        overlap: steps that a meeting takes.
        mix: what the local value counts for where a meeting took steps.
        codec: what makes the moves smaller on their way ("int4", "bf16"; see `atoll.compress`).
    """

    lr: float = 0.7
    momentum: float = 0.9
    fragments: int = 1
    overlap: int = 0
    mix: float = 0.5
    codec: str | None = None

    name: ClassVar[str] = "diloco"
    says: ClassVar[str] = "many local steps, then an outer step with Nesterov momentum along their mean"
    takes: ClassVar[tuple[spec.Parameter, ...]] = (
        spec.whole("every", optional=True, at_least=1),
        spec.number("lr", optional=True, above=0, below=math.inf),
        spec.number("momentum", optional=True, at_least=0, below=1),
        spec.whole("fragments", optional=True, at_least=1),
        spec.whole("overlap", optional=True, at_least=0),
        spec.number("mix", optional=True, at_least=0, at_most=1),
        spec.word("codec", optional=True),
    )

    def __post_init__(self) -> None:
        if self.codec is not None:
            compress.parse(self.codec)

    @property
    def text(self) -> str:
        usual = DiLoCo()
        more = ("lr", "momentum", "fragments", "overlap", "mix")
        given = [f"{key}={getattr(self, key):g}" for key in more if getattr(self, key) != getattr(usual, key)]
        given += [] if self.codec is None else [f"codec={self.codec}"]
        return f"diloco:{','.join([str(self.every), *given])}"

    @property
    def packing(self) -> compress.Codec | None:
        return None if self.codec is None else compress.parse(self.codec)

    @property
    def streams(self) -> tuple[int, int, float]:
        return self.fragments, self.overlap, self.mix if self.overlap else 0.0

    def outer(self) -> tuple[Optimizer, float]:
        return SGD(self.momentum, nesterov=self.momentum > 0), self.lr

    def check(self, workers: int, task: Task, batch: int) -> None:
        super().check(workers, task, batch)
        if self.overlap >= self.every:
            raise ConfigError(
                f"strategy = {self.text!r}: a meeting takes {self.overlap} steps, the next comes after {self.every}",
                hint="let overlap be below every",
            )
        if self.codec is not None and self.overlap:
            raise ConfigError(
                f"strategy = {self.text!r}: what a codec packs is sent at once",
                hint="leave overlap or codec out",
            )
        if self.fragments > self.every:
            raise ConfigError(
                f"strategy = {self.text!r}: {self.fragments} fragments meet in turn within {self.every} steps",
                hint="let fragments be at most every",
            )


@dataclass(frozen=True)
class LocalSGD(_Meeting):
    """Many local steps, then the mean of the models.   Stich, ICLR 2019;  FedAvg with everybody present

    The first `after` steps are taken together, as by DDP (post-local SGD, Lin et al., ICLR 2020).

    Args:
        every: H, local steps between two meetings.
        after: steps taken together before that.
    """

    every: int = 8
    after: int = 0

    name: ClassVar[str] = "local"
    says: ClassVar[str] = "many local steps, then the mean of the models"
    takes: ClassVar[tuple[spec.Parameter, ...]] = (
        spec.whole("every", optional=True, at_least=1),
        spec.whole("after", optional=True, at_least=0),
    )

    @property
    def text(self) -> str:
        return f"local:{self.every},{self.after}" if self.after else f"local:{self.every}"

    @property
    def synchronous(self) -> int:
        return self.after

    def outer(self) -> tuple[Optimizer, float]:
        return SGD(), 1.0


class _Learner(Replica):
    """`params` are this worker's own; `model` what all agree on, which the outer optimiser moves."""

    def __init__(self, context: Context, strategy: _Meeting) -> None:
        super().__init__(context)
        self.every, self.synchronous = strategy.every, strategy.synchronous
        self.solver, self.lr = strategy.outer()
        fragments, self.overlap, self.mix = strategy.streams
        self.parts = self._cut(fragments)
        self.codec = strategy.packing
        self.model = self.params.clone()
        self.outer = [self.solver.init(Tensors(all=self.model[part])) for part in self.parts]
        self.samples = [0] * fragments
        self.underway: dict[int, tuple[int, Tensor, Any]] = {}
        """Fragment -> the step in which its meeting is over, the sum of what workers moved, and who sums."""

    def _cut(self, fragments: int) -> list[slice]:
        """The parameters in parts of whole tensors, of about one size."""
        if fragments == 1:
            return [slice(0, len(self.params))]
        ends = torch.tensor([p.numel() for _, p in self.names]).cumsum(0)
        if fragments > len(ends):
            raise ConfigError(
                f"the model has {len(ends)} tensors, and {fragments} fragments are to have one each at least",
                hint="take fewer fragments",
            )
        cuts = [0]
        for at in range(1, fragments):
            wanted = int((ends - at * int(ends[-1]) / fragments).abs().argmin())
            low, high = len(cuts) - 1, len(ends) - 1 - (fragments - at)  # every fragment has a tensor
            cuts.append(int(ends[min(max(wanted, low), high)]))
        cuts = [max(cut, cuts[at - 1]) if at else cut for at, cut in enumerate(cuts)]
        return [slice(a, b) for a, b in zip(cuts, [*cuts[1:], len(self.params)], strict=True)]

    # --- steps --------------------------------------------------------------------------------------------------

    def step(self, number: int, share: Share, lr: float) -> Tensor:
        together = number < self.synchronous
        mine = len(share.rows)
        self.samples = [count + mine for count in self.samples]
        loss = super().step(number, share if together else Share(share.rows, max(1, mine)), lr)
        with torch.no_grad():
            if together:
                self.model.copy_(self.params)
                self.samples = [0] * len(self.parts)
                return loss
            for fragment, (due, _, _) in list(self.underway.items()):
                if number + 1 == due:
                    self._end(fragment)
            for fragment in range(len(self.parts)):
                if (number + 1 + fragment * self.every // len(self.parts)) % self.every == 0:
                    self._begin(fragment, number + 1)
        return loss * (mine / share.count)

    def exchange(self, number: int) -> None:
        if number < self.synchronous:
            self.context.links.sum(self.grads)

    def _begin(self, fragment: int, now: int) -> None:
        """Send what this worker has moved a fragment since its last meeting, weighed by the samples that it read."""
        part, weight = self.parts[fragment], float(self.samples[fragment])
        self.samples[fragment] = 0
        moved = torch.empty(part.stop - part.start + 1, dtype=self.params.dtype, device=self.params.device)
        torch.sub(self.params[part], self.model[part], out=moved[:-1])
        moved[:-1] *= weight
        moved[-1] = weight
        links = self.context.links
        if self.codec is not None:
            shapes = [(part.stop - part.start,)]
            total, _ = packed_sum(moved[:-1], shapes, self.codec, links, self.context.seed, now)
            self.underway[fragment] = now, torch.cat([total, links.sum(moved[-1:])]), None
            self._end(fragment)
            return
        if not self.overlap:
            self.underway[fragment] = now, links.sum(moved), None
            self._end(fragment)
            return
        with links.counted(2 * (links.size - 1) / links.size * moved.numel() * moved.element_size()):
            work = dist.all_reduce(moved, group=links.group, async_op=True)
        self.underway[fragment] = now + self.overlap, moved, work

    def _end(self, fragment: int) -> None:
        """The outer step on a fragment, from which this worker goes on."""
        _, moved, work = self.underway.pop(fragment)
        if work is not None:
            with self.context.links.counted(0):
                work.wait()
        part = self.parts[fragment]
        mean = moved[:-1] / moved[-1].clamp(min=1)
        new, self.outer[fragment] = self.solver.update(
            Tensors(all=-mean), self.outer[fragment], Tensors(all=self.model[part]), self.lr
        )
        self.model[part] = new["all"]
        own = self.params[part]
        own.copy_(new["all"] if not self.mix else own * self.mix + new["all"] * (1 - self.mix))

    # --- all of it ----------------------------------------------------------------------------------------------

    def own(self) -> Record:
        """This worker's own parameters and inner state, and the meetings that are under way."""
        underway = {}
        for fragment, (due, moved, work) in self.underway.items():
            if work is not None:
                work.wait()
                self.underway[fragment] = due, moved, None
            underway[str(fragment)] = Record(due=due, moved=moved.clone())
        return Record(
            params=self.params.clone(),
            inner=Record(
                {
                    name: value["all"].clone() if isinstance(value, Tensors) else value.clone()
                    for name, value in self.state.items()
                }
            ),
            samples=torch.tensor(self.samples),
            underway=Record(underway),
        )

    def take_own(self, own: Record) -> None:
        self.params.copy_(own.params)
        self.state = Record(
            {
                name: Tensors(all=own.inner[name].clone())
                if isinstance(value, Tensors)
                else own.inner[name].clone()
                for name, value in self.state.items()
            }
        )
        self.samples = own.samples.tolist()
        self.underway = {
            int(fragment): (each.due, each.moved.clone(), None) for fragment, each in own.underway.items()
        }

    def agreed(self) -> tuple[Tensor, Record]:
        """The model, and the outer optimiser's state."""
        state: dict[str, Any] = {}
        for name in self.outer[0]:
            joined = torch.zeros_like(self.params)
            for part, each in zip(self.parts, self.outer, strict=True):
                joined[part] = each[name]["all"]
            state[name] = Tensors(all=joined)
        return self.model, Record(state)

    def take(self, whole: Record) -> None:
        with torch.no_grad():
            self.flat(whole.params, self.model)
            self.params.copy_(self.model)
            room = torch.zeros_like(self.params)
            for name, value in whole.optimizer.items():
                self.flat(value, room)
                for at, part in enumerate(self.parts):
                    self.outer[at] = self.outer[at].replace(**{name: Tensors(all=room[part].clone())})
            for name, b in self.module.named_buffers():
                b.copy_(whole.buffers[name])
            rank = str(self.context.links.rank)
            if rank in whole.own and len(whole.own) == self.context.links.size:
                self.take_own(whole.own[rank])
