"""Widths of a stack whose clients finish one after another: few are captured, and none changes a result."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import atoll.data
from atoll.engines import Batched, widths
from atoll.engines.widths import Stretch, rungs, stretches
from atoll.federation import Federation
from atoll.tensors import leaves
from tests.engines.test_engines import distance


def whole(counts: list[int], short: list[tuple[int, int]] | None = None) -> Any:
    """Which batches are full: all that a client has, but those at (step, client)."""
    found = np.arange(max(counts))[:, None] < np.asarray(counts)
    for step, client in short or []:
        found[step, client] = False
    return found


def test_equal_clients_stay_together_and_only_a_short_last_batch_has_a_mask() -> None:
    assert stretches([60, 60], whole([60, 60]), 10**6) == [Stretch(0, 60, 2, 2, False)]
    last = whole([60, 60], [(59, 1)])
    assert stretches([60, 60], last, 10**6) == [Stretch(0, 59, 2, 2, False), Stretch(59, 60, 2, 2, True)]


def test_a_width_is_captured_where_it_saves_enough() -> None:
    counts = [300, 280, 5, 5]
    found = stretches(counts, whole(counts), 10)
    assert found == [Stretch(0, 5, 4, 4, False), Stretch(5, 280, 2, 2, False), Stretch(280, 300, 1, 2, False)]
    few = [9, 8, 5, 5]  # nothing to win but work of a few microseconds
    assert {each.width for each in stretches(few, whole(few), 10)} == {4}
    assert {each.width for each in stretches(few, whole(few), 10**8)} == {1, 2, 4}  # a large model


def test_the_few_short_batches_at_a_width_are_taken_at_a_larger_one() -> None:
    counts = [400, 400, 100, 100]
    found = stretches(counts, whole(counts, [(0, 1), (200, 0)]), 10)
    assert Stretch(200, 201, 2, 4, True) in found and Stretch(0, 1, 4, 4, True) in found
    assert {(each.width, each.masked) for each in found} == {(4, True), (4, False), (2, False)}


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=40).filter(any),
    st.integers(0, 10**9),
    st.randoms(use_true_random=False),
)
def test_every_step_of_every_client_is_taken_once(counts: list[int], elements: int, random: Any) -> None:
    counts = sorted(counts, reverse=True)
    short = [(random.randrange(n), at) for at, n in enumerate(counts) if n and random.random() < 0.5]
    full = whole(counts, short)
    found = stretches(counts, full, elements)
    assert [step for each in found for step in range(each.begin, each.end)] == list(range(counts[0]))
    for each in found:
        for step in range(each.begin, each.end):
            assert each.active == sum(n > step for n in counts) <= each.width
            assert each.masked or full[step, : each.active].all()
        assert each.width in rungs(len(counts))
    assert found == stretches(counts, full, elements)


def test_a_cohort_has_few_widths() -> None:
    assert (
        rungs(1) == [1]
        and rungs(2) == [1, 2]
        and rungs(10) == [1, 2, 4, 6, 8, 10]
        and rungs(100) == [1, 4, 16, 32, 48, 64, 100]
    )
    assert all(len(rungs(size)) <= 11 and rungs(size)[-1] == size for size in range(1, 10_000))


def unequal(sizes: Any, rounds: int, cohort: int, method: str = "fedavg", **given: Any) -> Federation:
    generator = torch.Generator().manual_seed(0)
    made = {
        f"c{k}": (torch.randn(int(n), 6, generator=generator), torch.arange(int(n)) % 3)
        for k, n in enumerate(sizes)
    }
    data = atoll.data.from_clients(made, classes=3, test=None)
    return Federation(
        lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), data, method, rounds=rounds,
        cohort=cohort, engine=given.pop("engine", "batched"), eval_every=0, device="cpu", workers=1, **given,
    )  # fmt: skip


METHODS: list[tuple[str, dict[str, Any]]] = [
    ("fedavg", {"momentum": 0.9, "weight_decay": 0.1}),  # a step moves what has no sample too
    ("scaffold", {}),
    ("ditto", {}),
    ("fedavg", {"optimizer": "adam"}),
]


@pytest.mark.parametrize(("method", "more"), METHODS)
def test_rows_of_clients_that_are_done_change_nothing(
    method: str, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def played(engine: str, worth: float) -> tuple[Any, int]:
        monkeypatch.setattr(widths, "_WORTH", worth)
        running = unequal(
            (33, 7, 21, 2, 13, 40, 12), 2, 7, method, engine=engine, batch_size=4, lr=0.05, **more
        )
        running.round()
        running.round()
        engine_ = running.engine
        kept = [running.memories.get(client) for client in running.memories.clients()]
        return (running.state, kept), engine_.captures if isinstance(engine_, Batched) else 0

    widest, few = played("batched", 1e9)
    narrow, many = played("batched", 0.0)
    assert few <= 2 < many
    for one, other in zip(leaves(widest), leaves(narrow), strict=True):
        if isinstance(one, torch.Tensor):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    assert distance(widest[0], played("loop", 0.0)[0][0]) < 1e-5


def test_captures_are_few_however_many_rounds_there_are() -> None:
    sizes = np.random.default_rng(0).integers(1, 300, 200)
    running = unequal(sizes, 12, 100, batch_size=2)
    engine: Any = running.engine
    seen = []
    for _ in range(12):
        running.round()
        seen.append(engine.captures)
    assert seen[0] >= 3 and seen[-1] <= 16
    assert seen[-1] - seen[3] <= 2  # cohorts of other clients meet next to nothing new
