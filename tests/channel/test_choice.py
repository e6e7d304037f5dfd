"""Several codecs in a channel, and a rule that says which client takes which."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from atoll import own
from atoll.channel import Setting, channel
from atoll.channel.shrink import shapes_of
from atoll.clock import devices
from atoll.compress import parse
from atoll.contract import Job, Work
from atoll.errors import ConfigError
from atoll.federation import Federation
from atoll.methods import FedAvg
from atoll.rounds.adapting import Rule, Seen
from atoll.rounds.adapting.bandwidth import Bandwidth
from atoll.tensors import Record, Tensors, leaves, nbytes
from tests.channel.test_chain import ENGINES, StopAfter, federation
from tests.channel.test_shrink import sent, values

THREE = "int8 / eden:2 / drive"
SIZES = {text: parse(text).nbytes((64 * 16 + 16 + 160 + 10,)) for text in THREE.split(" / ")}
DEVICES = {k: {"speed": 1e9, "download": 1e9, "upload": 100.0 * 2**k, "latency": 0.0} for k in range(12)}
"""Each client sends twice as fast as the one before, and nothing else takes any time."""


@dataclass(frozen=True)
class Always(Rule):
    """Everybody takes this codec."""

    which: int = 1
    name: ClassVar[str] = "always"
    chooses: ClassVar[bool] = True

    def codecs(self, state: Record, seen: Seen) -> Mapping[int, int]:
        return dict.fromkeys(seen.clients.tolist(), self.which)


def always(text: str, **more: Any) -> Federation:
    own.admit(f"{__name__}:Always", "adaptive")
    return federation(text, adaptive=f"{__name__}:Always", **more)


def played(made: Federation) -> Tensor:
    made.fit(progress=False)
    return made.state.params.flat()  # type: ignore[no-any-return]


def uploads(made: Federation) -> dict[int, float]:
    """Bytes that clients sent in the last round, from how long it took them."""
    last = made.history[-1]
    seconds = zip(last.cohort, last.clients["upload"], strict=True)
    return {k: each * DEVICES[k]["upload"] for k, each in seconds}


# --- texts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [THREE, "clip:0.5 | int8 / topk:0.05 + feedback", "bf16 / int4 / topk:1e-2"])
def test_it_reads_as_it_is_written(text: str) -> None:
    made: Any = channel(text)
    assert channel(made.text) == made
    assert made.text == text.replace("1e-2", "0.01")
    assert made.codecs == text.count("/") + 1
    assert channel("int8").codecs == 0


@pytest.mark.parametrize(
    ("settings", "says", "hint"),
    [
        ({"channel": THREE}, "nobody says which client takes which", 'adaptive="bandwidth"'),
        ({"channel": "int8", "adaptive": "bandwidth"}, "nothing to choose", "int8 / eden:2 / drive"),
        ({"channel": "int8 / clip:1", "adaptive": "bandwidth"}, "names something else", "behind |"),
        ({"channel": "int8 / randk:0.1 + feedback", "adaptive": "bandwidth"}, "what randk:0.1 loses", "feedback"),
        ({"channel": "int8 / powersgd:1", "adaptive": "bandwidth"}, "each tensor for itself", "leave powersgd:1"),
        ({"channel": THREE, "adaptive": "bandwidth", "devices": None}, "without devices there is none", "devices"),
        ({"channel": THREE, "adaptive": "bandwidth", "pace": "buffered:2"}, "for synchronous rounds", "sync"),
        ({"channel": THREE, "adaptive": f"bandwidth + {__name__}:Always"}, "two rules choose", "leave always out"),
        ({"channel": "int8 / intt", "adaptive": "bandwidth"}, "unknown channel 'intt'", "int"),
        ({"channel": "int8 / drive | secagg", "adaptive": "bandwidth"}, "no whole numbers", "leave int8 / drive out"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_at_once(settings: dict[str, Any], says: str, hint: str) -> None:
    own.admit(f"{__name__}:Always", "adaptive")
    with pytest.raises(ConfigError, match=says) as raised:
        federation(**{"devices": "equal", **settings})
    assert hint in str(raised.value.hint)


# --- which ----------------------------------------------------------------------------------------------------------


def view(uploads: list[list[float]], deadline: float = math.inf, compute: float = 0.0) -> Seen:
    count = len(uploads[0])
    return Seen(
        1, np.arange(count), np.ones(count), np.full(count, compute), np.ones(count, np.int64),
        np.ones(count, np.int64), deadline, uploads=np.array(uploads),
    )  # fmt: skip


def test_the_best_codec_with_which_nobody_waits_longer() -> None:
    """Seconds with each codec; all wait one second beside."""
    seen = view([[4, 8, 40], [2, 4, 20], [1, 2, 10]])
    assert Bandwidth().codecs(Record(), seen) == {0: 0, 1: 0, 2: 2}
    assert Bandwidth(share=0.5).codecs(Record(), seen) == {0: 1, 1: 2, 2: 2}  # 3 seconds, the second's least
    assert Bandwidth().codecs(Record(), seen._replace(deadline=9.0)) == {0: 0, 1: 0, 2: 2}
    assert Bandwidth().codecs(Record(), seen._replace(deadline=5.0)) == {0: 0, 1: 1, 2: 2}
    assert Bandwidth().codecs(Record(), view([[5, 5]] * 2)) == {0: 0, 1: 0}
    assert Bandwidth().codecs(Record(), seen._replace(uploads=None)) == {}


def test_work_counts_as_well() -> None:
    """Who trains for long has less time to send in."""
    seen = view([[4, 4], [1, 1]])
    assert Bandwidth().codecs(Record(), seen._replace(step=np.array([3.0, 0.0]))) == {0: 1, 1: 0}


@pytest.mark.parametrize("engine", ENGINES)
def test_the_choice_follows_bandwidth(engine: str) -> None:
    """Who sends twice as fast may send twice as much: bytes and seconds are those of what each has taken."""
    made = federation(
        THREE, engine=engine, devices=devices(DEVICES, clients=12), adaptive="bandwidth", rounds=1
    )
    played(made)
    found = uploads(made)
    slowest = min(found)
    limit = SIZES["drive"] / DEVICES[slowest]["upload"]
    for client, size in found.items():
        best = next(
            (n for n in SIZES.values() if n / DEVICES[client]["upload"] <= limit * 1.001), SIZES["drive"]
        )
        assert size == pytest.approx(best, abs=1e-3)
    assert len({round(size) for size in found.values()}) > 1
    assert made.history[0].bytes_up == round(sum(found.values()))
    clock = made.history[0].clock
    assert clock is not None
    assert clock.ended - clock.began == pytest.approx(limit, abs=1e-3)
    plain = federation("drive", engine=engine, devices=devices(DEVICES, clients=12), rounds=1)
    played(plain)
    assert made.history[0].bytes_down == plain.history[0].bytes_down + 5 * 8  # which codec, told to each


@pytest.mark.parametrize("text", [THREE, "clip:0.5 | int8 / topk:0.05 + feedback"])
def test_engines_agree(text: str) -> None:
    settings: dict[str, Any] = {"devices": devices(DEVICES, clients=12), "adaptive": "bandwidth"}
    batched, processes, loop = (
        played(federation(text, engine=engine, **settings)) for engine in ("batched", "processes", "loop")
    )
    assert torch.equal(batched, processes) or torch.allclose(batched, processes, rtol=1e-3, atol=2e-4)
    torch.testing.assert_close(batched, loop, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("tail", ["", " + feedback"])
def test_where_all_take_one_it_is_that_one(engine: str, tail: str) -> None:
    made, single = always(f"int8 / drive{tail}", engine=engine), federation(f"drive{tail}", engine=engine)
    assert torch.equal(played(made), played(single))
    assert [each.bytes_up for each in made.history] == [each.bytes_up for each in single.history]


def test_errors_are_remembered_whatever_was_taken() -> None:
    """One memory: all that was sent and what is left are all updates, added up, whichever codec each went through."""
    given = [
        Record(update=Tensors(w=torch.randn(600, generator=torch.Generator().manual_seed(k))))
        for k in range(5)
    ]
    made: Any = channel("int8 / topk:0.05 + feedback").settled(Setting(shapes=shapes_of(given[0])))  # type: ignore[attr-defined]
    kept, back = made.shrink.own(Record()), torch.zeros(600)
    for each, which in zip(given, [1, 0, 1, 1, 0], strict=True):
        update, kept = sent(made.shrink, each, kept, told=Record(codec=torch.tensor(which)))
        back += update.values.update["w"]
    due = torch.stack([each.update["w"] for each in given]).sum(0)
    torch.testing.assert_close(back + kept["0"], due, rtol=1e-5, atol=1e-5)


def test_a_node_packs_with_its_own_alone() -> None:
    """What travels is that codec's, and the coordinator opens it with the same, to the simulation's bits."""
    given = values()
    made: Any = channel("clip:0.5 | int8 / drive").settled(Setting())  # type: ignore[attr-defined]
    for which, single in enumerate(("clip:0.5 | int8", "clip:0.5 | drive")):
        told = Record(codec=torch.tensor(which), norm=torch.tensor(0.5))
        packed = sent(made.packing().shrink, given, told=told)[0].values
        alone = sent(channel(single).settled(Setting()).packing().shrink, given, told=told)[0].values  # type: ignore[attr-defined]
        assert nbytes(packed) == nbytes(alone)
        job = Job(FedAvg(), Work(Record()).choosing({3: which}), [3], 1, 0, expected=given, channel=made)
        assert job.nbytes(given, 3) == nbytes(packed)
        back = sent(made.shrink, given, told=told)[0].values
        opened = made.opened(packed, job, 3)
        assert all(torch.equal(a, b) for a, b in zip(leaves(opened), leaves(back), strict=True))


# --- runs that go on, and what it is good for -------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_it_outlives_a_stop(engine: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "channel": "int8 / drive + feedback", "adaptive": "bandwidth:0.6", "devices": "lognormal:1.5",
        "engine": engine, "rounds": 5, "late": "keep", "deadline": "share:0.8",
    }  # fmt: skip
    whole = federation(**settings)
    due = played(whole)
    place = str(tmp_path)
    federation(**settings, runs=place, checkpoint=2, callbacks=[StopAfter()]).fit(progress=False)
    rest = federation(**settings, runs=place).resume()
    assert torch.equal(played(rest), due)
    assert [r.bytes_up for r in rest.history] == [r.bytes_up for r in whole.history]


def test_rounds_take_no_longer_than_with_the_smallest_and_more_is_sent() -> None:
    settings: dict[str, Any] = {"devices": "lognormal:1.5", "rounds": 4}
    made = {
        "all": federation(THREE, adaptive="bandwidth", **settings),
        **{text: federation(text, **settings) for text in ("int8", "drive")},
    }
    for each in made.values():
        played(each)
    took = {name: each.history[-1].clock.ended for name, each in made.items()}  # type: ignore[union-attr]
    up = {name: sum(r.bytes_up for r in each.history) for name, each in made.items()}
    assert took["all"] <= took["drive"] * (1 + 1e-4) < took["int8"]  # 8 bytes more come down
    assert up["drive"] < up["all"] < up["int8"]
