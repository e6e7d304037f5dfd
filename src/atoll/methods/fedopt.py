"""Server optimisers: the mean of the clients' updates taken as a gradient, with its sign turned."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from atoll.contract import ClientData, Population, Replies, Reply
from atoll.methods.fedavg import FedAvg
from atoll.methods.parts.buffers import averaged
from atoll.methods.parts.settings import require
from atoll.optimizers import SGD, Adagrad, Adam, Optimizer, Yogi, optimizer
from atoll.task import Task
from atoll.tensors import Record

__all__ = ["FedAdagrad", "FedAdam", "FedAvgM", "FedOpt", "FedYogi"]


@dataclass(frozen=True, kw_only=True)
class _Server(FedAvg):
    """What methods with an optimiser at the server share.

    Args:
        server_lr: step size of the server.
        keep_optimizer: whether a client's own optimiser goes on where it stopped in the client's last round: its
            moments stay with the client, and are never sent.
    """

    server_lr: float = 1.0
    keep_optimizer: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "server_lr", self.server_lr > 0, "must be above 0")

    @abstractmethod
    def server_solver(self) -> Optimizer:
        """The server's optimiser."""

    # ---- server half -----------------------------------------------------------------------------------------

    def setup(self, task: Task, population: Population) -> Record:
        state = super().setup(task, population)
        return state.replace(server=self.server_solver().init(state.params))

    def update(self, state: Record, replies: Replies) -> Record:
        gradient = -replies.mean["update"]
        params, server = self.server_solver().update(gradient, state.server, state.params, self.server_lr)
        buffers = averaged(state.buffers, replies.mean)
        return state.replace(params=params, buffers=buffers, server=server, round=state.round + 1)

    # ---- client half -----------------------------------------------------------------------------------------

    def remember(self, task: Task, received: Record) -> Record:
        return Record(optimizer=self.solver().init(received.params)) if self.keep_optimizer else Record()

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        local = super().begin(task, received, Record(), data)
        return local.replace(optimizer=memory.optimizer) if self.keep_optimizer else local

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, _ = super().finish(task, local, data)
        return reply, Record(optimizer=local.optimizer) if self.keep_optimizer else Record()


@dataclass(frozen=True, kw_only=True)
class FedOpt(_Server):
    """Step along the mean update with an optimiser.   Reddi et al., ICLR 2021, Algorithm 1

    client:  as FedAvg;  sends D_k = w_k - w_t
    server:  w_{t+1} = optimiser(w_t, gradient = -sum_k (n_k / n_S) D_k, server_lr)

    With "sgd" and server_lr = 1 it is FedAvg to the bit. With "nesterov:0.9", server_lr = 0.7, `steps` of "adamw" and
    `keep_optimizer` it is DiLoCo (Douillard et al. 2023, Algorithm 1).

    Args:
        server_optimizer: as `atoll.optimizers` has it: "sgd", "sgd:0.9", "nesterov:0.9", "adam", "yogi" ...
            FedAdam and its like, with the paper's epsilon and without bias correction, are methods by themselves.

    Traps: the optimiser moves trainable parameters only. Buffers are averaged: momentum or a preconditioner
    on running statistics can make a variance negative.
    """

    server_optimizer: str = "sgd"

    paper: ClassVar[str] = "Reddi et al. 2021, Algorithm 1"

    def __post_init__(self) -> None:
        super().__post_init__()
        optimizer(self.server_optimizer)

    def server_solver(self) -> Optimizer:
        return optimizer(self.server_optimizer)


@dataclass(frozen=True, kw_only=True)
class FedAvgM(_Server):
    """Keep moving where the updates have been going.   Hsu, Qi and Brown 2019

    server:  v <- beta v + mean D;  w <- w + server_lr v

    With beta = 0 and server_lr = 1 this is FedAvg to the bit.

    Args:
        beta: momentum of the server. In the long run a step is server_lr / (1 - beta) mean updates: lower one
            as you raise the other.
    """

    beta: float = 0.9

    paper: ClassVar[str] = "Hsu et al. 2019"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "beta", 0 <= self.beta < 1, "must be in [0, 1)")

    def server_solver(self) -> Optimizer:
        return SGD(self.beta)


@dataclass(frozen=True, kw_only=True)
class _Adaptive(_Server):
    """What the three adaptive servers share.

    Args:
        server_lr: step size of the server, 0.01 to 0.1 as a rule; worth tuning together with `lr`.
        beta1: decay of the first moment m.
        tau: added to the root, and its square is where v starts. It bounds the gain on a coordinate by
            server_lr / tau.
    """

    server_lr: float = 0.03
    beta1: float = 0.9
    tau: float = 1e-3

    paper: ClassVar[str] = "Reddi et al. 2021, Algorithm 2"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "beta1", 0 <= self.beta1 < 1, "must be in [0, 1)")
        require(self, "tau", self.tau > 0, "must be above 0")


@dataclass(frozen=True, kw_only=True)
class FedAdagrad(_Adaptive):
    """Give each coordinate its own, shrinking step.   Reddi et al., ICLR 2021, Algorithm 2

    server:  m <- beta1 m + (1 - beta1) mean D;  v <- v + (mean D)^2;  w <- w + server_lr m / (sqrt(v) + tau)

    with m_0 = 0, v_0 = tau^2 and no bias correction.

    Args:
        beta1: decay of the first moment; 0 means none, as in the paper.
    """

    beta1: float = 0.0

    def server_solver(self) -> Optimizer:
        return Adagrad(self.beta1, eps=self.tau, start=self.tau**2, bias_correction=False)


@dataclass(frozen=True, kw_only=True)
class FedAdam(_Adaptive):
    """Give each coordinate a step of its own, by recent updates.   Reddi et al., ICLR 2021, Algorithm 2

    server:  m <- beta1 m + (1 - beta1) mean D;  v <- beta2 v + (1 - beta2) (mean D)^2
             w <- w + server_lr m / (sqrt(v) + tau)

    with m_0 = 0, v_0 = tau^2 and no bias correction.

    Args:
        beta2: decay of the second moment v.
    """

    beta2: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "beta2", 0 <= self.beta2 < 1, "must be in [0, 1)")

    def server_solver(self) -> Optimizer:
        return Adam(self.beta1, self.beta2, self.tau, start=self.tau**2, bias_correction=False)


@dataclass(frozen=True, kw_only=True)
class FedYogi(FedAdam):
    """FedAdam whose steps grow slowly after a quiet spell.   Reddi et al., ICLR 2021, Algorithm 2

    server:  m <- beta1 m + (1 - beta1) mean D;  v <- v - (1 - beta2) (mean D)^2 sign(v - (mean D)^2)
             w <- w + server_lr m / (sqrt(v) + tau)

    with m_0 = 0, v_0 = tau^2 and no bias correction.
    """

    def server_solver(self) -> Optimizer:
        return Yogi(self.beta1, self.beta2, self.tau, start=self.tau**2, bias_correction=False)
