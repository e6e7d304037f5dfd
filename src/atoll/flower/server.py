"""The ServerApp: a coordinator whose nodes are SuperNodes."""

from __future__ import annotations

from typing import Any

from atoll.errors import AtollError
from atoll.flower.fitting import fits_or_ends

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

    Ends the process, with what to install, for a release of Flower that does not fit (2) and where there is none (3).
    """
    fits_or_ends()
    from flwr.serverapp import ServerApp
    from flwr.supercore.exit import ExitCode, flwr_exit

    app = ServerApp()

    def main(grid: Any, context: Any) -> None:
        config = {
            key.removeprefix(_TABLE): value
            for key, value in context.run_config.items()
            if key.startswith(_TABLE)
        }
        from atoll.flower.conducting import (
            conducted,  # a SuperNode, which reads the same app.py, needs no torch
        )

        try:
            conducted(grid, {**settings, **config})
        except AtollError as error:  # an exception that Flower sees is a traceback in its log
            flwr_exit(ExitCode.SERVERAPP_EXCEPTION, f"error: {error}")

    app.main()(main)
    return app
