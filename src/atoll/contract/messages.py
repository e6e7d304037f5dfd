"""What passes between the halves of a method: what the server knows and sends, what a client sees and answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atoll.parts import Inputs
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors, nbytes

__all__ = ["ClientData", "Model", "Plan", "Population", "Reply", "Work", "as_written"]

T = TypeVar("T")

Model = tuple[Tensors, Tensors]
"""Parameters and buffers."""


def as_written(function: Callable[..., T], *arguments: object) -> T:
    """function(*arguments): the plain twin of what engines make of `Population.quick`."""
    return function(*arguments)


class Population(NamedTuple):
    """What the server knows before it has met a client.

    `clients` is how many there are. `tasks` are their architectures (see `atoll.task.task_of`). `example` is one input
    [1, ...], `public` are inputs [n, ...] that everybody knows, without labels, or None. `seed` is the run's: whatever
    the server draws has an address that begins with it. `weights` are what clients count for in averages [clients],
    with the mean 1, where that is given (`atoll.data.FederatedData.weigh`), else None.

    `quick(function, *arguments)` is what a server calls that learns in many steps: function(*arguments), which may be
    captured, as clients' steps are. The function is pure, arguments and results are pytrees; leaves that are no
    tensors are constants, and those that compare equal make no difference. Gradients are taken inside the function.

    `names` are the clients' names in the order of their numbers, where they are known.
    """

    clients: int
    tasks: tuple[Task, ...] = ()
    example: Inputs | None = None
    public: Inputs | None = None
    seed: int = 0
    weights: NDArray[np.float64] | None = None
    quick: Callable[..., Any] = as_written
    names: Sequence[str] = ()


class Plan(NamedTuple):
    """How a client reads its training data: `epochs` passes, or `steps` batches if given; `batch_size` None = all.

    With `poisson` a batch has each sample with the chance batch_size / samples, whatever others have: there are as many
    batches, and `batch_size` is what they hold on average.
    """

    epochs: int = 0
    steps: int | None = None
    batch_size: int | None = None
    poisson: bool = False


class ClientData(NamedTuple):
    """A client's data, all of it, for `begin` and `finish`. Splits that the program does not name in `reads` are None.

    `count` is the number of training samples, a scalar. `key` is the client's random stream, an int64 scalar, another
    one in `begin` than in `finish` (see `atoll.seeds.fold`). A split is a `Batch`, padded where `mask` is 0. `public`
    is what everybody knows; its targets mean nothing.
    """

    count: Tensor  # type: ignore[assignment]  # a tuple's own `count` is of no use here
    key: Tensor
    train: Batch | None = None
    validation: Batch | None = None
    test: Batch | None = None
    public: Batch | None = None


class Reply(NamedTuple):
    """What a client sends: named values, the weight they carry in a mean, and sums to be pooled into metrics.

    Where clients are given weights (`Job.weights`), the server puts these in the place of what a reply says.
    """

    values: Record
    weight: Tensor
    metrics: Record

    def to_record(self) -> Record:
        """As what a codec writes."""
        return Record(sent=self.values, weight=self.weight, metrics=self.metrics)

    @staticmethod
    def of_record(record: Record) -> Reply:
        """The inverse of `to_record`."""
        return Reply(record.sent, record.weight, record.metrics)


@dataclass(frozen=True)
class Work:
    """What the server sends out for a round.

    `shared` goes to every client of the cohort, `own[client]` only to that one; the client receives both in one
    record. `program` names the client program to run; "personal on validation" is the program "personal" with
    validation data in the place of test data (see `OnValidation`).
    """

    shared: Record
    own: Mapping[int, Record] = field(default_factory=dict)
    program: str = "train"
    reduction: Literal["mean", "each"] | None = None
    """What the server needs of the replies; None means what the method says."""

    forms: Mapping[int, Record] = field(default_factory=dict)
    """The form that replies of these clients must have, where it is not what the method expects of all."""

    passes: Mapping[int, int] = field(default_factory=dict)
    """Passes over their data that these clients make beyond what the program plans."""

    travels: Record | None = None
    """What is sent of `shared`, where it travels packed (`atoll.channel.Down`): `shared` is then what comes of it."""

    differs: Mapping[int, tuple[str, Record]] = field(default_factory=dict)
    """What is sent to these clients in the place of `shared`, which they know but for this: the name under which they
    keep what it is told from, and how it differs (`atoll.channel.Down`)."""

    keep: str | None = None
    """The name under which clients keep what they received, where later broadcasts are told from it."""

    lengths: Mapping[int, int] = field(default_factory=dict)
    """Bytes in which what is shared travels to these clients, where they are not those of what is sent to all."""

    links: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    """Bytes that these clients hear from others and send to others, in the place of what a server sends and gets."""

    def received(self, client: int) -> Record:
        return self.shared.replace(**self.own[client]) if client in self.own else self.shared

    def codec(self, client: int) -> int:
        """Which of a channel's codecs this client's update goes through, where it has several (see `choosing`)."""
        return int(self.own[client]["codec"]) if client in self.own and "codec" in self.own[client] else 0

    def choosing(self, codecs: Mapping[int, int]) -> Work:
        """The work in which clients are told their codecs."""
        told = {client: Record(codec=torch.tensor(which)) for client, which in codecs.items()}
        own = {client: self.own.get(client, Record()).replace(**each) for client, each in told.items()}
        return replace(self, own={**self.own, **own})

    def nbytes(self, client: int) -> int:
        """Bytes that this client downloads."""
        found = self.lengths.get(client, self._alike)
        if client not in self.own:
            return found
        own = self.own[client]
        return found + nbytes(own) - sum(nbytes(self.shared[name]) for name in own if name in self.shared)

    def nbytes_of(self, clients: Sequence[int]) -> int:
        """Bytes that these clients download together."""
        return sum(map(self.nbytes, clients))

    @cached_property
    def _alike(self) -> int:
        """Bytes of what is sent to all."""
        return nbytes(self.shared if self.travels is None else self.travels)
