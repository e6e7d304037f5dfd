"""Pretended populations and rounds for the tests of choices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from atoll.rounds.choosing import Ask, Choice, Learned


def sizes(clients: Any) -> Any:
    return 1 + np.asarray(clients) % 7


def seconds(clients: Any) -> Any:
    return 1.0 + (np.asarray(clients) * 7) % 11


def ask(
    number: int = 1,
    *,
    present: Any = 20,
    count: int = 5,
    away: Sequence[int] = (),
    nth: int = 0,
    seed: int = 3,
    size: Any = sizes,
    duration: Any = seconds,
) -> Ask:
    there = lambda clients: ~np.isin(clients, [*away])  # noqa: E731
    return Ask(number, nth, seed, count, present, there, size, duration)


def learned(number: int, clients: Sequence[int], loss: Any = None, **more: Any) -> Learned:
    """A round in which all of them answered."""
    k = np.asarray(clients, np.int64)
    given = {
        "loss": 1.0 + k % 5 if loss is None else np.broadcast_to(np.asarray(loss, float), k.shape),
        "samples": sizes(k),
        "seconds": seconds(k),
        "answered": np.ones(len(k), bool),
        "squares": np.full(len(k), np.nan),
    }
    return Learned(number, k, **{**given, **more})


def played(kind: Choice, rounds: int, population: int = 20, **more: Any) -> tuple[Any, list[list[int]]]:
    """The state after some rounds, and who was asked."""
    state, cohorts = kind.begin(population), []
    for number in range(1, rounds + 1):
        drawn = kind.draw(state, ask(number, **{"present": population, **more}))
        cohorts.append(drawn.clients)
        state = kind.learn(drawn.state, learned(number, drawn.clients))
    return state, cohorts
