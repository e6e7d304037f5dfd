"""Hetero-FTL: two roles, an epoch after another, and scores for rows of the party that has no labels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from atoll.errors import CodecError, ConfigError, DataError
from atoll.parties import Kind, Link
from atoll.tensors import Record
from atoll.vertical.ftl import kinds
from atoll.vertical.ftl.forms import Guest, Host
from atoll.vertical.ftl.net import Net
from atoll.vertical.ftl.noise import Noise
from atoll.vertical.ftl.sealing import SLOTS, Keys, Peer, blocks
from atoll.vertical.ftl.talk import UNDER, talk
from atoll.vertical.protocol import Case, Progress, Protocol, Task
from atoll.vertical.side import FloatArray, Side

__all__ = ["FTL"]


@dataclass(frozen=True)
class FTL(Protocol):
    """Learn to judge a host's rows from a guest's labels.   Liu, Kang, Xing, Chen and Yang 2020

    guest:  u^A = tanh(x^A W_A);  Phi = (1 / N_A) sum_l y_l u_l^A over all its rows, y in {-1, 1}
    host:   u^B = tanh(x^B W_B);  a row's score is sigmoid(Phi u^B')
    both:   minimise what `atoll.vertical.ftl.forms` says, over the rows in common, by Adam

    The parties have different columns, and other rows than those in common: a side is the common rows first, in the
    same order at both, and then a party's own. Labels are known to the guest for all of its rows, and to the host for
    none; only the guest's own rows count besides the common ones, in Phi. To judge, the guest needs no columns.

    With "none" terms are sent open, from which the host reads labels: it is for simulation, or with `noise`. With
    "ckks" nobody sees more of the other than gradients of its own weights, sums over the rows in common: where these
    are fewer than one's columns, sums tell rows.

    Args:
        hidden: d, numbers that a row is turned into on both sides; at most 64 with "ckks".
        gamma: what it counts that common rows are alike on both sides.
        l2: weight decay, of each party's own weights.
        lr: step size of Adam.
        epochs: exchanges of terms.
        align: how alike is measured: by the inner product, or the squared distance.
        rounds: steps on the same terms of the other, before new ones are exchanged.
        overlap: how many rows, the first of both sides, are in common; None for all.
        noise: of what is sent open, as a multiple of what one row can change at most; 0 for none.
        clip: with noise, the norm to which a row's hidden numbers are shortened.
        delta: with noise, at which the epsilon of what is sent is told, for given weights (see `ftl.noise`).
    """

    hidden: int = 32
    gamma: float = 1.0
    l2: float = 3e-3
    lr: float = 0.02
    epochs: int = 60
    align: Literal["dot", "distance"] = "dot"
    rounds: int = 1
    overlap: int | None = None
    noise: float = 0.0
    clip: float = 1.0
    delta: float = 1e-5

    name: ClassVar[str] = "ftl"
    says: ClassVar[str] = "transfer from a party with labels to one with other columns and few rows in common"
    ciphers: ClassVar[tuple[str, ...]] = ("none", "ckks")
    tasks: ClassVar[tuple[Task, ...]] = ("binary",)
    kinds: ClassVar[tuple[Kind, ...]] = kinds.KINDS

    def __post_init__(self) -> None:
        for name, least in (("hidden", 1), ("epochs", 0), ("rounds", 1)):
            self._require(name, getattr(self, name) >= least, f"must be at least {least}")
        for name in ("gamma", "l2", "noise"):
            value = getattr(self, name)
            self._require(name, value >= 0 and math.isfinite(value), "must not be negative")
        for name in ("lr", "clip"):
            self._require(name, getattr(self, name) > 0, "must be above 0")
        self._require("align", self.align in ("dot", "distance"), "must be dot or distance")
        self._require("overlap", self.overlap is None or self.overlap >= 1, "must be at least 1")
        self._require("delta", 0 < self.delta < 1, "must lie between 0 and 1")

    def _require(self, name: str, holds: bool, problem: str) -> None:
        if not holds:
            raise ConfigError(f"{name} = {getattr(self, name)!r} {problem}")

    @property
    def steps(self) -> int:
        return self.epochs

    def check(self, case: Case) -> None:
        super().check(case)
        if len(case.hosts) != 1:
            raise ConfigError(
                f"protocol = 'ftl' is for one host, and there are {len(case.hosts)}",
                hint="run it with each host by itself",
            )
        if case.crypto.startswith("ckks"):
            if case.crypto not in ("ckks", UNDER):
                raise ConfigError(f"crypto = {case.crypto!r}: ftl runs at degree 8192", hint='say "ckks"')
            if self.hidden**2 > SLOTS:
                raise ConfigError(
                    f"hidden = {self.hidden} is too many for crypto = 'ckks'",
                    hint=f"at most {math.isqrt(SLOTS)}, so that Phi'Phi is one ciphertext",
                )
            if self.noise:
                raise ConfigError(
                    "noise is for what is sent open, and crypto = 'ckks' sends nothing open",
                    hint="leave out noise, or say crypto = 'none'",
                )

    # --- learning -----------------------------------------------------------------------------------------------

    async def guest(self, link: Link, side: Side, case: Case, progress: Progress) -> Record:
        self.check(case)
        y, common = _signs(side), self._common(side)
        net = self._net(side, case, progress, "guest")
        inputs, noise = net.scaling.inputs(side.x), self._noise()
        way = talk(case.crypto, link, case.hosts[0], True, common, self.hidden)
        await way.begin()

        def form() -> Guest:
            u = net.hidden(inputs)
            return Guest(inputs, u, common, net.weight, self.gamma, self.l2, self.align, y)

        for number in range(progress.number + 1, self.epochs + 1):
            await way.exchange(noise.guest(form()))
            losses = []
            for _ in range(self.rounds):
                now = form()
                found = await way.sums(now.rows())
                losses.append(now.loss(found[-1]))
                net.step(found[:-1] + now.own(), self.lr)
            figures = {"loss": losses[0]}
            if self.noise:
                figures["epsilon_sent"] = noise.spent(2 * number)  # Phi, and the rows in common
            progress.tell(number, self._half(net, form().phi), figures)
        return self._half(net, form().phi)

    async def host(self, link: Link, side: Side, case: Case, progress: Progress) -> Record:
        self.check(case)
        common, net = self._common(side), self._net(side, case, progress, "host")
        inputs, noise = net.scaling.inputs(side.x)[:common], self._noise()
        way = talk(case.crypto, link, case.guest, False, common, self.hidden)
        await way.begin()

        def form() -> Host:
            u = net.hidden(inputs)
            return Host(inputs, u, common, net.weight, self.gamma, self.l2, self.align)

        for number in range(progress.number + 1, self.epochs + 1):
            await way.exchange(noise.host(form()))
            for _ in range(self.rounds):
                now = form()
                net.step(await way.sums(now.rows()) + now.own(), self.lr)
            progress.tell(number, net.half(), {"epsilon_sent": noise.spent(number)} if self.noise else {})
        return net.half()

    def _half(self, net: Net, phi: Tensor) -> Record:
        return net.half().replace(phi=phi)

    def _noise(self) -> Noise:
        return Noise(self.clip, self.noise, self.delta)

    def _net(self, side: Side, case: Case, progress: Progress, role: str) -> Net:
        if progress.half is not None:
            return Net.of(progress.half)
        return Net.begin(side, self.hidden, case.seed, role)

    def _common(self, side: Side) -> int:
        """How many rows are in common.  Raises DataError where there are not so many."""
        common = len(side) if self.overlap is None else self.overlap
        if common > len(side) or not common:
            raise DataError(
                f"overlap = {common}, and this side has {len(side)} rows",
                hint="the common rows come first, and then those that one party alone has",
            )
        return common

    # --- predicting ---------------------------------------------------------------------------------------------

    async def score(self, link: Link, side: Side, case: Case, half: Record) -> FloatArray:
        """Probabilities for the rows that the host answers for; those of this side have no part in it."""
        self.check(case)
        host = case.hosts[0]
        if case.crypto == "none":
            await link.send(host, kinds.PHI, Record(phi=half.phi))
            scores: FloatArray = (await link.receive(host, kinds.SCORES)).scores.numpy()
            return _sigmoid(scores)
        keys, d = Keys(), self.hidden
        await link.send(host, kinds.KEY, Record(context=keys.public()))
        sealed = keys.seal(half.phi.expand(SLOTS // d, d))
        await link.send(host, kinds.PHI_SEALED, Record(phi=sealed), UNDER, 1)
        found = await link.receive(host, kinds.PRODUCTS)
        if found.count < 0 or len(found.products) != blocks(found.count, d):
            raise CodecError(f"{host} sent {len(found.products)} ciphertexts for {found.count} rows")
        return _sigmoid(keys.scores(found.products, d, found.count))

    async def answer(self, link: Link, side: Side, case: Case, half: Record) -> None:
        self.check(case)
        net = Net.of(half)
        u = net.hidden(net.scaling.inputs(side.x))
        if case.crypto == "none":
            phi = (await link.receive(case.guest, kinds.PHI)).phi
            if len(phi) != self.hidden:
                raise CodecError(f"{case.guest} sent {len(phi)} numbers, and {self.hidden} are due")
            await link.send(case.guest, kinds.SCORES, Record(scores=u @ phi))
            return
        peer = Peer((await link.receive(case.guest, kinds.KEY)).context)
        sealed = peer.open((await link.receive(case.guest, kinds.PHI_SEALED)).phi, 1)
        made = peer.products(sealed, u)
        await link.send(case.guest, kinds.PRODUCTS, Record(count=len(u), products=made), UNDER, len(made))


def _signs(side: Side) -> Tensor:
    """Labels as -1 and 1, [n].  Raises DataError where they are others than 0 and 1."""
    if side.y is None:
        raise DataError("the guest has no labels", hint="the guest is who has them")
    if not np.isin(side.y, (0, 1)).all():
        raise DataError("labels must be 0 or 1")
    return torch.from_numpy(2 * side.y - 1)


def _sigmoid(score: FloatArray) -> FloatArray:
    found: FloatArray = 0.5 * (1 + np.tanh(score / 2))
    return found
