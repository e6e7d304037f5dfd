"""What passes between a pool and its workers: the round, runs of clients, what they came to; and how one is done.

Plain numbers and text travel in messages of a fixed form; tensors in records, whose headers are in the messages.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from atoll.codec import Header
from atoll.contract import Channel, Job, Memories, Method, Outcome, Reducer, Work, outcome, weighed
from atoll.engines.pool import Done
from atoll.engines.sequential import Sequential
from atoll.errors import AtollError, EngineError, RunError
from atoll.tensors import Record

__all__ = [
    "Came",
    "Errand",
    "Result",
    "Setting",
    "done",
    "encode",
    "failure",
    "given",
    "in_turn",
    "job",
    "orders",
    "performed",
    "results",
]


class Setting(msgspec.Struct, tag=True):
    """To a worker: what holds for the whole round."""

    round: int
    seed: int
    program: str
    reduction: str | None
    shared: Header
    epochs: dict[int, int]
    cohort: int
    padded: bool
    weights: dict[int, float] | None = None
    limits: dict[int, int] = {}
    factors: dict[int, float] = {}

    @staticmethod
    def of(job: Job, padded: bool, write: Callable[[Record], Header]) -> Setting:
        """The round of a job; `write` puts a record where the workers read it."""
        work = job.work
        return Setting(
            job.round,
            job.seed,
            work.program,
            work.reduction,
            write(Record(shared=work.shared, expected=job.expected)),
            {k: passes for k in job.clients if (passes := job.passes(k)) is not None},
            job.cohort,
            padded,
            job.weights if job.weights is None else {k: float(job.weights[k]) for k in job.clients},
            dict(job.limits),
            dict(job.factors),
        )


class Errand(msgspec.Struct, tag=True):
    """To a worker: a run of clients, and where what is only theirs lies."""

    run: int
    slot: int
    clients: list[int]
    own: Header


class Result(msgspec.Struct):
    """From a worker: what a run of clients came to, and when that was by the worker's clock."""

    run: int
    slot: int
    result: Header = []
    outcomes: list[tuple[int, float, dict[str, Any], int, str | None, float, float]] = []
    error: str = ""
    hint: str | None = None
    engine: bool = False
    now: float = 0.0


encode = msgspec.msgpack.encode
orders = msgspec.msgpack.Decoder(Setting | Errand)
results = msgspec.msgpack.Decoder(Result)


# --- the pool's side ------------------------------------------------------------------------------------------------


def given(clients: Sequence[int], job: Job, memories: Memories) -> Record:
    """What is only these clients'."""
    remembered = {client: memories.get(client) for client in clients}
    return Record(
        memories=_by_client({k: memory for k, memory in remembered.items() if memory is not None}),
        own=_by_client({k: job.work.own[k] for k in clients if k in job.work.own}),
        forms=_by_client({k: job.work.forms[k] for k in clients if k in job.work.forms}),
    )


def done(worker: int, result: Result, job: Job, found: Record, late: float = 0.0) -> Done:
    """What a worker came back with; its record must own its tensors.

    `late` is what its clock is behind. Raises what the worker met.
    """
    part = job.reducer()
    part.take(found.part)
    probes = _of_clients(found.probes)
    outcomes = [
        Outcome(client, weight, metrics, nbytes, refused, begun + late, ended + late, probes.get(client))
        for client, weight, metrics, nbytes, refused, begun, ended in result.outcomes
    ]
    return Done(worker, result.run, part, outcomes, _of_clients(found.memories))


def failure(result: Result) -> RunError:
    """The error of a worker's."""
    return (EngineError if result.engine else RunError)(result.error, hint=result.hint)


# --- the worker's side ----------------------------------------------------------------------------------------------


def job(
    method: Method, channel: Channel | None, setting: Setting, both: Record, errand: Errand, own: Record
) -> Job:
    """The job of a run of clients; `both` is what the setting's header describes, `own` what the errand's does."""
    work = Work(
        both.shared, _of_clients(own.own), setting.program, setting.reduction,  # type: ignore[arg-type]
        _of_clients(own.forms),
    )  # fmt: skip
    return Job(
        method, work, errand.clients, setting.round, setting.seed, both.expected, setting.epochs,
        cohort=setting.cohort, channel=channel, weights=setting.weights, limits=setting.limits,
        factors=setting.factors,
    )  # fmt: skip


Came = tuple[Reducer, list[Outcome], Mapping[int, Record]]
"""What a run of clients came to: the reducer that took the replies, outcomes, and what clients remember from now on."""


def in_turn(runner: Sequential, job: Job, memories: Mapping[int, Record]) -> Came:
    """The job's clients, one after the other."""
    part, program, after, outcomes = job.reducer(), job.program, {}, []
    for client in job.clients:
        begun = time.perf_counter()
        answer, memory = runner.answer(
            job.order(client), program, memories.get(client), job.changed, job.cohort
        )
        answer = weighed(answer, job)
        found = outcome(answer, job, begun, time.perf_counter())
        outcomes.append(found)
        if not found.refused:
            part.add(client, answer.reply)
            if memory:
                after[client] = memory
    return part, outcomes, after


def performed(
    work: Callable[[Job, Mapping[int, Record]], Came],
    job: Job,
    errand: Errand,
    own: Record,
    write: Callable[[Record], Header],
) -> Result:
    """A run of clients, done by `work`; `write` puts a record where the pool reads it."""
    try:
        part, outcomes, after = work(job, _of_clients(own.memories))
    except AtollError as error:
        return Result(
            errand.run,
            errand.slot,
            error=error.message,
            hint=error.hint,
            engine=isinstance(error, EngineError),
        )
    except Exception as error:  # not a client's work, but what is around it
        return Result(errand.run, errand.slot, error=f"{type(error).__name__}: {error}")
    probes = {o.client: o.probe for o in outcomes if o.probe is not None}
    header = write(Record(part=part.held(), memories=_by_client(after), probes=_by_client(probes)))
    plain = [(o.client, o.weight, dict(o.metrics), o.nbytes, o.refused, o.begun, o.ended) for o in outcomes]
    return Result(errand.run, errand.slot, header, plain, now=time.perf_counter())


def _by_client(found: Mapping[int, Any]) -> Record:
    return Record({str(client): value for client, value in found.items()})


def _of_clients(found: Record) -> dict[int, Any]:
    return {int(client): value for client, value in found.items()}
