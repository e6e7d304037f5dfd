"""Robust rules between machines: the coordinator has the replies, and the model is the simulation's."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from atoll.errors import ConfigError, DataError, RunError
from atoll.network.journal import Journal
from atoll.network.wire import Task
from tests.network.cluster import write
from tests.network.onethread import OneThread, clients


@pytest.mark.parametrize(
    ("method", "rule", "channel"),
    [("fedavg", "nnm + trimmed:1", "momentum:0.9 | clip:0.5 | int8"), ("scaffold", "cclip:0.5,2", None)],
)
def test_it_is_the_simulation_to_the_bit(method: str, rule: str, channel: str | None, tmp_path: Path) -> None:
    settings = {"method": method, "aggregate": rule, "channel": channel, "rounds": 3, "model": "mlp:16"}
    made = OneThread(tmp_path, settings).play()
    assert made.same()
    found = [each.clients["kept"] for each in made.federation.history]
    assert found == [each.clients["kept"] for each in made.twin().history]
    assert all(len(each) == 3 for each in found)


# --- the server's own data ------------------------------------------------------------------------------------------


def rooted(place: Path, name: str = "root.npz", features: int = 6, **settings: Any) -> OneThread:
    """Three nodes, and a coordinator with samples like theirs."""
    root = place / name
    place.mkdir(exist_ok=True)
    write(root, clients(("root",), features)["root"])
    given = {"aggregate": "fltrust", "rounds": 3, "model": "mlp:16", **settings}
    return OneThread(place, given, network={"root": str(root)})


def test_the_coordinator_compares_with_what_its_own_samples_say(tmp_path: Path) -> None:
    """The simulation's bits, where the server has the same."""
    made = rooted(tmp_path, channel="int8").play()
    assert made.same()
    kept = [each.clients["kept"] for each in made.federation.history]
    assert kept == [each.clients["kept"] for each in made.twin().history]
    assert any(share not in (0.0, 1.0) for each in kept for share in each)


def test_its_samples_are_those_that_the_run_began_with(tmp_path: Path) -> None:
    """A run goes on with them, and with no others."""
    rooted(tmp_path, rounds=2).play()
    assert rooted(tmp_path, rounds=2).play().federation.number == 2
    made = rooted(tmp_path, rounds=2)
    write(tmp_path / "root.npz", clients(("other", "root"))["root"])
    with pytest.raises(DataError, match="other samples than those that the run began with"):
        made.play()


@pytest.mark.parametrize(
    ("settings", "root", "says"),
    [
        ({"aggregate": "fltrust"}, False, "it has none"),
        ({"aggregate": "median"}, True, "nothing looks at them"),
        ({}, True, "nothing looks at them"),
        ({"aggregate": "fltrust", "root": 5}, True, "divides data"),
    ],
)
def test_who_has_samples_and_who_needs_them(
    settings: dict[str, Any], root: bool, says: str, tmp_path: Path
) -> None:
    write(tmp_path / "root.npz", clients(("root",))["root"])
    network = {"root": str(tmp_path / "root.npz")} if root else {}
    with pytest.raises(ConfigError, match=says):
        OneThread(tmp_path, {"model": "mlp:16", **settings}, network=network).play()


def test_its_samples_are_like_the_nodes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="root: its inputs"):
        rooted(tmp_path, features=7).play()


# --- groups behind secure aggregation -------------------------------------------------------------------------------

NINE = tuple(f"node{each}" for each in "abcdefghi")
GROUPS: dict[str, Any] = {
    "aggregate": "groups:3 + median", "channel": "clip:0.5 | secagg:16", "rounds": 2, "model": "mlp:16",
}  # fmt: skip


def nine(place: Path, before: Any = None, **settings: Any) -> OneThread:
    more = {} if before is None else {"before": before}
    return OneThread(
        place, {**GROUPS, **settings}, clients(NINE), network={"repeatable_noise": True}, **more
    ).play()


def sums(place: Path, number: int) -> dict[str, Any]:
    """What the coordinator has written down of the sums of a round."""
    journal = Journal(place / "coordinator" / "journal.sqlite")
    try:
        return {key: fact for key, fact in journal.items(f"round/{number}/").items() if "/sum" in key}
    finally:
        journal.close()


def test_each_group_plays_its_own_sum(tmp_path: Path) -> None:
    """The model is the simulation's, by lot in other groups in every round, and three hide in each."""
    made = nine(tmp_path)
    assert made.same()
    assert not [why for each in made.federation.history for why in each.refused.values()]
    kept = [each.clients["kept"] for each in made.federation.history]
    assert kept == [each.clients["kept"] for each in made.twin().history]
    groups = [[fact["clients"] for fact in sums(tmp_path, number).values()] for number in (1, 2)]
    for each in groups:
        assert sorted(client for group in each for client in group) == [*range(9)]
        assert [len(group) for group in each] == [3, 3, 3]
    assert groups[0] != groups[1]


def test_nodes_take_no_part_in_a_sum_of_fewer_than_three(tmp_path: Path) -> None:
    """Whatever the coordinator cuts: with groups of two it would know more than a client is ready to tell."""
    with pytest.raises(ConfigError, match="a sum of fewer than 3 hides nobody"):
        nine(tmp_path, aggregate="groups:4 + median")


class Patient(OneThread):
    """One in which somebody may wait for a node that is away, for so many seconds as it says."""

    def _wait(self, seconds: float | None = None) -> None:
        worked = [self.nodes[name].worked() for name in self.names]  # all of them, whoever was the first
        if not any(worked):
            assert seconds is not None and seconds > 0, self.coordinator.desk.state
            time.sleep(seconds)


@pytest.mark.parametrize("how", ["has no answer", "is away when sums are made"])
def test_a_group_of_too_few_is_left_out_and_nobody_waits_for_it(how: str, tmp_path: Path) -> None:
    """Its two others have trained for nothing; the round goes on without the three, whoever plays it again."""

    def lose(name: str, task: Task) -> None:
        desk = made.coordinator.desk
        if name != "nodee" or task.program != "train":
            return
        if how == "has no answer":

            def broken(do: object) -> None:
                raise RunError("its disk is full")

            made.nodes[name].work.do = broken  # type: ignore[assignment]
        else:
            desk.there = lambda client: client != 4  # type: ignore[method-assign]
            desk.absent = 0.05

    made = Patient(
        tmp_path,
        {**GROUPS, "rounds": 1, "aggregate": "groups:3 + mean"},
        clients(NINE),
        network={"repeatable_noise": True},
        before=lose,
    )
    made.play()
    (round_,) = made.federation.history
    found = [fact["clients"] for fact in sums(tmp_path, 1).values()]
    assert sorted(map(len, found)) == ([3, 3] if how == "has no answer" else [0, 3, 3])
    assert 4 not in {client for each in found for client in each}
    assert np.isfinite(round_.clients["kept"]).sum() == 6
    assert bool(made.federation.state.params.flat().isfinite().all())


def pushed(place: Path, rule: str | None) -> Tensor:
    """The model after a round in which a node has put the largest numbers that there are under its mask."""

    def lie(name: str, task: Task) -> None:
        if name == "nodee" and task.kind == "secagg" and task.program == "keys":
            (path,) = place.glob(f"{name}/*/vectors/*")
            vector = np.fromfile(path, "<u4")
            vector[1:-1] = (1 << 16) - 1  # the first is how many were cut short, the last its weight
            vector.tofile(path)

    made = nine(place, lie if rule is not None else None, rounds=1, aggregate=rule or "groups:3 + median")
    return made.federation.state.params.flat()  # type: ignore[no-any-return]


def test_a_lie_under_a_mask_is_worth_a_group(tmp_path: Path) -> None:
    """The middle of three sums stays where it is; the mean of three, as that of all, goes where the liar wants."""
    honest = pushed(tmp_path / "honest", None)
    off = {
        rule: float((pushed(tmp_path / rule[-4:], rule) - honest).norm())
        for rule in ("groups:3 + median", "groups:3 + mean")
    }
    assert off["groups:3 + mean"] > 0.5
    assert off["groups:3 + median"] < 0.4 * off["groups:3 + mean"]
