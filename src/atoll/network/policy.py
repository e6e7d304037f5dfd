"""What a node allows, in a file of its own that no coordinator can change; and what a person is asked before anything
leaves."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from msgspec import Meta

from atoll import own
from atoll.channel import Chain, Clip, Local, channel
from atoll.contract import Method, Reply
from atoll.contract.messages import Plan as Steps
from atoll.contract.validation import ON_VALIDATION
from atoll.dpsgd.records import DPSGD
from atoll.errors import ConfigError, suggest
from atoll.methods import METHODS, get
from atoll.network.hours import opens, windows
from atoll.network.requirements import Requirement
from atoll.network.wire import Plan, Task
from atoll.schema import convert, parse, toml_value
from atoll.tensors import Record
from atoll.words import printable

__all__ = ["Policy", "chain_of", "judges", "method_of"]

_Texts = tuple[str, ...] | None
_Many = Annotated[int, Meta(ge=1)] | None


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What a node allows; by default all that the plan says, once a person has agreed to it.

    Raises ConfigError for values that cannot be. Refusals are sentences that begin with the key.
    """

    methods: Annotated[_Texts, Meta(description="methods that may be run; by default any")] = None
    programs: Annotated[
        _Texts, Meta(description='client programs that may be run: "train", "evaluate", "personal" ...')
    ] = None
    most_epochs: Annotated[_Many, Meta(description="local epochs a round, at most")] = None
    most_rounds: Annotated[_Many, Meta(description="rounds of a run, at most")] = None
    smallest_cohort: Annotated[
        _Many, Meta(description="nodes that a round must have, this one among them")
    ] = None
    require: Annotated[
        tuple[str, ...],
        Meta(description='transforms that updates must go through: "secagg", "clip:1.0", "noise:1.0", "local:1.0"'),
    ] = ()  # fmt: skip
    epsilon: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="the budget of this node's own noise (local, dp_sgd), over all runs"),
    ] = None
    delta: Annotated[
        Annotated[float, Meta(gt=0, lt=1)] | None,
        Meta(description="the chance that the promise may fail with"),
    ] = None
    hours: Annotated[
        str | tuple[str, ...] | None,
        Meta(description='when the node works, in local time: "20:00-06:00"; else it waits'),
    ] = None
    columns: Annotated[_Texts, Meta(description="columns of the data that may be read")] = None
    metrics: Annotated[bool, Meta(description="whether losses, counts and figures leave")] = True
    evaluate: Annotated[bool, Meta(description="whether models are judged on this node's data")] = True

    def __post_init__(self) -> None:
        for name in self.methods or ():
            if name not in METHODS and not own.named(name):
                raise ConfigError(f"methods: unknown method {name!r}", hint=suggest(name, METHODS))
        for text in self.require:
            Requirement.parse(text)
        windows(self._windows)
        if (self.epsilon is None) != (self.delta is None):
            raise ConfigError(
                "epsilon and delta are one promise, and only one of them is given",
                hint="write both: epsilon = 8, and delta below 1 / the number of samples",
            )
        if self.epsilon is not None and self.metrics:
            raise ConfigError(
                f"epsilon = {self.epsilon:g} counts noise, and figures leave without any",
                hint="write metrics = false beside it",
            )

    @staticmethod
    def read(file: str | Path) -> Policy:
        """The policy in a TOML file.  Raises ConfigError for unknown keys, and values that cannot be."""
        hints = get_type_hints(Policy, include_extras=True)
        kinds = {each.name: hints[each.name] for each in dataclasses.fields(Policy)}
        given = parse(Path(file))
        for key in given:
            if key not in kinds:
                raise ConfigError(f"unknown key {key!r} ({file})", hint=suggest(key, kinds))
        values = {key: convert(key, value, f"({file})", kinds[key]) for key, value in given.items()}
        try:
            return Policy(**values)
        except ConfigError as error:
            raise ConfigError(f"{error.message} ({file})", hint=error.hint) from None

    @property
    def _windows(self) -> tuple[str, ...]:
        return (self.hours,) if isinstance(self.hours, str) else self.hours or ()

    def stated(self) -> dict[str, str]:
        """What is not as it is by default: keys with their values, as the file has them."""
        found = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        usual = Policy()
        return {key: toml_value(value) for key, value in found.items() if value != getattr(usual, key)}

    # --- the plan ---------------------------------------------------------------------------------------------

    def check_plan(self, plan: Plan, columns: Collection[str], samples: int) -> list[str]:
        """Why this node does not take part in a plan: all reasons, none where it may.

        Args:
            columns: what the plan has read here (`atoll.network.reading.asked`).
            samples: of this node, to train on.
        """
        found: list[str] = []
        try:
            method, chain = method_of(plan), chain_of(plan)
            rule = None if plan.dp_sgd is None else DPSGD.parse(plan.dp_sgd)
        except ConfigError as error:
            return [printable(f"the plan cannot be carried out here: {error}")]
        if self.methods is not None and plan.method not in self.methods:
            found.append(f"methods = {', '.join(self.methods)}: the plan's method is {plan.method}")
        found += self._check_programs(method, samples)
        if self.most_rounds is not None and plan.rounds > self.most_rounds:
            found.append(f"most_rounds = {self.most_rounds}: the plan has {plan.rounds} rounds")
        small = self.smallest_cohort or 1
        if isinstance(plan.cohort, int) and plan.cohort < small:
            found.append(f"smallest_cohort = {small}: the plan has rounds of {plan.cohort} nodes")
        for text in self.require:
            unmet = Requirement.parse(text).unmet(chain)
            if unmet is not None:
                found.append(f"require = {text}: the plan's channel is {plan.channel or 'none'}, and {unmet}")
        found += self._check_budget(chain, rule)
        strange = [] if self.columns is None else [each for each in columns if each not in self.columns]
        if strange:
            found.append(f"columns: the plan reads {', '.join(strange)}, and this node allows others only")
        return [printable(each) for each in found]

    def _check_programs(self, method: Method, samples: int) -> list[str]:
        found = []
        programs = {"train": method, **method.programs()}
        for name, program in programs.items():
            if not judges(name) and not self.programs_allow(name):
                found.append(f"programs = {', '.join(self.programs or ())}: the plan needs {name}")
            if not judges(name) and name != "train" and (why := self._uncovered()):
                found.append(f"{why}: what {name} sends goes through no channel")
            passes = _passes(program.plan(), samples)
            wanted = not judges(name) or self._judging(name) is None
            if self.most_epochs is not None and passes > self.most_epochs and wanted:
                found.append(f"most_epochs = {self.most_epochs}: {name} takes {passes} passes over the data")
        return found

    def _check_budget(self, chain: Chain | None, rule: DPSGD | None) -> list[str]:
        if self.epsilon is None:
            return []
        key = f"epsilon = {self.epsilon:g}"
        transforms = () if chain is None else chain.transforms
        local = any(isinstance(each, Local) and each.multiplier for each in transforms)
        if not local and not (rule is not None and rule.noise):
            return [
                f"{key}: the plan has no noise of this node's own; it takes local in the channel, or dp_sgd"
            ]
        if any(isinstance(each, Clip) and each.quantile is not None for each in transforms):
            return [f"{key}: whether an update was shortened is told without noise where the bound moves"]
        return []

    def _uncovered(self) -> str | None:
        """What asks that nothing but updates leaves, as the channel acts on these alone."""
        if self.require:
            return f"require = {', '.join(self.require)}"
        return None if self.epsilon is None else f"epsilon = {self.epsilon:g}"

    # --- tasks ------------------------------------------------------------------------------------------------

    def check_task(self, task: Task, plan: Plan, now: datetime) -> str | None:
        """Why a task is not done, or None.

        Outside the `hours` a node does not ask for tasks (`opens`); one that came all the same is refused.
        """
        if self.opens(now) > 0:
            return f"hours = {', '.join(self._windows)}: it is {now:%H:%M}"
        program = task.program.removesuffix(ON_VALIDATION)
        if not self.programs_allow(program):
            return f"programs = {', '.join(self.programs or ())}: the task is {printable(task.program)}"
        if judges(program):
            return self._judging(program)
        if task.program != "train" and (why := self._uncovered()):
            return f"{why}: what {printable(task.program)} sends goes through no channel"
        if self.most_epochs is not None and task.epochs is not None and task.epochs > self.most_epochs:
            return f"most_epochs = {self.most_epochs}: the task has {task.epochs}"
        most = plan.rounds if self.most_rounds is None else self.most_rounds
        if task.round > most:
            key = "rounds" if self.most_rounds is None else "most_rounds"
            return f"{key} = {most}: the task is of round {task.round}"
        if self.smallest_cohort is not None and task.cohort < self.smallest_cohort:
            return f"smallest_cohort = {self.smallest_cohort}: the round has {task.cohort} nodes"
        return None

    def _judging(self, program: str) -> str | None:
        """Why a model is not judged here, or None."""
        if not self.programs_allow(program):
            return f"programs = {', '.join(self.programs or ())}: the task is {program}"
        if not self.evaluate:
            return "evaluate = false: no model is judged on this node's data"
        return (
            None if self.metrics else "metrics = false: figures do not leave, and a judgement is nothing else"
        )

    def opens(self, now: datetime) -> float:
        """Seconds until the node may work, 0 while it may; `now` is local time."""
        return opens(windows(self._windows), now)

    def programs_allow(self, name: str) -> bool:
        """Whether a program may be run, as far as its name goes."""
        return self.programs is None or name in self.programs

    def told(self, reply: Reply) -> Reply:
        """A reply as it may leave. Without figures the coordinator shows no loss for this node; its rounds go on."""
        return reply if self.metrics else reply._replace(metrics=Record())


def judges(program: str) -> bool:
    """Whether a client program only judges: it sends figures and nothing else."""
    return program.removesuffix(ON_VALIDATION) in ("evaluate", "personal")


def method_of(plan: Plan) -> Method:
    """The plan's method.  Raises ConfigError where there is none like it here."""
    kind = get(plan.method)
    known: Mapping[str, Any] = {each.name: each for each in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in plan.hyper:
        if key not in known:
            raise ConfigError(f"{plan.method} has no setting {key!r}", hint=suggest(key, known))
    return kind(**plan.hyper)


def chain_of(plan: Plan) -> Chain | None:
    """The plan's channel.  Raises ConfigError where it cannot be."""
    found = None if plan.channel is None else channel(plan.channel)
    assert found is None or isinstance(found, Chain)
    return found


def _passes(plan: Steps, samples: int) -> int:
    """How often a program reads all of so many samples, rounded up."""
    if plan.steps is None:
        return plan.epochs
    size = min(plan.batch_size or samples, samples)
    return math.ceil(plan.steps * size / max(samples, 1))
