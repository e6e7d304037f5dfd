"""What a peer writes down: its own run folder, from which it goes on after whatever has happened."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from msgspec import UNSET
from safetensors.torch import save_file

from atoll.durable import replaced
from atoll.errors import ConfigError
from atoll.peer.circle import Circle
from atoll.peer.member import Member
from atoll.runs.events import kinds
from atoll.runs.events.kinds import Link
from atoll.runs.folder import RunFolder
from atoll.runs.readers import Reader
from atoll.runs.session import Session
from atoll.runs.snapshot import Snapshot
from atoll.tensors import Record

__all__ = ["Book", "Labels", "secret"]


def secret(file: Path) -> bytes:
    """32 bytes that nobody else knows: made once, and kept, so that a round that is played again goes the same way."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        replaced(file, secrets.token_bytes(32), secret=True)
    return file.read_bytes()


@dataclass(frozen=True)
class Labels:
    """What a run is called, and how it was set."""

    method: str
    data: str
    model: str
    seed: int
    rounds: int
    config: Mapping[str, Any] = field(default_factory=dict)


class Book:
    """A peer's run, written down after every round.

    Args:
        place: where its run folders go. The last one there is gone on with, where it is of this run and not over.
        run: a hash of what all peers have alike.
    """

    def __init__(
        self,
        place: Path,
        run: str,
        member: Member,
        names: Sequence[str],
        labels: Labels,
        log: Sequence[Reader],
    ) -> None:
        self.member, self.names, self.labels, self.run = member, tuple(names), labels, run
        self.name = self.names[member.number]
        self.session = Session(place, log=list(log), checkpoint=1, keep="last")
        self.number = 0
        self.facts: dict[str, Any] = {}
        self.said = Record()
        """By number, what it has said and somebody may still ask for."""
        self.missing: dict[str, list[int]] = {}
        """By the name of another one, the rounds in which nothing came of it."""
        self.sent = self.received = 0
        self.figures: dict[str, float] = {}
        self._stack, self._last = ExitStack(), time.perf_counter()
        self._before: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> Self:
        found = self._unfinished()
        if found is not None:
            checkpoint, _ = self.session.resume(found.path, self._identity)
            self.number, self.facts = checkpoint.round, dict(checkpoint.facts["peer"])
            self.member.take(checkpoint.records["state"])
            self.said = checkpoint.records["said"]
            self.missing = {name: list(each) for name, each in self.facts.get("missing", {}).items()}
            self.sent, self.received = self.facts.get("sent", 0), self.facts.get("received", 0)
        self._stack.enter_context(
            self.session.written(
                lambda: [self._start()], self._snapshot(), name=f"{self.labels.method}-{self.name}",
                rounds=self.labels.rounds, identity=self._identity, model=self._model,
            )
        )  # fmt: skip
        self._last = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._stack.__exit__(kind, error, trace)

    @property
    def _identity(self) -> dict[str, Any]:
        return {"run": self.run, "peer": self.name}

    def _unfinished(self) -> RunFolder | None:
        """The run that was broken off here.  Raises ConfigError where another one lies here, or it is over."""
        assert self.session.runs is not None
        folders = RunFolder.all(self.session.runs)
        if not folders:
            return None
        last = folders[-1]
        if any(event["event"] == "result" for event in last.log().events):
            raise ConfigError(
                f"{self.name} has finished its run: it is in {last.path}",
                hint="another --place DIR begins anew",
            )
        return last

    def _start(self) -> kinds.Start:
        labels = self.labels
        return kinds.Start(
            method=labels.method, data=labels.data, model=labels.model, seed=labels.seed, rounds=labels.rounds,
            parameters=len(self.member.own.model), measure="loss" if self.member.data.classes is None else "accuracy",
            classes=self.member.data.classes, engine="here", peer=self.name, peers=self.names, config=labels.config,
        )  # fmt: skip

    def _snapshot(self) -> Snapshot:
        return Snapshot(
            self.number, {"state": self.member.held(), "said": self.said}, facts={"peer": self.facts}
        )

    def _model(self, path: Path) -> None:
        params, buffers = self.member.model()
        save_file({name: value.contiguous() for name, value in {**params, **buffers}.items()}, path)

    @property
    def unheard(self) -> list[tuple[int, tuple[int, list[str]], Record]]:
        """What it had said when it was broken off: number, since which and for whom, and what it was."""
        facts = self.facts.get("said", {})
        return [(int(number), tuple(facts[number]), held) for number, held in self.said.items()]

    @property
    def begins(self) -> int:
        """The number from which on it says something, or has said it and can once more."""
        return min([self.number * self.member.phases + 1, *(number for number, _, _ in self.unheard)])

    def lost(self, name: str, round: int) -> None:
        """Nothing came of another one in a round."""
        found = self.missing.setdefault(name, [])
        if not found or found[-1] != round:
            found.append(round)

    def commit(
        self, round: int, circle: Circle, loss: float | None, apart: float | None, judged: bool
    ) -> None:
        """A round counts."""
        links, up, down = dict[str, Link](), 0, 0
        for name, other in circle.others.items():
            was = self._before.get(name, (0, 0))
            now = other.sent, other.received
            self._before[name] = now
            if now == was and not other.heard and name not in self.missing:
                continue
            up, down = up + now[0] - was[0], down + now[1] - was[1]
            links[name] = Link(
                sent=now[0] - was[0],
                received=now[1] - was[1],
                heard=(other.heard + self.member.phases - 1) // self.member.phases,
                gone=other.gone,
            )
        self.sent, self.received = self.sent + up, self.received + down
        if judged:
            self.figures = self.member.judged()
        unheard = circle.sayings.unheard(lambda name: circle.others[name].gone)
        self.said = Record({str(number): each.spoken.held() for number, each in unheard.items()})
        self.facts = {
            "said": {str(number): (each.since, sorted(each.due)) for number, each in unheard.items()},
            "heard": {name: other.heard for name, other in circle.others.items() if other.heard},
            "addresses": {n: str(other.address) for n, other in circle.others.items() if other.address},
            "spoken": circle.sayings.spoken, "missing": self.missing, "sent": self.sent, "received": self.received,
        }  # fmt: skip
        self.number, now_ = round, time.perf_counter()
        event = kinds.Round(
            round=round, loss=loss, bytes_up=up, bytes_down=down, seconds=max(0.0, now_ - self._last), links=links,
            evaluation=kinds.Evaluation(overall=self.figures if judged else {},
                                        consensus=UNSET if apart is None else apart) if judged else None,
        )  # fmt: skip
        self._last = now_
        self.session.commit(lambda: event, self._snapshot(), last=round == self.labels.rounds)

    def end(self) -> None:
        """All rounds are over."""
        self.figures = self.figures or self.member.judged()
        self.session.end(
            kinds.Result(
                reason="rounds", method=self.labels.method, data=self.labels.data, rounds=self.number,
                seconds=self.session.seconds, bytes_up=self.sent, bytes_down=self.received,
                accuracy=self.figures.get("accuracy", UNSET), loss=self.figures.get("loss", UNSET),
                missing=self.missing or UNSET,
            )
        )  # fmt: skip
