"""Clients that come late, and clients that leave: who is asked, who is judged, and what is kept of them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import atoll
from atoll import Federation, models
from atoll.data import FederatedData
from atoll.errors import ConfigError
from atoll.rounds.membership import Membership
from atoll.tensors import leaves as leaves_of


def digits(clients: int = 10) -> FederatedData:
    return atoll.data.load("digits").partition("dirichlet:1.0", clients=clients, validation=0.2)


TEN = digits()


def federation(method: str = "fedavg", **settings: Any) -> Federation:
    settings = {"rounds": 4, "cohort": 10, "engine": "loop", "device": "cpu", "lr": 0.1, **settings}
    return Federation(lambda: models.mlp(64, 8, 10), TEN, method, **settings)


def test_rounds_of_named_clients() -> None:
    found = Membership(TEN, 0, joins={TEN.names[2]: 3, 5: 4}, leaves={2: 6, 7: 2})
    assert [found.absent(round) for round in range(1, 8)] == [
        [2, 5],
        [2, 5, 7],
        [5, 7],
        [7],
        [7],
        [2, 7],
        [2, 7],
    ]
    assert found.leaving(6) == [2]
    assert found.leaving(5) == []


@given(st.integers(0, 3), st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_drawn_clients_are_as_many_as_asked_and_do_one_thing_only(
    newcomers: int, early: int, late: int, seed: int
) -> None:
    found = Membership(TEN, seed, newcomers, joins=f"{early}@3, 1@5", leaves=f"{late}@4")
    groups = (set(found.newcomers), set(found.joins), set(found.leaves))
    assert [len(group) for group in groups] == [newcomers, early + 1, late]
    assert len(set.union(*groups)) == sum(map(len, groups))
    for round in range(1, 8):
        here = set(range(10)) - set(found.absent(round))
        assert here == {k for k in range(10) if found.there(k, round)}
        assert len(here) == 10 - newcomers - (early + 1) * (round < 3) - (3 <= round < 5) - late * (
            round >= 4
        )


@given(st.integers(0, 99))
def test_who_is_named_is_not_drawn_as_well(seed: int) -> None:
    found = Membership(TEN, seed, newcomers=3, joins={1: 3, 2: 5}, leaves="4@4")
    groups = ({1, 2}, set(found.newcomers), set(found.leaves))
    assert len(set.union(*groups)) == 2 + 3 + 4


def test_a_share_is_of_all_clients() -> None:
    assert len(Membership(TEN, 0, joins="0.3@2").joins) == 3


def test_cohorts_and_judgements_follow() -> None:
    run = federation(joins={1: 3}, leaves={8: 4}, newcomers=1, cohort=9)
    apart = run.membership.newcomers[0]
    assert apart not in (1, 8)
    present = [{*range(10)} - gone for gone in ({1, apart}, {1, apart}, {apart}, {8, apart})]
    for record, here in zip(run.fit().rounds, present, strict=True):
        assert set(record.cohort) == here
        assert record.evaluation is not None
        assert set(record.evaluation.each["clients"]["accuracy"]) == here


@pytest.mark.parametrize("method", ["fedora", "fedamp", "heurfedamp", "fedfomo"])
def test_what_the_server_keeps_of_a_client_goes_with_it(method: str) -> None:
    stays, goes = federation(method), federation(method, leaves={3: 4})
    stays.fit()
    goes.fit()
    assert "3" in stays.state.models
    assert "3" not in goes.state.models
    assert stays.memories.get(3) is not None
    assert goes.memories.get(3) is None  # its own model it takes along
    assert set(goes.state.models) == set(stays.state.models) - {"3"}


def test_nothing_changes_before_somebody_comes_or_goes() -> None:
    plain, other = federation("fedora", cohort=4), federation("fedora", cohort=4, leaves="4@4")
    for each in (plain, other):
        for _ in range(3):
            each.round()
    assert [r.cohort for r in plain.history] == [r.cohort for r in other.history]
    for a, b in zip(leaves_of(plain.state), leaves_of(other.state), strict=True):
        assert bool((a == b).all()) if hasattr(a, "all") else a == b


def test_a_cohort_is_at_most_everybody() -> None:
    run = federation(leaves="7@3").fit()
    assert [len(record.cohort) for record in run.rounds] == [10, 10, 3, 3]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"joins": "6"}, "is not CLIENTS@ROUND"),
        ({"joins": "six@3"}, "clients = 'six' is not a whole number"),
        ({"leaves": "2.5@3"}, "clients = '2.5' is not a whole number above 0 or a share"),
        ({"joins": "3@1"}, "the first round in which somebody can is 2"),
        ({"leaves": {0: 1}}, "the first round in which somebody can is 2"),
        ({"joins": "8@3", "newcomers": 3}, "only 7 of the 10 clients"),
        ({"joins": {0: 5}, "leaves": {0: 4}}, "before it joins"),
        ({"leaves": "10@3"}, "nobody is there in round 3"),
        ({"leaves": {"nobody": 3}}, "there is no client 'nobody'"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        federation(**settings)


def test_an_experiment_says_it_in_a_word() -> None:
    made = atoll.Experiment.read(
        data="digits", clients=8, method="fedora", validation=0.2, rounds=3, cohort=8, joins="2@2", leaves="1@3",
        engine="loop", runs=None,
    ).build()  # fmt: skip
    assert [len(record.cohort) for record in made.fit().rounds] == [6, 8, 7]
