"""The coordinator dies, is asked to end, or is alone."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import msgspec
import pytest

from atoll.network.wire import VERSIONS, Joining, pack
from tests.network.faults.bench import Bench, Wound, bench
from tests.network.liar import Peer


def peers(made: Bench, *names: str) -> tuple[list[Peer], list[threading.Thread]]:
    """Honest clients under these names, at work."""
    found = [made.peer(name) for name in names or made.names]
    return found, [each.begin() for each in found]


def over(made: Bench, found: list[Peer], threads: list[threading.Thread], rounds: int = 3) -> None:
    """The run ends well: the simulation's model, and nobody has trained more than once a round."""
    assert made.wait() == 0, made.log("coordinator")
    for thread in threads:
        thread.join(30)
    assert [each.problem for each in found] == [None] * len(found)
    assert made.same()
    assert [len(each.rounds) for each in found] == [rounds] * len(found), [each.rounds for each in found]


_MOMENTS = {
    "an answer is whole, and has no name yet": Wound("atoll.network.blobs:Blobs.keep", call=5),
    "an answer is checked, not yet in the journal": Wound("atoll.network.desk:Desk.accept", call=3),
    "an answer is in the journal, not yet acknowledged": Wound(
        "atoll.network.desk:Desk.accept", call=3, after=True
    ),
    "answers are summed": Wound("atoll.contract.gather:Gathering.deliver", call=4),
    "the checkpoint is half written": Wound("atoll.runs.checkpoint:_write", call=5),
    "the checkpoint is there, the journal still has the round": Wound("atoll.network.desk:Desk.tidy", call=2),
    "a body has its name, and nothing refers to it": Wound(
        "atoll.network.blobs:Blobs.keep", call=5, after=True
    ),
    "the journal commits": Wound("atoll.network.journal:Journal._commit", call=9, after=True),
    "the round is played and does not count": Wound("atoll.runs.session:save", call=3),
    "the tasks are posted": Wound("atoll.network.desk:Desk.post", call=2, after=True),
}
_QUICK = (
    "an answer is whole, and has no name yet",
    "an answer is in the journal, not yet acknowledged",
    "the checkpoint is half written",
)


@pytest.mark.parametrize(
    "moment", [pytest.param(each, marks=() if each in _QUICK else pytest.mark.slow) for each in _MOMENTS]
)
def test_killed_at(tmp_path: Path, moment: str) -> None:
    """R1. SIGKILL of the coordinator at a chosen moment: an answer accepted, summed, a checkpoint, a commit.

    The same command goes on inside the round. Nobody trains a round twice; the model is the simulation's to the bit.
    """
    with bench(tmp_path) as made:
        made.start("coordinator", wounds=[_MOMENTS[moment]])
        found, threads = peers(made)
        assert made.dead() == -signal.SIGKILL, made.log("coordinator")
        made.start("coordinator")
        over(made, found, threads)


def test_killed_between_checkpoints(tmp_path: Path) -> None:
    """R1. SIGKILL of the coordinator several rounds after its last checkpoint, with one of two answers there.

    What was acknowledged since the checkpoint is still in the journal: the rounds are played again from there, and
    nobody trains again.
    """
    with bench(tmp_path, checkpoint=10, rounds=4) as made:
        made.start("coordinator", wounds=[Wound("atoll.network.desk:Desk.accept", call=5, after=True)])
        found, threads = peers(made)
        assert made.dead() == -signal.SIGKILL
        made.start("coordinator")
        over(made, found, threads, 4)


@pytest.mark.slow
def test_killed_again_and_again(tmp_path: Path) -> None:
    """R1. SIGKILL of the coordinator at every second commit of its journal, until the run is over.

    Each life gets a little further; nobody trains a round twice, and the model is the simulation's.
    """
    with bench(tmp_path) as made:
        found, threads = [], []
        for life in range(40):
            made.start(
                "coordinator", wounds=[Wound("atoll.network.journal:Journal._commit", call=5, after=True)]
            )
            if not life:
                found, threads = peers(made)
            if made.dead() == 0:
                break
        for thread in threads:
            thread.join(30)
        assert made.same()
        assert [len(each.rounds) for each in found] == [3, 3]


def test_idle(tmp_path: Path) -> None:
    """R1. SIGKILL of the coordinator while nobody has answered yet.

    The nodes are still known, the task has its old name, and the round is played.
    """
    with bench(tmp_path) as made:
        made.start("coordinator")
        found = [made.peer(name) for name in made.names]
        for each in found:
            each.join()
        asked = [each.wanted() for each in found]
        made.kill("coordinator")
        made.start("coordinator")
        for each in found:
            each.join()
        assert [each.wanted() for each in found] == asked
        over(made, found, [each.begin() for each in found])


def test_terminated(tmp_path: Path) -> None:
    """R3. SIGTERM to the coordinator in the middle of a round.

    It ends with exit status 0 within seconds, and says that the same command goes on; which it does, inside the round.
    """
    with bench(tmp_path) as made:
        made.start("coordinator")
        ann, bob = found = [made.peer(name) for name in made.names]
        for each in found:
            each.join()
        ann.answer()
        assert made.kill("coordinator", signal.SIGTERM) == 0
        assert "the same command goes on from here" in made.log("coordinator")
        made.start("coordinator")
        ann.join()
        assert ann.task(0.5) is None  # its answer was kept
        bob.join()
        over(made, found, [each.begin() for each in found])


def test_stored_unheard(tmp_path: Path) -> None:
    """R32. An answer is stored, and the node never hears so (the line breaks before the acknowledgement).

    The node asks what became of the task, or sends it again: it is told that the answer is there, and nothing is
    counted twice.
    """
    with bench(tmp_path) as made:
        made.start("coordinator")
        ann, _ = found = [made.peer(name) for name in made.names]
        for each in found:
            each.join()
        task = ann.wanted()
        blob = ann.honest(task)
        assert ann.send(task, blob).json["done"]  # and suppose that this was lost
        there = ann.ask("GET", f"/v1/task/{task.id}/answer")
        assert there.status == 200 and there.json["done"] and there.json["offset"] == len(blob)
        again = ann.send(task, blob)
        assert again.status == 200 and again.json["done"] and again.json["refused"] is None
        ann.shelf.forget(task.id)
        over(made, found, [each.begin() for each in found])


def test_slow_disk(tmp_path: Path) -> None:
    """R1. The coordinator's disk takes a third of a second for every commit.

    An answer is acknowledged once it is in the journal's file, and not before.
    """
    slow = Wound("atoll.network.factfile:FactFile.commit", "sleep:0.3", call=1, last=1000)
    with bench(tmp_path) as made:
        made.start("coordinator", wounds=[slow])
        ann, bob = made.peer("ann"), made.peer("bob")
        ann.join()
        bob.join()
        task = ann.wanted()
        assert ann.send(task, ann.honest(task)).json["done"]
        assert f"round/1/0/{ann.number}" in made.facts()


def test_other_data(tmp_path: Path) -> None:
    """R17. The coordinator is killed, and a node comes back with other data than those that it had joined with.

    What it had said is in the journal: it is refused with both numbers, and is taken again with its own data.
    """
    with bench(tmp_path) as made:
        made.start("coordinator")
        ann, _ = found = [made.peer(name) for name in made.names]
        for each in found:
            each.join()
        made.kill("coordinator")
        made.start("coordinator")
        coming = Joining(protocols=VERSIONS, software="peer", session=ann.session)
        assert ann.ask("POST", "/v1/join", pack(coming)).json["known"]
        more = msgspec.structs.replace(ann.form, train=ann.form.train + 1)
        told = ann.ask("POST", "/v1/data", pack(more))
        assert told.status == 400 and f"{ann.form.train + 1} now" in told.json["message"], told
        over(made, found, [each.begin() for each in found])


def test_alone(tmp_path: Path) -> None:
    """R6. The coordinator is cut off from all nodes in the middle of a round, for longer than it takes to miss them.

    It waits and says so; nothing fails. When they are back the round ends as if nothing had been.
    """
    with bench(tmp_path, network={"absent": 4.0}) as made:
        made.start("coordinator")
        found = [made.peer(name) for name in made.names]
        for each in found:
            each.join()
        for each in found:
            each.wanted()
        for _ in made.ticks(20, "the nodes' absence"):
            if not any(each["there"] for each in made.status()["nodes"]):
                break
        for _ in made.ticks(20, "a word of waiting"):
            if "paused, 0 of 1 replies; waiting for nodes" in made.status()["state"]:
                break
        assert made.processes["coordinator"].poll() is None
        threads = [each.begin() for each in found]
        assert made.wait() == 0
        for thread in threads:
            thread.join(30)
        assert {each.rounds[0] for each in found} == {"1-0-0"}


def test_failing_all(tmp_path: Path) -> None:
    """R26. Every node fails in a round, again and again.

    Each is asked once more, twice; then the run pauses with the reason (exit status 5). The same command asks anew, and
    with nodes that are well again the run ends with the simulation's model.
    """
    with bench(tmp_path) as made:
        made.start("coordinator")
        found = [made.peer(name) for name in made.names]
        for each in found:
            each.join()
        for each in found:
            task = each.wanted()
            assert [each.failed(task).json["done"] for _ in range(3)] == [False, False, True]
        assert made.wait() == 5
        assert "it broke" in made.log("coordinator")
        made.start("coordinator")
        over(made, found, [each.begin() for each in found])
