"""The round: sample, broadcast, run, reduce, update, evaluate, commit."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from atoll import seeds
from atoll.assembly import (
    Model,
    architectures,
    at_least,
    build_method,
    check_splits,
    cohort_size,
    device_named,
)  # fmt: skip
from atoll.contract import Job, Method, Outcome, Plan, Population, Work
from atoll.data import FederatedData, as_federated
from atoll.engines import make
from atoll.engines.client import Client
from atoll.errors import ConfigError, DivergedError, RunError
from atoll.evaluation import Evaluation, Judge
from atoll.machine import threads
from atoll.measures import Target
from atoll.membership import Membership, Schedule, schedule_text
from atoll.memory import MemoryStore
from atoll.outcomes import alike, columns
from atoll.results import Round, Run
from atoll.runs import about
from atoll.runs.events import Event, kinds
from atoll.runs.folder import RunFolder
from atoll.runs.readers import Reader
from atoll.runs.session import Session
from atoll.runs.signals import undisturbed
from atoll.runs.snapshot import Snapshot
from atoll.task import Loss, architecture
from atoll.tensors import Record, to_device

__all__ = ["Callback", "Federation"]


class Callback:
    """Hooks around a run. Override what you need.

    They run between the rounds, so their time is the run's. A callback that raises is reported, as a problem in the
    events and a warning in the log, and is not called again; the run goes on. `federation.stop()` ends it early.
    """

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
            `seed`). A list of them gives clients different architectures, in turns: client k has number k modulo
            their number; for methods that can (`Method.mixed`).
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
        runs: directory in which `fit` makes a run folder (see docs/runs.md); None keeps nothing on disk.
        checkpoint: rounds between checkpoints in the run folder; 0 only at the end.
        keep: which checkpoints stay: "last", "best", "every:50", "all", or several with commas.
        log: further readers of the run's events: "tensorboard", "mlflow", or a `Reader` of your own.
        public: inputs [n, ...] that everybody knows, without labels, for methods that distil.
        newcomers: how many clients (or which share) never take part in a round. Every evaluation judges them apart,
            after `adapt` rounds of their own with the server's state as it is then: how well what was learned serves
            clients that were not there.
        adapt: rounds that newcomers train before they are judged; 0 judges what they would be given.
        joins: clients that take part from a round on only: "6@20" has six, drawn by the seed, come with round 20
            (shares too, several with commas); or {client: round}, the client by position or name.
        leaves: likewise clients that are gone from a round on. The server drops what it keeps of them
            (`Method.leave`), nobody is trained anew, and they are judged no more.
        stragglers: share of every cohort that is slow and manages only some of its local epochs, drawn uniformly;
            methods without `partial_work` drop these clients.
        callbacks: hooks around rounds.

    Raises ConfigError or DataError before anything runs if the parts do not fit.
    """

    def __init__(
        self,
        model: Model | Sequence[Model],
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
        public: Tensor | None = None,
        newcomers: int | float = 0,
        adapt: int = 1,
        joins: Schedule | None = None,
        leaves: Schedule | None = None,
        stragglers: float = 0.0,
        runs: str | Path | None = None,
        checkpoint: int = 10,
        keep: str = "last, best",
        log: Sequence[str | Reader] = (),
        callbacks: Sequence[Callback] = (),
        **settings: Any,
    ) -> None:
        self._given = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        self.data: FederatedData = data if isinstance(data, FederatedData) else as_federated(data)
        if public is not None:
            self.data = self.data.publish(public)
        self.method = build_method(method, settings)
        self.rounds = at_least("rounds", rounds, 1)
        self.seed = seed
        self.membership = Membership(self.data, seed, newcomers, joins, leaves)
        self.adapt = at_least("adapt", adapt, 0)
        self.cohort = cohort_size(cohort, len(self.data) - len(self.membership.newcomers))
        self.eval_every = at_least("eval_every", eval_every, 0)
        self.target = Target.parse(target) if isinstance(target, str) else target
        if not 0 <= stragglers <= 1:
            raise ConfigError(f"stragglers = {stragglers}, but it is a share between 0 and 1")
        self.stragglers = stragglers
        self.callbacks = list(callbacks)
        self.device = device_named(device)
        self.tasks = architectures(model, self.data, self.method, seed, loss, metrics)
        self.task = self.tasks[0]
        check_splits(self.method, self.data)
        self.engine_name, self.workers = engine, workers
        self.engine = make(engine, self.tasks, self.data, self.device, workers)
        self.judge = Judge(
            self.task, self.data, self.engine, self.device, seed, eval_clients, self.membership, self.adapt
        )
        self.memories = MemoryStore()
        public_inputs = None if self.data.public is None else self.data.public.inputs.to(self.device)
        self.population = Population(
            len(self.data), self.tasks, self.data.example().inputs[:1], public_inputs, seed
        )
        self.state = self.method.setup(self.task, self.population)
        self.state = to_device(self.state, self.device)
        self.number = 0
        self.history: list[Round] = []
        self.target_round: int | None = None
        self.checkpoint = at_least("checkpoint", checkpoint, 0)
        self.keep = keep
        self.session = Session(runs, log=log, checkpoint=checkpoint, keep=keep)
        self.session.sound = self.state
        self.labels = {
            "method": type(self.method).__name__,
            "data": self.data.dataset,
            "partition": self.data.partition,
            "model": type(self.task.module).__name__,
        }
        self.config: dict[str, Any] = {}
        self._stopping = False
        self._told: tuple[str, int | None] | None = None  # the engine that the events know of
        if self.target:
            self.target.check(self.task.metrics)

    # --- the run ----------------------------------------------------------------------------------------------

    def fit(self) -> Run:
        """Play all rounds that remain, or stop at the target.

        Raises DivergedError where the model leaves the finite numbers; `federation.run()` then still has every round
        that was committed, and the last finite model. However it ends, a run folder has what is needed to go on.
        """
        written = self.session.written(
            self.about,
            self._snapshot(),
            name=self.labels["method"].lower(),
            rounds=self.rounds,
            identity=self._identity,
            model=self._save_model,
            repeatable=bool(self.config),
        )
        with closing(self.engine), written:
            self._call("on_start")
            for record in self.play():
                self._call("on_round_end", record)
            self.session.end(self._result())
        run = self.run()
        self._call("on_end", run)
        return run

    def play(self) -> Iterator[Round]:
        """Play round after round, yielding each once it is committed."""
        while self.number < self.rounds and self.target_round is None and not self._stopping:
            number = self.number + 1
            self._call("on_round_start", number)
            record, state, outcomes = self._advance(number)
            if number == self.rounds or (self.eval_every and number % self.eval_every == 0):
                evaluation = self.judge(self.method, state, self.memories, number)
                problem = _problem(evaluation)
                if problem is not None:
                    if self.session.sound is not None:
                        self.state = self.session.sound
                    raise _diverged(number, problem)
                record = replace(record, evaluation=evaluation)
            with undisturbed():
                self._commit(record, state)
                self._write_down(record, outcomes)
            yield record

    def round(self) -> Round:
        """Play one round and commit it; evaluation is the caller's."""
        record, state, _ = self._advance(self.number + 1)
        self._commit(record, state)
        return record

    @property
    def begun_once(self) -> bool:
        """Whether a run was begun (or taken up again)."""
        return self.folder is not None or bool(self.history)

    @property
    def can_resume(self) -> bool:
        """Whether the run folder has a checkpoint of the last committed round."""
        return self.session.can_resume and self.session.number == self.number

    def stop(self) -> None:
        """End the run after the round that is being played (for callbacks)."""
        self._stopping = True

    def _advance(self, number: int) -> tuple[Round, Record, list[Outcome]]:
        """Play a round: what happened, and the state after it. Nothing is committed."""
        self.memories.rollback()
        start = time.perf_counter()
        clients, epochs, dropped = self.enlist(number)
        self.session.emit(kinds.Begin(round=number, cohort=clients))
        refused: dict[int, str] = {}
        outcomes: list[Outcome] = []
        state, up, down = self.state, 0, 0
        if gone := self.membership.leaving(number):
            state = self.method.leave(state, gone)
        if clients:
            state, up, down = self._enrol(state, clients, number)
            work = self.method.broadcast(state, clients)
            down += sum(work.nbytes(client) for client in clients)
            expected = self.method.expects(state)
            job = Job(self.method, work, clients, number, self.seed, expected, epochs, cohort=len(clients))
            reducer, outcomes = self.engine.run(job, self.memories)
            replies = reducer.result()
            refused = {o.client: o.refused for o in outcomes if o.refused is not None}
            if replies is not None:
                state = self.method.refine(self.method.update(state, replies), self.population)
                params, _ = self.method.model(state)
                if not all(bool(torch.isfinite(p).all()) for p in params.values()):
                    raise _diverged(number, "the updated model has non-finite numbers")
            elif refused and len(refused) == len(clients):
                self._all_refused(number, refused)
        seconds = time.perf_counter() - start
        record = Round(
            number, clients, dropped, refused, _pooled(outcomes, refused), up + sum(o.nbytes for o in outcomes), down,
            seconds, clients=columns(clients, outcomes, start),
        )  # fmt: skip
        return record, state, outcomes

    def _enrol(self, state: Record, clients: Sequence[int], number: int) -> tuple[Record, int, int]:
        """Ask the cohort's new clients what the method wants to know of them: (state, bytes up, bytes down)."""
        asked = self.method.enrol(state, clients)
        if asked is None:
            return state, 0, 0
        new, work = asked
        work = replace(work, reduction="each")
        reducer, outcomes = self.engine.run(
            Job(self.method, work, new, number, self.seed, cohort=len(new)), self.memories
        )
        replies = reducer.result()
        refused = {o.client: o.refused for o in outcomes if o.refused is not None}
        if replies is None or refused:
            self._all_refused(number, refused or dict.fromkeys(new, "it has no weight"))
        assert replies is not None
        up, down = sum(o.nbytes for o in outcomes), sum(work.nbytes(client) for client in new)
        return self.method.welcome(state, replies), up, down

    def _commit(self, record: Round, state: Record) -> None:
        self.state, self.number = state, record.number
        self.memories.commit()
        if record.evaluation is not None and self.target and self.target.reached(record.evaluation):
            self.target_round = record.number
        self.history.append(record)

    def enlist(self, number: int) -> tuple[list[int], dict[int, int], list[int]]:
        """The cohort of a round (sorted), the local epochs of its stragglers, and who is dropped for being slow."""
        present: Any = self.membership.present(number)
        count = min(self.cohort, present if isinstance(present, int) else len(present))
        chosen = seeds.rng(self.seed, "cohort", number).choice(present, count, replace=False)
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

    def personal(self, client: int | str) -> nn.Module:
        """The model that this client (a position, or a name) would predict with now, fine-tuned if that is the method.

        For methods without models of the client's own it is the global model. Where a method predicts otherwise than
        by its model alone (`knn-per`, `fedproto`), this is the model. Raises ConfigError for an unknown client, and for
        methods whose clients have narrower models than the module (`heterofl`).
        """
        at = self.data.position(client)
        task = self.tasks[architecture(at, len(self.tasks))]
        sent = self.method.broadcast(self.state, [at])
        job = Job(self.method, Work(sent.shared, sent.own, "personal"), [at], self.number, self.seed)
        client_half = Client(task, self.data, self.device)
        memory = self.memories.get(at)
        with threads(1):
            local = client_half.working(job.order(at), job.program, memory)
        if "params" in local:
            found = local.params, local.buffers
        else:
            received = to_device(job.work.received(at), self.device)
            memory = job.program.remember(task, received) if memory is None else memory
            found = self.method.personal(received, memory)
        params, buffers = (part.map(lambda value: value.cpu()) for part in found)
        whole = {**task.initial()[0], **task.initial()[1]}
        if any(value.shape != whole[name].shape for name, value in {**params, **buffers}.items()):
            raise ConfigError(
                f"{type(self.method).__name__}: this client's model is narrower than {type(task.module).__name__}",
                hint="take the global model, run().model",
            )
        return task.load(params, buffers).eval()

    def run(self) -> Run:
        """What the rounds played so far came to."""
        params, buffers = self.method.model(self.state)
        model = self.task.load(
            to_device(params, torch.device("cpu")), to_device(buffers, torch.device("cpu"))
        )
        labels = self.labels
        return Run(
            labels["method"], labels["data"], labels["partition"], self.engine.describe(), self.history,
            self.session.seconds, self.target_round, model, self.folder, self.events,
        )  # fmt: skip

    # --- the run folder ---------------------------------------------------------------------------------------

    def resume(self, run: str | Path = "last") -> Federation:
        """Go on with a run of this same federation: its folder, its name in `runs`, or the last one there.

        Takes over the state, the memories and the rounds of its newest whole checkpoint; `fit` then plays what
        remains, and the result is the undisturbed run's to the bit. `rounds`, `target`, `eval_every` and
        `eval_clients` may differ from the run's.

        Raises ConfigError where there is no such run or it is another federation's, RunError while a process
        writes it.
        """
        found, events = self.session.resume(run, self._identity, self._check_engine)
        name, workers = found.facts["engine"]
        self.engine.close()
        threads = workers if name == "batched" else self.workers or workers
        self.engine = self.judge.engine = make(name, self.tasks, self.data, self.device, threads)
        self.state = to_device(found.records["state"], self.device)
        sound = found.records.get("sound")
        self.session.sound = self.state if sound is None else to_device(sound, self.device)
        self.memories.close()
        found.restore(self.memories)
        self.number = found.round
        judged: list[int] = next((e["judged"] for e in events if e["event"] == "partition"), [])
        self.history = [Round.of_event(each, judged) for each in events if each["event"] == "round"]
        reached = [
            r.number
            for r in self.history
            if r.evaluation and self.target and self.target.reached(r.evaluation)
        ]
        self.target_round = reached[0] if reached else None
        return self

    def _check_engine(self, facts: Mapping[str, Any]) -> None:
        """Refuse a run that another engine played."""
        name, _ = facts["engine"]
        if self.engine_name not in ("auto", name):
            raise ConfigError(
                f"the run was played by the engine {name}, not {self.engine_name}",
                hint="leave engine out: another one differs in the last bits",
            )

    def replace(self, **changes: Any) -> Federation:
        """A federation like this one with other settings, such as ``seed=1`` or ``method="scaffold"``."""
        given = {**self._given, **self._given["settings"]}
        del given["settings"]
        if "method" in changes:
            method = build_method(changes["method"], {})
            known = [each.name for each in dataclasses.fields(method)]  # type: ignore[arg-type]
            own = [name for name in self._given["settings"] if name not in changes]
            given = {name: value for name, value in given.items() if name not in own or name in known}
        made = Federation(**{**given, **changes})
        made.labels = (
            {**self.labels, "method": made.labels["method"]} if "method" in changes else dict(self.labels)
        )
        return made

    def __repr__(self) -> str:
        labels = self.labels
        played = f"{self.number} of {self.rounds} rounds"
        return f"<Federation {labels['method']} on {labels['data']}, {labels['partition']}: {played}>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(key)}</th>"
            f"<td style='text-align:left'>{escape('none' if value is None else str(value))}</td></tr>"
            for key, value in {**self.labels, **self.settings()}.items()
        )
        return f"<div><b>{escape(repr(self)[1:-1])}</b><table>{rows}</table></div>"

    def events(self) -> list[Event]:
        """The run so far as events (`docs/runs.md`)."""
        judged = self.judge.clients
        return self.session.events(self.about, (record.to_event(judged) for record in self.history))

    # --- what it says of itself -------------------------------------------------------------------------------

    @property
    def folder(self) -> RunFolder | None:
        """The run's folder, None before it has one."""
        return self.session.folder

    @property
    def runs(self) -> Path | None:
        """The directory in which `fit` makes the run's folder."""
        return self.session.runs

    @property
    def log(self) -> list[str | Reader]:
        """Who is told of the run's events; more may be added before `fit`."""
        return self.session.log

    def settings(self) -> dict[str, Any]:
        """Every setting that can be written as a value, the method's among them."""
        own = {
            "method": self.labels["method"],
            "rounds": self.rounds,
            "cohort": self.cohort,
            "seed": self.seed,
            "stragglers": self.stragglers,
            "target": None if self.target is None else str(self.target),
            "eval_every": self.eval_every,
            "eval_clients": self.judge.limit,
            "newcomers": len(self.membership.newcomers),
            "adapt": self.adapt,
            "joins": schedule_text(self.membership.joins),
            "leaves": schedule_text(self.membership.leaves),
            "checkpoint": self.checkpoint,
            "keep": self.keep,
        }
        return {**own, **_fields(self.method), **self.config}

    def about(self) -> tuple[kinds.Start, kinds.Partition]:
        """The events that its run begins with (`docs/runs.md`)."""
        data, settings, here = self.data, self.settings(), self.membership
        start = kinds.Start(
            method=self.labels["method"],
            data=self.labels["data"],
            partition=self.labels["partition"],
            model=self.labels["model"],
            seed=self.seed,
            rounds=self.rounds,
            cohort=self.cohort,
            clients=len(data),
            parameters=sum(p.numel() for p in self.task.module.parameters()),
            classes=data.classes,
            measure="accuracy" if "accuracy" in self.task.metrics else "loss",
            personalised=self.method.personalised,
            target=settings["target"],
            device=str(self.device),
            engine=self.engine_name,
            config=settings,
        )
        return start, about.partition(
            names=data.names,
            sizes=None if data.pool() is None else (data.size(k) for k in range(len(data))),
            judged=self.judge.clients,
            joins=here.joins,
            leaves=here.leaves,
            report=data.report().to_dict(),
        )

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """What decides the bits of a round, as plain values."""
        data, here = self.data, self.membership
        parts = [part for each in self.tasks for part in each.initial()]
        form = [[name, list(t.shape), str(t.dtype)] for part in parts for name, t in part.items()]
        params = sum(part.size() for part in parts[::2])
        sizes = np.array([data.size(k) for k in range(len(data))] if data.pool() is not None else [])
        found = {
            "method": type(self.method).__name__,
            **_fields(self.method),
            "seed": self.seed,
            "cohort": self.cohort,
            "stragglers": self.stragglers,
            "loss": self.task.loss_name,
            "device": str(self.device.type),
            "number of clients": len(data),
            "model": f"{params:,} parameters, form {about.checksum(form):08x}",
            "clients' sizes": about.checksum(sizes.astype(np.int64).tobytes()),
        }
        if here.newcomers:
            found["newcomers"] = about.checksum(np.array(here.newcomers, np.int64).tobytes())
        for name, schedule in (("joins", here.joins), ("leaves", here.leaves)):
            if schedule:
                found[name] = about.checksum(sorted(schedule.items()))
        if data.public is not None:
            found["public data"] = about.checksum(data.public.inputs.cpu().numpy().tobytes())
        return json.loads(json.dumps(found))  # type: ignore[no-any-return]

    # --- what it hands over to be kept ------------------------------------------------------------------------

    def _snapshot(self) -> Snapshot:
        facts = {"engine": self.engine.settled()}
        return Snapshot(self.number, {"state": self.state}, self.memories, facts)

    def _write_down(self, record: Round, outcomes: Sequence[Outcome]) -> None:
        """A committed round, and what the engine settled on where that is news."""
        if self._told != (told := self.engine.settled()):
            name, workers = self._told = told
            text = self.engine.describe()
            self.session.emit(kinds.Engine(round=record.number, name=name, workers=workers, text=text))
        self.session.commit(
            record.to_event(self.judge.clients if record.evaluation is not None else []),
            self._snapshot(),
            last=record.number == self.rounds or self.target_round is not None,
            beside=lambda: self._affinity(record.number, outcomes),
        )

    def _affinity(self, number: int, outcomes: Sequence[Outcome]) -> list[kinds.Affinity]:
        """What the method knows of how clients are related, or else how alike their last updates point."""
        known = self.method.affinity(self.state)
        of = "update cosine" if known is None else self.method.relation or "affinity"
        found = alike(outcomes, about.COMPARED) if known is None else known
        if found is None:
            return []
        clients, matrix = found
        return [about.affinity(number, of, clients, matrix.double().cpu().numpy())]

    def _result(self) -> kinds.Result:
        over = self.number >= self.rounds
        reason: kinds.Reason = "target" if self.target_round is not None else "rounds" if over else "stopped"
        return kinds.Result(reason=reason, **self.run().to_dict())

    def _save_model(self, path: Path) -> None:
        self.run().save(path)

    def _call(self, hook: str, *arguments: Any) -> None:
        """Call a hook of the callbacks; one that fails is reported, and is not called again."""
        for callback in list(self.callbacks):
            try:
                getattr(callback, hook)(self, *arguments)
            except Exception as error:
                self.callbacks.remove(callback)
                where = f"callback {type(callback).__name__}.{hook}"
                self.session.problem(where, f"{type(error).__name__}: {error}; it is not called again")

    def _all_refused(self, number: int, refused: Mapping[int, str]) -> None:
        reasons = Counter(refused.values()).most_common(1)[0]
        names = ", ".join(str(self.data.names[k]) for k in list(refused)[:5])
        message = f"round {number}: all {len(refused)} replies were refused; the model stays as it was"
        detail = f"clients {names}{' ...' if len(refused) > 5 else ''}: {reasons[0]}"
        if any("finite" in reason for reason in refused.values()):
            raise _diverged(number, f"every client's update was refused ({detail})")
        raise RunError(f"{message} ({detail})")


# --- helpers --------------------------------------------------------------------------------------------------------


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


def _fields(method: Method) -> dict[str, Any]:
    """A method's settings."""
    return {each.name: getattr(method, each.name) for each in dataclasses.fields(method)}  # type: ignore[arg-type]
