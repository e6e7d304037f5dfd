"""How a training of one model by several workers is set: one schema behind keywords, TOML files and `--set`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_type_hints

from msgspec import Meta

from atoll import own, spec
from atoll.distributed.strategies import parse as strategy_named
from atoll.errors import ConfigError, suggest
from atoll.losses import LOSSES
from atoll.machine import cores
from atoll.models import MODELS
from atoll.optimizers import optimizer, schedule_factor
from atoll.origin import SUFFIXES, Origin
from atoll.schema import convert, parse, toml_line
from atoll.settings import Count, Place, Share

__all__ = ["Training"]

Whole = Annotated[int, Meta(ge=0)]


@lru_cache(maxsize=8)
def _parts(schedule: str) -> tuple[spec.Call, ...]:
    """A schedule taken apart; it is asked in every step."""
    return tuple(spec.chain(schedule, "schedule", "+"))


Above = Annotated[float, Meta(gt=0)]


@dataclass(frozen=True, kw_only=True)
class Training(Origin):
    """A training of one model by several workers, in words and numbers: what `atoll train` reads.

    Raises ConfigError where a value is out of range.
    """

    test: Annotated[
        Literal["auto"] | Share | None,
        Meta(description="share of the samples kept for the test; auto: a fifth where the data bring none"),
    ] = "auto"
    model: Annotated[
        str, Meta(description='"auto", "mlp:128,64", "cnn" ... (`atoll models`), or your own, module:Name')
    ] = "auto"
    loss: Annotated[
        str | None,
        Meta(
            description="cross_entropy, bce, mse, l1 or module:function; by default it follows from the labels"
        ),
    ] = None
    metrics: Annotated[
        str | None, Meta(description='what to measure beside the loss: "auc, f1" ..., with commas')
    ] = None
    strategy: Annotated[
        str,
        Meta(
            description='how workers train one model: "ddp", "fsdp", "tensor:2", "pipeline:2,4", "diloco:50" ...'
        ),
    ] = "ddp"
    workers: Annotated[Count | None, Meta(description="processes; by default one a core, or a GPU")] = None
    steps: Annotated[
        Count | None, Meta(description="steps of the optimiser; by default those of `epochs`")
    ] = None
    epochs: Annotated[Above, Meta(description="passes over the samples, where `steps` is not given")] = 1.0
    batch: Annotated[Count, Meta(description="samples in a step, of all workers together")] = 64
    accumulate: Annotated[
        Count, Meta(description="goes in which a worker computes its part of a batch, to save memory")
    ] = 1
    optimizer: Annotated[
        str, Meta(description='"sgd", "sgd:0.9", "nesterov:0.9,1e-4", "adam", "adamw:0.01" ...')
    ] = "sgd"
    lr: Annotated[Above, Meta(description="step size")] = 0.1
    schedule: Annotated[
        str,
        Meta(
            description='its factor, step by step: "constant", "cosine:1000", "warmup:100 + cosine:1000",'
            ' "step:300,0.1"'
        ),
    ] = "constant"
    clip: Annotated[Above | None, Meta(description="largest norm of a batch's gradient")] = None
    precision: Annotated[
        Literal["float32", "bfloat16"], Meta(description="of the operations that can be so computed")
    ] = "float32"
    shards: Annotated[
        str,
        Meta(
            description='whose samples: "shared", all read in a common order; or a partition ("iid", "dirichlet:0.3",'
            ' "natural"), which gives each worker its own'
        ),
    ] = "shared"
    shares: Annotated[
        str | None, Meta(description='workers\' parts of a batch, in proportion: "2, 1"; by default equal')
    ] = None
    every: Annotated[
        Count | None, Meta(description="steps between reports, evaluations and checkpoints' turns")
    ] = None
    seed: Annotated[Whole, Meta(description="everything random follows from it")] = 0
    device: Annotated[str, Meta(description='"auto", "cpu", "cuda"')] = "auto"
    threads: Annotated[Count | None, Meta(description="of a worker; by default cores / workers")] = None
    restarts: Annotated[
        Whole, Meta(description="how often the workers are started again after one has died")
    ] = 0
    timeout: Annotated[
        Above, Meta(description="seconds after which workers give up one that does not answer")
    ] = 60.0
    runs: Place = "auto"
    checkpoint: Annotated[Whole, Meta(description="reports between checkpoints; 0 only at the end")] = 1
    keep: Annotated[str, Meta(description='checkpoints that stay: "last", "best", "every:50", "all"')] = (
        "last, best"
    )
    log: Annotated[str | None, Meta(description='further readers of the events: "tensorboard", "mlflow"')] = (
        None
    )

    def __post_init__(self) -> None:
        self.check_data()
        strategy_named(self.strategy)
        optimizer(self.optimizer)
        self.factor(0)
        if self.loss is not None and self.loss not in LOSSES and not own.named(self.loss):
            known = f"known: {', '.join(LOSSES)}, or a function of your own, module:function"
            raise ConfigError(f"unknown loss {self.loss!r}", hint=known)

    # --- what follows from it -----------------------------------------------------------------------------------

    def factor(self, step: int) -> float:
        """The factor on the step size, in a step counted from 0."""
        return math.prod(schedule_factor(part, step) for part in _parts(self.schedule))

    def weights(self, workers: int) -> list[float]:
        """What the workers' parts of a batch are in proportion to.  Raises ConfigError."""
        if self.shares is None:
            return [1.0] * workers
        found = spec.values(self.shares, "shares", spec.number("share", above=0, below=math.inf))
        if len(found) != workers:
            raise ConfigError(
                f"shares = {self.shares!r} has {len(found)} numbers, and {workers} workers divide a batch",
                hint="give one for each",
            )
        return list(map(float, found))

    def count(self, gpus: int = 0) -> int:
        """How many workers there are."""
        return self.workers or gpus or cores()

    # --- the three doors ----------------------------------------------------------------------------------------

    @classmethod
    def kinds(cls) -> dict[str, Any]:
        """The annotated type of every key."""
        hints = get_type_hints(cls, include_extras=True)
        return {each.name: hints[each.name] for each in dataclasses.fields(cls)}

    @classmethod
    def read(cls, file: str | Path | None = None, sets: Sequence[str] = (), **overrides: Any) -> Self:
        """A training from a TOML file, then ``key=value`` texts, then keywords; the later ones win.

        Raises ConfigError for a file that is not TOML, an unknown key, or a value of the wrong type or out of range.
        """
        if file is not None and SUFFIXES & {suffix.lower() for suffix in Path(file).suffixes}:
            raise ConfigError(
                f"{file} is data, and no file of settings",
                hint=f"atoll train --set data={file} --set label=COLUMN",
            )
        content: Mapping[str, Any] = {} if file is None else parse(Path(file))
        given = {key: (value, f"({file})") for key, value in content.items() if key != "about"}
        for text in sets:
            key, value = spec.assignment(text, "--set")
            given[key] = (value, f"(--set {text})")
        given |= {key: (value, "") for key, value in overrides.items()}
        for key in own.KEYS:
            value, where = given.get(key, (None, ""))
            for name in own.named(value, MODELS if key == "model" else ()):
                if "about" not in content or where != f"({file})":
                    own.admit(name, key)
        kinds = cls.kinds()
        for key, (value, where) in given.items():
            if key not in kinds:
                federated = key in ("method", "rounds", "cohort", "clients", "partition")
                hint = "a federation is a matter of `atoll run`" if federated else suggest(key, kinds)
                raise ConfigError(f"unknown key {key!r} {where}".rstrip(), hint=hint)
            given[key] = (convert(key, value, where, kinds[key]), where)
        return cls(**{key: value for key, (value, _) in given.items()})

    def to_dict(self) -> dict[str, Any]:
        """All keys with their values."""
        return {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}

    def to_toml(self) -> str:
        """Every key with its value: a file that repeats the training."""
        return "".join(f"{toml_line(key, value)}\n" for key, value in self.to_dict().items())
