"""The guest's part: what hosts send is joined and scored; gradients go back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from atoll import seeds
from atoll.errors import ConfigError, DataError, DivergedError
from atoll.parties import Link
from atoll.privacy.source import Source
from atoll.tensors import Record, Tensors
from atoll.vertical.figures import auc
from atoll.vertical.protocol import Case, Progress
from atoll.vertical.side import FloatArray, Side
from atoll.vertical.splitnn import labels
from atoll.vertical.splitnn.embeddings import key_of
from atoll.vertical.splitnn.losses import losses, outputs, predicted
from atoll.vertical.splitnn.marvell import auc_bound
from atoll.vertical.splitnn.messages import BEGIN, Wire
from atoll.vertical.splitnn.nets import Guest as Module
from atoll.vertical.splitnn.nets import Net, Scale, built, own_seed
from atoll.vertical.splitnn.run import Rows, Workset, batches, likeness, slices

if TYPE_CHECKING:
    from atoll.vertical.splitnn.protocol import SplitNN

__all__ = ["Guest"]


class _Said(NamedTuple):
    """What hosts said of a batch, and the gradients that belong to it, [b, width] each."""

    rows: Rows
    embeddings: list[Tensor]
    slopes: list[Tensor]


class Guest:
    """The guest in a run.

    Args:
        half: where to go on from, None for a new network.
    """

    def __init__(self, how: SplitNN, link: Link, side: Side, case: Case, half: Record | None) -> None:
        self.how, self.link, self.case = how, link, case
        self.hosts = tuple(host for host in case.hosts if host in link.others)
        self.scale = Scale.of(side.x) if half is None else Scale(half.scale.mean, half.scale.unit)
        seed = own_seed(case.seed, side)
        self.net = Net(self._module(len(self.scale.mean), seed), how.optimizer, how.lr, seed)
        self.means = Tensors({host: torch.zeros(how.width) for host in case.hosts})
        self.kls = Tensors({host: torch.zeros((), dtype=torch.float64) for host in case.hosts})
        self.label_scale = self._label_scale(side) if half is None else (half.mean, half.unit)
        self.source = key_of(how.noise_seed)
        self.lies = Source(bytes(half.key.tolist())) if half is not None and "key" in half else self.source
        if half is not None:
            self.net.load(half.net)
            self.means, self.kls = half.means, half.kls
        self.wire = Wire.of(how.codec)
        self.shields = {host: labels.noise_for(how.labels) for host in case.hosts}
        self.stale = Workset(how.cache, how.local - 1)

    def _module(self, columns: int, seed: int) -> Module:
        how = self.how
        with how.first(seed):
            own = built(how.bottom, columns, how.width) if columns else None
            parties = len(self.case.hosts) + (own is not None)
            return Module(
                own, how.join, how.width, parties, lambda inputs: built(how.top, inputs, outputs(self.case))
            )

    def _label_scale(self, side: Side) -> tuple[float, float]:
        """Mean and deviation of numbers to predict."""
        if side.y is None:
            raise DataError(f"{self.link.name} has no label", hint="the guest is who has it")
        if self.case.task != "regression":
            return 0.0, 1.0
        return float(side.y.mean()), float(side.y.std()) or 1.0

    def half(self) -> Record:
        """Networks, statistics, hosts' mean embeddings, what labels have leaked, and the key of randomised response."""
        found = Record(
            net=self.net.record(),
            scale=self.scale.record(),
            means=self.means.map(torch.clone),
            kls=self.kls,
            mean=self.label_scale[0],
            unit=self.label_scale[1],
        )
        if labels.read(self.how.labels)[0] != "response":
            return found
        return found.replace(key=torch.tensor(list(self.lies.key), dtype=torch.uint8))

    # --- learning -----------------------------------------------------------------------------------------------

    async def learn(self, side: Side, progress: Progress) -> Record:
        """All epochs that are left; the half at the end.

        Figures of an epoch are of its batches, before the step on each: nothing is sent once more for them.
        """
        if side.y is None:
            raise DataError(f"{self.link.name} has no label", hint="the guest is who has it")
        if self.hosts != self.case.hosts:
            absent = ", ".join(sorted(set(self.case.hosts) - set(self.hosts)))
            raise ConfigError(f"{absent} is not there", hint="hosts may be absent when scores are asked for")
        how, rows = self.how, _Data.of(self, side)
        await self._begin(len(side))
        for epoch in range(progress.number, how.epochs):
            self.stale.clear()
            told = _Epoch(self.hosts, how.width)
            for number, batch in enumerate(batches(self.case.seed, epoch, len(side), how.batch)):
                await self._exchange(rows, batch, (epoch, number), told)
            self.means = Tensors({**self.means, **told.means()})
            figures = self._figures(told, side.y, epoch + 1)
            progress.tell(epoch + 1, self.half(), figures)
        return self.half()

    async def _exchange(self, data: _Data, rows: Rows, at: tuple[int, int], told: _Epoch) -> None:
        shape = len(rows), self.how.width
        said = [await self.wire.receive(self.link, host, "embedding", shape) for host in self.hosts]
        inputs = [
            self._dropped(h.requires_grad_(), host, at) for h, host in zip(said, self.hosts, strict=True)
        ]
        score = self.net(data.x[rows], inputs, train=(*at, 0))
        mean = self._losses(data, rows, score).mean()
        mean.backward()  # type: ignore[no-untyped-call]
        loss = float(mean.detach())
        if not math.isfinite(loss):
            raise DivergedError(f"the loss is {loss} in epoch {at[0] + 1}", hint="a smaller lr may help")
        slopes = [torch.zeros(shape) if h.grad is None else h.grad for h in said]
        sent = []
        for host, slope in zip(self.hosts, slopes, strict=True):
            sent.append(self._shielded(slope, host, data.positive[rows], at))
            await self.wire.send(self.link, host, "gradient", sent[-1])
        self.net.step()
        told.add(rows, loss, score, [h.detach() for h in said], sent, data.positive[rows])
        self.stale.add(_Said(rows, [h.detach() for h in inputs], slopes))
        for step, old in enumerate(self.stale.turns(), 1):
            self._again(data, old, (*at, step))

    def _again(self, data: _Data, old: _Said, at: tuple[int, int, int]) -> None:
        """A step with what hosts said before."""
        inputs = [h.clone().requires_grad_(self.stale.weighed) for h in old.embeddings]
        each = self._losses(data, old.rows, self.net(data.x[old.rows], inputs, train=at))
        if self.stale.weighed and inputs:
            now = torch.autograd.grad(each.mean(), inputs, retain_graph=True)
            each = each * likeness(old.slopes, now)
        each.mean().backward()  # type: ignore[no-untyped-call]
        self.net.step()

    def _losses(self, data: _Data, rows: Rows, score: Tensor) -> Tensor:
        exposure = None if data.exposure is None else data.exposure[rows]
        if score.shape != (len(rows), outputs(self.case)):
            raise ConfigError(
                f"top gives {list(score.shape)}, and {[len(rows), outputs(self.case)]} is due",
                hint="let top have one output, or one for each class",
            )
        return losses(self.case, score, data.y[rows], exposure)

    def _dropped(self, h: Tensor, host: str, at: tuple[int, int]) -> Tensor:
        """Embeddings of a host, in the place of some the mean, as if the host were absent."""
        if not self.how.drop:
            return h
        drawn = seeds.rng(self.net.seed, f"split.drop.{host}.{at[1]}", at[0]).random((len(h), 1))
        return torch.where(torch.from_numpy(drawn >= self.how.drop), h, self.means[host])

    def _shielded(self, g: Tensor, host: str, positive: Tensor, at: tuple[int, int]) -> Tensor:
        shield = self.shields[host]
        return g if shield is None else shield(g, positive, self.source.at(f"split gradient {host}", *at))

    def _figures(self, told: _Epoch, y: FloatArray, epochs: int) -> Mapping[str, float]:
        found = {"loss": told.loss / len(y)}
        if self.case.task == "binary":
            order = torch.cat(told.rows).numpy()
            found["auc"] = auc(y[order], torch.cat(told.scores).squeeze(1).numpy())
            if told.leaks:
                found["leak"] = 0.5 + abs(float(np.mean(told.leaks)) - 0.5)
        found.update(self._bounds())
        found.update(self.how.privacy(len(y), epochs))
        return found

    def _bounds(self) -> dict[str, float]:
        """What no guess of labels exceeds in AUC, at the host with the most: by an epoch's messages, and by all so far.

        Noise is new in each epoch, so that the KL of what a host has of a row adds up.
        """
        each = {host: shield.kl() for host, shield in self.shields.items() if shield is not None}
        kls = {host: kl for host, kl in each.items() if kl is not None}
        if not kls:
            return {}
        self.kls = Tensors({host: total + kls.get(host, 0.0) for host, total in self.kls.items()})
        return {
            "leak_bound": auc_bound(max(kls.values())),
            "leak_bound_all": auc_bound(max(float(total) for total in self.kls.values())),
        }

    # --- predicting ---------------------------------------------------------------------------------------------

    async def score(self, side: Side) -> FloatArray:
        """Probabilities or expected values; hosts that are not there count as their mean embeddings."""
        x = self.scale(side.x)
        await self._begin(len(side))
        found = []
        for rows in slices(len(side)):
            shape = len(x[rows]), self.how.width
            said = [
                await self.wire.receive(self.link, host, "embedding", shape)
                if host in self.hosts
                else self.means[host].expand(shape)
                for host in self.case.hosts
            ]
            found.append(self.net(x[rows], said))
        return predicted(self.case, torch.cat(found), self.label_scale, side.exposure)

    async def _begin(self, rows: int) -> None:
        """Hosts come in.  Raises DataError or ConfigError where they have other rows or settings."""
        for host in self.hosts:
            hello = await self.link.receive(host, BEGIN)
            if hello.rows != rows:
                raise DataError(
                    f"{host} has {hello.rows} rows, and {self.link.name} has {rows}",
                    hint="all parties must have the same rows in the same order",
                )
            if hello.terms != self.how.terms(self.case) or hello.width != self.how.width:
                raise ConfigError(
                    f"{host} has other settings: {hello.terms}",
                    hint=f"here they are {self.how.terms(self.case)}",
                )


class _Data(NamedTuple):
    """The guest's rows as tensors: columns on one scale, labels to learn from, and which rows are positive."""

    x: Tensor
    y: Tensor
    exposure: Tensor | None
    positive: Tensor

    @classmethod
    def of(cls, guest: Guest, side: Side) -> _Data:
        assert side.y is not None
        name, given = labels.read(guest.how.labels)
        y = side.y
        if name == "response":
            y = labels.responses(y, guest.case.classes, given["epsilon"], guest.lies)
        mean, unit = guest.label_scale
        exposure = None if side.exposure is None else torch.from_numpy(side.exposure).float()
        return cls(
            guest.scale(side.x),
            torch.from_numpy((y - mean) / unit).float(),
            exposure,
            torch.from_numpy(side.y > 0),
        )


class _Epoch:
    """What an epoch comes to."""

    def __init__(self, hosts: Sequence[str], width: int) -> None:
        self.hosts, self.loss = hosts, 0.0
        self.rows: list[Rows] = []
        self.scores: list[Tensor] = []
        self.leaks: list[float] = []
        self.sums = [torch.zeros(width, dtype=torch.float64) for _ in hosts]

    def add(
        self, rows: Rows, loss: float, score: Tensor, said: Sequence[Tensor], sent: Sequence[Tensor], positive: Tensor
    ) -> None:  # fmt: skip
        self.rows.append(rows)
        self.loss += loss * len(rows)
        self.scores.append(score.detach())
        for total, h in zip(self.sums, said, strict=True):
            total += h.double().sum(0)
        if 0 < int(positive.sum()) < len(rows):
            y = positive.double().numpy()
            self.leaks.append(float(np.mean([auc(y, g.norm(dim=1).numpy()) for g in sent])))

    def means(self) -> dict[str, Tensor]:
        """Mean embeddings over the epoch."""
        count = sum(map(len, self.rows))
        return {host: (total / count).float() for host, total in zip(self.hosts, self.sums, strict=True)}
