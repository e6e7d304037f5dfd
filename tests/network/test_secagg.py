"""Secure aggregation between real nodes: the simulation's sum, whoever is killed when, and no update in the open."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atoll.network.journal import Journal
from atoll.network.marks import MarksOnDisk
from tests.network.cluster import Cluster, digits
from tests.network.gate import Gate

STAGES = ("keys", "shares", "masked", "consistency", "unmask")
SETTINGS: dict[str, Any] = {
    "method": "fedavg", "model": "mlp:16", "rounds": 1, "lr": 0.1, "seed": 3,
    "channel": "clip:0.5 | secagg:16", "eval_every": 0,
}  # fmt: skip
LONG = 400.0


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path


def cluster(place: Path, absent: float = 60.0, **settings: Any) -> Cluster:
    network = {"repeatable_noise": True, "absent": absent}
    return Cluster(place, {**SETTINGS, **settings}, digits(), network=network)


def begun(made: Cluster, gate: Gate | None = None, repeatable: bool = True) -> None:
    """Everybody starts; the last node goes through the gate."""
    made.start("coordinator")
    for name in made.names:
        port = gate.port if gate is not None and name == made.names[-1] else None
        made.start(name, *(["--repeatable-noise"] if repeatable else []), port=port)


def facts(made: Cluster) -> dict[str, Any]:
    journal = Journal(made.place / "coordinator" / "journal.sqlite")
    try:
        return journal.items("")
    finally:
        journal.close()


def summed(made: Cluster) -> tuple[list[int], np.ndarray[Any, Any]]:
    """Whose updates the coordinator has summed up in round 1, and the sum."""
    fact = facts(made)["round/1/0/sum"]
    blob = (made.place / "coordinator" / "bodies" / fact["sha256"]).read_bytes()
    return fact["clients"], np.frombuffer(blob, "<i8")


def kept(made: Cluster, clients: list[int]) -> np.ndarray[Any, Any]:
    """The sum of what these nodes have on their shelves."""
    files = [next(made.place.glob(f"{made.names[k]}/*/vectors/1-0-0-*")) for k in clients]
    return sum(np.fromfile(each, "<u4").astype(np.int64) for each in files)  # type: ignore[return-value]


def marks(made: Cluster, name: str) -> list[str]:
    path = next(made.place.glob(f"{name}/*/marks"))
    return [" ".join(line.split()[:2]) for line in path.read_text().splitlines()]


# --- runs ------------------------------------------------------------------------------------------------------------


def test_a_run_is_the_simulations_and_no_update_leaves_a_node(place: Path) -> None:
    """What the last node sends is kept: of its work there is no update in it, and of the protocol no plain numbers."""
    made = cluster(place, rounds=2)
    with made, Gate(made.port) as gate:
        begun(made, gate)
        assert made.wait(seconds=LONG) == 0
        for name in made.names:
            assert made.wait(name) == 0
        assert made.same() and made.same(channel="clip:0.5 | secagg:16,protocol")
        update = next(place.glob("dan/*/vectors/2-0-0-*")).read_bytes()
        assert len(update) == 4 * (64 * 16 + 16 + 16 * 10 + 10 + 2)
        pieces = [update[at : at + 12] for at in range(0, len(update) - 12, 12)]
        assert len(gate.sent) > len(update)
        assert not [piece for piece in pieces if len({*piece}) > 6 and piece in gate.sent]
        assert all(gate.sent.count(f"-{stage}/answer?".encode()) == 2 for stage in STAGES)
        assert [what.split()[0] for what in marks(made, "ann")] == ["joined", "agreed", "answered"] * 2


def lost(place: Path, stage: str) -> None:
    """A node that dies in a stage is in the sum if it has given its masked update by then; either way it is right."""
    made = cluster(place, absent=4.0)
    with made, Gate(made.port) as gate:
        gate.hold(f"-{stage}/answer")
        begun(made, gate)
        assert gate.held.wait(LONG)
        assert f"stage {stage}" in made.status()["state"]
        made.kill("dan")
        assert made.wait(seconds=LONG) == 0
        clients, total = summed(made)
        assert clients == ([0, 1, 2] if stage in ("keys", "shares", "masked") else [0, 1, 2, 3])
        assert np.array_equal(total, kept(made, clients))
        assert made.same() == (len(clients) == 4)


def test_a_node_that_is_killed_before_its_update_came_is_left_out(place: Path) -> None:
    lost(place, "masked")


@pytest.mark.slow
@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "masked"])
def test_a_node_may_be_killed_in_any_stage(place: Path, stage: str) -> None:
    lost(place, stage)


def restarted(place: Path, stage: str) -> None:
    """The attempt is abandoned, another one has another sid and comes to the sum; nobody gives shares twice in one."""
    made = cluster(place)
    with made, Gate(made.port) as gate:
        gate.hold(f"-1-{stage}/answer")
        begun(made, gate)
        assert gate.held.wait(LONG)
        for _ in made.ticks(LONG, "the others' answers"):
            if "3 of 4" in made.status()["state"]:
                break
        made.kill("coordinator")
        gate.free()
        made.start("coordinator")
        assert made.wait(seconds=LONG) == 0
        for name in made.names:
            made.wait(name)
        assert facts(made)["secagg/attempts"] == 2
        clients, total = summed(made)
        assert clients == [0, 1, 2, 3] and np.array_equal(total, kept(made, clients)) and made.same()
        for name in made.names:
            done = marks(made, name)
            assert len(done) == len({*done}), "a mark stands once"
            assert len([each for each in done if each.startswith("joined")]) == 2
            answered = len([each for each in done if each.startswith("answered")])
            assert answered == (2 if stage == "unmask" else 1)
            assert len([each for each in done if each.startswith("agreed")]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_coordinator_may_be_killed_in_any_stage(place: Path, stage: str) -> None:
    restarted(place, stage)


@pytest.mark.slow
def test_a_node_that_comes_back_has_dropped_out_of_the_attempt(place: Path) -> None:
    made = cluster(place)
    with made, Gate(made.port) as gate:
        gate.hold("-shares/answer")
        begun(made, gate)
        assert gate.held.wait(LONG)
        made.kill("dan")
        made.start("dan", "--repeatable-noise")
        assert made.wait(seconds=LONG) == 0
        assert summed(made)[0] == [0, 1, 2] and np.array_equal(summed(made)[1], kept(made, [0, 1, 2]))
        assert "has been restarted since" in made.log("dan")


@pytest.mark.slow
def test_a_node_whose_floor_is_above_the_sum_refuses_and_the_coordinator_says_why(place: Path) -> None:
    """Four are asked, one is lost, and a sum of three is too small for one of the others: without it there is none."""
    made = cluster(place, absent=4.0)
    (place / "policy.toml").write_text("smallest_cohort = 4\n")
    with made, Gate(made.port) as gate:
        gate.hold("-1-masked/answer")
        made.start("coordinator")
        for name in made.names:
            more = ["--policy", str(place / "policy.toml")] if name == "ann" else []
            made.start(name, "--repeatable-noise", *more, port=gate.port if name == "dan" else None)
        assert gate.held.wait(LONG)
        made.kill("dan")
        assert made.wait(seconds=LONG) != 0
        assert "a sum of 3 clients, and this client's floor is 4" in made.log("ann")
        assert "the server proposes 3 as a number of clients, and this client's floor is 4" in made.log(
            "coordinator"
        )
        assert "round/1/0/sum" not in facts(made)


@pytest.mark.slow
def test_noise_is_a_nodes_own_unless_both_sides_want_it_repeatable(place: Path) -> None:
    """The sum is another one then, and what is kept is not what the seed says."""
    made = cluster(place, channel="clip:0.5 | skellam:0.1 | secagg:16")
    with made:
        begun(made, repeatable=False)
        assert made.wait(seconds=LONG) == 0
        clients, total = summed(made)
        assert np.array_equal(total, kept(made, clients)) and not made.same()


# --- marks on the disk ------------------------------------------------------------------------------------------------


def of() -> Iterator[bytes]:
    return (bytes([at]) * 32 for at in itertools.count())


def test_marks_survive_and_a_torn_line_was_never_told(tmp_path: Path) -> None:
    path, (sid, other, third) = tmp_path / "marks", itertools.islice(of(), 3)
    made = MarksOnDisk(path)
    assert made.once("answered", sid) and not made.once("answered", sid) and made.once("joined", sid)
    assert (
        made.only("agreed", sid, b"a")
        and made.only("agreed", sid, b"a")
        and not made.only("agreed", sid, b"b")
    )
    whole = path.read_bytes()
    again = MarksOnDisk(path)
    assert (
        not again.once("answered", sid)
        and not again.only("agreed", sid, b"b")
        and again.once("joined", other)
    )
    path.write_bytes(whole + b"answered 02")
    torn = MarksOnDisk(path)
    assert path.read_bytes() == whole and torn.once("answered", third) and not torn.once("answered", sid)
    assert not MarksOnDisk(path).once("answered", third)


def test_a_mark_that_cannot_be_written_was_not_made(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "marks"
    made = MarksOnDisk(path)
    with pytest.raises(OSError, match="gone"):
        made.once("answered", b"1")
    path.parent.mkdir()
    assert made.once("answered", b"1")
