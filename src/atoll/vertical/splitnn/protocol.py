"""Split networks as a protocol."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar

from atoll import seeds
from atoll.errors import ConfigError
from atoll.optimizers import optimizer
from atoll.parties import Kind, Link
from atoll.tensors import Record
from atoll.vertical.protocol import Case, Progress, Protocol, Task
from atoll.vertical.side import FloatArray, Side
from atoll.vertical.splitnn import labels
from atoll.vertical.splitnn.embeddings import spent
from atoll.vertical.splitnn.guest import Guest
from atoll.vertical.splitnn.host import Host
from atoll.vertical.splitnn.messages import KINDS, Wire
from atoll.vertical.splitnn.nets import Factory, Join

__all__ = ["SplitNN"]


@dataclass(frozen=True)
class SplitNN(Protocol):
    """A network that is split between parties.   Vepakomma et al. 2018;  Ceballos et al. 2020

    host k:  h_k = f_k(x_k)  ->  guest:  loss(top(join(f_0(x_0), h_1 ... h_K)), y)  ->  host k:  d loss / d h_k

    Everybody steps along the exact gradient of one loss, as one network on all columns would; no party has another's
    weights. Which rows a batch has follows from the run's seed, so that no row's number travels. What is sent is open:
    embeddings tell of columns, gradients of labels; the settings below say what may be done about it.

    Args:
        bottom: each party's network, of its columns: "mlp:16", or a function of inputs and outputs.
        top: the guest's network of what is joined.
        width: d, numbers in an embedding.
        join: concat, or sum, mean, attention over parties.
        epochs, batch, optimizer, lr: of the training; optimiser as `atoll.optimizers` has it.
        local: steps with each batch's messages (FedBCD, Liu et al. 2019); 1 is the exact gradient.
        cache: further steps use the messages of so many last batches, weighed (CELU-VFL, Fu et al. 2022); 0 of one.
        codec: what makes messages smaller: int8, int4, bf16, fp16, topk:SHARE.
        clip: C, the most length of an embedding.
        noise: deviation of the noise on each number of an embedding, in clips.
        delta: that epsilon is told at; rows^-1.1 where none is given.
        labels: how labels are kept from hosts: max_norm; marvell:POWER (noise of so many |D|^2, 4) or
            marvell:bound=AUC, Li et al. 2022; response:EPSILON, randomised response.
        drop: the share of a host's embeddings that the guest takes for absent in training.
        noise_seed: of all noise, for experiments; None takes it from the operating system.
    """

    bottom: str | Factory = "mlp:16"
    top: str | Factory = "mlp:16"
    width: int = 16
    join: Join = "concat"
    epochs: int = 10
    batch: int = 256
    optimizer: str = "adam"
    lr: float = 0.003
    local: int = 1
    cache: int = 0
    codec: str | None = None
    clip: float | None = None
    noise: float = 0.0
    delta: float | None = None
    labels: str | None = None
    drop: float = 0.0
    noise_seed: int | None = None

    name: ClassVar[str] = "splitnn"
    says: ClassVar[str] = "a network below at each party, the rest of it where the label is"
    ciphers: ClassVar[tuple[str, ...]] = ("none",)
    tasks: ClassVar[tuple[Task, ...]] = ("binary", "multiclass", "regression", "poisson")
    kinds: ClassVar[tuple[Kind, ...]] = KINDS

    def __post_init__(self) -> None:
        for name in ("width", "epochs", "batch", "local"):
            self._require(name, getattr(self, name) >= 1, "must be 1 or more")
        self._require("cache", self.cache >= 0, "must be 0 or more")
        self._require(
            "cache",
            not self.cache or self.local > 1,
            "is used by further steps only",
            "set local to 2 or more",
        )
        self._require("batch", self.batch >= 2, "must be 2 or more")
        self._require("lr", 0 < self.lr < math.inf, "must be above 0")
        joins = ("concat", "sum", "mean", "attention")
        self._require("join", self.join in joins, "is nothing known", f"known: {', '.join(joins)}")
        self._require("clip", self.clip is None or 0 < self.clip < math.inf, "must be above 0")
        self._require("noise", 0 <= self.noise < math.inf, "must be 0 or more")
        self._require(
            "noise", not self.noise or self.clip is not None, "is in clips, and there is no clip", "set clip"
        )
        self._require("delta", self.delta is None or 0 < self.delta < 1, "must lie between 0 and 1")
        self._require("drop", 0 <= self.drop < 1, "must be 0 or more, and below 1")
        optimizer(self.optimizer)
        Wire.of(self.codec)
        labels.read(self.labels)

    @property
    def steps(self) -> int:
        return self.epochs

    def check(self, case: Case) -> None:
        super().check(case)
        name, _ = labels.read(self.labels)
        if name in ("marvell", "max_norm") and case.task != "binary":
            raise ConfigError(
                f"labels = {self.labels!r} is for task = 'binary'", hint="response keeps classes, too"
            )
        if name == "response" and case.task not in ("binary", "multiclass"):
            raise ConfigError(f"labels = {self.labels!r} is for classes, and task = {case.task!r} has none")
        if self.noise:
            spent(self.noise, 1000, 1, self.delta)  # whether there is an accountant
        if not case.hosts:
            raise ConfigError("a split network needs a host", hint="add [party.host]")

    # --- what roles ask -----------------------------------------------------------------------------------------

    def first(self, seed: int) -> AbstractContextManager[None]:
        """Inside, first weights are drawn from a party's own seed."""
        return seeds.scoped(seed, "split.weights")

    def terms(self, case: Case) -> str:
        """What all parties must have alike, in words."""
        numbers = f"epochs={self.epochs} batch={self.batch} seed={case.seed} hosts={len(case.hosts)}"
        return f"{numbers} codec={self.codec or 'none'}"

    def privacy(self, rows: int, epochs: int) -> dict[str, float]:
        """`epsilon` of embeddings after so many epochs, `label_epsilon` of labels, where there is noise on them."""
        found = {}
        if self.noise:
            found["epsilon"] = spent(self.noise, rows, epochs, self.delta)
        name, given = labels.read(self.labels)
        if name == "response":
            found["label_epsilon"] = given["epsilon"]
        return found

    def _require(self, name: str, holds: bool, problem: str, hint: str | None = None) -> None:
        if not holds:
            raise ConfigError(f"{name} = {getattr(self, name)!r} {problem}", hint=hint)

    # --- roles --------------------------------------------------------------------------------------------------

    async def guest(self, link: Link, side: Side, case: Case, progress: Progress) -> Record:
        self.check(case)
        return await Guest(self, link, side, case, progress.half).learn(side, progress)

    async def host(self, link: Link, side: Side, case: Case, progress: Progress) -> Record:
        self.check(case)
        return await Host(self, link, side, case, progress.half).learn(side, progress)

    async def score(self, link: Link, side: Side, case: Case, half: Record) -> FloatArray:
        return await Guest(self, link, side, case, half).score(side)

    async def answer(self, link: Link, side: Side, case: Case, half: Record) -> None:
        await Host(self, link, side, case, half).answer(side)
