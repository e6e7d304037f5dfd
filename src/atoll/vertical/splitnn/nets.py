"""What a party trains: a module with its optimiser, over columns on one scale; and how the guest joins embeddings."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from atoll import models, seeds
from atoll.errors import CodecError, ConfigError
from atoll.optimizers import optimizer
from atoll.tensors import Record, Tensors
from atoll.vertical.side import FloatArray, Side

__all__ = ["Factory", "Guest", "Join", "Net", "Scale", "built", "own_seed"]

Factory = Callable[[int, int], nn.Module]
"""Makes a module of so many inputs [b, inputs] and outputs [b, outputs], float32."""

Join = Literal["concat", "sum", "mean", "attention"]


def built(of: str | Factory, inputs: int, outputs: int) -> nn.Module:
    """The module of a text as `atoll.models` has it ("mlp:16"), or of a function of inputs and outputs."""
    return models.build(of, (inputs,), outputs) if isinstance(of, str) else of(inputs, outputs)


def own_seed(seed: int, side: Side) -> int:
    """Where a party's first weights come from: the run's seed and the party's own rows, which nobody else has.

    Were it the run's seed alone, others could draw the same weights, and solve the first embeddings for the columns.
    """
    digest = hashlib.sha256(f"atoll split weights {seed}".encode())
    for values in (side.x, side.y):
        digest.update(b"" if values is None else np.ascontiguousarray(values).tobytes())
    return int.from_bytes(digest.digest()[:7], "little")


@dataclass(frozen=True)
class Scale:
    """Mean and deviation of each column where it is known, float64 [d]."""

    mean: Tensor
    unit: Tensor

    @classmethod
    def of(cls, x: FloatArray) -> Scale:
        known = ~np.isnan(x)
        count = np.maximum(known.sum(0), 1)
        filled = np.where(known, x, 0.0)
        mean = filled.sum(0) / count
        unit = np.sqrt((np.where(known, x - mean, 0.0) ** 2).sum(0) / count)
        return cls(torch.from_numpy(mean), torch.from_numpy(np.where(unit > 0, unit, 1.0)))

    def __call__(self, x: FloatArray) -> Tensor:
        """Columns with mean 0 and deviation 1, and 0 where nothing is known, float32 [n, d].

        Raises CodecError where there are not as many columns.
        """
        if x.shape[1] != len(self.mean):
            raise CodecError(
                f"this half was learned from {len(self.mean)} columns, and there are {x.shape[1]}"
            )
        scaled = (torch.from_numpy(np.ascontiguousarray(x)) - self.mean) / self.unit
        return torch.nan_to_num(scaled, nan=0.0).float()

    def record(self) -> Record:
        return Record(mean=self.mean, unit=self.unit)


class Net:
    """A module and its optimiser.

    Args:
        module: in float32, on the CPU.
        solver: the optimiser's text.
        lr: its step size.
        seed: of what the module draws (dropout), which the batch's address goes with.
    """

    def __init__(self, module: nn.Module, solver: str, lr: float, seed: int) -> None:
        self.module, self.lr, self.seed = module, lr, seed
        self.solver = optimizer(solver)
        self.trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.params = Tensors({name: p.detach() for name, p in self.trained.items()})  # they share memory
        self.state = self.solver.init(self.params) if self.params else Record()

    def __call__(self, *inputs: object, train: tuple[int, ...] | None = None) -> Tensor:
        """The module's output.

        Args:
            train: the address of what it draws, (epoch, batch, step); None where it is only asked.
        """
        if self.module.training != (train is not None):
            self.module.train(train is not None)
        if train is None:
            with torch.no_grad():
                return self.module(*inputs)  # type: ignore[no-any-return]
        epoch, batch, step = train
        with seeds.scoped(self.seed, "split.step", epoch << 40 | batch << 16 | step):
            return self.module(*inputs)  # type: ignore[no-any-return]

    def step(self) -> None:
        """One step of the optimiser against the gradients that the parameters have, which are taken away."""
        if not self.params:
            return
        with torch.no_grad():
            slope = Tensors(
                {
                    name: torch.zeros_like(self.params[name]) if p.grad is None else p.grad
                    for name, p in self.trained.items()
                }
            )
            new, self.state = self.solver.at_once(slope, self.state, self.params, self.lr, own=True)
            for name, value in self.params.items():
                if new[name] is not value:
                    value.copy_(new[name])
        for p in self.trained.values():
            p.grad = None

    def record(self) -> Record:
        """Parameters, buffers and the optimiser's state, as they are now."""
        params = Tensors({name: p.detach().clone() for name, p in self.module.named_parameters()})
        buffers = Tensors({name: b.detach().clone() for name, b in self.module.named_buffers()})
        state = {name: value.map(torch.clone) if isinstance(value, Tensors) else value.clone()
                 for name, value in self.state.items()}  # fmt: skip
        return Record(params=params, buffers=buffers, optimizer=Record(state))

    def load(self, held: Record) -> None:
        """Go on from a record.  Raises CodecError where it is of another network."""
        due = self.record()
        for part in ("params", "buffers"):
            fits = part in held and {n: v.shape for n, v in held[part].items()} == {
                n: v.shape for n, v in due[part].items()
            }
            if not fits:
                raise CodecError(
                    f"the half's {part} are those of another network", hint="keep bottom, top and width"
                )
        if held.optimizer.keys() != due.optimizer.keys():
            raise CodecError("the half has the state of another optimiser", hint="keep the optimiser")
        with torch.no_grad():
            for name, p in self.module.named_parameters():
                p.copy_(held.params[name])
            for name, b in self.module.named_buffers():
                b.copy_(held.buffers[name])
        self.state = Record(
            {name: value.map(torch.clone) if isinstance(value, Tensors) else value.clone()
             for name, value in held.optimizer.items()}
        )  # fmt: skip


class Guest(nn.Module):
    """The guest's part: its own bottom where it has columns, what joins embeddings, and the top.

    concat: [h_1 ... h_k];  sum, mean: over parties;  attention: sum_k a_k h_k, a = softmax(h_k . q / sqrt d) with a
    learned q.

    Args:
        own: the bottom, or None.
        join: how.
        width: d, of every embedding.
        top: makes the top of so many inputs.
        parties: how many embeddings there are.
    """

    def __init__(
        self, own: nn.Module | None, join: Join, width: int, parties: int, top: Callable[[int], nn.Module]
    ) -> None:
        super().__init__()
        self.own, self.join = own, join
        self.query = nn.Parameter(torch.zeros(width)) if join == "attention" else None
        self.top = top(width * parties if join == "concat" else width)

    def forward(self, x: Tensor, embeddings: Sequence[Tensor]) -> Tensor:
        """Scores [b, outputs].

        Args:
            x: own columns, [b, d].
            embeddings: of the hosts, [b, width] each.
        """
        every = [*([] if self.own is None else [self.own(x)]), *embeddings]
        return self.top(self._joined(every))  # type: ignore[no-any-return]

    def _joined(self, every: list[Tensor]) -> Tensor:
        if self.join == "concat":
            return torch.cat(every, 1)
        stacked = torch.stack(every)
        if self.join == "sum":
            return stacked.sum(0)
        if self.join == "mean" or self.query is None:
            return stacked.mean(0)
        share = torch.softmax(stacked @ self.query / math.sqrt(len(self.query)), 0)
        return (share[:, :, None] * stacked).sum(0)


def refuse_copies(h: Tensor, x: Tensor) -> None:
    """Raise ConfigError where a number of the embedding is one of the columns, up to scale and shift.

    Args:
        h: embeddings [b, width].
        x: columns [b, d].
    """
    if len(x) < 8:  # so few may lie on a line by chance
        return
    one, other = (_unit(value.detach().double()) for value in (h, x))
    if float((one.T @ other).abs().max()) > 1 - 1e-6:
        raise ConfigError(
            "bottom sends a column as it is, up to scale and shift: the guest could read it",
            hint="let bottom mix columns and bend them, as mlp:16 does, or set clip and noise",
        )


def _unit(values: Tensor) -> Tensor:
    """Columns less their means, of length 1; 0 where there is but one value."""
    rest = values - values.mean(0)
    length = rest.norm(dim=0)
    return torch.where(length > 1e-9 * (1 + values.abs().amax(0)), rest / length.clamp(min=1e-300), 0.0)
