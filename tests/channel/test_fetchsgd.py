"""FetchSGD: sketches in the place of updates, and what a server makes of their mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from atoll.channel import Setting, channel
from atoll.channel.fetchsgd import FetchSGD
from atoll.channel.shrink import shapes_of
from atoll.contract import Job, Work
from atoll.errors import ConfigError
from atoll.methods import FedAvg
from atoll.tensors import Record, Tensors, leaves, nbytes
from tests.channel.test_chain import ENGINES, StopAfter, federation, model
from tests.channel.test_shrink import sent

FORM = Record(update=Tensors(a=torch.zeros(60, 50), b=torch.zeros(20)), counters=Tensors(n=torch.tensor(0)))
SIZE = 3020


def update(seed: int = 0) -> Record:
    generator = torch.Generator().manual_seed(seed)
    parts = {name: torch.randn(v.shape, generator=generator) for name, v in FORM.update.items()}
    return Record(update=Tensors(parts), counters=Tensors(n=torch.tensor(seed)))


def chain(text: str = "fetchsgd:4", seed: int = 3) -> Any:
    return channel(text).settled(Setting(shapes=shapes_of(FORM), seed=seed))  # type: ignore[attr-defined]


def made(text: str = "fetchsgd:4", seed: int = 3) -> FetchSGD:
    found = chain(text, seed).shrink
    assert isinstance(found, FetchSGD)
    return found


@pytest.mark.parametrize(
    "text", ["fetchsgd:4", "fetchsgd:10,0.01", "fetchsgd:10,0.01,momentum=0.9,rows=3", "clip:1 | fetchsgd:2"]
)
def test_it_reads_as_it_is_written(text: str) -> None:
    assert channel(text).text == text  # type: ignore[attr-defined]
    assert channel(text) == channel(text)
    assert channel("fetchsgd:4,0.1,0.9") == channel("fetchsgd:4,0.1,momentum=0.9")


def test_the_mean_of_sketches_is_the_sketch_of_the_mean() -> None:
    """So that sums, weights and means may act on what clients send."""
    shrink = made()
    parts = [sent(shrink, update(seed))[0].values.update.flat() for seed in range(3)]
    weights = torch.tensor([0.2, 0.5, 0.3])
    mean = sum(w * update(seed).update.flat() for w, seed in zip(weights, range(3), strict=True))
    shapes = [v.shape for v in FORM.update.values()]
    split = torch.split(mean, [s.numel() for s in shapes])
    alone = sent(shrink, FORM.replace(update=Tensors(a=split[0].reshape(60, 50), b=split[1])))[
        0
    ].values.update.flat()
    found = sum(w * part for w, part in zip(weights, parts, strict=True))
    torch.testing.assert_close(found, alone, rtol=1e-6, atol=1e-6)
    assert float(alone[755:].abs().max()) == 0  # 5 rows of 151 sums


def test_a_node_sends_what_the_simulation_reckons_with() -> None:
    made_chain, given = chain(), update()
    packed, back = sent(made_chain.packing().shrink, given)[0], sent(made_chain.shrink, given)[0]
    assert made_chain.nbytes(given) == nbytes(packed.values) == 5 * 151 * 4 + 8
    job = Job(FedAvg(), Work(Record()), [0], 1, 0, expected=FORM, channel=made_chain)
    opened = made_chain.opened(packed.values, job, 0)
    assert all(torch.equal(a, b) for a, b in zip(leaves(opened), leaves(back.values), strict=True))


class Plain:
    """The algorithm box with a matrix of all that is drawn."""

    def __init__(self, shrink: FetchSGD, momentum: float) -> None:
        self.rows, self.momentum = shrink.sketch.rows, momentum
        columns = shrink.sketch.columns(SIZE)
        self.matrix = np.zeros((self.rows, columns, SIZE))
        for row, (places, signs) in enumerate(shrink.sketch._drawn(shrink._table.key, SIZE, columns)):
            self.matrix[row, places.numpy(), np.arange(SIZE)] = signs.numpy() / self.rows**0.5
        self.u, self.e = np.zeros((self.rows, columns)), np.zeros((self.rows, columns))

    def told(self, mean: Tensor) -> np.ndarray[Any, Any]:
        """What the sketch of all that was not given yet tells of each number."""
        self.u = self.momentum * self.u + self.matrix @ mean.double().numpy()
        self.e = self.e + self.u
        return np.median(np.einsum("rcn,rc->rn", self.matrix * self.rows, self.e), axis=0)

    def gave(self, delta: np.ndarray[Any, Any]) -> None:
        hit = np.abs(self.matrix) @ (delta != 0) > 0
        self.u, self.e = np.where(hit, 0, self.u), np.where(hit, 0, self.e)


@pytest.mark.parametrize(("share", "momentum"), [(0.05, 0.0), (0.02, 0.7)])
def test_the_server_does_what_the_algorithm_says(share: float, momentum: float) -> None:
    """Which of two that are told alike is taken is open."""
    shrink = made(f"fetchsgd:4,{share},{momentum}")
    state, beside = shrink.begin(), Plain(shrink, momentum)
    for number in range(4):
        given = update(number)
        due = beside.told(torch.cat([given.update["a"].flatten(), given.update["b"]]))
        state, mean = shrink.learn(state, sent(shrink, given)[0].values, Record(), 1)
        found = torch.cat([mean.update["a"].flatten(), mean.update["b"]]).numpy()
        best = found != 0
        assert best.sum() == round(share * SIZE)
        assert abs(due[best]).min() > abs(due[~best]).max() - 1e-4
        np.testing.assert_allclose(found[best], due[best], rtol=1e-4, atol=1e-4)
        beside.gave(found)
        np.testing.assert_allclose(state.error, beside.e, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(state.momentum, beside.u, rtol=1e-4, atol=1e-4)
        assert int(mean.counters["n"]) == number
    assert shrink.tell(state) == Record()


def test_draws_follow_from_the_runs_seed() -> None:
    """All clients have one sketch, in all rounds, and another run has another one."""
    one, two, other = (sent(made(seed=seed), update())[0].values.update for seed in (3, 3, 4))
    assert torch.equal(one.flat(), two.flat())
    assert not torch.equal(one.flat(), other.flat())


def test_what_was_not_told_waits_in_the_sketch() -> None:
    """One large number a round comes out, the second largest in the round after."""
    shrink = made(f"fetchsgd:2,{1 / SIZE}")
    given = FORM.replace(update=FORM.update.map(torch.clone))
    given.update["a"][7, 7], given.update["a"][20, 3] = 5.0, 4.0
    state, first = shrink.learn(shrink.begin(), sent(shrink, given)[0].values, Record(), 1)
    _, second = shrink.learn(state, sent(shrink, FORM)[0].values, Record(), 1)
    assert float(first.update["a"][7, 7]) == pytest.approx(5.0, abs=1e-5)
    assert float(second.update["a"][20, 3]) == pytest.approx(4.0, abs=1e-5)
    assert int((first.update["a"] != 0).sum()) == int((second.update["a"] != 0).sum()) == 1


def test_engines_agree() -> None:
    alone = model("fetchsgd:4")
    for engine in ENGINES[1:]:
        torch.testing.assert_close(model("fetchsgd:4", engine=engine), alone, rtol=1e-3, atol=2e-4)


def test_it_learns() -> None:
    """From half the bytes, on updates that are dense."""
    run = federation("fetchsgd:2", rounds=25, cohort=8, eval_every=25, engine="batched")
    evaluation = [*run.play()][-1].evaluation
    assert evaluation is not None
    assert float(evaluation.score or 0) > 0.7


def test_a_run_that_goes_on_is_the_run_that_was_not_interrupted(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"rounds": 4, "checkpoint": 1}
    text = "fetchsgd:4,0.1,0.5"
    federation(text, **settings, runs=tmp_path, callbacks=[StopAfter()]).fit(progress=False)
    again = federation(text, **settings, runs=tmp_path).resume()
    again.fit(progress=False)
    assert torch.equal(again.state.params.flat(), model(text, **settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"aggregate": "nnm + trimmed:1"},
        {"method": "fedadam"},
        {"channel": "clip:0.5 | noise:0.1,1 | fetchsgd:2"},
    ],
)
def test_what_it_goes_with(settings: dict[str, Any]) -> None:
    """Rules, server optimisers, noise: a sketch is a reply like any other."""
    given = {"channel": "fetchsgd:2", "rounds": 2, **settings}
    run = federation(given.pop("channel"), given.pop("method", "fedavg"), **given)
    run.fit(progress=False)
    assert not run.history[-1].refused
    assert run.simulation.progress.told is not None


@pytest.mark.parametrize(
    ("text", "method", "says"),
    [
        ("fetchsgd:0.5", "fedavg", "times = 0.5"), ("fetchsgd:4,2", "fedavg", "share = 2"),
        ("fetchsgd:4,0.1,1", "fedavg", "momentum = 1"), ("fetchsgd:4,rows=2", "fedavg", "rows = 2"),
        ("fetchsgd:4 + feedback", "fedavg", "loses nothing that feedback"), ("fetchsgd:4 + zstd", "fedavg", "is none"),
        ("fetchsgd:4 | secagg", "fedavg", "leave fetchsgd:4 out"), ("sketch:4 + feedback", "fedavg", "grow"),
        ("fetchsgd:4", "scaffold", "and a sketch is of"),
        ("fetchsgd:4", "fedma", "does not average replies of one form"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(text: str, method: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        federation(text, method)
    assert says in f"{error.value} {error.value.hint}"


def test_a_model_of_few_numbers_has_nothing_to_sketch() -> None:
    few = shapes_of(Record(update=Tensors(a=torch.zeros(3, 5))))
    with pytest.raises(ConfigError, match="replies have 0 fields") as error:
        channel("fetchsgd:4").settled(Setting(shapes=few))  # type: ignore[attr-defined]
    assert "next to nothing to save" in str(error.value.hint)
