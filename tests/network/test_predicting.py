"""`atoll predict`: at a node the model that the simulation would give this client, elsewhere the one that was saved."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from atoll.cli.predict import Wish, command
from atoll.data.samples import Samples
from atoll.errors import ConfigError, DataError
from atoll.network.predicting import at_node, inputs_of
from atoll.network.wire import Task
from tests.network.cluster import Cluster, digits, simulation
from tests.network.onethread import OneThread, clients

METHODS: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedper": {},
    "fedavg-ft": {"finetune_epochs": 2},
    "fedora": {"validation": 0.2},
    "pfedhn": {},
    "ifca": {},
    "fedala": {},
    "moon": {},
    "fedmd": {},
}
TOGETHER = ("pfedhn",)
"""The server makes a cohort's models in one product, of other last bits than one client's alone."""

QUICK = ("fedavg", "fedper", "fedavg-ft", "fedmd")


def rows(count: int = 5) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(2).normal(size=(count, 6)).astype(np.float32))


def played(place: Path, **settings: Any) -> OneThread:
    network = {}
    if settings.get("method") == "fedmd":
        np.savez(place / "public.npz", x=rows(12).numpy())
        network = {"public": str(place / "public.npz")}
    return OneThread(place / "run", settings, network=network).play()


# --- the model is the simulation's ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in METHODS]
)
def test_a_node_has_the_model_that_the_simulation_has(name: str, tmp_path: Path) -> None:
    """Its own, fine-tuning included, where the method has one, else the global one; outputs equal to the bit."""
    made = played(tmp_path, method=name, **METHODS[name])
    twin, differ = made.twin(), set()
    for client in made.names:
        predictor, kept, _ = at_node(made.place / client, {})
        with torch.inference_mode():
            due = twin.personal(client)(rows())
        found = predictor.outputs(rows())
        assert torch.allclose(found, due, rtol=0, atol=1e-6) if name in TOGETHER else torch.equal(found, due)
        assert kept.program == ("personal" if twin.method.personalised else "evaluate")
        differ.add(due.numpy().tobytes())
    assert (len(differ) > 1) == twin.method.personalised


def test_behind_a_channel(tmp_path: Path) -> None:
    """Memories have a part for the channel's transforms then, and the model is found beside it."""
    made = OneThread(tmp_path, {"method": "fedper", "channel": "clip:0.5"}).play()
    with torch.inference_mode():
        due = made.twin().personal("bob")(rows())
    assert torch.equal(at_node(made.place / "bob", {})[0].outputs(rows()), due)


def test_where_nothing_is_judged_it_is_what_was_sent_to_train(tmp_path: Path) -> None:
    """The model at the start of the last round: nodes without test data are not asked to judge."""
    made = OneThread(tmp_path, {"method": "fedavg", "test": "none"}).play()
    predictor, kept, _ = at_node(made.place / "ann", {})
    assert kept.program == "train" and kept.task.round == 2
    with torch.inference_mode():
        due = made.twin(rounds=1).run().model(rows())
    assert torch.equal(predictor.outputs(rows()), due)


class Cut(Exception):
    """The coordinator is cut off."""


def test_what_is_kept_outlives_later_tasks(tmp_path: Path) -> None:
    """Judged after round 4; four rounds of training later its bodies and its memory are still there."""

    def before(name: str, task: Task) -> None:
        if task.round == 8 and task.program != "train":
            raise Cut

    made = OneThread(tmp_path, {"method": "fedper", "rounds": 8, "eval_every": 4}, before=before)
    with pytest.raises(Cut):
        made.play()
    predictor, kept, _ = at_node(made.place / "ann", {})
    assert kept.task.round == 4
    with torch.inference_mode():
        due = made.twin(rounds=4).personal("ann")(rows())
    assert torch.equal(predictor.outputs(rows()), due)


@pytest.mark.slow
def test_between_processes(tmp_path: Path) -> None:
    """Four real nodes; then each predicts in a process of its own, after the coordinator's end."""
    settings = {"method": "fedavg-ft", "model": "mlp:16", "rounds": 2, "seed": 3}
    with Cluster(tmp_path, settings) as made:
        made.start_all()
        for name in ("coordinator", *made.names):
            assert made.wait(name, 120) == 0, made.log(name)
    inputs = digits()["ann"].inputs[:7]
    np.savez(tmp_path / "rows.npz", x=inputs.numpy())
    twin = simulation(made.place / "run.toml", made.names)
    twin.fit(progress=False)
    for name in made.names:
        asked = ["predict", str(tmp_path / "rows.npz"), "--place", str(tmp_path / name), "--json"]
        found = subprocess.run(
            [sys.executable, "-m", "atoll.cli", *asked], capture_output=True, text=True, check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert found.returncode == 0, found.stderr
        with torch.inference_mode():
            due = torch.softmax(twin.personal(name)(inputs).double(), 1)
        said = [json.loads(line) for line in found.stdout.splitlines()]
        shares = np.array([[*each["shares"].values()] for each in said])
        assert np.abs(shares - due.numpy()).max() < 1e-6
        assert [int(each["class"]) for each in said] == due.argmax(1).tolist()
        assert f"the model of this client, {name}, after round 2" in found.stderr


# --- rows -------------------------------------------------------------------------------------------------------------


def patients(count: int, seed: int) -> str:
    """A table of patients, as text."""
    rng = np.random.default_rng(seed)
    lines = ["id,age,sex,pulse,ill"]
    for at in range(count):
        age, pulse = int(rng.integers(30, 80)), round(float(rng.normal(70, 9)), 1)
        lines.append(f"{at},{age},{'mf'[at % 2]},{pulse},{'yes' if age + pulse > 125 else 'no'}")
    return "\n".join(lines) + "\n"


TABLE = {
    "classes": "no,yes", "label": "ill", "features": "age,sex,pulse", "categorical": "sex:f|m", "scale": "age:50:15",
    "missing": "drop",
}  # fmt: skip


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> OneThread:
    """Nodes with tables."""
    place = tmp_path_factory.mktemp("ward")
    made = OneThread(place, {**TABLE, "method": "fedper", "model": "mlp:4"})
    for at, name in enumerate(made.names):
        (place / f"{name}.csv").write_text(patients(20 + 6 * at, at))
    made.suffix = ".csv"
    made.play()
    made.federation.run().save(place / "model.safetensors")
    return made


def test_a_table_without_its_label(
    ward: OneThread, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Columns go by their names, in any order, with others beside them; what the label says makes no difference."""
    text = patients(9, 7)
    header, *lines = [line.split(",") for line in text.splitlines()]
    (tmp_path / "whole.csv").write_text(text)
    (tmp_path / "bare.csv").write_text(
        "\n".join(
            ",".join(line[header.index(each)] for each in ("pulse", "sex", "age"))
            for line in [header, *lines]
        )
    )
    plan = ward.coordinator.plan
    whole, bare = (inputs_of(tmp_path / f"{each}.csv", plan) for each in ("whole", "bare"))
    assert torch.equal(whole, bare) and whole.shape == (9, 4)
    due = ward.nodes["ann"].work.data.reading
    assert due.label == "ill"
    command(Wish(str(tmp_path / "bare.csv"), place=str(ward.place / "ann"), out=str(tmp_path / "out.csv")))
    said = capsys.readouterr()
    assert "9 rows written" in said.err and "the model of this client, ann" in said.err and not said.out
    found = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    with torch.inference_mode():
        shares = torch.softmax(at_node(ward.place / "ann", {})[0].module(whole).double(), 1)
    assert [each["class"] for each in found] == [("no", "yes")[at] for at in shares.argmax(1).tolist()]
    assert [float(each["share yes"]) for each in found] == pytest.approx(shares[:, 1].tolist(), abs=1e-8)
    assert [each["row"] for each in found] == [str(at) for at in range(1, 10)]


def test_rows_are_read_as_the_node_has_read_its_own(ward: OneThread) -> None:
    """The file that a node trained on gives the inputs that it trained on."""
    node = ward.nodes["bob"].work.data
    found = inputs_of(ward.place / "bob.csv", ward.coordinator.plan)
    known = torch.cat(
        [part.inputs for each in ("train", "test") if (part := node.samples(1, each)) is not None]
    )
    assert {row.numpy().tobytes() for row in found} == {row.numpy().tobytes() for row in known}


def test_elsewhere_with_the_global_model(
    ward: OneThread, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file that the coordinator saved, and the run's own."""
    (tmp_path / "rows.csv").write_text(patients(4, 3))
    model = ward.place / "model.safetensors"
    command(Wish(str(tmp_path / "rows.csv"), model=str(model), plan=str(ward.file), json=True))
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    with torch.inference_mode():
        outputs = ward.federation.run().model(inputs_of(tmp_path / "rows.csv", ward.coordinator.plan))
    assert [each["shares"]["yes"] for each in found] == pytest.approx(
        torch.softmax(outputs, 1)[:, 1].tolist(), abs=1e-6
    )


def test_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a regression it is the number."""
    data = {k: Samples(v.inputs, v.inputs.sum(1, keepdim=True)) for k, v in clients().items()}
    made = OneThread(tmp_path, {"classes": "regression"}, data).play()
    np.savez(tmp_path / "rows.npz", x=rows().numpy())
    command(Wish(str(tmp_path / "rows.npz"), place=str(made.place / "cat")))
    header, *lines = csv.reader(capsys.readouterr().out.splitlines())
    with torch.inference_mode():
        due = made.twin().personal("cat")(rows())
    assert header == ["row", "value"]
    assert np.array_equal(np.array([np.float32(value) for _, value in lines]), due.flatten().numpy())


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_nothing_has_been_kept(tmp_path: Path) -> None:
    """A node that has not joined yet, and no node at all."""
    (tmp_path / "node").mkdir()
    with pytest.raises(ConfigError, match="nothing has been kept"):
        at_node(tmp_path / "node", {})
    with pytest.raises(ConfigError, match="there is no directory"):
        at_node(tmp_path / "elsewhere", {})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("age,pulse\n50,70\n", "there is no column 'sex'"),
        ("age,sex,pulse\n50,x,70\n", "values outside its categories: x"),
        ("age,sex,pulse\n50,m,70\n60,f,\n", "row 2 has no pulse"),
        ("age,sex,pulse\nold,m,70\n", "not numbers"),
        ("age,sex,pulse\n", "no rows"),
    ],
)
def test_other_columns(ward: OneThread, tmp_path: Path, text: str, why: str) -> None:
    """Said by name and row."""
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(DataError, match=why) as raised:
        command(Wish(str(tmp_path / "rows.csv"), place=str(ward.place / "ann")))
    assert "rows.csv" in raised.value.message


def test_other_shapes(ward: OneThread, tmp_path: Path) -> None:
    """An array that is not of the run's form, at a node and elsewhere; a model of another run."""
    np.savez(tmp_path / "rows.npz", x=np.zeros((2, 5), np.float32))
    with pytest.raises(DataError, match="of shape 5, the run's"):
        command(Wish(str(tmp_path / "rows.npz"), place=str(ward.place / "ann")))
    with pytest.raises(ConfigError, match="is not a mlp:4 model"):
        command(
            Wish(str(tmp_path / "rows.npz"), model=str(ward.place / "model.safetensors"), plan=str(ward.file))
        )
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="cannot be read"):
        command(
            Wish(str(ward.place / "ann.csv"), model=str(tmp_path / "bad.safetensors"), plan=str(ward.file))
        )


@pytest.mark.parametrize(
    ("name", "what"), [("knn-per", "nearest of the client's own"), ("fedproto", "prototypes")]
)
def test_methods_that_predict_by_more_than_a_model(name: str, what: str, tmp_path: Path) -> None:
    """Said by what, and what can be had instead."""
    made = OneThread(tmp_path, {"method": name, "validation": 0.2}).play()
    with pytest.raises(ConfigError, match=what) as raised:
        at_node(made.place / "ann", {})
    assert "--model" in str(raised.value.hint)


def test_which_model(tmp_path: Path) -> None:
    """One of the two ways, and all of it."""
    np.savez(tmp_path / "rows.npz", x=rows().numpy())
    file = str(tmp_path / "rows.npz")
    for wish in (
        Wish(file),
        Wish(file, place="a", model="b"),
        Wish(file, model="b"),
        Wish(file, place="a", plan="c"),
    ):
        with pytest.raises(ConfigError, match="which model"):
            command(wish)
    with pytest.raises(DataError, match="there is no file"):
        command(Wish("nowhere.csv", place="a"))


def test_code_is_imported_only_where_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a node's own files name is not enough."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wards_here.py").write_text("raise SystemExit('imported')\n")
    made = OneThread(tmp_path / "run", {"eval_every": 0, "rounds": 1}).play()
    shelf = made.nodes["ann"].shelf
    text = (shelf.place / "kept.json").read_text()
    (shelf.place / "kept.json").write_text(text.replace(made.nodes["ann"].source, "wards_here:load"))
    with pytest.raises(ConfigError, match="only where you name it"):
        at_node(made.place / "ann", {})


def test_a_file_of_what_was_kept_that_is_damaged(tmp_path: Path) -> None:
    """No traceback, and the way out."""
    made = OneThread(tmp_path, {"eval_every": 0, "rounds": 1}).play()
    place = made.nodes["ann"].shelf.place
    os.unlink(
        made.nodes["ann"].shelf.body(
            json.loads((place / "kept.json").read_text())["task"]["shared"]["sha256"]
        )
    )
    with pytest.raises(ConfigError, match="is gone"):
        at_node(made.place / "ann", {})
    (place / "kept.json").write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        at_node(made.place / "ann", {})
