"""`atoll peer`: one of several that learn without a server."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import typer
from rich.console import Console

from atoll import own, seeds
from atoll.assembly import build_method
from atoll.channel import Chain, Setting
from atoll.cli.events import JsonLines
from atoll.cli.run import terminable
from atoll.contract import Population
from atoll.data import FederatedData
from atoll.deployed import plan_of
from atoll.errors import ConfigError
from atoll.experiment import Experiment
from atoll.guarding import between_peers, stated
from atoll.methods import METHODS
from atoll.methods.neighbours.decentralised import Decentralised
from atoll.network.here import Here
from atoll.network.telling import Teller, said
from atoll.networks import architectures, networks
from atoll.parties.framed import Address, Secured
from atoll.peer.keeping import Labels, secret
from atoll.peer.member import Member
from atoll.peer.running import Seat, take_part
from atoll.runs.events import Event
from atoll.runs.readers import Reader
from atoll.schema import parse
from atoll.settings import Settings
from atoll.task import Task
from atoll.thrift import Thrift
from atoll.words import bytes_text, duration_text, value_text

__all__ = ["Wish", "command"]

_DATA = ("partition", "client", "clients", "public")
_MATTER = {"rounds", "seed", "engine", "eval_every", "channel"}
"""Settings of a run that a peer goes by; with others it would not do what they say."""

_ASIDE = {"runs", "checkpoint", "keep", "device", "workers", "eval_clients"}
"""And those that are another machine's, or a simulation's own affair."""


@dataclass(frozen=True)
class Wish:
    """What the command line asks for."""

    file: str
    name: str
    sets: list[str] = field(default_factory=list)
    listen: str | None = None
    address: str | None = None
    neighbours: str | None = None
    data: str | None = None
    keys: str | None = None
    plain: bool = False
    place: str | None = None
    patience: float = 60.0
    deadline: float | None = None
    wait: float = 600.0
    json: bool = False
    quiet: bool = False


class Lines(Reader):
    """Prints a line for every round."""

    name = "lines"

    def __init__(self, console: Console) -> None:
        self.console = console

    def event(self, event: Event) -> None:
        kind = event["event"]
        if kind == "start":
            others = len(event["peers"]) - 1
            self._print(f"{event['method']} as {event['peer']}, with {others} others", "bold")
        elif kind == "resume":
            self._print(f"goes on after round {event['round']}", "bold")
        elif kind == "round":
            judged = event.get("evaluation") or {}
            shown = {"loss": event.get("loss"), **judged.get("overall", {})}
            parts = [f"{event['round']:>5}"]
            parts += [f"{n} {value_text(n, v)}" for n, v in shown.items() if v is not None]
            if "consensus" in judged:
                parts += [f"apart {judged['consensus']:.3g}"]
            gone = [name for name, each in event["links"].items() if each["gone"]]
            parts += [bytes_text(event["bytes_up"]), duration_text(event["seconds"])]
            parts += [f"without {', '.join(gone)}"] if gone else []
            self._print("   ".join(parts), "")

    def _print(self, text: str, style: str) -> None:
        self.console.print(text, style=style, markup=False, soft_wrap=True)


def command(wish: Wish) -> None:
    """Take part until all rounds are over."""
    console = Console(stderr=wish.json, highlight=False)
    teller = Teller(stream=sys.stderr if wish.json else sys.stdout)
    experiment = Experiment.read(wish.file, wish.sets)
    method = checked(experiment)
    table = peers(wish)
    if wish.plain == (wish.keys is not None):
        raise ConfigError(
            "say --keys DIR, where this peer's certificate is, or --plain on one machine",
            hint="atoll ca invite NAME --role party, and atoll ca enrol, make one",
        )
    data, names, number = found(wish, experiment, list(table))
    place = Path(wish.place or f"peers/{wish.name}")
    member = member_of(experiment, method, data, number, names, place)
    seat = seat_of(wish, table, names[number])
    labels = Labels(
        own.short(experiment.method), wish.data or experiment.data, experiment.model, experiment.seed,
        experiment.rounds, experiment.to_dict(),
    )  # fmt: skip
    log: list[Reader] = [] if wish.quiet else [Lines(console)]
    log += [JsonLines()] if wish.json else []

    async def play() -> Any:
        work = asyncio.ensure_future(
            take_part(member, names, alike(experiment, member, names), labels, seat, place, log, teller,
                      experiment.eval_every)
        )  # fmt: skip
        loop = asyncio.get_running_loop()
        for sign in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(sign, work.cancel)
        return await work

    try:
        with terminable():
            book = asyncio.run(play())
    except asyncio.CancelledError:
        teller(said("left", "left; the same command goes on from here"))
        raise typer.Exit(130) from None
    shown = ", ".join(f"{name} {value_text(name, value)}" for name, value in book.figures.items())
    console.print(f"\n{shown or 'no test data here'}", markup=False)
    for name, rounds in book.missing.items():
        console.print(f"{name}: nothing came in {len(rounds)} of {book.number} rounds", markup=False)
    console.print(str(book.session.folder.path), markup=False, soft_wrap=True, style="dim")


def checked(experiment: Experiment) -> Decentralised:
    """The method.  Raises ConfigError for one that needs a server, and for settings that peers cannot keep to."""
    method = build_method(experiment.method, experiment.settings)
    if not isinstance(method, Decentralised):
        able = [name for name, kind in METHODS.items() if issubclass(kind, Decentralised)]
        raise ConfigError(
            f"method = {experiment.method!r} needs a server, and here is none",
            hint=f"without one: {', '.join(able)}; with one: atoll serve and atoll join",
        )
    for key in Settings.kinds():
        value = getattr(experiment, key)
        if key not in _MATTER | _ASIDE and value != getattr(Experiment, key):
            raise ConfigError(
                f"{key} = {value!r} is for a simulation of all peers (atoll run), and means nothing to one of them",
                hint="leave it out",
            )
    return method


def peers(wish: Wish) -> dict[str, Address | None]:
    """The table [peers] of the file: names in their order, and where they listen.  Raises ConfigError."""
    table = parse(Path(wish.file)).get("peers", {})
    if not isinstance(table, Mapping) or not all(isinstance(each, str) for each in table.values()):
        raise ConfigError(
            f"{wish.file}: peers is a table of names and addresses",
            hint='write [peers] and below it ann = "ann.example.org:9000" (or "" where others know it)',
        )
    return {name: Address.parse(text) if text else None for name, text in table.items()}


def found(wish: Wish, experiment: Experiment, listed: list[str]) -> tuple[FederatedData, list[str], int]:
    """(data, names of all peers, this one's number).

    Without data of its own a peer takes its part of those that the file names, as in a simulation.
    """
    if wish.data is not None:
        if not listed:
            raise ConfigError(
                f"{wish.file} does not say who the peers are", hint='list them: [peers] ann = "HOST:PORT" ...'
            )
        number = _number(wish.name, listed)
        for key in _DATA:
            if getattr(experiment, key) != getattr(Experiment, key):
                raise ConfigError(
                    f"{key} = {getattr(experiment, key)!r} divides data, and with --data each has its own",
                    hint=f"leave {key} out",
                )
        if own.named(wish.data):
            own.admit(wish.data, "data")
        return Here.load(wish.data, number, wish.name, plan_of(experiment, {})), listed, number
    data = experiment.divide(experiment.load())
    names = listed or [str(name) for name in data.names]
    if len(names) != len(data):
        raise ConfigError(
            f"{experiment.data} is divided among {len(data)} clients, and [peers] has {len(names)}",
            hint=f"set clients = {len(names)}",
        )
    return data, names, _number(wish.name, names)


def _number(name: str, names: list[str]) -> int:
    if name not in names:
        shown = ", ".join(names[:20]) + (" ..." if len(names) > 20 else "")
        raise ConfigError(
            f"--name {name}: the peers are {shown}", hint="their names stand in [peers], or are their numbers"
        )
    return names.index(name)


def member_of(
    experiment: Experiment,
    method: Decentralised,
    data: FederatedData,
    number: int,
    names: list[str],
    place: Path | None = None,
) -> Member:
    """This peer's half of the method; what it draws noise from is kept in its `place`.  Raises ConfigError."""
    named = experiment.loss and own.named(experiment.loss)
    loss: Any = own.found(str(experiment.loss), "loss") if named else experiment.loss
    with seeds.scoped(experiment.seed, "node"):
        tasks = architectures(
            networks(experiment.model, data),
            data,
            method,
            experiment.seed,
            loss,
            experiment.metrics,
            experiment.adapter,
            experiment.base,
        )
    for task in tasks:
        task.thrift = Thrift(experiment.precision, experiment.accumulate, experiment.recompute)
    channel, noise = None, None
    if place is not None and (
        experiment.channel is not None or (method.kin is not None and method.kin.noise)
    ):
        noise = secret(place / "noise.key")
    if experiment.channel is not None:
        channel = channel_of(experiment, method, tasks[0], data, names)
    return Member(
        method, tasks[0], data, number, names, experiment.seed, experiment.engine == "loop", channel, noise
    )


def channel_of(
    experiment: Experiment, method: Decentralised, task: Task, data: FederatedData, names: list[str]
) -> Chain:
    """What happens to a peer's model before anybody hears it.  Raises ConfigError for what needs a server."""
    chain, _ = stated(experiment.channel)
    assert isinstance(chain, Chain)
    between_peers(chain)
    population = Population(len(names), (task,), data.example().inputs[:1], seed=experiment.seed, names=names)
    with seeds.scoped(experiment.seed, "setup"):
        expected = method.expects(method.setup(task, population))
    return chain.fitted(
        method, expected, Setting(len(names), seed=experiment.seed, rounds=experiment.rounds, secret=True)
    )


def seat_of(wish: Wish, table: Mapping[str, Address | None], name: str) -> Seat:
    """Where this peer is.  Raises ConfigError."""
    known = {each: where for each, where in table.items() if where is not None}
    mine = known.pop(name, None)
    listen = Address.parse(wish.listen) if wish.listen else mine
    if listen is None:
        raise ConfigError(f"where does {name} listen?", hint="--listen HOST:PORT, or its address in [peers]")
    strangers = [Address.parse(each.strip()) for each in (wish.neighbours or "").split(",") if each.strip()]
    if not known and not strangers and len(table) != 1:
        raise ConfigError(
            f"{name} knows nobody",
            hint="--neighbours HOST:PORT,HOST:PORT of any of the others, or [peers] in the file",
        )
    secured: Secured | None = None
    if wish.keys is not None:
        from atoll.network.between import secured as contexts

        secured = contexts(Path(wish.keys), name)
    address = Address.parse(wish.address) if wish.address else mine
    return Seat(listen, known, strangers, address, secured, wish.patience, wish.deadline, wish.wait)


def alike(experiment: Experiment, member: Member, names: list[str]) -> str:
    """A hash of what all peers must have alike."""
    plan = msgspec.to_builtins(plan_of(experiment, {}))
    links = [(each.source, each.to, each.weight) for each in member.graphs.links]
    text = msgspec.json.encode([plan, names, links, experiment.rounds], order="sorted")
    return hashlib.sha256(text).hexdigest()
