"""Pearson's correlation of columns that different parties have, and how far each is explained by all others.

Parties p and q have X (n x c) and Y (n x d), standardised; wanted is X'Y / n. A third party, the dealer, has no data.
It draws U (n x c), V (n x d) and W (c x d) uniform modulo 2^64 and gives p (U, W) and q (V, U'V - W), all but the last
as a seed. Then   Beaver, CRYPTO 1991, "Efficient multiparty protocols using circuit randomization"

    p -> q   E = X - U            uniform, whatever X is
    q -> p   F = Y - V            uniform, whatever Y is
    p        X'F + W              its share
    q        E'V + (U'V - W)      its share: the sum of both is X'Y, modulo 2^64

in fixed point with `bits(n)` binary places, so that no sum leaves the ring. p and q open their shares to the guest.
Without a dealer X'Y is computed under a key of p, who learns it (see `product`). That costs more: some 15 n d additions
of ciphertexts for each plaintext that a row of X takes.

Threats: all follow the protocol, and the dealer conspires with nobody: with p it would see Y, with q X. The dealer sees
nothing but sizes. Without a dealer the first of two hosts learns the correlations of its columns with the other's. The
guest learns all correlations, also those between the hosts' columns, under numbers instead of names; each host learns
those of its own columns with one another, which it knows, and its columns' VIF. With as many columns at the guest as
there are rows, correlations tell a host's column: every party must have fewer columns than rows, which is checked, and
has far fewer in practice.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import shake_256
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray

from atoll.errors import CodecError, ConfigError, DataError
from atoll.he import keygen
from atoll.parties import Field, Kind, Link
from atoll.tensors import Record
from atoll.vertical.features.product import ENCRYPTED, PLACES, PRODUCTS, product_answer, product_ask
from atoll.vertical.side import FloatArray, Side

__all__ = ["KINDS", "Correlations", "Crypto", "bits", "correlate", "deal", "uniform", "vif"]

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
KINDS = (SIZES, SEED, TRIPLE, MASKED, ENCRYPTED, PRODUCTS, SHARE, OWN, VIF)

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


@dataclass(frozen=True)
class Crypto:
    """How products are found without a dealer.

    Attributes:
        cipher: one that adds ("ou", "paillier"); each pair of parties has a key of its own.
    """

    cipher: str = "ou"


async def correlate(
    link: Link, side: Side, guest: str, hosts: Sequence[str], by: str | Crypto
) -> Correlations | FloatArray:
    """A data party's part.

    Args:
        side: without missing values, and no column that is constant.
        by: the name of the dealer, or a cipher.

    Returns all correlations at the guest, the VIF of its own columns [d] at a host.

    Raises DataError where columns are not as they must be.
    """
    if by in (guest, *hosts):
        raise ConfigError(f"{by} has data and cannot deal", hint="a party without data must, or a cipher")
    own = _standardised(side)
    sizes = await _sizes(link, (guest, *hosts), by, *own.shape)
    party = _Party(link, (guest, *hosts), sizes, own, by)
    shares = {pair: await party.product(pair) for pair in party.pairs if link.name in pair}
    return await (party.join(shares) if link.name == guest else party.open(shares))


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


async def _sizes(
    link: Link, parties: Sequence[str], by: str | Crypto, rows: int, columns: int
) -> dict[str, int]:
    """How many columns each party has."""
    for name in (*parties, by) if isinstance(by, str) else parties:
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


class _Party:
    """A party with data, once all know each other's sizes.

    Args:
        sizes: columns by party.
        own: standardised, [n, d].
    """

    def __init__(
        self, link: Link, parties: Sequence[str], sizes: Mapping[str, int], own: FloatArray, by: str | Crypto
    ) -> None:
        self.link, self.guest, self.hosts, self.sizes, self.own, self.by = (
            link, parties[0], parties[1:], sizes, own, by,
        )  # fmt: skip
        self.pairs = list(combinations(parties, 2))
        self.rows = len(own)
        self.places = bits(self.rows) if isinstance(by, str) else min(PLACES, bits(self.rows))

    async def product(self, pair: tuple[str, str]) -> Words | None:
        """This party's share of X'Y; None where the other one has all of it."""
        p, q = pair
        fixed = np.rint(self.own * 2.0**self.places).astype(np.int64)
        if isinstance(self.by, str):
            return await self._shared(p, q, fixed.view(np.uint64), self.by)
        if self.link.name == p:
            cipher = keygen(self.by.cipher)
            found = await product_ask(self.link, q, fixed, self.sizes[q], self.places, cipher)
            return found.view(np.uint64)
        await product_answer(self.link, p, fixed, self.sizes[p], self.places)
        return None

    async def _shared(self, p: str, q: str, own: Words, dealer: str) -> Words:
        link, sizes = self.link, self.sizes
        if link.name == p:
            seed = _seed(await link.receive(dealer, SEED))
            await link.send(q, MASKED, Record(words=_sent(own - uniform(seed, "mask", *own.shape))))
            other = _words(await link.receive(q, MASKED), "words", (len(own), sizes[q]), q)
            return own.T @ other + uniform(seed, "share", sizes[p], sizes[q])
        triple = await link.receive(dealer, TRIPLE)
        mask = uniform(_seed(triple), "mask", *own.shape)
        other = _words(await link.receive(p, MASKED), "words", (len(own), sizes[p]), p)
        await link.send(p, MASKED, Record(words=_sent(own - mask)))
        return other.T @ mask + _words(triple, "rest", (sizes[p], sizes[q]), dealer)

    async def open(self, shares: Mapping[tuple[str, str], Words | None]) -> FloatArray:
        """A host shows the guest its shares and what is its own, and learns its VIF."""
        for share in shares.values():
            if share is not None:
                await self.link.send(self.guest, SHARE, Record(words=_sent(share)))
        await self.link.send(self.guest, OWN, Record(correlations=torch.from_numpy(self._own())))
        found: FloatArray = (await self.link.receive(self.guest, VIF)).vif.numpy()
        if len(found) != self.own.shape[1]:
            raise CodecError(
                f"{VIF.name} of {self.guest} has {len(found)} numbers for {self.own.shape[1]} columns"
            )
        return np.where(found >= _CAP, np.inf, found)

    async def join(self, shares: Mapping[tuple[str, str], Words | None]) -> Correlations:
        """The guest makes a matrix of shares, and tells the hosts their columns' VIF."""
        ends = np.cumsum(list(self.sizes.values())).tolist()
        block = {
            name: slice(end - size, end) for (name, size), end in zip(self.sizes.items(), ends, strict=True)
        }
        totals = {pair: share for pair, share in shares.items() if share is not None}
        matrix = np.zeros((ends[-1], ends[-1]))
        matrix[block[self.guest], block[self.guest]] = self._own()
        for host in self.hosts:
            for p, q in self.pairs:
                if host == p or (host == q and isinstance(self.by, str)):
                    words = _words(
                        await self.link.receive(host, SHARE), "words", (self.sizes[p], self.sizes[q]), host
                    )
                    totals[p, q] = totals.get((p, q), np.uint64(0)) + words
            matrix[block[host], block[host]] = self._theirs(await self.link.receive(host, OWN), host)
        for (p, q), total in totals.items():
            part = total.view(np.int64) * 2.0 ** (-2 * self.places) / self.rows
            matrix[block[p], block[q]], matrix[block[q], block[p]] = part, part.T
        factors = vif(matrix)
        for host in self.hosts:
            told = np.minimum(factors[block[host]], _CAP)
            await self.link.send(host, VIF, Record(vif=torch.from_numpy(told)))
        return Correlations(matrix, factors, {name: where.start for name, where in block.items()})

    def _own(self) -> FloatArray:
        matrix: FloatArray = self.own.T @ self.own / self.rows
        return matrix

    def _theirs(self, record: Record, host: str) -> FloatArray:
        matrix: FloatArray = record.correlations.numpy()
        if matrix.shape != (self.sizes[host],) * 2 or (abs(matrix) > 1 + 1e-9).any():
            raise CodecError(f"{OWN.name} of {host} are no correlations of {self.sizes[host]} columns")
        return matrix


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
