"""Sketches that are added up, and a server that finds the largest of what all have sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from atoll import seeds
from atoll.channel.shrink import SMALL, Shrink, float_shapes, put_back
from atoll.channel.transform import Setting, Transform, plainly
from atoll.compress import Codec, Sketch
from atoll.compress.codec import size_of
from atoll.compress.topk import kept
from atoll.errors import ConfigError
from atoll.tensors import Record, named_tensors

__all__ = ["FetchSGD"]


@dataclass(frozen=True)
class Table(Codec):
    """The sums of a sketch in the place of its first numbers, and 0 in that of all others.

    So a sketch is a reply of the usual form: weights, factors, robust rules and means act on it as on any update, and
    what comes of it all is a sketch again. Its draws are the same for all clients and rounds.

    Args:
        sketch: which.
        seed: the run's.
    """

    sketch: Sketch
    seed: int = 0

    name = "fetchsgd"
    contracts = False
    linear = True

    @property
    def key(self) -> Tensor:
        return torch.tensor(seeds.address(self.seed, "sketch") >> 2)

    def form(self, shape: Sequence[int]) -> Mapping[str, tuple[torch.dtype, tuple[int, ...]]]:
        return {"sums": self.sketch.form(shape)["sums"]}

    def encode(self, value: Tensor, key: Tensor) -> Record:
        return Record(sums=self.sketch.sums(value, self.key.to(value.device)))

    def decode(self, sent: Record, shape: Sequence[int]) -> Tensor:
        sums = sent.sums.reshape(-1)
        return pad(sums, (0, size_of(shape) - len(sums))).reshape(tuple(shape))

    def sums(self, value: Tensor) -> Tensor:
        """The sums, of what `decode` gave [n], float32 [rows, c]."""
        _, shape = self.form(value.shape)["sums"]
        return value[: size_of(shape)].float().reshape(shape)


@dataclass(frozen=True)
class FetchSGD(Shrink):
    """FetchSGD: clients send sketches, the server keeps momentum and error.   Rothchild et al., ICML 2020, Algorithm 1

    U <- rho U + S,  E <- E + U,  delta = top-k of what E tells,

    S the mean of the clients' sketches, U and E sketches as well; delta is what the method has in the place of the
    mean. Then U and E are 0 in all sums that delta is in. Algorithm 1 takes sketch(delta) off E, which leaves the
    errors of k estimates there, and they grow from round to round where updates are dense.

    No client remembers anything, so that it may come once and never again. For methods that send one difference.

    Args:
        codec: the sketch.
        share: k, as a share of the numbers; by default as many as there are sums.
        momentum: rho.
    """

    codec: Codec = Table(Sketch(10.0))
    share: float | None = None
    momentum: float = 0.0

    name: ClassVar[str] = "fetchsgd"

    @staticmethod
    def made(times: float, share: float | None = None, momentum: float = 0.0, rows: int = 5) -> FetchSGD:
        """Of what is written: how many times fewer numbers travel, the share that comes back, rho, rows of a sketch."""
        return FetchSGD(Table(Sketch(times, rows)), share=share, momentum=momentum)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("share", self.share is None or 0 < self.share <= 1, "must be above 0, and at most 1")
        self._require("momentum", 0 <= self.momentum < 1, "must be in [0, 1)", "0.9 is usual")

    @property
    def sketch(self) -> Sketch:
        return self._table.sketch

    @property
    def _table(self) -> Table:
        assert isinstance(self.codec, Table)
        return self.codec

    @property
    def text(self) -> str:
        more = [] if self.share is None else [plainly(self.share)]
        more += [f"momentum={plainly(self.momentum)}"] if self.momentum else []
        more += [f"rows={self.sketch.rows}"] if self.sketch.rows != 5 else []
        return f"{self.name}:{','.join([plainly(float(self.sketch.times)), *more])}"

    @property
    def measures(self) -> bool:
        return True

    def fitted(self, before: tuple[Transform, ...], setting: Setting) -> FetchSGD:
        found = super().fitted(before, setting)
        many = [size for part in setting.shapes if (size := sum(map(size_of, part))) >= SMALL]
        if len(many) != 1:
            raise ConfigError(
                f"channel = {self.text!r}: replies have {len(many)} fields of {SMALL} numbers or more, and a sketch is"
                " of one",
                hint="take fedavg, fedprox, fedadam ..., and nn.GroupNorm where there is nn.BatchNorm"
                if many
                else "leave it out: there is next to nothing to save",
            )
        table = Table(self.sketch, setting.seed)
        return replace(self, codec=table, shapes=setting.shapes, bound=found.bound, at=found.at)

    # --- server half ------------------------------------------------------------------------------------------

    @property
    def _size(self) -> int:
        """Numbers in an update."""
        return max(sum(map(size_of, part)) for part in self.shapes)

    def begin(self) -> Record:
        _, shape = self._table.form((self._size,))["sums"]
        return Record(momentum=torch.zeros(shape), error=torch.zeros(shape))

    def tell(self, state: Record) -> Record:
        return Record()

    def learn(self, state: Record, mean: Record, report: Record, count: int) -> tuple[Record, Record]:
        named = dict(named_tensors(mean))
        units = self._units(float_shapes(named))
        (unit,) = units
        flat = unit.joined(named)
        key, size = self._table.key.to(flat.device), flat.numel()
        momentum = self.momentum * state.momentum.to(flat.device) + self._table.sums(flat)
        error = state.error.to(flat.device) + momentum
        told = self.sketch.median(error, key, size)
        share = error.numel() / size if self.share is None else self.share
        places = torch.topk(told.abs(), kept(size, share), sorted=False).indices
        delta = torch.zeros_like(told).scatter(0, places, told.gather(0, places))
        rest = ~self.sketch.touched(delta != 0, key)
        return Record(momentum=(momentum * rest).cpu(), error=(error * rest).cpu()), put_back(
            mean, named, units, [delta]
        )
