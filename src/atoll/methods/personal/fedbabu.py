"""A body trained under a head that nobody trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from atoll.contract import ClientData, Population, Program, Reply
from atoll.methods.fedavg import FedAvg
from atoll.methods.finetune import Tuned
from atoll.methods.parts.settings import require
from atoll.methods.parts.shared import joined, split, with_body
from atoll.methods.personal.fedper import FedPer
from atoll.task import Task
from atoll.tensors import Record, Tensors

__all__ = ["FedBABU"]


@dataclass(frozen=True, kw_only=True)
class FedBABU(FedPer):
    """Train the body under a fixed random head; fit the head to predict.   Oh, Kim, Yun, ICLR 2022, Algorithm 1

    client:  b_k <- b_t;  for each batch of E epochs:  b_k <- b_k - lr grad_b F_k(b_k, h_0; batch)
             to predict:  (b, h) <- (b_t, h_0);  then finetune_epochs at finetune_lr on the head, the body or both
    server:  b_{t+1} = b_t + sum_k (n_k / n_S) (b_k - b_t)

    h_0 is the task's initial head, the same for all clients and rounds, so that it need not be sent. A
    fine-tuned model is made anew whenever it is asked for, and forgotten: clients remember nothing.

    Args:
        head_layers: how many layers, counted from the output, are the head that is never trained in a round.
        finetune_epochs: local epochs before a client predicts.
        finetune_lr: learning rate of them; none means lr. At a large one the fine-tuning of single clients collapses.
        finetune: what is trained then: "all", "head" or "body".

    Traps: the head is left out of what is optimised, so that weight decay and momentum cannot move it. The
    global model has a random head; its body is made for being fine-tuned. The authors use lr=0.1,
    momentum=0.9 and 5 epochs of fine-tuning.
    """

    finetune_epochs: int = 5
    finetune_lr: float | None = None
    finetune: Literal["all", "head", "body"] = "all"

    paper: ClassVar[str] = "Oh et al. 2022, Algorithm 1"
    cost: ClassVar[str] = "the body up and down; more training to predict"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "head_layers", self.head_layers >= 1, "must be at least 1")
        require(self, "finetune_epochs", self.finetune_epochs >= 1, "must be at least 1")
        require(self, "finetune_lr", self.finetune_lr is None or self.finetune_lr > 0, "must be above 0")
        require(self, "finetune", self.finetune in ("all", "head", "body"), "must be all, head or body")

    def setup(self, task: Task, population: Population) -> Record:
        return with_body(super().setup(task, population), self.head_layers)

    # ---- client half -------------------------------------------------------------------------------------

    def remember(self, task: Task, received: Record) -> Record:
        return Record()

    def start(self, task: Task, received: Record, part: str, data: ClientData) -> Record:
        """A working state in which `part` is trained and the other's parameters are held as buffers are."""
        params, buffers = joined(received, super().remember(task, received))
        head = self.private(task)
        fixed = {"all": frozenset[str](), "body": head, "head": frozenset(params.keys() - head)}[part]
        trained, rest = split(params, fixed)
        own = received.replace(params=trained, buffers=Tensors({**buffers, **rest}))
        return FedAvg.begin(self, task, own, Record(), data)

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        return self.start(task, received, "body", data)

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        return super().finish(task, local, data)[0], Record()

    def programs(self) -> Mapping[str, Program]:
        return {"personal": Fitted(self, self.finetune_epochs, self.finetune_lr or self.lr)}


@dataclass(frozen=True)
class Fitted(Tuned):
    """Fine-tunes the received body with the common head, or a part of them, and judges the result."""

    method: FedBABU

    def start(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        return self.method.start(task, received, self.method.finetune, data)
