"""Which device each worker works on, and by what workers speak to each other.

Nothing here starts CUDA in the process that asks: workers are forked, and a forked process cannot use CUDA that its
parent has started.
"""

from __future__ import annotations

import os

import torch

from atoll.distributed.strategy import Strategy
from atoll.errors import ConfigError, EngineError

__all__ = ["backend", "check", "check_forks", "device_of", "each_its_own", "gpus", "mine"]


def gpus() -> int:
    """How many there are on this machine that may be used."""
    # Asked of the driver's library: is_available() starts CUDA, unless this is set.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    return torch.cuda.device_count()


def device_of(name: str) -> torch.device:
    """What "auto", "cpu", "cuda" or "cuda:1" stands for.

    Without a number each worker has a GPU of its own; with one all of them share that GPU.

    Raises ConfigError where there is none such.
    """
    if name == "auto":
        return torch.device("cuda" if gpus() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r} cannot be used", hint="known: auto, cpu, cuda, cuda:0 ...")
    if device.type == "cuda" and (device.index or 0) >= gpus():
        found = f"there are {gpus()} GPUs" if gpus() else "torch finds no GPU"
        raise ConfigError(f"device {name!r} cannot be used: {found}", hint="try auto or cpu")
    return device


def each_its_own(device: torch.device) -> bool:
    """Whether each worker has a GPU for itself."""
    return device.type == "cuda" and device.index is None


def check(device: torch.device, workers: int, strategy: Strategy) -> None:
    """Raises ConfigError where so many workers of this machine have no devices, or cannot share the one they have."""
    if strategy.apart and device.index is not None and workers > 1:
        raise ConfigError(
            f"strategy = {strategy.text!r} needs a GPU for each worker, and device = {device} gives {workers} one",
            hint="device=cuda gives each its own; ddp, ring, zero1, local and diloco can share",
        )
    if each_its_own(device) and workers > gpus():
        raise ConfigError(
            f"workers = {workers}, and there are {gpus()} GPUs",
            hint="device=cuda:0 lets all of them share one; device=cpu needs none",
        )


def check_forks(device: torch.device) -> None:
    """Raises EngineError where processes forked from this one could not use the device."""
    if device.type == "cuda" and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise EngineError(
            "this process has used CUDA, and workers forked from it cannot",
            hint="train first, or start the workers by `atoll train` or torchrun",
        )


def mine(device: torch.device, rank: int) -> torch.device:
    """The device of one worker, which becomes its process's own."""
    if each_its_own(device):
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", rank)))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def backend(device: torch.device) -> str:
    """NCCL between GPUs; it refuses two workers on one, who speak by gloo."""
    return "cpu:gloo,cuda:nccl" if each_its_own(device) else "gloo"
