"""Data mixing: what sources have of a client's batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import atoll
from atoll import seeds
from atoll.contract import Plan
from atoll.data import Dataset, FederatedData, Samples
from atoll.engines.reading import mixed
from atoll.errors import ConfigError, DataError
from atoll.methods import FedAvg
from atoll.models import mlp

ROLES = ("a", "a", "a", "b", "b", "c") * 8


def roles(natural: str | None = "role") -> Dataset:
    """48 samples of three roles, 24, 16 and 8; a sample's input is its number."""
    x = torch.arange(48.0)[:, None]
    columns = {"role": np.array(ROLES)}
    return Dataset("plays", Samples(x, torch.arange(48) % 2), classes=2, columns=columns, natural=natural)


def shares(mix: str, clients: int = 2) -> list[dict[str, float]]:
    """Each client's shares, by the names of its sources."""
    divided = roles().partition("iid", clients=clients, mix=mix, test=None)
    found = divided.mixture
    assert found is not None
    named = []
    for client in range(clients):
        own = [ROLES[int(row)] for row in divided.samples(client).inputs[:, 0]]  # type: ignore[union-attr]
        assert [sorted(set(own))[at] for at in found.sources[client]] == own
        named.append(dict(zip(sorted(set(own)), found.shares[client].tolist(), strict=True)))
    return named


def test_what_sources_count_for() -> None:
    for found in shares("equal"):
        assert found == pytest.approx(dict.fromkeys("abc", 1 / 3))
    for found in shares("b: 2, c: 0.5"):
        assert found == pytest.approx({"a": 1 / 3.5, "b": 2 / 3.5, "c": 0.5 / 3.5})
    (found,) = shares("temperature:2", clients=1)
    root = np.sqrt([24, 16, 8])
    assert list(found.values()) == pytest.approx((root / root.sum()).tolist())
    (found,) = shares("temperature:1", clients=1)
    assert list(found.values()) == pytest.approx([24 / 48, 16 / 48, 8 / 48])


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=5),
    st.lists(st.floats(0, 1), min_size=5, max_size=5),
    st.integers(1, 9),
    st.integers(1, 12),
    st.integers(0, 2**30),
)
def test_a_round_reads_every_source_to_its_share(
    counts: list[int], weights: list[float], size: int, steps: int, seed: int
) -> None:
    """Up to one sample; no sample of a source twice before all others of it once; full batches."""
    source = np.repeat(np.arange(len(counts)), counts)
    share = np.array(weights[: len(counts)]) + 1e-3
    share /= share.sum()
    plan = Plan(steps=steps, batch_size=size)
    found = mixed(plan, source, share, seeds.rng(seed, "order", 1, 0))
    width = min(size, len(source))
    assert found.index.shape == (steps, width) and bool((found.mask == 1).all())
    read = np.bincount(source[found.index.reshape(-1)], minlength=len(counts))
    assert bool((np.abs(read - share * steps * width) <= 1 + 1e-9).all())
    times = np.bincount(found.index.reshape(-1), minlength=len(source))
    for each in range(len(counts)):
        own = times[source == each]
        assert own.max() - own.min() <= 1


def test_an_epoch_is_as_many_samples_as_there_are() -> None:
    found = mixed(Plan(epochs=2, batch_size=10), np.zeros(24, np.int64), np.ones(1), seeds.rng(0, "order"))
    assert found.index.shape == (6, 10)


@pytest.mark.parametrize("engine", ["batched", "processes"])
def test_engines_read_alike(engine: str) -> None:
    data = roles().partition("iid", clients=3, mix="c:5", test=None)
    plain = roles().partition("iid", clients=3, test=None)

    def learnt(engine: str, data: FederatedData) -> torch.Tensor:
        method = FedAvg(lr=0.01, batch_size=4, steps=5)
        run = atoll.Federation(lambda: mlp(1, 4, 2), data, method, rounds=2, engine=engine, workers=1)
        return torch.cat([p.detach().reshape(-1) for p in run.fit().model.parameters()])

    assert torch.allclose(learnt(engine, data), learnt("loop", data), rtol=0, atol=1e-5)
    assert not torch.allclose(learnt("loop", plain), learnt("loop", data), rtol=0, atol=1e-3)


def test_what_is_no_mixture() -> None:
    for mix, said in {
        "d:2": "there is no source 'd'", "b:-1": "the weight of source 'b' is -1", "2": "names no source",
        "temperature:0.5": "at least 1", "a:0, b:0, c:0": "all sources of client 0",
    }.items():  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            roles().partition("iid", clients=2, mix=mix)
    with pytest.raises(ConfigError, match="every client has but one"):
        roles().partition("natural", mix="equal")
    with pytest.raises(ConfigError, match="does not say where"):
        roles(None).partition("iid", clients=2, mix="equal")
    data = roles().partition("iid", clients=2, mix="equal", test=None)
    with pytest.raises(ConfigError, match="reads some samples more often"):
        atoll.Federation(lambda: mlp(1, 4, 2), data, FedAvg(), rounds=1, dp_sgd="1.0,1.0")


def test_goes_with_the_clients() -> None:
    data = roles().partition("iid", clients=3, mix="c:5", test=None)
    chosen = data.choose([2, 0]).mixture
    assert data.mixture is not None and chosen is not None
    assert chosen == replace(
        data.mixture,
        sources=[data.mixture.sources[2], data.mixture.sources[0]],
        shares=[data.mixture.shares[2], data.mixture.shares[0]],
    )


def test_goes_into_a_file_with_them(tmp_path: Path) -> None:
    data = roles().partition("iid", clients=3, mix="c:5", test=None)
    found = FederatedData.load(data.save(tmp_path / "data.npz")).mixture
    assert data.mixture is not None and found is not None
    assert found.text == data.mixture.text
    for one, other in ((found.sources, data.mixture.sources), (found.shares, data.mixture.shares)):
        for mine, due in zip(one, other, strict=True):
            assert mine.dtype == due.dtype and np.array_equal(mine, due)


def test_a_file_whose_mixture_is_of_other_clients_is_refused(tmp_path: Path) -> None:
    place = roles().partition("iid", clients=3, mix="c:5", test=None).save(tmp_path / "data.npz")
    with np.load(place) as stored:
        arrays = {key: stored[key] for key in stored.files}
    np.savez(place, **{**arrays, "mix.sources": arrays["mix.sources"][1:]})
    with pytest.raises(DataError, match="a mixture of other clients"):
        FederatedData.load(place)
