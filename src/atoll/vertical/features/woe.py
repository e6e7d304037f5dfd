"""Weight of evidence and information value of binned columns, the guest's own and the hosts'."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from atoll.errors import CodecError, ConfigError, DataError
from atoll.he import SecretHE, load, told
from atoll.parties import Field, Kind, Link
from atoll.tensors import Record
from atoll.vertical.features.binning import Binned
from atoll.vertical.side import FloatArray, Side

__all__ = [
    "KINDS",
    "Woe",
    "encoded",
    "evidence",
    "woe_answer",
    "woe_ask",
    "woe_own",
]

Counts = NDArray[np.int64]

MOST = 1 << 31
"""Rows."""


LABELS = Kind(
    "woe.labels",
    {
        "crypto": Field("str"),
        "key": Field("uint8", (None,)),
        "labels": Field("uint8", (None, None)),
        "least": Field("int"),
    },
    "nothing: a label for each row under the guest's key",
)
BINS = Kind(
    "woe.bins",
    {
        "bins": Field("int32", (None,)),
        "rows": Field("int64", (None,)),
        "sums": Field("uint8", (None, None)),
    },
    "how many rows, and how many with label 1, each of the host's bins has; columns and bins are shuffled and nameless",
)
EVIDENCE = Kind(
    "woe.evidence",
    {"woe": Field("float64", (None,)), "iv": Field("float64", (None,))},
    "WOE of each bin, and so how many labels in it are 1, and IV of each column",
)
VALUES = Kind("woe.values", {"iv": Field("float64", (None,))}, "IV of each of the host's columns")
KINDS = (LABELS, BINS, EVIDENCE, VALUES)


@dataclass(frozen=True)
class Woe:
    """What is known of a party's columns.

    Attributes:
        iv: float64 [d].
        woe: float64 of all bins, column after column; None where the host is not to know it, 0 where a bin is empty.
        begin: where each column's bins begin, and the end: int64 [d + 1].
    """

    iv: FloatArray
    woe: FloatArray | None
    begin: Counts


def evidence(rows: Counts, ones: Counts, begin: Counts) -> Woe:
    """WOE_b = ln((good_b / good) / (bad_b / bad)) and IV = sum_b (good_b / good - bad_b / bad) WOE_b.

    good_b counts the rows of label 0 in bin b, bad_b those of label 1; good and bad are their sums over the column's
    bins. Where one of them is 0 in a bin that is not empty, 0.5 is added to both in it, and not to the sums.

    Args:
        rows: how many rows each bin has, column after column.
        ones: how many of them have label 1.
        begin: where each column's bins begin, and the end.

    Raises DataError where all labels are the same.
    """
    columns = np.repeat(np.arange(len(begin) - 1), np.diff(begin))
    good, bad = (rows - ones).astype(np.float64), ones.astype(np.float64)
    totals = [np.bincount(columns, weights=each, minlength=len(begin) - 1) for each in (good, bad)]
    if any((total == 0).any() for total in totals):
        raise DataError("all labels are the same: they are evidence of nothing")
    there = rows > 0
    half = np.where(there & ((good == 0) | (bad == 0)), 0.5, 0.0)
    shares = [(each + half) / total[columns] for each, total in zip((good, bad), totals, strict=True)]
    woe = np.zeros(len(rows))
    woe[there] = np.log(shares[0][there] / shares[1][there])
    parts = np.split((shares[0] - shares[1]) * woe, begin[1:-1])
    iv = np.array([math.fsum(part) for part in parts][: len(begin) - 1])  # in whatever order bins are
    return Woe(iv, woe, begin)


def encoded(side: Side, bins: Binned, woe: Woe) -> Side:
    """A side with the WOE of its bin in the place of each value.  Raises ConfigError where it is not known."""
    if woe.woe is None:
        raise ConfigError("the WOE of bins is not known here", hint='answer = "woe" at the guest tells it')
    codes, _ = bins.flat()
    return Side(woe.woe[codes], side.columns, side.y, side.exposure)


def woe_own(bins: Binned, y: FloatArray, least: int = 5) -> Woe:
    """The guest's own columns: nothing is said."""
    codes, begin = bins.flat()
    rows = _rows(codes, begin)
    _guard(rows, least)
    return evidence(rows, _sums(codes, begin, _labels(y)), begin)


async def woe_ask(
    link: Link,
    y: FloatArray,
    cipher: SecretHE,
    hosts: tuple[str, ...],
    least: int = 5,
    answer: Literal["woe", "iv"] = "woe",
) -> dict[str, Woe]:
    """The guest's part: it encrypts labels, and gets their sums over the hosts' bins.

    Hosts learn nothing of a single label from what they add up; of the answer they learn how many labels are 1 in each
    of their bins ("woe"), or how much a column tells of the label ("iv"). A bin whose labels are all the same tells
    them, whatever its size; bins below `least` rows are refused on both sides. That holds for a host that bins its
    columns as they are: one that makes two bins which differ in one row, in two columns or in two runs, learns that
    row's label. The guest learns how large bins are and how labels are spread over them, and not which column or which
    values they are.

    Args:
        y: labels, 0 and 1.
        cipher: a fresh key (`atoll.he.keygen`).
        least: rows of a bin that is not empty.

    Returns WOE and IV by host, of columns and bins in an order that the host alone knows.
    """
    labels, public = _labels(y), cipher.public
    encrypted = public.to_bytes(cipher.encrypt(labels.tolist()))
    message = Record(
        crypto=public.name,
        key=torch.from_numpy(np.array(public.key(), np.uint8)),
        labels=torch.from_numpy(np.array(encrypted)),
        least=least,
    )
    for host in hosts:
        await link.send(host, LABELS, message, **told(public, len(labels)))
    found = {}
    for host in hosts:
        found[host] = _read(await link.receive(host, BINS), cipher, labels, least, host)
        if answer == "woe":
            both = Record(woe=torch.from_numpy(found[host].woe), iv=torch.from_numpy(found[host].iv))
            await link.send(host, EVIDENCE, both)
        else:
            await link.send(host, VALUES, Record(iv=torch.from_numpy(found[host].iv)))
    return found


def _read(got: Record, cipher: SecretHE, labels: Counts, least: int, host: str) -> Woe:
    """A host's sums, checked and decrypted."""
    rows, begin = got.rows.numpy(), np.concatenate([[0], np.cumsum(got.bins.numpy(), dtype=np.int64)])
    blob = got.sums.numpy()
    sound = (got.bins.numpy() > 0).all() and begin[-1] == len(rows) == len(blob) and (rows > 0).all()
    if not sound or (np.add.reduceat(rows, begin[:-1]) != len(labels)).any():
        raise CodecError(f"{BINS.name} of {host}: bins do not have {len(labels)} rows in every column")
    _guard(rows, least)
    plain = cipher.decrypt(cipher.public.from_bytes(blob, f"{BINS.name} of {host}"), 32, BINS.name)
    wide = np.zeros((len(plain), 8), np.uint8)
    wide[:, : plain.shape[1]] = plain
    ones = wide.view("<i8")[:, 0]
    if (ones > rows).any() or (np.add.reduceat(ones, begin[:-1]) != labels.sum()).any():
        raise CodecError(f"{BINS.name} of {host}: sums are not those of the labels")
    return evidence(rows, ones, begin)


async def woe_answer(
    link: Link,
    bins: Binned,
    guest: str = "guest",
    least: int = 5,
    answer: Literal["woe", "iv"] = "woe",
) -> tuple[Woe, NDArray[np.int64]]:
    """A host's part: it adds up labels that it cannot read.

    Args:
        bins: of its rows.
        least, answer: as at the guest.

    Returns what it learns, in the order of its columns and bins, and for each column the place under which the guest
    knows it.

    Raises DataError where a bin has fewer than `least` rows.
    """
    got = await link.receive(guest, LABELS)
    if got.least != least:
        raise ConfigError(f"{link.name} refuses bins below {least} rows, and {guest} below {got.least}")
    codes, begin = bins.flat()
    if len(got.labels) != len(codes):
        raise CodecError(
            f"{LABELS.name} of {guest} has {len(got.labels)} labels, and there are {len(codes)} rows"
        )
    rows = _rows(codes, begin)
    _guard(rows, least)
    public = load(got.crypto, got.key.numpy())
    labels = public.from_bytes(got.labels.numpy(), f"{LABELS.name} of {guest}")
    columns, order, sizes = _shuffle(rows, begin)
    flat = codes.T.reshape(-1)
    sums = public.sum_by_bins(labels, np.tile(np.arange(len(codes)), codes.shape[1]), flat, len(rows))
    blob = public.to_bytes(public.rerandomise(sums[order]))
    message = Record(
        bins=torch.from_numpy(sizes.astype(np.int32)),
        rows=torch.from_numpy(rows[order]),
        sums=torch.from_numpy(np.array(blob)),
    )
    await link.send(guest, BINS, message, **told(public, len(order)))
    heard = await link.receive(guest, EVIDENCE if answer == "woe" else VALUES)
    place = np.argsort(columns)
    if len(heard.iv) != len(columns) or ("woe" in heard and len(heard.woe) != len(order)):
        raise CodecError(f"{guest} has answered for another number of bins")
    woe = None
    if "woe" in heard:
        woe = np.zeros(len(rows))
        woe[order] = heard.woe.numpy()
    return Woe(heard.iv.numpy()[place], woe, begin), place


def _shuffle(rows: Counts, begin: Counts) -> tuple[Counts, Counts, Counts]:
    """Columns in a random order, the bins of each that are not empty in a random order, and how many those are."""
    draw = secrets.SystemRandom()
    columns = list(range(len(begin) - 1))
    draw.shuffle(columns)
    order: list[int] = []
    sizes = []
    for column in columns:
        there = (begin[column] + np.flatnonzero(rows[begin[column] : begin[column + 1]])).tolist()
        draw.shuffle(there)
        order += there
        sizes.append(len(there))
    return tuple(np.array(each, np.int64) for each in (columns, order, sizes))  # type: ignore[return-value]


def _labels(y: FloatArray) -> Counts:
    if not np.isin(y, (0, 1)).all():
        raise DataError("WOE needs labels 0 and 1")
    if len(y) >= MOST:
        raise DataError(f"there are {len(y)} rows, and at most {MOST - 1} can be added up")
    return y.astype(np.int64)


def _rows(codes: NDArray[np.int32], begin: Counts) -> Counts:
    return np.bincount(codes.reshape(-1), minlength=int(begin[-1])).astype(np.int64)


def _sums(codes: NDArray[np.int32], begin: Counts, labels: Counts) -> Counts:
    weights = np.repeat(labels, codes.shape[1])
    return np.bincount(codes.reshape(-1), weights=weights, minlength=int(begin[-1])).astype(np.int64)


def _guard(rows: Counts, least: int) -> None:
    small = int(((rows > 0) & (rows < least)).sum())
    if small:
        raise DataError(
            f"{small} bins have fewer than {least} rows",
            hint="so few labels could be told from their sum: take fewer bins, and impute what is rarely missing",
        )
