"""Small sketches of clients' data, to tell whose data are alike: the subspace in which most of it lies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from atoll import seeds
from atoll.contract import ClientData, Program, Reply
from atoll.parts import Inputs, tensors
from atoll.task import Task
from atoll.tensors import Record

__all__ = ["Sketch", "basis"]


@dataclass(frozen=True)
class Sketch(Program):
    """The client program that summarises its training data in an orthonormal basis [D, rank].

    Args:
        rank: columns of the basis.
        label_scale: weight of the one-hot labels (or numeric targets) behind the inputs of a sample.
        dim: project inputs to so many coordinates first, by one random matrix for all; 0 keeps them.
        noise: standard deviation of Gaussian noise in the second moment of the samples, each scaled to norm at most 1.
    """

    rank: int
    label_scale: float
    dim: int
    noise: float

    @property
    def reads(self) -> tuple[str, ...]:
        return ("train",)

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        assert data.train is not None
        batch = data.train
        if batch.targets.is_floating_point():
            labels = batch.targets.flatten(1) if batch.targets.ndim > 1 else batch.targets.unsqueeze(1)
        else:
            device = batch.inputs.device
            params, buffers = (part.map(lambda t: t.to(device)) for part in task.initial())
            outputs, _ = task.predict(params, buffers, batch.inputs[:1])
            classes = torch.arange(outputs.shape[-1], device=device)
            labels = (batch.targets.unsqueeze(-1) == classes).flatten(1)
        inputs = self.rows(batch.inputs, received.get("projection"))
        rows = torch.cat([inputs, self.label_scale * labels.to(inputs.dtype)], dim=1) * batch.mask.unsqueeze(
            1
        )
        if not self.noise:
            return Record(sketch=basis(rows, self.rank), memory=memory)
        rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=1)
        noise = seeds.normal(data.key, (rows.shape[1], rows.shape[1]), rows.dtype)
        noise = torch.triu(noise) + torch.triu(noise, 1).T
        moment = rows.T @ rows / batch.mask.sum().clamp(min=1) + self.noise * noise
        vectors = torch.linalg.eigh(moment.double())[1][:, -self.rank :]
        return Record(sketch=vectors.to(rows.dtype), memory=memory)

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        return Reply(Record(sketch=local.sketch), torch.ones_like(data.count), Record()), local.memory

    def rows(self, inputs: Inputs, projection: Tensor | None = None) -> Tensor:
        """Inputs [n, ...] as rows [n, d], projected if asked by the matrix drawn at the address `projection`."""
        parts = [part.flatten(1) for part in tensors([inputs])]
        rows: Tensor = torch.cat(
            [part if part.is_floating_point() else part.float() for part in parts], dim=1
        )
        if not self.dim:
            return rows
        assert projection is not None
        rows = (
            rows
            @ seeds.normal(projection.to(rows.device), (rows.shape[1], self.dim), rows.dtype)
            / self.dim**0.5
        )
        return rows


def basis(rows: Tensor, rank: int) -> Tensor:
    """Top left singular vectors [D, rank] of the samples [n, D], exactly, by the smaller of the two Gram matrices."""
    n, width = rows.shape
    wide = rows.double()  # in single precision LAPACK gives up on images with empty pixels
    if width <= n:
        found = torch.linalg.eigh(wide.T @ wide)[1][:, -rank:]
    else:
        found = torch.linalg.qr(wide.T @ torch.linalg.eigh(wide @ wide.T)[1][:, -rank:])[0]
    narrow: Tensor = found.to(rows.dtype)
    return narrow
