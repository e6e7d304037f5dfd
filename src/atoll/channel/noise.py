"""Gaussian noise on the sum of a round: central differential privacy of clients."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, Literal

import torch

from atoll import seeds
from atoll.channel.clip import Clip
from atoll.channel.transform import Place, Setting, Transform, plainly, standing
from atoll.contract import Job
from atoll.errors import ConfigError
from atoll.privacy.events import Correlated
from atoll.privacy.mechanisms import Banded, Tree, gaussian, noised, split
from atoll.privacy.source import Source
from atoll.tensors import Record, Tensors, leaves, map_leaves

__all__ = ["Noise"]


@dataclass(frozen=True)
class Noise(Transform):
    """Noise that hides whether a client took part.   DP-FedAvg: McMahan et al., ICLR 2018, Algorithm 1

    mean <- (sum of clipped updates + N(0, (zC)^2 I)) / (expected cohort), C the bound of the `Clip` before it. All
    clients count the same, and the denominator is fixed: how many came is not told. Every field is blurred.

    Where the bound adapts, the share of updates inside it is blurred too, with deviation cohort / 20, and z is raised
    for the updates so that both together cost what z alone would:   Andrew et al., NeurIPS 2021, Theorem 1

    z' = (z^-2 - (2 cohort / 20)^-2)^(-1/2).

    With a `matrix` the noise of rounds is correlated, so that it cancels in the sum over rounds, and no chance is
    needed in who takes part: cohorts come in turn (`choose="cyclic"`). All rounds of a run are one release then, and
    are planned beforehand.   DP-FTRL: Kairouz et al., ICML 2021, by a binary tree; Choquette-Choo et al., NeurIPS 2023,
    by a banded matrix

    The noise comes from the operating system. With a `seed` it can be repeated by whoever knows the seed, and protects
    nobody: for experiments.

    Args:
        multiplier: z; None: the least that keeps all rounds within the run's `epsilon`, which a federation finds.
        seed: where noise follows from, together with the run's seed; None: from nothing that anybody knows.
        matrix: None, "tree", or so many bands of a banded matrix.
    """

    multiplier: float | None = None
    seed: int | None = None
    matrix: Literal["tree"] | int | None = None
    blur: float = 0.0
    """Deviation of the noise on the count of updates inside an adaptive bound; a chain fills it in."""
    bound: Clip | None = None
    """What bounds updates, and `at` where in the chain; a chain fills them in."""
    at: int = 0
    setting: Setting = Setting()  # noqa: RUF009 - frozen

    name: ClassVar[str] = "noise"
    place: ClassVar[Place] = "blur"
    needs: ClassVar[tuple[str, ...]] = ("clip",)

    def __post_init__(self) -> None:
        known = self.multiplier is None or 0 <= self.multiplier < math.inf
        self._require("multiplier", known, "must be 0 or above, and finite")

    @property
    def text(self) -> str:
        parts = [] if self.multiplier is None else [plainly(self.multiplier)]
        if self.seed is not None:
            parts.append(plainly(self.seed) if parts else f"seed={self.seed}")
        if self.matrix is not None:
            parts.append(f"matrix={self.matrix}")
        return ":".join([self.name, *([",".join(parts)] if parts else [])])

    @property
    def equal(self) -> bool:
        return True

    @property
    def private(self) -> bool:
        """Whether nobody can repeat the noise."""
        return self.seed is None

    @property
    def on_updates(self) -> float:
        """The multiplier for updates, z' where an adaptive bound has its share of the budget."""
        if not self.blur or not self.multiplier:
            return self.multiplier or 0.0
        return split(self.multiplier, self.blur)

    def fitted(self, before: tuple[Transform, ...], setting: Setting) -> Noise:
        at, bound = standing(before, Clip)
        if self.multiplier is None:
            raise ConfigError(
                f"channel {self.text!r}: noise without a multiplier is found for a budget, and there is none",
                hint=f'set epsilon=4, or write how much noise: "{replace(self, multiplier=1.0).text}"',
            )
        if self.multiplier and (math.isinf(bound.norm) or bound.order != 2):
            raise ConfigError(
                f"channel {self.text!r}: there is no noise that hides an update without a bound of its L2 norm",
                hint='set a norm before it: "clip:0.5 | noise:1.0"',
            )
        if self.matrix is not None:
            self._check_turns(bound, setting)
        blur = setting.cohort / 20 if bound.quantile is not None and self.multiplier else 0.0
        if blur and 2 * blur <= self.multiplier:
            raise ConfigError(
                f"channel {self.text!r}: {setting.cohort} clients a round are too few for a bound that adapts",
                hint=f"write clip:{plainly(bound.norm)}, or set a cohort above {10 * self.multiplier:g}",
            )
        return replace(self, blur=blur, bound=bound, at=at, setting=setting)

    def _check_turns(self, bound: Clip, setting: Setting) -> None:
        if bound.quantile is not None:
            raise ConfigError(
                f"channel {self.text!r}: one bound holds for all rounds whose noise is correlated",
                hint=f"write clip:{plainly(bound.norm)}",
            )
        if isinstance(self.matrix, int) and self.matrix > setting.turns:
            raise ConfigError(
                f"channel {self.text!r}: clients come again after {setting.turns} rounds, within {self.matrix} bands",
                hint=f"write matrix={setting.turns} in its place, or set a smaller cohort",
            )

    # --- server half ------------------------------------------------------------------------------------------

    def begin(self) -> Record:
        """The key of the noise of all rounds, and how many have had theirs; only where rounds are correlated."""
        if self.matrix is None or not self.multiplier:
            return Record()
        key = secrets.token_bytes(32)
        if self.seed is not None:
            key = Source.repeatable(seeds.address(self.setting.seed, "noise", self.seed)).key
        return Record(key=torch.tensor(list(key), dtype=torch.uint8), rounds=0)

    def tell(self, state: Record) -> Record:
        """Nothing: the key is the server's."""
        return Record()

    def event(self, state: Record) -> Correlated:
        """What all correlated rounds together are to accounting."""
        assert self.bound is not None
        stream = self._stream(state, Tensors())
        found: Correlated = stream.event(self.bound.norm, self.setting.turns)
        return found

    def _stream(self, state: Record, like: Tensors) -> Any:
        """The noise of all rounds, for sums of these shapes."""
        assert self.bound is not None
        assert self.multiplier is not None
        form = tuple((name, tuple(v.shape)) for name, v in like.items())
        key = bytes(state.key.tolist())
        return _streams(key, self.matrix, self.multiplier * self.bound.norm, self.setting.rounds, form)

    def learn(self, state: Record, mean: Record, report: Record, count: int) -> tuple[Record, Record]:
        if not state:
            return state, mean
        number = state.rounds + 1
        flat = Tensors({str(at): v for at, v in enumerate(leaves(mean))})
        noise = iter(self._stream(state, flat).noise(number).values())
        blurred = map_leaves(lambda v: v + (next(noise) / self.setting.cohort).to(v.device, v.dtype), mean)
        return state.replace(rounds=number), blurred

    def release(self, sums: Record, told: Record, job: Job) -> Record:
        if not self.multiplier or self.matrix is not None:
            return sums
        assert self.bound is not None
        deviation = self.on_updates * float(self.bound.bound(told.get(str(self.at), Record())))
        source = (
            Source() if self.seed is None else Source.repeatable(seeds.address(job.seed, "noise", self.seed))
        )
        flat = Tensors({str(at): v for at, v in enumerate(leaves(sums))})
        blurred = iter(noised(flat, gaussian(flat, deviation, source.at("sum", job.round))).values())
        found = map_leaves(lambda _: next(blurred), sums)
        if "channel" not in sums:
            return found  # type: ignore[no-any-return]
        report = sums.channel
        if self.blur:
            inside = Tensors(inside=report.inside)
            more = noised(inside, gaussian(inside, self.blur, source.at("inside", job.round)))
            report = report.replace(inside=more["inside"])
        return found.replace(channel=report)  # type: ignore[no-any-return]


@lru_cache(maxsize=2)
def _streams(
    key: bytes, matrix: str | int, deviation: float, rounds: int, form: tuple[Any, ...]
) -> Tree | Banded:
    """A stream goes on from where it is, and begins anew where it must: it follows from the key alone."""
    source = Source(key)
    like = Tensors({name: torch.zeros(shape) for name, shape in form})
    if matrix == "tree":
        return Tree(source, like, deviation, rounds)
    return Banded(source, like, deviation, rounds, int(matrix))
