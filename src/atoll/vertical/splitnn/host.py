"""A host's part: embeddings out, their gradients in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from atoll.errors import ConfigError, DataError, DivergedError
from atoll.parties import Link
from atoll.tensors import Record
from atoll.vertical.protocol import Case, Progress
from atoll.vertical.side import Side
from atoll.vertical.splitnn.embeddings import Blur, key_of
from atoll.vertical.splitnn.messages import BEGIN, Wire
from atoll.vertical.splitnn.nets import Net, Scale, built, own_seed, refuse_copies
from atoll.vertical.splitnn.run import Rows, Workset, batches, likeness, slices

if TYPE_CHECKING:
    from atoll.vertical.splitnn.protocol import SplitNN

__all__ = ["Host"]


class Host:
    """A host in a run.

    Args:
        half: where to go on from, None for a new network.
    """

    def __init__(self, how: SplitNN, link: Link, side: Side, case: Case, half: Record | None) -> None:
        if not side.x.shape[1]:
            raise DataError(
                f"{link.name} has no columns", hint="a host brings columns; leave it out otherwise"
            )
        self.how, self.link, self.case = how, link, case
        seed = own_seed(case.seed, side)
        self.scale = Scale.of(side.x) if half is None else Scale(half.scale.mean, half.scale.unit)
        with how.first(seed):
            module = built(how.bottom, len(self.scale.mean), how.width)
        self.net = Net(module, how.optimizer, how.lr, seed)
        if half is not None:
            self.net.load(half.net)
        self.wire, self.blur = Wire.of(how.codec), Blur(how.clip, how.noise)
        self.source = key_of(how.noise_seed)
        self.stale = Workset(how.cache, how.local - 1)

    async def learn(self, side: Side, progress: Progress) -> Record:
        """All epochs that are left; the half at the end."""
        how, x = self.how, self.scale(side.x)
        await self._begin(x)
        for epoch in range(progress.number, how.epochs):
            self.stale.clear()
            for number, rows in enumerate(batches(self.case.seed, epoch, len(x), how.batch)):
                await self._exchange(x, rows, epoch, number)
            progress.tell(epoch + 1, self.half(), how.privacy(len(x), epoch + 1))
        return self.half()

    def half(self) -> Record:
        return Record(net=self.net.record(), scale=self.scale.record())

    async def answer(self, side: Side) -> None:
        """Embeddings of rows whose scores the guest wants."""
        x = self.scale(side.x)
        await self._begin(x)
        for number, rows in enumerate(slices(len(x))):
            h = self._checked(self.net(x[rows]), x[rows])
            draws = self.source.at(f"split asked {self.link.name}", number)
            await self._send(self.blur.noised(self.blur.bound(h), draws))

    # --- one batch ----------------------------------------------------------------------------------------------

    async def _exchange(self, x: Tensor, rows: Rows, epoch: int, number: int) -> None:
        h = self.blur.bound(self._checked(self.net(x[rows], train=(epoch, number, 0)), x[rows]))
        draws = self.source.at(f"split embedding {self.link.name}", epoch, number)
        await self._send(self.blur.noised(h, draws))
        slope = await self.wire.receive(self.link, self.case.guest, "gradient", h.shape)
        h.backward(slope)  # type: ignore[no-untyped-call]
        self.net.step()
        self.stale.add((rows, h.detach(), slope))
        for step, (old, then, back) in enumerate(self.stale.turns(), 1):
            h = self.blur.bound(self.net(x[old], train=(epoch, number, step)))
            weight = likeness([then], [h.detach()])[:, None] if self.stale.weighed else 1.0
            h.backward(back * weight)  # type: ignore[no-untyped-call]
            self.net.step()

    def _checked(self, h: Tensor, x: Tensor) -> Tensor:
        """Embeddings of the form that is due.  Raises ConfigError, DivergedError."""
        if h.shape != (len(x), self.how.width):
            raise ConfigError(
                f"bottom gives {list(h.shape)} for {len(x)} rows, and {[len(x), self.how.width]} is due",
                hint="let bottom have width outputs",
            )
        if not bool(torch.isfinite(h).all()):
            raise DivergedError(
                f"embeddings of {self.link.name} are not finite", hint="a smaller lr may help"
            )
        return h

    async def _begin(self, x: Tensor) -> None:
        first = x[: 4 * self.how.width + 64]
        if not self.blur.noise:
            refuse_copies(self.net(first), first)
        await self.link.send(
            self.case.guest, BEGIN, Record(rows=len(x), width=self.how.width, terms=self.how.terms(self.case))
        )

    async def _send(self, h: Tensor) -> None:
        await self.wire.send(self.link, self.case.guest, "embedding", h)
