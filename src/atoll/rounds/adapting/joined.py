"""Several rules at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from atoll.rounds.adapting.rule import Numbers, Rule, Seen, Wish
from atoll.rounds.choosing import Learned
from atoll.tensors import Record

__all__ = ["Joined"]


@dataclass(frozen=True)
class Joined(Rule):
    """Rules that go together: each knows its own state; of several numbers of steps the least counts."""

    rules: Sequence[Rule]

    @property
    def name(self) -> str:  # type: ignore[override]
        return " + ".join(rule.name for rule in self.rules)

    @property
    def clocked(self) -> bool:  # type: ignore[override]
        return any(rule.clocked for rule in self.rules)

    @property
    def rounds(self) -> bool:  # type: ignore[override]
        return any(rule.rounds for rule in self.rules)

    @property
    def flights(self) -> bool:  # type: ignore[override]
        return any(rule.flights for rule in self.rules)

    @property
    def limits(self) -> bool:  # type: ignore[override]
        return any(rule.limits for rule in self.rules)

    @property
    def compares(self) -> bool:  # type: ignore[override]
        return any(rule.compares for rule in self.rules)

    @property
    def chooses(self) -> bool:  # type: ignore[override]
        return any(rule.chooses for rule in self.rules)

    def begin(self) -> Record:
        return Record({rule.name: rule.begin() for rule in self.rules})

    def plan(self, state: Record, seen: Seen) -> Wish:
        steps: dict[int, int] = {}
        for rule in self.rules:
            for client, most in rule.plan(state[rule.name], seen).steps.items():
                steps[client] = min(most, steps.get(client, most))
        return Wish(steps)

    def codecs(self, state: Record, seen: Seen) -> Mapping[int, int]:
        found: dict[int, int] = {}
        for rule in self.rules:
            found |= rule.codecs(state[rule.name], seen)
        return found

    def size(self, state: Record, cohort: int) -> int:
        return min(rule.size(state[rule.name], cohort) for rule in self.rules)

    def deadline(self, state: Record, expected: Numbers, given: float) -> float:
        for rule in self.rules:
            given = rule.deadline(state[rule.name], expected, given)
        return given

    def learn(self, state: Record, learned: Learned, time: float) -> Record:
        return Record({rule.name: rule.learn(state[rule.name], learned, time) for rule in self.rules})
