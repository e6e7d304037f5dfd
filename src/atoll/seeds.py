"""Counter-based random streams: (seed, purpose, round, client) names a stream, never the global generator.

Two kinds of stream share the same address. `rng` gives a NumPy generator for decisions made on the host: who takes
part, in which order a client reads its data, how data is divided. `uniform` and `normal` hash an address tensor and
the position of each element, so that dropout masks and the like are pure functions of tensors: the same number comes
out in a loop, under `vmap` and on another machine, however the work was cut up.
"""

from __future__ import annotations

import math
import random
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "address",
    "addresses",
    "claimed",
    "fold",
    "free",
    "held",
    "normal",
    "normals",
    "rng",
    "scoped",
    "uniform",
]

_MASK64 = (1 << 64) - 1


def _word(purpose: str) -> int:
    return zlib.crc32(purpose.encode()) | (len(purpose) << 32)


def rng(seed: int, purpose: str, round: int = 0, client: int = 0) -> np.random.Generator:
    """The NumPy generator at an address. Philox is counter-based: streams never overlap, none depends on another."""
    key = _Key(np.array([seed & _MASK64, _word(purpose)], dtype=np.uint64))
    counter = np.array([0, 0, client & _MASK64, round & _MASK64], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key, counter=counter))  # type: ignore[arg-type]  # NumPy takes any ISeedSequence


class _Key(ISeedSequence):
    """A key of Philox as it is; given as `key`, NumPy asks the operating system for a seed besides, and drops it."""

    def __init__(self, key: NDArray[np.uint64]) -> None:
        self.key = key

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> NDArray[np.uint64]:
        return self.key


def address(seed: int, purpose: str, round: int = 0, client: int = 0) -> int:
    """A 63-bit number for an address, to seed a `torch.Generator` or to start a tensor stream.

    The first of `rng` below 2^63.
    """
    bits, start = _stream(seed & _MASK64, purpose, threading.get_ident())
    counter = start["state"]["counter"]
    counter[2], counter[3] = client & _MASK64, round & _MASK64
    bits.state = start
    return int(bits.random_raw()) >> 1


def addresses(seed: int, purpose: str, round: int, clients: Sequence[int]) -> list[int]:
    """The `address` of each of many clients, from one bit generator that is moved from stream to stream."""
    bits, start = _stream(seed & _MASK64, purpose, threading.get_ident())
    counter = start["state"]["counter"]
    counter[3] = round & _MASK64
    found = []
    for client in clients:
        counter[2] = client & _MASK64
        bits.state = start
        found.append(int(bits.random_raw()) >> 1)
    return found


@lru_cache(maxsize=64)
def _stream(seed: int, purpose: str, thread: int) -> tuple[np.random.Philox, Any]:
    """A thread's bit generator and its state; whoever moves it sets all of the state, so that it may be used again."""
    bits = np.random.Philox(key=np.array([seed, _word(purpose)], dtype=np.uint64))
    return bits, bits.state


@contextmanager
def scoped(seed: int, purpose: str = "init", round: int = 0) -> Iterator[None]:
    """Start the global generators of torch, NumPy and Python at an address, and put them back afterwards.

    For code that draws from them whatever one says (`nn.Module` initialisers, the server halves of user methods), where
    it runs once and in one process.
    """
    start = address(seed, purpose, round)
    with held(), claimed():
        torch.default_generator.manual_seed(
            start
        )  # torch.manual_seed asks for every kind of device: it takes longer
        np.random.seed(start % (1 << 32))  # noqa: NPY002
        random.seed(start)
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.manual_seed_all(start)
        yield


class _Held(threading.local):
    free = False
    """Whether the global states are kept and will be put back, and nobody's draws depend on what they are."""


_held = _Held()


def free() -> bool:
    """Whether the global states may be moved: they are `held`, and nobody has `claimed` them."""
    return _held.free


@contextmanager
def claimed() -> Iterator[None]:
    """Inside `held`: what is drawn in here depends on the global states, so that nobody else may move them."""
    _held.free = False
    try:
        yield
    finally:
        _held.free = True


@contextmanager
def held() -> Iterator[None]:
    """Put the global generators of torch, NumPy and Python back afterwards, whatever has moved them.

    To look at their states and to set them takes a tenth of a millisecond. A round is played inside one such block:
    what is `scoped` in it starts at its address all the same, and puts nothing back by itself. Nothing else may draw.
    """
    if _held.free:
        yield
        return
    cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    devices = torch.cuda.get_rng_state_all() if cuda else []
    _held.free = True
    try:
        yield
    finally:
        _held.free = False
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        random.setstate(before[2])
        if cuda:
            torch.cuda.set_rng_state_all(devices)


# --- tensor streams -------------------------------------------------------------------------------------------------
# Two rounds of the 32-bit finaliser of MurmurHash3 over (address high word, address low word, position). int32
# arithmetic wraps as the hash wants; the shifts are made logical by masking.


def _mix(h: Tensor) -> Tensor:
    h = h ^ ((h >> 16) & 0xFFFF)
    h = h * -2048144789  # 0x85ebca6b
    h = h ^ ((h >> 13) & 0x7FFFF)
    h = h * -1028477387  # 0xc2b2ae35
    return h ^ ((h >> 16) & 0xFFFF)


def fold(key: Tensor, value: int | Tensor) -> Tensor:
    """A new address from an address and a number: keys for the steps of a client, the layers of a network.

    `key` is an int64 tensor of any shape; `value` a non-negative integer or an int64 tensor that broadcasts with it.
    """
    low = (key & 0x7FFFFFFF).to(torch.int32)
    high = ((key >> 31) & 0x7FFFFFFF).to(torch.int32)
    if isinstance(value, Tensor):
        word = (value & 0x7FFFFFFF).to(torch.int32)
    else:
        word = torch.full_like(low, value & 0x7FFFFFFF)
    low = _mix(low ^ _mix(word * -1640531527 + 1))
    high = _mix(high ^ low)
    return ((high.to(torch.int64) & 0x7FFFFFFF) << 31) | (low.to(torch.int64) & 0x7FFFFFFF)


def uniform(key: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Uniform numbers in [0, 1) with 24 random bits, shape `shape`; `key` is a scalar int64 tensor."""
    size = 1
    for length in shape:
        size *= length
    position = torch.arange(size, dtype=torch.int32, device=key.device)
    low = (key & 0x7FFFFFFF).to(torch.int32)
    high = ((key >> 31) & 0x7FFFFFFF).to(torch.int32)
    bits = _mix(_mix(position ^ low) + high)
    return ((bits & 0xFFFFFF).to(torch.float32) * (1.0 / (1 << 24))).to(dtype).reshape(tuple(shape))


def normal(key: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers (Box-Muller over two uniform streams), shape `shape`."""
    radius = torch.sqrt(-2.0 * torch.log1p(-uniform(fold(key, 1), shape)))
    return (radius * torch.cos(2.0 * torch.pi * uniform(fold(key, 2), shape))).to(dtype)


def normals(key: Tensor, count: int) -> Tensor:
    """So many standard normal numbers, float32 [count], for noise on whole models: not the numbers of `normal`.

    Box-Muller again, a pair of numbers from 64 bits, and these from the finaliser of SplitMix64 (Steele et al. 2014).
    """
    half = (count + 1) // 2
    bits = (torch.arange(half, device=key.device) + fold(key, 3)) * -7046029254386353131  # 0x9e3779b97f4a7c15
    bits = (bits ^ ((bits >> 30) & ((1 << 34) - 1))) * -4658895280553007687  # 0xbf58476d1ce4e5b9
    bits = (bits ^ ((bits >> 27) & ((1 << 37) - 1))) * -7723592293110705685  # 0x94d049bb133111eb
    bits = bits ^ ((bits >> 31) & ((1 << 33) - 1))
    share = ((bits >> 40) & 0xFFFFFF).to(torch.float32) + 0.5  # of 2^24, never 0
    radius = torch.sqrt(48 * math.log(2) - 2 * torch.log(share))
    angle = (bits & 0xFFFFFF).to(torch.float32) * (2 * torch.pi / (1 << 24))
    return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)])[:count]
