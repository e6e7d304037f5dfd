"""Updates that are packed between machines: the simulation's bits, and fewer bytes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from zstandard import ZstdCompressor

from atoll.channel import channel
from atoll.codec import encode, read
from atoll.contract import Answer, Job, Reply, Work
from atoll.errors import CodecError, ConfigError
from atoll.methods import FedAvg
from atoll.network.answers import answer_of
from atoll.network.journal import Journal
from atoll.network.predicting import at_node
from atoll.network.remote import _Check
from atoll.network.requirements import Requirement
from atoll.network.wire import Task
from atoll.tensors import Record, Tensors
from tests.network.cluster import Cluster
from tests.network.onethread import OneThread


def lengths(coordinator: Path) -> Iterator[int]:
    """Bytes of the answers of training that were accepted, from the audit log."""
    for line in (coordinator / "audit.jsonl").read_text("utf-8").splitlines():
        found = json.loads(line)
        if "answer-accepted" in line and '"train"' in line:
            yield next(_sizes(found))


def _sizes(found: Any) -> Iterator[int]:
    for name, value in found.items():
        if isinstance(value, dict):
            yield from _sizes(value)
        elif name == "size":
            yield value


CASES = [
    ("fedavg", "clip:0.5 | int8"), ("scaffold", "topk:0.05 + feedback"), ("fedma", "int8"), ("fedadam", "drive"),
    ("fednova", "powersgd:1 + feedback"), ("heterofl", "eden:2"), ("fedavg", "clip:0.3,0.5 | local:0.01 | randk:0.3"),
    ("fedavg", "int8 + zstd + feedback"), ("scaffold", "zstd"), ("fedadam", "fetchsgd:2,0.2,momentum=0.5"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "text"),
    [pytest.param(*case, marks=() if at < 2 else pytest.mark.slow) for at, case in enumerate(CASES)],
)
def test_it_is_the_simulation_to_the_bit(method: str, text: str, tmp_path: Path) -> None:
    """The coordinator decodes to what comes back in a simulation."""
    model = "mlp-bn:64" if method == "heterofl" else "mlp:64"
    settings = {"method": method, "channel": text, "rounds": 3, "model": model}
    network = {"repeatable_noise": True} if "local" in text else {}
    made = OneThread(tmp_path, settings, network=network).play()
    assert not [why for each in made.federation.history for why in each.refused.values()]
    assert made.same()
    plain = OneThread(tmp_path / "plain", {**settings, "channel": None}).play()
    assert sum(each.bytes_up for each in made.federation.history) < 0.9 * sum(
        each.bytes_up for each in plain.federation.history
    )


@pytest.mark.slow
@pytest.mark.parametrize("text", ["clip:0.5 | int8", "int8 + feedback"])
def test_between_processes(text: str, tmp_path: Path) -> None:
    """Four nodes, their answers a quarter as long, and the model that of the simulation."""
    settings = {"model": "mlp:64", "rounds": 2, "seed": 3, "channel": text}
    with Cluster(tmp_path, settings) as cluster:
        cluster.start_all()
        assert cluster.wait() == 0, cluster.log("coordinator")
        for name in cluster.names:
            assert cluster.wait(name, 30) == 0, cluster.log(name)
    assert cluster.same()
    numbers = 64 * 64 + 64 + 640 + 10
    found = [*lengths(tmp_path / "coordinator")]
    assert len(found) == 8
    assert all(numbers < each < numbers + 2000 < 4 * numbers / 2 for each in found)


@pytest.mark.parametrize(
    ("method", "text"), [("fedavg", "int8"), pytest.param("scaffold", "eden:4", marks=pytest.mark.slow)]
)
def test_models_come_packed(method: str, text: str, tmp_path: Path) -> None:
    """What lies there for nodes is as short as it is said to be, and they train from what the simulation's have."""
    settings = {"method": method, "down": text, "channel": "int8", "model": "mlp:64", "rounds": 3}
    posted: list[int] = []

    def before(name: str, task: Task) -> None:
        if task.program == "train":
            posted.append(task.shared.size)

    made = OneThread(tmp_path, settings, before=before).play()
    assert not [why for each in made.federation.history for why in each.refused.values()]
    assert made.same()
    plain = OneThread(tmp_path / "plain", {**settings, "down": None}).play()
    down = [sum(each.bytes_down for each in run.federation.history) for run in (made, plain)]
    assert down[0] < 0.3 * down[1]
    assert len(posted) == 9
    numbers = (6 * 64 + 64 + 64 * 3 + 3) * (2 if method == "scaffold" else 1)
    assert all(0 < each - numbers * (1 if text == "int8" else 0.5) < 2000 for each in posted)
    assert [each.bytes_down for each in made.federation.history] == [
        each.bytes_down for each in made.twin().history
    ]


@pytest.mark.parametrize("text", ["int8 + zstd", pytest.param("bf16 + zstd", marks=pytest.mark.slow)])
def test_what_is_packed_without_loss_is_counted_as_it_came(text: str, tmp_path: Path) -> None:
    """Both ways, to the byte of the simulation; answers are as long as is said."""
    settings = {"channel": text, "down": "int8 + zstd", "model": "mlp:64", "rounds": 3}
    made = OneThread(tmp_path, settings).play()
    assert not [why for each in made.federation.history for why in each.refused.values()]
    assert made.same()
    found, due = made.federation.history, made.twin().history
    assert [each.bytes_up for each in found] == [each.bytes_up for each in due]
    assert [each.bytes_down for each in found] == [each.bytes_down for each in due]
    said = sum(each.bytes_up for each in found)
    assert said < sum(lengths(tmp_path / "coordinator")) < said + 9 * 1000


CHOSEN = {"channel": "int8 / drive + feedback", "adaptive": "bandwidth", "model": "mlp:64", "rounds": 4}


def quick(speeds: Mapping[str, float], seen: list[tuple[int, dict[str, int]]], end: int = 9) -> Any:
    """Tells the coordinator how quickly nodes send (bytes a second), and looks what they are told in each round."""

    def before(name: str, task: Task) -> None:
        house = houses[-1]
        if task.round == end:
            raise KeyboardInterrupt
        if task.program == "train":
            known = house.coordinator.journal.get(f"round/{task.round}/codecs")
            if not seen or seen[-1][0] != task.round:
                seen.append((task.round, dict(known)))
            house.coordinator.desk.speeds.measured(
                house.names.index(name), 10_000, 10_000 / speeds[name], 0.1
            )

    return before


houses: list[OneThread] = []


def test_who_sends_quickly_sends_more(tmp_path: Path) -> None:
    """By how quickly answers came: all begin with the smallest codec, then whoever has time takes the best."""
    seen: list[tuple[int, dict[str, int]]] = []
    houses.append(OneThread(tmp_path, CHOSEN, before=quick({"ann": 1e6, "bob": 1e3, "cat": 1e6}, seen)))
    made = houses[-1].play()
    assert [each for _, each in seen] == [{"0": 1, "1": 1, "2": 1}] + [{"0": 0, "1": 1, "2": 0}] * 3
    assert not [why for each in made.federation.history for why in each.refused.values()]
    ups = [each.bytes_up for each in made.federation.history]
    assert ups[0] < 0.3 * ups[1] and ups[1] == ups[3]


def test_a_round_that_is_played_again_has_the_codecs_that_it_had(tmp_path: Path) -> None:
    """Whatever has been measured since: the run that was broken off ends with the bits of that which was not."""
    speeds, seen = {"ann": 1e6, "bob": 1e3, "cat": 1e6}, list[tuple[int, dict[str, int]]]()
    for place, end in (("whole", 9), ("broken", 3)):
        houses.append(OneThread(tmp_path / place, CHOSEN, before=quick(speeds, seen, end)))
        with contextlib.suppress(KeyboardInterrupt):
            houses[-1].play()
    journal = Journal(tmp_path / "broken" / "coordinator" / "journal.sqlite")
    for client in range(3):
        journal.put(f"speed/{client}", {"rate": 1e3 if client == 0 else 1e6, "before": 0.1})
    journal.close()
    seen.clear()
    houses.append(OneThread(tmp_path / "broken", CHOSEN, before=quick(speeds, seen)))
    again = houses[-1].play()
    assert seen[0] == (3, {"0": 0, "1": 1, "2": 0})
    assert torch.equal(again.federation.state.params.flat(), houses[-3].federation.state.params.flat())


def test_a_node_predicts_with_what_it_got(tmp_path: Path) -> None:
    """The last model that came packed is opened for predictions as well."""
    made = OneThread(tmp_path, {"down": "int8", "rounds": 2, "test": "none"}).play()
    predictor, _, example = at_node(made.place / "ann", {})
    outputs = predictor.outputs(example)
    assert outputs.shape == (1, 3)
    assert bool(torch.isfinite(outputs).all())


AWAY = {"down": "topk:0.2 + feedback", "model": "mlp:64", "rounds": 6, "cohort": 2, "test": "none"}


def test_who_was_away_follows_the_differences(tmp_path: Path) -> None:
    """Nodes hold the bits of the simulation's clients, and fetch as many bytes as is said."""
    made = OneThread(tmp_path, AWAY).play()
    assert not [why for each in made.federation.history for why in each.refused.values()]
    assert made.same()
    found, due = ([each.bytes_down for each in one.history] for one in (made.federation, made.twin()))
    assert found == due and min(found) < 0.7 * max(found)
    assert sum(found) < sum(made.fetched.values()) < sum(found) + 12 * 1500


def test_a_node_that_has_lost_its_reference_fetches_the_model_whole(tmp_path: Path) -> None:
    whole: list[str] = []

    def lose(name: str, task: Task) -> None:
        if task.round == 4 and task.since is not None and task.instead is not None:
            made.nodes[name].shelf.reference(task.since).unlink()
            whole.append(task.instead.sha256)

    made = OneThread(tmp_path, {**AWAY, "cohort": None}, before=lose)
    assert made.play().same()
    assert len(whole) == 3
    assert all(len([*each.shelf.place.joinpath("references").iterdir()]) <= 3 for each in made.nodes.values())


def test_a_run_that_was_broken_off_sends_differences_to_what_nodes_hold(tmp_path: Path) -> None:
    """Nodes are ahead of a coordinator that has lost a round; what it says then follows from its checkpoint."""

    def broken(name: str, task: Task) -> None:
        if (task.round, name) == (4, "cat"):
            raise KeyboardInterrupt

    settings = {**AWAY, "cohort": None}
    with contextlib.suppress(KeyboardInterrupt):
        OneThread(tmp_path, settings, before=broken).play()
    again = OneThread(tmp_path, settings).play()
    assert again.same()
    numbers = 4 * (6 * 64 + 64 + 64 * 3 + 3)
    assert all(
        0 < size < 3 * numbers for size in again.fetched.values()
    )  # three rounds are left, none of them whole


@pytest.mark.slow
def test_differences_outlast_both_sides(tmp_path: Path) -> None:
    """As processes: a coordinator and a node are killed in the middle, and come back."""
    settings = {"down": "topk:0.1 + feedback", "model": "mlp:32", "rounds": 30, "cohort": 3, "engine": "loop"}
    with Cluster(tmp_path, settings) as made:
        made.start_all()
        made.round(4)
        made.kill("coordinator")
        made.kill("bob")
        made.start("bob")
        made.start("coordinator")
        assert made.wait() == 0
        assert made.same()


def test_a_node_predicts_with_what_differences_came_to(tmp_path: Path) -> None:
    made = OneThread(tmp_path, {**AWAY, "cohort": None}).play()
    outputs = [at_node(made.place / name, {})[0].outputs(torch.ones(1, 6)) for name in ("ann", "bob")]
    assert torch.equal(*outputs)


def test_a_node_that_computes_other_bits_does_not_drift(tmp_path: Path) -> None:
    """What came of its differences has another hash: it forgets what they were told from, and gets the model whole."""
    blurred: list[Path] = []

    def blur(name: str, task: Task) -> None:
        held = made.nodes[name].shelf.reference(str(task.since))
        if (task.round, name) == (3, "bob") and held not in blurred:
            held.write_bytes(encode(Record(params=read(held).params.map(lambda value: value + 1e-3))))
            blurred.append(held)

    made = OneThread(tmp_path, {**AWAY, "cohort": None}, before=blur)
    assert made.play().same()
    assert len(blurred) == 1 and not [
        why for each in made.federation.history for why in each.refused.values()
    ]
    assert made.fetched["bob"] > made.fetched["ann"] + 2000


def test_a_bomb_is_refused_at_the_door(tmp_path: Path) -> None:
    """What a client sends opens to as much as the model has numbers, or to nothing."""
    form = Record(update=Tensors(w=torch.zeros(30, 20)), buffers=Tensors(), counters=Tensors())
    job = Job(FedAvg(), Work(Record()), [0], 1, 0, expected=form, channel=channel("int8 + zstd"))
    check = _Check(job, 0, 1 << 20, tmp_path)

    def said(content: bytes) -> str | None:
        made = ZstdCompressor().compress(content)
        part = Record(zstd=torch.frombuffer(bytearray(made), dtype=torch.uint8))
        reply = Reply(Record(packed=Record({"0": part}), plain=Record()), torch.tensor(3.0), Record())
        return check(bytearray(encode(Answer(0, reply).to_record())))

    assert said(bytes(604)) is None
    assert "take up to" in str(said(bytes(50_000_000)))
    assert "opens to 5000000 bytes, and 604 are due" in str(said(bytes(5_000_000)))
    assert "opens to 605 bytes" in str(said(bytes(605)))


# --- what is refused ------------------------------------------------------------------------------------------------


def test_what_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    """Whole updates, and parts of another length, are no answers where they are to be packed."""
    form = Record(update=Tensors(w=torch.zeros(30, 20)), buffers=Tensors(), counters=Tensors())
    chain = channel("int8")
    job = Job(FedAvg(), Work(Record()), [0], 1, 0, expected=form, channel=chain)
    check = _Check(job, 0, 1 << 20, tmp_path)

    def answer(values: Record) -> bytearray:
        reply = Reply(values, torch.tensor(3.0), Record())
        return bytearray(encode(Answer(0, reply).to_record()))

    def packed(length: int, scales: int = 1) -> Record:
        part = Record(numbers=torch.ones(length, dtype=torch.int8), scales=torch.full((scales,), 0.5))
        return Record(packed=Record({"0": part}), plain=Record())

    assert check(answer(packed(600))) is None
    opened = answer_of(answer(packed(600)), job, 0, 1 << 20).reply.values
    assert torch.equal(opened.update["w"], torch.full((30, 20), 0.5))
    assert "nothing that int8 sends" in str(check(answer(form)))
    assert "(599,)" in str(check(answer(packed(599))))
    assert "(2,)" in str(check(answer(packed(600, 2))))
    wrong = packed(600)
    unsound = wrong.replace(packed=Record({"0": wrong.packed["0"].replace(scales=torch.tensor([torch.inf]))}))
    assert "finite" in str(check(answer(unsound)))
    with pytest.raises(CodecError):
        answer_of(answer(Record()), job, 0, 1 << 20)


def test_what_has_another_form_is_no_answer() -> None:
    """Whatever it says, and whoever says it."""
    job = Job(FedAvg(), Work(Record()), [0], 1, 0, expected=Record(w=torch.zeros(2)))
    good = Answer(
        7, Reply(Record(w=torch.ones(2)), torch.tensor(3.0), Record(loss=torch.tensor(1.0)))
    ).to_record()
    assert answer_of(bytearray(encode(good)), job, 7, 1 << 20).client == 7
    reply = good.reply
    wrong = {
        "another's": good.replace(client=8),
        "more": good.replace(more=1),
        "no reply": good.replace(reply=torch.zeros(1)),
        "more in the reply": good.replace(reply=reply.replace(more=1)),
        "sends a number": good.replace(reply=reply.replace(sent=1)),
        "two weights": good.replace(reply=reply.replace(weight=torch.ones(2))),
        "a whole weight": good.replace(reply=reply.replace(weight=torch.tensor(3))),
        "a weight that is none": good.replace(reply=reply.replace(weight=3.0)),
        "a figure": good.replace(reply=reply.replace(metrics=torch.ones(1))),
        "a word among figures": good.replace(reply=reply.replace(metrics=Record(loss="low"))),
    }
    for record in wrong.values():
        with pytest.raises(CodecError, match="no answer of this client"):
            answer_of(bytearray(encode(record)), job, 7, 1 << 20)
    with pytest.raises(CodecError):
        answer_of(bytearray(encode(good)), job, 7, 10)


def test_somebody_says_which_client_takes_which_codec(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nobody says which client takes which"):
        OneThread(tmp_path, {"channel": "int8 / drive"}).play()


@pytest.mark.parametrize("method", ["fedamp", "fedora"])
def test_models_that_differ_from_what_stays_at_a_node_are_not_packed(method: str, tmp_path: Path) -> None:
    """The coordinator does not have what they differ from."""
    settings = {"method": method, "channel": "int8", "validation": 0.2}
    with pytest.raises(ConfigError, match="stays at the node") as raised:
        OneThread(tmp_path, settings).play()
    assert "leave int8 out" in str(raised.value.hint)


def test_a_node_may_require_a_codec() -> None:
    assert Requirement.parse("int8").unmet(channel("clip:1 | int8")) is None  # type: ignore[arg-type]
    assert Requirement.parse("topk").unmet(channel("topk:0.1 + feedback")) is None  # type: ignore[arg-type]
    for text in ("clip:1", "int4"):
        assert Requirement.parse("int8").unmet(channel(text)) == "int8 is not in it"  # type: ignore[arg-type]


def test_whose_models_differ_is_said_before_anybody_is_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sends no model that is the same for all"):
        OneThread(tmp_path, {"method": "heterofl", "down": "int8", "model": "mlp-bn:8"}).play()
