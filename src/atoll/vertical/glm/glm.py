"""Generalised linear models: logistic, linear and Poisson regression of columns that lie with several parties."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from atoll.errors import ConfigError
from atoll.optimizers import SGD, optimizer
from atoll.parties import Kind, Link
from atoll.tensors import Record
from atoll.vertical.glm import arbiter, predict, sshe
from atoll.vertical.glm.kinds import KINDS
from atoll.vertical.glm.settings import Settings
from atoll.vertical.protocol import Case, Known, Progress, Protocol, Task
from atoll.vertical.side import FloatArray, Side

__all__ = ["GLM"]


@dataclass(frozen=True)
class GLM(Settings, Protocol):
    """Logistic, linear and Poisson regression by gradients that nobody sees but whose columns they are of.

    Residuals, with z = sum_k X_k w_k + b:
    * binary: z/4 - y/2 with y = +1 or -1, from the Taylor series of log(1 + exp(-yz)) at 0 (Hardy et al. 2017).
      Probabilities are 1 / (1 + exp(-z)); they are nearer to 1/2 than those of the exact loss, in much the same order.
    * multiclass: the same for each class against the rest.
    * regression: z - y, with y standardised by the guest.
    * poisson: exp(z) exposure - y, divided by the mean count.

    Each party standardises its columns by mean and scale of its training rows, which stay in its half of the model; a
    missing value becomes the mean.

    Who learns what, if all do as they are told:
    * arbiter mode: each party its own gradients, batch by batch; the arbiter how many rows, columns and epochs there
      are. Gradients are sums over a batch that depend on labels and on the others' scores: batches with fewer rows than
      a party has columns are refused, and large ones tell less. An arbiter that helps a party reads residuals.
    * sshe mode: each party its own weights, at the end.
    * predicting: the guest sees the host's linear score of each row that it asks for, or the sum of all hosts' where
      there are several (`glm.predict`).

    With CKKS, weights differ from those without a cipher by some 1e-6.

    Args:
        epochs: at most.
        batch: rows of one at most; the ciphertexts of CKKS hold 4096 (8192 for counts), and one with fewer costs as
            much.
        lr: the learning rate of `optimizer` ("sgd:0.9", "adam" ...; see `atoll.optimizers`).
        l1, l2: weights of sum |w| and sum w^2 / 2, each party for its own; the intercept is left alone.
        tolerance: ends the run once no weight changes by as much in an epoch; 0 never.
        mode: "arbiter": a third party has the key, and there may be many hosts (`glm.arbiter`); "sshe": for one host
            and no third party, with shared weights (`glm.sshe`), which needs a linear optimiser and knows neither
            counts nor l1 nor tolerance.
    """

    mode: Literal["arbiter", "sshe"] = "arbiter"

    name: ClassVar[str] = "glm"
    says: ClassVar[str] = "logistic, linear or Poisson regression of columns that lie with several parties"
    ciphers: ClassVar[tuple[str, ...]] = ("none", "ckks", "ou", "paillier")
    tasks: ClassVar[tuple[Task, ...]] = ("binary", "multiclass", "regression", "poisson")
    kinds: ClassVar[tuple[Kind, ...]] = KINDS

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} = {getattr(self, name)} must be {least} or more")
        if not self.lr > 0:
            raise ConfigError(f"lr = {self.lr} must be above 0")
        for name in ("l1", "l2", "tolerance"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} = {getattr(self, name)} must be 0 or more")
        optimizer(self.optimizer)

    @property
    def steps(self) -> int:
        return self.epochs

    @property
    def usual(self) -> str:
        return "ckks" if self.mode == "arbiter" else "ou"

    @property
    def needs_arbiter(self) -> bool:
        return self.mode == "arbiter"

    def check(self, case: Case) -> None:
        super().check(case)
        if self.mode == "arbiter":
            size = case.crypto.partition("-")[2]
            _need(not size or size in ("8192", "16384"), "knows ckks-8192 and ckks-16384", self)
            _need(
                case.crypto == "none" or case.crypto.startswith("ckks"),
                'needs crypto = "ckks" or "none"',
                self,
            )
            return
        _need(not case.crypto.startswith("ckks"), "needs a cipher that adds whole numbers, not ckks", self)
        _need(len(case.hosts) == 1, f"is for one host, and there are {len(case.hosts)}", self)
        _need(case.task != "poisson", "knows no counts: exp is no product of shares", self)
        _need(isinstance(optimizer(self.optimizer), SGD), "needs a linear optimiser: sgd or nesterov", self)
        _need(
            not self.l1 and not self.tolerance,
            "cannot look at shared weights: l1 and tolerance must be 0",
            self,
        )

    async def guest(self, link: Link, side: Side, case: Case, progress: Progress) -> Record:
        self.check(case)
        if self.mode == "sshe":
            return await sshe.guest(link, side, case, progress, self)
        return await arbiter.guest(link, side, case, progress, self)

    async def host(self, link: Link, side: Side, case: Case, progress: Progress) -> Record:
        self.check(case)
        if self.mode == "sshe":
            return await sshe.host(link, side, case, progress, self)
        return await arbiter.host(link, side, case, progress, self)

    async def arbiter(self, link: Link, case: Case, progress: Progress) -> None:
        self.check(case)
        await arbiter.arbiter(link, case, progress, self)

    async def score(self, link: Link, side: Side, case: Case, half: Record) -> FloatArray:
        return await predict.score(link, side, case, half)

    async def answer(self, link: Link, side: Side, case: Case, half: Record) -> None:
        await predict.answer(link, side, case, half)

    def knows(self, case: Case, party: str, columns: Sequence[str], half: Record) -> Known:
        weights = half.weights.numpy().reshape(len(columns), -1)  # of standardised columns: comparable
        names = ["weight"] if weights.shape[1] == 1 else [f"weight {at}" for at in range(weights.shape[1])]
        return Known(tuple(columns), dict(zip(names, weights.T, strict=True)))


def _need(fine: bool, message: str, protocol: GLM) -> None:
    if not fine:
        raise ConfigError(f"mode = {protocol.mode!r} of protocol = {protocol.name!r} {message}")
