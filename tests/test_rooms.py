"""Memory of large tensors that is used again."""

from __future__ import annotations

import pytest
import torch

from atoll.rooms import Rooms, blank

SIZE = 1 << 12


@pytest.mark.parametrize("rows", [3, 40_000])
def test_blank_tensors_have_the_form_and_begin_where_torchs_do(rows: int) -> None:
    for dtype in (torch.float32, torch.float64):
        like = torch.ones(rows, 60, dtype=dtype)
        made = blank(like)
        assert (made.shape, made.dtype, made.stride()) == (like.shape, like.dtype, like.stride())
        assert made.data_ptr() % 64 == 0
        assert torch.equal(made.copy_(like), like)


def test_what_is_dropped_is_given_out_again_and_what_is_held_is_not() -> None:
    rooms = Rooms()
    held, dropped = torch.from_numpy(rooms.give(SIZE)), torch.from_numpy(rooms.give(SIZE))
    seen = dropped[:5].view(5)  # a view holds it as well
    places = {held.data_ptr(), dropped.data_ptr()}
    del dropped
    assert rooms.idle == 0
    other = torch.from_numpy(rooms.give(SIZE))
    assert other.data_ptr() not in places
    place = seen.data_ptr()
    del seen
    assert rooms.idle >= SIZE
    assert torch.from_numpy(rooms.give(SIZE)).data_ptr() == place
    assert held.data_ptr() != place


def test_rooms_of_another_size_are_not_given_out() -> None:
    rooms = Rooms()
    held, dropped = rooms.give(SIZE), rooms.give(SIZE)
    del dropped
    larger = rooms.give(SIZE + 64)
    assert len(larger) == SIZE + 64 and len(held) == SIZE
    assert rooms.idle >= SIZE


def test_no_more_is_kept_than_what_is_in_use_calls_for() -> None:
    rooms = Rooms()
    given = [rooms.give(SIZE) for _ in range(10)]
    del given[4:]
    assert 5 * SIZE < rooms.idle < 7 * SIZE
    del given[2:]
    assert 2 * SIZE < rooms.idle < 4 * SIZE
    given.clear()
    assert rooms.idle == 0
