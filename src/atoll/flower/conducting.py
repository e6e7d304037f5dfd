"""A run with a grid's SuperNodes, as a coordinator plays it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from atoll.channel.down import Down
from atoll.deployed import KINDS, federated, office_of, prepared
from atoll.errors import ConfigError
from atoll.experiment import Experiment
from atoll.flower.carrier import Carrier
from atoll.guarding import stated
from atoll.network.coordinator import Coordinator, Deployment, Office
from atoll.network.elsewhere import Elsewhere
from atoll.schema import convert
from atoll.show.progress import on_console
from atoll.show.summary import result_view

__all__ = ["conducted"]


def conducted(grid: Any, settings: Mapping[str, Any]) -> Any:
    """Play the run that these settings describe with a grid's SuperNodes, from where it was; what came of it.

    Raises AtollError.
    """
    kinds = {**KINDS, "save": str}
    given: dict[str, Any] = {"place": "coordinator", "absent": 60.0}
    given |= {key: convert(key, settings[key], "", kinds[key]) for key in kinds if key in settings}
    rest = {key: value for key, value in settings.items() if key not in kinds}
    if "data" in rest:
        raise ConfigError(
            f"data = {rest['data']!r}, and data are with the SuperNodes",
            hint="flower-supernode --node-config 'data=\"/data/a.csv\"', or client_app(data=...)",
        )
    experiment = prepared(Experiment.read(data="nodes.csv", **rest), given)
    channel, _ = stated(experiment.channel)
    if channel is not None and channel.hides:
        raise ConfigError(
            f"channel = {experiment.channel!r}: a node's secrets of a secure sum live in a process that stays, and"
            " Flower starts one for every message",
            hint="`atoll serve` has secure aggregation; here, noise in the channel (local) hides updates",
        )
    if experiment.down is not None and Down.parse(experiment.down).feedback:
        raise ConfigError(
            f"down = {experiment.down!r}: a node that has lost what differences are told from is to fetch the model"
            " whole, and Flower's messages bring nothing that was not sent",
            hint='send models whole: down = "int8"',
        )
    run = asyncio.run(_run(grid, office_of(experiment, given), experiment))
    if "save" in given:
        run.save(given["save"])
        print(f"model saved to {Path(given['save']).resolve()}", flush=True)
    return run


async def _run(grid: Any, office: Office, experiment: Experiment) -> Any:
    console = Console(highlight=False, width=140)

    def build(data: Elsewhere, nodes: Deployment, callbacks: Sequence[Any]) -> Any:
        federation = federated(experiment, data, nodes, callbacks)
        federation.keeper.session.log.append(on_console(console))
        return federation

    coordinator = await asyncio.to_thread(Coordinator, office, build)
    tell = partial(print, flush=True)
    tell(f"the run's directory is {office.place.resolve()}")
    try:
        coordinator.start()
        carrying = asyncio.ensure_future(Carrier(coordinator, grid, tell).carry())
        watching = asyncio.ensure_future(_watch(coordinator, tell))
        try:
            await carrying
        finally:
            watching.cancel()
            await coordinator.stop()
    finally:
        await asyncio.to_thread(coordinator.close)
    if coordinator.error is not None:
        raise coordinator.error
    console.print(result_view(coordinator.result))
    return coordinator.result


async def _watch(coordinator: Coordinator, tell: Any) -> None:
    """Say what the run waits for."""
    before = None
    while True:
        if (state := coordinator.desk.state) != before and "waiting" in state:
            tell(state)
        before = state
        await asyncio.sleep(0.5)
