"""Flower's networks and clients: an Atoll run on SuperLink and SuperNodes, and Flower's clients in an Atoll run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from atoll.flower.node import client_app
from atoll.flower.server import server_app

if TYPE_CHECKING:
    from atoll.flower.clients import NumPyClients

__all__ = ["NumPyClients", "client_app", "server_app"]


def __getattr__(name: str) -> Any:
    if name != "NumPyClients":  # which needs torch, and a SuperNode's own process does not
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from atoll.flower.clients import NumPyClients

    return NumPyClients
