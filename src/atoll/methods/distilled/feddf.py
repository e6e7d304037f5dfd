"""Averages that then learn from the ensemble of what was averaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from atoll import seeds
from atoll.contract import Mean, Model, Population, Replies, Reply, Work
from atoll.errors import ConfigError
from atoll.methods.fedavg import FedAvg
from atoll.methods.parts.buffers import averaged, form
from atoll.methods.parts.outputs import common_outputs, gradient_towards, outputs
from atoll.methods.parts.settings import require
from atoll.optimizers import Adam, schedule_factor
from atoll.parts import Inputs
from atoll.task import Batch, Task, architecture
from atoll.tensors import Record

__all__ = ["FedDF"]


@dataclass(frozen=True, kw_only=True)
class FedDF(FedAvg):
    """Average, then distil the ensemble into the average.   Lin et al., NeurIPS 2020, Algorithms 1 and 3

    client:  as FedAvg, from the student w^a of its architecture a
    server:  w^a <- w^a + sum_{k in S of architecture a} (n_k / n) (w_k - w^a),  for every architecture;  then
             w^a <- Adam step on KL(softmax(mean_S f(w_k; x)) || softmax(f(w^a; x))),  distill_steps batches of
             public inputs x

    All clients of the cohort teach all students, whatever their architectures, and count equally; f are outputs
    before the softmax, with the classes on the last axis. An architecture with no client in the cohort keeps its
    student, which is distilled like the others. A client predicts with the student of its architecture. The
    clients' models are forgotten after distillation. With one architecture and distill_steps = 0 this is FedAvg,
    to the bit where clients are summed one by one (engines "loop" and "processes", up to 64 clients a round).

    Args:
        distill_steps: batches each student is distilled on a round; 0 means none. The paper takes up to 10,000,
            and stops early by accuracy on labelled validation data, which no server has here.
        distill_batch: public inputs a batch; at most all there are.
        distill_lr: Adam's learning rate at the start; it falls to 0 over distill_steps along a cosine.

    Traps: the teacher is the mean of outputs before the softmax, not of probabilities. Teachers are run in
    evaluation mode; students are distilled in training mode, with dropout, and BatchNorm's running statistics
    move towards those of the public inputs, as in the authors' code.
    """

    distill_steps: int = 100
    distill_batch: int = 128
    distill_lr: float = 0.001

    reduction: ClassVar[Literal["mean", "each"]] = "each"
    broadcasts: ClassVar[tuple[str, ...]] = ()
    paper: ClassVar[str] = "Lin et al. 2020 (FedDF), Algorithms 1 and 3"
    cost: ClassVar[str] = "1 model up, 1 down; distillation on the server"
    mixed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "distill_steps", self.distill_steps >= 0, "must not be negative")
        require(self, "distill_batch", self.distill_batch >= 1, "must be at least 1")
        require(self, "distill_lr", self.distill_lr > 0, "must be above 0")

    # ---- server half -------------------------------------------------------------------------------------

    @property
    def distils(self) -> bool:
        return True

    def setup(self, task: Task, population: Population) -> Record:
        tasks = population.tasks or (task,)
        if self.distill_steps:
            if task.loss_name in ("mse", "l1", "bce", "listwise", "rated"):
                raise ConfigError(
                    f"FedDF distils probabilities of classes, and the loss is {task.loss_name!r}",
                    hint="use loss='cross_entropy', or method='fedmd', which compares outputs as they are",
                )
            common_outputs("FedDF", tasks, population.public)
        return _with(super().setup(task, population), [each.initial() for each in tasks])

    def broadcast(self, state: Record, cohort: Sequence[int]) -> Work:
        work = super().broadcast(state, cohort)
        if len(state.students) == 1:
            return work
        own = {k: _student(state, k) for k in cohort}
        forms = {k: Record(update=each.params, **form(each.buffers)) for k, each in own.items()}
        return replace(work, shared=Record(lr=work.shared.lr), own=own, forms=forms)

    def update(self, state: Record, replies: Replies) -> Record:
        teachers: dict[str, Record] = {}
        sums = [Mean(self.rules) for _ in state.students]
        for client, reply in zip(replies.clients, replies.each, strict=True):
            params, buffers = _moved(_student(state, client), reply.values)
            teachers[str(client)] = Record(params=params, buffers=buffers)
            one = Mean(self.rules)
            one.add(client, Reply(reply.values, reply.weight, Record()))
            sums[architecture(client, len(sums))].merge(one)
        students = []
        for number, each in enumerate(sums):
            student, reduced = _student(state, number), each.result()
            students.append(
                (student.params, student.buffers) if reduced is None else _moved(student, reduced.mean)
            )
        return _with(state, students).replace(round=state.round + 1, teachers=Record(teachers))

    def refine(self, state: Record, population: Population) -> Record:
        teachers = state.teachers
        state = Record({name: value for name, value in state.items() if name != "teachers"})
        if not self.distill_steps:
            return state
        assert population.public is not None
        rows, order = self.reading(len(population.public), population.seed, state.round)
        inputs = population.public[rows.to(population.public.device)]
        wanted = self.ensemble(teachers, population.tasks, inputs)
        students = [
            self.distil(population, number, _student(state, number), inputs, wanted, order, state.round)
            for number in range(len(population.tasks))
        ]
        return _with(state, students)

    def reading(self, count: int, seed: int, round: int) -> tuple[Tensor, Tensor]:
        """The public inputs of a round, and for each step which of them are its batch: [n], [steps, b]."""
        size = min(self.distill_batch, count)
        passes = -(-self.distill_steps * size // count)
        rng = seeds.rng(seed, "distil", round)
        order = np.concatenate([rng.permutation(count) for _ in range(passes)])
        rows, where = np.unique(order[: self.distill_steps * size], return_inverse=True)
        return torch.from_numpy(rows), torch.from_numpy(where.reshape(self.distill_steps, size))

    def ensemble(self, teachers: Record, tasks: Sequence[Task], inputs: Inputs) -> Tensor:
        """Logarithms of the probabilities that all clients' models together give the classes of inputs: [n, C]."""
        with torch.no_grad():
            made = [
                outputs(
                    tasks[architecture(int(client), len(tasks))],
                    each.params,
                    each.buffers,
                    inputs,
                    self.distill_batch,
                )
                for client, each in teachers.items()
            ]
            return torch.log_softmax(torch.stack(made).mean(0), -1)

    def distil(
        self,
        population: Population,
        number: int,
        student: Record,
        inputs: Inputs,
        wanted: Tensor,
        order: Tensor,
        round: int,
    ) -> Model:
        """The student of that number after the steps of a round."""
        task, seed = population.tasks[number], population.seed
        params, buffers = student.params.map(torch.clone), student.buffers
        solver = Adam()
        state = solver.init(params)
        key = torch.tensor(seeds.address(seed, "distil", round), device=inputs.device)
        keys = seeds.fold(key, torch.arange(len(order), device=inputs.device))
        mask = torch.ones(order.shape[1], device=inputs.device)
        with torch.no_grad():
            for at, index in enumerate(order.to(inputs.device)):
                batch = Batch(inputs[index], wanted[index], mask, keys[at])
                gradient, _, buffers = population.quick(
                    gradient_towards, task, params, buffers, batch, divergence
                )
                lr = self.distill_lr * schedule_factor(f"cosine:{self.distill_steps}", at)
                params, state = solver.at_once(gradient, state, params, lr, own=True)
        return params, buffers

    # ---- client half -------------------------------------------------------------------------------------

    def personal(self, received: Record, memory: Record) -> Model:
        return received.params, received.buffers  # the student of the client's architecture


def divergence(made: Tensor, wanted: Tensor) -> Tensor:
    """Mean KL(wanted || softmax(made)) of logarithms of probabilities `wanted` and outputs `made`, [b, C] each."""
    return torch.sum(wanted.exp() * (wanted - torch.log_softmax(made, -1)), -1).mean()


def _student(state: Record, client: int) -> Record:
    """The student of this client's architecture."""
    return state.students[str(architecture(client, len(state.students)))]  # type: ignore[no-any-return]


def _moved(student: Record, values: Record) -> Model:
    """The student after an update, a client's or a mean of them."""
    return student.params + values["update"], averaged(student.buffers, values)


def _with(state: Record, students: Sequence[Model]) -> Record:
    """The state with these students, one an architecture; the first is the global model."""
    held = {str(at): Record(params=params, buffers=buffers) for at, (params, buffers) in enumerate(students)}
    return state.replace(params=students[0][0], buffers=students[0][1], students=Record(held))
