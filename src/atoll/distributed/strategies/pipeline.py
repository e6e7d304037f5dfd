"""Pipeline parallel training: each worker has some of the layers, and batches go through them in small parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from atoll import spec
from atoll.distributed.learner import Context, Learner
from atoll.distributed.piped import Piped
from atoll.distributed.strategy import Strategy
from atoll.errors import ConfigError
from atoll.task import Task

__all__ = ["Pipeline"]

_SCHEDULES = ("gpipe", "1f1b", "interleaved")


@dataclass(frozen=True)
class Pipeline(Strategy):
    """Stages of layers, one worker each; of each batch `micro` parts go through them one after the other.

    gpipe: all forward, then all backward (Huang et al., NeurIPS 2019). 1f1b: a part's backward as soon as it can be, so
    that a worker keeps `stages` parts at most (Narayanan et al., SOSP 2019). interleaved: each worker has `chunks`
    stages, far from each other (Narayanan et al., SC 2021). In a share of

        (S - 1) / (v M + S - 1),   S workers, M parts, v stages a worker

    of a step a worker waits for others. The model must be a chain of layers (`staging.chain`), cut so that the
    costliest stage costs least. Layers that normalise over a batch do so over a part of it. More workers than `stages`
    have further copies of the model.

    Args:
        micro: parts of a batch, 2 `stages` if it is None.
        cuts: the layers with which the second and later stages begin; None to have them found.
    """

    name: ClassVar[str] = "pipeline"
    apart: ClassVar[bool] = True
    says: ClassVar[str] = "layers in stages, one worker each; a batch goes through them in M parts"
    takes: ClassVar[tuple[spec.Parameter, ...]] = (
        spec.whole("stages", at_least=2),
        spec.whole("micro", optional=True, at_least=1),
        spec.Parameter(
            "schedule", " or ".join(_SCHEDULES), {each: each for each in _SCHEDULES}.__getitem__, True
        ),
        spec.whole("chunks", optional=True, at_least=2),
    )

    stages: int = 2
    micro: int | None = None
    schedule: str = "1f1b"
    chunks: int | None = None
    cuts: tuple[str, ...] | None = None

    @property
    def degree(self) -> int:
        return self.stages

    @property
    def parts(self) -> int:
        """Parts of a batch."""
        return self.micro or 2 * self.stages

    @property
    def each(self) -> int:
        """Stages of a worker."""
        return self.chunks or 2 if self.schedule == "interleaved" else 1

    @property
    def bubble(self) -> float:
        """The share of a step in which a worker waits for others, were all stages equal."""
        return (self.stages - 1) / (self.each * self.parts + self.stages - 1)

    @property
    def text(self) -> str:
        found = f"{self.name}:{self.stages},{self.parts},{self.schedule}"
        return found if self.chunks is None else f"{found},{self.chunks}"

    def check(self, workers: int, task: Task, batch: int) -> None:
        super().check(workers, task, batch)
        place = f"strategy = {self.text!r}"
        if batch // (workers // self.stages) < self.parts:
            raise ConfigError(
                f"{place}: a batch of {batch} samples for {workers // self.stages} copies of the model has no"
                f" {self.parts} parts",
                hint="take a larger batch, or fewer parts",
            )
        if self.schedule == "1f1b" and self.parts < self.stages:
            raise ConfigError(
                f"{place}: {self.parts} parts cannot fill {self.stages} stages",
                hint=f"take {self.stages} parts or more",
            )
        if self.schedule == "interleaved" and self.parts % self.stages:
            raise ConfigError(
                f"{place}: {self.parts} parts, and stages that take turns need a multiple of {self.stages}",
                hint=f"take {-(-self.parts // self.stages) * self.stages} parts",
            )
        if self.chunks is not None and self.schedule != "interleaved":
            raise ConfigError(f"{place}: chunks are for interleaved", hint="leave them out")

    def learner(self, context: Context) -> Learner:
        return Piped(context, self)
