"""What a run promises of privacy, from what its rounds and its end say.

After a round there is what all so far came to, rounded up (`docs/runs.md`, `spent`); the end has a sentence. Where
noise followed from a seed nothing is promised, and nowhere is that left unsaid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["NOT_PRIVATE", "epsilon_text", "promised", "so_far", "stated"]

NOT_PRIVATE = "not private: noise follows from a seed"


def promised(
    spendings: Sequence[Mapping[str, Any]], result: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """`epsilon`, `delta`, `private` and a sentence, `privacy`: a result's, or else up to the last of these rounds.

    Args:
        spendings: what each round says of privacy, in order; without any there is nothing to say.
        result: the run's, where it is over.
    """
    if not spendings:
        return {}
    if result is not None and result.get("privacy"):
        return {name: result.get(name) for name in ("epsilon", "delta", "private", "privacy")}
    last = spendings[-1]
    private = all(each.get("private") for each in spendings)
    rounds = f"{len(spendings)} round{'s' * (len(spendings) != 1)}"
    said = f"epsilon is at most {epsilon_text(last.get('epsilon'))} at delta = {last['delta']:g}"
    said += f" for every {last['level']} after {rounds}"
    if not private:
        said = f"no promise: noise followed from a seed; were it secret, {said}"
    return {"epsilon": last.get("epsilon"), "delta": last["delta"], "private": private, "privacy": said}


def stated(found: Mapping[str, Any]) -> str:
    """The sentence of `promised`, or of a result, marked where nothing is promised."""
    return str(found["privacy"]) if found["private"] else f"not private; {found['privacy']}"


def so_far(spent: Mapping[str, Any], budget: float | None) -> str:
    """A round's spending in a few words: epsilon at most 1.71 of 6 at delta = 0.001."""
    of = "" if budget is None else f" of {budget:g}"
    said = f"epsilon at most {epsilon_text(spent['epsilon'])}{of} at delta = {spent['delta']:g}"
    return said if spent["private"] else f"{NOT_PRIVATE}; were it secret, {said}"


def epsilon_text(value: float | None) -> str:
    """Three digits; events have null where there is no bound."""
    return "infinite" if value is None or not math.isfinite(value) else f"{value:.3g}"
