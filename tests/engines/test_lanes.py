"""Threads that take some clients of a stack each: the same bits as one thread, and no more captures."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import nn

import atoll
from atoll import Federation
from atoll.engines.batched import Batched
from atoll.engines.group import cut
from atoll.engines.lanes import Lanes


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 3))


def unequal() -> atoll.FederatedData:
    generator = torch.Generator().manual_seed(1)
    sizes = [40, 7, 16, 33, 8, 24, 5]
    return atoll.data.from_clients(
        {
            f"c{k}": (torch.randn(n, 5, generator=generator), torch.randint(0, 3, (n,), generator=generator))
            for k, n in enumerate(sizes)
        },
        classes=3,
        test=None,
    )


@pytest.mark.parametrize("method", ["scaffold", "ditto"])
def test_threads_change_no_bit(method: str) -> None:
    found = []
    for workers in (1, 2, 3):
        federation = Federation(
            model, unequal(), method, rounds=2, batch_size=8, lr=0.1, engine="batched", workers=workers
        )
        run = federation.fit(progress=False)
        assert isinstance(federation.engine, Batched)
        states = [
            *run.model.parameters(),
            *(p for k in range(7) for p in federation.personal(k).parameters()),
        ]
        found.append([value.detach().clone() for value in states])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_equal_clients_need_a_capture_a_thread_at_most() -> None:
    x = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    data = atoll.data.from_arrays(x, (x[:, 0] > 0).long()).partition("iid", clients=8, test=None)
    for workers, captures in ((1, 1), (2, 1), (3, 2)):
        federation = Federation(
            model, data, "fedavg", rounds=1, batch_size=4, cohort=8, engine="batched", workers=workers
        )
        federation.fit(progress=False)
        assert isinstance(federation.engine, Batched)
        assert len(federation.engine.steps.known) == captures


@pytest.mark.parametrize(("active", "lanes"), [(10, 2), (7, 3), (2, 4), (1, 1), (13, 4)])
@pytest.mark.parametrize("whole", [True, False])
def test_every_client_is_in_one_window(active: int, lanes: int, whole: bool) -> None:
    dealt = cut(active, lanes, whole)
    assert len(dealt) == min(active, lanes)
    assert [k for own in dealt for first, part in own for k in range(first, first + part)] == list(
        range(active)
    )
    sizes = [sum(part for _, part in own) for own in dealt]
    assert max(sizes) - min(sizes) <= 1
    assert all(len(own) == 1 for own in dealt) or not whole
    assert whole or all(part & (part - 1) == 0 for own in dealt for _, part in own)


def test_lanes_work_at_once_on_one_thread_each_and_report_what_went_wrong() -> None:
    lanes, meet, seen = Lanes(3), threading.Barrier(3, timeout=20), set[Any]()

    def work() -> None:
        meet.wait()
        seen.add((threading.get_ident(), torch.is_grad_enabled(), torch.get_num_threads()))

    def fail() -> None:
        meet.wait()
        raise ValueError("lost")

    with torch.no_grad():
        lanes.run([work, work, work])
        assert len(seen) == 3
        assert {(grad, count) for _, grad, count in seen} == {(False, 1)}
        assert threading.get_ident() in {ident for ident, _, _ in seen}
        with pytest.raises(ValueError, match="lost"):
            lanes.run([work, fail, work])
    before = threading.active_count()
    lanes.close()
    assert threading.active_count() == before - 2
    lanes.run([lambda: seen.clear()])
    assert not seen
