"""Rounds one after another, each with everybody's answer: what a simulation plays."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from atoll import seeds
from atoll.channel.down import Down
from atoll.contract import Channel, Job, Method, Outcome, Population
from atoll.data import FederatedData
from atoll.engines import Engine
from atoll.machine import threads
from atoll.rounds.adapting import Rule, Seen, asked, limited, seen
from atoll.rounds.archive import Archive
from atoll.rounds.choosing import Learned
from atoll.rounds.cohort import Cohort, Cohorts
from atoll.rounds.evaluation import Evaluation
from atoll.rounds.history import Round
from atoll.rounds.judge import Judge
from atoll.rounds.memories import MemoryStore
from atoll.rounds.outcomes import apart, columns, mean_loss, read, taught, window
from atoll.rounds.personal import personal_model
from atoll.rounds.progress import Progress
from atoll.rounds.round import ServerRound, diverged
from atoll.task import architecture
from atoll.tensors import Record, to_device

__all__ = ["Played", "Simulation"]

_HOPELESS = 1e4  # a mean cross entropy that guessing at random never comes near


@dataclass(frozen=True)
class Played:
    """A round that was played and does not count yet: what happened, the state after it, what became of each reply.

    `progress` is what the run goes on from besides.
    """

    record: Round
    state: Record
    outcomes: Sequence[Outcome]
    progress: Progress


class Simulation:
    """The rounds of a simulated federation.

    A round is played beside the present state, and counts once it is committed: whatever breaks it off leaves `state`
    and the memories where they were.

    Args:
        state: the server's state before the first round.
        rule: fits local work to how learning goes, and to devices where there are some.

    `tasks` are the architectures of its clients. `number` is the last round that counts, `history` what happened in
    all of them. `sound` is the last state that an evaluation found finite.
    """

    def __init__(
        self,
        method: Method,
        population: Population,
        data: FederatedData,
        cohorts: Cohorts,
        engine: Engine,
        judge: Judge,
        state: Record,
        *,
        channel: Channel | None = None,
        rule: Rule | None = None,
    ) -> None:
        self.method, self.population, self.data = method, population, data
        self.cohorts, self.engine, self.judge, self.channel = cohorts, engine, judge, channel
        self.rule = rule
        self.down: Down | None = None
        """What happens to models on their way to clients."""
        self.attackers: tuple[int, ...] = ()
        """Clients that lie, ascending."""
        self.tasks = population.tasks
        self.window = window(data.example())
        self.memories = MemoryStore()
        self.state = self.sound = state
        self.number = 0
        self.history: list[Round] = []
        self._archive = Archive()
        self.progress = Progress(
            cohorts.choice.begin(len(data)),
            Record() if rule is None else rule.begin(),
            Record() if channel is None else channel.begin(),
        )

    def advance(self, begun: Callable[[Cohort], object] = lambda _: None) -> Played:
        """Play the next round; `begun` is told who works in it. Nothing counts yet.

        Raises DivergedError, RunError (see `ServerRound.settle`).
        """
        self.memories.rollback()
        number, since = self.number + 1, time.perf_counter()
        cohort, choice = self.enlist(number)
        begun(cohort)
        jobs: dict[int, Job] = {}
        with seeds.held():
            round = self.opened(self.state, cohort, number)
            while round.job is not None:
                job = self.fitted(round) if round.phase == "train" else round.job
                jobs = dict.fromkeys(job.clients, job)
                came = self.engine.run(job, self.memories)
                with threads(torch.get_num_threads()):  # as many, but they wait asleep beside neighbours
                    round.settle(*came)
        seconds = time.perf_counter() - since
        answered = {outcome.client for outcome in round.outcomes}
        dropped = sorted({*cohort.dropped, *(k for k in cohort.clients if k not in answered)})
        record = Round(
            number, cohort.clients, dropped, round.refused, mean_loss(round.outcomes), round.bytes_up,
            round.bytes_down, seconds,
            clients=columns(cohort, round.outcomes, since, self.method.plan().epochs, round.kept),
            tokens=read(round.outcomes, self.window),
        )  # fmt: skip
        learned = taught(number, cohort.clients, round.outcomes, self.history)
        progress = replace(
            self.progress,
            choice=self.cohorts.choice.learn(choice, learned),
            rule=self.ruled(learned, round.outcomes, jobs),
            told=round.told,
            spread=round.spread,
        )
        return Played(record, round.state, round.outcomes, progress)

    def enlist(self, number: int) -> tuple[Cohort, Record]:
        """Who takes part in a round, and the state of the choice then."""
        return self.cohorts.enlist(number, self.progress.choice)

    @property
    def replies(self) -> int:
        """Replies that a step of the server takes, where all come."""
        return self.cohorts.size

    @property
    def codecs(self) -> int:
        """How many codecs of the channel there are to choose between; 0: nobody need choose."""
        return 0 if self.channel is None else self.channel.codecs

    def fitted(self, round: ServerRound) -> Job:
        """What clients are asked in training, with the codecs and steps that the rule wishes for."""
        assert round.job is not None
        if self.rule is None:
            return round.job
        view = seen(round.job, self.data)
        if self.codecs:
            round.choose(self.rule.codecs(self.progress.rule, view))
        return limited(round.job, self.wished(view))

    def wished(self, view: Seen) -> dict[int, int]:
        """The local steps of clients that are to do fewer than planned."""
        return {} if self.rule is None else dict(self.rule.plan(self.progress.rule, view).steps)

    def ruled(
        self, learned: Learned, outcomes: Sequence[Outcome], jobs: Mapping[int, Job], time: float = 0.0
    ) -> Record:
        """The rule's state after a round that ended at this virtual time; `jobs` by client, of those that began."""
        now = self.progress.rule
        if self.rule is None:
            return now
        steps = [
            asked(jobs[k], k, self.data.size(k))[0] if k in jobs else 0 for k in learned.clients.tolist()
        ]
        more = learned._replace(
            steps=np.array(steps, np.int64), apart=apart(outcomes) if self.rule.compares else math.nan
        )
        return self.rule.learn(now, more, time)

    def opened(self, state: Record, cohort: Cohort, number: int) -> ServerRound:
        """The server's side of a round that begins with this state; nothing is kept of those that are gone."""
        for client in cohort.gone:
            if (memory := self.memories.get(client)) is not None:
                own = memory if self.channel is None else memory.method
                state = self.method.farewell(state, to_device(own, self.judge.device))
            self.memories.forget(client)
        return ServerRound(
            self.method, self.population, state, cohort, number, self.cohorts.seed,
            channel=self.channel, told=self.progress.told, down=self.down, spread=self.progress.spread,
            name=self.data.names.__getitem__,
        )  # fmt: skip

    def evaluate(self) -> Evaluation:
        """Judge the present models."""
        return self.judge(self.method, self.state, self.memories, self.number, self.progress.began)

    def judged(self, played: Played) -> Played:
        """The round with an evaluation of its state.

        Raises DivergedError where the model has left the finite numbers; the state is the last sound one then.
        """
        evaluation = self.judge(
            self.method, played.state, self.memories, played.record.number, played.progress.began
        )
        problem = _problem(evaluation)
        if problem is not None:
            self.state = self.sound
            raise diverged(played.record.number, problem)
        return replace(played, record=replace(played.record, evaluation=evaluation))

    def personal(self, client: int) -> nn.Module:
        """The model that a client would predict with now (see `atoll.rounds.personal`)."""
        task = self.tasks[architecture(client, len(self.tasks))]
        with seeds.scoped(self.cohorts.seed, "personal", self.number):
            return personal_model(
                self.method, self.state, client, task, self.data, self.memories, self.judge.device, self.number,
                self.cohorts.seed, self.channel,
            )  # fmt: skip

    def take_up(
        self,
        history: list[Round],
        number: int,
        state: Record,
        sound: Record,
        engine: Engine,
        progress: Record | None = None,
    ) -> None:
        """Go on after a round that was played elsewhere, with the engine that gives its bits, without any memories."""
        self.engine.close()
        self.engine = self.judge.engine = engine
        self.history, self.number, self.state, self.sound = [], number, state, sound
        for each in history:
            self._remember(each)
        if progress is not None:
            self.progress = Progress.of_record(progress, self.method, self.channel, self.cohorts.seed)
        self.memories.close()

    def commit(self, played: Played) -> None:
        """From now on the round counts."""
        self.state, self.number, self.progress = played.state, played.record.number, played.progress
        self.memories.commit()
        if played.record.evaluation is not None:
            self.sound = played.state
        self._remember(played.record)

    def _remember(self, record: Round) -> None:
        """Add a round to those that are over. Of the last one everything is at hand, what is known of the clients of
        those before it is read where somebody asks.
        """
        if self.history:
            self.history[-1] = self._archive.laid(
                self.history[-1], self.history[-2] if self.history[1:] else None
            )
        self.history.append(record)


def _problem(evaluation: Evaluation) -> str | None:
    """Why an evaluated model must be called diverged, or None."""
    loss = evaluation.overall.get("loss", 0.0)
    if not np.isfinite(loss):
        return f"the loss on the test set is {loss}"
    if "accuracy" in evaluation.overall and loss > _HOPELESS:
        return f"the loss on the test set is {loss:.3g}"
    return None
