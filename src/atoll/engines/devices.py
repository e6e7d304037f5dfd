"""What a device holds: samples that stay there, how many clients fit beside them, and their tensors in one stack."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from atoll.data import Samples
from atoll.tensors import Record, map_leaves, nbytes

__all__ = ["Resident", "Room", "stack"]

log = logging.getLogger("atoll.engines")

_UNKNOWN = 2 << 30  # bytes taken for the memory of a device that does not tell
_STATES = 64 << 20  # bytes of models in a group in main memory; a step makes about four times as much


def memory(device: torch.device) -> int:
    """Bytes of a device's memory, all of it: what is free changes as torch's allocator keeps what it has had."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return _UNKNOWN


class Resident:
    """Samples on a device, each copied there once: they are known by identity, and must not be changed."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._held: dict[int, tuple[Samples, Samples]] = {}

    def __call__(self, samples: Samples) -> Samples:
        """These samples there. They stay as long as this does."""
        known = self._held.get(id(samples.inputs))
        if known is None:
            there = Samples(samples.inputs.to(self.device), samples.targets.to(self.device))
            known = self._held[id(samples.inputs)] = (samples, there)
        return known[1]

    def within(self, samples: Samples, share: float = 0.125) -> Samples:
        """The same, but samples that would take more than this share of the memory are left where they are."""
        return self(samples) if nbytes(samples) <= share * self._memory else samples

    @cached_property
    def _memory(self) -> int:
        return memory(self.device)


class Room:
    """How many clients run together on a device.

    The sums of a round, and so its last bits, follow the width of groups. It must be a function of the device and of
    the work, and not of what else the memory holds at the moment. Only where that was too hopeful it is halved, for
    the rest of the run.

    On the processor a wide stack of large models would gain nothing: what batching saves there is calls, and an
    operation on megabytes is long beside its call. So they are fewer, in groups as even as can be.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.most: int | None = None
        """Clients that were found to fit, where more did not."""

    @cached_property
    def budget(self) -> int:
        """Bytes that the states of a group may take: half of the memory."""
        return memory(self.device) // 2

    def width(self, count: int, need: int, model: int) -> int:
        """Clients of `count` in a group.

        Args:
            need: bytes that each of them takes, about.
            model: bytes of the model among them.
        """
        limits = [count, self.budget // max(need, 1), *([] if self.most is None else [self.most])]
        if self.device.type == "cpu":
            limits.append(_STATES // max(model, 1))
        groups = -(-count // max(1, min(limits)))
        return -(-count // groups)

    def halve(self, count: int) -> None:
        """So many clients did not fit: from now on half as many are tried. Says so once."""
        if self.most is None:
            log.warning(
                "%d clients at once do not fit the memory of %s: smaller groups from now on",
                count,
                self.device,
            )
        self.most = count // 2
        torch.cuda.empty_cache()  # in pieces of the wrong size, it may be


def stack(records: Sequence[Record], device: torch.device) -> Record:
    """Records of clients as one, of stacked tensors [K, ...] on the device: what lies elsewhere is copied leaf by leaf.

    Those of new clients may be on the device already.
    """

    def join(*values: Any) -> Tensor:
        if not isinstance(values[0], Tensor):
            return torch.tensor(values, device=device)
        away = [at for at, value in enumerate(values) if value.device != device]
        if 0 < len(away) < len(values):
            come = torch.stack([values[at] for at in away]).to(device)
            parts = dict(zip(away, come.unbind(), strict=True))
            return torch.stack([parts.get(at, value) for at, value in enumerate(values)])
        return torch.stack(values).to(device)

    if not any(records):  # most methods remember nothing, and there may be thousands
        return records[0]
    stacked: Record = map_leaves(join, records[0], *records[1:])
    return stacked
