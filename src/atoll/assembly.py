"""The parts of a federation out of what a user gives: each is checked, and each error says what would fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch

from atoll import misleading, seeds
from atoll.channel import Chain
from atoll.contract import Channel, Method, Population, as_written
from atoll.data import FederatedData
from atoll.dpsgd.fits import LOSSY, check_method, examples, private_task
from atoll.dpsgd.records import DPSGD, PrivateTask, Records
from atoll.engines import Engine, make
from atoll.engines.server import Quick
from atoll.errors import ConfigError, suggest
from atoll.guarding import calibrated, check_root, downward, enough, fitted, parted, robust, sampled
from atoll.losses import Loss
from atoll.methods import METHODS, Decentralised, get
from atoll.metrics import Metrics
from atoll.networks import Model, architectures
from atoll.robust import parse as aggregation
from atoll.rounds.adapting import Rule
from atoll.rounds.adapting import rule as adapting
from atoll.rounds.choosing import choice
from atoll.rounds.cohort import Cohorts
from atoll.rounds.judge import Judge
from atoll.rounds.membership import Membership
from atoll.rounds.outcomes import window
from atoll.rounds.play import Simulation
from atoll.schedule import on_the_clock
from atoll.settings import Settings
from atoll.task import Task
from atoll.thrift import Thrift

__all__ = [
    "Metrics",
    "Nodes",
    "as_found",
    "assemble",
    "budgeted",
    "build_method",
    "changed",
    "hyperparameters",
]


class Nodes(Protocol):
    """Where the clients of a federation are that are not on this machine."""

    def engine(
        self, tasks: Sequence[Task], data: FederatedData, device: torch.device, settings: Settings
    ) -> Engine:
        """What has their work done."""
        ...

    def rounds(
        self, settings: Settings, parts: tuple[Any, ...], channel: Channel | None, rule: Rule | None
    ) -> Simulation:
        """The rounds with them; `parts` are the first seven arguments of a `Simulation`.  Raises ConfigError."""
        ...


FEW = 20
"""So many clients take part in every round, all of them, where nothing is said."""


def assemble(
    model: Model | Sequence[Model],
    data: FederatedData,
    method: Method,
    settings: Settings,
    loss: str | Loss | None,
    metrics: Metrics | None,
    channel: Channel | None,
    given: Mapping[str, Any],
    nodes: Nodes | None = None,
) -> Simulation:
    """A federation that is ready for its first round; `given` holds settings as they were given, some as objects.

    Its clients are `nodes`, or on this machine.
    """
    seed, device = settings.seed, device_named(settings.device)
    membership = Membership(data, seed, settings.newcomers, settings.joins, settings.leaves)
    size = cohort_size(settings.cohort, len(data) - len(membership.newcomers))
    tasks = architectures(
        model, data, method, seed, loss, metrics, given.get("adapter", settings.adapter), settings.base
    )
    for task in tasks:
        task.thrift = Thrift(settings.precision, settings.accumulate, settings.recompute)
    rule, calls = None if settings.dp_sgd is None else DPSGD.parse(settings.dp_sgd), 1
    hidden = () if rule is None else private(tasks, rule, data, settings)
    tasks = hidden or tasks
    for task in tasks:
        task.hold(device)
    check_splits(method, data)
    for key in ("ray_address", "ray_gpus"):
        if getattr(settings, key) and settings.engine != "ray":
            raise ConfigError(
                f'{key} is for engine = "ray", and the engine is {settings.engine}',
                hint=f"leave {key} out (none)",
            )
    public = None if data.public is None else data.public.inputs.to(device)
    quick = as_written if settings.engine == "loop" else Quick()
    inputs = data.example().inputs[:1]
    population = Population(len(data), tasks, inputs, public, seed, data.weights, quick, data.names)
    with seeds.scoped(seed, "setup"):
        state = method.on_device(method.setup(tasks[0], population), device)
        if rule is not None:
            calls = check_method(method, tasks[0], state, data)
            rule = enough(rule, channel, settings, method, data, calls)
            for each in hidden:
                each.rule = rule
    attackers = misleading.found(
        settings, given.get("attack", settings.attack), data, membership.newcomers, tasks
    )
    if nodes is None:
        trained = data if attackers is None else attackers.data
        engine = make(
            settings.engine, tasks, trained, device, settings.workers, settings.rounds,
            settings.ray_address, settings.ray_gpus, silo=settings.silo,
        )  # fmt: skip
    else:
        engine = nodes.engine(tasks, data, device, settings)
    aggregate = given.get("aggregate", settings.aggregate)
    robustly = None if aggregate is None else aggregation(aggregate)
    check_root(robustly, data)
    around = channel is not None or robustly is not None or (attackers is not None and attackers.lie)
    aside = Channel() if around else None  # what is judged leaves no trace, and needs no protection
    if rule is not None:
        aside = Records()
    judge = Judge(
        tasks[0], data, engine, device, seed, settings.eval_clients, membership, settings.adapt, aside,
        settings.validates, None if attackers is None else attackers.wanted,
    )  # fmt: skip
    check_validation(settings, judge)
    if data.mixture is not None and rule is not None:
        raise ConfigError(
            f"mix = {data.mixture.text!r} reads some samples more often than others, and dp_sgd reads all alike",
            hint="leave mix or dp_sgd out",
        )
    if settings.tokens is not None and window(data.example()) is None:
        raise ConfigError(
            f"tokens = {settings.tokens} counts tokens, and the samples of {data.dataset} are no sequences of them",
            hint="set rounds",
        )
    cohorts = Cohorts(
        data,
        method,
        membership,
        seed,
        size,
        sampled(settings, channel, choice(given.get("choose", settings.choose))),
        settings.stragglers,
    )
    channel = fitted(channel, settings, method, data, size, method.expects(state), robustly is not None)
    channel = parted(channel, settings, method, data, tasks[0])
    if robustly is not None:
        channel = robust(robustly, channel, settings, method, data, tasks, device, size)
    if attackers is not None:
        channel = misleading.lying(attackers, channel, method, tasks, len(data))
    if rule is not None:
        channel = Records(channel or Channel(), rule, calls)
    parts = method, population, data, cohorts, engine, judge, state
    adaptive = None if settings.adaptive is None else adapting(settings.adaptive)
    _check_choice(settings, channel, adaptive)
    down = downward(settings, method)
    if down is not None and nodes is not None:
        down = replace(down, apart=True)
    if nodes is None:
        timed = on_the_clock(settings, parts, channel, adaptive, given.get("devices"))
        made = timed or Simulation(*parts, channel=channel, rule=adaptive)
    else:
        made = nodes.rounds(settings, parts, channel, adaptive)
    made.down = down
    made.attackers = () if attackers is None else attackers.clients
    if adaptive is not None and adaptive.compares:
        _check_comparable(settings, made)
    if robustly is not None:
        robustly.check(made.replies)
    return made


def budgeted(
    channel: Channel | None, settings: Settings, data: FederatedData, choose: Any
) -> tuple[Channel | None, Settings]:
    """The channel with the noise that its budget asks for, where it does not say how much, and settings that say it.

    Raises ConfigError where no noise is enough, or where it cannot be known beforehand.
    """
    noise = channel.noise if isinstance(channel, Chain) else None
    if noise is None or noise.multiplier is not None:
        return channel, settings
    assert isinstance(channel, Chain)
    present = len(data) - len(Membership(data, settings.seed, settings.newcomers).newcomers)
    size = cohort_size(settings.cohort, present)
    found = calibrated(
        channel, settings, len(data), present, size, sampled(settings, channel, choice(choose))
    )
    return found, replace(settings, channel=found.text)


def as_found(settings: Settings, made: Simulation) -> Settings:
    """Settings that say the noise which `dp_sgd` left to a budget."""
    if settings.dp_sgd is None or DPSGD.parse(settings.dp_sgd).noise is not None:
        return settings
    assert isinstance(made.channel, Records)
    assert made.channel.rule is not None
    return replace(settings, dp_sgd=made.channel.rule.text)


def _check_choice(settings: Settings, channel: Channel | None, rule: Rule | None) -> None:
    """Codecs to choose between, and a rule that chooses, go together."""
    codecs, chooses = 0 if channel is None else channel.codecs, rule is not None and rule.chooses
    if codecs and not chooses:
        raise ConfigError(
            f"channel = {settings.channel!r} names {codecs} codecs, and nobody says which client takes which",
            hint='set adaptive="bandwidth" and devices, or name one codec',
        )
    if chooses and not codecs:
        raise ConfigError(
            f"adaptive = {settings.adaptive!r} chooses between codecs, and there is nothing to choose",
            hint='name several, from the best to the smallest: channel="int8 / eden:2 / drive"',
        )


def _check_comparable(settings: Settings, made: Simulation) -> None:
    """Updates are compared where a method says which of its fields they are, and there are two of them or more."""
    what, name = (
        f"adaptive = {settings.adaptive!r} looks at how far updates lie apart",
        type(made.method).__name__,
    )
    if made.method.change is None:
        raise ConfigError(
            f"{what}, and {name} sends none that could be compared", hint='use adaptive="adacomm"'
        )
    if made.replies < 2:
        raise ConfigError(
            f"{what}, and only one is there at a time", hint='set cohort=8, or pace="buffered:8"'
        )


def private(
    tasks: Sequence[Task], rule: DPSGD, data: FederatedData, settings: Settings
) -> tuple[PrivateTask, ...]:
    """The tasks with private gradients.  Raises ConfigError where a model, or a setting, would show single samples."""
    for key, lossy in LOSSY.items():
        named = {each.strip().partition(":")[0] for each in str(getattr(settings, key) or "").split("+")}
        if named.intersection(lossy):
            raise ConfigError(
                f"{key} = {getattr(settings, key)!r} goes by training losses, which dp_sgd does not let clients tell",
                hint=f"leave {key} out, or use another rule",
            )
    for key in ("precision", "accumulate", "recompute"):
        if (value := getattr(settings, key)) != getattr(Settings, key):
            raise ConfigError(
                f"{key} = {value!r}: private steps take the gradient of each sample, in single precision",
                hint=f"leave {key} out",
            )
    inputs, targets = examples(data)
    return tuple(private_task(task, rule, inputs, targets) for task in tasks)


def hyperparameters(method: Method | str | type[Method]) -> list[str]:
    """The names of a method's settings.  Raises ConfigError for an unknown method."""
    kind = get(method) if isinstance(method, str) else method if isinstance(method, type) else type(method)
    return [each.name for each in dataclasses.fields(kind)]  # type: ignore[arg-type]


def build_method(method: Method | str, settings: Mapping[str, Any]) -> Method:
    """A method from its name and settings, or a method with some settings changed.  Raises ConfigError."""
    known = hyperparameters(method)
    for name in settings:
        if name not in known:
            kind = get(method) if isinstance(method, str) else type(method)
            hint = suggest(name, [*known, *Settings.kinds()])
            if name in hyperparameters(Decentralised):  # who is asked for without a server
                able = ", ".join(key for key, each in METHODS.items() if issubclass(each, Decentralised))
                hint = f"{kind.__name__} has a server; methods without one: {able}"
            raise ConfigError(f"{kind.__name__} has no setting {name!r}", hint=hint)
    if isinstance(method, str):
        return get(method)(**settings)
    return replace(method, **settings) if settings else method  # type: ignore[type-var]


def changed(given: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """What a federation was given, with changes; settings that are unknown to a new method are dropped."""
    settings = given["settings"]
    if "method" in changes:
        known = {*hyperparameters(changes["method"]), *Settings.kinds()}
        settings = {name: value for name, value in settings.items() if name in known}
    return {**{name: value for name, value in given.items() if name != "settings"}, **settings, **changes}


def check_splits(method: Method, data: FederatedData) -> None:
    """A method that looks at validation or public data must find some."""
    reads = {split for program in [method, *method.programs().values()] for split in program.reads}
    if "public" in reads and data.public is None:
        raise ConfigError(
            f"{type(method).__name__} distils on public data, and there are none",
            hint="set public=500, so many training samples that are set aside without their labels",
        )
    if "validation" not in reads:
        return
    if all(data.held(client, "validation") is None for client in range(min(10, len(data)))):
        raise ConfigError(
            f"{type(method).__name__} looks at validation data, and the clients have none",
            hint="set validation=0.2, a share of each client's samples (or another setting of the method)",
        )


def check_validation(settings: Settings, judge: Judge) -> None:
    """Who is to stop by validation data must have some, and look at them."""
    if not settings.validates:
        return
    asks = "patience" if settings.patience is not None else "target"
    if not judge.validated:
        raise ConfigError(
            f"{asks} = {getattr(settings, asks)} looks at validation data, and the clients have none",
            hint="set validation=0.1, a share of each client's samples",
        )
    if settings.patience is not None and settings.eval_every == 0:
        raise ConfigError(
            f"patience = {settings.patience} counts evaluations, and with eval_every = 0 there is none but the last",
            hint="set eval_every=1, or so many rounds between evaluations",
        )


def cohort_size(cohort: int | float | None, population: int) -> int:
    """Clients a round, from a number, a share, or nothing: then everybody where there are at most 20, else 10."""
    if cohort is None:
        return population if population <= FEW else 10
    if isinstance(cohort, float) and 0 < cohort < 1:
        return max(1, round(cohort * population))
    if cohort < 1 or int(cohort) != cohort:
        raise ConfigError(f"cohort = {cohort}, but it is a number of clients, or a share between 0 and 1")
    if cohort > population:
        raise ConfigError(
            f"cohort = {int(cohort)} clients a round, but there are only {population}",
            hint=f"set cohort to {population} or fewer",
        )
    return int(cohort)


def device_named(name: str) -> torch.device:
    """The device of that name, if it can be used; "auto" takes a GPU where there is one.

    It is the device that tensors say they are on: "cuda" becomes "cuda:0", the only one that compares equal to it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device {name!r} cannot be used: {str(error).splitlines()[0]}", hint="try auto or cpu"
        ) from None
