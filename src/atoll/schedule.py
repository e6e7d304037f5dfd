"""From settings to a simulation on the virtual clock: each is checked, and each error says what would fit."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from atoll import spec
from atoll.clock import devices
from atoll.contract import Channel, Method
from atoll.errors import ConfigError
from atoll.rounds.adapting import Rule
from atoll.rounds.buffered import Asynchronous
from atoll.rounds.cohort import Cohorts
from atoll.rounds.paces import Schedule, Synchronous, deadline, late, pace
from atoll.rounds.play import Simulation
from atoll.rounds.timed import Timed
from atoll.settings import Settings
from atoll.task import Task

__all__ = ["check_differences", "on_the_clock"]

_SYNCHRONOUS = {"deadline": None, "over_select": 1.0, "quorum": 1, "late": "drop"}
_TIMED = {**_SYNCHRONOUS, "pace": "sync", "concurrency": None, "retry": 0, "exclude": None}


def on_the_clock(
    settings: Settings, parts: tuple[Any, ...], channel: Channel | None, rule: Rule | None, given: Any = None
) -> Simulation | None:
    """The simulation of these parts on the virtual clock; None where there is none. Devices may be `given` as objects.

    Raises ConfigError for settings that contradict each other or the method, DataError for a trace that cannot be read.
    """
    method, population, data, cohorts = parts[:4]
    if settings.devices is None:
        _needs_devices(settings, rule, cohorts)
        return None
    found = devices(
        given or settings.devices,
        clients=len(data),
        names=data.names,
        seed=settings.seed,
        flop=operations(population.tasks[0], data) if _is_file(settings.devices) else None,
    )
    schedule = _schedule(settings, cohorts, rule)
    kind = Timed if isinstance(schedule.pace, Synchronous) else Asynchronous
    if kind is Asynchronous:
        _check_asynchronous(method, settings, schedule, cohorts, rule)
    elif rule is not None and rule.flights:
        raise ConfigError(
            f"adaptive = {settings.adaptive!r} is for asynchronous servers; pace = {settings.pace!r} has rounds",
            hint='set pace="buffered:5", a step of the server for every five replies',
        )
    made = kind(*parts, devices=found, schedule=schedule, channel=channel, rule=rule)
    made.check()
    return made


def _is_file(text: str) -> bool:
    """Whether devices come from a file, which may count operations."""
    return text.strip().endswith((".csv", ".json"))


def operations(task: Task, data: Any) -> float:
    """Floating-point operations that training takes a sample: a forward pass, counted, and twice as many backward."""
    module = task.module
    training = module.training
    module.eval()
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            task.module(data.example().inputs[:1])
    finally:
        module.train(training)
    return 3.0 * float(counter.get_total_flops())


def _needs_devices(settings: Settings, rule: Rule | None, cohorts: Cohorts) -> None:
    timed = [name for name, usual in _TIMED.items() if getattr(settings, name) != usual]
    timed += ["adaptive"] * (rule is not None and rule.clocked)
    timed += [name.partition(" ")[0] for name in cohorts.membership.stated]
    for name in timed:
        raise ConfigError(
            f"{name} = {getattr(settings, name)!r} is about time, and without devices there is none",
            hint='set devices="lognormal:1.5", devices="equal", or a trace file',
        )


def _schedule(settings: Settings, cohorts: Cohorts, rule: Rule | None) -> Schedule:
    quorum = settings.quorum
    needed = max(1, round(quorum * cohorts.size)) if isinstance(quorum, float) and quorum < 1 else int(quorum)
    if needed > cohorts.size:
        raise ConfigError(f"quorum = {needed} replies, but a cohort has only {cohorts.size} clients")
    replies = late(settings.late)
    limit = None if settings.deadline is None else deadline(settings.deadline)
    if limit is not None and rule is not None and rule.limits:
        raise ConfigError(
            f"adaptive = {settings.adaptive!r} sets the deadline itself, and deadline = {settings.deadline!r}, too",
            hint="leave one of them out",
        )
    if replies.kind == "partial" and limit is None and (rule is None or not rule.limits):
        raise ConfigError(
            "late = 'partial' fits local steps to a deadline, and there is none",
            hint='set deadline=60 or deadline="share:0.5", or adaptive="deadline"',
        )
    excluded = None
    if settings.exclude is not None:
        excluded = spec.pair(
            settings.exclude, "exclude", "@", spec.whole("times", at_least=1), spec.whole("rounds", at_least=1),
            "3@20",
        )  # fmt: skip
    return Schedule(
        pace(settings.pace),
        limit,
        settings.over_select,
        needed,
        replies,
        settings.retry,
        excluded,
        settings.concurrency or cohorts.size,
    )


def _check_asynchronous(
    method: Method, settings: Settings, schedule: Schedule, cohorts: Cohorts, rule: Rule | None
) -> None:
    """An asynchronous pace fits methods that take replies one by one, and leaves no place for rounds' settings."""
    for name, usual in _SYNCHRONOUS.items():
        if getattr(settings, name) != usual:
            raise ConfigError(
                f"{name} = {getattr(settings, name)!r} is for synchronous rounds; pace = {settings.pace!r} has none",
                hint='leave it out, or set pace="sync"',
            )
    if rule is not None and rule.rounds:
        raise ConfigError(
            f"adaptive = {settings.adaptive!r} is for synchronous rounds; pace = {settings.pace!r} has none",
            hint='set pace="sync"; deadline, adacomm and drift work at any pace',
        )
    if settings.stragglers:
        raise ConfigError(
            "stragglers are drawn round by round: with an asynchronous pace, slow devices take their place"
        )
    clients = cohorts.membership.clients - len(cohorts.membership.newcomers)
    size = getattr(schedule.pace, "size", 1)
    if size > clients:
        raise ConfigError(
            f"pace = {settings.pace!r} waits for {size} replies, and there are only {clients} clients"
        )
    check_differences(method, settings.pace)


def check_differences(method: Method, pace: str) -> None:
    """Raises ConfigError for a method whose replies a server cannot take one by one, and where none is there to."""
    name, change = type(method).__name__, method.change
    if method.in_step:
        raise ConfigError(
            f"{name} cannot go at pace {pace!r}: what clients send and are sent changes with the round",
            hint='set pace="sync", or take a method whose rounds are alike: fedavg, fedit, ffa ...',
        )
    if method.pairwise != (pace == "pairs"):
        raise ConfigError(
            f"{name} cannot go at pace {pace!r}: "
            + (
                "its peers meet in pairs, and there is no server that could take their replies"
                if method.pairwise
                else "its clients do not meet in pairs"
            ),
            hint='set pace="pairs"' if method.pairwise else "set method=adpsgd, or another pace",
        )
    if method.pairwise:
        return
    if change is None or (change.since is not None and change.where == "received"):
        raise ConfigError(
            f"{name} cannot go at pace {pace!r}: its replies are no differences that a server could take"
            " one by one, late or early",
            hint="any method that sends how far its model moved can: fedavg, fedprox, fedadam, scaffold, fedora ...",
        )
