"""The devices of all clients, as functions of the seed and a client's number: nothing is made for who is not asked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import draws
from .draws import Floats, Ints
from .parts import Exponential, Part
from .presence import Presence, There
from .profiles import MEDIANS, Profiles, Spans

__all__ = ["Devices"]


class Devices:
    """What clients' devices can do, and when they are there.

    Clients are int64 arrays of positions, in any order; what is said of one does not depend on who else is asked, nor
    on what was asked before. Times are seconds since the start of the run, 0 or more and finite (else ValueError).
    `devices` makes these from a text.

    Args:
        text: as they were given.
        seed: the run's; draws who has which device.
        parts: say what devices can do; a field of which no part says anything is that of `MEDIANS`.
        presence: when they are there; always, without it.
    """

    def __init__(self, text: str, seed: int, parts: Sequence[Part], presence: Presence | None = None) -> None:
        self.text, self.seed = text, seed
        self._parts, self._presence = tuple(parts), presence
        self._mean = next((each.mean for each in parts if isinstance(each, Exponential)), None)

    def __repr__(self) -> str:
        return f"Devices({self.text!r})"

    @property
    def always(self) -> bool:
        """Whether every device is always there."""
        return self._presence is None

    @property
    def limited(self) -> bool:
        """Whether some device may have too little memory."""
        return any("memory" in each.says for each in self._parts)

    def profiles(self, clients: Ints) -> Profiles:
        """The devices of these clients, fields of shape [K]."""
        clients = np.asarray(clients, dtype=np.int64)
        said: dict[str, Floats] = {}
        for part in self._parts:
            said |= part.values(self.seed, clients)
        one = np.ones(len(clients))
        return Profiles(
            **{name: said[name] if name in said else one * median for name, median in MEDIANS.items()}
        )

    def available(self, clients: Ints, time: float) -> NDArray[np.bool_]:
        """Which of these clients are there at `time`; shape [K]."""
        return self._look(clients, time).now

    def until(self, clients: Ints, time: float) -> Floats:
        """When each that is there at `time` goes away (inf: never); `time` for those that are not there."""
        there = self._look(clients, time)
        return np.where(there.now, there.change, time)

    def returns(self, clients: Ints, time: float) -> Floats:
        """When each is there again (inf: never); `time` for those that are there."""
        there = self._look(clients, time)
        return np.where(there.now, time, there.change)

    def spans(
        self,
        clients: Ints,
        *,
        samples: ArrayLike,
        down: ArrayLike,
        up: ArrayLike,
        time: float,
        seed: int,
        number: int,
        nth: int | Ints = 0,
    ) -> Spans:
        """How long an order takes each client that gets one at `time`, and when it breaks off.

        latency + down / download + samples / speed + up / upload seconds. An order fails with the device's probability,
        at a moment that is uniform over that time; and it breaks off when the device goes away.

        Args:
            samples: that training goes through: of an epoch, times epochs. [K], or one number for all, as are
            down, up: bytes to receive and to send.
            time: of the order. Whoever is not there breaks off at once.
            seed, number, nth: the run's seed, the round, which of the client's orders in it (one number, or [K]): the
                address of its luck.
        """
        clients = np.asarray(clients, dtype=np.int64)
        device = self.profiles(clients)
        work = [np.asarray(each, dtype=np.float64) for each in (down, samples, up)]
        zero = np.zeros(len(clients))
        if self._mean is None:
            latency = device.latency
            download, compute, upload = (
                each / rate
                for each, rate in zip(work, (device.download, device.speed, device.upload), strict=True)
            )
        else:
            latency = download = upload = zero
            compute = self._mean * draws.exponential(draws.start(seed, "device time", number), clients, nth)
        broken = np.full(len(clients), np.inf)
        spans = Spans(download, compute, upload, latency, broken, device.watts, device.radio)
        total = spans.total
        if device.failure.any():
            fails = draws.uniform(draws.start(seed, "device failure", number), clients, nth) < device.failure
            moment = draws.uniform(draws.start(seed, "device failure moment", number), clients, nth)
            broken = np.where(fails, moment * total, broken)
        if self._presence is not None:
            left = self.until(clients, time) - time
            broken = np.minimum(broken, np.where(left < total, left, np.inf))
        return spans._replace(broken=broken)

    def _look(self, clients: Ints, time: float) -> There:
        clients = np.asarray(clients, dtype=np.int64)
        if not 0 <= time < np.inf:
            raise ValueError(f"nobody can be looked at at {time} s")
        if self._presence is None:
            return There(np.ones(len(clients), dtype=np.bool_), np.full(len(clients), np.inf))
        return self._presence.look(self.seed, clients, float(time))
