"""What the server believes of what SuperNodes say, and they of what it says, without processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from atoll.data import from_clients
from atoll.errors import AtollError, ConfigError
from atoll.experiment import Experiment
from atoll.flower.conducting import conducted
from tests.network.onethread import NAMES, clients

pytest.importorskip("flwr", reason='flwr is not installed (pip install "atoll[flower]")')
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from tests.flower.hall import Hall

RUN: dict[str, Any] = {
    "model": "mlp:4", "classes": 3, "method": "fedavg", "lr": 0.1, "rounds": 2, "seed": 3, "min_clients": 3,
    "nodes": list(NAMES), "test": None, "eval_every": 2,
}  # fmt: skip


def play(place: Path, hall: Hall | None = None, **settings: Any) -> Any:
    hall = Hall(place) if hall is None else hall
    return conducted(hall, {**RUN, "place": str(place / "run"), **settings})


def refusals(place: Path) -> list[str]:
    """What the audit log says of answers that were not taken."""
    log = (json.loads(line) for line in (place / "run" / "audit.jsonl").read_text().splitlines())
    return [each["facts"]["reason"] for each in log if each["event"] == "answer-refused"]


def of_ann(change: Callable[[RecordDict], RecordDict | None]) -> Callable[[str, Any], Any]:
    """What becomes of the answers of one node."""

    def spoil(name: str, content: RecordDict) -> RecordDict:
        if name == "ann" and "answer" in content.array_records.get("atoll.bodies", {}):
            return change(content) or content
        return content

    return spoil


def test_data_that_a_function_makes_give_the_bits_of_the_simulation(tmp_path: Path) -> None:
    run = play(tmp_path, save=str(tmp_path / "model.safetensors"))
    experiment = Experiment.read(
        data="nodes.csv",
        runs=None,
        engine="processes",
        **{k: v for k, v in RUN.items() if k not in ("nodes", "min_clients")},
    )
    data = from_clients(
        {n: (s.inputs, s.targets) for n, s in clients().items()}, test=None, seed=3, classes=3
    )
    due = experiment.federate(experiment.divide(data)).fit(progress=False)
    due.save(tmp_path / "due.safetensors")
    found, expected = load_file(tmp_path / "model.safetensors"), load_file(tmp_path / "due.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert len(run.rounds) == 2


@pytest.mark.parametrize("method", ["scaffold", "fedora"])
def test_a_server_that_ended_in_the_middle_of_a_round_goes_on(tmp_path: Path, method: str) -> None:
    """To the bits of a run that nobody stopped, memories and all."""
    more: dict[str, Any] = {"method": method, "validation": 0.2 if method == "fedora" else 0, "rounds": 3}
    due = play(tmp_path / "due", **more)
    answers = iter(range(99))

    def stop(found: RecordDict) -> None:
        if next(answers) == 1 + (method == "fedora"):  # its first answer is a sketch
            raise RuntimeError("the server is gone")

    with pytest.raises(RuntimeError, match="gone"):
        play(tmp_path, Hall(tmp_path, reply=of_ann(stop)), **more)
    found = play(tmp_path, **more)
    assert next(answers) == 2 + (method == "fedora")
    assert len(found.rounds) == 3
    states = [dict(each.model.state_dict()) for each in (found, due)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_an_answer_that_is_too_long_or_no_record_is_refused(tmp_path: Path) -> None:
    def spoil(name: str, content: RecordDict) -> RecordDict:
        wrong = {"ann": bytes(1 << 24), "bob": b"no record"}.get(name)
        if wrong is None or "answer" not in content.array_records.get("atoll.bodies", {}):
            return content
        return _with(content, Array("uint8", (len(wrong),), "atoll.record", wrong))

    run = play(tmp_path, Hall(tmp_path, reply=spoil), rounds=1, quorum=1)
    assert len(run.rounds[0].refused) == 2
    long, damaged = sorted(refusals(tmp_path))
    assert long.startswith("the answer has 16777216 bytes, and may have ")
    assert damaged.startswith("the header")


def test_what_is_no_answer_is_told_and_the_node_is_asked_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong: list[tuple[Callable[[RecordDict], RecordDict], str]] = [
        (
            lambda found: _with(found, Array("uint8", (1,), "numpy.ndarray", b"1")),
            "is 'numpy.ndarray', and no record",
        ),
        (lambda found: RecordDict({"atoll": found["atoll"]}), "there is no answer in its reply"),
        (lambda found: RecordDict({"theirs": found["atoll"]}), "this is no message of Atoll's"),
        (
            lambda found: RecordDict({"atoll": ConfigRecord({"task": 3})}),
            "the facts of this message are no texts",
        ),
        (lambda found: RecordDict({"atoll": ConfigRecord({"failure": b"{}"})}), "this is no Failure"),
        (
            lambda found: RecordDict({"atoll": ConfigRecord({"failure": b" " * (1 << 21)})}),
            "a message of 2097152 bytes",
        ),
    ]
    left = iter(wrong)

    def spoil(found: RecordDict) -> RecordDict | None:
        change, _ = next(left, (None, ""))
        return None if change is None else change(found)

    run = play(tmp_path, Hall(tmp_path, reply=of_ann(spoil)), rounds=1, retry=len(wrong))
    assert len(run.rounds[0].cohort) == 3
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("ann: train failed, ")]
    assert [said in line for line, (_, said) in zip(told, wrong, strict=True)] == [True] * len(wrong)


def _with(content: RecordDict, answer: Array) -> RecordDict:
    return RecordDict({"atoll": content["atoll"], "atoll.bodies": ArrayRecord({"answer": answer})})


def test_an_answer_to_another_task_is_nobodys(tmp_path: Path) -> None:
    """One that came late, or is made up, settles nothing; the node is asked again."""
    late = iter(["9-0-0"])

    def older(found: RecordDict) -> RecordDict | None:
        if (task := next(late, None)) is None:
            return None
        facts = {**found.config_records["atoll"], "task": task}
        return RecordDict({"atoll": ConfigRecord(facts), "atoll.bodies": found["atoll.bodies"]})

    hall = Hall(tmp_path, reply=of_ann(older))
    assert len(play(tmp_path, hall, rounds=1).rounds[0].cohort) == 3
    assert hall.asked.count("train") == 4
    assert refusals(tmp_path) == []


def test_a_body_that_a_task_does_not_name_is_not_worked_on(tmp_path: Path) -> None:
    def other(name: str, content: RecordDict) -> RecordDict:
        found = content.array_records.get("atoll.bodies", {})
        if name == "ann" and "shared" in found:
            blob = found["shared"].data
            content["atoll.bodies"] = ArrayRecord(
                {"shared": Array("uint8", (len(blob),), "atoll.record", blob[:-1] + b"!")}
            )
        return content

    play(tmp_path, Hall(tmp_path, message=other), rounds=1, quorum=2, retry=1, deadline=60)
    assert [each.startswith("the node could not: ") for each in refusals(tmp_path)] == [True]


def test_names_are_names_and_belong_to_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hall = Hall(tmp_path, [*NAMES, "../x", "eve"])
    assert len(play(tmp_path, hall, rounds=1).rounds[0].cohort) == 3
    said = capsys.readouterr().out
    assert "SuperNode 4 cannot take part: '../x' is no name of a node\n  hint: " in said
    assert "SuperNode 5 cannot take part: eve is not among the nodes of this run\n  hint: " in said


def test_what_a_supernode_says_of_itself_is_not_believed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own side would have refused the name; and whatever it says cannot write over the log."""

    def lie(name: str, content: RecordDict) -> RecordDict:
        facts = dict(content.config_records["atoll"])
        if name == "ann" and "joining" in facts:
            return RecordDict({"atoll": ConfigRecord({**facts, "name": "../ann"})})
        if name == "bob" and "joining" in facts:
            return RecordDict({"atoll": ConfigRecord({"refused": "\x1b[2J" + "x" * 9000})})
        return content

    run = play(tmp_path, Hall(tmp_path, reply=lie), rounds=1, min_clients=1)
    assert len(run.rounds[0].cohort) == 1
    said = capsys.readouterr().out
    assert "SuperNode 1 cannot take part: '../ann' is no name of a node" in said
    assert "SuperNode 2 cannot take part: ?[2Jxxx" in said
    assert "\x1b" not in said and "x" * 5000 not in said


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"lrr": 0.1}, "lrr"),
        ({"data": "a.csv"}, "data are with the SuperNodes"),
        ({"min_clients": "many"}, "min_clients"),
        ({"nodes": ["A B"]}, "'A B' is no name"),
        ({"channel": "secagg"}, "starts one for every message"),
        ({"down": "int8 + feedback"}, "lost what differences are told from"),
        ({"clients": 2}, "places"),
        ({"rounds": -1}, "rounds"),
    ],
)
def test_what_is_set_wrong_is_told_before_anybody_is_asked(
    tmp_path: Path, wrong: dict[str, Any], said: str
) -> None:
    hall = Hall(tmp_path)
    with pytest.raises(ConfigError, match=said) as told:
        play(tmp_path, hall, **wrong)
    assert told.value.hint
    assert hall.asked == []


def test_where_nobody_can_take_part_it_ends(tmp_path: Path) -> None:
    with pytest.raises(AtollError, match="no SuperNode can take part"):
        play(tmp_path, Hall(tmp_path, ["x y", "../x", "X"]), nodes=[], clients=3)
