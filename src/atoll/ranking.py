"""Lists of items: how well scores order them, and losses that learn to.

A sample is one list: outputs [b, items] are scores, targets [b, items] what each item is worth. Above 0 an item is
relevant, or has this rating; at 0 it is a candidate that nothing speaks for; below 0 it is no candidate, as what a user
knows already, and counts nowhere. A list without a relevant item has no figure. So the mean over samples is one over
lists, whoever holds them.

Where scores are equal, a figure is its mean over all orders of the equal ones (McSherry and Najork, ECIR 2008): a model
that gives every item the same score gets what guessing gets, and not what the numbering of the items is worth.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

from atoll.errors import ConfigError

__all__ = ["listwise", "named", "ndcg", "rated", "recall"]

Figure = Callable[[Tensor, Tensor], Tensor]
"""(scores [b, items], targets [b, items]) -> [b], NaN where it is not defined."""

_NAME = re.compile(r"(ndcg|recall)@(\d+)(?:>=(\d+(?:\.\d+)?))?")


def ndcg(k: int, least: float | None = None) -> Figure:
    """Discounted cumulative gain of the first k, as a share of the best that the list allows.

    An item at rank r gains (2^target - 1) / log2(r + 1) (Burges et al., ICML 2005). The best order has the largest
    gains first; a list with fewer than k relevant items can reach 1 like any other.

    Args:
        k: how many items are shown.
        least: items with this target or more are relevant, each as much as the next; None: all above 0, by target.
    """

    def figure(outputs: Tensor, targets: Tensor) -> Tensor:
        scores, targets = _lists(outputs, targets, f"ndcg@{k}")
        gains = torch.exp2(targets.clamp(min=0)) - 1 if least is None else (targets >= least).float()
        steps = 1 / torch.log2(torch.arange(2, targets.shape[1] + 2, device=targets.device))
        steps = _first(steps, k)
        best = torch.sort(gains, dim=1, descending=True).values @ steps
        return (gains * _expected(scores, targets, steps)).sum(1) / _or_nan(best)

    return figure


def recall(k: int, least: float | None = None) -> Figure:
    """The share of a list's relevant items that is among the first k; one with more than k cannot reach 1.

    Args:
        k: how many items are shown.
        least: items with this target or more are relevant; None: all above 0.
    """

    def figure(outputs: Tensor, targets: Tensor) -> Tensor:
        scores, targets = _lists(outputs, targets, f"recall@{k}")
        there = (targets > 0 if least is None else targets >= least).float()
        shown = _expected(scores, targets, _first(torch.ones_like(targets[0]), k))
        return (there * shown).sum(1) / _or_nan(there.sum(1))

    return figure


def named(name: str) -> Figure | None:
    """The figure of a name, ``ndcg@10``, ``recall@20`` or ``recall@20>=4``; None of anything else.

    Raises ConfigError where it shows nothing, or takes what is no candidate for relevant.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    kind, k, least = found[1], int(found[2]), None if found[3] is None else float(found[3])
    if k < 1 or least == 0:
        raise ConfigError(
            f"metrics: {name} " + ("shows no item" if k < 1 else "takes every candidate for relevant"),
            hint="write ndcg@10, or ndcg@10>=4 where an item is relevant from a target of 4 on",
        )
    return ndcg(k, least) if kind == "ndcg" else recall(k, least)


def listwise(outputs: Tensor, targets: Tensor) -> Tensor:
    """Minus the mean logarithm of the share that a softmax over the candidates gives to each relevant item.

    The multinomial likelihood of Liang et al. (WWW 2018), by item: an item is learned against all others of the list,
    so that no negative ones are drawn. A list without a relevant item has the loss 0.
    """
    scores, targets = _lists(outputs, targets, "listwise")
    logits = torch.log_softmax(torch.where(targets < 0, torch.full_like(scores, -1e9), scores), 1)
    there = (targets > 0).to(scores.dtype)
    return -(logits * there).sum(1) / there.sum(1).clamp(min=1)


def rated(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean squared error over the items with a rating, those above 0; 0 for a list without one."""
    scores, targets = _lists(outputs, targets, "rated")
    there = (targets > 0).to(scores.dtype)
    return ((scores - targets).square() * there).sum(1) / there.sum(1).clamp(min=1)


def _lists(outputs: Tensor, targets: Tensor, what: str) -> tuple[Tensor, Tensor]:
    if outputs.ndim != 2 or outputs.shape != targets.shape:
        raise ConfigError(
            f"{what} is of lists of items, and the model gives {tuple(outputs.shape)} for targets"
            f" {tuple(targets.shape)}",
            hint="outputs and targets are [lists, items]; atoll.data.from_ratings makes such targets",
        )
    return outputs.float(), targets.float()


def _first(steps: Tensor, k: int) -> Tensor:
    """What each rank is worth, where only k are shown."""
    return torch.where(torch.arange(len(steps), device=steps.device) < k, steps, torch.zeros_like(steps))


def _expected(scores: Tensor, targets: Tensor, steps: Tensor) -> Tensor:
    """What the rank of each candidate is worth, in the mean over the orders of equal scores [b, items].

    Items with one score share the ranks from the number of better ones on: each gets the mean of these.
    """
    scores = torch.where(targets < 0, torch.full_like(scores, -torch.inf), scores)  # behind all candidates
    up = torch.sort(scores, dim=1).values
    size = scores.shape[1]
    start = size - torch.searchsorted(up, scores, right=True)
    end = size - torch.searchsorted(up, scores)
    sums = torch.cat([torch.zeros_like(steps[:1]), steps.cumsum(0)])
    return (sums[end] - sums[start]) / (end - start)


def _or_nan(values: Tensor) -> Tensor:
    return torch.where(values > 0, values, torch.full_like(values, torch.nan))
