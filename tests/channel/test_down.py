"""Broadcasts in fewer bytes: what clients get, what it costs them, and whose model goes that way."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from atoll import seeds
from atoll.channel.down import Down, name_of
from atoll.codec import decode, encode
from atoll.compress import parse
from atoll.contract import Population, Work
from atoll.errors import CodecError, ConfigError
from atoll.federation import Federation
from atoll.methods import METHODS
from atoll.tensors import Record, Tensors, leaves, named_tensors, nbytes
from tests.channel.test_chain import ENGINES, StopAfter, federation

SIZE = 64 * 16 + 16 + 160 + 10
LR = 4  # bytes of the rate, which goes as it is


def played(made: Federation) -> Tensor:
    made.fit(progress=False)
    return made.state.params.flat()  # type: ignore[no-any-return]


def model(seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return Tensors(
        w=torch.randn(40, 30, generator=generator), b=torch.randn(40, generator=generator), v=torch.ones(7)
    )


def work(seed: int = 0) -> Work:
    return Work(Record(params=model(seed), buffers=Tensors(seen=torch.tensor(3)), lr=torch.tensor(0.1)))


def same(a: Record, b: Record) -> bool:
    return a.keys() == b.keys() and all(torch.equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


# --- what is sent -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["bf16", "int8", "eden:4", "qsgd:127"])
def test_clients_get_what_travels(text: str) -> None:
    """All of it but the model as it is; the model as decoding gives it, in its names, shapes and types."""
    made = Down.parse(text)
    sent, state = made.sent(work(), ("params",), [0, 1], 7, 1, Record())
    assert sent.travels is not None
    assert not state
    there = made.opened(decode(encode(sent.travels)))
    assert same(Record(sorted(there.items())), Record(sorted(sent.shared.items())))
    assert [(n, v.dtype, v.shape) for n, v in named_tensors(there.params)] == [
        (n, v.dtype, v.shape) for n, v in named_tensors(model(0))
    ]
    assert sent.nbytes(0) == nbytes(sent.travels) == parse(text).nbytes((1247,)) + 8 + 4
    assert same(made.opened(work().shared), work().shared)  # what is judged comes as it is


def test_a_model_in_half_precision_stays_so() -> None:
    given = Work(Record(params=model(0).map(lambda v: v.to(torch.bfloat16))))
    made = Down.parse("int8")
    sent, _ = made.sent(given, ("params",), [0], 7, 1, Record())
    assert sent.travels is not None
    assert {v.dtype for v in leaves(made.opened(sent.travels))} == {torch.bfloat16}


def test_what_was_damaged_is_refused() -> None:
    made = Down.parse("int8")
    sent, _ = made.sent(work(), ("params",), [0], 7, 1, Record())
    assert sent.travels is not None
    down = sent.travels.down
    huge = Tensors(w=torch.empty(0, 1 << 20, 1 << 20))  # a name for a terabyte, in no bytes
    first = down.packed["0"]
    for wrong in (
        torch.zeros(3), down.replace(form=Record(params=huge)), down.replace(form=Record()),
        down.replace(form=Record(params=torch.zeros(0, 1247))),
        down.replace(plain=Record(v=torch.ones(7))),
        Record({n: part for n, part in down.items() if n != "form"}),
        down.replace(packed=Record({"0": first.replace(numbers=first.numbers[:-1])})),
    ):  # fmt: skip
        with pytest.raises(CodecError):
            made.opened(sent.travels.replace(down=wrong))


def test_what_was_lost_is_in_the_next_difference() -> None:
    """The reference goes to a model that stays, however little of each difference travels."""
    made, state, errors = Down.parse("topk:0.2 + feedback"), Record(), []
    for number in range(1, 14):
        sent, state = made.sent(work(int(number > 1)), ("params",), [0], 7, number, state)
        assert same(Record(params=sent.shared.params), state.reference)
        errors.append(float((sent.shared.params.flat() - work(int(number > 1)).shared.params.flat()).norm()))
    assert errors[0] == 0 < errors[1]
    assert all(after <= before for before, after in pairwise(errors[1:]))
    assert errors[-1] < 1e-6


def test_who_was_away_takes_what_is_less() -> None:
    """The differences since it was there, or all; its first time all."""
    made, state = Down.parse("topk:0.1 + feedback"), Record()
    rest, whole = 8 + 4, 4 * 1247
    step = parse("topk:0.1").nbytes((1247,))
    due = {
        1: {0: whole, 1: whole},
        2: {0: step, 2: whole},
        3: {0: step, 1: 2 * step, 2: step},
        12: {1: whole, 0: step},
    }
    for number in range(1, 13):
        asked = [*due.get(number, {0: step})]
        sent, state = made.sent(work(number), ("params",), asked, 7, number, state)
        for client, size in due.get(number, {0: step}).items():
            assert sent.nbytes(client) == size + rest, (number, client)
        answered = [k for k in asked if (number, k) != (3, 1)]  # who does not answer may not have it
        state = made.heard(state, answered)
    assert dict(zip(state.clients.tolist(), state.held.tolist(), strict=True)) == {0: 12, 1: 12, 2: 3}


def test_clients_on_other_machines_follow_the_differences() -> None:
    """To the bit of the server's reference, whenever they were there last; bodies are as long as is said."""
    made, state = replace(Down.parse("topk:0.1 + feedback"), apart=True), Record()
    twin, plain = Down.parse("topk:0.1 + feedback"), Record()
    held: dict[int, tuple[str, Record]] = {}
    there = {1: [0, 1], 2: [0], 3: [0, 1, 2], 4: [0], 11: [1, 2, 0], 12: [0, 1, 2]}
    for number in range(1, 13):
        asked = there.get(number, [0])
        sent, state = made.sent(work(number), ("params",), asked, 7, number, state)
        alike, plain = twin.sent(work(number), ("params",), asked, 7, number, plain)
        for client in asked:
            if client in sent.differs:
                name, body = sent.differs[client]
                assert held[client][0] == name
                assert nbytes(body) == sent.nbytes(client) < nbytes(sent.shared)
                got = made.opened(decode(encode(body)), held[client][1])
            else:
                assert sent.nbytes(client) == nbytes(sent.shared)
                got = made.opened(decode(encode(sent.shared)))
            assert same(Record(sorted(got.items())), Record(sorted(alike.shared.items())))
            assert sent.nbytes(client) == alike.nbytes(client)
            assert sent.keep is not None
            held[client] = sent.keep, Record(params=got.params)
            assert name_of(held[client][1]) == sent.keep
        state, plain = made.heard(state, asked), twin.heard(plain, asked)
        state = decode(encode(state))  # as a checkpoint has it
    assert {client for client in (0, 1, 2) if client in sent.differs} == {0, 1, 2}
    assert nbytes(state.steps) < nbytes(state.reference)
    with pytest.raises(CodecError, match="nothing that they are told from"):
        made.opened(body)


CLOSE_OR_NOT = (
    "bf16", "fp16", "int8", "int4", "eden:2", "drive", "sign", "qsgd:7", "qsgd:32", "topk:0.1", "topk:0.5", "randk:0.5",
    "powersgd:2",
)  # fmt: skip


@pytest.mark.parametrize("text", CLOSE_OR_NOT)
def test_codecs_are_close_that_lose_an_eighth_at_most(text: str) -> None:
    """Of a vector of normal numbers, or of a matrix of them."""
    codec = parse(text)
    value = torch.randn(128, 256, generator=torch.Generator().manual_seed(0))
    value = value if codec.apart else value.flatten()
    lost = [codec.through(value, torch.tensor(k)) - value for k in range(3)]
    share = sum(float(each.square().sum()) for each in lost) / 3 / float(value.square().sum())
    assert codec.close == (share < 1 / 8)


# --- in runs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "method", "engine"),
    [("int8", "scaffold", "processes"), ("drive + feedback", "fedavg", "batched")],
)
def test_engines_agree(text: str, method: str, engine: str) -> None:
    alone = played(federation(None, method, down=text))
    torch.testing.assert_close(
        played(federation(None, method, engine, down=text)), alone, rtol=1e-3, atol=2e-4
    )
    assert not torch.equal(alone, played(federation(None, method)))


def test_bytes_of_a_run() -> None:
    """A model of 64-16-10, five clients a round; nothing that goes up is any different."""

    def down(text: str | None, method: str = "fedavg", **more: Any) -> list[int]:
        made = federation(None, method, down=text, **more)
        made.fit(progress=False)
        assert made.history[0].bytes_up == 5 * 4 * SIZE * (1 + (method == "scaffold"))
        return [each.bytes_down for each in made.history]

    assert down(None) == [5 * (4 * SIZE + LR)] * 2
    assert down("bf16") == [5 * (2 * SIZE + LR)] * 2
    assert down("int8") == [5 * (SIZE + 4 + LR)] * 2
    assert down("int8", "scaffold") == [5 * (2 * (SIZE + 4) + LR)] * 2
    everybody = down("drive + feedback", cohort=5, newcomers=7, rounds=3)
    step = parse("drive").nbytes((SIZE,))
    assert everybody == [5 * (4 * SIZE + LR), 5 * (step + LR), 5 * (step + LR)]


def test_clients_train_from_what_they_got() -> None:
    """The round of a server whose model is what decoding gives, but for the server's own numbers."""
    made = federation(None, down="int8", rounds=1)
    start = made.state.params
    key = torch.tensor(seeds.address(1, "down", 1) >> 2)
    flat = torch.cat([start[name].reshape(-1) for name in sorted(start)])
    back = parse("int8").through(flat, seeds.fold(key, 0))
    parts = torch.split(back, [start[name].numel() for name in sorted(start)])
    got = Tensors({n: p.reshape(start[n].shape) for n, p in zip(sorted(start), parts, strict=True)})
    other = federation(None, rounds=1)
    other.simulation.state = other.state.replace(params=Tensors({name: got[name] for name in start}))
    moved = played(made) - start.flat()
    torch.testing.assert_close(
        moved, played(other) - Tensors({n: got[n] for n in start}).flat(), atol=1e-6, rtol=0
    )


def test_downloads_take_less_time_on_the_clock() -> None:
    took = []
    for text in (None, "int8"):
        made = federation(None, down=text, rounds=1, devices="equal")
        made.fit(progress=False)
        took.append(sum(made.history[0].clients["download"]))
    assert took[0] / took[1] == pytest.approx((4 * SIZE + LR) / (SIZE + 4 + LR))


def test_at_any_pace() -> None:
    made = federation(None, down="int8", pace="buffered:2", devices="lognormal:1", rounds=3)
    made.fit(progress=False)
    assert [each.bytes_down % (SIZE + 4 + LR) for each in made.history] == [0, 0, 0]


@pytest.mark.parametrize("engine", [*ENGINES[:2], pytest.param("processes", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "settings",
    [{"down": "drive + feedback"}, {"down": "eden:4", "pace": "buffered:2", "devices": "lognormal:1"}],
    ids=["feedback", "buffered"],
)
def test_it_outlives_a_stop(engine: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """What clients hold is in the checkpoints."""
    settings = {**settings, "channel": "topk:0.1 + feedback", "engine": engine, "rounds": 4}
    whole = federation(**settings)
    due = played(whole)
    federation(**settings, runs=str(tmp_path), checkpoint=1, callbacks=[StopAfter()]).fit(progress=False)
    rest = federation(**settings, runs=str(tmp_path)).resume()
    assert torch.equal(played(rest), due)
    assert [each.bytes_down for each in rest.history] == [each.bytes_down for each in whole.history]


# --- whose model ------------------------------------------------------------------------------------------------------


OTHERWISE = ("cfl", "pfnm", "fedma", "rolora", "flora", "fedex", "fedkseed")
"""What these send under this name is not sent to all, or does not travel so."""


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_declares_it_sends_to_all(name: str) -> None:
    """The fields are there, in floating point, and no client gets another one in their place."""
    kind = METHODS[name]
    if name in ("fedbn", "crossmodal", "knn-per", "fedmd", "feddf", "fedora", "fedfomo"):
        assert kind.broadcasts == (() if name in ("fedmd", "feddf", "fedora", "fedfomo") else ("params",))
        return  # they need other data, or another network
    adapter = {"adapter": "lora:2"} if kind.low_rank else {}
    method, task = kind(), federation(**adapter).task
    inputs = torch.zeros(1, 64)
    state = method.setup(task, Population(4, (task,), inputs))
    sent = method.broadcast(state, [0, 2])
    for field in kind.broadcasts:
        assert all(v.is_floating_point() for v in leaves(sent.shared[field]))
        assert not [client for client, own in sent.own.items() if field in own]
    assert bool(kind.broadcasts) == ("params" in sent.shared and name not in OTHERWISE)


@pytest.mark.parametrize(
    ("settings", "says", "hint"),
    [
        ({"down": "topk:0.1"}, "brings too little back", "topk:0.1 \\+ feedback"),
        ({"down": "qsgd:3"}, "brings too little back", 'down = "int8"'),
        ({"down": "qsgd:7 + feedback"}, "would grow", "drive"),
        ({"down": "int8", "method": "heterofl"}, "HeteroFL sends no model that is the same", "leave down out.*fedavg"),
        ({"down": "int8", "method": "local"}, "Local sends no model", "fedavg"),
        ({"down": "int8 + feedback", "pace": "buffered:2", "devices": "equal"}, "each of them another one", "int8"),
        ({"down": "int8 + back"}, "unknown down 'back'", "feedback"),
        ({"down": "clip:1"}, "unknown down 'clip'", "bf16"),
        ({"down": "int8:3"}, "no arguments", None),
        ({"down": "int8 + zstd + zstd"}, "unknown down 'zstd'", None),
        ({"down": "int8 + zstd:3"}, "unknown down 'zstd'", None),
        ({"down": "zstd:3"}, "unknown down 'zstd'", None),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_at_once(settings: dict[str, Any], says: str, hint: str | None) -> None:
    with pytest.raises(ConfigError, match=f"(?s){says}.*{hint or ''}"):
        federation(None, **settings)
