"""Stages one behind the other: what becomes of a round's updates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from atoll import seeds
from atoll.errors import ConfigError
from atoll.robust.groups import Groups
from atoll.robust.points import Points
from atoll.robust.ranks import ordered
from atoll.robust.rows import Matrix, Rows
from atoll.robust.rule import Before, Columns, Rule

__all__ = ["Aggregated", "Aggregation"]


class Aggregated(NamedTuple):
    """What came out: the parts of the result, and what each update counted for in it, in shares of 1/n, [n]."""

    parts: list[Tensor]
    kept: Matrix


@dataclass(frozen=True)
class Aggregation:
    """A rule, and what stands before it.

    >>> from atoll.robust import NNM, Trimmed
    >>> Aggregation([NNM(), Trimmed(4)]).text
    'nnm + trimmed:4'

    Args:
        stages: any number of `Before`, and a `Rule` or `Columns` last.

    Raises ConfigError for an order that cannot be.
    """

    stages: tuple[Before | Rule | Columns, ...]

    def __init__(self, stages: Sequence[Before | Rule | Columns]) -> None:
        object.__setattr__(self, "stages", tuple(stages))
        if not self.stages or not all(isinstance(each, Before | Rule | Columns) for each in self.stages):
            raise ConfigError(
                f"aggregate = {list(stages)!r} is no list of rules",
                hint="such as [atoll.robust.NNM(), atoll.robust.Trimmed(4)]",
            )
        for each in self.stages[:-1]:
            if not isinstance(each, Before):
                raise ConfigError(
                    f"aggregate {self.text!r}: {each.name} makes one update of many, and nothing can follow it",
                    hint=f"put {each.name} at the end",
                )
        if isinstance(self.stages[-1], Before):
            raise ConfigError(
                f"aggregate {self.text!r}: {self.stages[-1].name} makes other updates of many, and no rule follows it",
                hint=f'write "{self.text} + trimmed:2" (or mean, median, krum:2 ...)',
            )
        for each in self.stages[1:]:
            if isinstance(each, Groups):
                raise ConfigError(
                    f"aggregate {self.text!r}: groups are made of clients, and so they come first",
                    hint=f"put {each.text} at the beginning",
                )
        for each in self.stages:
            if each.liars is not None and each.liars < 0:
                raise ConfigError(
                    f"aggregate {self.text!r}: f = {each.liars}, and nobody lies less than never",
                    hint="f is how many clients may lie, 0 or more",
                )
        for each in self.before:
            if each.counts and each.liars is None and self.liars is None:
                raise ConfigError(
                    f"aggregate {self.text!r}: nobody says how many clients may lie",
                    hint=f"write {self.text.replace(each.name, f'{each.name}:2', 1)}",
                )

    @property
    def text(self) -> str:
        """How it is written."""
        return " + ".join(each.text for each in self.stages)

    @property
    def rule(self) -> Rule | Columns:
        """What makes one update of many."""
        return self.stages[-1]  # type: ignore[return-value]

    @property
    def before(self) -> tuple[Before, ...]:
        """What stands before it."""
        return self.stages[:-1]  # type: ignore[return-value]

    @property
    def groups(self) -> Groups | None:
        """The groups whose means it is of, where it does not see single updates."""
        return self.stages[0] if isinstance(self.stages[0], Groups) else None

    @property
    def liars(self) -> int | None:
        """f of the rule, or the largest that is said before it."""
        said = [each.liars for each in self.stages if each.liars is not None]
        return self.rule.liars if self.rule.liars is not None else max(said, default=None)

    @property
    def beside(self) -> Literal["centre", "root"] | None:
        """What the rule needs a point of reference for."""
        return self.rule.beside

    def check(self, count: int) -> None:
        """Nothing where so many updates are enough.  Raises ConfigError."""
        for each in self.stages:
            each.check(count, (self.liars if each.liars is None else each.liars) or 0)
            count = each.count(count) if isinstance(each, Before) else count

    def enough(self, count: int) -> bool:
        """Whether so many updates are."""
        try:
            self.check(count)
        except ConfigError:
            return False
        return True

    def of(self, rows: Rows, seed: int, step: int) -> Aggregated:
        """What it makes of updates; the last row is the point of reference where there is one (`beside`).

        Draws have the address (seed, "aggregate", step, place in the chain).
        """
        references = 1 if self.beside else 0
        count = len(rows) - references
        mix, points = np.eye(count), None
        if self.before or isinstance(self.rule, Rule) or type(self.rule).chosen is not Columns.chosen:
            points = Points.of(rows, references)
        for at, each in enumerate(self.before):
            assert points is not None
            draw = seeds.rng(seed, "aggregate", step, at)
            made = each.mix(points, (self.liars if each.liars is None else each.liars) or 0, draw)
            mix, points = made @ mix, points.mixed(made)
        if isinstance(self.rule, Rule):
            assert points is not None
            return self._weighed(rows, self.rule, points, mix, seed, step)
        rule = self.rule
        mix = mix if points is None else rule.chosen(points) @ mix
        parts = rows.mapped(lambda values: rule.middle(ordered(values)), mix)
        shares = rule.parts(rows.sample(mix)).double().mean(0).cpu().numpy()
        return Aggregated(parts, shares @ mix * count)

    def _weighed(
        self, rows: Rows, rule: Rule, points: Points, mix: Matrix, seed: int, step: int
    ) -> Aggregated:
        weights = rule.weights(points)
        mine = weights[: len(mix)] @ mix
        parts = rows.combined(np.append(mine, weights[len(mix) :]))
        if deviation := rule.noise(points):
            key = torch.tensor(seeds.address(seed, "aggregate noise", step), device=parts[0].device)
            for at, part in enumerate(parts):
                part.add_(
                    seeds.normals(seeds.fold(key, at), part.numel()).reshape(part.shape), alpha=deviation
                )
        return Aggregated(parts, mine * len(mine))
