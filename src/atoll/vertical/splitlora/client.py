"""A client's part: activations of its text out, their gradients in."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from atoll import seeds
from atoll.contract import Plan
from atoll.engines.reading import reading
from atoll.errors import CodecError, ConfigError, DivergedError
from atoll.parties import Link
from atoll.tensors import Record
from atoll.vertical.protocol import Case, Progress
from atoll.vertical.splitlora.cutting import Part, cut
from atoll.vertical.splitlora.messages import BEGIN, CUT, MEAN, OWN, TARGETS
from atoll.vertical.splitlora.texts import Text
from atoll.vertical.splitnn.embeddings import Blur, key_of
from atoll.vertical.splitnn.messages import Wire

if TYPE_CHECKING:
    from atoll.vertical.splitlora.protocol import SplitLoRA

__all__ = ["Client"]


class Client:
    """A client in a run.

    Args:
        share: of its text that is only judged on.
        half: where to go on from, None for new adapters.
    """

    def __init__(
        self, how: SplitLoRA, link: Link, text: Text, case: Case, share: float, half: Record | None
    ) -> None:
        self.how, self.link, self.case = how, link, case
        self.train, self.test = text.divided(how.window, share)
        self.text = text.digest()
        made = cut(how.model, how.window, how.adapter, how.base, case.seed, how.cut, client=True)
        self.part = Part(made.module, how.optimizer, how.lr, case.seed)
        if half is not None:
            if half.text != self.text:
                raise ConfigError(
                    f"{link.name} has another text than when the run began", hint="bring the same text"
                )
            self.part.load(half.part)
        self.wire, self.blur = Wire.of(how.codec, CUT), Blur(how.clip, how.noise)
        self.source = key_of(how.noise_seed)

    def half(self) -> Record:
        """Its adapters with their optimiser, and which text they have learned from."""
        return Record(part=self.part.record(), text=self.text)

    async def learn(self, progress: Progress) -> Record:
        """All rounds that are left, and the windows that are judged on; the half at the end."""
        how, guest = self.how, self.case.guest
        begin = Record(train=len(self.train), test=len(self.test), terms=how.terms(self.case))
        await self.link.send(guest, BEGIN, begin)
        for round in range(progress.number, how.rounds):
            rng = seeds.rng(self.case.seed, f"splitlora.order {self.link.name}", round)
            read = reading(Plan(steps=how.batches, batch_size=how.batch), len(self.train), rng)
            for step, (rows, mask) in enumerate(zip(read.index, read.mask, strict=True)):
                await self._exchange(self.train[torch.from_numpy(rows[mask > 0])], round, step)
            if how.average and (round + 1) % how.average == 0 and self.part.params:
                await self._average()
            progress.tell(round + 1, self.half(), self._spent(round + 1))
        for number, windows in enumerate(torch.split(self.test, how.batch) if len(self.test) else ()):
            with torch.no_grad():
                h = self.blur.bound(self._activations(windows, None))
            await self._send("asked", windows, h, (how.rounds, number))
        return self.half()

    async def _exchange(self, windows: Tensor, round: int, step: int) -> None:
        h = self.blur.bound(self._activations(windows, (round, step, 0)))
        await self._send("activation", windows, h, (round, step))
        slope = await self.wire.receive(self.link, self.case.guest, "gradient", h.shape)
        if h.requires_grad:
            h.backward(slope)  # type: ignore[no-untyped-call]
        self.part.step()

    async def _average(self) -> None:
        """Own adapters to the server, and the mean of all in their place."""
        guest, own = self.case.guest, self.part.params.flat()
        await self.link.send(guest, OWN, Record(adapters=own))
        mean = (await self.link.receive(guest, MEAN)).adapters
        if len(mean) != len(own):
            raise CodecError(f"{guest} sent {len(mean)} numbers of adapters, and {len(own)} are due")
        self.part.place(mean)

    def _activations(self, windows: Tensor, at: tuple[int, int, int] | None) -> Tensor:
        """What the own part makes of windows, [tokens, width].  Raises DivergedError."""
        h = self.part(windows[:, :-1], train=at).flatten(0, 1)
        if not bool(torch.isfinite(h).all()):
            raise DivergedError(
                f"activations of {self.link.name} are not finite", hint="a smaller lr may help"
            )
        return h

    async def _send(self, what: str, windows: Tensor, h: Tensor, at: tuple[int, int]) -> None:
        tokens = windows[:, 1:].to(torch.uint8).contiguous()
        await self.link.send(self.case.guest, TARGETS, Record(tokens=tokens))
        draws = self.source.at(f"splitlora {what} {self.link.name}", *at)
        await self.wire.send(self.link, self.case.guest, what, self.blur.noised(h, draws))

    def _spent(self, rounds: int) -> dict[str, float]:
        """The epsilon of a window's activations after so many rounds, where there is noise on them."""
        how = self.how
        if not how.noise:
            return {}
        often = math.ceil(how.batches * how.batch / len(self.train))
        return {f"epsilon {self.link.name}": how.epsilon(len(self.train), rounds * often)}
