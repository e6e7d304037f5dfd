"""Judging models three ways: the global model on the global test set, the global model on each client's test data,
and each client's own model on its test data. Sums are pooled over samples and divided once; of figures of a whole set
(`atoll.metrics`) the samples' rows are put together.

On a network clients judge themselves: "evaluate" and "personal" are programs that end in sums over their test data
(`Judge.asked`). Where a simulation has all test data in one tensor, the global model passes over it once, for all
clients together (`Judge.pooled`): the same figures, faster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from atoll import seeds
from atoll.contract import ON_VALIDATION, Channel, Job, Memories, Method, Outcome, Replies, Work
from atoll.data import FederatedData, Samples
from atoll.engines import Engine, Loop
from atoll.machine import cores, threads
from atoll.measures import ATTACK_SUCCESS, OF_PART, Better
from atoll.metrics import counted
from atoll.modalities import kept, modalities
from atoll.parts import pieces
from atoll.rounds.evaluation import Evaluation, Spread
from atoll.rounds.judging import ROWS, Measures, figures, measures, totals
from atoll.rounds.membership import Membership
from atoll.task import Task
from atoll.tensors import Record, Tensors

__all__ = ["Judge"]

Sums = Mapping[int, tuple[int, Mapping[str, Any]]]
"""Client -> (samples, the totals of the loss and the metrics over them)."""

_WORTH_THREADS = 1 << 26  # multiplications in a batch from which more threads pay


class Judge:
    """Evaluates a federation's models.

    Args:
        limit: at most this many clients are judged, the same ones every time (a sample drawn with the seed).
        membership: clients are judged while they are there, and newcomers apart, after `adapt` rounds of their own.
        validates: whether the models that clients would use are judged on their validation data, too.
        wanted: test samples as attackers show them, with the classes that they want for them, or None.
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
        channel: Channel | None = None,
        validates: bool = False,
        wanted: Samples | None = None,
    ) -> None:
        self.task, self.data, self.engine, self.device, self.seed = task, data, engine, device, seed
        self.limit, self.adapt, self.membership, self.channel = limit, adapt, membership, channel
        self.validates, self.wanted = validates, wanted
        self._counted: dict[str, tuple[int, dict[int, int]]] = {}  # split -> (version of the data, counts)
        self.newcomers = [
            client for client in membership.newcomers if self.data.held(client, "test") is not None
        ]

    @property
    def better(self) -> dict[str, Better | None]:
        """What evaluations measure beside the loss, and which of two values is the better one (see `Task.better`)."""
        further: dict[str, Better | None] = {} if self.wanted is None else {ATTACK_SUCCESS: "lower"}
        return {**self.task.better, **further, **dict.fromkeys(self._parts, "higher")}

    @property
    def _parts(self) -> dict[str, str]:
        """Figures of a model that is shown one part of each test sample alone, and which."""
        names = modalities(self.data.example().inputs) if "accuracy" in self.task.metrics else ()
        return {OF_PART + name: name for name in names if len(names) > 1}

    @property
    def clients(self) -> list[int]:
        """The clients that are judged while they are there: those of the sample that have test data."""
        return list(self.tested)

    @property
    def tested(self) -> dict[int, int]:
        """How many test samples each of them has."""
        return self._having("test")

    @property
    def validated(self) -> dict[int, int]:
        """How many validation samples the clients of the sample have, of those that have some."""
        return self._having("validation")

    def _having(self, split: str) -> dict[int, int]:
        """How many samples the clients of the sample have in a split, of those that have some."""
        known = self._counted.get(split)
        if known is None or known[0] != self.data.version:
            known = self._counted[split] = self.data.version, self._counts(split)
        return known[1]

    def _counts(self, split: str) -> dict[int, int]:
        count, limit = len(self.data), self.limit
        if limit is None and not self.data.listed:
            limit = 100  # a generated population has no end of clients
        if limit is not None and limit < count:
            chosen = seeds.rng(self.seed, "judged").choice(count, limit, replace=False)
        else:
            chosen = np.arange(count)
        apart = set(self.newcomers)
        counts = {int(k): self.data.held(int(k), split) for k in np.sort(chosen) if int(k) not in apart}
        return {client: count for client, count in counts.items() if count is not None}

    def __call__(
        self, method: Method, state: Record, memories: Memories, round: int, time: float = 0.0
    ) -> Evaluation:
        """The evaluation of a state after this round, which began at that virtual time; nothing is remembered of it."""
        with seeds.scoped(self.seed, "judge", round):
            return self._judged(method, state, memories, round, time)

    def _judged(
        self, method: Method, state: Record, memories: Memories, round: int, time: float
    ) -> Evaluation:
        there = [client for client in self.clients if self.membership.there(client, round, time)]
        params, buffers = method.model(state)
        with threads(cores() if params.size() * ROWS > _WORTH_THREADS else 1):
            test = self.data.test_set
            measured = (
                {} if test is None else self.measures(params, buffers, self.engine.resident.within(test))
            )
            if self.data.pool("test") is None:
                sums = self.asked(method, params, buffers, there, round)
            else:
                sums = self.pooled(params, buffers, there, measured)
            only = self._only_class(params, buffers, measured, test)
        whole = [(len(measured["loss"]), self._totals(measured))] if measured else []
        overall = self._figures(whole) if whole else {}
        if measured and test is not None:
            for name, part in self._parts.items():
                overall[name] = self._success(
                    params, buffers, test._replace(inputs=kept(test.inputs, [part]))
                )
        if self.wanted is not None:
            overall[ATTACK_SUCCESS] = self._success(params, buffers, self.wanted)
        clients, each = self._spreads(sums)
        personal: dict[str, Spread] = {}
        found: dict[str, Mapping[str, Mapping[int, float]]] = {"clients": each} if each else {}
        if method.personalised and there:
            sums = self._personal(method, state, memories, round, there)
            personal, found["personal"] = self._spreads(sums)
        newcomers = self._newcomers(method, state, memories, round) if self.newcomers else {}
        confusion = self._confusion(overall=whole, own=list(sums.values()))
        validation = self._validation(method, state, memories, round, time) if self.validates else {}
        consensus = method.consensus(state)
        return Evaluation(
            overall, clients, personal, newcomers, found, only, confusion, validation, consensus
        )

    # --- the global model -------------------------------------------------------------------------------------

    def asked(
        self,
        method: Method,
        params: Tensors,
        buffers: Tensors,
        clients: Sequence[int],
        round: int,
        on: str = "",
    ) -> Sums:
        """What these clients answer who are sent a model to judge on their test data, with the program "evaluate".

        `on` is nothing, or `ON_VALIDATION`.
        """
        work = Work(Record(params=params, buffers=buffers), program=f"evaluate{on}", reduction="each")
        job = Job(method, work, clients, round, self.seed)
        engine = Loop(self.task, self.data, self.device) if self.data.here else self.engine
        return _sums(engine.run(job, _Aside())[1])

    def pooled(
        self,
        params: Tensors,
        buffers: Tensors,
        clients: Sequence[int],
        measured: Measures,
        split: str = "test",
    ) -> Sums:
        """The same, by one pass over the tensor that holds all clients' data of the split.

        Args:
            measured: the model's measures on the global test set, which may be that tensor itself; {} where unknown.
        """
        test, pool = self.data.test_set if measured else None, self.data.pool(split)
        assert pool is not None
        rows = {k: own for k in clients if (own := self.data.rows(k, split)) is not None}
        if not rows:
            return {}
        if test is not None and test.inputs is pool.inputs:
            position = np.arange(pool.count)
        else:
            wanted = np.unique(np.concatenate(list(rows.values())))
            position = np.zeros(pool.count, np.int64)
            position[wanted] = np.arange(len(wanted))
            where, here = torch.from_numpy(wanted), self.engine.resident.within(pool)
            at = where.to(here.targets.device)
            few = Samples(here.inputs[at], here.targets[at])
            measured = self.measures(params, buffers, few)
        return {
            k: (len(own), self._totals({name: values[position[own]] for name, values in measured.items()}))
            for k, own in rows.items()
        }

    def measures(self, params: Tensors, buffers: Tensors, samples: Samples) -> Measures:
        """Per-sample measures of a model, name -> [n], or rows (see `Metric.taken`)."""
        return measures(self.task, self.device, params, buffers, samples)

    def _success(self, params: Tensors, buffers: Tensors, wanted: Samples) -> float:
        """The share of samples that a model takes for what their targets say: what attackers want, or the truth."""
        return float(self.measures(params, buffers, self.engine.resident.within(wanted))["accuracy"].mean())

    # --- figures ----------------------------------------------------------------------------------------------

    def _totals(self, measured: Measures) -> dict[str, Any]:
        """The totals of per-sample measures, as clients answer them."""
        return totals(self.task, measured)

    def _figures(self, sums: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[str, float]:
        """The loss and the metrics of sets of samples taken together; NaN where a metric is not defined."""
        return figures(self.task, sums)

    def _confusion(self, **sums: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[str, list[list[int]]]:
        """Which classes are taken for which, where that is asked: of each sort, all sets of samples together."""
        confusion = self.task.confusion
        if confusion is None:
            return {}
        return {of: confusion.value([totals for _, totals in found]) for of, found in sums.items() if found}

    def _spreads(self, sums: Sums) -> tuple[dict[str, Spread], dict[str, dict[int, float]]]:
        """How the clients' figures are spread, and the figures; of a metric, of those where it is defined."""
        known = {client: found for client, found in sums.items() if found[0] > 0}
        if not known:
            return {}, {}
        figures = {client: self._figures([found]) for client, found in known.items()}
        spreads, each = {}, {}
        for name in figures[next(iter(known))]:
            metric = self.task.metrics.get(name)
            values = {
                k: found[name] for k, found in figures.items() if metric is None or found[name] == found[name]
            }
            if not values:
                continue
            weights = [known[k][1].get(counted(name), known[k][0]) for k in values]
            pooled = None
            if metric is not None and (metric.whole is not None or metric.after is not None):
                pooled = metric.value([found[1] for found in known.values()], name)
            spread = Spread.of(list(values.values()), weights, pooled, len(known) - len(values))
            spreads[name], each[name] = spread, values
        return spreads, each

    def _only_class(
        self, params: Tensors, buffers: Tensors, measured: Measures, test: Samples | None
    ) -> int | None:
        """The class that a model gives to every sample of the test set, which has others too, or None."""
        if (
            test is None
            or "accuracy" not in measured
            or test.targets.ndim != 1
            or test.targets.is_floating_point()
        ):
            return None
        right, targets = measured["accuracy"] > 0.5, test.targets.cpu().numpy()
        given = targets[np.argmax(right)]
        if right.all() or not right.any() or ((targets == given) != right).any():
            return None  # it is right about several classes
        params, buffers = (part.map(lambda t: t.to(self.device)) for part in (params, buffers))
        with torch.inference_mode():
            for part in pieces(test.inputs, ROWS):
                outputs = self.task.predict(params, buffers, part.to(self.device))[0]
                if (
                    outputs.ndim == 2
                    and outputs.shape[1] > 1
                    and bool((outputs.argmax(dim=1) != int(given)).any())
                ):
                    return None
        return int(given)

    # --- personal models --------------------------------------------------------------------------------------

    def _personal(
        self,
        method: Method,
        state: Record,
        memories: Memories,
        round: int,
        clients: Sequence[int],
        on: str = "",
    ) -> Sums:
        """These clients run the method's "personal" program, which ends in sums over test data (`on`: as above)."""
        sent = method.broadcast(state, clients)
        job = Job(
            method,
            Work(sent.shared, sent.own, f"personal{on}", passes=sent.passes),
            clients,
            round,
            self.seed,
            channel=self.channel,
        )
        return _sums(self.engine.run(job, _Aside(memories))[1])

    # --- validation data --------------------------------------------------------------------------------------

    def _validation(
        self, method: Method, state: Record, memories: Memories, round: int, time: float
    ) -> dict[str, Spread]:
        """How the models that clients would use do on their validation data."""
        there = [client for client in self.validated if self.membership.there(client, round, time)]
        if not there:
            return {}
        if method.personalised:
            return self._spreads(self._personal(method, state, memories, round, there, ON_VALIDATION))[0]
        params, buffers = method.model(state)
        if self.data.pool("validation") is None:
            return self._spreads(self.asked(method, params, buffers, there, round, ON_VALIDATION))[0]
        with threads(cores() if params.size() * ROWS > _WORTH_THREADS else 1):
            return self._spreads(self.pooled(params, buffers, there, {}, "validation"))[0]

    # --- newcomers --------------------------------------------------------------------------------------------

    def _newcomers(self, method: Method, state: Record, memories: Memories, round: int) -> dict[str, Spread]:
        """Clients that were not there take part in a few rounds that leave no trace, and are judged."""
        clients, aside = self.newcomers, _Aside(memories)

        def played(
            work: Work,
            expected: Record,
            clients: Sequence[int],
            number: int,
            weights: NDArray[np.float64] | None = None,
        ) -> Replies | None:
            job = Job(
                method, work, clients, number, self.seed, expected, cohort=len(clients), channel=self.channel,
                weights=weights,
            )  # fmt: skip
            return self.engine.run(job, aside)[0].result()

        asked = method.enrol(state, clients)
        if asked is not None:
            answers = played(replace(asked[1], reduction="each"), Record(), asked[0], round)
            state = state if answers is None else method.welcome(state, answers)
        for at in range(self.adapt):
            work = replace(method.broadcast(state, clients), reduction="each")
            replies = played(work, method.expects(state), clients, round + at, self.data.weights)
            state = state if replies is None else method.adapt(state, replies)
        return self._spreads(self._personal(method, state, aside, round, clients))[0]


class _Aside:
    """Memories beside those of the run: what is put here is found here, and nowhere else."""

    def __init__(self, memories: Memories | None = None) -> None:
        self.memories = memories
        self.new: dict[int, Record] = {}

    def get(self, client: int) -> Record | None:
        if client in self.new:
            return self.new[client]
        return None if self.memories is None else self.memories.get(client)

    def put(self, client: int, memory: Record) -> None:
        self.new[client] = memory


def _sums(outcomes: Sequence[Outcome]) -> Sums:
    """Samples, and the totals over them, of what a judging program pools, by client."""
    return {
        each.client: (int(each.metrics["count"]), {k: v for k, v in each.metrics.items() if k != "count"})
        for each in outcomes
        if each.refused is None
    }
