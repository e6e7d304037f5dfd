"""What one attempt at a sum is held to: everything that clients must agree on, and its name, the sid."""

from __future__ import annotations

import hashlib

import msgspec

from atoll.channel.secagg.encoding import Encoding
from atoll.channel.secagg.graph import Graph, plan
from atoll.errors import ConfigError

__all__ = ["Terms", "lottery", "proposed"]

GAMMA = DELTA = 0.1
"""Shares of a cohort that may be corrupt, and that may drop out (see `plan`)."""


class Terms(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The terms of an attempt. The server proposes them, and each client compares them with what it insists on.

    Args:
        run, round, attempt: which; an attempt that failed is followed by another with the next number.
        nodes: who is asked, sorted; a client's number is its position.
        degree: neighbours of each client: n - 1 for the complete graph, else even and less.
        threshold: t, the shares that give back a secret, of the degree + 1 that there are.
        encoding: how updates become whole numbers.
        model: hash of the model that was sent out, the same for all.
        active: whether clients confirm to each other who is in the sum, before it is unmasked.
        beacon: public randomness for a graph that is not complete, 32 bytes; else empty. Against an active server it
            must come from where the server has no say, after the nodes are fixed.
    """

    run: str
    round: int
    attempt: int
    nodes: tuple[str, ...]
    degree: int
    threshold: int
    encoding: Encoding
    model: bytes = b""
    active: bool = True
    beacon: bytes = b""

    @property
    def graph(self) -> Graph:
        """Who is whose neighbour."""
        return Graph(len(self.nodes), self.degree, self.beacon)

    @property
    def sid(self) -> bytes:
        """SHA-256 over run, round, attempt, the hash of all other terms, and nodes, each with its length before it."""
        config = msgspec.msgpack.encode(
            (self.degree, self.threshold, self.encoding, self.model, self.active, self.beacon)
        )
        parts = [
            b"atoll secagg 1", self.run.encode(), str(self.round).encode(), str(self.attempt).encode(),
            hashlib.sha256(config).digest(), *(node.encode() for node in self.nodes),
        ]  # fmt: skip
        return hashlib.sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).digest()

    def check(self) -> None:
        """Raises ConfigError for terms that cannot work: a graph or a threshold that is none, sums without room."""
        n, k = len(self.nodes), self.degree
        complete = k == n - 1
        wrong = (
            "there are fewer than two nodes" if n < 2
            else "nodes are not sorted, or not different" if list(self.nodes) != sorted(set(self.nodes))
            else "round and attempt must be 0 or more" if min(self.round, self.attempt) < 0
            else f"no graph of {n} clients has degree {k}" if not complete and (k % 2 or not 2 <= k < n)
            else "the beacon must have 32 bytes, or none for a complete graph"
            if len(self.beacon) != (0 if complete else 32)
            else f"the threshold is {self.threshold}, and must be from 2 to {k + 1}"
            if not 2 <= self.threshold <= k + 1
            else ""
        )  # fmt: skip
        if wrong:
            raise ConfigError(
                f"terms of secure aggregation: {wrong}", hint="take degree and threshold from `plan`"
            )
        self.encoding.check(n)


def lottery(run: str, round: int) -> bytes:
    """The beacon of a round where nobody brings a better one: it follows from run and round, which all know.

    Who chooses the cohort knows it beforehand: against a server that does, graphs are to be complete.
    """
    return hashlib.sha256(f"{run} {round}".encode()).digest()


def proposed(
    run: str, round: int, attempt: int, nodes: tuple[str, ...], encoding: Encoding, model: bytes = b""
) -> Terms:
    """Terms of the protocol against a server that lies, with a tenth of the nodes corrupt and a tenth lost."""
    degree, threshold = plan(len(nodes), GAMMA, DELTA, active=True)
    beacon = b"" if degree == len(nodes) - 1 else lottery(run, round)
    return Terms(run, round, attempt, nodes, degree, threshold, encoding, model, True, beacon)
