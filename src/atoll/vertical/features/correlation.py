"""Pearson's correlation of columns that different parties have, and how far each is explained by all others.

Parties p and q have X (n x c) and Y (n x d), standardised; wanted is X'Y / n. A third party, the dealer, has no data.
It draws U (n x c), V (n x d) and W (c x d) uniform modulo 2^64 and gives p (U, W) and q (V, U'V - W), all but the last
as a seed. Then   Beaver, CRYPTO 1991, "Efficient multiparty protocols using circuit randomization"

    p -> q   E = X - U            uniform, whatever X is
    q -> p   F = Y - V            uniform, whatever Y is
    p        X'F + W              its share
    q        E'V + (U'V - W)      its share: the sum of both is X'Y, modulo 2^64

in fixed point with `bits(n)` binary places, so that no sum leaves the ring. p and q open their shares to the guest.

Threats: all follow the protocol, and the dealer conspires with nobody: with p it would see Y, with q X. The dealer sees
nothing but sizes. The guest learns the correlations, also those between the hosts' columns, under numbers instead of
names; each host learns those of its own columns with one another, which it knows, and its columns' VIF. With as many
columns at the guest as there are rows, correlations tell a host's column: n must be above the number of columns of
every party, which is checked, and is far above it in practice.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import shake_256
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray

from atoll.errors import CodecError, ConfigError, DataError
from atoll.parties import Field, Kind, Link
from atoll.tensors import Record
from atoll.vertical.side import FloatArray, Side

__all__ = ["KINDS", "Correlations", "bits", "correlate", "deal", "uniform", "vif"]

Words = NDArray[np.uint64]
"""Numbers modulo 2^64."""

SIZES = Kind(
    "pearson.sizes", {"rows": Field("int"), "columns": Field("int")}, "how many rows and columns there are"
)
SEED = Kind(
    "pearson.seed",
    {"seed": Field("uint8", (32,))},
    "nothing: what masks are drawn from, which the dealer has drawn",
)
TRIPLE = Kind(
    "pearson.triple",
    {"seed": Field("uint8", (32,)), "rest": Field("int64", (None, None))},
    "nothing: what masks are drawn from, and numbers that are uniform to the receiver",
)
MASKED = Kind("pearson.masked", {"words": Field("int64", (None, None))}, "nothing: uniform numbers")
SHARE = Kind(
    "pearson.share",
    {"words": Field("int64", (None, None))},
    "with the other share: the correlations between two parties' columns, by their numbers",
)
OWN = Kind(
    "pearson.own",
    {"correlations": Field("float64", (None, None))},
    "the correlations of the sender's columns with one another, by their numbers",
)
VIF = Kind(
    "pearson.vif",
    {"vif": Field("float64", (None,))},
    "how far all other columns explain each of the receiver's",
)
KINDS = (SIZES, SEED, TRIPLE, MASKED, SHARE, OWN, VIF)

_CAP = 1e12  # stands for an infinite one on its way
_LEFT = 1e-8
"""Share of a column that others must leave unexplained; what is below is rounding."""


@dataclass(frozen=True)
class Correlations:
    """What the guest learns.

    Attributes:
        matrix: float64 [d, d], of all columns: the guest's, then those of each host.
        vif: variance inflation factors, float64 [d]; infinite where others explain a column fully.
        begin: where each party's columns begin.
    """

    matrix: FloatArray
    vif: FloatArray
    begin: dict[str, int]


def bits(rows: int) -> int:
    """Binary places of standardised values: sums over the rows stay below 2^62 in magnitude, by Cauchy-Schwarz."""
    return min(26, (61 - rows.bit_length()) // 2)


def uniform(seed: bytes, label: str, rows: int, columns: int) -> Words:
    """Numbers modulo 2^64 by SHAKE-256 of a seed and a label, [rows, columns]."""
    stream = shake_256(seed + label.encode()).digest(8 * rows * columns)
    return np.frombuffer(stream, "<u8").reshape(rows, columns).astype(np.uint64)


def vif(matrix: FloatArray) -> FloatArray:
    """1 / (1 - R_j^2), R_j^2 that of column j on all others: the diagonal of the inverse, where there is one."""
    values, vectors = np.linalg.eigh(matrix)
    if len(values) and values[0] > _LEFT:
        inverse: FloatArray = (vectors**2 / values).sum(1)
        return inverse
    found = np.full(len(matrix), np.inf)
    for at in range(len(matrix)):
        rest = np.delete(np.arange(len(matrix)), at)
        with_rest = matrix[at, rest]
        left = (
            1 - with_rest @ np.linalg.pinv(matrix[np.ix_(rest, rest)], rcond=1e-9, hermitian=True) @ with_rest
        )
        if left > _LEFT:
            found[at] = max(1.0, 1 / left)
    return found


async def correlate(
    link: Link, side: Side, guest: str, hosts: Sequence[str], dealer: str
) -> Correlations | FloatArray:
    """A data party's part.

    Args:
        side: without missing values, and no column that is constant.

    Returns all correlations at the guest, the VIF of its own columns [d] at a host.

    Raises DataError where columns are not as they must be.
    """
    if dealer in (guest, *hosts):
        raise ConfigError(f"{dealer} has data and cannot deal", hint="a party without data must: an arbiter")
    parties = (guest, *hosts)
    own = _standardised(side)
    sizes = await _sizes(link, parties, dealer, *own.shape)
    scaled = np.rint(own * 2.0 ** bits(len(own))).astype(np.int64).view(np.uint64)
    shares = {}
    for pair in combinations(parties, 2):
        if link.name in pair:
            shares[pair] = await _product(link, pair, sizes, dealer, scaled)
    if link.name != guest:
        return await _open(link, guest, parties, own, shares)
    return await _joined(link, parties, own, shares, sizes)


async def deal(link: Link, guest: str, hosts: Sequence[str]) -> None:
    """The dealer's part: a triple for each pair of parties with data."""
    parties = (guest, *hosts)
    heard = {name: await link.receive(name, SIZES) for name in parties}
    for p, q in combinations(parties, 2):
        rows, c, d = heard[p].rows, heard[p].columns, heard[q].columns
        if heard[q].rows != rows or min(rows, c, d) < 0:
            raise DataError("parties have different numbers of rows")
        first, second = secrets.token_bytes(32), secrets.token_bytes(32)
        u, v, w = (
            uniform(first, "mask", rows, c),
            uniform(second, "mask", rows, d),
            uniform(first, "share", c, d),
        )
        await link.send(p, SEED, Record(seed=_octets(first)))
        await link.send(q, TRIPLE, Record(seed=_octets(second), rest=_sent(u.T @ v - w)))


async def _sizes(link: Link, parties: Sequence[str], dealer: str, rows: int, columns: int) -> dict[str, int]:
    """How many columns each party has."""
    for name in (*parties, dealer):
        if name != link.name:
            await link.send(name, SIZES, Record(rows=rows, columns=columns))
    found = {}
    for name in parties:
        if name == link.name:
            found[name] = columns
            continue
        heard = await link.receive(name, SIZES)
        if heard.rows != rows:
            raise DataError(f"{name} has {heard.rows} rows, and {link.name} {rows}", hint="align them first")
        if not 0 <= heard.columns < rows:
            raise DataError(f"{name} has {heard.columns} columns of {rows} rows: they would tell single rows")
        found[name] = heard.columns
    return found


async def _product(
    link: Link, pair: tuple[str, str], sizes: dict[str, int], dealer: str, own: Words
) -> Words:
    """This party's share of X'Y."""
    p, q = pair
    if link.name == p:
        seed = _seed(await link.receive(dealer, SEED))
        await link.send(q, MASKED, Record(words=_sent(own - uniform(seed, "mask", *own.shape))))
        other = _words(await link.receive(q, MASKED), "words", (len(own), sizes[q]), q)
        return own.T @ other + uniform(seed, "share", sizes[p], sizes[q])
    triple = await link.receive(dealer, TRIPLE)
    mask = uniform(_seed(triple), "mask", *own.shape)
    await link.send(p, MASKED, Record(words=_sent(own - mask)))
    other = _words(await link.receive(p, MASKED), "words", (len(own), sizes[p]), p)
    return other.T @ mask + _words(triple, "rest", (sizes[p], sizes[q]), dealer)


async def _open(
    link: Link, guest: str, parties: Sequence[str], own: FloatArray, shares: dict[tuple[str, str], Words]
) -> FloatArray:
    """A host shows the guest its shares and what is its own, and learns its VIF."""
    for pair in combinations(parties, 2):
        if link.name in pair:
            await link.send(guest, SHARE, Record(words=_sent(shares[pair])))
    await link.send(guest, OWN, Record(correlations=torch.from_numpy(own.T @ own / max(1, len(own)))))
    found: FloatArray = (await link.receive(guest, VIF)).vif.numpy()
    if len(found) != own.shape[1]:
        raise CodecError(f"{VIF.name} of {guest} has {len(found)} numbers for {own.shape[1]} columns")
    return np.where(found >= _CAP, np.inf, found)


async def _joined(
    link: Link,
    parties: Sequence[str],
    own: FloatArray,
    shares: dict[tuple[str, str], Words],
    sizes: dict[str, int],
) -> Correlations:
    """The guest joins shares to the matrix."""
    ends = np.cumsum([sizes[name] for name in parties]).tolist()
    block = {name: slice(end - sizes[name], end) for name, end in zip(parties, ends, strict=True)}
    matrix, totals = np.zeros((ends[-1], ends[-1])), dict(shares)
    matrix[block[link.name], block[link.name]] = own.T @ own / max(1, len(own))
    for host in parties[1:]:
        for p, q in combinations(parties, 2):
            if host in (p, q):
                words = _words(await link.receive(host, SHARE), "words", (sizes[p], sizes[q]), host)
                totals[p, q] = totals.get((p, q), np.uint64(0)) + words
        mine = (await link.receive(host, OWN)).correlations.numpy()
        if mine.shape != (sizes[host],) * 2 or (abs(mine) > 1 + 1e-9).any():
            raise CodecError(f"{OWN.name} of {host} are no correlations of {sizes[host]} columns")
        matrix[block[host], block[host]] = mine
    for (p, q), total in totals.items():
        part = total.view(np.int64) * 2.0 ** (-2 * bits(len(own))) / max(1, len(own))
        matrix[block[p], block[q]], matrix[block[q], block[p]] = part, part.T
    factors = vif(matrix)
    for host in parties[1:]:
        told = np.minimum(factors[block[host]], _CAP)
        await link.send(host, VIF, Record(vif=torch.from_numpy(told)))
    return Correlations(matrix, factors, {name: block[name].start for name in parties})


def _standardised(side: Side) -> FloatArray:
    if np.isnan(side.x).any():
        raise DataError("correlations need all values, and some are missing", hint="impute them")
    if side.x.shape[1] >= len(side.x):
        raise DataError(f"{side.x.shape[1]} columns of {len(side.x)} rows: they would tell single rows")
    mean, deviation = side.x.mean(0), side.x.std(0)
    constant = deviation <= 1e-12 * np.maximum(1, np.abs(mean))
    if constant.any():
        raise DataError(
            f"{int(constant.sum())} columns are constant: they correlate with nothing",
            hint=f"leave them out: {', '.join(np.array(side.columns)[constant])}",
        )
    values: FloatArray = (side.x - mean) / deviation
    return values


def _octets(seed: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(seed), dtype=torch.uint8)


def _seed(record: Record) -> bytes:
    octets: bytes = record.seed.numpy().tobytes()
    return octets


def _sent(words: Words) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(words).view(np.int64))


def _words(record: Record, name: str, shape: tuple[int, int], sender: str) -> Words:
    tensor: torch.Tensor = record[name]
    if tuple(tensor.shape) != shape:
        raise CodecError(f"pearson.{name} of {sender} is {list(tensor.shape)}, and {list(shape)} is due")
    return tensor.numpy().view(np.uint64)
