"""What masks between neighbours ask for (`mixing = "masked"`): a sum that is enough, and that hides somebody."""

from __future__ import annotations

from atoll.errors import ConfigError
from atoll.topology import Sums, Topology

__all__ = ["HIDDEN", "check_graph", "check_method"]

HIDDEN = 2
"""Neighbours without whom a sum hides nobody."""


def check_method(name: str, apart: str, topology: str, related: bool) -> None:
    """Raises ConfigError where peers need more than the sum of what is heard.

    Args:
        apart: why the method needs what each neighbour offers, empty where it does not.
        related: whether the graph goes by sketches of data.
    """
    if apart:
        raise ConfigError(
            f"{name} needs what each neighbour offers by itself, and with mixing = masked is only the sum: {apart}",
            hint="take dpsgd, tracking, d2, pushsum, moshpit or diloco, which a sum is enough for",
        )
    if related:
        raise ConfigError(
            f"topology = {topology} shows all others a sketch of each peer's data, which no mask hides",
            hint="take a graph that does not go by data: ring, exponential, complete",
        )


def check_graph(graphs: Topology, sums: Sums) -> None:
    """Raises ConfigError where somebody hears one other alone, whose value the sum would be."""
    what, hint = (
        f"topology = {graphs.text}",
        "take a graph in which everybody hears two others or more: ring, exponential",
    )
    if graphs.period is None:
        raise ConfigError(
            f"{what}: in some rounds somebody hears one other alone, and no mask hides that", hint=hint
        )
    for round in range(graphs.period):
        for weights in graphs.exchanges(round, sums):
            for peer in range(graphs.peers):
                if 0 < len(heard := weights.hears(peer)) < HIDDEN:
                    raise ConfigError(
                        f"{what}: in round {round + 1} peer {peer} hears peer {heard[0]} alone, and no mask hides that",
                        hint=hint if graphs.peers > HIDDEN else "masks are for three peers or more",
                    )
