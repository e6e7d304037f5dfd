"""The ServerApp: a coordinator whose nodes are SuperNodes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from atoll.deployed import KINDS, federated, office_of, prepared
from atoll.errors import AtollError, ConfigError
from atoll.experiment import Experiment
from atoll.flower.carrier import Carrier
from atoll.flower.fitting import fitting
from atoll.network.coordinator import Coordinator, Deployment, Office
from atoll.network.elsewhere import Elsewhere
from atoll.schema import convert
from atoll.show.progress import on_console
from atoll.show.summary import result_view

__all__ = ["server_app"]

_TABLE = "atoll."
"""What keys of the project's own settings begin with that are meant here: `[tool.flwr.app.config.atoll]`."""


def server_app(**settings: Any) -> Any:
    """The ServerApp of a Flower project that trains by a method of Atoll's, on SuperNodes that run `client_app`.

    Args:
        settings: those of `atoll.run` and of the method (``method="scaffold", lr=0.1, rounds=20``), how data are read
            (`classes`, `label`, `features` ...), and what else a run between machines has: `min_clients`, without which
            no round begins; `nodes`, their names in the order of clients; `place`, the directory of the run, with which
            it goes on when it is started again (by default "coordinator", where the SuperLink was started); `absent`,
            `public`, `root` and `repeatable_noise` as in the table [network] of `atoll serve`; `save`, a file for the
            model. The project's `[tool.flwr.app.config.atoll]`, and so ``flwr run --run-config "atoll.rounds=5"``,
            counts before them.

    Raises ConfigError for a release of Flower that does not fit, MissingExtraError where there is none.
    """
    fitting()
    from flwr.serverapp import ServerApp
    from flwr.supercore.exit import ExitCode, flwr_exit

    app = ServerApp()

    def main(grid: Any, context: Any) -> None:
        config = {
            key.removeprefix(_TABLE): value
            for key, value in context.run_config.items()
            if key.startswith(_TABLE)
        }
        try:
            conducted(grid, {**settings, **config})
        except AtollError as error:  # an exception that Flower sees is a traceback in its log
            flwr_exit(ExitCode.SERVERAPP_EXCEPTION, f"error: {error}")

    app.main()(main)
    return app


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
