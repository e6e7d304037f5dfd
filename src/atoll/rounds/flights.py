"""Orders that are under way on the virtual clock: who was sent what, when the reply comes, and the reply itself.

Work is computed when its reply is wanted, not when it is sent out: all that is under way from one step of the server is
computed in one job, the first time that one of it is wanted. What a client remembers changes when its reply is taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from atoll.contract import Channel, Job, Memories, Method, Outcome, Reply, Work
from atoll.engines import Engine
from atoll.tensors import Record, leaves

__all__ = ["Done", "Flight", "computed", "landed", "launched", "merged", "of_records", "to_records"]

Weights = Mapping[int, float] | NDArray[np.float64] | None


@dataclass(frozen=True)
class Done:
    """What the work of one client came to; `reply` is None where it was refused."""

    outcome: Outcome
    reply: Reply | None
    memory: Record | None


@dataclass(frozen=True)
class Flight:
    """One order under way.

    `number` is the round that it belongs to, `began` and `due` are virtual seconds; at `due` the reply is there, or
    the work breaks off (`broken`). `download`, `compute`, `upload` and `latency` are seconds, `energy` joules up to
    `due`. `job` holds what it was sent, together with all others of the same step of the server. `done` is there once
    computed.
    """

    client: int
    number: int
    began: float
    due: float
    broken: bool
    download: float
    compute: float
    upload: float
    latency: float
    energy: float
    job: Job
    done: Done | None = None

    @property
    def order(self) -> tuple[float, int, int]:
        """Flights land in this order: nothing but the seed decides it."""
        return self.due, self.number, self.client

    @property
    def seconds(self) -> float:
        """How long the client is busy with it."""
        return self.due - self.began


def launched(flights: Sequence[Flight], new: Sequence[Flight]) -> list[Flight]:
    """The flights with new ones, whose jobs are put together with those not yet computed that were sent the same."""
    if not new:
        return list(flights)
    job = new[0].job
    for other in {id(f.job): f.job for f in flights if f.done is None}.values():
        both = merged(other, job)
        if both is not None:
            there = [replace(f, job=both) if f.job is other else f for f in flights]
            return [*there, *(replace(f, job=both) for f in new)]
    return [*flights, *new]


def merged(one: Job, other: Job) -> Job | None:
    """A job for the clients of both, or None where they were not sent the same (but for what is only theirs)."""
    first, second = one.work, other.work
    alike = one.round == other.round and (first.program, first.reduction) == (
        second.program,
        second.reduction,
    )
    if not alike or not _same(first.shared, second.shared) or not _same(one.expected, other.expected):
        return None
    work = replace(
        first,
        own={**first.own, **second.own},
        forms={**first.forms, **second.forms},
        passes={**first.passes, **second.passes},
    )
    clients = sorted({*one.clients, *other.clients})
    return replace(
        one,
        work=work,
        clients=clients,
        cohort=len(clients),
        epochs={**one.epochs, **other.epochs},
        limits={**one.limits, **other.limits},
        weights=_both(one.weights, other.weights),
    )


def _both(one: Weights, other: Weights) -> Weights:
    """What clients of two jobs count for; those of a whole population are the same for both."""
    return {**one, **other} if isinstance(one, Mapping) and isinstance(other, Mapping) else one


def _same(one: Record, other: Record) -> bool:
    """Whether two payloads are one: the same tensors, or equal small ones."""
    left, right = leaves(one), leaves(other)
    return len(left) == len(right) and all(
        a is b or (a.shape == b.shape and a.numel() <= 1 and bool((a == b).all()))
        for a, b in zip(left, right, strict=True)
    )


class _Aside:
    """Memories that are written beside the store, to be put there when the reply is taken."""

    def __init__(self, store: Memories) -> None:
        self.store, self.new = store, dict[int, Record]()

    def get(self, client: int) -> Record | None:
        return self.store.get(client)

    def put(self, client: int, memory: Record) -> None:
        self.new[client] = memory


def computed(flights: Sequence[Flight], job: Job, engine: Engine, memories: Memories) -> list[Flight]:
    """The flights, those of this job with what their work came to. Work that breaks off is not done."""
    asked = sorted(f.client for f in flights if f.job is job and f.done is None and not f.broken)
    aside = _Aside(memories)
    work = replace(job.work, reduction="each")
    reducer, outcomes = engine.run(replace(job, work=work, clients=asked, cohort=len(asked)), aside)
    by_client = {outcome.client: outcome for outcome in outcomes}
    found = reducer.result()
    replies = {} if found is None else dict(zip(found.clients, found.each, strict=True))

    def done(client: int) -> Done:
        outcome = replace(by_client[client], begun=math.nan, ended=math.nan)  # not when its reply comes
        return Done(outcome, replies.get(client), aside.new.get(client))

    return [
        replace(f, done=done(f.client)) if f.job is job and f.done is None and not f.broken else f
        for f in flights
    ]


def landed(flight: Flight, memories: Memories) -> None:
    """Take over what the client remembers after this work."""
    assert flight.done is not None
    if flight.done.memory is not None and flight.done.reply is not None:
        memories.put(flight.client, flight.done.memory)


# --- as records, for checkpoints ------------------------------------------------------------------------------------

_PLAIN = ("began", "due", "download", "compute", "upload", "latency", "energy")


def to_records(flights: Sequence[Flight]) -> Record:
    """Flights as what a codec writes: every job once, and by client what differs."""
    jobs = {id(f.job): f.job for f in flights}
    number = {key: at for at, key in enumerate(jobs)}
    rows = {}
    for at, f in enumerate(flights):
        fields: dict[str, Any] = {name: getattr(f, name) for name in _PLAIN}
        fields |= {"client": f.client, "number": f.number, "broken": int(f.broken), "job": number[id(f.job)]}
        if f.done is not None:
            fields["done"] = _done_record(f.done)
        rows[str(at)] = Record(fields)
    return Record(
        jobs=Record({str(number[key]): _job_record(job) for key, job in jobs.items()}), flights=Record(rows)
    )


def of_records(found: Record, method: Method, channel: Channel | None, seed: int) -> list[Flight]:
    """The inverse of `to_records`."""
    jobs = {name: _job(record, method, channel, seed) for name, record in found.jobs.items()}
    made = []
    for at in sorted(found.flights, key=int):
        row = found.flights[at]
        done = _done(row.done, row.client) if "done" in row else None
        made.append(
            Flight(
                client=row.client,
                number=row.number,
                broken=bool(row.broken),
                job=jobs[str(row.job)],
                done=done,
                **{name: row[name] for name in _PLAIN},
            )
        )
    return made


def _job_record(job: Job) -> Record:
    work = job.work
    return Record(
        shared=work.shared,
        travels=work.travels or Record(),
        own=_by_client(work.own),
        forms=_by_client(work.forms),
        expected=job.expected,
        passes=_pairs(work.passes),
        epochs=_pairs(job.epochs),
        limits=_pairs(job.limits),
        clients=torch.tensor(list(job.clients), dtype=torch.int64),
        program=work.program,
        reduction=work.reduction or "",
        round=job.round,
    )


def _job(found: Record, method: Method, channel: Channel | None, seed: int) -> Job:
    work = Work(
        found.shared, _of_client(found.own), found.program, found.reduction or None, _of_client(found.forms),
        _of_pairs(found.passes), found.get("travels") or None,
    )  # fmt: skip
    clients = found.clients.tolist()
    return Job(
        method, work, clients, found.round, seed, found.expected, _of_pairs(found.epochs), cohort=len(clients),
        channel=channel, limits=_of_pairs(found.limits),
    )  # fmt: skip


def _done_record(done: Done) -> Record:
    o = done.outcome
    fields: dict[str, Any] = {
        "weight": o.weight, "nbytes": o.nbytes, "refused": o.refused or "", "metrics": Record(_tensors(o.metrics)),
    }  # fmt: skip
    more = {"reply": done.reply and done.reply.to_record(), "memory": done.memory, "probe": o.probe}
    return Record({**fields, **{name: value for name, value in more.items() if value is not None}})


def _done(found: Record, client: int) -> Done:
    metrics = {name: value.tolist() for name, value in found.metrics.items()}
    outcome = Outcome(
        client,
        found.weight,
        metrics,
        found.nbytes,
        found.refused or None,
        math.nan,
        math.nan,
        found.get("probe"),
    )
    reply = Reply.of_record(found.reply) if "reply" in found else None
    return Done(outcome, reply, found.get("memory"))


def _tensors(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in metrics.items()}


def _by_client(found: Mapping[int, Record]) -> Record:
    return Record({str(client): value for client, value in found.items()})


def _of_client(found: Record) -> dict[int, Record]:
    return {int(client): value for client, value in found.items()}


def _pairs(found: Mapping[int, int]) -> torch.Tensor:
    return torch.tensor(sorted(found.items()), dtype=torch.int64).reshape(-1, 2)


def _of_pairs(found: torch.Tensor) -> dict[int, int]:
    return dict(found.tolist())
