"""`atoll serve`: the coordinator of a federation between machines."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from msgspec import Meta
from rich.console import Console

from atoll import own
from atoll.assembly import budgeted, build_method
from atoll.data.weights import weights_of
from atoll.errors import ConfigError, suggest
from atoll.experiment import Experiment
from atoll.federation import Federation
from atoll.guarding import stated
from atoll.network.backing import backed
from atoll.network.base import remembered
from atoll.network.coordinator import Coordinator, Deployment, Office
from atoll.network.elsewhere import Elsewhere
from atoll.network.here import Here
from atoll.network.routes import Routes
from atoll.network.rows import arrays, packed
from atoll.network.serving import Address, serve
from atoll.network.suitable import check, check_model, check_public, check_trusted
from atoll.network.sums import between, whole
from atoll.network.telling import Teller, said
from atoll.network.wire import NAME, PORT, DataForm, Field, Plan
from atoll.networks import architectures, networks
from atoll.rounds.membership import Membership
from atoll.schema import convert, parse
from atoll.settings import Count
from atoll.show.progress import on_console
from atoll.show.summary import result_view

if TYPE_CHECKING:
    from aiohttp import web

    from atoll.network.authority import Authority

__all__ = ["Wish", "command"]

_INSTEAD = {
    "public": 'write public = "public.npz" into [network]: inputs x, which all nodes get',
    "root": 'write root = "root.npz" into [network]: samples like a node\'s, which stay here',
}
_UNKNOWN = DataForm(
    inputs=(Field(name="", dtype="F32", shape=(1,)),), targets=Field(name="", dtype="F32", shape=()), classes=None,
    train=0,
)  # fmt: skip
"""The form of data that nobody has yet."""

_FILE_KEYS = ("label", "features", "categorical", "classes", "missing", "scale", "ignore")
_KINDS: dict[str, Any] = {
    "host": Annotated[str, Meta(description="address to listen on")],
    "port": Annotated[int, Meta(ge=0, le=65535)],
    "min_clients": Count,
    "names": tuple[str, ...],
    "nodes": tuple[str, ...],
    "absent": Annotated[float, Meta(gt=0)],
    "place": str,
    "ca": str,
    "public": Annotated[str, Meta(description="an .npz file with inputs x that all nodes get, to distil on")],
    "root": Annotated[
        str,
        Meta(
            description="samples of the coordinator's own, a file like a node's, for aggregate = \"fltrust\""
        ),
    ],
    "repeatable_noise": Annotated[
        bool, Meta(description="noise of nodes may follow from the seed: never private")
    ],
    "client": Annotated[str, Meta(description="files of a client for browsers, shown below /client/")],
}


_KEEP = "last:2, best"
"""Checkpoints that stay unless somebody says otherwise: should the newest be damaged, there is the one before."""


@dataclass(frozen=True)
class Wish:
    """What the command line asks for; None is what the file says, or the default."""

    file: str
    sets: list[str]
    host: str | None = None
    port: int | None = None
    min_clients: int | None = None
    place: str | None = None
    ca: str | None = None
    plain: bool = False
    save: str | None = None
    quiet: bool = False
    log_json: bool = False


def command(wish: Wish) -> None:
    """Serve the run that the file describes, until it is over."""
    console = Console(stderr=False, highlight=False)
    teller = Teller(wish.log_json)
    given = network(wish)
    experiment = prepared(wish, given)
    office = office_of(experiment, given)
    authority = secured(wish, given)
    address = address_of(given, authority)

    def build(data: Elsewhere, nodes: Deployment, callbacks: Sequence[Any]) -> Any:
        federation = federated(experiment, data, nodes, callbacks)
        if not wish.quiet and not wish.log_json:
            federation.keeper.session.log.append(on_console(console))
        return federation

    if office.plan.repeatable:
        console.print("repeatable_noise: noise of nodes may follow from the seed. This run is NOT private.")

    def ready(url: str, coordinator: Coordinator) -> None:
        where = url.partition("//")[2]
        plain = " --plain" if address.context is None else ""
        teller(said("listening", f"listening on {url}", url=url))
        line = f"  atoll join {where}{plain} --name NAME --data FILE"
        if address.context is not None:
            line = f"  atoll join {where} --invitation TOKEN --data FILE     (atoll ca invite NAME makes a token)"
        teller(said("line", f"nodes take part with\n{line}"))

    def told(state: str) -> None:
        if not wish.log_json and (not state.startswith("round") or "waiting" in state):
            teller(state)

    def more(coordinator: Coordinator, routes: Routes, site: web.Application) -> None:
        coordinator.notebook.listeners.append(teller.event)
        if authority is not None:
            from atoll.network.enrolment import enrolment_routes
            from atoll.network.tls import gate

            site.add_routes(enrolment_routes(authority, coordinator.notebook.write))
            site.middlewares.append(gate(authority))  # type: ignore[arg-type]

    run = asyncio.run(serve(office, build, address, ready=ready, told=told, more=more))
    if run is None:
        teller(said("stopped", "stopped; the same command goes on from here"))
        return
    if not wish.log_json:
        console.print(result_view(run))
    if wish.save is not None:
        run.save(wish.save)
        teller(said("saved", f"model saved to {wish.save}", file=wish.save))


def prepared(wish: Wish, given: dict[str, Any]) -> Experiment:
    """The run that the file describes; what it says in [network] is `given`.

    Raises ConfigError for what is not to be had between machines, as far as it is known before nodes are there.
    """
    place = str(Path(given["place"]) / "runs")
    experiment = Experiment.read(wish.file, wish.sets, data="nodes.csv", runs=place)
    experiment = replace(experiment, channel=whole(experiment.channel))
    method = build_method(experiment.method, experiment.settings)
    check(experiment, method)
    check_model(experiment.model, method)
    check_public(method, bool(given.get("public")))
    check_trusted(experiment, bool(given.get("root")))
    channel, _ = stated(experiment.channel)
    between(channel, secret=True)
    for key in ("partition", "client", "public", "root", "mix"):
        if getattr(experiment, key) != getattr(Experiment, key):
            raise ConfigError(
                f"{key} = {getattr(experiment, key)!r} divides data, and nodes have theirs",
                hint=_INSTEAD.get(key, f"leave {key} out"),
            )
    if experiment.weights not in (None, ("equal",)):
        raise ConfigError("weights of single nodes are not known here", hint='set weights="equal"')
    empty = Elsewhere(places_of(experiment, given), _UNKNOWN)
    Membership(empty, experiment.seed, experiment.newcomers)
    _, settled = budgeted(
        channel, experiment, empty, experiment.choose
    )  # nodes are told how much noise it takes
    kept = _KEEP if experiment.keep == Experiment.keep else experiment.keep
    return replace(experiment, channel=settled.channel, keep=kept)


def federated(
    experiment: Experiment, data: Elsewhere, nodes: Deployment, callbacks: Sequence[Any]
) -> Federation:
    """The federation of nodes that are there."""
    if experiment.weights is not None:
        data.weights = np.asarray(weights_of(data.names, "equal"))
    federation = experiment.federate(data, callbacks, nodes=nodes)
    federation.keeper.labels |= {"data": "nodes", "partition": "by node"}
    return federation


def network(wish: Wish) -> dict[str, Any]:
    """The table [network] of the file, and what the command line says instead.  Raises ConfigError."""
    table = parse(Path(wish.file)).get("network", {})
    if not isinstance(table, dict):
        raise ConfigError(f"{wish.file}: network is a table", hint="write [network] and its keys below")
    found: dict[str, Any] = {"host": "127.0.0.1", "port": PORT, "place": "coordinator", "absent": 60.0}
    for key, value in table.items():
        if key not in _KINDS:
            raise ConfigError(f"{wish.file}: unknown key {key!r} in [network]", hint=suggest(key, _KINDS))
        found[key] = convert(key, value, f"({wish.file})", _KINDS[key])
    for key in ("host", "port", "min_clients", "place", "ca"):
        if (value := getattr(wish, key)) is not None:
            found[key] = convert(key, value, f"(--{key.replace('_', '-')})", _KINDS[key])
    for name in found.get("nodes", ()):
        if not NAME.fullmatch(name):
            raise ConfigError(f"nodes: {name!r} is no name of a node", hint="small letters, digits and -")
    return found


def address_of(given: dict[str, Any], authority: Authority | None) -> Address:
    """Where to listen, and as whom."""
    client = Path(given["client"]) if given.get("client") else None
    if client is not None and not client.is_dir():
        raise ConfigError(f"client: there is no directory {client}", hint="leave it out")
    if authority is None:
        return Address(given["host"], given["port"], client=client)
    from atoll.network.tls import identify, renewing, server_context

    names = given.get("names") or (given["host"],)
    if given["host"] in ("0.0.0.0", "::", ""):
        names = given.get("names") or ("localhost", "127.0.0.1")
    context = server_context(authority, list(names))
    return Address(
        given["host"],
        given["port"],
        context,
        lambda request: identify(request, authority),
        tuple(names),
        client,
        lambda: renewing(context, authority, list(names)),
    )


def places_of(experiment: Experiment, given: dict[str, Any]) -> int:
    """How many clients there may be.  Raises ConfigError where nobody has said."""
    found = experiment.clients or len(given.get("nodes") or ()) or given.get("min_clients")
    if not found:
        raise ConfigError(
            "nobody has said how many nodes the run needs", hint="--min-clients 4, or [network] nodes"
        )
    return int(found)


def office_of(experiment: Experiment, given: dict[str, Any]) -> Office:
    """How the coordinator is set.  Raises ConfigError."""
    nodes, places = given.get("nodes"), places_of(experiment, given)
    least = given.get("min_clients") or (len(nodes) if nodes else places)
    if places < least:
        raise ConfigError(f"min_clients = {least}, but there are only {places} places (clients)")
    plan = plan_of(experiment, given)
    public = packed(arrays(Path(given["public"]))) if given.get("public") else None
    place = Path(given["place"])
    base = partial(base_at, experiment, place)
    root = Here.of_root(given["root"], plan) if given.get("root") else None
    return Office(place, plan, places, least, nodes, given["absent"], public, base, root)


def base_at(experiment: Experiment, place: Path, form: DataForm) -> str | None:
    """The hash of what the run's model does not train, for data of this form."""
    data, method = Elsewhere(1, form), build_method(experiment.method, experiment.settings)
    loss: Any = experiment.loss
    loss = own.found(loss, "loss") if loss and own.named(loss) else loss
    with backed(place):
        made = architectures(
            networks(experiment.model, data), data, method, experiment.seed, loss, experiment.metrics,
            experiment.adapter, experiment.base,
        )  # fmt: skip
    return remembered(made, experiment.base, [experiment.model, experiment.adapter], place)


def plan_of(experiment: Experiment, given: dict[str, Any]) -> Plan:
    """What nodes are told."""
    return Plan(
        method=experiment.method,
        hyper=dict(experiment.settings),
        model=experiment.model,
        loss=experiment.loss,
        metrics=experiment.metrics,
        augment=experiment.augment,
        channel=experiment.channel,
        dp_sgd=experiment.dp_sgd,
        down=experiment.down,
        adapter=experiment.adapter,
        seed=experiment.seed,
        engine="loop" if experiment.engine == "loop" else "processes",
        data={key: value for key in _FILE_KEYS if (value := getattr(experiment, key)) is not None},
        validation=experiment.validation,
        test=experiment.test,
        rounds=experiment.rounds,
        cohort=experiment.cohort,
        repeatable=given.get("repeatable_noise", False),
    )


def secured(wish: Wish, given: dict[str, Any]) -> Authority | None:
    """Who certifies; None for plain text on this machine.  Raises ConfigError."""
    if wish.plain:
        return None
    from atoll.network.authority import Authority

    place = Path(given.get("ca") or "ca")
    if not place.is_dir():
        raise ConfigError(
            f"there is no authority in {place}, and nothing goes out unencrypted",
            hint=f"make one: atoll ca init --ca {place}; or try on this machine alone with --plain",
        )
    return Authority(place)
