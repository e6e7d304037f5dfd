"""A worker that Ray started somewhere: task and data given once, then rounds and runs of clients, as bytes.

What an actor is made of (task, data, method, channel) comes from the driver's process by Ray's own means, which run
whatever a driver says; that is what a Ray cluster is. What passes in a round, both ways, is what passes between
processes of one machine: messages of a fixed form, and records by the codec.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from atoll import __version__
from atoll.codec import OWN, Header, Layout, outline
from atoll.contract import Channel, Job, Method
from atoll.data import FederatedData
from atoll.engines import errands
from atoll.engines.batched import Batched
from atoll.engines.errands import in_turn
from atoll.engines.sequential import Sequential
from atoll.task import Task
from atoll.tensors import Record, to_device

__all__ = ["Actor", "Grouped", "Octets", "alike", "packed", "read", "unpacked", "written"]

Octets = NDArray[np.uint8]

GPU = torch.device("cuda:0")
"""Ray shows an actor no other."""

_ALIGN = 64  # as torch aligns its own memory, and Ray what it stores: sums can depend on that
_READ_ONLY = "The given NumPy array is not writable"
_header = msgspec.msgpack.Decoder(Header)


class Actor:
    """Does runs of clients with one thread, or on its share of a GPU."""

    def __init__(self, task: Task, data: FederatedData, gpu: bool, numbers: torch.dtype) -> None:
        torch.set_num_threads(1)
        torch.set_default_dtype(numbers)
        warnings.filterwarnings("ignore", _READ_ONLY)  # what clients have is only read
        self.device = GPU if gpu else torch.device("cpu")
        task.hold(self.device)
        self.runner = None if gpu else Sequential(task, data, self.device)
        self.work = Grouped(task, data, self.device) if self.runner is None else partial(in_turn, self.runner)
        self.hired: tuple[Method, Channel | None] | None = None
        self.setting: tuple[errands.Setting, Record] | None = None

    def hello(self) -> dict[str, str]:
        """What must be the same everywhere."""
        return alike()

    def hire(self, method: Method, channel: Channel | None) -> None:
        """Whose client half is run from now on."""
        self.hired = method, channel

    def open(self, message: bytes, shared: Octets) -> None:
        """A round begins."""
        setting = errands.orders.decode(message)
        assert isinstance(setting, errands.Setting)
        if self.runner is not None:
            self.runner.padded = setting.padded
        self.setting = setting, to_device(read(setting.shared, shared), self.device)

    def run(self, message: bytes, own: Octets) -> tuple[bytes, Octets]:
        """Do a run of clients."""
        errand = errands.orders.decode(message)
        assert isinstance(errand, errands.Errand) and self.hired is not None and self.setting is not None
        mine, sent = to_device(read(errand.own, own), self.device), np.empty(0, np.uint8)
        job = errands.job(*self.hired, *self.setting, errand, mine)

        def write(record: Record) -> Header:
            nonlocal sent
            header, sent = written(record)
            return header

        result = errands.performed(self.work, job, errand, mine, write)
        return errands.encode(result), sent


class Grouped:
    """The clients of a run together, for GPUs."""

    def __init__(self, task: Task, data: FederatedData, device: torch.device) -> None:
        self.engine = Batched(task, data, device)

    def __call__(self, job: Job, memories: Mapping[int, Record]) -> errands.Came:
        mine = _Memories(memories)
        part, outcomes = self.engine.run(job, mine)
        return part, outcomes, mine.after


class _Memories:
    """Those of a run of clients, before and after."""

    def __init__(self, before: Mapping[int, Record]) -> None:
        self.before, self.after = before, dict[int, Record]()

    def get(self, client: int) -> Record | None:
        return self.before.get(client)

    def put(self, client: int, memory: Record) -> None:
        self.after[client] = memory


def alike() -> dict[str, str]:
    """What decides bits beside the work itself: versions, and which instructions torch uses."""
    return {
        "atoll": __version__,
        "torch": torch.__version__.partition("+")[0],
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


# --- records as bytes -----------------------------------------------------------------------------------------------


def written(record: Record) -> tuple[Header, Octets]:
    """The header of a record, and its tensors as bytes.  Raises CodecError."""
    header, tensors = outline(record)
    layout = Layout(header, OWN, _ALIGN)
    octets = np.empty(layout.size, np.uint8)
    layout.write(octets, tensors)
    return header, octets


def read(header: Header, octets: Octets) -> Record:
    """The record that was written so, its tensors its own.  Raises CodecError."""
    return Layout(header, OWN, _ALIGN).copied(memoryview(octets), 0)  # type: ignore[arg-type]


def packed(tensor: torch.Tensor) -> tuple[bytes, Octets]:
    """A tensor of data as it lies in Ray's store, once a machine."""
    header, octets = written(Record(it=tensor.detach()))
    return errands.encode(header), octets


def unpacked(stored: tuple[bytes, Octets]) -> torch.Tensor:
    """The tensor, where it lies: nothing is copied, and nothing may be written."""
    message, octets = stored
    layout = Layout(_header.decode(message), OWN, _ALIGN)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", _READ_ONLY)
        found: torch.Tensor = layout.view(octets).it
    return found
