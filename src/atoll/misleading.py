"""From settings to the attackers of a run: who they are, what they train on, what the server gets of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from atoll.attacks import Attack, Attacked, Lie, attack, drawn
from atoll.attacks.poisoned import poisoned
from atoll.contract import Channel, Method
from atoll.data import FederatedData, Samples
from atoll.errors import ConfigError
from atoll.settings import Settings
from atoll.task import Task

__all__ = ["Attackers", "found", "lying"]


class Attackers(NamedTuple):
    """The clients that attack, ascending; what they do; the data as all clients train on them.

    `wanted` are test samples with the classes that the attackers want for them, where they want any.
    """

    clients: tuple[int, ...]
    attack: Attack
    data: FederatedData
    wanted: Samples | None = None

    @property
    def lie(self) -> Lie | None:
        """What they send in the place of updates, if anything."""
        return self.attack.lie


def found(
    settings: Settings, given: Any, data: FederatedData, never: Collection[int], tasks: Sequence[Task]
) -> Attackers | None:
    """The attackers of a run, None where there are none; `given` is the attack as it was given, perhaps an object.

    Raises ConfigError where half of the two settings is missing, or the attack is nothing for these data.
    """
    if settings.attackers is None:
        if given is not None:
            raise ConfigError(
                f"attack = {settings.attack!r}, and nobody is there to do it",
                hint="set attackers=0.2, a share",
            )
        return None
    if given is None:
        raise ConfigError(
            f"attackers = {settings.attackers!r}, and nothing says what they do",
            hint='set attack="signflip"; atoll explain attack lists all',
        )
    what = attack(given)
    clients = drawn(settings.attackers, data, settings.seed, never)
    if what.poison is None:
        return Attackers(clients, what, data)
    if any("accuracy" not in task.metrics for task in tasks):
        raise ConfigError(
            f"attack = {what.text!r} is about classes, and the loss {tasks[0].loss_name} knows none",
            hint='lie about updates instead, such as attack="signflip"',
        )
    return Attackers(clients, what, *poisoned(data, what.poison, clients, settings.seed))


def lying(
    attackers: Attackers, channel: Channel | None, method: Method, tasks: Sequence[Task], population: int
) -> Channel | None:
    """The channel with lies told at its end, where the attack has any.

    Raises ConfigError where the server could not be lied to, or the lie has no meaning.
    """
    lie = attackers.lie
    if lie is None:
        return channel
    what, kind = f"attack = {lie.text!r}", type(method).__name__
    change = method.change
    if method.reduction == "each" or type(method).reducer is not Method.reducer or len(tasks) > 1:
        raise ConfigError(
            f"{what} lies about one of many updates that are averaged, and {kind} puts replies together otherwise",
            hint="take fedavg, fedprox, fedadam, scaffold, ditto ... or an attack on data, such as labelflip",
        )
    if change is not None and change.since is not None and change.where == "memory":
        raise ConfigError(
            f"{what}: {kind} sends a whole model that began at the client's own, and no difference to lie about",
            hint="take an attack on data, such as labelflip",
        )
    if channel is not None and channel.hides:
        raise ConfigError(
            f"{what} acts on updates as the server sees them, and the channel hides them",
            hint="leave secagg or he out, or take an attack on data, such as labelflip",
        )
    made = Attacked(lie=lie, liars=frozenset(attackers.clients), share=len(attackers.clients) / population)
    return made if channel is None else replace(made, channel=channel)
