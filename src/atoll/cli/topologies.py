"""`atoll topologies`: what is known of a graph of peers before a run."""

from __future__ import annotations

from atoll.cli.show import new_console, new_table
from atoll.errors import ConfigError
from atoll.topology import Figures, figures, topology

__all__ = ["show"]

_ALL = (
    "ring", "torus", "complete", "star", "erdos:0.4", "smallworld:4,0.2", "regular:4", "exponential", "one-peer",
    "base:1", "base:2", "equitopo", "grid:2", "epidemic:2",
)  # fmt: skip


def show(name: str | None, peers: int, seed: int) -> None:
    """A line for a topology, or for one of each kind that so many peers can have.  Raises ConfigError for one."""
    lines = new_table("topology", "neighbours", "messages a round", "spectral gap", "exact after", "period")
    for text in _ALL if name is None else (name,):
        try:
            found = figures(topology(text, peers, seed))
        except ConfigError:
            if name is not None:
                raise
            continue  # no torus of 13 peers, say
        lines.add_row(text, *_cells(found))
    note = "The gap is of a round, on average over a period. atoll explain topology says what each is"
    new_console().print(lines, note, sep="", markup=False)


def _cells(found: Figures) -> list[str]:
    """What a line has of a topology."""
    exact = "-" if found.exact_after is None else f"{found.exact_after} round{'s' * (found.exact_after > 1)}"
    return [
        str(found.degree),
        f"{found.links:.4g}",
        "one way" if found.gap is None else f"{found.gap:.5f}",
        exact,
        "new each round" if found.period is None else str(found.period),
    ]
