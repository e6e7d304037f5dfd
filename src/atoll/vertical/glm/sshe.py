"""Without an arbiter, for two parties: weights and residuals are shared.   CAESAR, Chen et al. 2021, arXiv:2008.08753

Each party has a key of a cipher that adds. Weights w = <w>_1 + <w>_2 of both parties' columns are shares (`shares`),
and stay so until the last epoch is done. A product of a matrix X at party P with a shared vector v takes two messages:

    Q -> P      [[<v>_Q]], under the key of Q
    P -> Q      [[X <v>_Q + r]], r drawn by P from the operating system, 40 bits longer than what it hides

and leaves X <v>_P - r at P and X <v>_Q + r at Q, shares of X v. For each batch of b rows: z = X_A w_A + X_B w_B by two
such products; the shares of d = s z - target, with the linear residuals of `GLM`; X_A' d and X_B' d by two more; and
both shares of each weight go down the gradient, for which the optimiser must be linear. P makes its ciphertexts anew
(`rerandomise`): the owner of the key could otherwise read in their randomness which multiples were added up.

Nobody learns anything before the end; then each party is given the other share of its own weights. Masks are drawn
anew in every run, and cutting depends on them in the last place: two runs are equal to some 2^-18 a step, not to the
bit.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from atoll.errors import DataError, DivergedError, RunError
from atoll.he import AdditiveHE, Octets, SecretHE, numbers
from atoll.optimizers import SGD, optimizer
from atoll.parties import Kind, Link
from atoll.tensors import Record
from atoll.vertical.glm import kinds
from atoll.vertical.glm.adding import keygen, load, packed, times
from atoll.vertical.glm.columns import Columns
from atoll.vertical.glm.descent import batches
from atoll.vertical.glm.label import Label, scores_of, slope
from atoll.vertical.glm.settings import Settings
from atoll.vertical.glm.shares import POINT, Big, Share, cut, fixed, floats, rational, ring, split
from atoll.vertical.protocol import Case, Progress
from atoll.vertical.side import FloatArray, Side

__all__ = ["guest", "host"]

HIDE = 40
"""How many bits longer masks are than what they hide."""
_FAR = 2.0**20  # weights of standardised columns beyond which shares may have wrapped round


@dataclass
class _Held:
    """A party's share of weights [d, scores] and of how they move."""

    weights: Share
    velocity: Share

    def step(self, gradient: Big, rows: int, settings: Settings, free: int) -> None:
        """Down a gradient.

        Args:
            gradient: this share of the sum over so many rows, 40 bits behind the point.
            free: so many of the last weights have no L2.
        """
        solver = optimizer(settings.optimizer)
        assert isinstance(solver, SGD)
        momentum, decay = rational(solver.momentum), rational(settings.l2)
        mean = cut(gradient, Fraction(1, rows << POINT))
        held = len(self.weights) - free
        mean[:held] += cut(self.weights[:held], decay)
        mean += cut(self.weights, rational(solver.weight_decay))
        self.velocity = ring(cut(self.velocity, momentum) + mean)
        step = self.velocity.astype(object)
        if solver.nesterov:
            step = cut(self.velocity, momentum) + mean
        self.weights = ring(self.weights.astype(object) - cut(step, rational(settings.lr)))


@dataclass
class _Party:
    """What both do alike: the other is the party that it has a link to."""

    link: Link
    other: str
    case: Case
    settings: Settings
    secret: SecretHE
    public: AdditiveHE
    """Of the other."""
    x: Share
    """[n, d], fixed point, at the guest with a column of ones behind them."""
    own: _Held
    theirs: _Held
    scores: int
    free: tuple[int, int]
    """How many of the own weights and of theirs are no weights of columns but intercepts."""
    size: int = field(init=False)

    def __post_init__(self) -> None:
        # Standardised values of n rows are at most the root of n.
        self.size = POINT + math.ceil(math.log2(max(2, len(self.x))) / 2) + 1

    async def descend(self, rows: NDArray[np.int64], target: FloatArray | None) -> None:
        """One batch."""
        x = self.x[rows]
        mine, other = await self.multiply(x, self.own.weights, self.theirs.weights, len(rows))
        share = cut(mine + other, Fraction(slope(self.case.task)) / (1 << POINT))
        if target is not None:
            share = share - fixed(target[rows]).astype(object)
        error = ring(share)
        mine, other = await self.multiply(x.T, error, error, len(self.theirs.weights))
        self.own.step(mine, len(rows), self.settings, self.free[0])
        self.theirs.step(other, len(rows), self.settings, self.free[1])

    async def multiply(self, x: Share, mine: Share, theirs: Share, height: int) -> tuple[Big, Big]:
        """Shares of two products with 40 bits behind the point: of this party's matrix, and of the other's.

        Args:
            x: [a, t], this party's matrix.
            mine: [t, scores], its share of what that is multiplied with.
            theirs: [u, scores], its share of what the other's matrix [height, u] is multiplied with.
        """
        lifted = np.ascontiguousarray((theirs.T.astype(np.uint64) + np.uint64(1 << 63)).reshape(-1))
        whole = self.secret.encrypt(lifted.view(np.uint8).reshape(-1, 8))
        vector = await self.exchange(kinds.VECTOR, (self.secret.public, whole), (self.public, mine.size))

        masks = _masks(len(x) * self.scores, self.bits(x.shape[1]))
        raised = x + (1 << self.size)
        parts = np.split(vector, self.scores)
        product = np.concatenate([times(self.public, raised, part, self.size + 1) for part in parts])
        size = _bytes(self.bits(len(theirs)))
        per = self.secret.public.per(8 * size)
        due = -(-height * self.scores // per)
        sums = await self.exchange(
            kinds.PRODUCT, (self.public, self.hidden(product, masks)), (self.secret.public, due)
        )
        opened = self.secret.decrypt(sums, 8 * size * per, f"{kinds.PRODUCT.name} of {self.other}")

        first = _exact(x, mine) - self.matrix(numbers(masks)) - (x.sum(1).astype(object) << 63)[:, None]
        second = self.matrix(numbers(opened.reshape(-1, size)[: height * self.scores]))
        added = (theirs.astype(object).sum(0) << self.size) + (len(theirs) << (self.size + 63))
        return first, second - added

    def hidden(self, product: Any, masks: Octets) -> Any:
        """Masked sums, as many in each ciphertext as it holds, made anew."""
        bits = 8 * masks.shape[1]
        packs = self.public.encrypt(packed(masks, self.public.per(bits)))
        return self.public.rerandomise(self.public.add(self.public.pack(product, bits), packs))

    def matrix(self, flat: list[int]) -> Big:
        """Numbers that travel score after score, [n, scores]."""
        return np.array(flat, dtype=object).reshape(self.scores, -1).T

    def bits(self, terms: int) -> int:
        """Of masks for sums of so many products of lifted numbers."""
        return self.size + 1 + 64 + math.ceil(math.log2(max(2, terms))) + HIDE

    async def exchange(self, kind: Kind, given: tuple[AdditiveHE, Any], due: tuple[AdditiveHE, int]) -> Any:
        """Send ciphertexts and receive so many; the guest sends first, so that long messages do not meet.

        Args:
            given: ciphertexts, and whose key they are under; `due` likewise, with their number.
        """
        if self.free[0]:
            await self._say(kind, *given)
            return await self._hear(kind, *due)
        found = await self._hear(kind, *due)
        await self._say(kind, *given)
        return found

    async def _say(self, kind: Kind, public: AdditiveHE, c: Any) -> None:
        sent = torch.from_numpy(np.array(public.to_bytes(c)))
        hides = self.case.crypto != "none"
        await self.link.send(
            self.other, kind, Record(cipher=sent), public.name if hides else None, len(sent) if hides else 0
        )

    async def _hear(self, kind: Kind, public: AdditiveHE, count: int) -> Any:
        sent = (await self.link.receive(self.other, kind)).cipher.numpy()
        if len(sent) != count:
            raise RunError(f"{self.other} has sent {len(sent)} ciphertexts, and {count} are due")
        return public.from_bytes(sent, f"{kind.name} of {self.other}")


# --- roles ------------------------------------------------------------------------------------------------------


async def guest(link: Link, side: Side, case: Case, progress: Progress, settings: Settings) -> Record:
    """Has the label and an intercept."""
    label, (other,) = Label.of(side, case), case.hosts
    return await _role(link, other, side, case, progress, settings, label)


async def host(link: Link, side: Side, case: Case, progress: Progress, settings: Settings) -> Record:
    """Has other columns of the same rows."""
    return await _role(link, case.guest, side, case, progress, settings, None)


async def _role(
    link: Link,
    other: str,
    side: Side,
    case: Case,
    progress: Progress,
    settings: Settings,
    label: Label | None,
) -> Record:
    columns, scores = Columns.of(side), scores_of(case)
    await _agree(link, other, case, settings, progress, len(side))
    x, begin = columns.apply(side), np.zeros((len(columns.means), scores))
    target = None
    if label is not None:
        x, begin = np.hstack([x, np.ones((len(x), 1))]), np.vstack([begin, label.intercept])
        target = label.target
    secret = keygen(case.crypto)
    await link.send(other, kinds.KEY, Record(public=torch.from_numpy(np.array(secret.public.key()))))
    public = load(case.crypto, (await link.receive(other, kinds.KEY)).public.numpy())
    own, theirs = await _shared(link, other, fixed(begin), progress.half)
    free = (int(label is not None), int(label is None))
    party = _Party(link, other, case, settings, secret, public, fixed(x), own, theirs, scores, free)
    fixed_fields = {**columns.record(), **({} if label is None else label.record())}
    for epoch in range(progress.number + 1, settings.epochs + 1):
        for rows in batches(len(side), settings.batch, case.seed, epoch):
            await party.descend(rows, target)
        progress.tell(epoch, _running(party).replace(**fixed_fields), {})
    await link.send(other, kinds.SHARE, Record(share=torch.from_numpy(party.theirs.weights)))
    last = (await link.receive(other, kinds.SHARE)).share.numpy()
    weights = floats(party.own.weights + last)
    if np.abs(weights).max(initial=0.0) > _FAR:
        raise DivergedError(f"there are weights beyond {_FAR:g}", hint="a smaller lr may help")
    half = Record(weights=torch.from_numpy(weights[: len(weights) - free[0]]), **fixed_fields)
    return half.replace(intercept=torch.from_numpy(weights[-1])) if label is not None else half


# --- parts of them ----------------------------------------------------------------------------------------------


async def _agree(
    link: Link, other: str, case: Case, settings: Settings, progress: Progress, rows: int
) -> None:
    """Both have the same rows, settings and epoch.  Raises DataError where they have not."""
    mine = Record(rows=rows, scores=scores_of(case), done=progress.number, settings=settings.whole(case))
    await link.send(other, kinds.PLAN, mine)
    plan = await link.receive(other, kinds.PLAN)
    for name, value in mine.items():
        if plan[name] != value:
            raise DataError(
                f"{name}: {value} here and {plan[name]} at {other}",
                hint="parties must be aligned first, and have the same settings",
            )


async def _shared(link: Link, other: str, begin: Share, half: Record | None) -> tuple[_Held, _Held]:
    """Shares of the own weights and of the other's, new or as they were."""
    if half is not None:
        own, theirs = half.own, half.theirs
        return (
            _Held(own.weights.numpy(), own.velocity.numpy()),
            _Held(theirs.weights.numpy(), theirs.velocity.numpy()),
        )
    keep, give = split(begin)
    await link.send(other, kinds.SHARE, Record(share=torch.from_numpy(give)))
    given = (await link.receive(other, kinds.SHARE)).share.numpy()
    return _Held(keep, np.zeros_like(keep)), _Held(given, np.zeros_like(given))


def _running(party: _Party) -> Record:
    """What a run that goes on needs: shares, of which none is a model."""
    return Record(
        {
            name: Record(weights=torch.from_numpy(held.weights), velocity=torch.from_numpy(held.velocity))
            for name, held in (("own", party.own), ("theirs", party.theirs))
        }
    )


def _bytes(bits: int) -> int:
    """Of a masked sum, which may be a bit longer than its mask."""
    return bits // 8 + 1


def _masks(count: int, bits: int) -> Octets:
    """Uniform below 2^bits, from the operating system, the lowest byte first, [count, bytes of a masked sum]."""
    size = _bytes(bits)
    found = np.frombuffer(os.urandom(size * count), np.uint8).reshape(count, size).copy()
    found[:, -1] &= (1 << (bits % 8)) - 1
    return found


def _exact(x: Share, v: Share) -> Big:
    """x v over the integers: v in four parts of 16 bits, whose products with numbers below 2^31 fit in int64."""
    total: Any = 0
    for place in range(4):
        part = v >> 48 if place == 3 else (v >> (16 * place)) & 0xFFFF
        total = total + ((x @ part).astype(object) << (16 * place))
    return np.asarray(total)
