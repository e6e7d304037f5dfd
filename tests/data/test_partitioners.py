"""Every partitioner: disjoint, complete, seeded, never empty, and quick to refuse the impossible."""

from collections.abc import Callable

import numpy as np
import pytest
from blobs import blobs
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from atoll.data import (
    IID,
    By,
    ByTime,
    Continuous,
    Dataset,
    Dirichlet,
    DirichletClient,
    ExtendedDirichlet,
    Indices,
    LogNormal,
    Matrix,
    Partitioner,
    Pathological,
    PowerLaw,
    QuantityDirichlet,
    Shards,
    Sizes,
    from_arrays,
    parse_partition,
    partition_names,
)
from atoll.errors import ConfigError, DataError

COMPLETE: list[Callable[[int, float], Partitioner]] = [
    lambda k, a: IID(k),
    lambda k, a: Dirichlet(k, a),
    lambda k, a: Dirichlet(k, a, min_size=2),
    lambda k, a: Dirichlet(k, a, balance=True),
    lambda k, a: DirichletClient(k, a),
    lambda k, a: QuantityDirichlet(k, a),
    lambda k, a: LogNormal(k, a),
    lambda k, a: PowerLaw(k, a),
    lambda k, a: Sizes(k, "linear"),
    lambda k, a: Sizes(k, "square"),
    lambda k, a: Sizes(k, "exponential"),
    lambda k, a: Shards(k, 2),
]
counts = st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(lambda numbers: sum(numbers) >= 2)


def histograms(rows: list[np.ndarray], data: Dataset) -> np.ndarray:
    assert data.classes is not None
    labels = data.train.targets.numpy()
    return np.array([np.bincount(labels[own], minlength=data.classes) for own in rows])


@pytest.mark.parametrize("number", range(len(COMPLETE)))
@settings(max_examples=40, deadline=None)
@given(
    counts=counts,
    clients=st.integers(1, 12),
    alpha=st.sampled_from([1e-9, 0.01, 0.3, 5.0]),
    seed=st.integers(0, 9),
)
def test_rows_are_disjoint_complete_and_seeded(
    number: int, counts: list[int], clients: int, alpha: float, seed: int
) -> None:
    total = sum(counts)
    assume(2 * clients <= total)
    data, rule = blobs(counts), COMPLETE[number](clients, alpha)
    rows = rule.divide(data, seed).train
    assert len(rows) == clients
    assert sorted(np.concatenate(rows).tolist()) == list(range(total))
    assert min(map(len, rows)) >= getattr(rule, "min_size", 1)
    again = rule.divide(data, seed).train
    assert all(np.array_equal(one, other) for one, other in zip(rows, again, strict=True))


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(12, 30), min_size=2, max_size=6),
    clients=st.integers(1, 12),
    k=st.integers(1, 6),
    seed=st.integers(0, 9),
)
def test_k_classes_each(counts: list[int], clients: int, k: int, seed: int) -> None:
    assume(k <= len(counts))
    data = blobs(counts)
    for rule in (
        Pathological(clients, k),
        Pathological(clients, k, spread=0.1),
        ExtendedDirichlet(clients, k, 0.2),
    ):
        rows = rule.divide(data, seed).train
        table = histograms(rows, data)
        assert ((table > 0).sum(1) == k).all()
        holders = (table > 0).sum(0)
        assert holders.max() - holders.min() <= 1
        held = table.sum(0)
        assert ((held == counts) | (holders == 0)).all()
        assert len(np.unique(np.concatenate(rows))) == sum(map(len, rows))


def test_the_seed_decides() -> None:
    data = blobs([50] * 4)
    for build in COMPLETE:
        one, other = (build(5, 0.5).divide(data, seed).train for seed in (0, 1))
        assert any(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_iid_sizes_differ_by_at_most_one() -> None:
    data = blobs([31, 33])
    assert {len(rows) for rows in IID(9).divide(data, 0).train} == {7, 8}
    assert [len(rows) for rows in IID(3, sizes=[1, 20, 5]).divide(data, 0).train] == [1, 20, 5]


def test_dirichlet_goes_from_one_class_to_iid() -> None:
    data = blobs([400] * 5)
    distance = []
    for alpha in (1e-6, 0.3, 1e6):
        report = data.partition(Dirichlet(5, alpha), test=None).report()
        assert report.emd is not None
        distance.append(report.emd.mean())
    assert distance[0] > distance[1] > distance[2]
    even = histograms(Dirichlet(5, 1e6).divide(data, 0).train, data)
    assert np.abs(even - 80).max() <= 2
    one = histograms(Dirichlet(5, 1e-6).divide(data, 0).train, data)
    assert ((one > 390).sum(0) == 1).all()  # each class with one client, but for what fills up the empty ones


def test_dirichlet_shares_have_the_right_spread() -> None:
    data = blobs([2000] * 20)
    alpha, clients = 0.5, 10
    share = histograms(Dirichlet(clients, alpha).divide(data, 3).train, data) / 2000
    expected = (1 / clients) * (1 - 1 / clients) / (clients * alpha + 1)  # variance of one share
    assert share.var() == pytest.approx(expected, rel=0.25)


def test_dirichlet_client_has_equal_sizes_and_its_own_mixture() -> None:
    data = blobs([300] * 5)
    single = histograms(DirichletClient(10, 1e-300).divide(data, 0).train, data)
    assert ((single == 150).sum(1) == 1).all()
    table = histograms(DirichletClient(10, 0.1).divide(data, 0).train, data)
    assert (table.sum(1) == 150).all()
    even = histograms(DirichletClient(10, 1e6).divide(data, 0).train, data)
    assert table[:5].max(1).mean() > 100 > even.max()


def test_dirichlet_balance_keeps_sizes_together() -> None:
    data = blobs([100] * 10)
    plain = [len(rows) for rows in Dirichlet(10, 0.1).divide(data, 0).train]
    balanced = [len(rows) for rows in Dirichlet(10, 0.1, balance=True).divide(data, 0).train]
    assert np.std(balanced) < np.std(plain)


def test_dirichlet_repairs_at_once() -> None:
    data = blobs([100] * 10)
    rows = Dirichlet(100, 1e-3, min_size=10).divide(data, 0).train
    assert [len(own) for own in rows] == [10] * 100


def test_shards_shuffle_inside_the_class() -> None:
    """Rows of one class that come in a meaningful order must not end up in order in the shards."""
    data = from_arrays(np.arange(400.0)[:, None], np.repeat([0, 1], 200))
    division = Shards(10, 2).divide(data, 0)
    for rows in division.train:
        assert len(rows) == 40
        for label in (0, 1):
            own = rows[(rows >= 200) == bool(label)]
            if len(own):
                assert np.ptp(own) > 100
    table = histograms(division.train, data)
    assert set(table.reshape(-1).tolist()) <= {0, 20, 40}


def test_sizes_grow() -> None:
    data = blobs([1000])
    linear = [len(rows) for rows in Sizes(4, "linear").divide(data, 0).train]
    square = [len(rows) for rows in Sizes(4, "square").divide(data, 0).train]
    assert linear == sorted(linear)
    assert linear[3] / linear[0] == pytest.approx(4, rel=0.02)
    assert square[3] / square[0] == pytest.approx(16, rel=0.06)


def columned() -> Dataset:
    x = np.arange(12.0)[:, None]
    who = ["b", "a", None, "b", "a", "10", "9", "b", "", "10", "b", "a"]
    return from_arrays(x, x[:, 0] % 2 == 0, columns={"who": who, "when": -x[:, 0]}, natural="who")


def test_by_column_keeps_unknown_ids_and_orders_names() -> None:
    data = columned()
    division = By().divide(data, 0)
    assert division.names == ["9", "10", "a", "b", "unknown"]
    assert [rows.tolist() for rows in division.train] == [[6], [5, 9], [1, 4, 11], [0, 3, 7, 10], [2, 8]]
    assert By("who", min_size=2).divide(data, 0).names == ["10", "a", "b", "unknown"]
    assert By("who", group=2).divide(data, 0).names == ["9+10", "a+b", "unknown"]
    few = By("who", max_clients=2).divide(data, 0).names
    assert few is not None
    assert len(few) == 2
    assert few == By("who", max_clients=2).divide(data, 0).names


def test_by_time_and_continuous() -> None:
    data = columned()
    assert ByTime("when", 3).divide(data, 0).train[0].tolist() == [11, 10, 9, 8]
    assert Continuous("when", 3).divide(data, 0).train[0].tolist() == [8, 9, 10, 11]
    loose = Continuous("when", 3, strictness=0.0).divide(data, 0).train[0].tolist()
    assert loose != [8, 9, 10, 11]
    line = from_arrays(np.zeros((6, 1)), np.array([0.5, 0.1, 0.3, 0.2, 0.6, 0.4]))
    assert Continuous("target", 2).divide(line, 0).train[0].tolist() == [1, 2, 3]


def test_matrix_and_indices() -> None:
    data = blobs([10, 20], [4, 4])
    table = histograms(Matrix([[0.5, 0.25], [0.5, 0.5]]).divide(data, 0).train, data)
    assert table.tolist() == [[5, 5], [5, 10]]
    fed = data.partition(Indices({"x": [1, 2], "y": [0]}, test=[[0], []], validation=[[], [9]]))
    assert list(fed.names) == ["x", "y"]
    assert [row.tolist() for row in (fed.rows(0), fed.rows(1)) if row is not None] == [[1, 2], [0]]
    assert fed.rows(1, "test") is None
    validation = fed.samples(1, "validation")
    assert validation is not None
    assert validation.inputs[0, 0] == 9


IMPOSSIBLE: list[tuple[Partitioner, str]] = [
    (IID(0), "at least 1"),
    (IID(31), "31 clients"),
    (IID(2, sizes=[5, 26]), "sizes"),
    (Dirichlet(3, 0.0), "alpha"),
    (Dirichlet(3, -1.0), "alpha"),
    (Dirichlet(3, float("nan")), "alpha"),
    (Dirichlet(3, float("inf")), "alpha"),
    (Dirichlet(7, 0.1, min_size=5), "35 samples"),
    (Dirichlet(7, 0.1, min_size=0), "min_size"),
    (DirichletClient(31, 1.0), "31 clients"),
    (ExtendedDirichlet(3, 4, 1.0), "k must"),
    (Pathological(3, 4), "k must"),
    (Pathological(3, 2, spread=0.5), "spread"),
    (Pathological(100, 1), "class"),
    (Shards(20, 2), "more than 30 samples"),
    (Shards(2, 0), "per_client"),
    (QuantityDirichlet(3, 0.0), "alpha"),
    (LogNormal(3, -1.0), "sigma"),
    (PowerLaw(3, -1.0), "exponent"),
    (Sizes(3, "cubic"), "growth"),  # type: ignore[arg-type]
    (By(), "no natural clients"),
    (By("writer"), "no column"),
    (Matrix([[0.5, 0.5]]), "shape"),
    (Matrix([[0.7, 1, 1], [0.7, 0, 0]]), "at most 1"),
    (Matrix([[1, 1, 1], [0, 0, 0]]), "without a sample"),
    (Indices([[0, 1], [1]]), "occur twice"),
    (Indices([[0, 30]]), "of 30"),
    (Indices([[0], []]), "no rows"),
    (Indices([[0.5]]), "whole numbers"),
]


@pytest.mark.parametrize(("rule", "text"), IMPOSSIBLE, ids=lambda value: str(value))
def test_the_impossible_is_refused_at_once(rule: Partitioner, text: str) -> None:
    data = blobs([10, 10, 10])
    with pytest.raises(DataError, match=text) as caught:
        data.partition(rule)
    assert caught.value.hint


def test_label_partitioners_need_labels() -> None:
    line = from_arrays(np.zeros((6, 1)), np.linspace(0, 1, 6))
    with pytest.raises(DataError, match="regression"):
        line.partition("dirichlet:0.3", clients=2)
    sequence = from_arrays(np.zeros((6, 4), dtype=np.int64), np.zeros((6, 4), dtype=np.int64))
    with pytest.raises(DataError, match="sequence"):
        sequence.partition("shards:2", clients=2)
    assert len(sequence.partition("iid", clients=2)) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("iid", IID(8)),
        ("dirichlet:0.3", Dirichlet(8, 0.3)),
        ("dirichlet:0.3,5,true", Dirichlet(8, 0.3, 5, True)),
        ("dirichlet:0.3, min_size=5", Dirichlet(8, 0.3, 5)),
        ("dirichlet-client:1e-2", DirichletClient(8, 0.01)),
        ("extended-dirichlet:2,0.5", ExtendedDirichlet(8, 2, 0.5)),
        ("pathological:3", Pathological(8, 3)),
        ("shards:2", Shards(8, 2)),
        ("lognormal:1", LogNormal(8, 1.0)),
        ("power-law", PowerLaw(8)),
        ("sizes:square", Sizes(8, "square")),
        ("by-time:year", ByTime("year", 8)),
        ("continuous:age,0.5", Continuous("age", 8, 0.5)),
    ],
)
def test_text_stands_for_a_partitioner(text: str, expected: Partitioner) -> None:
    rule = parse_partition(text, 8)
    assert rule == expected
    assert parse_partition(str(rule), 8) == rule


def test_text_without_clients() -> None:
    assert parse_partition("natural") == By()
    assert str(By()) == "natural"
    assert parse_partition("natural:min_size=3") == By(min_size=3)
    assert parse_partition(str(By(min_size=3))) == By(min_size=3)
    assert parse_partition("by:writer,20") == By("writer", 20)
    permuted = parse_partition("dirichlet:0.3+permuted:3,0.75", 8)
    assert str(permuted) == "dirichlet:0.3+permuted:3,0.75"
    assert parse_partition(str(permuted), 8) == permuted
    assert set(partition_names()) >= {"iid", "natural", "dirichlet", "permuted"}


@pytest.mark.parametrize(
    ("text", "clients", "message"),
    [
        ("dirichlett:0.3", 8, "did you mean 'dirichlet'"),
        ("dirichlet", 8, "needs alpha"),
        ("dirichlet:0.3", None, "needs clients"),
        ("dirichlet:big", 8, "not a number"),
        ("dirichlet:0.3,alpah=2", 8, "did you mean 'alpha'"),
        ("dirichlet:0.3,alpha=2", 8, "twice"),
        ("dirichlet:0.3,1,maybe", 8, "true or false"),
        ("iid:3", 8, "takes no arguments"),
        ("by", None, "needs column"),
        ("by:writer", 8, "finds its clients"),
        ("rotated:36", 8, "36 clients"),
        ("iid+noise:1", 8, "cannot follow"),
    ],
)
def test_wrong_text_is_explained(text: str, clients: int | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_partition(text, clients)


def test_partition_refuses_what_is_no_partitioner() -> None:
    data = blobs([10, 10])
    with pytest.raises(ConfigError, match="by a int"):
        data.partition(3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="contradicts"):
        data.partition(IID(3), clients=4)
