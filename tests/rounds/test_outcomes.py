"""What a round says of each of its clients."""

from __future__ import annotations

import pytest

import atoll


def played(method: str, stragglers: float) -> list[atoll.Round]:
    data = atoll.data.load("digits").partition("iid", clients=10)
    made = atoll.Federation(
        lambda: atoll.models.logistic(64, 10), data, method, epochs=4, stragglers=stragglers, rounds=2, engine="loop"
    )  # fmt: skip
    return made.fit().rounds


def test_partial_work_is_told() -> None:
    for record in played("fedprox", 0.5):
        work = record.clients["work"]
        assert set(work) <= {0.25, 0.5, 0.75, 1.0}
        assert 5 == sum(share < 1 for share in work) == len(record.cohort) / 2
        # the share is of the steps that were really made
        full = [n for n, share in zip(record.clients["samples"], work, strict=True) if share == 1]
        each = full[0] / 4
        assert record.clients["samples"] == pytest.approx([4 * each * share for share in work], rel=0.1)


def test_methods_that_take_none_drop_them() -> None:
    for record in played("fedavg", 0.5):
        assert len(record.dropped) == 5
        assert "work" not in record.clients


def test_nothing_is_told_without_stragglers() -> None:
    assert all("work" not in record.clients for record in played("fedprox", 0.0))
