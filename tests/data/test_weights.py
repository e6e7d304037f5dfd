"""What clients count for where the server averages: what may be said, what is kept, what methods make of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.halves import fitting
from torch import nn

import atoll.data
from atoll.data import FederatedData
from atoll.data.weights import read_weights
from atoll.errors import ConfigError
from atoll.federation import Federation
from atoll.methods import METHODS
from atoll.tensors import Record, leaves

SIZES = (16, 6, 11, 9)
ALL = sorted(set(METHODS) - {"fedbn"})  # which refuses a model without BatchNorm


def clients(sizes: tuple[int, ...] = SIZES, other: int = 0) -> FederatedData:
    """Clients "a", "b", ...; the last one's samples are drawn anew with `other`."""
    made = {}
    for at, n in enumerate(sizes):
        rng = np.random.default_rng((at, other if at == len(sizes) - 1 else 0))
        x = rng.normal(size=(n, 6)).astype(np.float32)
        y = np.arange(n) % 3
        made["abcdefghij"[at]] = {"train": (x, y), "test": (x[:4], y[:4])}
    public = torch.randn(8, 6, generator=torch.Generator().manual_seed(2))
    return atoll.data.from_clients(made, classes=3, validation=2).publish(public)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))


def state(data: FederatedData, method: str = "fedavg", rounds: int = 2, **settings: Any) -> Record:
    settings = {"lr": 0.1, "engine": "loop", "eval_every": 0, "device": "cpu", **settings}
    if method == "fedkseed":  # of their defaults, 200 and 4096
        settings |= {"steps": 6, "seeds": 64}
    if METHODS[method].low_rank:
        settings["adapter"] = "lora:2"
    model, data = fitting(method, net, data)
    fed = Federation(model, data, method, rounds=max(1, rounds), cohort=len(data), **settings)
    try:
        for _ in range(rounds):
            fed.round()
    finally:
        fed.engine.close()
    return fed.state


def same(one: Record, other: Record) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.params.values(), other.params.values(), strict=True))


def numbers(data: FederatedData) -> list[float]:
    assert data.weights is not None
    return [float(weight) for weight in data.weights]


# --- what may be said, and what is kept ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given", [{"b": 3}, "b:3", ("b:3",), [1, 3, 1, 1], "1, 3, 1, 1", np.array([2, 6, 2, 2])]
)
def test_ways_to_say_it(given: Any) -> None:
    data = clients()
    assert numbers(data.weigh(given)) == pytest.approx([2 / 3, 2, 2 / 3, 2 / 3])
    assert data.weights is None
    assert numbers(data.weigh(given).weigh("equal")) == [1, 1, 1, 1]
    assert data.weigh(given).samples(1) is not None and data.weigh(given).pool() is data.pool()


def test_names_with_colons_and_commas() -> None:
    assert read_weights("ward:3: 2") == {"ward:3": "2"}
    assert read_weights("['a,b:2', 'c:1']") == {"a,b": "2", "c": "1"}


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        ({"e": 2}, "no client 'e'", "a, b, c, d"),
        ({"a": -1}, "client 'a' is -1", "from 0 up"),
        ("a:nan", "client 'a' is nan", "from 0 up"),
        ("a:inf", "client 'a' is inf", "from 0 up"),
        ("a:much", "client 'a' is much", "from 0 up"),
        ([0, 0, 0, 0], "all clients are 0", "counts"),
        ([1, 2], "2 weights for 4 clients", "one number per client"),
        ("a", "'a' is not NAME:WEIGHT", "equal"),
        ("a:1, a:2", "'a' has two weights", "one"),
    ],
)
def test_what_is_refused(given: Any, message: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=message) as told:
        clients().weigh(given)
    assert told.value.hint is not None and hint in told.value.hint


def test_weights_go_along(tmp_path: Path) -> None:
    data = clients().weigh([0, 3, 1, 4])
    assert numbers(data.choose([3, 1])) == pytest.approx([8 / 7, 6 / 7])
    assert numbers(data.publish(torch.zeros(2, 6))) == numbers(data)
    assert numbers(FederatedData.load(data.save(tmp_path / "d.npz"))) == numbers(data)
    assert FederatedData.load(clients().save(tmp_path / "e.npz")).weights is None
    parts = data.weigh("equal").holdout(0.5)
    assert [numbers(part) for part in parts] == [[1, 1], [1, 1]]
    with pytest.raises(ConfigError, match="all clients are 0"):
        data.choose([0])


def test_lazy_populations() -> None:
    def make(number: int) -> tuple[np.ndarray[Any, Any], list[int]]:
        return np.full((2, 3), number, np.float32), [0, 1]

    many = atoll.data.from_function(make, clients=1_000_000, classes=2)
    equal = many.weigh("equal").weights
    assert equal is not None and equal.strides == (0,)  # one number for all of them
    few = many.weigh({"7": 3}).choose([6, 7])
    assert numbers(few) == pytest.approx([0.5, 1.5])


# --- what comes of it ----------------------------------------------------------------------------------------------


def test_fedavg_is_the_mean_by_these_weights() -> None:
    data, given = clients(), [2.0, 0.5, 1.0, 0.0]
    found = state(data.weigh(given), rounds=1, batch_size=None, lr=0.5).params
    start = state(data, rounds=0).params
    wanted = {name: torch.zeros_like(value) for name, value in start.items()}
    for client, weight in enumerate(given):
        model, samples = net(), data.samples(client)
        assert samples is not None
        model.load_state_dict(dict(start))
        nn.functional.cross_entropy(model(samples.inputs), samples.targets).backward()  # type: ignore[no-untyped-call]
        for name, value in model.named_parameters():
            assert value.grad is not None
            wanted[name] += (value.detach() - 0.5 * value.grad) * (weight / 3.5)
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name])


def test_equal_weights_on_equal_sizes_change_nothing() -> None:
    data = clients((18, 18, 18, 18))  # 16 to train on: the sums are those of weight 1, times a power of two
    assert [data.size(k) for k in range(4)] == [16] * 4
    assert same(state(data), state(data.weigh("equal")))


@pytest.mark.parametrize("name", ["scaffold", "feddyn", "qfedavg", "per-fedavg", "pfedme", "pfedhn", "fedmd"])
def test_where_clients_count_alike_equal_weights_change_nothing(name: str) -> None:
    settings = {"steps": 2} if name == "pfedhn" else {}
    one, other = (state(data, name, **settings) for data in (clients(), clients().weigh("equal")))
    for a, b in zip(leaves(one), leaves(other), strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


SERVERS = (
    "fedsgd", "fedavg", "fedavgm", "fedadagrad", "fedadam", "fedyogi", "fedprox", "scaffold", "fednova", "feddyn",
    "qfedavg", "moon", "heterofl", "pfnm", "fedavg-ft", "ditto", "apfl", "pfedme", "per-fedavg", "fedper", "fedrep",
    "fedbabu", "lg-fedavg", "fedproto", "fedmd", "cfl",
)  # fmt: skip
"""Methods whose server does nothing with single replies but average them."""


@pytest.mark.parametrize("name", SERVERS)
def test_a_client_of_weight_zero_counts_for_nothing(name: str) -> None:
    """Whatever it has, the server's state is the same."""
    settings: dict[str, Any] = (
        {"weighting": "samples"} if name == "pfnm" else {"lam": 0.5} if name == "fedproto" else {}
    )
    settings |= {"rates": "1,0.5"} if name == "heterofl" else {}
    shared = ("params", "control", "h", "prototypes", "consensus")
    found = [
        {
            key: value
            for key, value in state(clients(other=other).weigh({"d": 0}), name, **settings).items()
            if key in shared
        }
        for other in (0, 1)
    ]
    for a, b in zip(*(leaves(Record(each)) for each in found), strict=True):
        assert torch.equal(a, b)
    if name in ("fedavg", "fedproto", "scaffold"):  # and would not be, if it counted
        counted = [state(clients(other=other), name, **settings) for other in (0, 1)]
        assert not all(
            torch.equal(a, b)
            for key in found[0]
            for a, b in zip(leaves(counted[0][key]), leaves(counted[1][key]), strict=True)
        )


@pytest.mark.parametrize("name", ALL)
def test_every_method_takes_weights(name: str) -> None:
    settings = {"steps": 2} if name.startswith("pfedhn") else {"distill_steps": 2} if name == "feddf" else {}
    params = state(clients().weigh("a:2, b:0.5, c:0"), name, **settings).params
    assert all(bool(value.isfinite().all()) for value in params.values())


def test_a_prototype_is_the_mean_over_clients_that_count_alike() -> None:
    """A client that is there twice in one counts as one."""
    x, y = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32), np.arange(6) % 3
    z = np.random.default_rng(1).normal(size=(6, 6)).astype(np.float32)
    small = {"a": (x, y), "b": (z, y)}
    large = {"a": (np.concatenate([x, x]), np.concatenate([y, y])), "b": (z, y)}
    found = [
        state(
            atoll.data.from_clients(made, classes=3, test=None).weigh("equal"), "fedproto", rounds=1, lr=1e-9
        )
        for made in (small, large)
    ]
    torch.testing.assert_close(found[0].prototypes, found[1].prototypes)


@pytest.mark.parametrize("engine", ["batched", "processes"])
def test_engines_agree(engine: str) -> None:
    data = clients().weigh({"a": 5, "c": 0.3})
    for name in ("fedavg", "scaffold"):
        one, other = (state(data, name, engine=each, batch_size=4) for each in ("loop", engine))
        for key, value in one.params.items():
            torch.testing.assert_close(value, other.params[key], rtol=1e-5, atol=1e-6)
    plain = state(clients(), engine=engine, batch_size=4)
    assert not torch.allclose(plain.params.flat(), state(data, engine=engine, batch_size=4).params.flat())


def test_training_loss_stays_a_mean_over_samples() -> None:
    one, other = (
        Federation(net, data, rounds=1, cohort=4, engine="loop", device="cpu").fit(progress=False)
        for data in (clients(), clients().weigh("a:9"))
    )
    assert one.rounds[0].loss == other.rounds[0].loss


def test_a_run_is_resumed_with_its_weights_only(tmp_path: Path) -> None:
    def made(given: Any) -> Federation:
        data = clients() if given is None else clients().weigh(given)
        return Federation(
            net, data, rounds=1, cohort=4, engine="loop", device="cpu", runs=str(tmp_path), eval_every=0
        )

    half = made("a:2").fit(progress=False)
    assert half.folder is not None
    partition = next(e for e in half.folder.log().events if e["event"] == "partition")
    assert partition["weights"] == pytest.approx([1.6, 0.8, 0.8, 0.8])
    for other in (None, "a:3"):
        with pytest.raises(ConfigError, match="clients' weights"):
            made(other).resume(half.folder.path)
    same_in_other_units = made({"a": 4, "b": 2, "c": 2, "d": 2}).resume(half.folder.path)
    assert len(same_in_other_units.fit(progress=False).rounds) == 1
