"""A codec for each tensor: which are taken, what they cost, and what that loses."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from atoll.channel import Setting, channel
from atoll.channel.auto import Auto
from atoll.channel.shrink import shapes_of
from atoll.contract import Job, Work
from atoll.errors import CodecError, ConfigError
from atoll.methods import FedAvg
from atoll.tensors import Record, Tensors, leaves, nbytes
from tests.channel.test_chain import StopAfter, federation, model
from tests.channel.test_shrink import sent

FORM = Record(
    update=Tensors(a=torch.zeros(60, 50), b=torch.zeros(20), c=torch.zeros(900), d=torch.zeros(40, 40))
)


def auto(text: str = "auto:0.15", form: Record = FORM) -> Any:
    return channel(text).settled(Setting(shapes=shapes_of(form)))  # type: ignore[attr-defined]


def update(seed: int = 0) -> Record:
    generator = torch.Generator().manual_seed(seed)
    parts = {name: torch.randn(v.shape, generator=generator) for name, v in FORM.update.items()}
    return Record(update=Tensors(**{**parts, "a": 0.01 * parts["a"], "c": parts["c"].abs().pow(6)}))


@pytest.mark.parametrize("text", ["auto:0.1", "auto:0.25 + feedback"])
def test_it_reads_as_it_is_written(text: str) -> None:
    assert channel(text).text == text  # type: ignore[attr-defined]
    assert channel("auto") == channel("auto:0.1")


@pytest.mark.parametrize("share", [0.06, 0.1, 0.3])
def test_nothing_in_the_room_there_is_would_lose_less_but_for_a_step(share: float) -> None:
    """Beside all ways to choose: within the room, and no worse than the best of three fifths of it."""
    made = auto(f"auto:{share}").shrink
    rng = np.random.default_rng(3)
    for _ in range(5):
        scale = rng.uniform(0, 100, (3, 1))
        lost = scale * np.sort(rng.uniform(0, 1, (3, 6)) ** 3, axis=1)[:, ::-1]
        chosen = made._chosen(lost).numpy()
        ways = [np.array(each) for each in product(range(6), repeat=3)]
        took = np.array([made._sizes[range(3), way].sum() for way in ways])
        left = np.array([lost[range(3), way].sum() for way in ways])
        assert made._sizes[range(3), chosen].sum() <= made._budget
        least = max(made._budget * 0.6, took.min())
        assert lost[range(3), chosen].sum() <= left[took <= least].min() + 1e-9


@pytest.mark.parametrize("tail", ["", " + feedback"])
def test_a_node_sends_what_the_simulation_reckons_with(tail: str) -> None:
    """Its bits and its bytes, with what it tells of the codecs."""
    chain, given = auto(f"auto:0.15{tail}"), update()
    told = Record(choice=torch.tensor([0, 5, 2]))
    own = chain.shrink.own(Record())
    packed, _ = sent(chain.packing().shrink, given, own, told=told)
    back, _ = sent(chain.shrink, given, own, told=told)
    assert torch.equal(packed.report.lost, back.report.lost)
    work = Work(Record(channel=Record({"0": told})))
    job = Job(FedAvg(), work, [0], 1, 0, expected=FORM, channel=chain)
    values = packed.values.replace(channel=packed.report)
    opened = chain.opened(values, job, 0)
    assert all(
        torch.equal(a, b) for a, b in zip(leaves(opened.update), leaves(back.values.update), strict=True)
    )
    assert job.nbytes(back.values.replace(channel=back.report), 0) == nbytes(values)


def test_what_is_told_is_what_each_codec_loses() -> None:
    chain, given = auto(), update()
    for which in range(6):
        back, _ = sent(chain.shrink, given, told=Record(choice=torch.full((3,), which)))
        due = [float((back.values.update[n] - given.update[n]).square().sum()) for n in ("a", "c", "d")]
        assert back.report.lost[:, which].tolist() == pytest.approx(due, rel=1e-4, abs=1e-6)


def test_it_goes_where_errors_are() -> None:
    """A tensor whose numbers are small goes by few bits, and the others have the room."""
    chain = auto()
    first = chain.shrink.begin().choice
    report = sent(chain.shrink, update(), told=Record(choice=first))[0].report
    then = chain.shrink.learn(Record(choice=first), Record(), report, 1)[0].choice
    assert int(then[0]) < int(first[0])
    assert int(then[1]) > int(first[1]) and int(then[2]) >= int(first[2])
    lost = report.lost
    rows = torch.arange(3)
    assert float(lost[rows, then].sum()) < 0.5 * float(lost[rows, first].sum())


def test_reports_of_another_form_are_refused() -> None:
    """Which would be added to those of others."""
    chain, told = auto(), Record(choice=torch.tensor([0, 1, 2]))
    packed = sent(chain.packing().shrink, update(), told=told)[0]
    job = Job(FedAvg(), Work(Record(channel=Record({"0": told}))), [0], 1, 0, expected=FORM, channel=chain)
    for wrong in (
        torch.zeros(3),
        Record(),
        Record(lost=torch.zeros(())),
        packed.report.replace(more=torch.zeros(1)),
    ):
        with pytest.raises(CodecError, match="tells of itself"):
            chain.opened(packed.values.replace(channel=wrong), job, 0)
    with pytest.raises(CodecError, match="tells of itself"):
        chain.opened(packed.values, job, 0)


@pytest.mark.parametrize(("text", "method"), [("auto:0.3", "scaffold"), ("auto:0.3 + feedback", "fedavg")])
def test_runs(text: str, method: str) -> None:
    """Within the share, whichever the engine."""
    numbers = (64 * 16 + 16 + 160 + 10) * (1 + (method == "scaffold"))
    made = federation(text, method)
    made.fit(progress=False)
    for each in made.history:
        assert each.bytes_up <= 0.3 * 5 * 4 * numbers
    alone = made.state.params.flat()
    torch.testing.assert_close(model(text, method, engine="batched"), alone, rtol=1e-3, atol=2e-4)


def test_it_outlives_a_stop(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"rounds": 4, "checkpoint": 1, "runs": str(tmp_path)}
    whole = model("auto:0.3 + feedback", rounds=4)
    federation("auto:0.3 + feedback", **settings, callbacks=[StopAfter()]).fit(progress=False)
    rest = federation("auto:0.3 + feedback", **settings).resume()
    rest.fit(progress=False)
    assert torch.equal(rest.state.params.flat(), whole)


@pytest.mark.parametrize(
    ("text", "method", "says"),
    [
        ("auto:0.01", "fedavg", "the smallest codecs take"), ("auto:2", "fedavg", "must be above 0"),
        ("clip:1 | auto", "fedavg", "stands behind clip:1"), ("auto", "cfl", "CFL does not average"),
        ("auto / int8", "fedavg", "names something else"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_at_once(text: str, method: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        federation(text, method)


def test_its_codecs_go_from_the_smallest_to_the_largest() -> None:
    sizes = [each.nbytes((10_000,)) for each in Auto().codecs]
    assert sizes == sorted(sizes)
    assert all(each.contracts for each in Auto().codecs)


def test_a_model_of_small_tensors_has_nothing_to_choose() -> None:
    with pytest.raises(ConfigError, match="no tensor of this model has 256 numbers"):
        auto("auto:0.5", Record(update=Tensors(a=torch.zeros(3), b=torch.zeros(2, 2))))
