"""`atoll doctor --network`: what is between this machine and a coordinator."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from atoll.cli.join import parted
from atoll.cli.status import identified

if TYPE_CHECKING:
    from atoll.network.tls import Held

__all__ = ["examine"]


@dataclass
class _Nobody:
    """Files of a caller who has none."""

    ca: Path = Path("/nonexistent/ca.pem")
    pem: Path = Path("/nonexistent/identity.pem")


def examine(address: str, identity: str | None) -> None:
    """Call a coordinator as this identity would, and say why it would refuse; exit code 1 where it would."""
    from atoll.network.preflight import preflight

    host, port = parted(address)
    caller: Held = _Nobody() if identity is None else identified(identity)
    finding = preflight(host, port, caller)
    print(finding)
    if finding.problem is not None:
        raise typer.Exit(1)
