"""Data that lies in memory one after the other, used where it is."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch

import atoll
from atoll.data.adjacent import in_a_row


def test_slices_of_one_array_are_not_copied() -> None:
    x = np.arange(60, dtype=np.float32).reshape(5, 4, 3)
    y = np.arange(20).reshape(5, 4) % 2
    data = atoll.data.from_clients(list(zip(x, y, strict=True)), test=None)
    assert np.shares_memory(data.pool("train").inputs.numpy(), x)
    for client in range(5):
        own = data.samples(client)
        assert own is not None
        assert torch.equal(own.inputs, torch.from_numpy(x[client]))
    copied = atoll.data.from_clients([(x[k].copy(), y[k]) for k in range(5)], test=None)
    assert torch.equal(copied.pool("train").inputs, data.pool("train").inputs)


def test_the_memory_lives_as_long_as_the_tensor() -> None:
    array = np.ones((4, 1000), np.float32)
    gone = weakref.ref(array)
    row = in_a_row([torch.from_numpy(part) for part in np.split(array, 2)])
    assert row is not None
    del array
    gc.collect()
    assert gone() is not None
    assert float(row.sum()) == 4000
    del row
    gc.collect()
    assert gone() is None


whole = torch.arange(24.0).reshape(6, 4)
leaf, brain = whole.clone().requires_grad_(), whole.bfloat16()


@pytest.mark.parametrize(
    "parts",
    [
        [whole[:2], whole[3:]],  # a gap
        [whole[3:], whole[:3]],  # the other way round
        [whole[:2], whole[:2]],
        [whole[:2], whole[2:].double()],
        [whole[:2, :2], whole[2:, :2]],  # rows with something between
        [whole[:2], whole[2:2], whole[2:]],
        [whole[:2], whole[2:].reshape(8, 2)],
        [leaf[:2], leaf[2:]],
        [brain[:2], brain[2:]],
    ],
)
def test_anything_else_is_left_to_be_copied(parts: list[torch.Tensor]) -> None:
    assert in_a_row(parts) is None


def test_slices_of_a_tensor() -> None:
    row = in_a_row([whole[1:2], whole[2:5]])
    assert row is not None
    assert torch.equal(row, whole[1:5])
    assert row.data_ptr() == whole[1].data_ptr()
