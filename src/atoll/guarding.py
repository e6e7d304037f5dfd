"""From settings to the channel of a run: what protects clients is checked against everything that would undo it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from atoll import privacy, spec
from atoll.channel import Chain, Robust, Setting, channel
from atoll.channel.auto import Auto
from atoll.channel.down import Down
from atoll.channel.masked import FLOOR
from atoll.channel.parted import Parted
from atoll.contract import Channel, Method
from atoll.data import FederatedData
from atoll.dpsgd.fits import of_samples
from atoll.dpsgd.records import DPSGD
from atoll.engines.root import Root
from atoll.errors import ConfigError
from atoll.methods import METHODS, Decentralised
from atoll.modalities import modalities, owners, present
from atoll.privacy import Correlated, Event, Gaussian, check_delta, usual_delta
from atoll.robust import Aggregation
from atoll.rounds.chances import chances
from atoll.rounds.choosing import Choice, Cyclic, Poisson, Uniform
from atoll.settings import Settings
from atoll.task import Task
from atoll.tensors import Record

__all__ = [
    "calibrated",
    "check_root",
    "downward",
    "enough",
    "fitted",
    "parted",
    "robust",
    "sampled",
    "stated",
    "turns",
]


def stated(given: Any) -> tuple[Channel | None, str | None]:
    """The channel of what a user gives, and how it is written (None: it cannot be)."""
    found = None if given is None else channel(given)
    return found, found.text if isinstance(found, Chain) else None


def sampled(settings: Settings, chain: Channel | None, choice: Choice) -> Choice:
    """Who is asked, where privacy has a say: by a coin each behind central noise, unless `sampling` says otherwise."""
    noise = chain.noise if isinstance(chain, Chain) else None
    if noise is not None and noise.matrix is not None:
        if settings.sampling is not None or not isinstance(choice, Uniform | Cyclic):
            said = f"choose = {settings.choose!r}" if settings.sampling is None else "sampling"
            raise ConfigError(
                f"channel = {chain.text!r} builds on cohorts in turn, and {said} says otherwise",  # type: ignore[union-attr]
                hint=f"leave {said.partition(' ')[0]} out",
            )
        return Cyclic()
    wanted = settings.sampling or ("poisson" if noise is not None and noise.multiplier != 0 else "fixed")
    if wanted == "fixed":
        return choice
    if not isinstance(choice, Uniform | Poisson):
        raise ConfigError(
            f"choose = {settings.choose!r} and sampling = 'poisson' both say who is asked",
            hint='leave choose out, or set sampling="fixed"',
        )
    return Poisson()


def turns(clients: int, cohort: int) -> int:
    """The rounds of which a client is in one at most, where cohorts come in turn."""
    return max(1, clients // cohort)


def calibrated(
    chain: Chain, settings: Settings, clients: int, present: int, cohort: int, choice: Choice
) -> Chain:
    """The chain with the least noise, to four digits, that keeps all rounds of a run within its `epsilon`.

    Of `clients`, so many are `present` in every round. Raises ConfigError where who is present changes.
    """
    noise = chain.noise
    assert noise is not None
    if settings.epsilon is None:
        return chain  # which says that it has no multiplier
    for key in ("joins", "leaves"):
        if getattr(settings, key):
            raise ConfigError(
                f"channel = {chain.text!r} finds its noise for the same clients in all rounds, and {key} says"
                " otherwise",
                hint="write how much noise, such as noise:1.0; the budget ends the run",
            )
    delta = usual_delta(clients) if settings.delta is None else settings.delta
    check_delta(delta, clients)
    event: Event = Gaussian(noise=1.0, sampling=chances(choice, cohort, present))
    if noise.matrix is not None:
        tree, often = noise.matrix == "tree", turns(clients, cohort)
        event = Correlated(
            matrix="tree" if tree else "banded", noise=1.0, rounds=settings.rounds, separation=often, stream="any",
            bands=1 if tree else int(noise.matrix),
        )  # fmt: skip
    found = privacy.noise(settings.epsilon, delta, event, rounds=settings.rounds)
    enough = replace(noise, multiplier=math.ceil(found * 10_000) / 10_000)
    return Chain([enough if each is noise else each for each in chain.transforms])


def enough(
    rule: DPSGD, channel: Channel | None, settings: Settings, method: Method, data: FederatedData, calls: int
) -> DPSGD:
    """The rule, where its noise is left open with the least, to four digits, that keeps all rounds within `epsilon`.

    Whoever is drawn: the client whose samples are hidden least may be in all rounds. Raises ConfigError without a
    budget, or where it is one of clients.
    """
    if rule.noise is not None:
        return rule
    what = f"dp_sgd = {settings.dp_sgd!r} finds noise for a budget"
    if settings.epsilon is None:
        raise ConfigError(
            f"{what}, and there is none",
            hint='set epsilon=4, or write how much noise: dp_sgd = "1.0,1.1"',
        )
    blurs = (
        [each for each in channel.transforms if each.place == "blur"] if isinstance(channel, Chain) else []
    )
    if blurs:
        raise ConfigError(
            f"{what}, and with {blurs[0].text} in the channel epsilon = {settings.epsilon:g} is about clients",
            hint='write how much noise hides samples: dp_sgd = "1.0,1.1"',
        )
    sizes = [data.size(client) for client in range(len(data))]
    delta = usual_delta(sum(sizes)) if settings.delta is None else settings.delta
    check_delta(delta, sum(sizes))
    events = of_samples(replace(rule, noise=1.0), method, sizes, calls)
    found = privacy.noise_for_all(settings.epsilon, delta, events, settings.rounds) if events else 0.0
    return replace(rule, noise=math.ceil(found * 10_000) / 10_000)


def between_peers(given: Chain) -> None:
    """Raises ConfigError for a channel that peers without a server do without, and says what they have for it."""
    if given.shrink is not None:
        raise ConfigError(
            f"channel = {given.text!r} packs how a model differs from what its peer began with, which no neighbour has",
            hint=f"set method=choco, codec={given.shrink.text}: neighbours keep copies, and hear what changed",
        )
    if given.hides:
        raise ConfigError(
            f"channel = {given.text!r} hides updates from a server, and here is none",
            hint="set mixing=masked: a peer learns no more than the sum of what its neighbours offer",
        )


def fitted(
    given: Channel | None,
    settings: Settings,
    method: Method,
    data: FederatedData,
    cohort: int,
    expected: Record,
    alike: bool = False,
) -> Channel | None:
    """The channel for a run, in which clients count `alike` or not.

    Raises ConfigError where something about the run would undo what it is for.
    """
    if not isinstance(given, Chain):
        return given
    if isinstance(method, Decentralised):
        between_peers(given)
    equal = alike or (data.weights is not None and bool((data.weights == data.weights[0]).all()))
    if given.hides or given.noise is not None:
        _check(given, settings, data, equal)
    often = 1
    if given.noise is not None and given.noise.matrix is not None:
        for key in ("joins", "leaves", "newcomers"):
            if getattr(settings, key):
                raise ConfigError(
                    f"channel = {given.text!r} builds on cohorts in turn, and clients come or go",
                    hint=f"leave {key} out",
                )
        often = turns(len(data), cohort)
    heaviest = 1.0 if equal or given.equal or not given.hides else _heaviest(given, data)
    return given.fitted(
        method, expected, Setting(cohort, heaviest, settings.seed, equal, rounds=settings.rounds, turns=often)
    )


def downward(settings: Settings, method: Method) -> Down | None:
    """What packs the broadcast, if anything does.  Raises ConfigError where this method's cannot be packed."""
    text, kind = settings.down, type(method)
    if text is None:
        return None
    found = Down.parse(text)
    if not method.broadcasts:
        able = ", ".join(name for name, each in METHODS.items() if each.broadcasts)
        raise ConfigError(
            f"down = {text!r}: {kind.__name__} sends no model that is the same for all clients",
            hint=f"leave down out, or take one that does: {able}",
        )
    if found.feedback and settings.pace != "sync":
        raise ConfigError(
            f"down = {text!r} tells clients how the model has changed since the last round, and pace ="
            f" {settings.pace!r} sends each of them another one",
            hint='send models whole: down = "int8"',
        )
    return found


def _check(chain: Chain, settings: Settings, data: FederatedData, equal: bool) -> None:
    what = f"channel = {chain.text!r}"
    for key, hint in _AGAINST.items():
        if getattr(settings, key) != getattr(Settings, key):
            raise ConfigError(
                f"{what} and {key} = {getattr(settings, key)!r}: {hint}", hint=f"leave {key} out"
            )
    name = spec.parse(settings.choose, "choice").name
    if name not in ("uniform", "weighted", "fair", "poisson", "cyclic"):
        raise ConfigError(
            f"{what} and choose = {settings.choose!r}: it looks at what single clients answered",
            hint="choose uniform, weighted or fair",
        )
    if chain.noise is not None and name in ("weighted", "fair"):
        raise ConfigError(
            f"{what} and choose = {settings.choose!r}: nobody has worked out what that gives away",
            hint="leave choose out",
        )
    for rule in [] if settings.adaptive is None else settings.adaptive.split("+"):
        if spec.parse(rule.strip(), "rule").name not in ("deadline", "bandwidth"):
            raise ConfigError(
                f"{what} and adaptive = {settings.adaptive!r}: it learns from clients' losses",
                hint="leave adaptive out, or take deadline or bandwidth",
            )
    if chain.noise is not None and settings.over_select != 1.0:
        raise ConfigError(
            f"{what} and over_select = {settings.over_select}: whose reply counts depends on others",
            hint="set a deadline, which looks at each by itself",
        )
    if data.weights is not None and not equal:
        raise ConfigError(
            f"{what}: clients have weights of their own, and would count for more than one another",
            hint='set weights="equal"',
        )


_AGAINST = {
    "pace": "an asynchronous server looks at replies one by one",
    "late": "a reply that is kept for later is looked at by itself",
}


def _heaviest(chain: Chain, data: FederatedData) -> float:
    """The largest number of training samples of a client, which weights are told against."""
    if not data.listed:
        raise ConfigError(
            f"channel = {chain.text!r} multiplies weights in, and nobody knows the largest of so many clients",
            hint='set weights="equal"',
        )
    sizes: Sequence[int] = [data.size(client) for client in range(len(data))]
    return float(np.max(sizes))


def robust(
    rule: Aggregation,
    channel: Channel | None,
    settings: Settings,
    method: Method,
    data: FederatedData,
    tasks: Sequence[Task],
    device: torch.device,
    size: int,
) -> Robust:
    """The channel with the rule of `aggregate` around it.  Raises ConfigError where they do not go together."""
    what, kind = f"aggregate = {rule.text!r}", type(method).__name__
    if channel is not None and channel.hides:
        if rule.groups is None:
            raise ConfigError(
                f"{what} looks at updates one by one, and {settings.channel!r} hides them from the server",
                hint=f'let it look at sums of groups: aggregate = "groups:4 + {rule.text}"',
            )
        if size < FLOOR * rule.groups.k:
            raise ConfigError(
                f"{what} has {rule.groups.k} groups in a cohort of {size}, and a sum of fewer than {FLOOR} hides"
                " nobody",
                hint=f"set cohort to {FLOOR * rule.groups.k} or more",
            )
    if isinstance(channel, Chain) and channel.noise is not None:
        raise ConfigError(
            f"{what}: {channel.noise.text} hides what one client changes in a sum, and a rule that chooses among"
            " updates may change by more",
            hint='blur each update before it leaves: channel = "clip:0.5 | local:1.0"',
        )
    if isinstance(channel, Chain) and isinstance(channel.shrink, Auto):
        raise ConfigError(
            f"{what}: {channel.shrink.text} chooses codecs by what clients say that they lose, and they may lie",
            hint='name a codec: channel = "int8"',
        )
    if rule.beside == "root" and data.root is None:
        raise ConfigError(
            f"{what} compares updates with one that the server makes of root data, and it has none",
            hint="set root=100, so many training samples that are set aside for the server (in a simulation)",
        )
    if method.reduction == "each" or type(method).reducer is not Method.reducer:
        raise ConfigError(
            f"{what} takes the place of a mean, and {kind} puts replies together in a way of its own",
            hint="take fedavg, fedprox, fedadam, scaffold, ditto ...",
        )
    if method.change is None or method.change.since is not None:
        raise ConfigError(
            f"{what} compares how clients' models change, and {kind} does not send that",
            hint="a method of your own declares it: change = Change('update'), with update = trained - received",
        )
    if data.weights is not None and not (data.weights == data.weights[0]).all():
        raise ConfigError(
            f"{what} counts all clients alike, and they have weights of their own",
            hint='set weights="equal"',
        )
    return Robust(
        channel or Channel(),
        aggregation=rule,
        rules=tuple(method.rules.items()),
        seed=settings.seed,
        root=None if data.root is None else Root(tasks, data.root, data.classes, device),
    )


def parted(
    channel: Channel | None, settings: Settings, method: Method, data: FederatedData, task: Task
) -> Channel | None:
    """The channel with a mean for each part around it, where some samples lack parts.  Raises ConfigError."""
    inputs, pool = data.example().inputs, data.pool("train")
    names = modalities(inputs)
    whole = pool is not None and bool((present(pool.inputs) > 0).all()) if names else True
    if whole or not settings.by_part:
        return channel
    kind, what = type(method).__name__, "some clients lack parts of their samples"
    hint = "set by_part=false: one mean for all tensors, over all clients"
    said = {"aggregate": settings.aggregate, "dp_sgd": settings.dp_sgd}
    if isinstance(channel, Chain) and any(each.place != "hide" for each in channel.transforms):
        said["channel"] = channel.text
    for key, value in said.items():
        if value is not None:
            raise ConfigError(
                f"{what}, and which they say in numbers beside their updates, which {key} = {value!r} would change",
                hint=hint,
            )
    if (
        method.reduction == "each"
        or type(method).reducer is not Method.reducer
        or method.change is None
        or method.change.since is not None
    ):
        raise ConfigError(f"{what}, and {kind} does not average how clients' models change", hint=hint)
    params, buffers = task.initial()
    found = owners([*params, *buffers], names)
    idle = [name for at, name in enumerate(names) if at not in found.values()]
    if idle:
        raise ConfigError(
            f"{what}, and of {type(task.module).__name__} no tensor can be told to be for {idle[0]} alone",
            hint=f"call its submodule {idle[0]}, as in self.{idle[0]} = nn.Sequential(...), or set by_part=false",
        )
    return Parted(channel or Channel(), tuple(sorted(found.items())))


def check_root(rule: Aggregation | None, data: FederatedData) -> None:
    """Raises ConfigError for root data that nothing looks at."""
    if data.root is not None and (rule is None or rule.beside != "root"):
        raise ConfigError(
            f"root sets {data.root.count} samples aside for the server, and nothing looks at them",
            hint='leave root out, or set aggregate="fltrust"',
        )
