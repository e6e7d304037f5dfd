"""`atoll serve`: the coordinator of a federation between machines."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta
from rich.console import Console

from atoll import spec
from atoll.deployed import KINDS, federated, office_of, prepared, stand_in
from atoll.errors import ConfigError, suggest
from atoll.experiment import Experiment
from atoll.network.coordinator import Coordinator, Deployment
from atoll.network.elsewhere import Elsewhere
from atoll.network.routes import Routes
from atoll.network.serving import Address, serve
from atoll.network.telling import Teller, said
from atoll.network.wire import PORT
from atoll.schema import convert, parse
from atoll.show.progress import on_console
from atoll.show.summary import result_view

if TYPE_CHECKING:
    from aiohttp import web

    from atoll.network.authority import Authority

__all__ = ["Wish", "command"]

_KINDS: dict[str, Any] = {
    **KINDS,
    "host": Annotated[str, Meta(description="address to listen on")],
    "port": Annotated[int, Meta(ge=0, le=65535)],
    "names": tuple[str, ...],
    "ca": str,
    "client": Annotated[str, Meta(description="files of a client for browsers, shown below /client/")],
}


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
    experiment = prepared(Experiment.read(wish.file, wish.sets, data=_stand_in(wish)), given)
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


def _stand_in(wish: Wish) -> str:
    """What stands for the data of nodes, by what the file or the command line says of data."""
    said = {**parse(Path(wish.file)), **dict(spec.assignment(text, "--set") for text in wish.sets)}
    return stand_in(said.get("data"))


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
