"""What a run between machines can be, as far as it is known before the first node is there."""

from __future__ import annotations

from atoll import spec
from atoll.channel import Chain, channel
from atoll.contract import Change, Method
from atoll.errors import ConfigError
from atoll.methods import METHODS, Decentralised
from atoll.robust import parse as aggregation
from atoll.rounds.adapting import rule as adapting
from atoll.rounds.adapting.bandwidth import Bandwidth
from atoll.rounds.paces import Synchronous, pace
from atoll.schedule import check_differences
from atoll.settings import Settings

__all__ = ["check", "check_model", "check_public", "check_trusted"]


def check(settings: Settings, method: Method) -> None:
    """Raises ConfigError for what is not to be had between machines, saying why."""
    if isinstance(method, Decentralised):
        raise ConfigError(
            f"{type(method).__name__} has no server, and a coordinator is one",
            hint="atoll peer plays it between machines, atoll run simulates it; with a server: fedavg and its like",
        )
    for key, why in (
        ("devices", "makes up how fast clients are, and nodes are as fast as they are"),
        ("exclude", "leaves out devices that are made up to fail"),
        ("attackers", "has clients lie, and nodes do as they like"),
        ("attack", "says how simulated clients lie"),
    ):
        if getattr(settings, key) != getattr(Settings, key):
            raise ConfigError(
                f"{key} = {getattr(settings, key)!r} is for simulations: it {why}", hint="leave it out"
            )
    if settings.adaptive is not None:
        _check_adaptive(settings.adaptive, settings.pace)
    if settings.late != "drop":
        raise ConfigError(
            f"late = {settings.late!r} is for simulations: between machines what comes late is dropped",
            hint="leave it out",
        )
    if settings.deadline is not None and not isinstance(settings.deadline, int | float):
        raise ConfigError(
            f"deadline = {settings.deadline!r}, and nobody can know how long nodes will take",
            hint="set seconds: deadline = 600",
        )
    if settings.dp_sgd is not None:
        raise ConfigError(
            f"dp_sgd = {settings.dp_sgd!r}: nodes do not take private steps yet, and would train without",
            hint='protect each node as a whole: channel = "clip:0.5 | local:1.0" adds noise before anything leaves it,'
            ' "clip:0.5 | noise:1.0" in the sum',
        )
    chain = None if settings.channel is None else channel(settings.channel)
    if isinstance(chain, Chain) and chain.shrink is not None and _at_home(method.change):
        raise ConfigError(
            f"channel = {chain.text!r}: {type(method).__name__} packs how its model differs from one that stays at the"
            " node, and nobody else could open that",
            hint=f"leave {chain.shrink.text} out",
        )
    rule = None if settings.aggregate is None else aggregation(settings.aggregate)
    if rule is not None and rule.groups is None and isinstance(chain, Chain) and chain.hides:
        raise ConfigError(
            f"aggregate = {rule.text!r} looks at updates one by one, and {chain.text!r} hides them",
            hint=f'let it look at sums of groups: aggregate = "groups:4 + {rule.text}"',
        )
    if settings.silo is not None:
        raise ConfigError(
            f"silo = {settings.silo!r}: how a node trains is its own affair",
            hint=f"atoll join ... --silo {settings.silo}",
        )
    for key in ("precision", "accumulate", "recompute"):
        if (value := getattr(settings, key)) != getattr(Settings, key):
            raise ConfigError(
                f"{key} = {value!r}: how a node trains is its own affair",
                hint=f"atoll join ... --{key}{'' if value is True else f' {value}'}",
            )
    if settings.leaves is not None and type(method).farewell is not Method.farewell:
        raise ConfigError(
            f"leaves = {settings.leaves!r}: {type(method).__name__} takes back what a client that leaves remembers,"
            " and a node keeps that to itself",
            hint="leave it out: a node may go at any time, and what it gave so far stays in the sum",
        )
    if not isinstance(pace(settings.pace), Synchronous):
        check_differences(method, settings.pace)


def _check_adaptive(text: str, given: str) -> None:
    """Raises ConfigError for rules that look at more than how quickly nodes send, and where there are no rounds."""
    if not isinstance(adapting(text), Bandwidth):
        raise ConfigError(
            f"adaptive = {text!r} is for simulations: it fits work to devices that are simulated",
            hint='leave it out; adaptive = "bandwidth" chooses codecs by how quickly nodes send',
        )
    if not isinstance(pace(given), Synchronous):
        raise ConfigError(
            f"adaptive = {text!r} chooses codecs for a round, and pace = {given!r} has none",
            hint="leave one of the two out",
        )


def _at_home(change: Change | None) -> bool:
    """Whether a reply is told from what only the client has."""
    return change is not None and change.since is not None and change.where == "memory"


def check_public(method: Method, there: bool) -> None:
    """Raises ConfigError where a method distils and there are no public data, or the other way round."""
    if method.distils and not there:
        raise ConfigError(
            f"{type(method).__name__} distils on public data, and there are none",
            hint='write public = "public.npz" into [network]: inputs x like the nodes\', which all of them get',
        )
    if there and not method.distils:
        able = ", ".join(name for name, kind in METHODS.items() if kind().distils)
        raise ConfigError(
            f"{type(method).__name__} has no use for public data, and all nodes would get them",
            hint=f"leave public out of [network]; it is for {able}",
        )


def check_trusted(settings: Settings, there: bool) -> None:
    """Raises ConfigError where a rule compares with the server's own update and has no data, or the other way round."""
    rule = None if settings.aggregate is None else aggregation(settings.aggregate)
    wanted = rule is not None and rule.beside == "root"
    if wanted and not there:
        raise ConfigError(
            f"aggregate = {settings.aggregate!r} compares updates with one that the server makes of root data, and it"
            " has none",
            hint='write root = "root.npz" into [network]: samples like a node\'s, which stay with the coordinator',
        )
    if there and not wanted:
        raise ConfigError(
            "[network] root has samples for the server, and nothing looks at them",
            hint='leave root out, or set aggregate = "fltrust"',
        )


def check_model(text: str, method: Method) -> None:
    """Raises ConfigError for a model from a file, and where several are named and the method has but one."""
    if any(each.strip().startswith("hf:") for each in text.split("+")):
        raise ConfigError(
            f"model = {text!r} is a path on this machine, and nodes have their own",
            hint='name code that all have and that loads it: model = "package.module:function" (atoll join --code)',
        )
    count = len(spec.chain(text, "model", "+"))
    if count > 1 and not method.mixed:
        able = ", ".join(name for name, kind in METHODS.items() if kind.mixed)
        raise ConfigError(
            f"{type(method).__name__} gives all clients one architecture, and model = {text!r} names {count}",
            hint=f"methods for different architectures: {able}",
        )
