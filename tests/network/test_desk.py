"""Tasks that are open: what of the disk is theirs."""

from __future__ import annotations

from pathlib import Path

from atoll.network.blobs import Blobs
from atoll.network.desk import Desk, Posted, key_of
from atoll.network.journal import Journal
from atoll.network.wire import Blob, Task


def test_bodies_that_somebody_needs_stay(tmp_path: Path) -> None:
    """Of orders under way, of an answer that is being looked at, of one that counts; nobody else's."""
    journal, blobs = Journal(tmp_path / "journal.sqlite"), Blobs(tmp_path / "bodies")
    desk = Desk(journal, blobs)
    shared, own, settling, counts, old = (
        blobs.put(word) for word in (b"shared", b"own", b"settling", b"counts", b"old")
    )
    bodies = {name: Blob(sha256=sha256, size=1) for name, sha256 in (("shared", shared), ("own", own))}
    task = Task(id="3-0-0", round=3, program="train", most=1, cohort=1, **bodies)
    desk.post([Posted(0, task, key_of(task.id, 0), lambda blob: None)])
    journal.put("round/3/0/1", {"sha256": counts, "size": 1, "refused": None})
    journal.put("round/2/0/1", {"sha256": old, "size": 1, "refused": None})
    with desk.settling(settling):
        desk.tidy(5)  # an order of round 3 is still under way, and so is what came in it
    assert {path.name for path in blobs.place.iterdir()} == {shared, own, settling, counts}
    assert list(journal.items("round/")) == ["round/3/0/1"]
    desk.withdraw([Posted(0, task, key_of(task.id, 0), lambda blob: None)])
    desk.tidy(5)
    assert list(blobs.place.iterdir()) == [] and not journal.items("round/")
    journal.close()


def test_an_answer_that_nobody_waits_for_any_more_is_written_down_and_not_held(tmp_path: Path) -> None:
    """It was being looked at when its call was closed."""
    journal, blobs = Journal(tmp_path / "journal.sqlite"), Blobs(tmp_path / "bodies")
    desk = Desk(journal, blobs)
    task = Task(
        id="3-0-0", round=3, program="train", most=1, cohort=1, shared=Blob(sha256=blobs.put(b"w"), size=1)
    )
    made = Posted(0, task, key_of(task.id, 0), lambda blob: None)
    desk.post([made])
    desk.withdraw([made])
    answer = blobs.put(b"late")
    desk.accept(made, answer, 4, None)
    assert desk.arrived(made.key) is None
    assert journal.get(made.key) == {"sha256": answer, "size": 4, "refused": None}
    desk.post([made])  # the round is played again
    found = desk.arrived(made.key)
    assert found is not None and found.sha256 == answer
    journal.close()
