"""What a node computes on: told at once where it cannot be, shown to who approves, to who watches, and no part of the
data's form.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch

from atoll.cli.join import Wish
from atoll.cli.join import command as join
from atoll.errors import CodecError, ConfigError
from atoll.network.computing import usable
from atoll.network.node import Node, Station
from atoll.network.routes import status
from atoll.network.shelf import Kept, Shelf
from atoll.network.wire import Answered, Blob, DataForm, Field, Joined, Task, pack, unpack
from atoll.network.worker import Begin, Done, _kept, _Work
from tests.network.commands import command
from tests.network.onethread import OneThread


def test_a_device_that_cannot_be_used_is_told_before_anybody_is_called(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,0\n")
    given = [
        "join",
        "127.0.0.1:1",
        "--plain",
        "--name",
        "ann",
        "--approve",
        "--data",
        str(tmp_path / "a.csv"),
    ]
    code, _, said = command(*given, "--device", "gpu")
    assert code == 2 and "--device 'gpu' is no device" in said and "cuda:1" in said
    wish = Wish("127.0.0.1:1", str(tmp_path / "a.csv"), "ann", plain=True, device="cuda:77")
    with pytest.raises(ConfigError, match="--device 'cuda:77' cannot be used: ") as told:
        join(wish)
    assert "Traceback" not in told.value.message and "auto" in str(told.value.hint)
    with pytest.raises(ConfigError, match="--silo ddp:2 computes on the CPU, and --device says cuda"):
        join(replace(wish, device="cuda", silo="ddp:2"))


@pytest.mark.parametrize("name", ["", "cpu:0", "cuda:", "cuda:1;", "meta"])
def test_what_is_no_device(name: str) -> None:
    with pytest.raises(ConfigError, match="is no device"):
        usable(name)


def test_a_worker_computes_where_it_is_told_and_says_so(tmp_path: Path) -> None:
    """As `--device cpu` does; the coordinator knows, and another device is no other data."""
    seen: dict[str, list[str | None]] = {}

    def looked(name: str, task: Task) -> None:
        found = status(made.coordinator, 0.0)["nodes"]
        seen.setdefault("told", [each["device"] for each in found])
        form = msgspec.structs.replace(made.nodes["ann"].work.ready().form, device="cuda:3")
        made.coordinator.welcome("ann", form)
        seen["then"] = [each["device"] for each in status(made.coordinator, 0.0)["nodes"]]

    made = OneThread(tmp_path, {"rounds": 1}, before=looked, device="cpu")
    made.play()
    assert seen == {"told": ["cpu"] * 3, "then": ["cuda:3", "cpu", "cpu"]}
    work = made.nodes["ann"].work
    assert "computes on: cpu\n" in work.text and work.client.device == torch.device("cpu")
    assert "That the node is there, and that it computes on cpu." in " ".join(work.text.split())
    assert made.same()


@pytest.mark.parametrize("device", ["", "cuda:1000", "cpu<b>", "/dev/nvidia0", "CUDA"])
def test_what_a_node_may_say_that_it_computes_on(device: str) -> None:
    """It stands on pages and in logs."""
    form = DataForm((Field("", "F32", (2,)),), Field("", "I64", ()), 2, 5, device="cuda:12")
    assert unpack(pack(form), DataForm) == form
    with pytest.raises(CodecError, match="device"):
        unpack(pack(msgspec.structs.replace(form, device=device)), DataForm)


def test_an_answer_that_is_not_on_the_disk_is_not_done(tmp_path: Path) -> None:
    path = tmp_path / "answer"
    assert _kept(path, b"weights") == hashlib.sha256(b"weights").hexdigest()
    assert path.read_bytes() == b"weights"
    with pytest.raises(FileNotFoundError):
        _kept(tmp_path / "absent" / "answer", b"weights")


def test_a_node_says_the_hash_of_that_answer_and_of_no_other(tmp_path: Path) -> None:
    """An answer of a process before this one is looked at again."""
    node, said = Node(Station("", "ann", "", tmp_path)), list[tuple[str, str | None]]()
    node.shelf, node._last = Shelf(tmp_path / "run"), ("3-0-0", Done(1.0, "0" * 64))

    async def answer(task: str, path: Path, sha256: str | None = None) -> Answered:
        said.append((task, sha256))
        return Answered(offset=1, done=True, refused="its weight is nan")

    line: Any = SimpleNamespace(answer=answer)
    nothing: Any = None
    for name in ("3-0-0", "4-0-0"):
        node.shelf.answer(name).write_bytes(b"a")
        task = Task(name, int(name[0]), "train", Blob("0" * 64, 1), most=9)
        asyncio.run(node._task(line, nothing, nothing, task))
    assert said == [("3-0-0", "0" * 64), ("4-0-0", None)]


def test_a_worker_refuses_a_device_that_is_not_there(tmp_path: Path) -> None:
    made = OneThread(tmp_path, {"rounds": 1}).play()
    begin = Begin(made.coordinator.plan, made.nodes["ann"].source, 0, "ann", str(tmp_path), device="cuda:77")
    with pytest.raises(ConfigError, match="'cuda:77' cannot be used"):
        _Work(begin)
    auto = _Work(msgspec.structs.replace(begin, device="auto")).ready().form.device
    assert auto == ("cuda:0" if torch.cuda.is_available() else "cpu")
    silo = _Work(msgspec.structs.replace(begin, device="auto", silo="ddp:2"))
    assert silo.ready().form.device == "cpu"


@pytest.mark.parametrize(
    "how", [{"precision": "bfloat16"}, pytest.param({"accumulate": 3}, marks=pytest.mark.slow)], ids=str
)
def test_how_gradients_are_computed_is_a_nodes_affair(how: dict[str, Any], tmp_path: Path) -> None:
    """All do as the simulation that says so; and who approves reads it."""
    made = OneThread(tmp_path, {"batch_size": 8}, how=how).play()
    assert made.same(**how)
    assert not made.same()
    said = "cpu, in bfloat16" if "precision" in how else "cpu, batches in 3 goes"
    assert said in made.nodes["ann"].work.text


def test_a_worker_is_told_all_that_its_node_was(tmp_path: Path) -> None:
    """And what is kept for predictions says how a node was set, too."""
    plan = OneThread(tmp_path / "run", {"rounds": 1}).play().coordinator.plan
    station = Station(
        "", "ann", "a.npz", tmp_path, policy="p.toml", memory=7, silo="ddp:2", device="cuda:1", start="b",
        tokenizer="t", precision="bfloat16", accumulate=3, recompute=True,
    )  # fmt: skip
    node, joined = Node(station), Joined(0, "run", 2, plan, known=True)
    node.shelf = Shelf(tmp_path / "shelf")
    begin = node.begin(joined)
    assert (begin.number, begin.place, begin.public) == (2, str(tmp_path), None)
    common = {*Begin.__struct_fields__} & {each.name for each in fields(Station)} - {"place", "admitted"}
    assert len(common) == 11
    for name in common:
        assert getattr(begin, name) == getattr(station, name), name
    node._keep(joined, Task("1-0-0", 1, "train", Blob("0" * 64, 1), most=9))
    kept = node.shelf.kept()
    assert kept is not None and (kept.number, kept.plan) == (2, plan)
    for name in common & {*Kept.__struct_fields__}:
        assert getattr(kept, name) == getattr(station, name), name


def test_blocks_are_computed_again_where_there_are_any(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no blocks"):
        OneThread(tmp_path, {}, how={"recompute": True}).play()


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--precision", "half", "--precision half is not to be had"),
        ("--tokenizer", "nowhere", "--tokenizer nowhere: there is no such folder"),
        ("--accumulate", "0", "--accumulate"),
    ],
)
def test_what_a_node_cannot_do_is_told_at_once(option: str, value: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,0\n")
    given = [
        "join",
        "127.0.0.1:1",
        "--plain",
        "--name",
        "ann",
        "--approve",
        "--data",
        str(tmp_path / "a.csv"),
    ]
    code, out, said = command(*given, option, value)
    assert code == 2 and says in out + said
