"""Answers to a job, in whatever order they come, reduced as if they had come in the order of clients."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from atoll.contract.messages import Reply
from atoll.contract.orders import Answer, Job, Outcome
from atoll.contract.reduce import Reducer, chunks
from atoll.contract.screen import screen

__all__ = ["Gathering", "outcome", "weighed"]


def outcome(answer: Answer, job: Job, begun: float = 0.0, ended: float = 0.0) -> Outcome:
    """What an answer came to: whether its reply may be used, and its figures."""
    reply = answer.reply
    reason = screen(reply, job.form(answer.client))
    metrics = {name: _plain(value) for name, value in reply.metrics.items()}
    size = job.nbytes(reply.values, answer.client) if answer.nbytes is None else answer.nbytes
    return Outcome(
        answer.client, float(reply.weight), metrics, size, reason, begun, ended,
        None if reason else answer.probe,
    )  # fmt: skip


def weighed(answer: Answer, job: Job) -> Answer:
    """An answer with the weight and the factor that its reply is to have, and its bytes, which are those of before."""
    if answer.nbytes is None and job.varies:
        answer = answer._replace(nbytes=job.sent(answer.reply.values, answer.client))
    reply = job.weighed([answer.client], answer.reply)
    return answer if reply is answer.reply else answer._replace(reply=reply)


def _plain(value: Any) -> Any:
    """A sum as a number, rows as lists."""
    return value.tolist() if isinstance(value, Tensor) and value.ndim else float(value)


class Gathering:
    """Takes the answers of a job's clients, each once, and reduces the sound ones.

    The cohort is cut into runs (`chunks`); each run is summed in the order of its clients, and the runs are merged in
    order, each as soon as those before it are whole. A reply waits until those before it in its run are there, so of
    answers that come in order one total and one run's sum are kept.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._total = job.reducer()
        self._merged = 0  # runs
        self._runs = [[job.clients[at] for at in run] for run in chunks(len(job.clients))]
        self._run_of = {client: number for number, run in enumerate(self._runs) for client in run}
        self._next = [0] * len(self._runs)
        self._parts: list[Reducer | None] = [None] * len(self._runs)
        self._waiting: dict[int, Reply | None] = {}  # None: refused
        self._outcomes: dict[int, Outcome] = {}

    @property
    def missing(self) -> list[int]:
        """Clients that have not answered yet, in order."""
        return [client for client in self.job.clients if client not in self._outcomes]

    def deliver(self, answer: Answer, begun: float = 0.0, ended: float = 0.0) -> Outcome:
        """Take an answer.  Raises KeyError for a client that was not asked, ValueError for one that has answered."""
        client = answer.client
        if client not in self._run_of:
            raise KeyError(client)
        if client in self._outcomes:
            raise ValueError(f"client {client} has answered before")
        answer = weighed(answer, self.job)
        found = outcome(answer, self.job, begun, ended)
        self._take(found, None if found.refused else answer.reply)
        return found

    def refuse(
        self, client: int, reason: str, begun: float = 0.0, ended: float = 0.0, nbytes: int = 0
    ) -> Outcome:
        """A client has answered, or failed to, and there is nothing that can be used.  Raises as `deliver` does."""
        found = Outcome(client, 0.0, {}, nbytes, reason, begun, ended)
        if client in self._outcomes:
            raise ValueError(f"client {client} has answered before")
        self._take(found, None)
        return found

    def _take(self, found: Outcome, reply: Reply | None) -> None:
        run = self._run_of[found.client]
        self._outcomes[found.client], self._waiting[found.client] = found, reply
        clients = self._runs[run]
        while self._next[run] < len(clients) and clients[self._next[run]] in self._waiting:
            self._add(run, clients[self._next[run]])
            self._next[run] += 1
        while self._merged < len(self._runs) and self._next[self._merged] == len(self._runs[self._merged]):
            self._merge()

    def _add(self, run: int, client: int) -> None:
        reply = self._waiting.pop(client)
        if reply is not None:
            if len(self._runs[run]) == 1 and run == self._merged:
                self._total.merge_one(self.job.reducer, client, reply)
                return
            part = self._parts[run] = self._parts[run] or self.job.reducer()
            part.add(client, reply)

    def _merge(self) -> None:
        part, self._parts[self._merged] = self._parts[self._merged], None
        self._merged += 1
        if part is not None:
            self._total.merge(part)

    def result(self) -> tuple[Reducer, list[Outcome]]:
        """The reducer that has taken all sound replies, and the outcomes of those that answered, in order."""
        for run in range(self._merged, len(self._runs)):
            for client in self._runs[run][self._next[run] :]:  # somebody before them never answered
                if client in self._waiting:
                    self._add(run, client)
            self._merge()
        return self._total, [
            self._outcomes[client] for client in self.job.clients if client in self._outcomes
        ]
