"""Steps before a protocol, from a run's file: what they learn, of which rows, and that nothing else is learned."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.errors import ConfigError, DataError
from atoll.tensors import Record
from atoll.vertical import Party, Vertical, Where, fit
from atoll.vertical.features import Impute, QuantileBins, Standardise, binned, encoded, vif, woe_own
from atoll.vertical.features import steps as chain
from atoll.vertical.features.table import FeatureTable
from atoll.vertical.fitting import Fitted, run
from atoll.vertical.protocol import Case
from atoll.vertical.side import FloatArray, Side
from tests.vertical.tables import parties, written

STEPS = "impute:median + onehot + woe:6,rows=4 + select:0.02"


def gaps(count: int = 400) -> dict[str, Party]:
    """Tables of which the host's has gaps, a column of few values, and one that tells nothing."""
    both = parties(count)
    host = both["host"]
    x = host.x.copy()
    x[np.random.default_rng(5).random(x.shape) < 0.1] = np.nan
    x[:, 1] = np.round(host.x[:, 1])
    return {**both, "host": replace(host, x=x)}


def fitted(features: str, protocol: str = "secureboost", both: Any = None, **more: Any) -> Fitted:
    boost = {"trees": 3, "depth": 2, "bins": 8} if protocol == "secureboost" else {}
    return fit(both or gaps(), protocol, features=features, **{"crypto": "none", **boost, **more})


def kept(found: Fitted, name: str, both: dict[str, Party]) -> Side:
    """A party's training rows, as they were before the steps."""
    from atoll.vertical.running import _divided

    rows = found.ended[name].rows
    assert rows is not None
    return both[name].side(rows[_divided(len(rows), 0.2, 0)[0]])


# --- what is learned ------------------------------------------------------------------------------------------------


def test_steps_of_a_party_alone_are_the_transforms_one_after_the_other() -> None:
    both = gaps()
    found = fitted("impute:median + standardise", both=both)
    for name in both:
        side = kept(found, name, both)
        for transform in (Impute("median"), Standardise()):
            side = transform.apply(side, transform.fit(side))
        steps = chain.parse("impute:median + standardise")
        ready = steps.apply(kept(found, name, both), found.halves[name].features)
        assert np.array_equal(ready.x, side.x)
        assert not np.isnan(ready.x).any()


def test_weights_of_evidence_are_those_of_open_labels() -> None:
    both = gaps()
    found = fitted("impute + woe:6,rows=4", both=both)
    y = kept(found, "guest", both).y
    assert y is not None
    for name in both:
        side = kept(found, name, both)
        side = Impute().apply(side, Impute().fit(side))
        bins = QuantileBins(6, 4).fit(side)
        wanted = encoded(side, binned(side, bins), woe_own(binned(side, bins), y, 4))
        ready = chain.parse("impute + woe:6,rows=4").apply(
            kept(found, name, both), found.halves[name].features
        )
        assert np.allclose(ready.x, wanted.x, rtol=0, atol=1e-12)


def test_the_same_is_learned_whatever_the_cipher() -> None:
    own = {"host": Where(onehot=("b1",), edges={"b0": (0.0, 1.0)})}
    found = {crypto: fitted(STEPS, where=own, crypto=crypto) for crypto in ("none", "ou")}
    assert found["none"].plan.adding == "none"
    for name in ("guest", "host"):
        assert str(found["none"].halves[name].features) == str(found["ou"].halves[name].features)
        assert str(found["none"].halves[name].model) == str(found["ou"].halves[name].model)
    learned = found["ou"].halves["host"].features["2"]
    assert learned.edges["0"].tolist() == [0.0, 1.0]
    assert set(found["ou"].figures["bytes"]) >= {"woe.labels", "woe.bins", "woe.evidence", "select.kept"}
    said = {count.kind: count for count in found["ou"].transcript.counts()}
    assert said["woe.labels"].messages == 1  # a selection after `woe` takes what that has found
    assert said["woe.labels"].under == "ou-2048"
    assert {c.under for c in found["none"].transcript.counts() if c.kind.startswith("woe")} == {None}


def test_columns_are_selected_by_what_they_tell() -> None:
    both = gaps()
    found = fitted("impute + select:0.2", both=both)
    y = kept(found, "guest", both).y
    assert y is not None
    for name in both:
        side = kept(found, name, both)
        side = Impute().apply(side, Impute().fit(side))
        known = woe_own(binned(side, QuantileBins(10, 5).fit(side)), y, 5).iv
        stay = found.halves[name].features["1"].kept.numpy()
        assert stay.tolist() == (known >= 0.2).tolist()
    assert not found.halves["host"].features["1"].kept.all()
    # Of its own columns' evidence a host learns IV alone, and nobody names a column.
    assert "woe.evidence" not in found.figures["bytes"]


def test_rows_that_are_judged_on_change_nothing_that_is_learned() -> None:
    both = gaps()
    first = fitted(STEPS, both=both)
    rows = first.ended["host"].rows
    assert rows is not None
    from atoll.vertical.running import _divided

    held = rows[_divided(len(rows), 0.2, 0)[1]]
    x = both["host"].x.copy()
    x[held] = 1000.0
    again = fitted(STEPS, both={**both, "host": replace(both["host"], x=x)})
    assert str(again.halves["host"]) == str(first.halves["host"])
    assert str(again.halves["guest"]) == str(first.halves["guest"])
    assert again.figures["test"] != first.figures["test"]


def test_a_guest_without_columns_has_those_of_hosts_selected() -> None:
    both = gaps()
    guest = replace(both["guest"], x=both["guest"].x[:, :0], columns=())
    found = fitted("impute + woe + select:top=1", both={**both, "guest": guest})
    assert found.halves["host"].features["2"].kept.tolist() == [True, False, False]


def test_linear_models_and_networks_have_steps_too() -> None:
    for protocol, more in (("glm", {"arbiter": True, "epochs": 3}), ("splitnn", {"epochs": 1})):
        found = fitted("impute + woe:5", protocol, **more)
        assert found.figures["auc"] > 0.8
    two = {"guest": Where(), "host": Where()}
    assert Vertical(protocol="splitnn", party=two).adding == "ou"
    approximate = Vertical(protocol="glm", party={**two, "arbiter": Where()})
    assert (approximate.cipher, approximate.adding) == ("ckks", "ou")  # which cannot add whole numbers


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=60), st.integers(2, 8), st.integers(1, 9))
def test_bins_that_are_too_small_are_joined(values: list[int], count: int, least: int) -> None:
    x = np.array(values, np.float64)[:, None]
    side = Side(x, ("a",))
    learned = QuantileBins(count, least).fit(side)
    found = binned(side, learned)
    sizes = np.bincount(found.codes[:, 0], minlength=found.sizes[0] - 1)[: found.sizes[0] - 1]
    assert sizes.sum() == len(x)
    assert len(sizes) == 1 or sizes.min() >= least
    plain = QuantileBins(count).fit(side).edges["0"].tolist()
    assert set(learned.edges["0"].tolist()) <= set(plain)


def test_evidence_is_of_the_columns_that_are_selected() -> None:
    """What was known of columns is not taken for what is known of those that a step has made of them."""
    where = {"host": Where(onehot=("b1",))}
    found = fitted("impute + woe:4 + onehot + select:top=2", where=where)
    assert len(found.halves["host"].features["3"].kept) > 3
    said = {count.kind: count for count in found.transcript.counts()}
    assert said["woe.labels"].messages == 2


def test_selected_columns_are_those_that_were_looked_at() -> None:
    both = gaps()
    learned = fitted("select:top=2", both=both).halves["host"].features
    host = both["host"].side(np.arange(9))
    assert chain.parse("select:top=2").apply(host, learned).x.shape[0] == 9
    with pytest.raises(DataError, match="columns"):
        chain.parse("select:top=2").apply(replace(host, columns=("b0", "b2", "b1")), learned)


def test_transfer_learns_evidence_of_the_rows_that_all_have() -> None:
    both = gaps(120)
    host = both["host"]
    more = replace(
        host, ids=(*host.ids, *(f"alone {at}" for at in range(50))),
        x=np.concatenate([host.x, np.full((50, host.x.shape[1]), 99.0)]),
    )  # fmt: skip
    found = fitted("impute:0 + woe:3", "ftl", {**both, "host": more}, epochs=1)
    learned = found.halves["host"].features["1"]
    assert all(float(each.max()) < 99 for each in learned.edges.values() if len(each))


# --- from a file ----------------------------------------------------------------------------------------------------


def file(place: Path, features: str, own: str = "", protocol: str = "secureboost", **given: Any) -> Path:
    path = written(place, protocol, **given)
    text = path.read_text().replace("[party.host]\n", f"[party.host]\n{own}\n")
    head, _, tail = text.partition(f"[{protocol}]\n")
    table = "[features]\n" + features if features else ""
    path.write_text(head + table + (f"\n[{protocol}]\n" if protocol != "features" else "\n") + tail)
    return path


def test_a_file_with_steps_repeats_itself_and_goes_on(tmp_path: Path) -> None:
    own = 'onehot = ["b2"]\nedges = { b0 = [0.0, 1.5], "b1" = [0.5] }'
    source = file(tmp_path, 'steps = "onehot:most=300 + woe:6 + select:top=3"', own, trees=4, bins=8)
    plan = replace(Vertical.read(source), runs=str(tmp_path / "runs"), keep="all")
    again = tmp_path / "again.toml"
    again.write_text(plan.to_toml())
    assert Vertical.read(again) == plan
    assert plan.fingerprint() != replace(plan, features="onehot + woe:6").fingerprint()
    assert plan.fingerprint() != replace(plan, ecdh="nacl").fingerprint()
    other = replace(plan, party={**plan.party, "host": replace(plan.party["host"], onehot=())})
    assert other.fingerprint() == plan.fingerprint()  # what a party's table says nobody else knows

    plain = replace(other, features="woe:6 + select:top=3")
    found = run(plain)
    assert found.folder is not None
    for number in (3, 4):
        shutil.rmtree(found.folder.path / f"checkpoints/round-{number:05d}")
    resumed = run(plain, resume="last")
    assert {name: str(half) for name, half in resumed.halves.items()} == {
        name: str(half) for name, half in found.halves.items()
    }
    assert "woe.labels" not in resumed.figures["bytes"]  # it was learned before


@pytest.mark.parametrize(
    ("features", "own", "sets", "problem"),
    [
        ('steps = "imputes"', "", [], "unknown features 'imputes'"),
        ('steps = "impute:max"', "", [], "by = 'max' is not mean, median or a number"),
        ('steps = "woe + "', "", [], "a name is missing"),
        ('steps = "select"', "", [], "a selection needs a rule"),
        ('steps = "woe:1"', "", [], "bins = '1' is not a whole number"),
        ('steps = "woe:10001"', "", [], "bins = '10001' is not a whole number"),
        ('steps = "woe:5,rows=0"', "", [], "rows = '0' is not a whole number"),
        ('steps = "impute:nan"', "", [], "by = 'nan' is not mean, median or a number"),
        ('steps = "impute:inf"', "", [], "by = 'inf' is not mean, median or a number"),
        ('steps = "select:share=1.5"', "", [], "share = '1.5' is not a number"),
        ('steps = "select:share=0"', "", [], "share = '0' is not a number"),
        ('steps = "select:top=0"', "", [], "top = '0' is not a whole number"),
        ('steps = "onehot:1"', 'onehot = ["b0"]', [], "most = '1' is not a whole number"),
        ('steps = "woe"', "", ["task=regression"], "woe needs two classes"),
        ('steps = "woe"', 'onehot = ["b0"]', [], r"\[party.host\] has onehot, and no step is"),
        (
            'steps = "impute"',
            "edges = { b0 = [1.0] }",
            [],
            r"\[party.host\] has edges, and no step makes bins",
        ),
        ("bins = 3", "", [], "unknown key 'features.bins'"),
        ('steps = "impute"', "", ["protocol=psi"], "protocol = 'psi' looks at ids alone"),
    ],
)
def test_steps_that_cannot_be_done_are_refused(
    tmp_path: Path, features: str, own: str, sets: list[str], problem: str
) -> None:
    source = file(tmp_path, features, own)
    with pytest.raises(ConfigError, match=problem) as told:
        Vertical.read(source, sets)
    assert told.value.hint


def test_what_does_not_fit_columns_is_said() -> None:
    with pytest.raises(ConfigError, match="1 columns are not there"):
        fitted("onehot", where={"host": Where(onehot=("b9",))})
    with pytest.raises(DataError, match="1 columns are not there"):
        fitted("woe", where={"host": Where(edges={"b9": (1.0,)})})
    few = gaps()
    x = np.nan_to_num(few["host"].x)
    x[:2, 0] = np.nan
    with pytest.raises(DataError, match="fewer than 5 rows"):
        fitted("woe", both={**few, "host": replace(few["host"], x=x)}, test=0.0)


# --- the table ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("crypto", "by"), [("none", "cipher"), ("ou", "cipher"), ("ou", "dealer")])
def test_a_table_of_columns_is_that_of_joined_ones(crypto: str, by: str) -> None:
    both = gaps(160)
    found = fitted("impute", "features", both, crypto=crypto, by=by, arbiter=by == "dealer")
    sides = []
    for name in both:
        rows = found.ended[name].rows
        assert rows is not None
        side = both[name].side(rows)  # all: nothing is judged
        sides.append(Impute().apply(side, Impute().fit(side)))
    y = sides[0].y
    assert y is not None
    iv = [woe_own(binned(side, QuantileBins(10, 5).fit(side)), y, 5).iv for side in sides]
    joined = np.hstack([side.x for side in sides])
    matrix = np.corrcoef(joined.T)
    guest, host = (found.ended[name].known for name in both)
    assert guest is not None
    assert host is not None
    assert guest.columns == ("a0", "a1", "host.0", "host.1", "host.2")
    assert host.columns == ("b0", "b1", "b2")
    assert np.allclose(host.figures["iv"], iv[1])
    assert np.allclose(host.figures["vif"], vif(matrix)[2:], atol=1e-5)
    # The guest has the same columns under one numbering, whichever figure it is.
    order = np.array(
        [0, 1, *(2 + np.array([list(iv[1]).index(each) for each in near(guest.figures["iv"][2:], iv[1])]))]
    )
    assert np.allclose(guest.figures["iv"], np.concatenate(iv)[order])
    assert np.allclose(guest.figures["vif"], vif(matrix)[order], atol=1e-5)
    assert guest.correlations is not None
    assert np.allclose(guest.correlations, matrix[np.ix_(order, order)], atol=1e-5)
    assert host.correlations is None
    with pytest.raises(ConfigError, match="learns no model that predicts rows"):
        found.predict(both)  # nobody looks at ids for it


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"bins": 1}, "bins = 1 must be 2 or more"),
        ({"rows": 0}, "rows = 0 must be 1 or more"),
        ({"tells": "all"}, "tells = 'all' is none of iv, woe"),
        ({"by": "hand"}, "by = 'hand' is none of cipher, dealer"),
        ({"correlations": False}, "nothing is left to find"),
    ],
)
def test_a_table_that_cannot_be_found_is_refused(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as told:
        FeatureTable(**given).check(Case("regression", 1, "ou", hosts=("host",)))
    assert told.value.hint


def test_a_table_has_a_cipher_that_can_be() -> None:
    with pytest.raises(ConfigError, match="bits are a multiple of 32"):
        FeatureTable().check(Case("binary", 2, "ou-9", hosts=("host",)))


def near(values: FloatArray, known: FloatArray) -> FloatArray:
    return known[np.abs(values[:, None] - known).argmin(1)]


def test_a_table_comes_from_a_file_and_stands_in_the_result(tmp_path: Path) -> None:
    plan = Vertical.read(
        file(tmp_path, 'steps = "impute"\nbins = 4\ncorrelations = false', protocol="features")
    )
    assert (plan.features, plan.given) == ("impute", {"bins": 4, "correlations": False})
    again = tmp_path / "again.toml"
    again.write_text(plan.to_toml())
    assert Vertical.read(again) == plan
    found = run(replace(plan, runs=str(tmp_path / "runs")))
    assert found.folder is not None
    last = (found.folder.path / "events.jsonl").read_text().splitlines()[-1]
    assert (
        '"features":[{"party":"guest","columns":["a0","a1","host.0","host.1","host.2"],"figures":{"iv":['
        in last
    )
    assert isinstance(found.halves["host"], Record)
    assert not {"pearson.own", "pearson.vif"} & set(found.figures["bytes"])
