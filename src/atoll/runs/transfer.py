"""What taking part is worth to clients: the model each would use beside the one it would have trained alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atoll.runs.grouping import settings
from atoll.runs.story import Story

__all__ = ["Transfer", "ground", "partners"]

_OF_CLIENTS = ("data", "partition", "clients")
_OF_START = (*_OF_CLIENTS, "model", "parameters")
_OF_CONFIG = ("label", "client", "test", "validation", "loss")


@dataclass(frozen=True)
class Transfer:
    """How clients fare in a run beside a run of Local, client by client, in the main measure of the last evaluations.

    `gain` is the mean over clients of how much better they are than with their Local model; `worse_off` the share of
    clients that are worse (negative transfer), and `worse_by` by how much those are on average, None where there are
    none. A lower loss is better; the accuracies are fractions.
    """

    gain: float
    worse_off: float
    worse_by: float | None

    @staticmethod
    def of(story: Story, local: Story | None) -> Transfer | None:
        """None without a run of Local, or where no client was judged in both."""
        alone: Mapping[int, float] = local.own if local is not None else {}
        sign = -1 if story.measure == "loss" else 1
        gains = [sign * (value - alone[client]) for client, value in story.own.items() if client in alone]
        if not gains:
            return None
        worse = [-gain for gain in gains if gain < 0]
        by = statistics.fmean(worse) if worse else None
        return Transfer(statistics.fmean(gains), len(worse) / len(gains), by)


def ground(story: Story) -> str:
    """What two runs have in common that have the same clients: equal texts, equal data of every client."""
    parts = [story.seed, story.sizes, *(story.start.get(key) for key in _OF_CLIENTS)]
    return repr([*parts, *(story.config.get(key) for key in _OF_CONFIG if key != "loss")])


def partners(groups: Sequence[Sequence[Story]]) -> list[list[Story | None]]:
    """For every run of every group the run of Local with the same data, division, model and seed, or None.

    Where several are (a sweep of learning rates, say), it is that of the group whose other settings differ least.
    Runs of Local have none.
    """
    alone = [members for members in groups if _is_local(members[0])]
    return [
        [None] * len(members) if _is_local(members[0]) else _partners(members, alone) for members in groups
    ]


def _partners(members: Sequence[Story], alone: Sequence[Sequence[Story]]) -> list[Story | None]:
    near = sorted(alone, key=lambda group: _distance(members[0], group[0]))
    return [
        next((local for group in near for local in group if _same_footing(story, local)), None)
        for story in members
    ]


def _is_local(story: Story) -> bool:
    return story.method.lower() == "local"


def _same_footing(one: Story, other: Story) -> bool:
    """Whether clients have the same data and the same model in two runs, as far as both say."""
    if one.seed != other.seed:
        return False
    pairs: list[tuple[Any, Any]] = [(one.start.get(key), other.start.get(key)) for key in _OF_START]
    pairs += [(one.config[key], other.config[key]) for key in _OF_CONFIG if _both(key, one, other)]
    pairs.append((one.sizes, other.sizes))
    return all(here == there or here is None or there is None for here, there in pairs)


def _distance(one: Story, other: Story) -> int:
    """In how many settings that both have two runs differ."""
    shared = [key for key in settings(one.config) if key != "method" and _both(key, one, other)]
    return sum(one.config[key] != other.config[key] for key in shared)


def _both(key: str, one: Story, other: Story) -> bool:
    return key in one.config and key in other.config
