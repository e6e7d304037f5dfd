"""A federation whose attackers have poisoned data, and what their success is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from atoll.attacks.poison import Attacker, Poison
from atoll.data import FederatedData, Samples
from atoll.data.exchanged import exchanged
from atoll.data.samples import concatenate
from atoll.errors import ConfigError
from atoll.tensors import Record

__all__ = ["poisoned"]

_TOGETHER = 100
"""Attackers whose samples are looked at together."""


@dataclass(frozen=True)
class _Poisoning:
    """What becomes of each attacker's samples; no closure, so that it can be sent to workers."""

    poison: Poison
    known: Record
    attackers: tuple[int, ...]
    seed: int

    def __call__(self, client: int, samples: Samples) -> Samples:
        nth = self.attackers.index(client)
        return self.poison.poisoned(
            samples, self.known, Attacker(client, nth, len(self.attackers), self.seed)
        )


def poisoned(
    data: FederatedData, poison: Poison, attackers: Sequence[int], seed: int
) -> tuple[FederatedData, Samples | None]:
    """The data as attackers train on them, and the test samples that their success is measured on (None: no test).

    Raises ConfigError for data without one class a sample.
    """
    example = data.example()
    if data.classes is None or example.targets.ndim != 1:
        raise ConfigError(
            f"attack {poison.text!r} is about classes, and the samples of {data.dataset} have "
            + ("numbers as targets" if data.classes is None else "several targets each"),
            hint='lie about updates instead, such as attack="signflip"',
        )
    poison.check(example, data.classes)
    some = [data.samples(client) for client in attackers[:_TOGETHER]]
    known = poison.learn(concatenate([each for each in some if each is not None]), data.classes)
    test = data.test_set
    shown = None if test is None else poison.wanted(test, known)
    change = _Poisoning(poison, known, tuple(attackers), seed)
    return exchanged(data, attackers, change), shown if shown is not None and shown.count else None
