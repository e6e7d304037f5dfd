"""What orders would take on the clients' devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atoll.clock import Devices, Spans
from atoll.contract import Job
from atoll.data import FederatedData
from atoll.rounds.adapting import planned
from atoll.rounds.membership import Membership

__all__ = ["Timing"]

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Timing:
    """What orders take: bytes and samples of a job, on the devices.

    Samples are those that the program trains on; whatever else it looks at is taken to be free.
    """

    devices: Devices
    data: FederatedData
    seed: int
    membership: Membership

    def samples(self, job: Job, clients: Sequence[int]) -> Numbers:
        """Samples that these clients' orders train on, in all their steps."""
        plan, found = job.program.plan(), []
        for client in clients:
            count = self.data.size(client)
            steps, size = planned(job, plan, client, count)
            limit = job.limits.get(client)
            done = steps if limit is None else min(steps, limit)
            each = -(-count // size) if size else 1  # steps of a pass, the last of which may be short
            found.append(done // each * count + done % each * size)
        return np.array(found, np.float64)

    def spans(self, job: Job, clients: Sequence[int], time: float, nth: int = 0) -> Spans:
        """What these clients' orders take that go out at this time. Work of who leaves meanwhile breaks off."""
        links = job.work.links
        down = [links[k][0] if k in links else job.work.nbytes(k) for k in clients]
        known: dict[tuple[int, int], int] = {}
        up = []
        for k in clients:
            if k in links:
                up.append(links[k][1])
                continue
            what = id(job.form(k)), job.work.codec(k)
            if what not in known:
                known[what] = job.nbytes(job.form(k), k)
            up.append(known[what])
        who = np.asarray(clients, np.int64)
        found = self.devices.spans(
            who,
            samples=self.samples(job, clients),
            down=np.array(down, np.float64),
            up=np.array(up, np.float64),
            time=time,
            seed=self.seed,
            number=job.round,
            nth=nth,
        )
        total = found.total
        left = self.membership.departs(who, time + float(np.max(total, initial=0.0))) - time
        return found._replace(broken=np.minimum(found.broken, np.where(left < total, left, np.inf)))

    def expected(self, clients: NDArray[np.int64], samples: Numbers, model: int) -> Numbers:
        """Seconds that an order of so many samples and a model of so many bytes takes each of these clients, about."""
        found = self.devices.spans(
            clients, samples=samples, down=float(model), up=float(model), time=0.0, seed=self.seed, number=0
        )
        return np.asarray(found.total)
