"""What columns tell, without a model: IV, correlations and VIF of all parties' columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from atoll import he
from atoll.errors import ConfigError, suggest
from atoll.parties import Kind, Link
from atoll.tensors import Record
from atoll.vertical.features import correlation
from atoll.vertical.features.correlation import Correlations, Crypto, correlate, deal
from atoll.vertical.features.steps import KINDS, found
from atoll.vertical.protocol import Case, Known, Progress, Protocol, Task
from atoll.vertical.side import FloatArray, Side

__all__ = ["FeatureTable"]


@dataclass(frozen=True)
class FeatureTable(Protocol):
    """Figures of columns: the information value of each, its variance inflation factor, and all correlations.

    The guest learns those of all columns, a host's under numbers that the host alone can read; a host those of its own
    columns, without correlations. The numbers are the same in all figures.

    Args:
        bins: of a column at most, for IV.
        rows: of a bin at least; smaller ones are joined, and where missing values are fewer, the table is refused.
        tells: "iv", or "woe": hosts also learn the weight of evidence of their bins.
        correlations: whether correlations and VIF are found; they need all values and no constant column.
        by: "cipher": under a key; "dealer": by an arbiter that deals random numbers, which is much faster.
    """

    bins: int = 10
    rows: int = 5
    tells: Literal["iv", "woe"] = "iv"
    correlations: bool = True
    by: Literal["cipher", "dealer"] = "cipher"

    name: ClassVar[str] = "features"
    says: ClassVar[str] = (
        "information value, correlations and VIF of all parties' columns; it learns no model"
    )
    ciphers: ClassVar[tuple[str, ...]] = ("ou", "paillier", "none")
    tasks: ClassVar[tuple[Task, ...]] = ("binary", "multiclass", "regression", "poisson")
    kinds: ClassVar[tuple[Kind, ...]] = (*KINDS[:-1], *correlation.KINDS)
    predicts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name, least in (("bins", 2), ("rows", 1)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"{name} = {getattr(self, name)} must be {least} or more",
                    hint=f"{name} = {least} is the least",
                )
        for name, known in (("tells", ("iv", "woe")), ("by", ("cipher", "dealer"))):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"{name} = {getattr(self, name)!r} is none of {', '.join(known)}",
                    hint=suggest(str(getattr(self, name)), known),
                )

    @property
    def steps(self) -> int:
        return 1

    @property
    def needs_arbiter(self) -> bool:
        return self.correlations and self.by == "dealer"

    def check(self, case: Case) -> None:
        super().check(case)
        he.check(case.crypto)
        if case.task != "binary" and not self.correlations:
            raise ConfigError(
                f"nothing is left to find: IV needs two classes, and task = {case.task!r}",
                hint="correlations = true",
            )

    # --- the roles ----------------------------------------------------------------------------------------------

    async def guest(self, link: Link, side: Side, case: Case, progress: Progress) -> Record:
        if progress.half is not None:
            return progress.half
        half, own = await self._evidence(link, side, case)
        if self.correlations:
            all_of = await self._correlated(link, side, case)
            assert isinstance(all_of, Correlations)
            begin = [all_of.begin[name] for name in (case.guest, *case.hosts)]
            half |= {
                "correlations": torch.from_numpy(all_of.matrix),
                "vif": torch.from_numpy(all_of.vif),
                "begin": torch.tensor([*begin, len(all_of.vif)], dtype=torch.int64),
            }
        else:
            sizes = [side.x.shape[1], *own]
            half["begin"] = torch.from_numpy(np.cumsum([0, *sizes]).astype(np.int64))
        return _ended(progress, Record(half))

    async def host(self, link: Link, side: Side, case: Case, progress: Progress) -> Record:
        if progress.half is not None:
            return progress.half
        half, _ = await self._evidence(link, side, case)
        if self.correlations:
            # Under the numbers by which the guest knows these columns already.
            order = np.argsort(half["place"].numpy()) if "place" in half else np.arange(side.x.shape[1])
            factors = await self._correlated(link, _ordered(side, order), case)
            assert isinstance(factors, np.ndarray)
            half["vif"] = torch.from_numpy(factors[np.argsort(order)])
        return _ended(progress, Record(half))

    async def arbiter(self, link: Link, case: Case, progress: Progress) -> None:
        if not progress.number:
            await deal(link, case.guest, case.hosts)
            _ended(progress, Record())

    async def _evidence(self, link: Link, side: Side, case: Case) -> tuple[dict[str, Any], list[int]]:
        """IV, and at the guest how many columns each host has."""
        if case.task != "binary":
            return {}, []
        told = await found(link, side, case, self.bins, self.rows, answer=self.tells)
        parts = [told.own.iv, *(each.iv for each in told.hosts.values())]
        half: dict[str, Any] = {"iv": torch.from_numpy(np.concatenate(parts)), "bins": told.bins}
        if told.own.woe is not None:
            half["woe"] = torch.from_numpy(told.own.woe)
        if link.name != case.guest:
            half["place"] = torch.from_numpy(told.place)
        return half, [len(each.iv) for each in told.hosts.values()]

    async def _correlated(self, link: Link, side: Side, case: Case) -> Correlations | FloatArray:
        by = case.arbiter if self.by == "dealer" else Crypto(case.crypto)
        assert by is not None
        return await correlate(link, side, case.guest, case.hosts, by)

    # --- no model -----------------------------------------------------------------------------------------------

    async def score(self, link: Link, side: Side, case: Case, half: Record) -> FloatArray:
        raise ConfigError("protocol = 'features' learns no model", hint="take glm, secureboost or splitnn")

    async def answer(self, link: Link, side: Side, case: Case, half: Record) -> None:
        raise ConfigError("protocol = 'features' learns no model", hint="take glm, secureboost or splitnn")

    def knows(self, case: Case, party: str, columns: Sequence[str], half: Record) -> Known:
        names = list(columns)
        if party == case.guest:
            begin = half.begin.tolist()
            for host, first, last in zip(case.hosts, begin[1:-1], begin[2:], strict=True):
                names += [f"{host}.{at}" for at in range(last - first)]
        figures: Mapping[str, FloatArray] = {
            name: half[name].numpy() for name in ("iv", "vif") if name in half
        }
        matrix = half.correlations.numpy() if "correlations" in half else None
        return Known(tuple(names), figures, matrix)


def _ordered(side: Side, order: Any) -> Side:
    return Side(side.x[:, order], tuple(side.columns[at] for at in order), side.y, side.exposure)


def _ended(progress: Progress, half: Record) -> Record:
    progress.tell(1, half, {})
    return half
