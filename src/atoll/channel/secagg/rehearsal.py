"""A round's secure aggregation with everybody in one process: what a simulation plays."""

from __future__ import annotations

from collections.abc import Mapping

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from atoll.channel.secagg.client import Client
from atoll.channel.secagg.encoding import Encoding, Ints
from atoll.channel.secagg.floors import Floors, MarksInMemory
from atoll.channel.secagg.play import exchange
from atoll.channel.secagg.server import Server
from atoll.channel.secagg.terms import proposed
from atoll.errors import ConfigError

__all__ = ["rehearsed"]


def rehearsed(vectors: Mapping[int, Ints], *, run: str, round: int, encoding: Encoding) -> Ints:
    """The sum of encoded updates (uint32 [d + 1], the weight last) by client, by the whole protocol.

    Everybody has new keys, and answers. Raises ConfigError for fewer than three clients: a sum of two tells each of
    them the other's.
    """
    if len(vectors) < 3:
        raise ConfigError(
            f"round {round}: a sum of {len(vectors)} clients hides nobody", hint="set a larger cohort"
        )
    nodes = {f"{client:012d}": client for client in sorted(vectors)}
    terms = proposed(run, round, 0, tuple(nodes), encoding)
    beacon = terms.beacon
    identities = {node: Ed25519PrivateKey.generate() for node in nodes}
    registry = {node: key.public_key().public_bytes_raw() for node, key in identities.items()}
    clients = {}
    for node, key in identities.items():
        clients[node] = Client(node, key.sign, registry, Floors(), MarksInMemory(), beacon=beacon)
        clients[node].contribute(vectors[nodes[node]])
    return exchange(Server(terms, registry), clients).sums
