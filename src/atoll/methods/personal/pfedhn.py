"""One hypernetwork on the server writes every client's model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from atoll.contract import ClientData, Model, Population, Replies, Reply, Work
from atoll.errors import ConfigError
from atoll.methods.fedavg import FedAvg
from atoll.methods.parts.buffers import form, mean_buffers
from atoll.methods.parts.settings import require
from atoll.methods.parts.shared import head, layers, trainable
from atoll.methods.personal.hypernetwork import create, generate, pull_back
from atoll.optimizers import SGD, Adam, Optimizer, clip_by_norm, schedule_factor
from atoll.task import Task
from atoll.tensors import Record, Tensors, map_leaves, to_device

__all__ = ["PFedHN", "PFedHNPC"]


@dataclass(frozen=True, kw_only=True)
class PFedHN(FedAvg):
    """Learn to write each client's model from a short code of the client.   Shamsian et al., ICML 2021, Algorithm 1

    server:  theta_i = h(v_i; phi)  for every client i of the cohort S, sent to it alone
    client:  theta~_i <- theta_i;  K times  theta~_i <- theta~_i - lr grad F_i(theta~_i; batch)
    server:  g_phi = mean_S (d theta_i / d phi)^T (theta_i - theta~_i)
             g_v_i = (1/|S|) (d theta_i / d v_i)^T (theta_i - theta~_i)
             (phi, v) <- (phi, v) - server_lr (g_phi, g_v),  by momentum SGD or Adam

    The hypernetwork h never leaves the server, so that a round costs what a round of FedAvg costs, however large
    h is. Clients count equally. With one full-batch step and lr = 1, (g_phi, g_v) is the gradient of the cohort's
    mean loss, mean_S F_i(h(v_i; phi)). The global model is h at the mean of all embeddings. Buffers, BatchNorm's
    statistics among them, are averaged over the cohort, as in FedAvg; layers without such statistics
    (GroupNorm) suit models that differ this much better.

    A client beyond the population of `setup` starts at the mean embedding. Newcomers learn their embeddings only,
    under a hypernetwork that stays as it is (Section 3.3): `Federation(newcomers=...)` judges that, and
    `freeze_hypernetwork` does it for a federation of old and new clients that goes on from a trained state.

    Args:
        steps: local steps a round.
        embedding: numbers in a client's embedding; None means 1 + clients / 4, at most 100.
        hidden, depth: width and number of the hypernetwork's hidden layers (after a first one without ReLU).
        start: how the hypernetwork is initialised: "scaled" draws the heads so that the first models have the
            scale of the task's own initial model, tensor by tensor; "default" is the authors', every layer as
            `nn.Linear` draws it. The two learn alike for a perceptron; "default" writes noise where a model wants
            constants (BatchNorm's weights).
        server_optimizer: "adam", or "sgd" as the authors (with server_lr=0.01, server_weight_decay=0.001), for
            hypernetwork and embeddings.
        server_lr: learning rate of the hypernetwork.
        embedding_lr: learning rate of the embeddings; None means `server_lr`.
        server_momentum: for server_optimizer="sgd".
        server_weight_decay: L2, on hypernetwork and embeddings.
        server_clip: joint norm above which (g_phi, g_v) is scaled down; 0 means never.
        sparse: whether the embeddings of clients outside the cohort stay where they are. Otherwise momentum and
            weight decay move all of them in every round, as in the authors' code.
        freeze_hypernetwork: whether phi stays as it is and only the embeddings of the cohort learn.

    Traps: the server descends theta_i - theta~_i; the client's update has the other sign. The Jacobian is that at
    the (phi, v) which wrote theta_i. The mean over a cohort gives an embedding 1/|S| of the step it would take if
    its client were alone in the round, as it is with the authors; with a large cohort, raise the rates.
    """

    lr: float = 0.005
    steps: int | None = 50
    momentum: float = 0.9
    weight_decay: float = 5e-5
    clip: float = 50.0
    embedding: int | None = None
    hidden: int = 100
    depth: int = 3
    start: Literal["scaled", "default"] = "scaled"
    server_optimizer: Literal["sgd", "adam"] = "adam"
    server_lr: float = 0.001
    embedding_lr: float | None = None
    server_momentum: float = 0.9
    server_weight_decay: float = 0.0
    server_clip: float = 50.0
    sparse: bool = False
    freeze_hypernetwork: bool = False

    reduction: ClassVar[Literal["mean", "each"]] = "each"
    broadcasts: ClassVar[tuple[str, ...]] = ()
    paper: ClassVar[str] = "Shamsian et al. 2021, Algorithm 1"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("hidden", "depth"):
            require(self, name, getattr(self, name) >= 1, "must be at least 1")
        require(self, "embedding", self.embedding is None or self.embedding >= 1, "must be at least 1")
        require(self, "start", self.start in ("scaled", "default"), "must be scaled or default")
        require(self, "server_optimizer", self.server_optimizer in ("sgd", "adam"), "must be sgd or adam")
        require(self, "server_lr", self.server_lr > 0, "must be above 0")
        require(self, "embedding_lr", self.embedding_lr is None or self.embedding_lr > 0, "must be above 0")
        require(self, "server_momentum", 0 <= self.server_momentum < 1, "must be in [0, 1)")
        require(self, "server_weight_decay", self.server_weight_decay >= 0, "must not be negative")
        require(self, "server_clip", self.server_clip >= 0, "must not be negative (0 means no clipping)")

    # ---- server half -------------------------------------------------------------------------------------

    def setup(self, task: Task, population: Population) -> Record:
        params, buffers = task.initial()
        kept = self.private(task)
        written = Tensors({name: value for name, value in params.items() if name not in kept})
        width = self.embedding or min(1 + population.clients // 4, 100)
        net, embeddings = create(
            written, population.clients, width, self.hidden, self.depth, self.start, population.seed
        )
        solver = self.server_solver()
        state = Record(
            params=params,
            buffers=buffers,
            hypernetwork=net,
            embeddings=embeddings,
            optimizer=Record(
                hypernetwork=solver.init(net), embeddings=solver.init(Tensors(embeddings=embeddings))
            ),
            round=0,
        )
        return state.replace(params=self.average(state))

    def private(self, task: Task) -> list[str]:
        """Names of the parameters that the hypernetwork does not write."""
        return []

    def server_solver(self) -> Optimizer:
        """The server's optimiser."""
        if self.server_optimizer == "sgd":
            return SGD(self.server_momentum, weight_decay=self.server_weight_decay)
        return Adam(weight_decay=self.server_weight_decay)

    def written(self, state: Record) -> Tensors:
        """The part of the global model that the hypernetwork writes."""
        net = state.hypernetwork
        return Tensors({n: value for n, value in state.params.items() if f"heads.{n}.weight" in net})

    def average(self, state: Record) -> Tensors:
        """The global model: what the hypernetwork writes for the mean embedding."""
        mean = state.embeddings.mean(0, keepdim=True)
        made = generate(state.hypernetwork, mean, self.written(state))
        return Tensors({**state.params, **made.map(lambda value: value[0])})

    def broadcast(self, state: Record, cohort: Sequence[int]) -> Work:
        state = grown(state, cohort)
        made = generate(state.hypernetwork, state.embeddings[list(cohort)], self.written(state))
        lr = torch.tensor(self.lr * schedule_factor(self.schedule, state.round))
        own = {k: Record(params=made.map(lambda value, at=at: value[at])) for at, k in enumerate(cohort)}  # type: ignore[misc]
        return Work(Record(buffers=state.buffers, lr=lr), own)

    def update(self, state: Record, replies: Replies) -> Record:
        clients, solver = replies.clients, self.server_solver()
        state = grown(state, clients)
        net, everyone, optimizer = state.hypernetwork, Tensors(embeddings=state.embeddings), state.optimizer
        moved = state.embeddings.new_zeros(len(everyone["embeddings"]), dtype=torch.bool)
        moved[clients] = True

        updates = [reply.values["update"] * (float(reply.weight) / replies.weight) for reply in replies.each]
        descent = Tensors({name: -torch.stack([update[name] for update in updates]) for name in updates[0]})
        g_net, g_cohort = pull_back(net, state.embeddings[clients], self.written(state), descent)
        g_everyone = everyone.zeros()
        g_everyone["embeddings"][clients] = g_cohort
        if self.freeze_hypernetwork:
            g_net = Tensors()
        if self.server_clip:
            joint = Tensors({**g_net, **g_everyone})
            if bool(
                joint.norm() > self.server_clip
            ):  # a pass over so many numbers is not to be made for nothing
                joint = clip_by_norm(joint, self.server_clip)
                g_net, g_everyone = (Tensors({n: joint[n] for n in part}) for part in (g_net, g_everyone))

        rate = self.embedding_lr or self.server_lr
        after, memory = solver.at_once(g_everyone, optimizer.embeddings, everyone, rate)
        if self.sparse or self.freeze_hypernetwork:

            def chosen(new: Tensor, old: Tensor) -> Tensor:
                return torch.where(moved.unsqueeze(1), new, old) if new.ndim == 2 else new

            after = map_leaves(chosen, after, everyone)
            memory = map_leaves(chosen, memory, optimizer.embeddings)
        optimizer = optimizer.replace(embeddings=memory)
        if not self.freeze_hypernetwork:
            net, memory = solver.at_once(g_net, optimizer.hypernetwork, net, self.server_lr)
            optimizer = optimizer.replace(hypernetwork=memory)

        state = state.replace(
            buffers=mean_buffers(state.buffers, zip(clients, replies.each, strict=True)),
            hypernetwork=net,
            embeddings=after["embeddings"],
            optimizer=optimizer,
            round=state.round + 1,
        )
        return state.replace(params=self.average(state))

    def adapt(self, state: Record, replies: Replies) -> Record:
        """Newcomers learn their embeddings, phi stays as it is."""
        after = replace(self, freeze_hypernetwork=True).update(state, replies)
        return state.replace(embeddings=after.embeddings, optimizer=after.optimizer)

    def expects(self, state: Record) -> Record:
        return Record(update=self.written(state), **form(state.buffers))

    # ---- client half -------------------------------------------------------------------------------------

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, memory = super().finish(task, local, data)
        return reply._replace(weight=torch.ones_like(reply.weight)), memory

    def personal(self, received: Record, memory: Record) -> Model:
        """What the hypernetwork wrote for this client."""
        return received.params, received.buffers


@dataclass(frozen=True, kw_only=True)
class PFedHNPC(PFedHN):
    """A hypernetwork writes each client's layers but the last.   Shamsian et al., ICML 2021, Section 4.2 (pFedHN-PC)

    server:  theta_i = h(v_i; phi),  the layers below the private ones
    client:  K steps on (theta~_i, w_i) together,  w_i from where the client's last round left it;
             sends theta~_i - theta_i, remembers w_i
    server:  as pFedHN

    The private layers start as the task's own; the global model has them in that state, since the server never
    sees what becomes of them.

    Args:
        private_layers: how many of the last layers with trainable parameters stay with the client. A tensor that two
            layers share belongs to the first of them.
    """

    private_layers: int = 1

    paper: ClassVar[str] = "Shamsian et al. 2021, pFedHN-PC"
    cost: ClassVar[str] = "1 model up, 1 down, both without the last layers; these remembered"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "private_layers", self.private_layers >= 1, "must be at least 1")

    def private(self, task: Task) -> list[str]:
        count = len(trainable(task, layers(task)))
        if count <= self.private_layers:
            raise ConfigError(
                f"PFedHNPC: private_layers = {self.private_layers}, but the model has {count} layers with "
                "trainable parameters",
                hint="leave at least one to the hypernetwork",
            )
        own = head(task, self.private_layers)
        return [name for name in task.initial()[0] if name in own]

    # ---- client half -------------------------------------------------------------------------------------

    def remember(self, task: Task, received: Record) -> Record:
        params, _ = task.initial()
        own = Tensors({name: value for name, value in params.items() if name not in received.params})
        return to_device(Record(params=own), received.lr.device)  # type: ignore[no-any-return]

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        params, _ = self.personal(received, memory)
        return super().begin(task, received.replace(params=params), memory, data)

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, memory = super().finish(task, local, data)
        own = memory.params
        update = Tensors({n: value for n, value in reply.values["update"].items() if n not in own})
        memory = memory.replace(params=Tensors({name: local.params[name] for name in own}))
        return reply._replace(values=reply.values.replace(update=update)), memory

    def personal(self, received: Record, memory: Record) -> Model:
        """What the hypernetwork wrote, joined with the client's own last layers."""
        return Tensors({**received.params, **memory.params}), received.buffers


def grown(state: Record, clients: Iterable[int]) -> Record:
    """The state with an embedding for each of these clients: the mean of the known ones for those it has not met."""
    known = state.embeddings
    missing = max(clients, default=-1) + 1 - len(known)
    if missing <= 0:
        return state
    optimizer = map_leaves(
        lambda leaf: torch.cat([leaf, leaf.new_zeros(missing, leaf.shape[1])]) if leaf.ndim == 2 else leaf,
        state.optimizer.embeddings,
    )
    return state.replace(
        embeddings=torch.cat([known, known.mean(0, keepdim=True).expand(missing, -1)]),
        optimizer=state.optimizer.replace(embeddings=optimizer),
    )
