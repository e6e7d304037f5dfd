"""The server's part: what clients send is taken through the rest of the model; gradients go back."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from atoll.errors import CodecError, ConfigError, DivergedError
from atoll.parties import Link
from atoll.tensors import Record
from atoll.vertical.protocol import Case, Progress
from atoll.vertical.splitlora.cutting import Part, cut
from atoll.vertical.splitlora.messages import BEGIN, CUT, MEAN, OWN, TARGETS
from atoll.vertical.splitnn.messages import Wire

if TYPE_CHECKING:
    from atoll.vertical.splitlora.protocol import SplitLoRA

__all__ = ["Server"]


class Server:
    """The server in a run.

    Args:
        half: where to go on from, None for new adapters.
    """

    def __init__(self, how: SplitLoRA, link: Link, case: Case, half: Record | None) -> None:
        self.how, self.link, self.case = how, link, case
        made = cut(how.model, how.window, how.adapter, how.base, case.seed, how.cut, client=False)
        self.width, self.below = made.width, made.below
        self.part = Part(made.module, how.optimizer, how.lr, case.seed)
        if half is not None:
            self.part.load(half.part)
        self.wire = Wire.of(how.codec, CUT)
        self.windows: dict[str, int] = {}

    def half(self) -> Record:
        """Its adapters with their optimiser."""
        return Record(part=self.part.record())

    async def learn(self, progress: Progress) -> tuple[Record, dict[str, float]]:
        """All rounds that are left; the half at the end, and figures of the windows that are judged on."""
        how, tests = self.how, {}
        terms = how.terms(self.case)
        for host in self.case.hosts:
            hello = await self.link.receive(host, BEGIN)
            if hello.terms != terms:
                raise ConfigError(
                    f"{host} has other settings or another base: {hello.terms}",
                    hint=f"here they are {terms}",
                )
            if hello.train < 1 or hello.test < 0:
                raise CodecError(f"{host} says that it has {hello.train} and {hello.test} windows")
            self.windows[host], tests[host] = hello.train, hello.test
        for round in range(progress.number, how.rounds):
            told = _Sums()
            for step in range(how.batches):
                await self._exchange(round, step, told)
            if how.average and (round + 1) % how.average == 0 and self.below:
                await self._average()
            progress.tell(round + 1, self.half(), told.figures())
        judged = _Sums()
        for host, count in tests.items():
            for _ in range(math.ceil(count / how.batch)):
                tokens, h = await self._heard(host, "asked")
                judged.add(self.part(h.view(*tokens.shape, -1)), tokens)
        found = judged.figures()
        return self.half(), found

    async def _exchange(self, round: int, step: int, told: _Sums) -> None:
        """A step with a batch of each client: the mean over all windows at the server, the own mean at a client."""
        said = [await self._heard(host, "activation") for host in self.case.hosts]
        inputs = [h.requires_grad_() for _, h in said]
        tokens = torch.cat([each for each, _ in said])
        logits = self.part(torch.cat(inputs).view(*tokens.shape, -1), train=(round, step, 0))
        loss = F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
        if not math.isfinite(value := float(loss.detach())):
            raise DivergedError(f"the loss is {value} in round {round + 1}", hint="a smaller lr may help")
        loss.backward()  # type: ignore[no-untyped-call]
        for host, (own, h) in zip(self.case.hosts, said, strict=True):
            assert h.grad is not None
            await self.wire.send(self.link, host, "gradient", h.grad * (len(tokens) / len(own)))
        self.part.step()
        told.add(logits.detach(), tokens)

    async def _heard(self, host: str, what: str) -> tuple[Tensor, Tensor]:
        """A client's targets [b, window], and activations [b * window, width]."""
        tokens: Tensor = (await self.link.receive(host, TARGETS)).tokens.long()
        how = self.how
        if tokens.shape[1] != how.window or not 0 < len(tokens) <= how.batch:
            raise CodecError(
                f"{host} sent targets of {list(tokens.shape)} for up to {how.batch} windows of {how.window}"
            )
        return tokens, await self.wire.receive(self.link, host, what, (tokens.numel(), self.width))

    async def _average(self) -> None:
        """The mean of the clients' adapters, weighed by their windows, to all of them."""
        total, mean = sum(self.windows.values()), torch.zeros(self.below, dtype=torch.float64)
        for host in self.case.hosts:
            own = (await self.link.receive(host, OWN)).adapters
            if len(own) != self.below:
                raise CodecError(f"{host} sent {len(own)} numbers of adapters, and {self.below} are due")
            mean += own.double() * (self.windows[host] / total)
        for host in self.case.hosts:
            await self.link.send(host, MEAN, Record(adapters=mean.float()))


class _Sums:
    """Loss and hits over tokens."""

    def __init__(self) -> None:
        self.loss = self.hits = 0.0
        self.tokens = 0

    def add(self, logits: Tensor, tokens: Tensor) -> None:
        flat, targets = logits.flatten(0, 1), tokens.flatten()
        self.loss += float(F.cross_entropy(flat, targets, reduction="sum"))
        self.hits += float((flat.argmax(-1) == targets).sum())
        self.tokens += len(targets)

    def figures(self) -> dict[str, float]:
        """The mean loss, its exponential and the share of tokens that are right; {} without tokens."""
        if not self.tokens:
            return {}
        mean = self.loss / self.tokens
        return {"loss": mean, "perplexity": math.exp(min(mean, 700.0)), "accuracy": self.hits / self.tokens}
