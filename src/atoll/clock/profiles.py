"""What a device can do, and how long an order takes it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .draws import Floats

__all__ = ["MEDIANS", "Profiles", "Spans"]


class Profiles(NamedTuple):
    """Devices of K clients; each field is a float64 array of shape [K]."""

    speed: Floats
    """Samples a second that training goes through, forward and backward."""
    download: Floats
    """Bytes a second."""
    upload: Floats
    """Bytes a second."""
    latency: Floats
    """Seconds of waiting that every order costs besides: a round trip."""
    memory: Floats
    """Bytes; inf is no limit."""
    failure: Floats
    """The probability that an order is begun and never answered."""
    watts: Floats
    """Watts while computing."""
    radio: Floats
    """Watts while receiving and sending."""


MEDIANS: dict[str, float] = {
    "speed": 100.0,
    "download": 1e6,
    "upload": 0.25e6,
    "latency": 0.05,
    "memory": np.inf,
    "failure": 0.0,
    "watts": 2.0,
    "radio": 1.0,
}
"""What a device is like of which nothing else is said: a telephone on a middling mobile network."""


class Spans(NamedTuple):
    """One order each of K clients, in the order in which it goes on: wait, download, compute, upload.

    Fields are float64 arrays of shape [K], in seconds; `watts` and `radio` are those of the devices.
    """

    download: Floats
    compute: Floats
    upload: Floats
    latency: Floats
    broken: Floats
    """How long after the order the work broke off (a failure, or the device went away); inf: it did not."""
    watts: Floats
    radio: Floats

    @property
    def total(self) -> Floats:
        """Seconds from the order to its answer, were nothing to break it off."""
        return self.latency + self.download + self.compute + self.upload

    def energy(self, until: float | Floats = np.inf) -> Floats:
        """Joules that the device spends on the order, up to so many seconds after it (`broken`, a deadline).

        watts * compute + radio * (download + upload); to wait costs nothing.
        """
        left = np.maximum(until - self.latency, 0.0)
        spent = np.zeros_like(self.compute)
        for seconds, power in (
            (self.download, self.radio),
            (self.compute, self.watts),
            (self.upload, self.radio),
        ):
            spent = spent + power * np.minimum(seconds, left)
            left = np.maximum(left - seconds, 0.0)
        return spent
