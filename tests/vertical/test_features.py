"""Work on columns: what transforms learn, WOE and IV under encryption, selection, and correlation by shares."""

from __future__ import annotations

import csv
import lzma
import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import kstest

from atoll import codec
from atoll.errors import CodecError, ConfigError, DataError
from atoll.he import SecretHE, keygen
from atoll.he.paillier import Paillier, PaillierSecret
from atoll.he.plain import Plaintext
from atoll.parties import Kind, Link, Played, play
from atoll.vertical.features import (
    Binned,
    Correlations,
    Crypto,
    Impute,
    ManualBins,
    OneHot,
    QuantileBins,
    Selection,
    Standardise,
    binned,
    correlate,
    correlation,
    deal,
    encoded,
    evidence,
    product,
    select_answer,
    select_ask,
    taken,
    vif,
    woe,
    woe_answer,
    woe_ask,
    woe_own,
)
from atoll.vertical.side import FloatArray, Side

DATA = Path(os.environ.get("ATOLL_DATA", "absent")) / "fate-vertical"
real = pytest.mark.skipif(not DATA.exists(), reason="ATOLL_DATA has no fate-vertical")
NAN = math.nan


def read(name: str) -> tuple[Side, Side]:
    """Guest and host, with their rows in one order."""
    sides = []
    for party in ("guest", "host"):
        with lzma.open(DATA / f"{name}_hetero_{party}.csv.xz", "rt") as lines:
            rows = sorted(csv.DictReader(lines), key=lambda row: row["id"])
        columns = tuple(key for key in rows[0] if key not in ("id", "y"))
        x = np.array([[float(row[key]) for key in columns] for row in rows])
        y = np.array([float(row["y"]) for row in rows]) if "y" in rows[0] else None
        sides.append(Side(x, columns, y))
    return sides[0], sides[1]


def side(*columns: list[float], y: list[float] | None = None) -> Side:
    x = np.array(columns, np.float64).T
    names = tuple("abcdefgh"[: len(columns)])
    return Side(x, names, None if y is None else np.array(y, np.float64))


# --- transforms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule",
    [Standardise(), Impute(), Impute("median"), Impute("constant", 7.0), OneHot(("b",)), QuantileBins(3),
     ManualBins({"a": (0.0, 2.0)})],
    ids=lambda rule: rule.name,
)  # fmt: skip
def test_what_is_learned_is_written_and_does_the_same_again(rule: Any) -> None:
    train = side([1, 2, NAN, 4, 8], [1, 1, 3, NAN, 3])
    learned = rule.fit(train)
    again = codec.decode(codec.encode(learned))
    for rows in (train, side([NAN, -3, 2], [3, 9, NAN])):
        one, other = rule.apply(rows, learned), rule.apply(rows, again)
        np.testing.assert_array_equal(one.x, other.x)
        assert one.columns == other.columns and len(one) == len(rows)
    with pytest.raises(DataError, match="not those that were learned from") as caught:
        rule.apply(Side(train.x, ("b", "a")), learned)
    assert "order counts" in str(caught.value.hint)


def test_standardised_columns_have_mean_0_and_deviation_1_and_missing_ones_stay() -> None:
    train = side([1, 2, NAN, 4, 9], [5, 5, 5, 5, 5], [0.1] * 5)
    x = Standardise().apply(train, Standardise().fit(train)).x
    want = np.array([1, 2, 4, 9])
    np.testing.assert_allclose(x[[0, 1, 3, 4], 0], (want - want.mean()) / want.std(), rtol=1e-14)
    assert math.isnan(x[2, 0]) and not x[:, 1:].any()


def test_missing_values_are_replaced_by_what_training_rows_had() -> None:
    train, test = side([1, 2, NAN, 9]), side([NAN, 5])
    for by, value in (("mean", 4.0), ("median", 2.0), ("constant", -1.0)):
        rule = Impute(by, -1.0)  # type: ignore[arg-type]
        assert rule.apply(test, rule.fit(train)).x[:, 0].tolist() == [value, 5]
    with pytest.raises(DataError, match="1 columns have no value") as caught:
        Impute().fit(side([NAN, NAN]))
    assert "a" in str(caught.value.hint) and "column a" not in caught.value.message
    for wrong in ({"by": "mode"}, {"value": NAN}):
        with pytest.raises(ConfigError):
            Impute(**wrong)  # type: ignore[arg-type]


def test_one_hot_columns() -> None:
    train = side([1, 2, 3, 4], [7, 5, NAN, 5])
    rule = OneHot(("b",))
    made = rule.apply(train, rule.fit(train))
    assert made.columns == ("a", "b=5", "b=7", "b=nan")
    assert made.x[:, 1:].tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1], [1, 0, 0]]
    near = side([1, 2], [1234567, 1234568.5])
    assert rule.apply(near, rule.fit(near)).columns[1:] == ("b=1234567", "b=1234568.5")
    new = rule.apply(side([0], [6]), rule.fit(train))
    assert new.x.tolist() == [[0, 0, 0, 0]]
    with pytest.raises(DataError, match="3 values"):
        OneHot(("b",), most=2).fit(train)
    with pytest.raises(ConfigError, match="not there"):
        OneHot(("z",)).fit(train)


# --- bins -------------------------------------------------------------------------------------------------------------

values = st.one_of(st.just(NAN), st.integers(-5, 5).map(float), st.floats(-1e6, 1e6))


@settings(max_examples=80, deadline=None)
@given(st.lists(values, min_size=1, max_size=60), st.integers(2, 8))
def test_quantile_bins_are_in_order_not_empty_and_missing_values_have_their_own(
    column: list[float], count: int
) -> None:
    rows = side(column)
    learned = QuantileBins(count).fit(rows)
    bins = binned(rows, learned)
    codes, x = bins.codes[:, 0], rows.x[:, 0]
    edges = learned.edges["0"].numpy()
    assert (codes[np.isnan(x)] == bins.sizes[0] - 1).all()
    there = ~np.isnan(x)
    assert bins.sizes[0] - 1 <= count
    if there.any():
        assert set(codes[there]) == set(range(len(edges) + 1))
        assert set(edges) <= set(x[there])
    for code, value in zip(codes[there], x[there], strict=True):
        assert code == sum(value > edge for edge in edges)


def test_quantile_bins_of_different_values_have_equal_numbers_of_rows() -> None:
    x = np.random.default_rng(0).normal(size=(1000, 1))
    rows = Side(x, ("a",))
    counts = np.bincount(binned(rows, QuantileBins(10).fit(rows)).codes[:, 0])
    assert counts.tolist() == [100] * 10


def test_manual_bins() -> None:
    rows = side([-1, 0, 0.5, 2, 3, NAN], [1, 2, 3, 4, 5, NAN])
    bins = binned(rows, ManualBins({"a": (0.0, 2.0)}).fit(rows))
    assert bins.codes[:, 0].tolist() == [0, 0, 1, 1, 2, 3] and bins.codes[:, 1].tolist() == [0, 0, 0, 0, 0, 1]
    assert bins.sizes == (4, 2)
    for edges in ((1.0, 1.0), (2.0, 1.0), (NAN,), (math.inf,)):
        with pytest.raises(ConfigError, match="finite and grow"):
            ManualBins({"a": edges})
    with pytest.raises(DataError, match="not there"):
        ManualBins({"z": ()}).fit(rows)
    with pytest.raises(ConfigError, match="2 bins"):
        QuantileBins(1)


# --- weight of evidence -----------------------------------------------------------------------------------------------


def small() -> SecretHE:
    """Paillier's cipher with a key that is too short for anything but tests."""
    return PaillierSecret.generate(256)


def asked(y: FloatArray, *bins: Binned, cipher: Any = None, least: int = 5, answer: Any = "woe") -> Played:
    """The guest and its hosts."""
    used = keygen("none") if cipher is None else cipher
    hosts = tuple(f"host{at}" for at in range(len(bins)))
    roles: dict[str, Any] = {
        name: partial(woe_answer, bins=each, least=least, answer=answer)
        for name, each in zip(hosts, bins, strict=True)
    }
    guest = partial(woe_ask, y=y, cipher=used, hosts=hosts, least=least, answer=answer)
    return play({"guest": guest, **roles}, keep=True)


def formula(codes: NDArray[Any], y: FloatArray) -> tuple[dict[int, float], float]:
    """WOE by bin and IV of one column, as they are written in books."""
    good, bad = float((y == 0).sum()), float((y == 1).sum())
    found, parts = {}, []
    for code in sorted(set(codes.tolist())):
        g, b = float((y[codes == code] == 0).sum()), float((y[codes == code] == 1).sum())
        if not g or not b:
            g, b = g + 0.5, b + 0.5
        found[code] = math.log((g / good) / (b / bad))
        parts.append((g / good - b / bad) * found[code])
    return found, math.fsum(parts)


def columns(rng: np.random.Generator, rows: int, count: int) -> Side:
    """Columns of which the first says something of the label, and some values are missing."""
    x = rng.normal(size=(rows, count))
    y = (x[:, 0] + rng.normal(size=rows) > 0.7).astype(np.float64)
    x[rng.random(x.shape) < 0.1] = NAN
    return Side(x, tuple(f"c{at}" for at in range(count)), y)


@pytest.mark.parametrize("cipher", [keygen("none"), small()], ids=["plain", "small"])
def test_woe_and_iv_are_those_of_the_formula(cipher: Any) -> None:
    data = columns(np.random.default_rng(1), 300, 4)
    y = data.y
    assert y is not None
    y[np.isnan(data.x[:, 2])] = 1.0  # a bin with one class
    bins = binned(data, QuantileBins(6).fit(data))
    host, place = asked(y, bins, cipher=cipher).results["host0"]
    _, begin = bins.flat()
    for column in range(4):
        by_bin, iv = formula(bins.codes[:, column], y)
        assert host.iv[column] == iv
        for code, value in by_bin.items():
            assert host.woe[begin[column] + code] == value
    assert sorted(place.tolist()) == [0, 1, 2, 3]
    own = woe_own(bins, y)
    np.testing.assert_array_equal(own.iv, host.iv)
    np.testing.assert_array_equal(own.woe, host.woe)
    made = encoded(data, bins, host)
    assert made.x[17, 1] == formula(bins.codes[:, 1], y)[0][bins.codes[17, 1]]


@real
def test_woe_and_iv_on_default_credit_are_those_of_the_formula() -> None:
    guest, host = read("default_credit")
    assert guest.y is not None
    bins = binned(host, QuantileBins(10).fit(host))
    played = asked(guest.y, bins)
    learned, place = played.results["host0"]
    want = np.array([formula(bins.codes[:, at], guest.y)[1] for at in range(10)])
    np.testing.assert_array_equal(learned.iv, want)
    np.testing.assert_array_equal(played.results["guest"]["host0"].iv[place], want)
    assert want.max() > 0.3 and want.min() < 0.1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=2, max_size=40))
def test_evidence_of_any_bins(rows: list[tuple[int, bool]]) -> None:
    codes, y = np.array([code for code, _ in rows]), np.array([float(one) for _, one in rows])
    counts = np.bincount(codes, minlength=4)
    ones = np.bincount(codes, weights=y, minlength=4).astype(np.int64)
    if len(set(y)) < 2:
        with pytest.raises(DataError, match="all labels are the same"):
            evidence(counts, ones, np.array([0, 4]))
        return
    found, (by_bin, iv) = evidence(counts, ones, np.array([0, 4])), formula(codes, y)
    assert found.woe is not None
    assert found.woe.tolist() == pytest.approx([by_bin.get(code, 0.0) for code in range(4)], abs=1e-12)
    assert found.iv.tolist() == pytest.approx([iv], abs=1e-12) and iv >= 0


def test_the_guest_is_told_no_order_and_the_host_no_more_than_it_may() -> None:
    data = columns(np.random.default_rng(2), 400, 6)
    assert data.y is not None
    bins = binned(data, QuantileBins(8).fit(data))
    runs = [asked(data.y, bins, answer="iv") for _ in range(3)]
    sent = [next(record for *_, kind, record in run.transcript.said if kind == "woe.bins") for run in runs]
    assert len({tuple(record.rows.tolist()) for record in sent}) == 3
    one = binned(taken(data, np.arange(6) == 1), ManualBins({"c1": (-1.5, -1, -0.3, 0.5, 0.8, 1)}).fit(
        taken(data, np.arange(6) == 1)))  # fmt: skip
    again = [asked(data.y, one).transcript.said[1][3].rows.tolist() for _ in range(3)]
    assert len(set(map(tuple, again))) > 1 and len({tuple(sorted(rows)) for rows in again}) == 1
    places = [run.results["host0"][1].tolist() for run in runs]
    assert any(each != places[0] for each in places)
    for run in runs:
        assert run.results["host0"][0].woe is None
        assert "woe.evidence" not in run.transcript.nbytes()
        assert not any("c0" in str(record) for *_, record in run.transcript.said)
    with pytest.raises(ConfigError, match="not known here"):
        encoded(data, bins, runs[0].results["host0"][0])


def test_sums_do_not_show_which_labels_were_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without fresh randomness the guest finds the product of its own ciphertexts again."""
    data = columns(np.random.default_rng(4), 60, 1)
    assert data.y is not None
    bins = binned(data, ManualBins({"c0": (0.0,)}).fit(data))

    def shown() -> bool:
        cipher = small()
        public = cipher.public
        said = {kind: record for *_, kind, record in asked(data.y, bins, cipher=cipher).transcript.said}
        labels = public.from_bytes(said["woe.labels"].labels.numpy(), "")
        sums = {row.tobytes() for row in said["woe.bins"].sums.numpy()}
        rows = np.flatnonzero(bins.codes[:, 0] == 0)
        guess = public.sum_by_bins(labels, rows, np.zeros(len(rows), int), 1)
        return public.to_bytes(guess)[0].tobytes() in sums

    assert not shown()
    monkeypatch.setattr(Paillier, "rerandomise", lambda self, c: c)
    assert shown()


def test_bins_with_few_rows_are_refused_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    y = np.array([0.0, 1.0] * 10)
    few, enough = (
        Binned(np.array([[0]] * 16 + [[1]] * 4, np.int32), (2,)),
        Binned(np.zeros((20, 1), np.int32), (2,)),
    )
    with pytest.raises(DataError, match="1 bins have fewer than 5 rows"):
        woe_own(few, y)
    with pytest.raises(DataError, match="1 bins have fewer than 5 rows"):
        asked(y, few)
    assert asked(y, few, least=4).results["host0"][0].iv[0] >= 0
    assert asked(y, enough).results["host0"][0].iv[0] == 0
    # A host that does not look is told nothing by the guest.
    real_guard, calls = woe._guard, []

    def once(rows: Any, least: int) -> None:
        calls.append(least)
        if len(calls) > 1:
            real_guard(rows, least)

    monkeypatch.setattr(woe, "_guard", once)
    with pytest.raises(DataError, match="1 bins have fewer"):
        asked(y, few)
    assert calls == [5, 5]


def test_labels_and_answers_that_cannot_be_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    bins = Binned(np.zeros((20, 1), np.int32), (2,))
    with pytest.raises(DataError, match="labels 0 and 1"):
        asked(np.arange(20.0), bins)
    with pytest.raises(CodecError, match="has 10 labels, and there are 20 rows"):
        asked(np.array([0.0, 1.0] * 5), bins)

    monkeypatch.setattr(Plaintext, "rerandomise", lambda self, c: self.add_plain(c, 1))
    with pytest.raises(CodecError, match="not those of the labels"):
        asked(np.array([0.0, 1.0] * 10), bins)


# --- selection --------------------------------------------------------------------------------------------------------


def test_rules_of_selection() -> None:
    figures = np.array([0.5, 0.01, 0.3, 0.3, 0.9])
    for rule, kept in (
        (Selection(least=0.3), [0, 2, 3, 4]),
        (Selection(top=2), [0, 4]),
        (Selection(top=3), [0, 2, 4]),
        (Selection(top=2, most=0.8), [0, 2]),
        (Selection(share=0.6), [0, 2, 4]),
        (Selection(share=0.01), [4]),
        (Selection(top=99), [0, 1, 2, 3, 4]),
    ):
        assert np.flatnonzero(rule.choose(figures)).tolist() == kept
    for wrong in ({}, {"top": 0}, {"share": 0}, {"share": 1.5}):
        with pytest.raises(ConfigError):
            Selection(**wrong)  # type: ignore[arg-type]


def test_columns_of_all_parties_are_chosen_together_and_hosts_hear_of_their_own() -> None:
    data = columns(np.random.default_rng(5), 500, 9)
    y = data.y
    assert y is not None
    data = Side(data.x[:, ::-1].copy(), data.columns)  # the one that tells is the last
    sides = [taken(data, np.isin(np.arange(9), part)) for part in ([0, 1, 2], [3, 4], [5, 6, 7, 8])]
    bins = [binned(each, QuantileBins(5).fit(each)) for each in sides]

    async def guest(link: Link) -> Any:
        hosts = await woe_ask(link, y, keygen("none"), ("one", "two"))
        rule = Selection(top=4)
        return await select_ask(link, woe_own(bins[0], y).iv, {k: v.iv for k, v in hosts.items()}, rule)

    def host(at: int) -> Any:
        async def run(link: Link) -> Any:
            _, place = await woe_answer(link, bins[at])
            return taken(sides[at], await select_answer(link, place)).columns

        return run

    played = play({"guest": guest, "one": host(1), "two": host(2)}, keep=True)
    figures = np.array([formula(codes, y)[1] for each in bins for codes in each.codes.T])
    want = {data.columns[at] for at in np.argsort(-figures)[:4]}
    kept = played.results
    found = {*taken(sides[0], kept["guest"]["guest"]).columns, *kept["one"], *kept["two"]}
    assert found == want and data.columns[8] in kept["two"]


# --- correlation ------------------------------------------------------------------------------------------------------


def correlated(*sides: Side, by: Any = "arbiter") -> Played:
    names = ("guest", *(f"host{at}" for at in range(1, len(sides))))
    shared = {"guest": "guest", "hosts": names[1:]}
    roles: dict[str, Any] = {
        name: partial(correlate, side=each, by=by, **shared) for name, each in zip(names, sides, strict=True)
    }
    if by == "arbiter":
        roles["arbiter"] = partial(deal, **shared)
    return play(roles, keep=True)


def inflation(x: FloatArray) -> FloatArray:
    """1 / (1 - R^2) by least squares of each column on all others."""
    z = x - x.mean(0)
    found = []
    for at in range(z.shape[1]):
        rest = np.delete(z, at, 1)
        left = z[:, at] - rest @ np.linalg.lstsq(rest, z[:, at], rcond=None)[0]
        found.append((z[:, at] ** 2).sum() / (left**2).sum())
    return np.array(found)


@real
def test_pearson_and_vif_on_breast_are_numpys() -> None:
    guest, host = read("breast")
    x = np.concatenate([guest.x, host.x], 1)
    results = correlated(guest, host).results
    found: Correlations = results["guest"]
    assert abs(found.matrix - np.corrcoef(x.T)).max() < 1e-6
    want = inflation(x)
    assert want.max() > 1000
    np.testing.assert_allclose(found.vif, want, rtol=1e-3)
    np.testing.assert_array_equal(results["host1"], found.vif[10:])
    assert found.begin == {"guest": 0, "host1": 10}


@real
def test_pearson_of_three_parties_on_default_credit_is_numpys() -> None:
    guest, host = read("default_credit")
    first = np.arange(10) < 4
    sides = guest, taken(host, first), taken(host, ~first)
    results = correlated(*sides).results
    x = np.concatenate([each.x for each in sides], 1)
    assert abs(results["guest"].matrix - np.corrcoef(x.T)).max() < 1e-6
    np.testing.assert_allclose(results["guest"].vif, inflation(x), rtol=1e-4)
    np.testing.assert_array_equal(results["host2"], results["guest"].vif[17:])


@pytest.mark.parametrize("cipher", ["none", "ou"])
def test_pearson_without_a_dealer_is_numpys(cipher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(11)
    x = rng.normal(size=(60, 8)) @ rng.normal(size=(8, 8))
    x[0, 0] = 50.0  # far out
    cuts = [[0, 1, 2], [3, 4], [5, 6, 7]]
    sides = [Side(x[:, cut], tuple(map(str, cut))) for cut in cuts]
    made: list[Any] = []
    monkeypatch.setattr(correlation, "keygen", lambda name: made.append(keygen(name)) or made[-1])
    played = correlated(*sides, by=Crypto(cipher))
    assert abs(played.results["guest"].matrix - np.corrcoef(x.T)).max() < 1e-6
    np.testing.assert_allclose(played.results["guest"].vif, inflation(x), rtol=1e-3)
    np.testing.assert_array_equal(played.results["host2"], played.results["guest"].vif[5:])
    assert len(made) == 3  # a key for each pair
    said = {
        (sender, receiver)
        for sender, receiver, kind, _ in played.transcript.said
        if kind == "pearson.products"
    }
    assert said == {("host1", "guest"), ("host2", "guest"), ("host2", "host1")}
    kinds = {kind for _, receiver, kind, _ in played.transcript.said if receiver == "host2"}
    assert kinds == {"pearson.sizes", "pearson.encrypted", "pearson.vif"}


def test_products_under_encryption_are_exact() -> None:
    rng = np.random.default_rng(12)
    x, y = (rng.integers(-(1 << 21), 1 << 21, (40, columns)) for columns in (5, 3))
    x, y = (each - np.rint(each.mean(0)).astype(np.int64) for each in (x, y))  # as standardised columns are

    async def ask(link: Link) -> Any:
        return await product.product_ask(link, "q", x, 3, 20, keygen("none"))

    async def answer(link: Link) -> None:
        await product.product_answer(link, "p", y, 5, 20)

    wide = product._Slots.of(40, 5, 20, keygen("none").public)
    assert wide.per > 1 and wide.groups > 1
    np.testing.assert_array_equal(play({"p": ask, "q": answer}).results["p"], x.T @ y)

    with pytest.raises(ConfigError, match="products of 40 rows have"):
        product._Slots.of(40, 5, 20, keygen("none-32").public)


def test_what_is_explained_fully_has_an_infinite_vif() -> None:
    x = np.random.default_rng(6).normal(size=(200, 3))
    guest, host = Side(x, ("a", "b", "c")), Side((x[:, :2] @ [[1.0], [2.0]]), ("d",))
    results = correlated(guest, host).results
    assert np.isinf(results["guest"].vif[[0, 1, 3]]).all() and results["guest"].vif[2] < 1.1
    assert np.isinf(results["host1"]).all()
    np.testing.assert_allclose(vif(np.eye(3)), 1)
    np.testing.assert_allclose(vif(np.array([[1, 0.6], [0.6, 1]])), 1 / 0.64)


def words(played: Played, *kinds: Kind) -> FloatArray:
    """All that was said in those kinds, as shares of the ring."""
    tensors = [
        record.get("words", record.get("rest"))
        for *_, kind, record in played.transcript.said
        if kind in {each.name for each in kinds}
    ]
    ring = torch.cat([each.reshape(-1) for each in tensors]).numpy().view(np.uint64)
    return ring / 2.0**64


@pytest.mark.parametrize(
    "kind", [correlation.MASKED, correlation.SHARE, correlation.TRIPLE], ids=lambda k: k.name
)
def test_masks_and_shares_are_uniform(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(7)
    sides = [Side(rng.normal(size=(60, 30)), tuple(map(str, range(30)))) for _ in range(2)]
    assert kstest(words(correlated(*sides), kind), "uniform").pvalue > 1e-6
    monkeypatch.setattr(
        correlation, "uniform", lambda seed, label, rows, columns: np.zeros((rows, columns), np.uint64)
    )
    assert kstest(words(correlated(*sides), kind), "uniform").pvalue < 1e-9


def test_each_pair_has_masks_of_its_own() -> None:
    rng = np.random.default_rng(8)
    sides = [Side(rng.normal(size=(40, 2)), ("a", "b")) for _ in range(3)]
    sent = [
        record.words for *_, kind, record in correlated(*sides).transcript.said if kind == "pearson.masked"
    ]
    assert len(sent) == 6 and len({each.numpy().tobytes() for each in sent}) == 6
    a, b = (correlation.uniform(b"s", label, 4, 2) for label in ("mask", "share"))
    assert not (a == b).any()


def test_the_dealer_hears_sizes_alone() -> None:
    rng = np.random.default_rng(9)
    sides = [Side(rng.normal(size=(40, 2)), ("a", "b")) for _ in range(3)]
    said = correlated(*sides).transcript.said
    assert {kind for _, receiver, kind, _ in said if receiver == "arbiter"} == {"pearson.sizes"}


@pytest.mark.parametrize("rows", [2, 10, 569, 30_000, 1_000_000, 1 << 30])
def test_sums_stay_in_the_ring(rows: int) -> None:
    assert rows * (2.0 ** correlation.bits(rows) + 1) ** 2 < 2.0**63


def test_columns_that_cannot_be_correlated_are_refused() -> None:
    good = side([1, 2, 3, 5], [2, 1, 2, 2])
    for bad, problem in (
        (side([1, 1, 1, 1]), "1 columns are constant"),
        (side([1, 2, NAN, 1]), "some are missing"),
        (side([1, 2, 3]), "rows"),
        (side(*np.random.default_rng(0).normal(size=(4, 4)).tolist()), "4 columns of 4 rows"),
    ):
        with pytest.raises(DataError, match=problem):
            correlated(good, bad)
    with pytest.raises(ConfigError, match="cannot deal"):
        play({name: partial(correlate, side=good, guest="a", hosts=("b",), by="b") for name in "ab"})
