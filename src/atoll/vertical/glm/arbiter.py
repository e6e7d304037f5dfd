"""With an arbiter, who has the key and no data.   Hardy et al. 2017, arXiv:1711.10677

For each batch of b rows:

    host k -> guest      [[s u_k]], its part of the residuals, u_k = X_k w_k; s is 1/4 for classes, else 1
    guest -> host k      [[d]] = sum_k [[s u_k]] + [[s (u_A + intercept) - target]]
    party k -> arbiter   [[X_k' d + R_k]], the mask R_k drawn by the party from the operating system
    arbiter -> party k   X_k' d + R_k

The guest encrypts its own part anew: if it added it open, a host, who knows the randomness of its own ciphertext, could
subtract that and read the residuals. Counts with the log link multiply instead of adding: [[exp(u_k)]] goes from host
to guest to the next host, and [[d]] = [[prod_k exp(u_k)]] exp(u_A) - [[y]].

Masks are uniform over 2^50 steps of 2^-20 (of a mean over the batch). With standardised columns mean gradients g are
about 1 at most, and a masked one tells the arbiter something, the side on which it lies, with probability |g| 2^-29.
The same holds for the other slots of a ciphertext, 4096 in all, which have parts of sums in them. The arbiter gives
back multiples of the same 2^-20, which is coarser than the noise of CKKS, and opens fewer sums than a batch has rows:
from as many, residuals could be computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from atoll.errors import DataError, DivergedError, RunError
from atoll.he.ckks import CKKS, MASK, Cipher, CKKSKey, Key, Open, OpenKey, drawn
from atoll.parties import Kind, Link
from atoll.tensors import Record
from atoll.vertical.glm import kinds
from atoll.vertical.glm.columns import Columns
from atoll.vertical.glm.descent import batches
from atoll.vertical.glm.label import Label, scores_of, slope
from atoll.vertical.glm.settings import Settings
from atoll.vertical.protocol import Case, Progress
from atoll.vertical.side import FloatArray, Side

__all__ = ["arbiter", "guest", "host"]

GRAIN = 2.0**-20
"""The step of masks and of what the arbiter gives back, of a mean over a batch."""
_FAR = 15.0  # a party's linear score of counts, beyond which CKKS runs out of room


@dataclass
class _Party:
    """What guest and hosts do alike."""

    link: Link
    case: Case
    settings: Settings
    cipher: Cipher
    x: FloatArray
    """[n, d], at the guest with a column of ones behind them."""
    name: str

    async def gradient(self, rows: Any, residual: Sequence[Any]) -> FloatArray:
        """The mean gradient of this party's columns over a batch, [d, scores], by way of the arbiter."""
        x, scores, grain = self.x[rows], scores_of(self.case), _grain(len(rows))
        masks = drawn(x.shape[1] * scores, grain, MASK).reshape(-1, scores)
        totals = self.cipher.totals(residual, x, masks, grain)
        arbiter = str(self.case.arbiter)
        await self.say(arbiter, kinds.MASKED, totals, columns=x.shape[1])
        sums = (await self.link.receive(arbiter, kinds.OPENED)).sums.numpy()
        if sums.shape != masks.shape:
            raise RunError(f"{arbiter} has opened {list(sums.shape)} sums, and {list(masks.shape)} are due")
        return np.asarray((sums - masks) / len(x))

    async def say(self, to: str, kind: Kind, sealed: Sequence[Any], **more: int) -> None:
        """Send ciphertexts."""
        count = len(sealed) if self.cipher.under else 0
        record = Record(cipher=self.cipher.pack(sealed), **more)
        await self.link.send(to, kind, record, under=self.cipher.under, ciphertexts=count)

    async def hear(self, sender: str, kind: Kind, rows: int) -> list[Any]:
        """What is encrypted of so many rows."""
        sealed = self.cipher.unpack((await self.link.receive(sender, kind)).cipher)
        due = self.cipher.chunks(rows, scores_of(self.case))
        if len(sealed) != due:
            raise RunError(f"{sender} has sent {len(sealed)} ciphertexts, and {due} are due")
        return sealed


# --- roles ------------------------------------------------------------------------------------------------------


async def guest(link: Link, side: Side, case: Case, progress: Progress, settings: Settings) -> Record:
    """Has the label and an intercept."""
    columns = Columns.of(side)
    label = Label.of(side, case)
    for other in (*case.hosts, case.arbiter):
        plan = Record(
            rows=len(side), scores=scores_of(case), done=progress.number, settings=settings.shared(case)
        )
        await link.send(str(other), kinds.PLAN, plan)
    x = np.hstack([columns.apply(side), np.ones((len(side), 1))])
    party = await _party(link, case, settings, x, link.name)
    descent = settings.descent(x.shape[1] - 1, scores_of(case), label.intercept, progress)

    async def residual(rows: Any) -> list[Any]:
        z = party.x[rows, :-1] @ descent.weights + descent.intercept
        if case.task == "poisson":
            total = await _product(party, z, label, rows)
        else:
            total = party.cipher.encrypt(slope(case.task) * z - label.target[rows])
            for name in case.hosts:
                total = party.cipher.add(total, await party.hear(name, kinds.SCORE, len(rows)))
        for name in case.hosts:
            await party.say(name, kinds.RESIDUAL, total)
        return total

    fixed = {**columns.record(), **label.record()}
    for epoch in range(progress.number + 1, settings.epochs + 1):
        if descent.stopped:
            break
        for rows in batches(len(side), settings.batch, case.seed, epoch):
            descent.step(await party.gradient(rows, await residual(rows)))
        moved = descent.moved()
        if settings.tolerance:
            resting = [bool((await link.receive(name, kinds.STILL)).still) for name in case.hosts]
            descent.stopped = all(resting) and moved < settings.tolerance
            for other in (*case.hosts, case.arbiter):
                await link.send(str(other), kinds.STOP, Record(stop=descent.stopped))
        progress.tell(epoch, descent.half(fixed, running=True), {"moved": moved})
    return descent.half(fixed, running=False)


async def host(link: Link, side: Side, case: Case, progress: Progress, settings: Settings) -> Record:
    """Has other columns of the same rows."""
    columns = Columns.of(side)
    await _planned(link, case, settings, progress, len(side))
    x, scores = columns.apply(side), scores_of(case)
    party = await _party(link, case, settings, x, link.name)
    descent = settings.descent(x.shape[1], scores, None, progress)
    first = case.hosts[0] == link.name
    for epoch in range(progress.number + 1, settings.epochs + 1):
        if descent.stopped:
            break
        for rows in batches(len(side), settings.batch, case.seed, epoch):
            u = party.x[rows] @ descent.weights
            if case.task != "poisson":
                sealed = party.cipher.encrypt(slope(case.task) * u)
            elif first:
                sealed = party.cipher.encrypt(_exp(u))
            else:
                sealed = party.cipher.times(await party.hear(case.guest, kinds.SCORE, len(rows)), _exp(u))
            await party.say(case.guest, kinds.SCORE, sealed)
            descent.step(await party.gradient(rows, await party.hear(case.guest, kinds.RESIDUAL, len(rows))))
        moved = descent.moved()
        if settings.tolerance:
            await link.send(case.guest, kinds.STILL, Record(still=moved < settings.tolerance))
            descent.stopped = bool((await link.receive(case.guest, kinds.STOP)).stop)
        progress.tell(epoch, descent.half(columns.record(), running=True), {})
    return descent.half(columns.record(), running=False)


async def arbiter(link: Link, case: Case, progress: Progress, settings: Settings) -> None:
    """Makes the key and opens masked sums; a new key where a run goes on."""
    rows, scores = await _planned(link, case, settings, progress, None)
    key = _key(case)
    public = key.public()
    for name in (case.guest, *case.hosts):
        await link.send(name, kinds.KEY, Record(public=public))
    stopped = progress.half is not None and bool(progress.half.stopped)
    for epoch in range(progress.number + 1, settings.epochs + 1):
        if stopped:
            break
        for batch in batches(rows, settings.batch, case.seed, epoch):
            for name in (case.guest, *case.hosts):
                asked = await link.receive(name, kinds.MASKED)
                if not 0 <= asked.columns < len(batch):
                    raise _too_many(name, asked.columns, len(batch))
                grain = _grain(len(batch))
                opened = key.sums(asked.cipher, len(batch), asked.columns, scores)
                sums = torch.from_numpy(np.round(opened / grain) * grain)
                await link.send(name, kinds.OPENED, Record(sums=sums))
        if settings.tolerance:
            stopped = bool((await link.receive(case.guest, kinds.STOP)).stop)
        progress.tell(epoch, Record(stopped=stopped), {})


# --- parts of them ----------------------------------------------------------------------------------------------


async def _party(link: Link, case: Case, settings: Settings, x: FloatArray, name: str) -> _Party:
    public = (await link.receive(str(case.arbiter), kinds.KEY)).public
    cipher = CKKS(public) if case.crypto.startswith("ckks") else Open()
    least = min(len(rows) for rows in batches(len(x), settings.batch, case.seed, 1))
    if x.shape[1] >= least:
        raise _too_many(name, x.shape[1], least)
    return _Party(link, case, settings, cipher, x, name)


def _too_many(name: str, columns: int, rows: int) -> DataError:
    return DataError(
        f"{name} has {columns} columns (with the intercept, at the guest), and a batch has {rows} rows: from its"
        " gradients it could compute the residuals of each",
        hint="batch must be larger, or columns fewer",
    )


def _key(case: Case) -> Key:
    if not case.crypto.startswith("ckks"):
        return OpenKey()
    # Counts: a product for each host but the first, one at the guest, one for the gradient.
    products = len(case.hosts) + 1 if case.task == "poisson" else 1
    return CKKSKey(products, int(case.crypto.partition("-")[2] or 0))


async def _planned(
    link: Link, case: Case, settings: Settings, progress: Progress, rows: int | None
) -> tuple[int, int]:
    """What the guest plans: rows and scores.  Raises DataError where this party has something else in mind."""
    plan = await link.receive(case.guest, kinds.PLAN)
    if rows not in (None, plan.rows):
        raise DataError(
            f"there are {rows} rows here and {plan.rows} at {case.guest}",
            hint="parties must be aligned first",
        )
    if plan.done != progress.number:
        raise DataError(
            f"{case.guest} goes on after epoch {plan.done}, and this party after epoch {progress.number}"
        )
    if (plan.scores, plan.settings) != (scores_of(case), settings.shared(case)):
        raise DataError(f"{case.guest} has other settings: {plan.settings}", hint="all must have the same")
    return int(plan.rows), int(plan.scores)


async def _product(party: _Party, z: FloatArray, label: Label, rows: Any) -> list[Any]:
    """[[d]] of counts, divided by the mean count: hosts multiply one after the other."""
    total: list[Any] = []
    for at, name in enumerate(party.case.hosts):
        if at:
            await party.say(name, kinds.SCORE, total)
        total = await party.hear(name, kinds.SCORE, len(z))
    total = party.cipher.times(total, _exp(z + np.log(label.exposure[rows, None])))
    return party.cipher.add(total, party.cipher.encrypt(-label.target[rows]))


def _grain(rows: int) -> float:
    """The step of masks of a sum over so many rows: a power of two, so that sums are exact."""
    return GRAIN * 2.0 ** math.ceil(math.log2(rows))


def _exp(u: FloatArray) -> FloatArray:
    if u.size and float(np.abs(u).max()) > _FAR:
        raise DivergedError(
            f"a linear score is beyond {_FAR:g}: exp of it is no multiple of the mean count",
            hint="a smaller lr may help",
        )
    return np.asarray(np.exp(u))
