"""Models of any architecture that learn from the mean of each other's outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from atoll import seeds
from atoll.contract import ClientData, Model, Population, Replies, Reply, Work
from atoll.methods.local import Local
from atoll.methods.parts.outputs import common_outputs, cuts, gradient_towards, outputs
from atoll.methods.parts.settings import require
from atoll.optimizers import clip_by_norm
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors

__all__ = ["FedMD"]


@dataclass(frozen=True, kw_only=True)
class FedMD(Local):
    """Agree on outputs, not on weights, by distillation.   Li and Wang 2019, Algorithm 1

    client:  digest:   for each batch of the public inputs P_t, digest_epochs times:
                       w_k <- w_k - lr grad mean |f(w_k; x) - c_t(x)|
             revisit:  w_k <- w_k - lr grad F_k(w_k; batch)  for E epochs of its own data
             sends f(w_k; x) for the next public inputs, x in P_{t+1}
    server:  c_{t+1}(x) = mean_S f(w_k; x)

    f are outputs before the softmax. A client's model, buffers included, is its memory, starts from the initial one
    of its architecture, and never travels; the client predicts with it. Clients count equally, whatever their data.
    P_t moves on through the public inputs by `alignment` a round and begins anew at their end. In the first round
    there is no consensus yet, and nothing to digest. With digest_epochs = 0 clients train as in Local, to the bit.

    The paper's clients first train on labelled public data. Public data has no labels here, so that step is left out.

    Args:
        alignment: public inputs a round; at most all there are.
        digest_epochs: passes over them a round; 0 means that nobody listens.
        digest_batch: public inputs a batch.
        digest_loss: distance of outputs from the consensus, mean over outputs: "mae" as in the authors' code,
            "mse" as distillation has it more often.

    Traps: a client that was away digests the consensus of the latest round only. Digesting has the client's
    optimiser and learning rate, with a state of its own; gradients of "mae" are small and do not grow with the
    distance, so plain SGD digests slowly: the authors use optimizer="adam" with lr=0.001, and four epochs of
    batches of 5 at home. Digesting trains: dropout is on and BatchNorm's statistics move. Outputs that are sent
    are made in evaluation mode.
    """

    alignment: int = 5000
    digest_epochs: int = 1
    digest_batch: int = 256
    digest_loss: Literal["mae", "mse"] = "mae"

    paper: ClassVar[str] = "Li and Wang 2019, Algorithm 1"
    cost: ClassVar[str] = (
        "outputs on public inputs up and down; 1 model remembered; digest_epochs passes more"
    )
    mixed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "alignment", self.alignment >= 1, "must be at least 1")
        require(self, "digest_epochs", self.digest_epochs >= 0, "must not be negative")
        require(self, "digest_batch", self.digest_batch >= 1, "must be at least 1")
        require(self, "digest_loss", self.digest_loss in ("mae", "mse"), 'must be "mae" or "mse"')

    @property
    def reads(self) -> tuple[str, ...]:
        return ("public",)

    # ---- server half -------------------------------------------------------------------------------------

    def setup(self, task: Task, population: Population) -> Record:
        one = common_outputs("FedMD", population.tasks or (task,), population.public)
        assert population.public is not None
        count = len(population.public)
        consensus = one.repeat_interleave(min(self.alignment, count), 0)
        return super().setup(task, population).replace(consensus=consensus, public=count)

    def broadcast(self, state: Record, cohort: Sequence[int]) -> Work:
        work = super().broadcast(state, cohort)
        size = len(state.consensus)
        window = torch.arange((state.round - 1) * size, (state.round + 1) * size) % state.public
        return replace(
            work,
            shared=work.shared.replace(
                index=window[:size],
                consensus=state.consensus,
                agreed=torch.tensor(float(state.round > 0)),
                following=window[size:],
            ),
        )

    def update(self, state: Record, replies: Replies) -> Record:
        return super().update(state, replies).replace(consensus=replies.mean.outputs)

    def expects(self, state: Record) -> Record:
        return Record(outputs=state.consensus)

    # ---- client half -------------------------------------------------------------------------------------

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        local = super().begin(task, received, memory, data)
        params, buffers = self.digest(task, local, data)
        return local.replace(params=params, buffers=buffers)

    def digest(self, task: Task, local: Record, data: ClientData) -> Model:
        """The model brought nearer to the consensus; as it was where there is none yet."""
        assert data.public is not None
        received, public = local.received, data.public
        inputs, mask = public.inputs[received.index], public.mask[received.index]
        params, buffers, state = local.params, local.buffers, self.solver().init(local.params)
        for at, cut in enumerate(cuts(len(mask), self.digest_batch) * self.digest_epochs):
            key = seeds.fold(data.key, at)
            batch = Batch(inputs[cut], received.consensus[cut], mask[cut], key)
            gradient, _, buffers = gradient_towards(task, params, buffers, batch, self.distance)
            if self.clip:
                gradient = clip_by_norm(gradient, self.clip)
            params, state = self.solver().update(gradient, state, params, local.lr)

        def agreed(new: Tensors, old: Tensors) -> Tensors:
            return Tensors({n: torch.where(received.agreed > 0, value, old[n]) for n, value in new.items()})

        return agreed(params, local.params), agreed(buffers, local.buffers)

    def distance(self, made: Tensor, wanted: Tensor) -> Tensor:
        """Mean distance between two models' outputs."""
        gap = made - wanted
        return (gap.abs() if self.digest_loss == "mae" else gap.square()).mean()

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, memory = super().finish(task, local, data)
        assert data.public is not None
        following = data.public.inputs[local.received.following]
        made = outputs(task, local.params, local.buffers, following, self.digest_batch)
        return Reply(Record(outputs=made), torch.ones_like(reply.weight), reply.metrics), memory
