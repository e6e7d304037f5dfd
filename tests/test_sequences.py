"""Figures of texts: means over tokens, whatever sample, batch or client they are in, and perplexity from them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import atoll
import atoll.data
from atoll.federation import Federation
from atoll.metrics import NAMED, Metric
from atoll.sequences import right, surprise
from atoll.task import Batch, Task

VOCABULARY = 7


class Bigram(nn.Module):
    """Each token says what comes next."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, VOCABULARY)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.table(tokens)
        return found


def texts(generator: torch.Generator, n: int, t: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples whose labels end early, each at a place of its own."""
    tokens = torch.randint(VOCABULARY, (n, t + 1), generator=generator)
    ends = torch.randint(1, t + 1, (n, 1), generator=generator)
    return tokens[:, :-1], torch.where(torch.arange(t) < ends, tokens[:, 1:], -1)


@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_tokens_are_pooled_whatever_sample_they_are_in(seed: int, n: int, t: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = texts(generator, n, t)
    task = Task(Bigram())
    task.check(x[:1], y[:1], VOCABULARY)
    params, buffers = task.initial()
    logits = params["table.weight"][x]
    real = y >= 0
    loss = nn.functional.cross_entropy(logits[real], y[real])
    sums = [
        task.totals(params, buffers, Batch(x[a:b], y[a:b], torch.ones(b - a), torch.tensor(0)))
        for a, b in ((0, n // 2), (n // 2, n))
        if b > a
    ]
    plain = [{name: float(value) for name, value in each.items()} for each in sums]
    found = task.metrics["perplexity"].value(plain, "perplexity")
    assert found == pytest.approx(math.exp(float(loss)), rel=1e-5)
    accuracy = (logits.argmax(-1) == y)[real].double().mean()
    assert task.metrics["accuracy"].value(plain, "accuracy") == pytest.approx(float(accuracy), abs=1e-6)


def test_padding_rows_count_for_nothing_whatever_they_hold() -> None:
    x, y = texts(torch.Generator().manual_seed(0), 4, 5)
    task = Task(Bigram())
    task.check(x[:1], y[:1], VOCABULARY)
    params, buffers = task.initial()
    mask = torch.tensor([1.0, 1.0, 0.0, 0.0])
    some = task.totals(params, buffers, Batch(x, y, mask, torch.tensor(0)))
    few = task.totals(params, buffers, Batch(x[:2], y[:2], torch.ones(2), torch.tensor(0)))
    assert {k: float(v) for k, v in some.items()} == pytest.approx({k: float(v) for k, v in few.items()})


def test_no_token_is_left_out_because_a_model_failed() -> None:
    logits = torch.zeros(1, 3, 2)
    logits[0, 1] = math.nan
    labels = torch.tensor([[0, 1, -1]])
    assert surprise(logits, labels).tolist()[0][:2] == [pytest.approx(math.log(2)), math.inf]
    metric = NAMED["perplexity"]
    taken = metric.taken("perplexity", logits, labels).double().numpy()
    assert metric.value([metric.total("perplexity", taken)], "perplexity") == math.inf
    assert math.isnan(right(logits, labels)[0, 2])


def test_perplexity_has_no_largest_number() -> None:
    assert NAMED["perplexity"].value([{"perplexity": 1e6, "perplexity_counted": 1}], "perplexity") == math.inf


@pytest.mark.parametrize("engine", ["loop", "batched", "processes"])
@pytest.mark.parametrize("method", ["fedavg", "ditto"])
def test_perplexity_is_of_all_clients_tokens_in_every_engine(method: str, engine: str) -> None:
    generator = torch.Generator().manual_seed(1)
    held: dict[str, Any] = {name: texts(generator, n, 6) for name, n in (("a", 12), ("b", 20), ("c", 5))}
    data = atoll.data.from_clients(
        {k: {"train": (x, y.clamp(min=0)), "test": (x, y.clamp(min=0))} for k, (x, y) in held.items()}
    )
    fed = Federation(
        Bigram(), data, method, rounds=1, lr=0.3, batch_size=4, engine=engine, device="cpu", eval_every=1
    )
    run = fed.fit()
    assert run.evaluation is not None
    loss, each = 0.0, {}
    for name, (x, y) in held.items():
        model = fed.personal(name) if method == "ditto" else run.model
        with torch.no_grad():
            one = nn.functional.cross_entropy(model(x).flatten(0, 1), y.clamp(min=0).flatten())
        loss, each[name] = loss + float(one) * len(x) / 37, math.exp(float(one))
    spread = run.evaluation.own["perplexity"]
    assert spread.pooled == pytest.approx(math.exp(loss), rel=1e-4)
    assert spread.mean == pytest.approx(sum(each.values()) / 3, rel=1e-4)
    assert spread.p90 <= spread.max == pytest.approx(max(each.values()), rel=1e-4)
    known = run.to_dict()
    assert known["perplexity"] == known["metrics"]["perplexity"] == run.evaluation.value("perplexity")
    apart = dataclasses.replace(run.evaluation, overall={})
    assert apart.value("perplexity") == spread.pooled != spread.mean
    assert "perplexity" in str(run)


def test_metrics_of_ones_own_may_be_over_tokens() -> None:
    metric = Metric(lambda outputs, targets: torch.where(targets < 0, math.nan, outputs), over="tokens")
    outputs, targets = torch.tensor([[1.0, 2.0], [4.0, 9.0]]), torch.tensor([[0, 0], [0, -1]])
    taken = metric.taken("own", outputs, targets)
    assert taken.tolist() == [[3.0, 2.0], [4.0, 1.0]]
    assert metric.value([metric.total("own", taken.double().numpy())], "own") == pytest.approx(7 / 3)


def test_figures_of_pictures_are_no_perplexities() -> None:
    task = Task(nn.Linear(3, 2))
    task.check(torch.zeros(1, 3), torch.zeros(1, dtype=torch.long), 2)
    assert "perplexity" not in task.metrics


def test_a_sample_without_labels_has_no_loss_and_none_is_right() -> None:
    task = Task(Bigram())
    texts = torch.full((2, 3), -1)
    assert task.losses(torch.randn(2, 3, VOCABULARY), texts).tolist() == [0, 0]
    assert right(torch.randn(2, 3, 3, VOCABULARY), torch.full((2, 3, 3), -1)).tolist() == [0, 0]
