"""Texts as whole numbers: windows of them, and the plays of Shakespeare by who speaks."""

from __future__ import annotations

import lzma
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from atoll.errors import ConfigError, DataError

from .dataset import Dataset
from .samples import IntArray, Samples
from .tokens import BYTES, Bytes

__all__ = ["next_tokens", "shakespeare", "windows"]

_SYMBOLS = ("characters", "bytes")


def windows(numbers: IntArray, window: int) -> IntArray:
    """A text cut into pieces [n, window + 1] of which each begins with the token that the one before it ends with.

    Without that token, pieces have none in common: the last of a piece is only predicted there, and only read in the
    next. What is left at the end, less than a window, is dropped.
    """
    starts = np.arange(0, len(numbers) - window, window)
    found: IntArray = numbers[starts[:, None] + np.arange(window + 1)]
    return found


def next_tokens(pieces: IntArray) -> Samples:
    """Pieces [n, window + 1] as inputs and targets [n, window]: at each place the token that comes next."""
    whole = torch.from_numpy(pieces)
    return Samples(whole[:, :-1].contiguous(), whole[:, 1:].contiguous())


def shakespeare(
    root: Path,
    symbols: str = "characters",
    window: int | None = None,
    roles: int | None = None,
    minimum: int = 1000,
    unseen: float = 0.1,
) -> Dataset:
    """Each role's speeches in a row, cut into windows without overlap; targets are the next symbols.

    Roles with fewer than `minimum` characters are left out; with `roles`, all but those with the most text. Symbols are
    "characters", numbered in the order of their code, in windows of 80; or "bytes", the numbers that they are, in
    windows of 128. Of bytes, the last tenth of each role's text (`unseen`) is its test: no window reaches into it.
    """
    if symbols not in _SYMBOLS:
        raise ConfigError(f"shakespeare: symbols = {symbols!r}", hint=f"known: {', '.join(_SYMBOLS)}")
    of_bytes = symbols == "bytes"
    window = window or (128 if of_bytes else 80)
    text = lzma.decompress((root / "tinyshakespeare" / "input.txt.xz").read_bytes()).decode()
    said = {role: whole for role, whole in _speeches(text).items() if len(whole) >= minimum}
    if roles is not None:
        most = sorted(said, key=lambda role: -len(said[role]))[:roles]
        said = {role: whole for role, whole in said.items() if role in most}
    code, found = _code(text, of_bytes), (Bytes()(whole) for whole in said.values())
    numbers = dict(zip(said, (code[each] for each in found), strict=True))
    parts = {
        role: (each[:at], each[at:])
        for role, each in numbers.items()
        for at in [len(each) - (int(unseen * len(each)) if of_bytes else 0)]
    }
    data = _by_role({role: (windows(a, window), windows(b, window)) for role, (a, b) in parts.items()})
    if data is None:
        raise DataError(
            f"shakespeare: no role has {minimum} characters, and a window of {window} to learn from"
            + (" and another to be tested on" if of_bytes else ""),
            hint="lower minimum or window",
        )
    data.classes = len(code) if of_bytes else len(set(text))
    return data


def _by_role(pieces: Mapping[str, tuple[IntArray, IntArray]]) -> Dataset | None:
    """Training and test windows of each role as one dataset; roles without one to learn from are left out.

    Where any role has test windows, so must every role. None where nobody is left.
    """
    tested = any(len(test) for _, test in pieces.values())
    kept = {role: each for role, each in pieces.items() if len(each[0]) and (len(each[1]) or not tested)}
    if not kept:
        return None
    train, test = (np.concatenate([each[k] for each in kept.values()]) for k in (0, 1))
    who, tests = (np.repeat(list(kept), [len(each[k]) for each in kept.values()]) for k in (0, 1))
    data = Dataset(
        "shakespeare",
        next_tokens(train),
        next_tokens(test) if tested else None,
        columns={"role": who},
        natural="role",
    )
    data.test_columns = {"role": tests} if tested else {}
    return data


def _code(text: str, of_bytes: bool) -> IntArray:
    """The number of each byte."""
    if of_bytes:
        return np.arange(BYTES)
    symbols = sorted(set(text))
    code = np.zeros(128, dtype=np.int64)
    code[[ord(symbol) for symbol in symbols]] = np.arange(len(symbols))
    return code


def _speeches(text: str) -> dict[str, str]:
    """What each role says, one speech to a line."""
    speeches: dict[str, list[str]] = {}
    for block in text.split("\n\n"):
        head, _, speech = block.strip("\n").partition("\n")
        if head.endswith(":") and speech:
            speeches.setdefault(head[:-1], []).append(speech)
    return {role: "\n".join(said) for role, said in speeches.items()}
