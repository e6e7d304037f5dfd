"""Secure aggregation: the server learns the sum of its clients' updates, and nothing of any one of them.

Client and server are state machines, messages in and messages out, without input or output of their own; whoever drives
them, a simulation, a network or a test, drives the same code. What it protects against whom: docs/secagg.md.
`Client`, `Server` and `exchange` need the extra `secagg`; the rest does not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .encoding import Encoding, Total
from .errors import AbortedError, OutOfTurnError, RefusedError, RejectedError, SpentError
from .floors import Floors, Marks, MarksInMemory
from .graph import Graph, Plan, plan
from .ideal import ideal
from .messages import from_client, from_server, pack
from .terms import Terms, lottery, proposed

if TYPE_CHECKING:
    from .client import Client
    from .play import exchange
    from .server import Server

__all__ = [
    "AbortedError", "Client", "Encoding", "Floors", "Graph", "Marks", "MarksInMemory", "OutOfTurnError", "Plan",
    "RefusedError", "RejectedError", "Server", "SpentError", "Terms", "Total", "exchange", "from_client", "from_server",
    "ideal", "lottery", "pack", "plan", "proposed",
]  # fmt: skip

_LATER = {"Client": "client", "Server": "server", "exchange": "play"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
