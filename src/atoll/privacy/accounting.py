"""Epsilon of what happened, and the noise that an epsilon needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import msgspec

from atoll.errors import ConfigError
from atoll.privacy import curves
from atoll.privacy.composed import Composition
from atoll.privacy.events import Adjacency, Correlated, Event, Fixed, Laplace, adjacency, tally, with_noise

__all__ = ["Accountant", "Epsilon", "check_delta", "epsilon", "noise", "renyi_epsilon", "usual_delta"]

_FINEST = 1e-4  # step of the privacy loss
_WIDE = 20.0  # epsilon beyond which steps are wider, by powers of two
_CLOSE = 1e-4  # how near the noise that is found is to the least, as a ratio
_LEAST, _MOST = 1e-3, 1e5  # noise that is looked for


@dataclass(frozen=True)
class Epsilon:
    """What events come to at `delta`.

    `epsilon` is the least that was shown, infinite where there is no noise, by the `accountant` "PLD" or "RDP";
    `rdp` and `pld` are what each says, None where it has no answer. `adjacency` says which neighbours this is
    about.
    """

    epsilon: float
    delta: float
    accountant: str
    adjacency: Adjacency
    rdp: float | None
    pld: float | None


def epsilon(events: Iterable[Event], delta: float, *, step: float = _FINEST) -> Epsilon:
    """The epsilon of all `events` together (composed adaptively) at `delta`.

    Privacy loss distributions first (PLD), Renyi divergences (RDP) beside them and where an event has no PLD. A
    fixed cohort is accounted for under replace-one: by RDP with what sampling gains, or by PLD without, whichever
    shows less. `step` is that of the distributions; wider ones cost less and say a little more.

    Raises ConfigError where no accountant has all of the events, MissingExtraError without the extra.

    >>> from atoll.privacy import Gaussian, Poisson
    >>> round(epsilon([Gaussian(noise=1.0, sampling=Poisson(0.01), count=1000)], 1e-6).epsilon, 3)
    2.125
    """
    return counted(tally(events), delta, step)


def counted(events: Mapping[Event, int], delta: float, step: float) -> Epsilon:
    """`epsilon` of events that were counted by `tally`."""
    _check(delta)
    return _epsilon(tuple(events.items()), delta, step)


def step_for(target: float) -> float:
    """A step that is fine enough to tell an epsilon near `target` to about four digits."""
    return min(max(target / 2000, _FINEST), 1e-2)


@lru_cache(maxsize=1024)
def _epsilon(pairs: tuple[tuple[Event, int], ...], delta: float, step: float) -> Epsilon:
    return Accountant(delta, step).told(dict(pairs))


class Accountant:
    """What events come to, told anew as they grow: milliseconds where most of them were told before.

    Args:
        step: of the loss distributions.
        kinds: different events from which on RDP alone answers, where it can: the first of its kind takes as long as
            hundreds of others.
    """

    def __init__(self, delta: float, step: float = _FINEST, kinds: int | None = None) -> None:
        self._delta, self._step, self._kinds = delta, step, kinds
        self._composition: Composition | None = None

    def told(self, events: Mapping[Event, int]) -> Epsilon:
        """The epsilon of so many of each event."""
        neighbours, rdp = adjacency(events), renyi_epsilon(events, self._delta)
        many = rdp is not None and self._kinds is not None and len(events) > self._kinds
        pld = self._by_losses(events, rdp) if not many and _worth_it(events, self._delta, rdp) else None
        if rdp is None and pld is None:
            raise ConfigError(
                "no accountant has noise over whole numbers with Poisson sampling, and fixed cohorts, together",
                hint="sample one way, or keep a ledger for each",
            )
        least, by = min((value, name) for value, name in ((pld, "PLD"), (rdp, "RDP")) if value is not None)
        return Epsilon(least, self._delta, by, neighbours, rdp, pld)

    def _by_losses(self, events: Mapping[Event, int], rdp: float | None) -> float | None:
        """By loss distributions, exactly for normal noise without sampling; None without an answer."""
        if not events:
            return 0.0
        neighbours, step = adjacency(events), self._step
        if (moved := curves.shift(events, neighbours)) is not None:
            return curves.exact(moved, self._delta)
        while (rdp or 0.0) * _FINEST > step * _WIDE:
            step *= 2
        found = self._composition
        if found is None or (found.neighbours, found.step) != (neighbours, step):
            found = self._composition = Composition(neighbours, step, self._delta)
        return found.epsilon(events)


def renyi_epsilon(events: Mapping[Event, int], delta: float) -> float | None:
    """The epsilon by RDP alone, None without an answer: fast once an event was seen, and never below the truth."""
    neighbours, total = adjacency(events), 0.0 * curves.orders()
    for event, count in events.items():
        curve = curves.renyi(event, neighbours)
        if curve is None:
            return None
        total = total + count * curve
    return curves.epsilon_of(total, delta) if events else 0.0


def _worth_it(events: Mapping[Event, int], delta: float, rdp: float | None) -> bool:
    """Whether loss distributions may show less: not without noise, nor where fixed cohorts gain much by sampling."""
    if rdp is None or not events:
        return True
    plain = {_unsampled(event): count for event, count in events.items()}
    without = renyi_epsilon(plain, delta)
    fixed = any(isinstance(event.sampling, Fixed) for event in events)
    return math.isfinite(rdp) and (not fixed or without is None or without < 2 * rdp)


def _unsampled(event: Event) -> Event:
    """A fixed cohort of all, in the place of one of a few."""
    if isinstance(event.sampling, Fixed) and not isinstance(event, (Laplace, Correlated)):
        everyone = Fixed(event.sampling.population, event.sampling.population)
        return msgspec.structs.replace(event, sampling=everyone)
    return event


# --- the inverse ----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=128)
def noise(target: float, delta: float, event: Event, *, rounds: int = 1) -> float:
    """The least noise with which `rounds` times this event come to an epsilon of `target` at most, to 0.01 %.

    What noise `event` has does not matter. RDP gives a noise that is surely enough; from there the logarithm of
    epsilon, nearly linear in that of the noise, is followed down by PLD. Answers are kept in memory.

    Raises ConfigError where no noise up to 100 000 clips is enough.
    """
    _check(delta)
    if not (target > 0 and math.isfinite(target)):
        raise ConfigError(f"epsilon cannot be {target!r}", hint="epsilon is above 0")
    step = step_for(target)

    def by_rdp(z: float) -> float:
        return renyi_epsilon(_repeated(event, z, rounds), delta) or 0.0

    def by_both(z: float) -> float:
        return _epsilon(tuple(_repeated(event, z, rounds).items()), delta, step).epsilon

    enough = _root(by_rdp, target, math.log(_LEAST), math.log(_MOST))
    high, slope = math.log(enough), 1.0
    gap = _gap(by_both, target, high)
    while gap <= 0:  # down in steps that grow until it is too little
        low = high + min(gap / slope, -_CLOSE)
        if low < math.log(_LEAST):
            return math.exp(high)
        below = _gap(by_both, target, low)
        if below > 0:
            return _root(by_both, target, low, high)
        high, gap, slope = low, below, slope / 1.5
    return enough


def _repeated(event: Event, z: float, rounds: int) -> dict[Event, int]:
    changed = with_noise(event, z)
    if isinstance(changed, Correlated):
        return {changed: 1}
    return {each: count * rounds for each, count in tally([changed]).items()}


def _gap(said: Callable[[float], float], target: float, x: float) -> float:
    """How far the logarithm of what is said of noise exp(x) is above that of the target."""
    return math.log(min(max(said(math.exp(x)), 1e-12), 1e12)) - math.log(target)


def _root(said: Callable[[float], float], target: float, a: float, b: float) -> float:
    """The least exp(x), a <= x <= b, that keeps `target`, from above; what is said falls with x.  Illinois steps."""
    at_a, at_b = _gap(said, target, a), _gap(said, target, b)
    if at_b > 0:
        raise ConfigError(
            f"no noise up to {math.exp(b):g} clips gives epsilon = {target:g}",
            hint="allow a larger epsilon or delta, fewer rounds, or a smaller share of the population",
        )
    if at_a <= 0:
        return math.exp(a)
    side = steps = 0
    while b - a > _CLOSE:
        steps += 1
        x = min(max(b - at_b * (b - a) / (at_b - at_a), a + _CLOSE / 3), b - _CLOSE / 3)
        if steps % 4 == 0:  # so that it ends soon whatever the shape
            x = (a + b) / 2
        value = _gap(said, target, x)
        if value <= 0:
            b, at_b = x, value
            at_a = at_a / 2 if side == 1 else at_a
            side = 1
        else:
            a, at_a = x, value
            at_b = at_b / 2 if side == -1 else at_b
            side = -1
    return math.exp(b)


# --- what may be asked ----------------------------------------------------------------------------------------------


def _check(delta: float) -> None:
    if not 0 < delta < 1:
        raise ConfigError(f"delta cannot be {delta!r}", hint="delta is above 0 and below 1 / population")


def check_delta(delta: float, population: int) -> None:
    """Raise ConfigError for a `delta` with which giving away one participant in full would be within the statement."""
    _check(delta)
    if delta >= 1 / population:
        raise ConfigError(
            f"delta = {delta:g} says nothing about one of {population:,}: giving one away in full would be within it",
            hint=f"delta is below 1 / population = {1 / population:.3g}; {_example(population)} is usual",
        )


def usual_delta(population: int) -> float:
    """n^-1.1 for n clients or samples.   McMahan et al., ICLR 2018"""
    return float(population**-1.1)


def _example(population: int) -> str:
    return f"{10.0 ** -math.ceil(math.log10(population) + 0.5):g}"
