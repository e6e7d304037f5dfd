"""Compression in a channel: what it acts on, what is remembered of errors, what travels and how long it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atoll.channel import Chain, Clip, Noise, Setting, Shrink, channel
from atoll.channel.shrink import shapes_of
from atoll.channel.transform import Update
from atoll.compress import TopK, Whole, parse
from atoll.contract import Answer, Gathering, Job, Reply, Work
from atoll.errors import CodecError, ConfigError
from atoll.federation import Federation
from atoll.methods import FedAvg
from atoll.tensors import Record, Tensors, leaves, nbytes
from tests.channel.test_chain import ENGINES, StopAfter, data, federation, model

TEXTS = (
    "bf16", "int8", "int4", "topk:0.05", "topk:0.05 + feedback", "randk:0.2", "sign + feedback", "qsgd:7", "drive",
    "eden:2 + feedback", "powersgd:2", "clip:0.2 | int8", "clip:0.2 | noise:0.1,3 | int8 + feedback",
    "clip:0.2 | local:0.01 | int4", "clip:0.1,0.5 | eden:3", "nf4", "zstd", "bf16 + zstd", "int4 + zstd + feedback",
    "clip:0.2 | local:0.01 | int8 + zstd",
)  # fmt: skip


def values(seed: int = 0, length: float = 1.0) -> Record:
    """A reply of a model, a control variate, counters, and a small field."""
    generator = torch.Generator().manual_seed(seed)

    def tensors() -> Tensors:
        shapes = {"0.weight": (40, 30), "0.bias": (40,), "1.weight": (7, 40)}
        return Tensors(
            {name: length * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        )

    return Record(
        update=tensors(), control=tensors(), counters=Tensors(seen=torch.tensor(3)), share=torch.tensor([0.1, 0.7])
    )  # fmt: skip


def sent(
    shrink: Shrink, given: Record, own: Record | None = None, weight: float = 1.0, told: Record | None = None
) -> tuple[Update, Record]:
    update = Update(given, torch.tensor(weight), Record(), Record())
    return shrink.send(update, told or Record(), own or Record(), torch.tensor(5))


# --- texts and orders -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
def test_a_chain_with_a_codec_reads_as_it_is_written(text: str) -> None:
    made = channel(text)
    assert made.text == text  # type: ignore[attr-defined]
    assert channel(text) == made
    assert hash(made) == hash(channel(text))


def test_lists_are_texts() -> None:
    assert channel([Clip(0.5), Shrink(TopK(0.01), feedback=True)]) == channel(
        "clip:0.5 | topk:0.01 + feedback"
    )
    assert channel("clip:1e+1 | int8").text == "clip:10 | int8"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("int8 | clip:1", "cannot be shortened any more", "clip:1 | int8"),
        ("clip:1 | int8 | noise:1", "noise comes before it", "noise:1 | int8"),
        ("clip:1 | int8 | local:1", "noise comes before it", "local:1 | int8"),
        ("int8 | secagg", "no whole numbers of a common step", "leave int8 out"),
        ("int8 | he", "no whole numbers of a common step", "leave int8 out"),
        ("secagg | int8", "hidden numbers look like any others", "int8 | secagg"),
        ("int8 | topk:0.1", "packed once", "leave one"),
        ("int8 | int8", "stands in it twice", "once"),
        ("int9", "unknown channel 'int9'", "int"),
        ("topk", "topk needs share", "topk:SHARE"),
        ("topk:0.1 + feedbak", "unknown channel 'feedbak'", "feedback"),
        ("topk:0.1 +", "is not a number", None),
        ("clip:1 + feedback", "loses nothing", "int8"),
        ("randk:0.1 + feedback", "grow from round to round", "topk:0.01 + feedback"),
        ("qsgd:7 + feedback", "grow from round to round", None),
        ("drive:unbiased + feedback", "grow from round to round", None),
        ("topk:2", "share = 2", None),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_at_once(text: str, says: str, hint: str | None) -> None:
    with pytest.raises(ConfigError) as error:
        channel(text)
    assert says in str(error.value)
    assert hint is None or hint in str(error.value.hint)


def test_feedback_is_for_differences() -> None:
    with pytest.raises(ConfigError, match="sends no differences that add up"):
        federation("topk:0.1 + feedback", "fedamp")
    federation("topk:0.1", "fedamp")


def test_feedback_is_for_updates_of_one_form() -> None:
    """HeteroFL's narrow clients send less than its wide ones."""
    made = federation("topk:0.1 + feedback", "heterofl")
    with pytest.raises(ConfigError, match="differ in form") as error:
        made.fit(progress=False)
    assert "topk:0.1" in str(error.value.hint)


def test_a_chain_is_settled_at_a_node_by_what_came_as_json() -> None:
    setting = Setting(cohort=5, shapes=shapes_of(values()))
    again = Setting(**json.loads(json.dumps(asdict(setting))))
    assert again == setting
    assert hash(channel("topk:0.1 + feedback").settled(again)) is not None  # type: ignore[attr-defined]


# --- what it acts on ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["int8", "int4", "topk:0.1", "sign", "powersgd:2", "bf16"])
def test_all_that_is_in_floating_point_is_packed(text: str) -> None:
    given = values()
    found = sent(Shrink(parse(text)), given)[0].values
    for field in ("update", "control"):
        assert not torch.equal(found[field]["0.weight"], given[field]["0.weight"])
    assert torch.equal(found.counters["seen"], given.counters["seen"])
    assert torch.equal(found.share, given.share)


def test_fields_do_not_mix() -> None:
    """Control variates are of another size than the model: the largest of both would be of one of them."""
    given = values()
    given = given.replace(control=given.control * 1e4)
    found = sent(Shrink(TopK(0.1)), given)[0].values
    due = round(0.1 * 1520)
    assert [int((found[field].flat() != 0).sum()) for field in ("update", "control")] == [due, due]


def test_types_stay() -> None:
    given = Record(update=Tensors(a=torch.randn(500).bfloat16(), b=torch.randn(500).double()))
    found = sent(Shrink(Whole(8)), given)[0].values.update
    assert (found["a"].dtype, found["b"].dtype) == (torch.bfloat16, torch.float64)


@pytest.mark.parametrize(
    ("text", "engines"),
    [
        ("topk:0.05 + feedback", ENGINES[1:]), ("clip:0.1,0.5 | eden:3", ENGINES[1:]),
        ("sign + feedback", ("batched",)), ("powersgd:2", ("batched",)),
        ("clip:0.2 | local:0.01 | int4", ("batched",)),
    ],
)  # fmt: skip
def test_engines_agree(text: str, engines: tuple[str, ...]) -> None:
    """As far as their training does: what is packed may fall to the other side of a step."""
    alone = model(text, "scaffold")
    for engine in engines:
        torch.testing.assert_close(model(text, "scaffold", engine=engine), alone, rtol=1e-3, atol=2e-4)
    assert not torch.equal(alone, model(None, "scaffold"))


def test_worker_processes_give_the_bits_of_one() -> None:
    text = "clip:0.2 | int8 + feedback"
    one, two = (model(text, engine="processes", workers=workers) for workers in (1, 2))
    assert torch.equal(one, two)


@pytest.mark.parametrize("text", ["topk:1", "topk:1 + feedback"])
@pytest.mark.parametrize("method", ["fedavg", "scaffold", "fedadam"])
def test_a_codec_that_loses_nothing_changes_no_bit(text: str, method: str) -> None:
    assert torch.equal(model(text, method), model(None, method))


# --- error feedback -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["topk:0.02", "int4", "sign", "drive", "powersgd:1"])
def test_what_was_sent_and_what_is_left_are_all_updates(text: str) -> None:
    """The telescoping sum: nothing is lost for good."""
    shrink = Shrink(parse(text), feedback=True).fitted((), Setting(shapes=shapes_of(values())))
    own, total, due = shrink.own(Record()), torch.zeros(1520), torch.zeros(1520)
    for number in range(6):
        given = values(number)
        found, own = sent(shrink, given, own)
        total += found.values.update.flat()
        due += given.update.flat()
    fields = sorted(values())
    if parse(text).apart:
        names = ["update.0.weight", "update.1.weight"]
        lost = dict(zip(["control.0.weight", "control.1.weight", *names], own.values(), strict=True))
        left = Tensors(
            {n: lost.get(f"update.{n}", torch.zeros(v.shape)) for n, v in values().update.items()}
        ).flat()
    else:
        left = own[str(fields[:1].index("control") + 1)]  # control, update: in the order of names
        order = sorted(values().update)
        parts = left.split([values().update[n].numel() for n in order])
        cut = dict(zip(order, parts, strict=True))
        left = torch.cat([cut[n] for n in values().update])
    torch.testing.assert_close(total + left, due, rtol=1e-4, atol=1e-4)
    assert float(left.norm()) > 0


def test_a_reply_that_counts_for_nothing_takes_nothing_away() -> None:
    shrink = Shrink(TopK(0.02), feedback=True).fitted((), Setting(shapes=shapes_of(values())))
    _, own = sent(shrink, values(), shrink.own(Record()))
    _, after = sent(shrink, values(1), own, weight=0.0)
    assert all(torch.equal(own[at], after[at]) for at in own)


@pytest.mark.parametrize("engine", ENGINES[:2])
def test_errors_wait_for_clients_that_are_not_asked(engine: str) -> None:
    """However many rounds later these take part, they go on from there."""
    made = federation("topk:0.02 + feedback", engine=engine, rounds=6, cohort=4)
    held: dict[int, Tensor] = {}
    again = 0
    for record in made.play():
        store = made.simulation.memories
        now = {k: memory.channel["0"]["0"] for k in range(12) if (memory := store.get(k)) is not None}
        assert now.keys() == held.keys() | {*record.cohort}
        for client, error in held.items():
            assert torch.equal(error, now[client]) == (client not in record.cohort)
            again += client in record.cohort
        held = {client: error.clone() for client, error in now.items()}
    assert again > 4


def test_feedback_learns_what_top_k_alone_does_not() -> None:
    """With one number of fifty: what was left out comes later."""

    def accuracy(text: str | None) -> float:
        made = federation(text, rounds=15, cohort=6, eval_every=15, engine="batched")
        evaluation = [*made.play()][-1].evaluation
        assert evaluation is not None
        return float(evaluation.score or 0)

    alone, fed = accuracy("topk:0.02"), accuracy("topk:0.02 + feedback")
    assert fed > alone + 0.05


@pytest.mark.parametrize("text", ["topk:0.05 + feedback", "clip:0.2,0.5 | sign + feedback"])
def test_a_run_that_goes_on_is_the_run_that_was_not_interrupted(text: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"rounds": 4, "checkpoint": 1}
    federation(text, **settings, runs=tmp_path, callbacks=[StopAfter()]).fit(progress=False)
    again = federation(text, **settings, runs=tmp_path).resume()
    again.fit(progress=False)
    assert torch.equal(again.state.params.flat(), model(text, **settings))


# --- bounds and noise -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["int4", "sign", "qsgd:1", "randk:0.1", "drive:unbiased", "topk:0.1 + feedback"]
)
def test_what_leaves_is_no_longer_than_its_bound(text: str) -> None:
    """Otherwise noise made for the bound would hide less than it says. Without the factor these come out longer."""
    shrink = channel(f"clip:1 | {text}").settled(Setting(shapes=shapes_of(values()))).shrink  # type: ignore[attr-defined]
    short = Clip(1.0).send(
        Update(values(), torch.tensor(1.0), Record(), Record()), Record(), Record(), torch.tensor(5)
    )[0]
    own = shrink.own(Record())
    if shrink.feedback:
        own = Record({at: 3 * torch.ones_like(each) for at, each in own.items()})
    found, after = sent(shrink, short.values, own)
    floats = [v for v in leaves(found.values) if v.is_floating_point()]
    assert float(torch.cat([v.flatten() for v in floats]).norm()) <= 1 + 1e-5
    free, _ = sent(replace(shrink, bound=None), short.values, own)
    floats = [v for v in leaves(free.values) if v.is_floating_point()]
    if text != "sign":
        assert float(torch.cat([v.flatten() for v in floats]).norm()) > 1 + 1e-4
    assert after.keys() == own.keys()


def test_behind_noise_of_a_clients_own_nothing_is_shortened() -> None:
    """What is private already may be anything; its noise is far longer than the bound."""
    made = channel("clip:1 | local:1 | int8").settled(Setting())  # type: ignore[attr-defined]
    assert made.shrink.bound is None


def test_a_bound_that_moves_is_heard_of() -> None:
    """By what stands behind it, too."""
    for text in ("clip:0.1,0.5 | local:0.01", "clip:0.1,0.5 | int8"):
        made = federation(text)
        made.fit(progress=False)
        assert not made.history[-1].refused
        assert float(made.simulation.progress.told["0"].norm) != 0.1


# --- bytes ----------------------------------------------------------------------------------------------------------


def job(chain: Chain, form: Record) -> Job:
    return Job(FedAvg(), Work(Record()), [0], 1, 0, expected=form, channel=chain)


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_are_those_of_what_travels(text: str) -> None:
    given = values()
    chain = channel(text).settled(Setting(cohort=100, shapes=shapes_of(given)))  # type: ignore[attr-defined]
    news = Record(norm=torch.tensor(0.1))
    own = chain.shrink.own(Record())
    found, after = sent(chain.packing().shrink, given, own, told=news)
    back, kept = sent(chain.shrink, given, own, told=news)
    assert (chain.sent(back.values) if chain.varies else chain.nbytes(given)) == nbytes(found.values)
    told = Record(inside=torch.tensor(1.0)) if "0.5 |" in text else None
    whole = found.values if told is None else found.values.replace(channel=told)
    opened = Record(
        {n: part for n, part in chain.opened(whole, job(chain, given), 0).items() if n != "channel"}
    )
    assert opened.keys() == given.keys()
    assert all(torch.equal(a, b) for a, b in zip(leaves(opened), leaves(back.values), strict=True))
    assert all(torch.equal(after[at], kept[at]) for at in kept)


def test_bytes_of_a_run() -> None:
    """The numbers of a model of 64-16-10, five clients a round."""

    def up(text: str | None, method: str = "fedavg") -> int:
        made = federation(text, method, rounds=1)
        made.fit(progress=False)
        return made.history[0].bytes_up

    size = 64 * 16 + 16 + 16 * 10 + 10
    assert up(None) == 5 * 4 * size
    assert up("int8") == 5 * (size + 4)
    assert up("int4") == 5 * (size // 2 + 4)
    assert up("bf16") == 5 * 2 * size
    assert up("clip:1 | int8") == 5 * (size + 8)
    assert up("int8", "scaffold") == 5 * 2 * (size + 4)
    assert up("topk:0.01") == 5 * (12 * 6 + 4)


@pytest.mark.parametrize("text", ["zstd", "bf16 + zstd", "int8 + zstd"])
def test_bytes_that_depend_on_numbers_are_counted_from_them(text: str) -> None:
    """Answer by answer, as they came: factors and weights that the server puts on change nothing."""
    chain = channel(text).settled(Setting())  # type: ignore[attr-defined]
    given = [values(0), values(1, length=1e-3).replace(control=values().control * 0)]
    due = [nbytes(sent(chain.packing().shrink, each)[0].values) for each in given]
    back = [sent(chain.shrink, each)[0].values for each in given]
    asked = replace(job(chain, given[0]), clients=[0, 1], factors={0: 0.3}, weights={0: 2.0, 1: 1.0})
    gathering = Gathering(asked)
    found = [
        gathering.deliver(Answer(at, Reply(each, torch.tensor(1.0), Record())))
        for at, each in enumerate(back)
    ]
    assert [each.nbytes for each in found] == due
    assert due[0] > 1.2 * due[1]
    assert asked.nbytes(back[0], 0) == asked.nbytes(back[1], 1) > max(due)


def test_engines_count_alike() -> None:
    """As far as their numbers are alike."""

    def up(engine: str) -> list[int]:
        return [each.bytes_up for each in federation("int8 + zstd", engine=engine, rounds=2).play()]

    alone = up("loop")
    assert alone[0] != alone[1]
    for engine in ENGINES[1:]:
        assert up(engine) == pytest.approx(alone, rel=0.01)


@pytest.mark.parametrize(("text", "method"), [("zstd", "fedavg"), ("zstd", "scaffold")])
def test_what_is_packed_without_loss_changes_no_bit(text: str, method: str) -> None:
    assert torch.equal(model(text, method), model(None, method))


def test_zstd_is_for_what_can_be_counted() -> None:
    with pytest.raises(ConfigError, match="how long it gets behind zstd cannot be told") as error:
        federation("int8 + zstd", "fedma")
    assert error.value.hint == "leave it out: int8"
    with pytest.raises(ConfigError, match="nothing bounds") as error:
        federation("clip:1 | bf16 + zstd")
    assert "clip:1 | bf16" in str(error.value.hint)


def test_the_clock_reckons_with_lengths_before_zstd() -> None:
    """How long an upload takes must be known before there is anything to upload."""
    took = []
    for text in ("bf16", "bf16 + zstd"):
        made = federation(text, rounds=1, devices="equal")
        made.fit(progress=False)
        took.append(sum(made.history[0].clients["upload"]))
    assert took[0] == took[1]


def test_uploads_take_less_time_on_the_clock() -> None:
    """A device's seconds follow from the bytes that travel."""
    took = []
    for text in (None, "int8"):
        made = federation(text, rounds=1, devices="equal")
        made.fit(progress=False)
        took.append(sum(made.history[0].clients["upload"]))
    assert took[0] / took[1] == pytest.approx(4 * 1210 / 1214)


def test_what_is_asked_beside_training_is_not_packed() -> None:
    """Programs that the channel leaves alone send what they send, and so their bytes are told."""
    given, chain = values(), channel("int8")
    other = Job(FedAvg(), Work(Record(), program="evaluate"), [0], 1, 0, channel=chain)
    assert other.nbytes(given, 0) == nbytes(given)
    assert replace(other, work=Work(Record())).nbytes(given, 0) < nbytes(given) / 3


@pytest.mark.parametrize("text", ["int8", "clip:0.5 | topk:0.1", "drive"])
def test_what_else_comes_is_refused(text: str) -> None:
    given = values()
    chain = channel(text).settled(Setting())  # type: ignore[attr-defined]
    packed = sent(chain.packing().shrink, given)[0].values
    asked = job(chain, given)
    first = packed.packed["0"]
    name = next(iter(first.keys()))
    wrong: Mapping[str, Record] = {
        "not packed": given,
        "nothing": Record(),
        "one field less": packed.replace(packed=Record({"0": first})),
        "shorter": packed.replace(
            packed=packed.packed.replace(**{"0": first.replace(**{name: first[name][:-1]})})
        ),
        "other type": packed.replace(
            packed=packed.packed.replace(**{"0": first.replace(**{name: first[name].double()})})
        ),
        "no counters": packed.replace(plain=Record()),
        "counters of another form": packed.replace(plain=packed.plain.replace(share=torch.zeros(3))),
        "more": packed.replace(more=torch.zeros(3)),
    }
    if "factor" in packed:
        wrong = {
            **wrong,
            **{
                f"factor {each}": packed.replace(factor=torch.tensor(each))
                for each in (2.0, -1.0, float("nan"))
            },
        }
    for each in wrong.values():
        with pytest.raises(CodecError):
            chain.opened(each, asked, 0)
    chain.opened(packed, asked, 0)


def test_whole_models_are_put_back_on_what_was_sent() -> None:
    """A method whose reply is a model: what travels is how it differs."""
    made = federation("int8", "fedma", rounds=1)
    made.fit(progress=False)
    assert not made.history[0].refused
    assert made.history[0].bytes_up < federation_bytes("fedma") / 3


def federation_bytes(method: str) -> int:
    made = federation(None, method, rounds=1)
    made.fit(progress=False)
    return made.history[0].bytes_up


def test_with_normalisation() -> None:
    """Moving statistics are packed where they are many, and what counts batches never is."""
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 200), nn.BatchNorm1d(200), nn.ReLU(), nn.Linear(200, 10)
    )
    made = Federation(network, data(), cohort=5, channel="int8", rounds=1, device="cpu", engine="loop")
    made.fit(progress=False)
    params = 64 * 200 + 200 + 400 + 2000 + 10
    groups = -(-params // 2048)
    assert made.history[0].bytes_up == 5 * (params + 4 * groups + 400 + 4 + 8)


def test_noise_is_a_transform_of_the_server() -> None:
    """Where it stands in a text, what clients send is what they would send without it."""
    one = channel("clip:0.2 | noise:0,1 | int8").settled(Setting(cohort=5))  # type: ignore[attr-defined]
    two = channel("clip:0.2 | int8").settled(Setting(cohort=5))  # type: ignore[attr-defined]
    assert isinstance(one.transforms[1], Noise)
    found = [sent(each.shrink, values())[0].values for each in (one, two)]
    assert all(torch.equal(a, b) for a, b in zip(*map(leaves, found), strict=True))
