"""Clients, a server and updates for the tests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from atoll.channel.secagg import (
    Client,
    Encoding,
    Floors,
    MarksInMemory,
    Server,
    Terms,
    Total,
    exchange,
    ideal,
)
from atoll.channel.secagg.encoding import Ints

BEACON = hashlib.sha256(b"a lottery of that day").digest()
MODEL = hashlib.sha256(b"a model").digest()


@cache
def identity(node: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(node.encode()).digest())


def names(n: int) -> tuple[str, ...]:
    return tuple(f"node-{k:04d}" for k in range(n))


def registry(nodes: tuple[str, ...]) -> dict[str, bytes]:
    return {node: identity(node).public_key().public_bytes_raw() for node in nodes}


def terms(
    n: int, size: int = 7, degree: int | None = None, threshold: int | None = None, **others: Any
) -> Terms:
    """The complete graph, unless a degree is given; a threshold above two thirds of the holders, too."""
    degree = n - 1 if degree is None else degree
    threshold = threshold or 2 * (degree + 1) // 3 + 1
    encoding = others.pop("encoding", Encoding(size, clip=1.0, bits=12, levels=16, heaviest=100.0))
    return Terms(**{
        "run": "a run", "round": 3, "attempt": 0, "nodes": names(n), "degree": degree, "threshold": threshold,
        "encoding": encoding, "model": MODEL, "beacon": b"" if degree == n - 1 else BEACON, **others,
    })  # fmt: skip


def update(encoding: Encoding, node: str) -> Ints:
    rng = np.random.default_rng(int.from_bytes(node.encode()[-4:], "big"))
    return encoding.encode(
        rng.normal(0, 0.5, encoding.size).astype(np.float32),
        encoding.heaviest * float(rng.uniform(0.01, 1)),
        rng,
    )


def entropy(name: str) -> Callable[[int], bytes]:
    """Bytes that follow from a name: for vectors, never for use."""
    count = 0

    def draw(n: int) -> bytes:
        nonlocal count
        count += 1
        return hashlib.shake_256(f"{name} {count}".encode()).digest(n)

    return draw


def client(node: str, given: Terms, values: Ints | None = None, **others: Any) -> Client:
    made = Client(node, identity(node).sign, others.pop("registry", None) or registry(given.nodes), **{
        "floors": Floors(), "marks": MarksInMemory(), "model": MODEL, "beacon": BEACON, **others,
    })  # fmt: skip
    made.contribute(update(given.encoding, node) if values is None else values)
    return made


@dataclass
class Cohort:
    """A server and its clients, and what they contribute."""

    terms: Terms
    server: Server
    clients: dict[str, Client]
    updates: dict[str, Ints]

    def play(self, lost: dict[str, set[str]] | None = None) -> Total:
        """The total where some nodes are lost for good before they answer in a stage."""
        order = ["keys", "shares", "masked", "consistency", "unmask"]
        lost = lost or {}
        gone = {
            stage: set().union(*(lost.get(s, set()) for s in order[: at + 1]))
            for at, stage in enumerate(order)
        }
        return exchange(self.server, self.clients, lambda stage, node: node not in gone[stage])

    def ideal(self, without: set[str] = frozenset()) -> Total:  # type: ignore[assignment]
        return ideal(self.terms.encoding, {n: u for n, u in self.updates.items() if n not in without})


def cohort(given: Terms, **others: Any) -> Cohort:
    updates = {node: update(given.encoding, node) for node in given.nodes}
    known = registry(given.nodes)
    clients = {node: client(node, given, updates[node], registry=known, **others) for node in given.nodes}
    return Cohort(given, Server(given, known), clients, updates)
