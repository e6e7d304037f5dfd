"""What the sources of a client's samples count for in its batches: data mixing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atoll import spec
from atoll.errors import ConfigError, suggest

from .samples import IntArray
from .weights import FloatArray, read_weights, weight

__all__ = ["Mixture", "mixture"]

_HINT = 'write mix="equal", mix="temperature:2", or mix="NAME:2, NAME:0.5"'
_KNOWN = {"equal": (), "temperature": (spec.number("temperature", at_least=1),)}


@dataclass(frozen=True)
class Mixture:
    """Shares of batches, client by client.

    Attributes:
        text: as it was said.
        sources: for each client the source [n] of each of its training samples, 0 to k - 1 among its own.
        shares: for each client the share [k] of its batches that each source has; their sum is 1.
    """

    text: str
    sources: Sequence[IntArray]
    shares: Sequence[FloatArray]

    def choose(self, clients: Sequence[int] | IntArray) -> Mixture:
        """That of these clients only, in this order."""
        chosen = [int(client) for client in clients]
        return Mixture(self.text, [self.sources[k] for k in chosen], [self.shares[k] for k in chosen])


def mixture(text: str, column: NDArray[np.generic], rows: Sequence[IntArray]) -> Mixture:
    """What a text says of clients with these rows; `column` names the source of every row.

    "equal" gives all sources of a client the same share of its batches, whatever they have; "temperature:T" a share in
    proportion to n^(1/T), which lies between both (Devlin et al. 2019, multilingual BERT); "NAME:2, NAME:0.5" shares in
    proportion to these weights, the others' being 1. Without a mixture a source has the share of its samples.

    Raises ConfigError for a source that there is not, weights that are none, and where no client has two sources.
    """
    names = column.astype(str)
    temperature, weights = _read(text, names)
    sources, shares = [], []
    for client, own in enumerate(rows):
        found, source, counts = np.unique(names[own], return_inverse=True, return_counts=True)
        if temperature is not None:
            share = counts ** (1 / temperature)
        else:
            share = np.array([weights.get(str(name), 1.0) for name in found])
        if not share.sum():
            raise ConfigError(
                f"mix = {text!r}: all sources of client {client} have the weight 0",
                hint="give one of them more",
            )
        sources.append(source.astype(np.int64))
        shares.append(share / share.sum())
    if all(len(share) < 2 for share in shares):
        raise ConfigError(
            f"mix = {text!r} mixes sources, and every client has but one",
            hint='divide the data otherwise: partition="natural:group=5", or "iid"',
        )
    return Mixture(text, sources, shares)


def _read(text: str, names: NDArray[np.str_]) -> tuple[float | None, dict[str, float]]:
    """The temperature, if there is one, and weights by name."""
    if text.strip() == "equal":
        return None, {}
    if text.partition(":")[0].strip() == "temperature":
        return float(spec.parse(text, "mix").read(_KNOWN)["temperature"]), {}
    given = read_weights(text)
    if not isinstance(given, dict):
        raise ConfigError(f"mix = {text!r} names no source", hint=_HINT)
    known = set(names.tolist())
    for name in given:
        if name not in known:
            raise ConfigError(f"mix: there is no source {name!r}", hint=suggest(name, sorted(known)))
    return None, {name: weight(value, f"source {name!r}") for name, value in given.items()}
