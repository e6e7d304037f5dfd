"""X'Y of two parties' columns, who learn nothing but that: under one's key, without a third party.

p encrypts its rows of X, several columns in a plaintext; q has Y in binary and adds up, for each of its columns and
each binary place, the ciphertexts of the rows that have a 1 there; the sums of places, doubled one after the other, are
products. Numbers are in fixed point and lifted above 0 by an offset o:

    sum_i (x_i + o) (y_i + o) = sum_i x_i y_i + o sum_i x_i + o sum_i y_i + n o^2

where q adds o (n - sum_i y_i), so that p, who decrypts, knows all other terms and learns the first.

q learns nothing; p learns X'Y, to which fixed point adds nothing, and the randomness of q's sums is fresh.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from atoll.errors import CodecError, ConfigError
from atoll.he import AdditiveHE, SecretHE, Vector, load, told
from atoll.parties import Field, Kind, Link
from atoll.tensors import Record

__all__ = ["ENCRYPTED", "PLACES", "PRODUCTS", "product_answer", "product_ask"]

Fixed = NDArray[np.int64]

PLACES = 20
"""Most binary places of a standardised value: each costs additions."""

ENCRYPTED = Kind(
    "pearson.encrypted",
    {"crypto": Field("str"), "key": Field("uint8", (None,)), "rows": Field("uint8", (None, None))},
    "nothing: columns under the sender's key",
)
PRODUCTS = Kind(
    "pearson.products",
    {"products": Field("uint8", (None, None))},
    "the correlations between the columns of the two, by their numbers",
)


@dataclass(frozen=True)
class _Slots:
    """How numbers stand in plaintexts.

    Attributes:
        offset: o, above all numbers.
        bits: of a number and of a product.
        columns: p's.
        per: of them in a plaintext.
    """

    offset: int
    bits: tuple[int, int]
    columns: int
    per: int

    @staticmethod
    def of(rows: int, columns: int, places: int, public: AdditiveHE) -> _Slots:
        """For standardised columns of so many rows, of which none is above sqrt(n)."""
        offset = ((math.isqrt(rows) + 1) << places) + 1
        most = rows * (2 * offset) ** 2 + 2 * rows * offset
        bits = most.bit_length()
        if bits > public.capacity:
            raise ConfigError(
                f"{public.name} holds plaintexts of {public.capacity} bits, and products of {rows} rows have {bits}",
                hint="take a longer key",
            )
        return _Slots(offset, ((2 * offset).bit_length(), bits), columns, public.capacity // bits)

    @property
    def groups(self) -> int:
        """Plaintexts of a row."""
        return -(-self.columns // self.per)

    def joined(self, values: list[int]) -> list[int]:
        """A row's numbers from 0 as plaintexts, the first lowest."""
        return [
            sum(value << (self.bits[1] * at) for at, value in enumerate(values[low : low + self.per]))
            for low in range(0, self.columns, self.per)
        ]


async def product_ask(link: Link, q: str, own: Fixed, columns: int, places: int, cipher: SecretHE) -> Fixed:
    """p's part: X'Y, int64 [c, d].

    Args:
        own: X with so many binary places, int64 [n, c].
        columns: d.
        cipher: a fresh key.
    """
    public, (rows, count) = cipher.public, own.shape
    slots = _Slots.of(rows, count, places, public)
    lifted = (own + slots.offset).tolist()
    plain = [number for row in lifted for number in slots.joined(row)]
    message = Record(
        crypto=public.name,
        key=torch.from_numpy(np.array(public.key(), np.uint8)),
        rows=torch.from_numpy(np.array(public.to_bytes(cipher.encrypt(plain)))),
    )
    await link.send(q, ENCRYPTED, message, **told(public, len(plain)))
    blob, what = (await link.receive(q, PRODUCTS)).products.numpy(), f"{PRODUCTS.name} of {q}"
    if len(blob) != columns * slots.groups:
        raise CodecError(f"{what} has {len(blob)} numbers, and {columns * slots.groups} are due")
    octets = cipher.decrypt(public.from_bytes(blob, what), slots.bits[1] * min(slots.per, count), what)
    known = [slots.offset * (rows + int(total)) + rows * slots.offset**2 for total in own.sum(0)]
    found = np.empty((count, columns), np.int64)
    for at, row in enumerate(octets):
        column, group = divmod(at, slots.groups)
        number = int.from_bytes(row.tobytes(), "little")
        for slot, one in enumerate(range(group * slots.per, min((group + 1) * slots.per, count))):
            value = (number >> (slots.bits[1] * slot)) % (1 << slots.bits[1]) - known[one]
            if abs(value) > rows * (1 << places) * ((1 << places) + 2):
                raise CodecError(f"{what} has what is no correlation")
            found[one, column] = value
    return found


async def product_answer(link: Link, p: str, own: Fixed, columns: int, places: int) -> None:
    """q's part.

    Args:
        own: Y with so many binary places, int64 [n, d].
        columns: c.
    """
    got = await link.receive(p, ENCRYPTED)
    public, (rows, count) = load(got.crypto, got.key.numpy()), own.shape
    slots = _Slots.of(rows, columns, places, public)
    blob, what = got.rows.numpy(), f"{ENCRYPTED.name} of {p}"
    if len(blob) != rows * slots.groups:
        raise CodecError(f"{what} has {len(blob)} numbers, and {rows * slots.groups} are due")
    numbers = public.from_bytes(blob, what)
    parts = [
        _sums(public, numbers, own[:, at], slots, group)
        for at in range(count)
        for group in range(slots.groups)
    ]
    products = np.concatenate(parts) if parts else numbers[:0]
    message = Record(products=torch.from_numpy(np.array(public.to_bytes(public.rerandomise(products)))))
    await link.send(p, PRODUCTS, message, **told(public, len(parts)))


def _sums(public: AdditiveHE, numbers: Vector, y: Fixed, slots: _Slots, group: int) -> Vector:
    """One of q's columns with those of p's that stand together in a plaintext: a single ciphertext."""
    places = slots.bits[0]
    place, row = np.nonzero(((y + slots.offset) >> np.arange(places)[:, None]) & 1)
    sums = public.sum_by_bins(numbers, row * slots.groups + group, place, places)
    total = sums[-1:]
    for at in reversed(range(places - 1)):
        total = public.add(public.mul_plain(total, 2), sums[at : at + 1])
    width = min(slots.per, slots.columns - group * slots.per)
    rest = slots.offset * (len(y) - int(y.sum()))
    return public.add_plain(total, sum(rest << (slots.bits[1] * slot) for slot in range(width)))
