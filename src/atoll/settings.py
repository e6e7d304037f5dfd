"""How a run is set, beside its model, data and method: one schema behind Python keywords, TOML files and `--set`."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, get_type_hints

from msgspec import Meta

from atoll.measures import Target
from atoll.schema import convert
from atoll.thrift import Precision

__all__ = ["Count", "Place", "Rounds", "Settings", "Share", "signature"]

Count = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(gt=0, lt=1)]
Whole = Annotated[int, Meta(ge=0)]
Schedule = str | dict[str | int, int | str] | None

Rounds = Annotated[Count, Meta(description="rounds to play")]
Place = Annotated[
    str | None, Meta(description="directory for run folders; auto: ATOLL_RUNS, or runs; none keeps nothing")
]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run is set. What each field means and takes is in its annotation (`atoll methods NAME` lists them).

    Everything random follows from `seed`. `newcomers` take part in no round; every evaluation judges them apart, after
    `adapt` rounds of their own with the server's state as it is then: how well what was learned serves clients that
    were not there. Of those that leave, the server drops what it keeps (`Method.leave`); nobody is trained anew.
    `joins` and `leaves` draw clients by the seed, or name them: ``{"north": 20}``. Stragglers manage some of their
    local epochs, drawn uniformly; methods without `partial_work` drop them. `patience` counts evaluations since the
    one in which the models that clients would use were best on their validation data (main measure, mean over clients).
    """

    rounds: Rounds = 10
    cohort: Annotated[
        Count | Share | None,
        Meta(
            description="clients a round, a number or a share; by default all where there are at most 20, else 10"
        ),
    ] = None
    newcomers: Annotated[
        Whole | Share, Meta(description="clients (or a share) that never take part, and are judged apart")
    ] = 0
    adapt: Annotated[Whole, Meta(description="rounds newcomers train before they are judged")] = 1
    joins: Annotated[
        Schedule,
        Meta(
            description='clients that come later: "6@20" has six, or a share, join in round 20; or "6@1h", "rate:0.01"'
        ),
    ] = None
    leaves: Annotated[
        Schedule,
        Meta(
            description='clients that leave: "6@40" has six, or a share, gone from round 40 on; or "6@1h", "rate:0.01"'
        ),
    ] = None
    seed: Annotated[Whole, Meta(description="everything random follows from it")] = 0
    base: Annotated[
        str | None,
        Meta(
            description="begin with the numbers of a model.safetensors, or of the run in a folder, and not at random"
        ),
    ] = None
    adapter: Annotated[
        str | None,
        Meta(
            description='train few parameters in the place of the model\'s own: "lora:8,16"; with / in between, unequal'
            " ones for clients, in turns"
        ),
    ] = None
    dp_sgd: Annotated[
        str | None,
        Meta(
            description='clients\' steps hide single samples: "1.0,1.1", clip norm of a sample and noise, or "1.0,auto"'
        ),
    ] = None
    stragglers: Annotated[
        Annotated[float, Meta(ge=0, le=1)],
        Meta(description="share of a cohort that manages only some local epochs"),
    ] = 0.0
    channel: Annotated[
        str | None,
        Meta(
            description='what happens to updates on their way: "clip:0.5", "clip:0.5 | noise:1.0", "int8", "secagg" ...'
        ),
    ] = None
    down: Annotated[
        str | None,
        Meta(
            description='what happens to models on their way to clients: "bf16", "int8", "drive + feedback" ...'
        ),
    ] = None
    aggregate: Annotated[
        str | None,
        Meta(
            description='what makes one update of a round\'s, where clients may lie: "median", "nnm + trimmed:4" ...'
        ),
    ] = None
    by_part: Annotated[
        bool,
        Meta(
            description="where samples may lack parts: average the tensors of each part over the clients that have it"
        ),
    ] = True
    attackers: Annotated[
        Count | Share | str | list[str] | None,
        Meta(description="clients that lie, in a simulation: a number, a share, or their names"),
    ] = None
    attack: Annotated[
        str | None,
        Meta(
            description='what attackers do: "signflip", "alie", "minmax", "labelflip", "backdoor:0 + scaling" ...'
        ),
    ] = None
    epsilon: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="privacy that the run may spend; the round that would spend more is not played"),
    ] = None
    delta: Annotated[
        Share | None,
        Meta(description="the chance with which that may fail, below 1 / clients; by default clients^-1.1"),
    ] = None
    sampling: Annotated[
        Literal["fixed", "poisson"] | None,
        Meta(
            description="whether a cohort has a fixed size, or each client a chance of its own; poisson behind noise"
        ),
    ] = None
    choose: Annotated[
        str, Meta(description='who is asked: "uniform", "weighted", "power:20", "tifl:5", "oort", "fair" ...')
    ] = "uniform"
    devices: Annotated[
        str | None,
        Meta(
            description='clients\' devices, and with them a virtual clock: "equal", "lognormal:1.5", a trace file ...'
        ),
    ] = None
    pace: Annotated[
        str, Meta(description='when the server takes a step: "sync", "buffered:10", "fedasync:poly,0.5"')
    ] = "sync"
    concurrency: Annotated[
        Count | None,
        Meta(description="clients at work at a time, for a pace that is not sync; by default a cohort"),
    ] = None
    deadline: Annotated[
        float | str | None,
        Meta(
            description='virtual seconds a round may take, or "share:0.8", when that share of those asked is done'
        ),
    ] = None
    over_select: Annotated[
        Annotated[float, Meta(ge=1)],
        Meta(description="ask so many times a cohort, and end the round with the replies of a cohort"),
    ] = 1.0
    quorum: Annotated[
        Count | Share,
        Meta(description="replies (or a share of a cohort) without which a round teaches nothing"),
    ] = 1
    late: Annotated[
        str,
        Meta(
            description='replies after the end: "drop", "keep" for a later round, or "partial": fewer local steps'
        ),
    ] = "drop"
    retry: Annotated[Whole, Meta(description="how many times an order that broke off is given again")] = 0
    exclude: Annotated[
        str | None, Meta(description='"3@20": who fails 3 times in a row is not asked for 20 rounds')
    ] = None
    adaptive: Annotated[
        str | None,
        Meta(
            description='rules that fit work to devices and to learning: "deadline:0.5", "adacomm + cohort" ...'
        ),
    ] = None
    target: Annotated[
        str | None, Meta(description='stop once reached, such as "accuracy:0.97" or "validation:0.9"')
    ] = None
    patience: Annotated[
        Count | None, Meta(description="stop after so many evaluations that are no better on validation data")
    ] = None
    tokens: Annotated[
        Count | None, Meta(description="stop once clients have read so many, where samples are sequences")
    ] = None
    eval_every: Annotated[Whole, Meta(description="rounds between evaluations; 0 only at the end")] = 1
    eval_clients: Annotated[Count | None, Meta(description="judge at most so many clients")] = None
    engine: Annotated[
        Literal["auto", "batched", "processes", "loop", "ray"],
        Meta(description="where clients' work runs; auto tries the first three"),
    ] = "auto"
    workers: Annotated[
        Count | None, Meta(description="threads, processes or actors of the engine; by default one a core")
    ] = None
    ray_address: Annotated[
        str | None,
        Meta(description='of engine = "ray": the cluster, "10.0.0.1:6379" or "auto"; by default one here'),
    ] = None
    ray_gpus: Annotated[
        Annotated[float, Meta(ge=0)],
        Meta(description='of engine = "ray": the share of a GPU that each actor has; 0: a core'),
    ] = 0.0
    silo: Annotated[
        str | None,
        Meta(
            description='processes that train a client together: "ddp:2" divides each of its batches by two'
        ),
    ] = None
    device: Annotated[str, Meta(description='"auto", "cpu", "cuda", "cuda:1" ...')] = "auto"
    precision: Annotated[Precision, Meta(description="of the operations that can be so computed")] = "float32"
    accumulate: Annotated[
        Count, Meta(description="goes in which the gradient of a batch is taken, to save memory")
    ] = 1
    recompute: Annotated[
        bool, Meta(description="the backward pass computes blocks of transformers again, to save memory")
    ] = False
    runs: Place = None
    checkpoint: Annotated[Whole, Meta(description="rounds between checkpoints; 0 only at the end")] = 10
    keep: Annotated[
        str,
        Meta(description='checkpoints that stay: "last", "last:2", "best", "every:50", "all", with commas'),
    ] = "last, best"

    @property
    def validates(self) -> bool:
        """Whether evaluations judge on clients' validation data, too: `patience` or the target asks for it."""
        asked = self.target is not None and Target.parse(self.target).on_validation
        return asked or self.patience is not None

    @classmethod
    def kinds(cls) -> dict[str, Any]:
        """The annotated type of every field."""
        hints = get_type_hints(Settings, include_extras=True)
        return {each.name: hints[each.name] for each in dataclasses.fields(Settings)}

    @staticmethod
    def split(given: Mapping[str, Any]) -> tuple[Settings, dict[str, Any]]:
        """The settings among these keywords, and the keywords that are none.  Raises ConfigError."""
        known = Settings.kinds()
        own = {key: _as_text(key, value) for key, value in given.items() if key in known}
        return Settings.of(own), {key: value for key, value in given.items() if key not in known}

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Settings from values as Python has them.  Raises ConfigError, naming key, value and what it takes."""
        kinds = cls.kinds()
        return cls(**{key: convert(key, value, "", kinds[key]) for key, value in given.items()})

    def to_dict(self) -> dict[str, Any]:
        """All fields with their values."""
        return {each.name: getattr(self, each.name) for each in dataclasses.fields(Settings)}


_CALLED = {"adapter": "text", "devices": "text", "choose": "name", "aggregate": "text", "attack": "text"}
"""Settings that may be objects in Python, and what these are called by."""


def _as_text(key: str, value: Any) -> Any:
    """A setting as files have it."""
    if isinstance(value, Target):
        return str(value)
    if key in ("aggregate", "attack") and isinstance(value, list | tuple):
        texts = [getattr(each, "text", None) for each in value]
        return " + ".join(
            t if isinstance(t, str) else str(each) for t, each in zip(texts, value, strict=True)
        )
    return getattr(value, _CALLED[key], value) if key in _CALLED else value


def signature(function: Callable[..., Any]) -> inspect.Signature:
    """The signature of a function that takes settings as keywords, with all of them in it."""
    known = inspect.signature(function)
    *first, rest = known.parameters.values()
    assert rest.kind is inspect.Parameter.VAR_KEYWORD
    kinds = Settings.kinds()
    keys = [
        inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=kinds[each.name])
        for each in dataclasses.fields(Settings)
        if each.name not in known.parameters
    ]  # fmt: skip
    return known.replace(parameters=[*first, *keys, rest])
