"""Rules that give clients their devices: fields of `Profiles` as functions of (seed, client)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import draws
from .draws import Floats, Ints
from .profiles import MEDIANS

__all__ = ["CLASSES", "Classes", "Equal", "Exponential", "Failing", "LogNormal", "Part"]

_NETWORK = ("download", "upload")


class Part(ABC):
    """Says some fields of the devices; no two parts of a text say the same."""

    @property
    @abstractmethod
    def says(self) -> tuple[str, ...]:
        """The fields."""

    @abstractmethod
    def values(self, seed: int, clients: Ints) -> Mapping[str, Floats]:
        """These fields of these clients, each of shape [K]."""


@dataclass(frozen=True)
class Equal(Part):
    """Everybody has the median device."""

    says = ("speed", *_NETWORK)

    def values(self, seed: int, clients: Ints) -> Mapping[str, Floats]:
        return {name: np.full(len(clients), MEDIANS[name]) for name in self.says}


@dataclass(frozen=True)
class LogNormal(Part):
    """Speed is log-normal around the median, and so is bandwidth, independently; upload and download go together."""

    sigma: float
    bandwidth_sigma: float | None = None

    says = ("speed", *_NETWORK)

    def values(self, seed: int, clients: Ints) -> Mapping[str, Floats]:
        sigma = self.sigma if self.bandwidth_sigma is None else self.bandwidth_sigma
        speed = np.exp(self.sigma * draws.normal(draws.start(seed, "device speed"), clients))
        bandwidth = np.exp(sigma * draws.normal(draws.start(seed, "device bandwidth"), clients))
        return {"speed": MEDIANS["speed"] * speed} | {name: MEDIANS[name] * bandwidth for name in _NETWORK}


@dataclass(frozen=True)
class Exponential(Part):
    """Every order takes an exponential time of this mean, whatever the work: devices are told apart by nothing.

    `Devices.spans` draws the times, by client and order; nothing is downloaded or uploaded, and nobody waits.
    """

    mean: float = 1.0

    says = ("speed", *_NETWORK, "latency")

    def values(self, seed: int, clients: Ints) -> Mapping[str, Floats]:
        return {}


@dataclass(frozen=True)
class Failing(Part):
    """Every order fails with this probability."""

    rate: float

    says = ("failure",)

    def values(self, seed: int, clients: Ints) -> Mapping[str, Floats]:
        return {"failure": np.full(len(clients), self.rate)}


CLASSES: dict[str, dict[str, float]] = {
    "board": {"speed": 20, "download": 1e6, "upload": 0.5e6, "latency": 0.05, "memory": 1e9, "watts": 4},
    "phone": {"speed": 100, "download": 1e6, "upload": 0.25e6, "latency": 0.05, "memory": 4e9, "watts": 2},
    "laptop": {"speed": 500, "download": 5e6, "upload": 1e6, "latency": 0.03, "memory": 16e9, "watts": 30},
    "server": {"speed": 1e4, "download": 1e8, "upload": 1e8, "latency": 0.01, "memory": 64e9, "watts": 250},
}
"""Devices by class, in the units of `Profiles`. Round figures that lie far apart, not measurements."""


@dataclass(frozen=True)
class Classes(Part):
    """Each client's device is of a class, drawn with these shares; all of a class are the same."""

    shares: tuple[tuple[str, float], ...]

    says: ClassVar[tuple[str, ...]] = tuple(CLASSES["phone"])

    def values(self, seed: int, clients: Ints) -> Mapping[str, Floats]:
        edges = np.cumsum([share for _, share in self.shares])
        edges[-1] = 1.0  # what is drawn lies below
        drawn = draws.uniform(draws.start(seed, "device class"), clients)
        kind = np.searchsorted(edges, drawn, side="right")
        return {
            name: np.array([CLASSES[each][name] for each, _ in self.shares], dtype=np.float64)[kind]
            for name in self.says
        }
