"""Machines that fail: full disks, damaged files, a node's user code, and the ledger of privacy."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.network.faults.bench import Bench, Wound, bench
from tests.network.faults.child import shifted
from tests.network.faults.test_fault_restart import over, peers
from tests.network.liar import Peer

FULL = str(errno.ENOSPC)
QUICKLY = {"atoll.network.coordinator:_AGAIN": 1}


@pytest.mark.parametrize(
    "place",
    [
        pytest.param("atoll.network.blobs:Blobs.put", marks=pytest.mark.slow),
        pytest.param("atoll.network.blobs:Blobs.keep", marks=pytest.mark.slow),
        "atoll.runs.checkpoint:_write",
    ],
)
def test_no_room(tmp_path: Path, place: str) -> None:
    """R21. The disk is full where a body or a checkpoint is to be written.

    The run pauses and says so; a node is told to come later, and does. Once there is room it goes on by itself, from
    the last checkpoint, without anybody training again.
    """
    with bench(tmp_path) as made:
        made.start("coordinator", wounds=[Wound(place, FULL, 4, last=6)], values=QUICKLY)
        found, threads = peers(made)
        over(made, found, threads)


@contextlib.contextmanager
def small(place: Path, size: str) -> Iterator[None]:
    """A disk of that size at a place; skips where none can be had."""
    place.mkdir(parents=True, exist_ok=True)
    if (
        os.getuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]).returncode
    ):
        pytest.skip("a small disk (tmpfs) needs root, and leave to mount")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_disk_full(tmp_path: Path) -> None:
    """R21. The coordinator's disk, a real one of 1 MB, fills up in the middle of a run, and is emptied again.

    The run pauses; nothing half-written counts; it goes on by itself to the simulation's model.
    """
    with bench(tmp_path, rounds=4) as made, small(tmp_path / "coordinator", "1m"):
        made.start("coordinator", values=QUICKLY)
        found = [made.peer(name) for name in made.names]
        for each in found:
            each.join()
        for each in found:
            each.answer()
        found[0].wanted()
        filler = tmp_path / "coordinator" / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as stream:
            while True:
                stream.write(bytes(4096))
        threads = [each.begin() for each in found]
        for _ in made.ticks(30, "a pause"):
            if "no room" in made.log("coordinator"):
                break
        assert made.processes["coordinator"].poll() is None
        filler.unlink()
        over(made, found, threads, 4)


def _killed_in(made: Bench, round: int) -> tuple[list[Peer], list[threading.Thread]]:
    """The run until one of two answers of a round is acknowledged; then the coordinator is killed."""
    wound = Wound("atoll.network.desk:Desk.accept", call=2 * round - 1, after=True)
    made.start("coordinator", wounds=[wound])
    found, threads = peers(made)
    assert made.dead() == -signal.SIGKILL
    return found, threads


@pytest.mark.parametrize("how", ["rotten", pytest.param("lost", marks=pytest.mark.slow)])
def test_missing_body(tmp_path: Path, how: str) -> None:
    """R23. The journal knows an answer whose body the disk has lost, or whose body has rotted.

    The hash tells: the node is asked again, under the same name, and the model is the simulation's.
    """
    with bench(tmp_path) as made:
        _, threads = _killed_in(made, 3)
        facts = made.facts()
        bodies = made.place / "coordinator" / "bodies"
        (lost,) = [fact["sha256"] for key, fact in facts.items() if key in ("round/3/0/0", "round/3/0/1")]
        if how == "lost":
            (bodies / lost).unlink()
        else:
            (bodies / lost).write_bytes(b"rotten" + (bodies / lost).read_bytes()[6:])
        made.start("coordinator")
        assert made.wait() == 0
        for thread in threads:
            thread.join(30)
        assert made.same()


def test_damaged_checkpoint(tmp_path: Path) -> None:
    """R23. The newest checkpoint is damaged.

    Its sums tell; the run goes on from the one before, whose rounds are still in the journal: nobody trains again.
    """
    with bench(tmp_path, keep="all") as made:
        found, threads = _killed_in(made, 3)
        (folder,) = (made.place / "coordinator" / "runs").iterdir()
        newest = max((folder / "checkpoints").glob("round-*"))
        assert newest.name == "round-00002"
        blob = bytearray((newest / "state.safetensors").read_bytes())
        blob[-1] ^= 1
        (newest / "state.safetensors").write_bytes(blob)
        made.start("coordinator")
        over(made, found, threads)
        assert "resumed after round 1" in made.log("coordinator")


def test_torn_journal(tmp_path: Path) -> None:
    """R23. The journal's write-ahead log lacks its end, as after a power failure on a disk that lies.

    What is torn off is not half there: SQLite takes the last whole commit, and the node is asked again.
    """
    with bench(tmp_path) as made:
        _, threads = _killed_in(made, 3)
        wal = made.place / "coordinator" / "journal.sqlite-wal"
        size = wal.stat().st_size
        assert size
        os.truncate(wal, size - 700)
        made.start("coordinator")
        assert made.wait() == 0, made.log("coordinator")
        for thread in threads:
            thread.join(30)
        assert made.same()
        with sqlite3.connect(made.place / "coordinator" / "journal.sqlite") as base:
            assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.slow
@pytest.mark.parametrize("hours", [-1.0, 1.0])
def test_clocks(tmp_path: Path, hours: float) -> None:
    """R24. The coordinator's clock is an hour off, a node's an hour the other way; then the coordinator's steps back.

    Nothing goes by it: waits are durations. The model is the simulation's.
    """

    def clock(off: float) -> dict[str, Any]:
        return {"time:time": partial(shifted, 3600 * off)}

    with bench(tmp_path, network={"absent": 30}) as made:
        wound = Wound("atoll.network.desk:Desk.accept", call=3, after=True)
        made.start("coordinator", values=clock(hours), wounds=[wound])
        made.start("ann", values=clock(-hours))
        found, threads = peers(made, "bob")
        assert made.dead() == -signal.SIGKILL
        made.start("coordinator", values=clock(hours - 1))
        over(made, found, threads)
        assert made.wait("ann") == 0


CODE = '''
import os
import time
from pathlib import Path

from torch import nn

PLACE = Path(__file__).parent


class Net(nn.Sequential):
    """What it does when it is trained stands in a file, and is done once."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, x):
        kind = PLACE / (os.environ.get("ATOLL_FAULT", "nothing"))
        if kind.is_file() and x.shape[0] > 1:
            kind.unlink()
            if kind.name == "raise":
                raise ValueError("user code broke")
            if kind.name == "hang":
                time.sleep(1000)
            if kind.name == "exit":
                os._exit(3)
            if kind.name == "memory":
                hoard = []
                while True:
                    hoard.append(bytearray(1 << 24))
            if kind.name == "segv":
                os.kill(os.getpid(), 11)
        return super().forward(x)
'''


@pytest.mark.parametrize(
    "kind",
    ["raise", *(pytest.param(each, marks=pytest.mark.slow) for each in ("hang", "exit", "memory", "segv"))],
)
def test_user_code(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """R27. A node's own model raises, hangs, ends the process, fills the memory, or is killed by a signal.

    It costs the node its worker process and one attempt; the node says so, gives signs of life meanwhile, is asked once
    more, and the model is the simulation's.
    """
    (tmp_path / "nets_of_mine.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    model = "nets_of_mine:Net"
    with bench(tmp_path, rounds=10, names=("ann",), model=model) as made:
        path = os.environ["PYTHONPATH"]
        made.start("coordinator", environment={"PYTHONPATH": path})
        made.start(
            "ann", "--code", f"model={model}", "--limit", "8", "--memory", "3000",
            environment={"PYTHONPATH": path, "ATOLL_FAULT": kind},
        )  # fmt: skip
        made.until("joined as ann", "ann")
        (tmp_path / kind).touch()
        assert [made.wait(name, 60) for name in ("coordinator", "ann")] == [0, 0]
        said = {
            "raise": "user code broke", "hang": "longer than 8 s", "exit": "status 3", "memory": "memory",
            "segv": "signal 11",
        }[kind]  # fmt: skip
        assert "train failed" in made.log("ann") and said in made.log("ann").lower()
        assert made.same()


@pytest.mark.parametrize(
    "moment", ["after the charge", pytest.param("before the charge", marks=pytest.mark.slow)]
)
def test_ledger(tmp_path: Path, moment: str) -> None:
    """R31. A run with central differential privacy; the coordinator is killed around a round's charge to the ledger.

    The charge is on the disk before the round counts. Its noise is secret, and so another when the round is played
    again from the journal: that is charged once more. The ledger never shows less than was released.
    """
    privacy = {"channel": "clip:1.0 | noise:0.5", "delta": 1e-5}
    wound = Wound("atoll.keeper:Keeper.charged", call=2, after=moment.startswith("after"))
    with bench(tmp_path, **privacy) as made:
        made.start("coordinator", wounds=[wound])
        found, threads = peers(made)
        assert made.dead() == -signal.SIGKILL, made.log("coordinator")
        (folder,) = (made.place / "coordinator" / "runs").iterdir()
        paid = [1, 2] if moment.startswith("after") else [1]
        assert charges(folder) == paid
        made.start("coordinator")
        assert made.wait() == 0
        for thread in threads:
            thread.join(30)
        assert charges(folder) == [*paid, 2, 3]
        assert [each.rounds for each in found] == [["1-0-0", "2-0-0", "3-0-0"]] * 2  # nobody trained again


def charges(folder: Path) -> list[int]:
    """The rounds that the ledger has charges of, in order."""
    lines = [json.loads(each)["entry"] for each in (folder / "privacy.jsonl").read_text().splitlines()]
    return [each["round"] for each in lines if each["type"] == "charge"]
