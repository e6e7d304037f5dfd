"""The base that nobody sends: known by its hash, and the same at everybody before anything is trained."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from msgspec import structs
from safetensors.torch import save_file
from torch import nn

from atoll.errors import ConfigError, DataError
from atoll.models import build
from atoll.network import base
from atoll.network.base import Bases, base_of, remembered
from atoll.network.wire import DataForm, Field, Plan
from atoll.task import Task
from atoll.tensors import Tensors
from tests.network.cluster import Cluster
from tests.network.commands import command
from tests.network.onethread import OneThread


def task(
    change: float = 0.0, name: str = "base", dtype: torch.dtype = torch.float32, learned: float = 0.0
) -> Task:
    """A model of which all but the last layer stays as it is."""
    torch.manual_seed(0)
    base, head, module = nn.Linear(30, 40).to(dtype).requires_grad_(False), nn.Linear(40, 2), nn.Sequential()
    module.add_module(name, base)
    module.add_module("head", head)
    with torch.no_grad():
        base.weight[7, 11] += change
        head.weight.add_(learned)
    return Task(module)


def test_the_hash_follows_from_what_is_not_trained_and_from_nothing_else() -> None:
    due = base_of([task()])
    assert due is not None and len(due) == 64 and base_of([task()]) == due
    assert base_of([task(learned=1.0)]) == due
    others = [task(change=1e-3), task(name="other"), task(dtype=torch.float64)]
    assert len({due, *(base_of([each]) for each in others), base_of([task(), task(change=1e-3)])}) == 5
    assert base_of([Task(nn.Linear(3, 2))]) is None


def test_what_several_share_is_read_once() -> None:
    first = task()
    both = [first, first.over(first.frozen.map(torch.clone))]
    assert base_of([first, first]) != base_of([first]) and base_of(both) != base_of([first, first])


class Views(nn.Module):
    """A model whose frozen parameters are views of one memory: a row of a matrix, and the matrix, perhaps turned."""

    def __init__(self, change: float = 0.0, turned: bool = False) -> None:
        super().__init__()
        held = torch.arange(9.0).reshape(3, 3)
        held[2, 1] += change
        self.first = nn.Parameter(held[0], requires_grad=False)
        self.whole = nn.Parameter(held, requires_grad=False)
        self.again = nn.Parameter(held.t() if turned else held.view(3, 3), requires_grad=False)
        self.head = nn.Linear(3, 2)


def seen(change: float = 0.0, turned: bool = False) -> Task:
    """The model over the views themselves: a task of its own has copies."""
    module = Views(change, turned)
    frozen = Tensors({name: getattr(module, name).detach() for name in ("again", "first", "whole")})
    return Task(module).over(frozen)


def test_no_part_stands_for_all_that_begins_where_it_does() -> None:
    """What is behind a view is read, and what lies otherwise is other numbers."""
    due = base_of([seen()])
    assert len({value.data_ptr() for value in seen().frozen.values()}) == 1
    assert due == base_of([seen()])
    assert len({due, base_of([seen(change=1.0)]), base_of([seen(turned=True)])}) == 3
    assert base_of([seen()]) != base_of([Task(Views())])  # what is there once is read once


def test_the_same_bytes_are_another_base_in_another_form() -> None:
    """Another shape, or another type."""
    held = torch.arange(6.0).reshape(2, 3).bfloat16()
    forms = (held, held.reshape(3, 2), held.view(torch.float16))
    assert len({base_of([task().over(Tensors({"base.weight": each}))]) for each in forms}) == 3


def test_large_ones_are_read_to_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Piece by piece: the hash is that of one piece."""
    due = base_of([task()])
    monkeypatch.setattr(base, "_PIECE", 1000)
    assert base_of([task()]) == due


FORM = DataForm(
    inputs=(Field(name="", dtype="F32", shape=(6,)),),
    targets=Field(name="", dtype="I64", shape=()),
    classes=3,
    train=5,
)
ONE, OTHER = "1" * 64, "2" * 64


def test_whoever_tells_no_base_is_refused_where_all_have_one() -> None:
    """A node of another make, too. Where there is no adapter one may tell none; one that tells one is held to it."""
    told = structs.replace(FORM, base=ONE)
    with pytest.raises(DataError, match=r"^ann: the weights .* have the hash none, and this run's have 1111"):
        Bases(lambda form: ONE, adapted=True).check("ann", FORM)
    Bases(lambda form: ONE, adapted=True).check("ann", told)
    Bases(lambda form: ONE, adapted=False).check("ann", FORM)
    with pytest.raises(DataError, match=r"have the hash 1111.*, and this run's have 2222"):
        Bases(lambda form: OTHER, adapted=False).check("ann", told)
    with pytest.raises(DataError, match="this run's have none"):
        Bases(lambda form: None, adapted=False).check("ann", told)


def test_the_coordinator_reads_its_base_once_a_form() -> None:
    """How many samples a node has changes no model; what they look like, and how many classes there are, may."""
    asked: list[DataForm] = []

    def tell(form: DataForm) -> str:
        asked.append(form)
        return ONE if form.classes == 3 else OTHER

    bases = Bases(tell, adapted=True)
    for form in (FORM, structs.replace(FORM, train=7), FORM):
        bases.check("ann", structs.replace(form, base=ONE))
    bases.check("bob", structs.replace(FORM, classes=4, base=OTHER))
    wide = (Field(name="", dtype="F32", shape=(7,)),)
    bases.check("cat", structs.replace(FORM, inputs=wide, base=ONE))
    assert [(form.inputs[0].shape, form.classes) for form in asked] == [((6,), 3), ((6,), 4), ((7,), 3)]


def test_a_file_that_was_looked_at_is_not_read_again_until_it_changes(tmp_path: Path) -> None:
    file, one, other = tmp_path / "base.safetensors", task(), task(change=1.0)
    file.write_bytes(b"one")
    due = remembered([one], str(file), ["mlp", None], tmp_path)
    assert due == base_of([one])
    assert remembered([other], str(file), ["mlp", None], tmp_path) == due  # by size and time alone
    assert remembered([other], str(file), ["mlp", "lora:2,4"], tmp_path) == base_of([other])
    os.utime(file, ns=(0, 0))
    assert remembered([one], str(file), ["mlp", "lora:2,4"], tmp_path) == due
    (tmp_path / "base.json").write_text("nonsense")
    assert remembered([one], str(file), ["mlp", "lora:2,4"], tmp_path) == due
    assert remembered([one], None, [], tmp_path / "nowhere") == due
    file.write_bytes(b"longer")
    os.utime(file, ns=(0, 0))  # a copy may bring its time along
    assert remembered([other], str(file), ["mlp", "lora:2,4"], tmp_path) == base_of([other])
    beside = tmp_path / "beside"
    beside.mkdir()
    (beside / "model.safetensors").write_bytes(b"longer")
    os.utime(beside / "model.safetensors", ns=(0, 0))
    assert remembered([one], str(beside), ["mlp", "lora:2,4"], tmp_path) == due


def weights(place: Path, shape: tuple[int, ...], classes: int) -> tuple[Path, Path]:
    """Those of a model, and those with another number among them."""
    torch.manual_seed(4)
    state = build("mlp:16", shape, classes).state_dict()
    right, wrong = place / "right.safetensors", place / "wrong.safetensors"
    save_file(state, right)
    next(iter(state.values()))[0, 0] += 1e-4
    save_file(state, wrong)
    return right, wrong


def test_nodes_over_one_base_give_the_simulations_model(tmp_path: Path) -> None:
    right, _ = weights(tmp_path, (6,), 3)
    settings = {"model": "mlp:16", "adapter": "lora:2,4", "base": str(right), "lr": 0.1}
    made = OneThread(tmp_path, settings, starts=dict.fromkeys(("ann", "bob", "cat"), right)).play()
    assert made.same()
    assert "base" not in Plan.__struct_fields__  # a coordinator says of no file of a node's that it be read


@pytest.mark.parametrize("other", [True, False])
def test_a_node_over_another_base_is_refused_by_name(tmp_path: Path, other: bool) -> None:
    """Over other weights, or over none that it was given: then they are drawn."""
    right, wrong = weights(tmp_path, (6,), 3)
    settings = {"model": "mlp:16", "adapter": "lora:2,4", "base": str(right)}
    starts = {"ann": right} | ({"bob": wrong} if other else {})
    with pytest.raises(
        DataError, match=r"^bob: the weights that its model stands over have the hash"
    ) as refused:
        OneThread(tmp_path, settings, starts=starts).play()
    assert "--base FILE" in str(refused.value.hint)


def test_weights_that_nothing_stands_over_are_refused(tmp_path: Path) -> None:
    right, _ = weights(tmp_path, (6,), 3)
    with pytest.raises(ConfigError, match="all of this run's model is trained"):
        OneThread(tmp_path, {"model": "mlp:16"}, starts={"ann": right}).play()


@pytest.mark.slow
def test_who_is_refused_ends_before_anything_is_trained(tmp_path: Path) -> None:
    """Processes: exit code 2, and the others go on."""
    right, wrong = weights(tmp_path, (8, 8), 10)
    settings = {
        "method": "fedavg", "model": "mlp:16", "adapter": "lora:2,4", "base": str(right), "rounds": 2, "lr": 0.1,
        "seed": 3, "engine": "loop", "test": "none",
    }  # fmt: skip
    with Cluster(tmp_path, settings, names=("ann", "bob")) as cluster:
        cluster.start("coordinator")
        cluster.until("listening", "coordinator")
        cluster.start("bob", "--base", str(wrong))
        assert cluster.wait("bob", 60) == 2
        said = cluster.log("bob")
        assert "bob: the weights that its model stands over have the hash" in said and "--base FILE" in said
        assert "Traceback" not in said and "trained" not in said
        cluster.start("ann", "--base", str(right))
        cluster.start("bob", "--base", str(right))
        assert cluster.wait() == 0 and cluster.wait("bob", 30) == 0
        assert cluster.same()


def test_a_file_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    data = tmp_path / "a.csv"
    data.write_text("x,y\n1,0\n")
    words = (
        "join",
        "127.0.0.1:1",
        "--plain",
        "--name",
        "ann",
        "--data",
        str(data),
        "--base",
        str(tmp_path / "none"),
    )
    code, _, said = command(*words)
    assert code == 2 and "there is no such file" in said
