"""Figures of lists against their plain definitions."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import atoll
from atoll import ranking
from atoll.metrics import chosen
from atoll.task import Task

LISTS = st.integers(2, 5).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 2), min_size=n, max_size=n),  # few values: scores tie
        st.lists(st.sampled_from([-1, 0, 0, 1, 3]), min_size=n, max_size=n),
    )
)


def plainly(kind: str, scores: list[int], targets: list[int], k: int, least: float | None) -> float:
    """The definition: the mean over all orders of the candidates that the scores allow."""
    there = [(s, t) for s, t in zip(scores, targets, strict=True) if t >= 0]
    if least is None:
        gains = [2.0**t - 1 for _, t in there]
    else:
        gains = [float(t >= least) for _, t in there]
    relevant = sum(gain > 0 for gain in gains)
    if not relevant:
        return math.nan
    best = sum(gain / math.log2(r + 2) for r, gain in enumerate(sorted(gains, reverse=True)[:k]))
    found = []
    for order in itertools.permutations(range(len(there))):
        ranked = [there[at][0] for at in order]
        if ranked != sorted(ranked, reverse=True):
            continue
        first = [gains[at] for at in order][:k]
        dcg = sum(gain / math.log2(r + 2) for r, gain in enumerate(first))
        found.append(dcg / best if kind == "ndcg" else sum(gain > 0 for gain in first) / relevant)
    return sum(found) / len(found)


@settings(deadline=None, max_examples=60)
@given(LISTS, st.integers(1, 6), st.sampled_from([None, 2.0]))
def test_figures_are_means_over_the_orders_of_equal_scores(
    case: tuple[list[int], list[int]], k: int, least: float | None
) -> None:
    scores, targets = (torch.tensor([part], dtype=torch.float32) for part in case)
    for kind, figure in (("ndcg", ranking.ndcg(k, least)), ("recall", ranking.recall(k, least))):
        due = plainly(kind, *case, k, least)
        assert float(figure(scores, targets)) == pytest.approx(due, abs=1e-5, nan_ok=True)


def test_a_list_with_fewer_relevant_items_than_are_shown_can_be_perfect() -> None:
    scores, targets = torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    assert float(ranking.ndcg(10)(scores, targets)) == 1
    assert float(ranking.recall(10)(scores, targets)) == 1


def test_one_score_for_all_is_worth_what_guessing_is() -> None:
    targets = torch.zeros(1, 20)
    targets[0, 0] = 1  # the first in the numbering
    assert float(ranking.recall(5)(torch.zeros(1, 20), targets)) == pytest.approx(5 / 20)


def test_each_user_counts_once() -> None:
    """The mean of lists, where a mean over their relevant items would be another."""
    scores = torch.tensor([[4.0, 3.0, 2.0, 1.0]]).expand(2, -1)
    targets = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1.0, 1.0]])
    metric = chosen("recall@2", "listwise")["recall@2"]
    totals = [
        metric.total("recall@2", metric.taken("recall@2", scores[k : k + 1], targets[k : k + 1]).numpy())
        for k in (0, 1)
    ]
    assert metric.value(totals, "recall@2") == pytest.approx(0.5)


def test_a_list_without_a_relevant_item_has_no_figure_and_no_loss() -> None:
    scores, targets = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, -1.0]])
    assert math.isnan(ranking.ndcg(1)(scores, targets))
    assert float(ranking.listwise(scores, targets)) == float(ranking.rated(scores, targets)) == 0


def test_losses_by_their_formulas() -> None:
    scores, targets = torch.tensor([[1.0, 2.0, 0.5, 9.0]]), torch.tensor([[4.0, 0.0, 2.0, -1.0]])
    assert float(ranking.rated(scores, targets)) == pytest.approx((3**2 + 1.5**2) / 2)
    whole = sum(math.exp(each) for each in (1, 2, 0.5))
    due = -(math.log(math.exp(1) / whole) + math.log(math.exp(0.5) / whole)) / 2
    assert float(ranking.listwise(scores, targets)) == pytest.approx(due)


@pytest.mark.parametrize("name", ["ndcg@0", "recall@10>=0"])
def test_names_that_say_nothing(name: str) -> None:
    with pytest.raises(atoll.ConfigError, match="metrics: " + name):
        chosen(name, "listwise")


def test_what_lists_do_not_have() -> None:
    with pytest.raises(atoll.ConfigError, match="auc is nothing that lists"):
        chosen("auc", "listwise")
    with pytest.raises(atoll.ConfigError, match="there is no metric 'ndgc@10'") as caught:
        chosen("ndgc@10", "listwise")
    assert "ndcg@10" in str(caught.value.hint)


def test_a_model_that_gives_no_lists_is_refused() -> None:
    task = Task(torch.nn.Linear(3, 1), "mse", "ndcg@10")
    with pytest.raises(atoll.ConfigError, match="ndcg@10 is of lists of items"):
        task.check(torch.ones(2, 3), torch.ones(2), None)


def test_errors_of_ratings_are_over_ratings_and_not_over_users() -> None:
    outputs = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    targets = torch.tensor([[2.0, 2.0, 2.0], [3.0, -1.0, 0.0]])
    for name, due in (("mae", 5 / 4), ("mse", 7 / 4), ("rmse", (7 / 4) ** 0.5)):
        metric = chosen(name, "rated")[name]
        totals = [
            metric.total(name, metric.taken(name, outputs[k : k + 1], targets[k : k + 1]).numpy())
            for k in (0, 1)
        ]
        assert metric.value(totals, name) == pytest.approx(due)
