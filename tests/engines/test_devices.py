"""How many clients run together on a device."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from atoll.engines.devices import Room

CPU, MB = torch.device("cpu"), 1 << 20


def groups(room: Room, count: int, need: int, model: int) -> list[int]:
    """The widths of the groups of so many clients, one after the other, as the engine makes them."""
    found = []
    while count:
        found.append(room.width(count, need, model))
        count -= found[-1]
    return found


def test_small_models_run_all_together() -> None:
    assert groups(Room(CPU), 1000, 100_000, 20_000) == [1000]


def test_large_ones_in_main_memory_run_in_even_groups() -> None:
    assert groups(Room(CPU), 20, 20 * MB, 5 * MB) == [10, 10]
    assert groups(Room(CPU), 3, 4000 * MB, 1000 * MB) == [1, 1, 1]


@given(st.integers(1, 200), st.integers(0, 3000 * MB), st.integers(0, 100 * MB))
def test_every_group_fits_and_they_are_even(count: int, need: int, model: int) -> None:
    room = Room(CPU)
    found = groups(room, count, need, model)
    assert sum(found) == count
    assert all(width == 1 or (width * need <= room.budget and width * model <= 64 * MB) for width in found)
    assert max(found) - min(found) <= 1


def test_what_did_not_fit_is_not_tried_again() -> None:
    room = Room(CPU)
    room.halve(10)
    assert groups(room, 12, 1, 1) == [4, 4, 4]
