"""The round: sample, broadcast, run, reduce, update, evaluate, commit."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from atoll import seeds
from atoll.data import FederatedData, as_federated
from atoll.engines import Job, Outcome, make
from atoll.errors import ConfigError, DivergedError, RunError, suggest
from atoll.evaluation import Evaluation, Judge
from atoll.memory import MemoryStore
from atoll.method import Method, Plan, Population
from atoll.methods import get
from atoll.results import Round, Run, Target
from atoll.task import Loss, Task
from atoll.tensors import to_device

__all__ = ["Callback", "Federation"]


class Callback:
    """Hooks around a run. Override what you need; an exception in a hook ends the run."""

    def on_start(self, federation: Federation) -> None:
        """Before the first round."""

    def on_round_start(self, federation: Federation, number: int) -> None:
        """Before a round's cohort is sampled."""

    def on_round_end(self, federation: Federation, record: Round) -> None:
        """After a round was committed (and evaluated, if it was its turn)."""

    def on_end(self, federation: Federation, run: Run) -> None:
        """After the last round."""


class Federation:
    """A model, divided data and a method, to be trained round by round.

    Args:
        model: an `nn.Module`, or a function of no arguments that makes one (then its initial parameters follow from
            `seed`).
        data: a `FederatedData`, or anything `atoll.data.as_federated` accepts.
        method: a `Method`, or the name of one; its settings then come as further keywords (``lr=0.1, mu=0.01``).
        rounds: how many rounds to play.
        cohort: clients a round: a number, or a share in (0, 1) of the population.
        loss: a name or a function (see `Task`); by default cross entropy for classes, squared error otherwise.
        metrics: further per-sample measures by name.
        seed: everything random follows from it.
        engine: "auto", "batched", "processes" or "loop".
        workers: threads or processes of the engine; by default one a core.
        device: "auto", "cpu", "cuda", "cuda:1" ...
        eval_every: evaluate every so many rounds, and at the end; 0 only at the end.
        eval_clients: judge at most so many clients.
        target: stop once this is reached ("accuracy:0.97").
        stragglers: share of every cohort that is slow and manages only some of its local epochs, drawn uniformly;
            methods without `partial_work` drop these clients.
        callbacks: hooks around rounds.

    Raises ConfigError or DataError before anything runs if the parts do not fit.
    """

    def __init__(
        self,
        model: nn.Module | Callable[[], nn.Module],
        data: Any,
        method: Method | str = "fedavg",
        *,
        rounds: int = 10,
        cohort: int | float | None = None,
        loss: str | Loss | None = None,
        metrics: Mapping[str, Loss] | None = None,
        seed: int = 0,
        engine: str = "auto",
        workers: int | None = None,
        device: str = "auto",
        eval_every: int = 1,
        eval_clients: int | None = None,
        target: str | Target | None = None,
        stragglers: float = 0.0,
        callbacks: Sequence[Callback] = (),
        **settings: Any,
    ) -> None:
        self.data: FederatedData = data if isinstance(data, FederatedData) else as_federated(data)
        self.method = build_method(method, settings)
        self.rounds = _at_least("rounds", rounds, 1)
        self.seed = seed
        self.cohort = _cohort_size(cohort, len(self.data))
        self.eval_every = _at_least("eval_every", eval_every, 0)
        self.target = Target.parse(target)
        if not 0 <= stragglers <= 1:
            raise ConfigError(f"stragglers = {stragglers}, but it is a share between 0 and 1")
        self.stragglers = stragglers
        self.callbacks = list(callbacks)
        self.device = _device(device)
        if not isinstance(model, nn.Module):
            with seeds.scoped(seed):
                model = model()
        self.task = Task(model, loss or ("cross_entropy" if self.data.classes else "mse"), metrics)
        example = self.data.example()
        self.task.check(example.inputs[:1], example.targets[:1], self.data.classes)
        self.engine = make(engine, self.task, self.data, self.device, workers)
        self.judge = Judge(self.task, self.data, self.engine, self.device, seed, eval_clients)
        self.memories = MemoryStore()
        self.state = self.method.setup(self.task, Population(len(self.data)))
        self.state = to_device(self.state, self.device)
        self.number = 0
        self.history: list[Round] = []
        self.target_round: int | None = None
        self.begun = time.perf_counter()
        self._sound = self.state  # the last state that an evaluation found finite
        if self.target:
            self.target.check([*self.task.metrics, "loss", "clients", "personal"])

    # --- the run ----------------------------------------------------------------------------------------------

    def fit(self) -> Run:
        """Play all rounds that remain, or stop at the target.

        Raises DivergedError where the model leaves the finite numbers; `federation.run()` then still has every round
        that was committed, and the last finite model.
        """
        self.begun = time.perf_counter()
        for callback in self.callbacks:
            callback.on_start(self)
        try:
            for record in self.play():
                for callback in self.callbacks:
                    callback.on_round_end(self, record)
        finally:
            self.engine.close()
        run = self.run()
        for callback in self.callbacks:
            callback.on_end(self, run)
        return run

    def play(self) -> Iterator[Round]:
        """Play round after round, yielding what happened in each."""
        while self.number < self.rounds:
            for callback in self.callbacks:
                callback.on_round_start(self, self.number + 1)
            record = self.round()
            last = self.number == self.rounds
            if last or (self.eval_every and self.number % self.eval_every == 0):
                record = replace(record, evaluation=self.evaluate())
                assert record.evaluation is not None
                problem = _problem(record.evaluation)
                if problem is not None:
                    self.state = self._sound
                    raise _diverged(record.number, problem)
                self._sound = self.state
                if self.target and self.target.reached(record.evaluation):
                    self.target_round = record.number
            self.history.append(record)
            yield record
            if self.target_round is not None:
                return

    def round(self) -> Round:
        """Play one round and commit its state; evaluation is the caller's."""
        start = time.perf_counter()
        number = self.number + 1
        clients, epochs, dropped = self.enlist(number)
        refused: dict[int, str] = {}
        outcomes: list[Outcome] = []
        down = 0
        if clients:
            work = self.method.broadcast(self.state, clients)
            down = sum(work.nbytes(client) for client in clients)
            job = Job(self.method, work, clients, number, self.seed, self.method.expects(self.state), epochs)
            replies, outcomes = self.engine.run(job, self.memories)
            refused = {o.client: o.refused for o in outcomes if o.refused is not None}
            if replies is not None:
                state = self.method.update(self.state, replies)
                params, _ = self.method.model(state)
                if not all(bool(torch.isfinite(p).all()) for p in params.values()):
                    raise _diverged(number, "the updated model has non-finite numbers")
                self.state = state
            elif refused and len(refused) == len(clients):
                self._all_refused(number, refused)
        self.number = number
        return Round(
            number, clients, dropped, refused, _pooled(outcomes, refused), sum(o.nbytes for o in outcomes), down,
            time.perf_counter() - start,
        )  # fmt: skip

    def enlist(self, number: int) -> tuple[list[int], dict[int, int], list[int]]:
        """The cohort of a round (sorted), the local epochs of its stragglers, and who is dropped for being slow."""
        population = len(self.data)
        chosen = seeds.rng(self.seed, "cohort", number).choice(population, self.cohort, replace=False)
        clients = sorted(int(k) for k in chosen)
        if not self.stragglers:
            return [k for k in clients if self.data.size(k) > 0], {}, []
        plan: Plan = self.method.plan()
        if plan.steps is not None or plan.epochs < 1:
            raise ConfigError("stragglers do fewer local epochs, but this method is set to local steps")
        rng = seeds.rng(self.seed, "stragglers", number)
        slow = sorted(
            int(k) for k in rng.choice(clients, round(self.stragglers * len(clients)), replace=False)
        )
        if not getattr(self.method, "partial_work", False):
            return [k for k in clients if k not in slow], {}, slow
        done = rng.integers(1, max(plan.epochs, 2), len(slow))
        return clients, {k: int(e) for k, e in zip(slow, done, strict=True)}, []

    def evaluate(self) -> Evaluation:
        """Judge the present models (see `atoll.evaluation`)."""
        return self.judge(self.method, self.state, self.memories, self.number)

    def run(self) -> Run:
        """What the rounds played so far came to."""
        params, buffers = self.method.model(self.state)
        model = self.task.load(
            to_device(params, torch.device("cpu")), to_device(buffers, torch.device("cpu"))
        )
        name = type(self.method).__name__
        return Run(
            name, self.data.dataset, self.data.partition, self.engine.describe(), self.history,
            time.perf_counter() - self.begun, self.target_round, model,
        )  # fmt: skip

    def _all_refused(self, number: int, refused: Mapping[int, str]) -> None:
        reasons = Counter(refused.values()).most_common(1)[0]
        names = ", ".join(str(self.data.names[k]) for k in list(refused)[:5])
        message = f"round {number}: all {len(refused)} replies were refused; the model stays as it was"
        detail = f"clients {names}{' ...' if len(refused) > 5 else ''}: {reasons[0]}"
        if any("finite" in reason for reason in refused.values()):
            raise _diverged(number, f"every client's update was refused ({detail})")
        raise RunError(f"{message} ({detail})")


def build_method(method: Method | str, settings: Mapping[str, Any]) -> Method:
    """A method from its name and settings, or a method with some settings changed.  Raises ConfigError."""
    kind = get(method) if isinstance(method, str) else type(method)
    known = [setting.name for setting in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for name in settings:
        if name not in known:
            raise ConfigError(f"{kind.__name__} has no setting {name!r}", hint=suggest(name, known))
    if isinstance(method, str):
        return kind(**settings)
    return replace(method, **settings) if settings else method  # type: ignore[type-var]


# --- helpers --------------------------------------------------------------------------------------------------------


def _at_least(name: str, value: int, least: int) -> int:
    if value < least:
        raise ConfigError(f"{name} = {value}, but it must be at least {least}")
    return value


def _cohort_size(cohort: int | float | None, population: int) -> int:
    if cohort is None:
        return min(10, population)
    if isinstance(cohort, float) and 0 < cohort < 1:
        return max(1, round(cohort * population))
    if cohort < 1 or int(cohort) != cohort:
        raise ConfigError(f"cohort = {cohort}, but it is a number of clients, or a share between 0 and 1")
    if cohort > population:
        raise ConfigError(
            f"cohort = {int(cohort)} clients a round, but there are only {population}",
            hint=f"set cohort to {population} or fewer",
        )
    return int(cohort)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device {name!r} cannot be used: {str(error).splitlines()[0]}", hint="try auto or cpu"
        ) from None
    return device


def _diverged(number: int, what: str) -> DivergedError:
    return DivergedError(
        f"round {number}: the run diverged: {what}; the last finite model is kept",
        hint="lower lr (or server_lr), or set clip",
    )


_HOPELESS = 1e4  # a mean cross entropy that guessing at random never comes near


def _problem(evaluation: Evaluation) -> str | None:
    """Why an evaluated model must be called diverged, or None."""
    for name, value in evaluation.overall.items():
        if not np.isfinite(value):
            return f"{name} on the test set is {value}"
    loss = evaluation.overall.get("loss", 0.0)
    if "accuracy" in evaluation.overall and loss > _HOPELESS:
        return f"the loss on the test set is {loss:.3g}"
    return None


def _pooled(outcomes: Sequence[Outcome], refused: Mapping[int, str]) -> float:
    """Mean training loss over the samples of the accepted clients."""
    pairs = [
        (o.metrics["loss"], o.metrics["count"])
        for o in outcomes
        if o.client not in refused and "loss" in o.metrics and o.metrics.get("count")
    ]
    total = sum(count for _, count in pairs)
    return sum(loss for loss, _ in pairs) / total if total else float("nan")
