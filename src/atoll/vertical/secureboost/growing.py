"""The guest: it grows trees, and alone knows labels, gains and leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from atoll import he, seeds
from atoll.errors import CodecError, DataError
from atoll.he import Layout
from atoll.parties import Link
from atoll.tensors import Record
from atoll.vertical.protocol import Case, Progress
from atoll.vertical.secureboost import loss, messages
from atoll.vertical.secureboost.bins import Bins
from atoll.vertical.secureboost.forest import Forest
from atoll.vertical.secureboost.growth import Growth
from atoll.vertical.secureboost.records import as_array, as_tensor, packed_bits, unpacked_bits
from atoll.vertical.secureboost.sums import Own, Remote
from atoll.vertical.side import FloatArray, Side

if TYPE_CHECKING:
    from atoll.vertical.secureboost import SecureBoost

__all__ = ["grow", "score"]


async def grow(terms: SecureBoost, link: Link, side: Side, case: Case, progress: Progress) -> Record:
    """The guest's part; its half of the model."""
    guest = _Guest(terms, link, side, case, progress)
    await guest.begin(progress.number)
    for step in range(progress.number, terms.trees):
        await guest.step(step)
        progress.tell(step + 1, guest.forest.record(), guest.figures())
    if terms.importance == "column":
        await guest.hear()
    return guest.forest.record()


async def score(link: Link, side: Side, case: Case, half: Record) -> FloatArray:
    """Probabilities or expected values of rows."""
    forest = Forest.of(half)
    if len(case.hosts) != forest.hosts:
        raise DataError(f"the model is one of {forest.hosts} hosts, and there are {len(case.hosts)}")
    for host in case.hosts:
        await link.send(host, messages.ASK, Record(rows=len(side)))
    return loss.predicted(case.task, await _scores(link, side, case, forest), side.exposure)


async def _scores(link: Link, side: Side, case: Case, forest: Forest) -> FloatArray:
    """Scores [n, groups]; hosts send on which side of their splits rows are, block by block."""
    parts = [np.empty((0, len(forest.base)))]
    for start in range(0, len(side), messages.BLOCK):
        x = side.x[start : start + messages.BLOCK]
        inside = [
            np.array([forest.splits.inside(at, x) for at in range(len(forest.splits))]).reshape(-1, len(x))
        ]
        for host, due in zip(case.hosts, forest.theirs, strict=True):
            bits = (await link.receive(host, messages.OUTCOMES)).inside
            if bits.shape != (due, -(-len(x) // 8)):
                raise CodecError(f"boost.outcomes of {host} is {list(bits.shape)}, and {due} splits are due")
            inside.append(unpacked_bits(bits, len(x)))
        parts.append(forest.scores([part.astype(bool) for part in inside]))
    return np.concatenate(parts)


class _Guest:
    def __init__(self, terms: SecureBoost, link: Link, side: Side, case: Case, progress: Progress) -> None:
        if side.y is None:
            raise DataError("the guest has no label")
        self.terms, self.link, self.side, self.case, self.y = terms, link, side, case, side.y
        top = 1 << terms.precision
        # g in [-top, top], h in [0, top]
        self.layout = Layout((-top, 0), (top, top), len(side))
        self.secret = he.keygen(case.crypto, terms.workers)
        self.layout.fits(self.secret.public.capacity, self.secret.public.name)
        self.own = Own(Bins(side.x, terms.bins))
        self.remotes: list[Remote] = []
        base = loss.begin(case, self.y, side.exposure)
        self.limit = terms.max_delta if case.task == "poisson" else np.inf
        given = progress.half
        self.forest = Forest(base, len(case.hosts)) if given is None else Forest.of(given)
        self.scores = np.tile(base, (len(side), 1))

    async def begin(self, steps: int) -> None:
        """Give hosts the key; catch up with trees that there are already."""
        public = self.secret.public
        for host in self.case.hosts:
            record = Record(key=as_tensor(public.key()), steps=steps, rows=len(self.side))
            await self.link.send(host, messages.BEGIN, record)
        for host in self.case.hosts:
            splits = (await self.link.receive(host, messages.SPLITS)).count
            self.remotes.append(Remote(self.link, host, self.secret, self.layout, splits))
        if steps:
            self.scores = await _scores(self.link, self.side, self.case, self.forest)

    def figures(self) -> dict[str, float]:
        """The loss on the rows that are learned."""
        p = loss.predicted(self.case.task, self.scores, self.side.exposure)
        if self.case.task == "regression":
            return {"loss": float(np.mean((p - self.y) ** 2) / 2)}
        if self.case.task == "poisson":
            return {"loss": float(np.mean(p - self.y * np.log(np.maximum(p, 1e-300))))}
        hit = np.where(self.y > 0, p, 1 - p) if p.ndim == 1 else p[np.arange(len(p)), self.y.astype(np.int64)]
        return {"loss": float(-np.log(np.maximum(hit, 1e-300)).mean())}

    async def hear(self) -> None:
        """Which splits of each host are of one column."""
        told = []
        for host, due in zip(self.case.hosts, self.forest.theirs, strict=True):
            number = as_array((await self.link.receive(host, messages.COLUMNS)).number)
            if len(number) != due or not ((number >= 0) & (number < max(1, due))).all():
                raise CodecError(f"boost.columns of {host} are not numbers of its {due} splits")
            told.append(number)
        self.forest.numbers = told

    # --- one step -----------------------------------------------------------------------------------------------

    async def step(self, number: int) -> None:
        """A tree for each group of scores."""
        terms, n = self.terms, len(self.side)
        g, h = loss.gradients(self.case, self.y, self.scores, self.side.exposure, self.limit)
        grown = np.ones(n, bool)
        if terms.goss_top < 1:
            rng = seeds.rng(self.case.seed, "secureboost.goss", number)
            grown, weight = loss.sample(g, terms.goss_top, terms.goss_rest, rng)
            g, h = g * weight[:, None], h * weight[:, None]
        for group in range(g.shape[1]):
            numbers = [loss.Whole.of(each[:, group], terms.precision) for each in (g, h)]
            await self._open(number, [each.whole for each in numbers], grown)
            growth = Growth(
                terms, self.forest, self.own, self.remotes, self.side.x, numbers, grown, self.limit
            )
            tree, leaf = await growth.run(number)
            self.forest.trees.append(tree)
            self.scores[:, group] += np.array(tree.value)[leaf]

    async def _open(self, number: int, columns: list[NDArray[np.int64]], grown: NDArray[np.bool_]) -> None:
        """Tell hosts of a tree, and send those who take part in it the encrypted gradients of its rows."""
        levels = [self.terms.asked(number, depth, 1 + len(self.remotes)) for depth in range(self.terms.depth)]
        for party, remote in enumerate(self.remotes, 1):
            remote.begin(sum(party in asked for asked in levels))
        self.own.begin()
        public, everybody = self.secret.public, bool(grown.all())
        rows = torch.zeros(0, dtype=torch.uint8) if everybody else packed_bits(grown)
        blob = None
        for remote in self.remotes:
            await self.link.send(remote.host, messages.TREE, Record(levels=remote.due, rows=rows))
            if not remote.due:
                continue
            if blob is None:
                plain = self.layout.join([column if everybody else column[grown] for column in columns])
                blob = as_tensor(self.secret.seal(plain))
            for part in torch.split(blob, messages.CHUNK):
                await self.link.send(
                    remote.host,
                    messages.PAIRS,
                    Record(c=part),
                    **he.told(public, len(part)),
                )
