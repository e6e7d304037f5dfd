"""The machine at hand: neighbours on its cores."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import pytest
import torch

import atoll
from atoll import machine
from atoll.contract import Replies
from atoll.machine import Neighbours, cores
from atoll.tensors import Record


def sleepers() -> int:
    return sum(each.name == "atoll-asleep" for each in threading.enumerate())


def test_a_team_sleeps_while_there_are_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0, 0.0, 0.0]  # of the wall, of everybody, of this process
    monkeypatch.setattr(Neighbours, "_spent", staticmethod(lambda: tuple(clock)))
    here, count = Neighbours(), torch.get_num_threads()

    def pass_by(others: float, seconds: float = 1.0) -> int:
        clock[:] = clock[0] + seconds, clock[1] + (1.5 + others) * seconds, clock[2] + 1.5 * seconds
        here.heed(2)
        return sleepers()

    before = sleepers()
    assert pass_by(0.1) == before
    assert pass_by(5.0, 0.1) == before  # too short to tell
    assert pass_by(0.9) == before + 1
    assert pass_by(0.2) == before + 1  # not gone for certain
    assert pass_by(2.0) == before + 1
    pass_by(0.05)
    end = time.monotonic() + 20
    while sleepers() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert sleepers() == before
    assert pass_by(0.9) == before + 1
    pass_by(0.0)
    assert torch.get_num_threads() == count


def test_several_threads_look_for_neighbours_and_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0, 0.0, 0.0]
    monkeypatch.setattr(Neighbours, "_spent", staticmethod(lambda: tuple(clock)))
    here = Neighbours()
    monkeypatch.setattr(machine, "_neighbours", here)
    clock[:] = 1.0, 1.0, 0.0
    with machine.threads(1):
        assert not here.there
    with machine.threads(2):
        assert here.there
    clock[:] = 2.0, 1.0, 0.0
    here.heed(2)
    assert not here.there


def test_the_server_heeds_neighbours_while_it_learns_from_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, seen, count = [0.0, 0.0, 0.0], [], torch.get_num_threads()
    monkeypatch.setattr(Neighbours, "_spent", staticmethod(lambda: tuple(clock)))
    here = Neighbours()
    monkeypatch.setattr(machine, "_neighbours", here)

    @dataclass(frozen=True, kw_only=True)
    class Watched(atoll.FedAvg):
        def update(self, state: Record, replies: Replies) -> Record:
            seen.append((here.there, torch.get_num_threads()))
            return super().update(state, replies)

    data = {"a": (torch.ones(4, 3), torch.tensor([0, 1, 0, 1]))}
    federation = atoll.Federation(
        torch.nn.Linear(3, 2), atoll.data.from_clients(data, test=None), Watched(), rounds=1, engine="loop"
    )
    torch.set_num_threads(2)
    try:
        clock[:] = 1.0, 1.0, 0.0
        federation.round()
        assert seen == [(True, 2)]
        clock[:] = 2.0, 1.0, 0.0
        here.heed(2)
    finally:
        torch.set_num_threads(count)


def test_what_is_measured_is_this_process_and_the_others() -> None:
    before = Neighbours._spent()
    if before is None:
        pytest.skip("this system does not say what its cores do")
    end = time.process_time() + 0.5
    while time.process_time() < end:
        sum(range(1000))
    after = Neighbours._spent()
    assert after is not None
    wall, everybody, own = (b - a for a, b in zip(before, after, strict=True))
    assert own >= 0.5
    assert own - 0.1 <= everybody <= (wall + 0.1) * cores()
