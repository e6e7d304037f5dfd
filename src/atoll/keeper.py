"""Writes a simulation down through a session, and takes it up again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import nn

from atoll import facts, spec
from atoll.engines import ALIKE, make
from atoll.errors import ConfigError
from atoll.export import Trained
from atoll.measures import Target
from atoll.results import Run
from atoll.rounds.alarm import Alarm
from atoll.rounds.cohort import Cohort
from atoll.rounds.history import Round, best
from atoll.rounds.play import Played, Simulation
from atoll.runs.events import Event, kinds
from atoll.runs.readers import Reader
from atoll.runs.session import Session
from atoll.runs.snapshot import Snapshot
from atoll.settings import Settings
from atoll.show.progress import screen
from atoll.spending import Spending
from atoll.tensors import to_device

__all__ = ["Keeper"]

_TRIED = 32
"""Samples that an exported model is tried on."""


class Keeper:
    """Hands the facts of a simulation's rounds to a session.

    Args:
        log: readers of the run's events, names or objects.

    `labels` name the method, data, partition and model; `config` are further settings of what made the federation,
    `usual` their defaults.
    Raises ConfigError for a target that the run does not measure, and for readers that there are not.
    """

    def __init__(
        self,
        settings: Settings,
        simulation: Simulation,
        log: str | Sequence[str | Reader] = (),
    ) -> None:
        self.settings, self.simulation, self.tasks = settings, simulation, simulation.tasks
        self.method, self.data = simulation.method, simulation.data
        self.session = Session(
            settings.runs,
            log=spec.items(log, "log") if isinstance(log, str) else log,
            checkpoint=settings.checkpoint,
            keep=settings.keep,
        )
        self.labels = {
            "method": type(self.method).__name__,
            "data": self.data.dataset,
            "partition": self.data.partition,
            "model": type(self.tasks[0].module).__name__,
        }
        self.config: dict[str, Any] = {}
        self.usual: dict[str, Any] = {}
        self.target = None if settings.target is None else Target.parse(settings.target)
        if self.target is not None:
            self.target = self.target.check(simulation.judge.better)
        self.spending = Spending(settings, simulation)
        self._looked: tuple[list[Round], int, int | None] = simulation.history, 0, None
        self._counted: tuple[list[Round], int, int] = simulation.history, 0, 0
        self._alarm = Alarm()
        self._reason: kinds.Reason | None = None  # why the run is over
        self._told: tuple[str, int | None, str] | None = None  # the engine that the events know of, and why

    # --- facts ------------------------------------------------------------------------------------------------

    @property
    def target_round(self) -> int | None:
        """The first round that reached the target."""
        if self.target is None:
            return None
        history, (known, looked, reached) = self.simulation.history, self._looked
        if known is not history:  # another run was taken up
            looked, reached = 0, None
        if reached is None:  # each round is looked at once: this is asked after every one of them
            judged = ((each.number, each.evaluation) for each in history[looked:] if each.evaluation)
            reached = next((number for number, found in judged if self.target.reached(found)), None)
        self._looked = history, len(history), reached
        return reached

    @property
    def over(self) -> kinds.Reason | None:
        """Why the run is over before all its rounds are played; None where it is not."""
        patience = self.settings.patience
        if self.target_round is not None:
            return "target"
        if patience is not None and best(self.simulation.history)[1] >= patience:
            return "patience"
        if self.simulation.number >= self.settings.rounds:
            return None
        if self.settings.tokens is not None and self._read() >= self.settings.tokens:
            return "tokens"
        return "budget" if self.spending.exhausted(self._place) else None

    def _read(self) -> int:
        """Tokens that clients have read so far."""
        history, (known, looked, count) = self.simulation.history, self._counted
        if known is not history:  # another run was taken up
            looked, count = 0, 0
        count += sum(each.tokens or 0 for each in history[looked:])  # each round is looked at once
        self._counted = history, len(history), count
        return count

    @property
    def _place(self) -> Path | None:
        """Where the ledger lies."""
        return None if self.session.folder is None else self.session.folder.path

    def charged(self, played: Played) -> Played:
        """Pay for a round before anything of it is shown (see `Spending.charged`)."""
        return self.spending.charged(played, self._place)

    def run(self) -> Run:
        """What the rounds played so far came to."""
        now, labels, cpu = self.simulation, self.labels, torch.device("cpu")
        params, buffers = (to_device(part, cpu) for part in self.method.model(now.state))
        model = self.tasks[0].load(params, buffers)
        return Run(
            labels["method"], labels["data"], labels["partition"], now.engine.describe(), now.history,
            self.session.seconds, self.target_round, model, self.session.folder,
            self.events, now.judge.better, now.judge.tested, self.data.names,
            self.spending.figures(), self._reason, partial(self._trained, model),
        )  # fmt: skip

    def _trained(self, model: nn.Module, client: int | str | None) -> Trained:
        """This global model, or the model that a client predicts with now, and what there is to say of it."""
        data, whose, samples = self.data, "everybody", None
        if client is None:
            samples = data.test_set
        else:
            at = data.position(client)
            whose = str(data.names[at])
            if not data.here:
                raise ConfigError(f"the model of {whose} is with {whose}", hint="export the global model")
            if self.method.beside:
                raise ConfigError(
                    f"clients of {self.labels['method']} predict by {self.method.beside}, which is no model",
                    hint="export the global model",
                )
            model = self.simulation.personal(at)
            samples = data.samples(at, "test") or data.samples(at)
        about = {
            **self.labels, "rounds": self.simulation.number, "of": whose, "classes": data.classes,
            "loss": self.tasks[0].loss_text, **({"scale": dict(data.scale)} if data.scale else {}),
        }  # fmt: skip
        return Trained(model, (samples or data.example()).inputs[:_TRIED], about)

    @contextmanager
    def written(self, progress: bool | None) -> Iterator[None]:
        """Inside, the run is played, written down and shown (see `atoll.show.progress.screen`)."""
        readers = self.session.log
        display = screen(progress)
        self.session.log = readers if display is None else [*readers, display]
        try:
            with self.session.written(
                self.opening,
                self._snapshot(),
                name=self.labels["method"].lower(),
                rounds=self.settings.rounds,
                identity=self._identity(),
                model=lambda path: self.run().save(path),
                repeatable=bool(self.config),
            ):
                yield
        finally:
            self.session.log = readers
            self.spending.close()

    @property
    def can_resume(self) -> bool:
        """Whether the run folder has a checkpoint of the last round that counts."""
        return self.session.can_resume and self.session.number == self.simulation.number

    def stated(self) -> dict[str, Any]:
        """Every setting that can be written as a value, the method's among them."""
        own = {**self.settings.to_dict(), "cohort": self.simulation.cohorts.size}
        return {"method": self.labels["method"], **own, **facts.fields(self.method), **self.config}

    def events(self) -> list[Event]:
        """The run so far."""
        judged = self.simulation.judge.clients
        rounds = (facts.round_event(each, judged) for each in self.simulation.history)
        return self.session.events(self.opening, rounds)

    def html(self, title: str) -> str:
        """What the federation is, as a table."""
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(key)}</th>"
            f"<td style='text-align:left'>{escape('none' if value is None else str(value))}</td></tr>"
            for key, value in {**self.labels, **self.stated()}.items()
        )
        return f"<div><b>{escape(title)}</b><table>{rows}</table></div>"

    def opening(self) -> tuple[kinds.Start, kinds.Partition]:
        """The events that the run begins with."""
        simulation, task = self.simulation, self.tasks[0]
        config, usual = self.stated(), {**facts.defaults(self.method), **self.usual}
        asked = {**config, "cohort": self.settings.cohort}
        changed = [
            key for key, value in asked.items() if key not in ("method", "runs") and value != usual.get(key)
        ]
        return facts.opening(
            self.labels, config, self.method, task, self.data, simulation.cohorts, simulation.judge, changed,
            simulation.attackers,
        )  # fmt: skip

    def _identity(self) -> dict[str, Any]:
        device = self.simulation.judge.device.type
        return facts.identity(
            self.method, self.tasks, self.data, self.simulation.cohorts, device, self.settings,
            self.simulation.attackers,
        )  # fmt: skip

    def _snapshot(self) -> Snapshot:
        now = self.simulation
        records = {"state": now.state, "progress": now.progress.to_record()}
        return Snapshot(now.number, records, now.memories, {"engine": now.engine.settled()})

    # --- what happens -----------------------------------------------------------------------------------------

    def begun(self, cohort: Cohort) -> None:
        """A round has begun."""
        number = self.simulation.number + 1
        if self._told is not None:  # after the first round it is known before a round which engine plays it
            self._tell_engine(number)
        self.session.emit(kinds.Begin(round=number, cohort=cohort.clients))

    def committed(self, played: Played) -> None:
        """A round counts."""
        record = played.record
        if self._told is None:
            self._tell_engine(record.number)
        self.session.commit(
            lambda: facts.round_event(
                record, self.simulation.judge.clients if record.evaluation is not None else []
            ),
            self._snapshot(),
            last=record.number == self.settings.rounds or self.over is not None,
            beside=lambda: facts.affinity(self.method, played),
        )
        if (notice := self._alarm.notice(record)) is not None:
            self.session.problem("one class", notice)

    def _tell_engine(self, number: int) -> None:
        """What the engine settled on, from this round on, where that is news."""
        engine = self.simulation.engine
        if self._told != (told := (*engine.settled(), engine.describe())):
            name, workers, text = self._told = told
            self.session.emit(kinds.Engine(round=number, name=name, workers=workers, text=text))

    def end(self) -> None:
        """The run is over."""
        whole = len(self.simulation.history) >= self.settings.rounds
        self._reason = self.over or ("rounds" if whole else "stopped")
        self.session.end(kinds.Result(reason=self._reason, **self.run().to_dict()))

    def resume(self, run: str | Path) -> None:
        """Take up a run (see `Federation.resume`)."""
        found, events = self.session.resume(run, self._identity(), self._check_engine)
        name, workers = found.facts["engine"]
        name = self.settings.engine if {name, self.settings.engine} <= {*ALIKE} else name
        threads = workers if name == "batched" else self.settings.workers or workers
        judged: list[int] = next((e["judged"] for e in events if e["event"] == "partition"), [])
        device = self.simulation.judge.device
        engine = self.simulation.engine
        if self.data.here:
            settings = self.settings
            engine = make(
                name,
                self.tasks,
                engine.data,
                device,
                threads,
                address=settings.ray_address,
                gpus=settings.ray_gpus,
                silo=settings.silo,
            )
        state, sound = self.method.on_device(found.records["state"], device), found.records.get("sound")
        self.simulation.take_up(
            [Round.of_event(each, judged) for each in events if each["event"] == "round"],
            found.round,
            state,
            state if sound is None else self.method.on_device(sound, device),
            engine,
            found.records.get("progress"),
        )
        found.restore(self.simulation.memories)

    def _check_engine(self, known: Mapping[str, Any]) -> None:
        """Refuse a run that another engine played."""
        name, _ = known["engine"]
        if self.settings.engine not in ("auto", name) and not {name, self.settings.engine} <= {*ALIKE}:
            raise ConfigError(
                f"the run was played by the engine {name}, not {self.settings.engine}",
                hint="leave engine out: another one differs in the last bits",
            )
