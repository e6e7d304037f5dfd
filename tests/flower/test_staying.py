"""The worker that stays does what a worker does, is there for the next message, and makes room for another run's."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import msgspec
import pytest
import torch

from atoll.codec import pieces
from atoll.errors import RunError
from atoll.flower.staying import Staying, _address
from atoll.network.wire import Blob, Plan, Task
from atoll.network.worker import Begin, Do, Done, _Work
from atoll.tensors import Record
from tests.network.cluster import write
from tests.network.onethread import clients


@pytest.mark.parametrize("what", ["source", "policy"])
def test_a_worker_that_has_read_what_was_written_since_is_another(tmp_path: Path, what: str) -> None:
    """Else a run would go on with data that were corrected, or under a policy that was tightened."""
    plan = Plan(
        method="fedavg", hyper={}, model="mlp:8", loss=None, metrics=None, augment=None, channel=None,
        dp_sgd=None, seed=3, engine="processes", data={}, validation=0, test=None, rounds=2, cohort=3,
    )  # fmt: skip
    for folder in (False, True):
        path = file = tmp_path / what
        if folder:
            path = tmp_path / "folder"
            path.mkdir()
            file = path / "train.csv"
        file.write_text("a,b\n1,2\n")
        begin = msgspec.structs.replace(Begin(plan, "nothing", 0, "ann", str(tmp_path)), **{what: str(path)})
        keys = [Staying(begin, sys.path)._key, Staying(begin, sys.path)._key]
        file.write_text("a,b\n1,2\n3,4\n")
        keys.append(Staying(begin, sys.path)._key)
        assert keys[0] == keys[1] != keys[2]


def test_a_directory_that_others_can_reach_has_no_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    home = _address("/node").parent
    assert home.stat().st_mode & 0o777 == 0o700
    for mode in (0o750, 0o701, 0o722):
        home.chmod(mode)
        with pytest.raises(RunError, match="not this user's alone"):
            _address("/node")
    home.chmod(0o700)
    home.rename(tmp_path / "elsewhere")
    home.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="not this user's alone"):
        _address("/node")


@pytest.mark.slow
def test_a_visit_finds_the_worker_of_the_one_before(tmp_path: Path) -> None:
    write(tmp_path / "ann.npz", clients()["ann"])
    plan = Plan(
        method="fedavg", hyper={"lr": 0.1}, model="mlp:8", loss=None, metrics=None, augment=None, channel=None,
        dp_sgd=None, seed=3, engine="processes", data={"classes": 3}, validation=0, test=None, rounds=2, cohort=3,
    )  # fmt: skip
    begin = Begin(plan, str(tmp_path / "ann.npz"), 0, "ann", str(tmp_path))
    work = _Work(begin)
    params, buffers = work.task.initial()
    (tmp_path / "shared").write_bytes(
        b"".join(bytes(each) for each in pieces(Record(params=params, buffers=buffers, lr=torch.tensor(0.1))))
    )
    task = Task(id="1-0-0", round=1, program="train", shared=Blob(sha256="0" * 64, size=1), cohort=3)

    def do(name: str) -> Do:
        return Do(
            task, str(tmp_path / "shared"), None, None, *(str(tmp_path / f"{name}{k}") for k in range(3))
        )

    async def visit(begin: Begin, name: str) -> float:
        hand = Staying(begin, sys.path)
        since = time.monotonic()
        assert (await hand.ready()).form == ready.form
        seconds = time.monotonic() - since
        assert isinstance(await hand.do(do(name)), Done)
        hand.end()
        return seconds

    ready = work.ready()
    work.do(do("due"))
    first = asyncio.run(visit(begin, "first"))
    second = asyncio.run(visit(begin, "second"))
    assert second < first / 3
    due = (tmp_path / "due0").read_bytes()
    assert (tmp_path / "first0").read_bytes() == due == (tmp_path / "second0").read_bytes()
    asyncio.run(visit(msgspec.structs.replace(begin, plan=msgspec.structs.replace(plan, rounds=9)), "other"))
    assert (tmp_path / "other0").read_bytes() == due
    home = _address(str(tmp_path)).parent
    assert home.stat().st_mode & 0o077 == 0 and home.stat().st_uid == os.getuid()
