"""Homomorphic encryption: the server adds up what it cannot read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from atoll.channel.transform import Place, Setting, Transform, Update, Vector
from atoll.contract import Job
from atoll.errors import ConfigError, MissingExtraError
from atoll.tensors import Record, leaves, map_leaves

__all__ = ["HE", "Keys"]

MOST = 1_000_000
"""Parameters up to which a ciphertext, some ten times an update, is bearable."""


@dataclass(frozen=True)
class HE(Transform):
    """CKKS: clients share a key that the server does not have.   Cheon et al., ASIACRYPT 2017

    It protects updates from the server, and from whoever looks at the wire. It does NOT protect clients from one
    another: any of them who sees another's ciphertext reads it, and one that helps the server gives everybody away (see
    `SecAgg` for sums that stay hidden then). Sums come out with an error of about 1e-5.

    Args:
        degree: of the ring; coefficient moduli are [50, 30, 50] bits, the scale 2^30: no product is ever taken.
    """

    degree: int = 8192
    weighted: bool = True
    """Whether weights are multiplied in, and `heaviest`, the weight that counts for 1; a chain fills them in."""
    heaviest: float = 1.0

    name: ClassVar[str] = "he"
    place: ClassVar[Place] = "hide"

    def __post_init__(self) -> None:
        self._require("degree", self.degree in (4096, 8192, 16384), "must be 4096, 8192 or 16384")

    @property
    def text(self) -> str:
        return self.name if self.degree == 8192 else f"{self.name}:{self.degree}"

    @property
    def sums(self) -> bool:
        return True

    def fitted(self, before: tuple[Transform, ...], setting: Setting) -> HE:
        _tenseal()
        if setting.size > MOST:
            raise ConfigError(
                f"channel {self.text!r}: {setting.size:,} numbers an update, and encryption is for at most {MOST:,}",
                hint='"secagg" hides sums of any size',
            )
        return replace(self, weighted=not setting.equal, heaviest=setting.heaviest)

    def nbytes(self, values: Record, usual: int) -> int:
        size = sum(int(v.numel()) for v in leaves(values))
        return -(-size // (self.degree // 2)) * _ciphertext(self.degree)

    # --- client half ------------------------------------------------------------------------------------------

    def send(self, update: Update, told: Record, own: Record, key: Tensor) -> tuple[Update, Record]:
        there = update.weight > 0
        share = torch.where(there, update.weight / self.heaviest if self.weighted else 1.0, 0.0)
        far = sum((v.sum() for v in leaves(update.values)), torch.zeros((), device=key.device))
        values = map_leaves(lambda v: v * share.to(v.dtype), update.values)
        report = update.report.replace(weight=share.double())
        weight = there.to(share.dtype) + (far + share) * 0  # nan where a number is not finite
        return update._replace(values=values, weight=weight, report=report), own

    # --- server half ------------------------------------------------------------------------------------------

    @property
    def floor(self) -> int:
        return 1

    def nothing(self) -> Record:
        return Record(weight=torch.zeros((), dtype=torch.float64))

    @property
    def together(self) -> Callable[[Mapping[int, Vector], Job], Vector]:
        return self._encrypted

    def _encrypted(self, vectors: Mapping[int, Vector], job: Job) -> Vector:
        """The sum of vectors by client, each encrypted by its client, added by a server without the key."""
        keys = _keys(self.degree)
        total: list[Any] | None = None
        for vector in vectors.values():
            total = added(keys.public, total, keys.encrypt(vector.astype(np.float64)))
        assert total is not None
        sent = [each.serialize() for each in total]
        return keys.decrypt(sent, len(next(iter(vectors.values()))))


class Keys:
    """What clients share: they encrypt and decrypt; with `public` the server can only add.

    Raises MissingExtraError without TenSEAL.
    """

    def __init__(self, degree: int) -> None:
        ts = _tenseal()
        bits = [50, 30, 50] if degree > 4096 else [40, 20, 40]
        self.context = ts.context(ts.SCHEME_TYPE.CKKS, degree, coeff_mod_bit_sizes=bits)
        self.context.global_scale = 2.0 ** bits[1]
        self.slots = degree // 2
        public = self.context.copy()
        public.make_context_public()
        self.public = public

    def encrypt(self, vector: Vector) -> list[bytes]:
        """A vector as ciphertexts, `slots` numbers in each: what a client sends."""
        ts = _tenseal()
        return [
            ts.ckks_vector(self.context, vector[at : at + self.slots].tolist()).serialize()
            for at in range(0, len(vector), self.slots)
        ]

    def decrypt(self, chunks: Sequence[bytes], size: int) -> Vector:
        """The first `size` numbers in ciphertexts."""
        ts = _tenseal()
        found = [np.asarray(ts.ckks_vector_from(self.context, each).decrypt()) for each in chunks]
        return np.concatenate(found)[:size]


def added(public: Any, total: list[Any] | None, sent: Sequence[bytes]) -> list[Any]:
    """A sum of ciphertexts with one client's more: all that a server does, without the key."""
    ts = _tenseal()
    vectors = [ts.ckks_vector_from(public, each) for each in sent]
    return vectors if total is None else [a + b for a, b in zip(total, vectors, strict=True)]


@lru_cache(maxsize=1)
def _tenseal() -> Any:
    try:
        import tenseal
    except ImportError as error:
        raise MissingExtraError("tenseal", "he", "the channel he") from error
    return tenseal


@lru_cache(maxsize=4)
def _keys(degree: int) -> Keys:
    """The keys of a simulation's clients."""
    return Keys(degree)


@lru_cache(maxsize=4)
def _ciphertext(degree: int) -> int:
    """Bytes of one."""
    return len(_keys(degree).encrypt(np.full(degree // 2, 0.01))[0])
