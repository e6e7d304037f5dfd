"""One worker's stages of a pipeline, played by torch's schedules."""

from __future__ import annotations

import copy
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B

from atoll import seeds
from atoll.distributed.learner import Context, Learner
from atoll.distributed.reading import Share
from atoll.distributed.staging import Layer, chain, cut_at, divided
from atoll.errors import ConfigError
from atoll.tensors import Record, Tensors, map_leaves

if TYPE_CHECKING:
    from atoll.distributed.strategies.pipeline import Pipeline

__all__ = ["Piped"]


class _Stage(nn.Module):
    """Layers, one after the other."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, value: Any) -> Any:
        for layer in self.layers:
            value = layer(value)
        return value.contiguous() if isinstance(value, Tensor) else value


class Piped(Learner):
    """A worker with some of the layers: the ones of every `strategy.stages`-th stage, beginning with its own number."""

    waits = False

    def __init__(self, context: Context, strategy: Pipeline) -> None:
        assert context.within is not None
        self.context, self.strategy, self.links = context, strategy, context.within
        whole = copy.deepcopy(context.task.module).to(context.device)
        stages = self._stages(whole)
        self.modules = {
            at: _Stage([layer.module for layer in stages[at]]).train()
            for at in range(self.links.rank, len(stages), strategy.stages)
        }
        """This worker's stages, by their number."""
        self.edges = [(stage[-1].shape, stage[-1].dtype) for stage in stages]
        self.count = len(stages)
        held = nn.ModuleList(self.modules.values())
        ours = {id(each) for each in [*held.parameters(), *held.buffers()]}
        self.params = {n: p for n, p in whole.named_parameters() if id(p) in ours and p.requires_grad}
        self.buffers = {n: b for n, b in whole.named_buffers() if id(b) in ours}
        self.state = context.optimizer.init(self._now())
        self.schedules: dict[int, Any] = {}
        self._at: dict[str, Tensor] = {}

    def _stages(self, module: nn.Module) -> list[list[Layer]]:
        """Everybody's layers, the same at every worker.  Raises ConfigError."""
        context, strategy = self.context, self.strategy
        inputs = context.data.take(np.zeros(2, np.int64)).inputs
        if not isinstance(inputs, Tensor):
            raise ConfigError(
                "a pipeline's first stage takes one tensor, and the data have several parts",
                hint='take another strategy: "fsdp" takes any model',
            )
        with context.cast():
            layers = chain(module, inputs.to(context.device))
        count = strategy.stages * strategy.each
        stages = divided(layers, count) if strategy.cuts is None else cut_at(layers, count, strategy.cuts)
        places: dict[int, set[int]] = {}
        for at, stage in enumerate(stages):
            for layer in stage:
                for p in layer.module.parameters():
                    places.setdefault(id(p), set()).add(at)
        for name, p in module.named_parameters():
            found = places.get(id(p), set())
            if len(found) != 1:
                why = "is used in several stages" if found else "takes no part in a forward pass"
                raise ConfigError(f"{name} {why}", hint='take another strategy: "fsdp" takes any model')
        return stages

    # --- a step -------------------------------------------------------------------------------------------------

    def step(self, number: int, share: Share, lr: float) -> Tensor:
        self._draw(number)
        for p in self.params.values():
            p.grad = None
        total = torch.zeros((), device=self.context.device)
        for rows in np.array_split(share.rows, self.context.accumulate):
            total += self._gone_through(rows, share.count)
        with torch.no_grad():
            grads = self._exchanged()
            if self.context.clip is not None:
                norm = self.links.sum(grads.flat().float().square().sum()).sqrt()
                grads = grads * (self.context.clip / norm.clamp(min=self.context.clip))
            now = self._now()
            new, self.state = self.context.optimizer.at_once(grads, self.state, now, lr, own=True)
            for name, value in now.items():
                if new[name].data_ptr() != value.data_ptr():
                    value.copy_(new[name])
        return total

    def _draw(self, number: int) -> None:
        """Stages have draws of their own: with the same ones their dropouts would be alike."""
        torch.manual_seed(seeds.address(self.context.seed, "train.stage", number, self.context.links.rank))

    def _gone_through(self, rows: Any, count: int) -> Tensor:
        """Add to the gradient what these samples do; their losses' sum divided by `count`, at the last stage.

        All parts have as many samples: what is missing is made up for by samples that do not count.
        """
        size = max(1, -(-len(rows) // self.strategy.parts))
        missing = size * self.strategy.parts - len(rows)
        filled = np.concatenate([rows, np.resize(rows if len(rows) else np.zeros(1, np.int64), missing)])
        given: list[Tensor] = []
        device, losses = self.context.device, list[Tensor]()
        if 0 in self.modules:
            given = [self.context.data.take(filled).inputs.to(device)]  # type: ignore[list-item]
        if self.count - 1 in self.modules:
            weights = torch.zeros(len(filled), device=device)
            weights[: len(rows)] = 1 / count
            self._at = {"targets": self.context.data.take(filled).targets.to(device), "weights": weights}
        schedule = self._schedule(size)
        began, computed = time.perf_counter(), time.thread_time()
        with self.context.cast():
            schedule.step(
                *given, target=torch.arange(len(filled), device=device), losses=losses, return_outputs=False
            )
        idle = time.perf_counter() - began - (time.thread_time() - computed)
        self.links.seconds += max(0.0, idle)  # what this thread did not compute it waited for
        self.links.nbytes += self.strategy.parts * size * self._sent()
        return torch.stack(losses).sum().detach() if losses else torch.zeros((), device=device)

    def _loss(self, outputs: Any, at: Tensor) -> Tensor:
        """What samples at these places add to the mean loss."""
        losses = self.context.task.losses(outputs, self._at["targets"][at])
        return (losses.float() * self._at["weights"][at]).sum()

    def _sent(self) -> int:
        """Bytes of a sample that go to the next stage, and of their gradient to the one before."""
        size = [int(np.prod(shape)) * dtype.itemsize for shape, dtype in self.edges]
        return sum(size[at] * (at < self.count - 1) + (size[at - 1] if at else 0) for at in self.modules)

    def _schedule(self, size: int) -> Any:
        """The schedule for parts of so many samples. Stages are told what they get: else they would send pickles."""
        if size in self.schedules:
            return self.schedules[size]
        sample = self.context.data.take(slice(0, 1)).inputs
        assert isinstance(sample, Tensor)

        def edge(at: int) -> Tensor:
            if at < 0:
                return sample.new_empty((size, *sample.shape[1:]), device="meta")
            shape, dtype = self.edges[at]
            return torch.empty((size, *shape), dtype=dtype, device="meta", requires_grad=True)

        stages = [
            PipelineStage(
                module, at, self.count, self.context.device, edge(at - 1), edge(at), group=self.links.group
            )
            for at, module in self.modules.items()
        ]
        given: dict[str, Any] = {"loss_fn": self._loss, "scale_grads": False}
        parts = self.strategy.parts
        match self.strategy.schedule:
            case "gpipe":
                made: Any = ScheduleGPipe(stages[0], parts, **given)
            case "1f1b":
                made = Schedule1F1B(stages[0], parts, **given)
            case _:
                made = ScheduleInterleaved1F1B(stages, parts, **given)  # type: ignore[arg-type]
        self.schedules[size] = made
        return made

    def _exchanged(self) -> Tensors:
        """This worker's gradient, summed over the copies of the model."""
        grads = Tensors(
            {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in self.params.items()}
        )
        return grads if self.context.beside.size == 1 else grads.unflat(self.context.beside.sum(grads.flat()))

    def _now(self) -> Tensors:
        return Tensors({name: p.detach() for name, p in self.params.items()})

    # --- all of it ----------------------------------------------------------------------------------------------

    def whole(self) -> Record | None:
        first = self.context.links.rank < self.strategy.stages  # of the first copy of the model
        own = Record(params=self._now(), buffers=Tensors(self.buffers), optimizer=self.state)
        own = map_leaves(lambda value: value.detach().cpu().clone(), own)
        parts = self.context.links.collected(own if first else Record())
        if self.context.links.rank:
            return None
        parts = parts[: self.strategy.stages]
        params, buffers = self.context.task.initial()

        def merged(values: list[Tensors], names: Tensors) -> Tensors:
            every = {name: value for each in values for name, value in each.items()}
            return Tensors({name: every[name] for name in names})

        state = {
            name: merged([part.optimizer[name] for part in parts], params)
            if isinstance(value, Tensors)
            else value
            for name, value in parts[0].optimizer.items()
        }
        return Record(
            params=merged([part.params for part in parts], params),
            buffers=merged([part.buffers for part in parts], buffers),
            optimizer=Record(state),
            own=Record(),
        )

    def take(self, whole: Record) -> None:
        device = self.context.device
        with torch.no_grad():
            for name, p in self.params.items():
                p.copy_(whole.params[name])
            for name, b in self.buffers.items():
                b.copy_(whole.buffers[name])
        self.state = Record(
            {
                name: Tensors({n: value[n].to(device).clone() for n in self.params})
                if isinstance(value, Tensors)
                else value.to(device).clone()
                for name, value in whole.optimizer.items()
            }
        )

    def figures(self) -> dict[str, float]:
        return {"held": float(self._now().nbytes()), "bubble": self.strategy.bubble}
