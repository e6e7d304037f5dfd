"""Judging models three ways: the global model on the global test set, the global model on each client's test data,
and each client's own model on its test data. Sums are pooled over samples and divided once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from atoll import seeds
from atoll.contract import Job, Memories, Method, Replies, Work
from atoll.data import FederatedData, Samples
from atoll.engines import Engine
from atoll.machine import cores, threads
from atoll.measures import Figures, restored, shortened
from atoll.membership import Membership
from atoll.task import Task
from atoll.tensors import Record, Tensors

__all__ = ["Evaluation", "Judge", "Spread"]

Measures = dict[str, np.ndarray[Any, np.dtype[np.float64]]]
_ROWS = 2048
_WORTH_THREADS = 1 << 26  # multiplications in a batch from which more threads pay


@dataclass(frozen=True)
class Spread:
    """How a measure is distributed over clients (each client counts once), and its `pooled` mean over samples."""

    mean: float
    std: float
    min: float
    p10: float
    median: float
    p90: float
    max: float
    pooled: float
    clients: int

    @staticmethod
    def of(values: Sequence[float], weights: Sequence[float]) -> Spread:
        v = np.asarray(values, dtype=np.float64)
        low, p10, median, p90, high = (float(q) for q in np.percentile(v, [0, 10, 50, 90, 100]))
        pooled = float(np.average(v, weights=weights))
        return Spread(float(v.mean()), float(v.std()), low, p10, median, p90, high, pooled, len(v))


@dataclass(frozen=True)
class Evaluation:
    """Measures of one round.

    `overall` is the global model on the global test set, measure -> value. `clients` is the global model on each
    client's test data and `personal` each client's own model there, measure -> Spread; `personal` is empty unless the
    method personalises. `newcomers` is what clients that never took part in a round would use (see `Federation`).
    `each` holds the clients' values behind `clients` and `personal`: kind -> measure -> client -> value.
    """

    overall: Mapping[str, float] = field(default_factory=dict)
    clients: Mapping[str, Spread] = field(default_factory=dict)
    personal: Mapping[str, Spread] = field(default_factory=dict)
    newcomers: Mapping[str, Spread] = field(default_factory=dict)
    each: Mapping[str, Mapping[str, Mapping[int, float]]] = field(default_factory=dict)

    @property
    def measure(self) -> str:
        """The measure to look at first: accuracy where there is one, else the loss."""
        return Figures.main(vars(self))

    @property
    def own(self) -> Mapping[str, Spread]:
        """How clients fare with the model they would use: the personal one, or the global one."""
        return self.personal or self.clients

    def value(self, name: str) -> float | None:
        """A figure by name, such as "accuracy", "own" or "worst" (see `atoll.measures.Figures.value`), or None."""
        return self._figures.value(name)

    @property
    def score(self) -> float | None:
        """How good the models are that clients would use, or else the global one; the more the better."""
        return self._figures.score

    @property
    def _figures(self) -> Figures:
        return Figures(self.to_dict(), self.measure)

    def to_dict(self) -> dict[str, Any]:
        return {
            "overall": dict(self.overall),
            "clients": {name: dict(vars(spread)) for name, spread in self.clients.items()},
            "personal": {name: dict(vars(spread)) for name, spread in self.personal.items()},
            "newcomers": {name: dict(vars(spread)) for name, spread in self.newcomers.items()},
        }

    def to_event(self, judged: Sequence[int]) -> dict[str, Any]:
        """As plain values, with each client's values as lists in the order of `judged` (`docs/runs.md`)."""
        nan = float("nan")
        each = {
            kind: {
                name: shortened([values.get(client, nan) for client in judged])
                for name, values in found.items()
            }
            for kind, found in self.each.items()
        }
        return {**self.to_dict(), "each": each}

    @staticmethod
    def of_event(event: Mapping[str, Any], judged: Sequence[int]) -> Evaluation:
        """The inverse of `to_event`, but for the digits that each client's values lost."""
        each = {
            kind: {
                name: {k: v for k, v in zip(judged, restored(values), strict=True) if v == v}
                for name, values in found.items()
            }
            for kind, found in event["each"].items()
        }
        overall = dict(zip(event["overall"], restored(list(event["overall"].values())), strict=True))
        spreads = {
            kind: {name: Spread(**spread) for name, spread in event.get(kind, {}).items()}
            for kind in ("clients", "personal", "newcomers")
        }
        return Evaluation(overall, **spreads, each=each)


class Judge:
    """Evaluates a federation's models.

    Args:
        limit: at most this many clients are judged, the same ones every time (a sample drawn with the seed).
        membership: clients are judged while they are there, and newcomers apart, after `adapt` rounds of their own.
    """

    def __init__(
        self,
        task: Task,
        data: FederatedData,
        engine: Engine,
        device: torch.device,
        seed: int,
        limit: int | None,
        membership: Membership,
        adapt: int = 1,
    ) -> None:
        self.task, self.data, self.engine, self.device, self.seed = task, data, engine, device, seed
        self.limit, self.adapt, self.membership = limit, adapt, membership
        self.newcomers = [client for client in membership.newcomers if self._tested(client)]

    @cached_property
    def clients(self) -> list[int]:
        """The clients that are judged while they are there: those of the sample that have test data."""
        count, limit = len(self.data), self.limit
        if limit is None and self.data.pool("train") is None:
            limit = 100  # a generated population has no end of clients
        if limit is not None and limit < count:
            chosen = seeds.rng(self.seed, "judged").choice(count, limit, replace=False)
        else:
            chosen = np.arange(count)
        apart = set(self.newcomers)
        return [int(k) for k in np.sort(chosen) if int(k) not in apart and self._tested(int(k))]

    def _tested(self, client: int) -> bool:
        if self.data.pool("train") is not None:
            return self.data.rows(client, "test") is not None
        return self.data.samples(client, "test") is not None

    def __call__(self, method: Method, state: Record, memories: Memories, round: int) -> Evaluation:
        there = [client for client in self.clients if self.membership.there(client, round)]
        params, buffers = method.model(state)
        with threads(cores() if params.size() * _ROWS > _WORTH_THREADS else 1):
            overall, clients, each = self._global(params, buffers, there)
        personal: dict[str, Spread] = {}
        found: dict[str, Mapping[str, Mapping[int, float]]] = {"clients": each} if each else {}
        if method.personalised and there:
            personal, found["personal"] = self._personal(method, state, memories, round, there)
        newcomers = self._newcomers(method, state, memories, round) if self.newcomers else {}
        return Evaluation(overall, clients, personal, newcomers, found)

    # --- the global model -------------------------------------------------------------------------------------

    def _global(
        self, params: Tensors, buffers: Tensors, clients: Sequence[int]
    ) -> tuple[dict[str, float], dict[str, Spread], dict[str, dict[int, float]]]:
        test, pool = self.data.test_set, self.data.pool("test")
        rows = {k: self.data.rows(k, "test") for k in clients} if pool is not None else {}
        same = test is not None and pool is not None and test.inputs is pool.inputs
        overall = self.measures(params, buffers, test) if test is not None else {}
        sums: dict[int, tuple[int, dict[str, float]]] = {}
        if pool is not None and rows:
            if same:
                position, measured = np.arange(len(pool.inputs)), overall
            else:
                wanted = np.unique(np.concatenate([r for r in rows.values() if r is not None]))
                position = np.zeros(len(pool.inputs), np.int64)
                position[wanted] = np.arange(len(wanted))
                where = torch.from_numpy(wanted)
                measured = self.measures(params, buffers, Samples(pool.inputs[where], pool.targets[where]))
            for k, own in rows.items():
                if own is not None:
                    at = position[own]
                    sums[k] = len(own), {name: float(values[at].sum()) for name, values in measured.items()}
        else:
            for k in clients:
                samples = self.data.samples(k, "test")
                assert samples is not None
                measured = self.measures(params, buffers, samples)
                sums[k] = len(samples.inputs), {name: float(v.sum()) for name, v in measured.items()}
        spreads, each = _spreads(sums)
        return {name: float(values.mean()) for name, values in overall.items()}, spreads, each

    def measures(self, params: Tensors, buffers: Tensors, samples: Samples) -> Measures:
        """Per-sample measures of a model, name -> [n]."""
        params = params.map(lambda t: t.to(self.device))
        buffers = buffers.map(lambda t: t.to(self.device))
        parts: dict[str, list[Any]] = {}
        with torch.inference_mode():
            for start in range(0, len(samples.inputs), _ROWS):
                inputs = samples.inputs[start : start + _ROWS].to(self.device)
                targets = samples.targets[start : start + _ROWS].to(self.device)
                for name, values in self.task.measure(params, buffers, inputs, targets).items():
                    parts.setdefault(name, []).append(values.cpu().numpy())
        return {name: np.concatenate(values).astype(np.float64) for name, values in parts.items()}

    # --- personal models --------------------------------------------------------------------------------------

    def _personal(
        self, method: Method, state: Record, memories: Memories, round: int, clients: Sequence[int]
    ) -> tuple[dict[str, Spread], dict[str, dict[int, float]]]:
        """These clients run the method's "personal" program, which ends in sums over their test data."""
        sent = method.broadcast(state, clients)
        job = Job(method, Work(sent.shared, sent.own, "personal"), clients, round, self.seed)
        _, outcomes = self.engine.run(job, _Aside(memories))
        sums = {}
        for outcome in outcomes:
            totals = {name: value for name, value in outcome.metrics.items() if name != "count"}
            sums[outcome.client] = int(outcome.metrics["count"]), totals
        return _spreads(sums)

    # --- newcomers --------------------------------------------------------------------------------------------

    def _newcomers(self, method: Method, state: Record, memories: Memories, round: int) -> dict[str, Spread]:
        """Clients that were not there take part in a few rounds that leave no trace, and are judged."""
        clients, aside = self.newcomers, _Aside(memories)

        def played(work: Work, expected: Record, clients: Sequence[int], number: int) -> Replies | None:
            job = Job(method, work, clients, number, self.seed, expected, cohort=len(clients))
            return self.engine.run(job, aside)[0].result()

        asked = method.enrol(state, clients)
        if asked is not None:
            answers = played(replace(asked[1], reduction="each"), Record(), asked[0], round)
            state = state if answers is None else method.welcome(state, answers)
        for at in range(self.adapt):
            work = replace(method.broadcast(state, clients), reduction="each")
            replies = played(work, method.expects(state), clients, round + at)
            state = state if replies is None else method.adapt(state, replies)
        return self._personal(method, state, aside, round, clients)[0]


class _Aside:
    """Memories beside those of the run: what is put here is found here, and nowhere else."""

    def __init__(self, memories: Memories) -> None:
        self.memories = memories
        self.new: dict[int, Record] = {}

    def get(self, client: int) -> Record | None:
        return self.new[client] if client in self.new else self.memories.get(client)

    def put(self, client: int, memory: Record) -> None:
        self.new[client] = memory


def _spreads(
    sums: Mapping[int, tuple[int, Mapping[str, float]]],
) -> tuple[dict[str, Spread], dict[str, dict[int, float]]]:
    counted = {k: (n, totals) for k, (n, totals) in sums.items() if n > 0}
    if not counted:
        return {}, {}
    names = next(iter(counted.values()))[1].keys()
    each = {name: {k: totals[name] / n for k, (n, totals) in counted.items()} for name in names}
    weights = [n for n, _ in counted.values()]
    return {name: Spread.of(list(values.values()), weights) for name, values in each.items()}, each
