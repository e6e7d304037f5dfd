"""Splits inside clients, the official test set, held-out clients, saving, and lazy populations."""

import tracemalloc
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from blobs import blobs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import data as torch_data

from atoll.data import Dataset, FederatedData, from_arrays, from_clients, from_function, load
from atoll.errors import DataError


def rows(fed: FederatedData, split: str) -> list[np.ndarray]:
    found = [fed.rows(client, split) for client in range(len(fed))]
    return [np.zeros(0, dtype=np.int64) if own is None else own for own in found]


@settings(max_examples=30, deadline=None)
@given(
    clients=st.integers(1, 20),
    alpha=st.sampled_from([0.01, 0.3, 100.0]),
    seed=st.integers(0, 99),
    test=st.lists(st.integers(0, 15), min_size=4, max_size=4).filter(any),
)
def test_official_test_is_dealt_completely_and_in_proportion(
    clients: int, alpha: float, seed: int, test: list[int]
) -> None:
    data = blobs([30, 20, 25, 5], test)
    fed = data.partition(f"dirichlet:{alpha}", clients=clients, seed=seed)
    dealt = rows(fed, "test")
    assert fed.pool("test") is data.test
    assert sorted(np.concatenate(dealt).tolist()) == list(range(sum(test)))
    assert data.test is not None
    train, official = data.train.targets.numpy(), data.test.targets.numpy()
    total = np.bincount(train, minlength=4)
    for own, mine in zip(rows(fed, "train"), dealt, strict=True):
        exact = np.bincount(train[own], minlength=4) / total * test
        assert np.abs(np.bincount(official[mine], minlength=4) - exact).max() < 1 + 1e-6
    assert fed.test_set is data.test


@settings(max_examples=30, deadline=None)
@given(clients=st.integers(1, 30), share=st.floats(0.05, 0.9), seed=st.integers(0, 9))
def test_in_client_splits_are_disjoint_and_complete(clients: int, share: float, seed: int) -> None:
    data = blobs([20, 20, 20])
    fed = data.partition("dirichlet:0.1", clients=clients, seed=seed, test=share, validation=0.2)
    whole = data.partition("dirichlet:0.1", clients=clients, seed=seed, test=None)
    for client in range(clients):
        parts = [rows(fed, split)[client] for split in ("train", "validation", "test")]
        assert len(parts[0]) >= 1
        assert np.array_equal(np.sort(np.concatenate(parts)), rows(whole, "train")[client])
        n = whole.size(client)
        assert len(parts[2]) == min(n - 1, round(share * n))


def test_in_client_split_is_stratified() -> None:
    fed = blobs([50, 100]).partition("iid", clients=1, test=0.2, validation=12)
    test, check = fed.samples(0, "test"), fed.samples(0, "validation")
    assert test is not None
    assert check is not None
    assert torch.bincount(test.targets).tolist() == [10, 20]
    assert torch.bincount(check.targets).tolist() == [4, 8]
    assert fed.size(0) == 108


def test_auto_keeps_natural_clients_to_themselves(small: Dataset) -> None:
    small.columns["site"] = np.arange(300) % 3
    fed = small.partition("by:site")
    assert list(fed.names) == ["0", "1", "2"]
    assert fed.pool("test") is small.train
    assert [fed.size(client) for client in range(3)] == [80, 80, 80]
    assert fed.test_set is small.test


def test_without_official_test_the_union_stands_in() -> None:
    fed = blobs([50, 50]).partition("iid", clients=4)
    assert fed.test_set is not None
    assert fed.test_set.count == 20 == sum(len(own) for own in rows(fed, "test"))
    assert blobs([50, 50]).partition("iid", clients=4, test=None).test_set is None


def test_reading_a_client(small: Dataset) -> None:
    fed = small.partition("iid", clients=7, seed=1)
    assert len(fed) == len(fed.names) == 7
    samples = fed.samples(3)
    assert samples is not None
    own = fed.rows(3)
    assert own is not None
    assert samples.inputs[:, 0].tolist() == own.tolist()
    assert samples.count == fed.size(3) == len(own)
    assert own.dtype == np.int64
    assert samples.targets.dtype == torch.int64
    assert fed.samples(3, "validation") is None
    assert fed.example().inputs.shape == (1, 3)
    assert "7 clients" in repr(fed)
    with pytest.raises(IndexError):
        fed.size(7)
    with pytest.raises(DataError, match="no split"):
        fed.samples(0, "valid")


@pytest.mark.parametrize(
    "options", [{"test": 1.5}, {"test": "official"}, {"test": 0}, {"validation": -1}, {"validation": 1.0}]
)
def test_split_settings_are_checked(small: Dataset, options: dict[str, object]) -> None:
    with pytest.raises(DataError, match=r"test must|validation must"):
        small.partition("iid", clients=3, **options)  # type: ignore[arg-type]


def test_holdout_divides_the_clients(small: Dataset) -> None:
    fed = small.partition("iid", clients=10)
    stay, held = fed.holdout(0.3, seed=5)
    assert (len(stay), len(held)) == (7, 3)
    assert sorted([*stay.names, *held.names], key=int) == list(fed.names)
    assert stay.pool() is fed.pool()
    assert held.test_set is small.test
    assert list(fed.holdout(3, seed=5)[1].names) == list(held.names)
    first = stay.rows(0)
    assert first is not None
    assert np.array_equal(first, rows(fed, "train")[int(stay.names[0])])
    for wrong in (0, 10, 1.0):
        with pytest.raises(DataError, match="hold out"):
            fed.holdout(wrong)


@pytest.mark.parametrize("rule", ["dirichlet:0.3", "noise:0.1", "iid+permuted:1,0.5"])
def test_saving_and_loading_gives_the_same(small: Dataset, rule: str, tmp_path: Path) -> None:
    fed = small.partition(rule, clients=6, seed=2, validation=3)
    path = fed.save(tmp_path / "split.npz")
    back = FederatedData.load(path)
    assert list(back.names) == list(fed.names)
    assert (back.classes, back.dataset, back.partition) == (5, "blobs", fed.partition)
    for split in ("train", "validation", "test"):
        for client in range(6):
            one, other = fed.samples(client, split), back.samples(client, split)
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                assert torch.equal(one.inputs, other.inputs)
                assert torch.equal(one.targets, other.targets)
                assert np.array_equal(fed.rows(client, split), back.rows(client, split))  # type: ignore[arg-type]
    assert back.test_set is not None
    assert fed.test_set is not None
    assert torch.equal(back.test_set.inputs, fed.test_set.inputs)
    assert [file.name for file in tmp_path.iterdir()] == ["split.npz"]


def test_loading_explains_what_is_wrong(tmp_path: Path) -> None:
    for content in (None, b"no archive at all", b"PK\x03\x04 cut"):
        path = tmp_path / "broken.npz"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DataError, match="not a saved partition"):
            FederatedData.load(path)
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(DataError, match="not a saved partition"):
        FederatedData.load(tmp_path / "other.npz")


# --- populations on demand ----------------------------------------------------------------------------------


def tiny(client: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full((2 + client % 3, 4), client, dtype=np.float32), np.arange(2 + client % 3)


def test_a_million_clients_take_no_space() -> None:
    tracemalloc.start()
    fed = from_function(tiny, 1_000_000, classes=4, size=lambda client: 2 + client % 3, cache=8)
    assert len(fed) == len(fed.names) == 1_000_000
    assert fed.names[999_999] == "999999"
    assert fed.size(999_998) == 4
    for client in range(0, 1_000_000, 2500):
        samples = fed.samples(client)
        assert samples is not None
        assert samples.inputs[0, 0] == client
    assert fed.report().population == 1_000_000
    assert tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()
    assert fed.pool() is None
    assert fed.rows(0) is None
    assert fed.test_set is None


def test_only_the_last_clients_are_kept() -> None:
    calls: list[int] = []

    def function(client: int) -> dict[str, object]:
        calls.append(client)
        return {"train": tiny(client), "test": tiny(client + 1), "validation": tiny(0)}

    fed = from_function(function, 10, classes=4, cache=2, names=lambda client: f"phone-{client}")
    assert fed.example().inputs.shape == (1, 4)
    assert [fed.size(0), fed.size(1), fed.size(0)] == [2, 3, 2]
    assert calls == [0, 1]
    fed.size(2)
    fed.size(1)
    assert calls == [0, 1, 2, 1]
    test = fed.samples(4, "test")
    assert test is not None
    assert test.count == 4
    stay, held = fed.holdout(4)
    assert len(stay) == 6
    name = held.choose([2, 0]).names[0]
    own = held.choose([2, 0]).samples(0)
    assert own is not None
    assert name == f"phone-{int(own.inputs[0, 0])}"
    with pytest.raises(DataError, match="cannot be saved"):
        fed.save("nowhere.npz")


def test_a_function_may_return_any_dataset() -> None:
    stored = torch_data.TensorDataset(torch.ones(3, 2), torch.tensor([0, 1, 2]))
    for made in (stored, {"train": stored, "test": stored}, [(np.zeros(2), 1)] * 3):
        fed = from_function(lambda client, made=made: made, 9, classes=3)  # type: ignore[misc]
        assert fed.size(8) == 3


def test_lazy_mistakes_name_the_client() -> None:
    with pytest.raises(DataError, match=r"client 3, train: labels must lie in 0..3"):
        from_function(lambda client: (np.zeros((1, 2)), [client + 1]), 9, classes=4).samples(3)
    with pytest.raises(DataError, match="client 2, train: the inputs hold NaN"):
        from_function(lambda client: (np.full((1, 2), np.nan), [0]), 9, classes=4).samples(2)
    with pytest.raises(DataError, match="mapping with keys"):
        from_function(lambda client: {"training": 0}, 9, classes=4).samples(2)
    with pytest.raises(DataError, match="size says 5"):
        from_function(tiny, 9, classes=4, size=5).samples(2)
    with pytest.raises(
        DataError, match="client 0: the targets are whole numbers, such as 0: classes or numbers"
    ):
        from_function(tiny, 9).samples(2)
    with pytest.raises(DataError, match="client 2, train: cannot learn from data of type NoneType"):
        from_function(lambda client: None, 9, classes=4).samples(2)
    with pytest.raises(DataError, match="at least one client"):
        from_function(tiny, 0)
    with pytest.raises(DataError, match="3 names"):
        from_function(tiny, 9, names=["a", "b", "c"])


# --- the report ---------------------------------------------------------------------------------------------


def test_report_measures(small: Dataset) -> None:
    alike = small.partition("dirichlet:1e6", clients=5).report()
    assert alike.counts is not None
    assert alike.emd is not None
    assert alike.js is not None
    assert alike.effective is not None
    assert alike.counts.sum() == 300
    assert alike.emd.max() < 0.05
    assert alike.js.max() < 0.01
    assert alike.effective.min() == pytest.approx(5, rel=0.01)
    assert alike.gini < 0.02
    apart = small.partition("pathological:1", clients=5).report()
    assert apart.emd is not None
    assert apart.js is not None
    assert apart.effective is not None
    assert apart.emd == pytest.approx([1.6] * 5)
    assert apart.effective == pytest.approx([1.0] * 5)
    uneven = from_arrays(np.zeros((10, 1)), np.zeros(10, dtype=int)).partition("iid", clients=1).report()
    assert uneven.gini == 0


def test_report_is_readable(small: Dataset) -> None:
    report = small.partition("dirichlet:0.2", clients=30, seed=4).report()
    text = str(report)
    assert "blobs, dirichlet:0.2" in text
    assert "16 of 30 clients shown" in text
    assert "EMD" in text
    svg = report.plot_svg()
    assert report.counts is not None
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert svg.count("<circle") == np.count_nonzero(report.counts)
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")
    assert "<svg" in report._repr_html_()
    assert report.to_dict()["sizes"] == report.sizes.tolist()


def test_report_of_a_regression() -> None:
    fed = from_arrays(np.zeros((20, 1)), np.linspace(0, 1, 20), name="a<b").partition("sizes", clients=3)
    report = fed.report()
    assert report.counts is None
    assert "size" in str(report)
    assert "a&lt;b" in report.plot_svg()
    ElementTree.fromstring(report.plot_svg())


def test_quickstart() -> None:
    fed = load("digits").partition("dirichlet:0.3", clients=50)
    assert len(fed) == 50
    assert fed.test_set is not None
    assert fed.test_set.count == 355


# --- public data --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("amount", [100, 0.1])
def test_public_samples_are_nobodys(amount: float, tmp_path: Path) -> None:
    whole = load("digits")
    data = whole.partition("dirichlet:0.5", clients=6, seed=3, public=amount)
    assert data.public is not None
    count = len(data.public.inputs)
    assert count == (100 if amount == 100 else round(0.1 * whole.train.count))
    assert sum(data.size(k) for k in range(6)) == whole.train.count - count
    held = {row.numpy().tobytes() for k in range(6) for row in data.samples(k).inputs}  # type: ignore[union-attr]
    known = [row.numpy().tobytes() for row in data.public.inputs]
    everything = [row.numpy().tobytes() for row in whole.train.inputs]
    assert not [row for row in known if row in held and everything.count(row) == 1]
    assert int(data.public.targets.abs().sum()) == 0
    again = whole.partition("dirichlet:0.5", clients=6, seed=3, public=amount)
    assert again.public is not None
    assert torch.equal(again.public.inputs, data.public.inputs)
    for kept in (data.choose([1, 4]), FederatedData.load(data.save(tmp_path / "data.npz"))):
        assert kept.public is not None
        assert torch.equal(kept.public.inputs, data.public.inputs)
        assert kept.samples(0, "public") is not None


def test_public_data_leaves_something_to_the_clients() -> None:
    digits = load("digits")
    with pytest.raises(DataError, match="public = 5000, but digits has"):
        digits.partition("iid", clients=3, public=5000)


def test_many_small_arrays_are_looked_at_by_one_thread() -> None:
    class Watching(torch_data.TensorDataset):
        """Notes how many threads torch has when it is read."""

        def __getitem__(self, at: int) -> tuple[torch.Tensor, ...]:
            seen.append(torch.get_num_threads())
            return super().__getitem__(at)

    seen: list[int] = []
    count = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        made = {name: Watching(torch.ones(4, 3), torch.tensor([0, 1, 0, 1])) for name in "ab"}
        assert len(from_clients(made, test=None)) == 2
        assert seen and set(seen) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(count)
