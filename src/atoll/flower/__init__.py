"""Flower's networks and clients: an Atoll run on SuperLink and SuperNodes, and Flower's clients in an Atoll run."""

from __future__ import annotations

from atoll.flower.node import client_app
from atoll.flower.server import server_app

__all__ = ["client_app", "server_app"]
