"""Of several events the one that costs most: what a round is accounted for in which participants fare differently."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import lru_cache

from atoll.privacy.accounting import counted, noise, renyi_epsilon, step_for
from atoll.privacy.events import Everyone, Gaussian, Poisson, tally, with_noise

__all__ = ["costliest", "noise_for_all"]


def costliest(events: Iterable[Gaussian], delta: float, rounds: int = 1) -> Gaussian:
    """Of events with Poisson sampling, that which comes to the largest epsilon at `delta` if it happens in all rounds.

    Neither the rate nor the count says which: one sample more than a batch makes two steps of one, at nearly the same
    rate, and where noise is small, many steps at a small rate cost more than one of all.
    """
    return _costliest(frozenset(events), delta, rounds)


def noise_for_all(target: float, delta: float, events: Iterable[Gaussian], rounds: int = 1) -> float:
    """The least noise multiplier with which any of these events, in all rounds, stays within an epsilon of `target`.

    Events say by their own noise what a multiplier of 1 is to them. Raises ConfigError where no noise is enough.
    """
    every, enough = frozenset(events), 0.0
    asked: set[Gaussian] = set()
    while True:
        worst = _costliest(frozenset(map(_scaled(enough or 1.0), every)), delta, rounds)
        (one,) = {each for each in every if _scaled(enough or 1.0)(each) == worst}
        if one in asked:
            return enough
        asked.add(one)
        enough = max(enough, noise(target, delta, one, rounds=rounds) / one.noise)


def _scaled(factor: float) -> Callable[[Gaussian], Gaussian]:
    def scaled(event: Gaussian) -> Gaussian:
        found = with_noise(event, event.noise * factor)
        assert isinstance(found, Gaussian)
        return found

    return scaled


@lru_cache(maxsize=1024)
def _costliest(events: frozenset[Gaussian], delta: float, rounds: int) -> Gaussian:
    most: dict[tuple[float, int], Gaussian] = {}  # of the same noise and count, the largest rate costs most
    for event in events:
        key = event.noise, event.count
        if key not in most or _rate(most[key]) < _rate(event):
            most[key] = event
    if len(most) == 1:
        return next(iter(most.values()))
    bounds = [(_by_rdp(event, delta, rounds), _order(event), event) for event in most.values()]
    found, least = None, -math.inf
    for bound, _, event in sorted(bounds, key=lambda each: each[:2], reverse=True):
        if bound <= least:  # and so are all that follow
            break
        happened = {each: count * rounds for each, count in tally([event]).items()}
        cost = counted(happened, delta, step_for(bound)).epsilon
        if found is None or cost > least:
            found, least = event, cost
    assert found is not None
    return found


def _by_rdp(event: Gaussian, delta: float, rounds: int) -> float:
    bound = renyi_epsilon({each: count * rounds for each, count in tally([event]).items()}, delta)
    return math.inf if bound is None else bound


def _rate(event: Gaussian) -> float:
    assert isinstance(event.sampling, Poisson | Everyone)
    return event.sampling.rate if isinstance(event.sampling, Poisson) else 1.0


def _order(event: Gaussian) -> tuple[float, float, int]:
    return _rate(event), -event.noise, event.count
