"""A round's job with the steps that a rule wishes for: one place for rounds with a clock and without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from atoll.contract import Job, Plan
from atoll.data import FederatedData
from atoll.rounds.adapting.rule import Away, Numbers, Seen

__all__ = ["asked", "limited", "planned", "seen"]


def planned(job: Job, plan: Plan, client: int, count: int) -> tuple[int, int]:
    """(local steps that a job plans for a client of so many samples, samples in a full one); `plan`: its program's."""
    size = min(plan.batch_size or count, count)
    if not size:
        return 0, 0
    passes = job.passes(client)
    each = -(-count // size)
    return plan.steps if plan.steps is not None else (plan.epochs if passes is None else passes) * each, size


def seen(
    job: Job,
    data: FederatedData,
    *,
    fixed: Numbers | None = None,
    compute: Numbers | None = None,
    deadline: float = np.inf,
    time: float = 0.0,
    away: Sequence[Away] = (),
    uploads: Numbers | None = None,
) -> Seen:
    """What rules may see of a job: `fixed` seconds and those of its steps (`compute`), [K]; none without a clock."""
    sizes = [data.size(client) for client in job.clients]
    plan = job.program.plan()
    found = [planned(job, plan, client, count) for client, count in zip(job.clients, sizes, strict=True)]
    steps = np.array([each for each, _ in found], np.int64)
    epoch = [-(-count // size) if size else 0 for count, (_, size) in zip(sizes, found, strict=True)]
    none = np.zeros(len(steps))
    return Seen(
        job.round,
        np.asarray(job.clients, np.int64),
        none if fixed is None else fixed,
        none if compute is None else compute / np.maximum(steps, 1),
        steps,
        np.array(epoch, np.int64),
        deadline,
        time,
        away,
        uploads,
    )


def asked(job: Job, client: int, count: int) -> tuple[int, int]:
    """(local steps that a client of so many samples was asked for, those that were planned)."""
    steps, _ = planned(job, job.program.plan(), client, count)
    return min(steps, job.limits.get(client, steps)), steps


def limited(job: Job, limits: Mapping[int, int]) -> Job:
    """The job with clients that stop after so many steps; those that have time for none are not asked."""
    if not limits:
        return job
    return replace(job, clients=[k for k in job.clients if limits.get(k) != 0], limits=limits)
