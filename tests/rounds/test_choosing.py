"""What holds for every choice of clients: who may be asked, the state, the text, and a choice of one's own."""

from __future__ import annotations

import doctest
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll import codec, own, seeds
from atoll.errors import ConfigError
from atoll.rounds.choosing import Ask, Choice, Chosen, Oort, Power, TiFL, Uniform, choice, choices, contract
from atoll.tensors import Record, leaves

from .choosing import ask, learned, played, seconds, sizes

ALL = [
    "uniform", "weighted", "weighted:7", "power:12", "power:12,7", "importance", "importance:1", "fair", "tifl:1",
    "tifl:4", "tifl:4,2,3", "oort", "oort:0.2,blacklist=1",
]  # fmt: skip


def equal(one: Record, other: Record) -> bool:
    pairs = list(zip(leaves(one), leaves(other), strict=True))
    return list(one) == list(other) and all(
        torch.equal(torch.nan_to_num(a, -7), torch.nan_to_num(b, -7))
        if isinstance(a, torch.Tensor)
        else a == b
        for a, b in pairs
    )


# --- who is asked -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ALL)
@settings(max_examples=40)
@given(
    st.lists(st.booleans(), min_size=1, max_size=30),
    st.sets(st.integers(0, 29)),
    st.integers(0, 12),
    st.integers(0, 4),
    st.integers(0, 99),
)
def test_as_many_as_wanted_of_those_that_are_there(
    text: str, members: list[bool], away: set[int], count: int, rounds: int, seed: int
) -> None:
    """Whatever was learned before: nobody who is not there or no member, nobody twice, in order, as many as can be."""
    kind, clients = choice(text), len(members)
    present: Any = clients if all(members) else np.flatnonzero(members)
    state = kind.begin(clients)
    for number in range(1, rounds + 1):
        drawn = kind.draw(state, ask(number, present=clients, count=4, seed=seed))
        state = kind.learn(drawn.state, learned(number, drawn.clients))
    drawn = kind.draw(state, ask(rounds + 1, present=present, count=count, away=sorted(away), seed=seed))
    here = {k for k, member in enumerate(members) if member and k not in away}
    assert set(drawn.clients) <= here
    assert drawn.clients == sorted(set(drawn.clients))
    assert all(type(k) is int for k in drawn.clients)
    if kind.name == "importance":  # drawn with replacement
        assert (len(drawn.clients) > 0) == (min(count, len(here)) > 0) and len(drawn.clients) <= count
        assert drawn.factors is not None and list(drawn.factors) == drawn.clients
    else:
        assert len(drawn.clients) == min(count, len(here)) and drawn.factors is None


@pytest.mark.parametrize("text", ["uniform", "tifl:1"])
@pytest.mark.parametrize("present", [50, np.array([2, 3, 5, 7, 11, 13, 17, 19])], ids=["number", "array"])
@pytest.mark.parametrize("count", [1, 6, 99])
def test_uniform_draws_what_it_always_did(text: str, present: Any, count: int) -> None:
    total = present if isinstance(present, int) else len(present)
    for number in (1, 2, 70):
        drawn = choice(text).draw(choice(text).begin(50), ask(number, present=present, count=count, seed=9))
        due = seeds.rng(9, "cohort", number).choice(present, min(count, total), replace=False)
        assert drawn.clients == sorted(int(k) for k in due)


def test_uniform_takes_those_that_are_there_in_the_order_of_a_larger_draw() -> None:
    away = [k for k in range(100) if k % 5]
    drawn = Uniform().draw(Record(), ask(4, present=100, count=5, away=away))
    rng = seeds.rng(3, "cohort", 4)
    for look in (5, 20, 80):
        found = [int(k) for k in rng.choice(100, look, replace=False) if k % 5 == 0]
        if len(found) >= 5:
            break
    assert drawn.clients == sorted(found[:5])
    assert look > 5  # it had to look again


@pytest.mark.parametrize("text", ALL)
def test_the_same_address_gives_the_same_and_others_do_not(text: str) -> None:
    kind = choice(text)
    state = played(kind, 2)[0]
    draws = [
        kind.draw(state, ask(number, nth=nth, seed=seed)).clients
        for number, nth, seed in [(4, 0, 3), (4, 0, 3), (5, 0, 3), (4, 1, 3), (4, 0, 4)]
    ]
    assert draws[0] == draws[1]
    assert len({tuple(each) for each in draws}) > 2


@pytest.mark.parametrize("text", ["uniform", "weighted:7", "power:12,7", "tifl:1"])
def test_few_of_a_million_are_looked_at(text: str) -> None:
    looked: list[int] = []

    def size(clients: Any) -> Any:
        looked.append(len(clients))
        return sizes(clients)

    def there(clients: Any) -> Any:
        looked.append(len(clients))
        return clients % 3 > 0

    kind = choice(text)
    wide = Ask(1, 0, 3, 10, 10**6, there, size, seconds)
    assert len(kind.draw(kind.begin(10**6), wide).clients) == 10
    assert 10 <= sum(looked) < 500


# --- the state --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ALL)
def test_a_state_is_a_record_of_one_form_that_comes_back_and_goes_on_the_same(text: str) -> None:
    kind = choice(text)
    state = played(kind, 6)[0]
    back = codec.decode(codec.encode(state), codec.Form.of(kind.begin(20)))
    assert equal(state, back)
    for number in range(7, 12):
        drawn, again = (kind.draw(each, ask(number)) for each in (state, back))
        assert drawn.clients == again.clients and drawn.factors == again.factors
        news = learned(number, drawn.clients, accuracy={k: k / 20 for k in range(20)})
        state, back = kind.learn(drawn.state, news), kind.learn(again.state, news)
    assert equal(state, back)


@pytest.mark.parametrize("text", ALL)
def test_states_are_values(text: str) -> None:
    """What was given is left as it was, whatever is drawn and learned."""
    kind = choice(text)
    state = played(kind, 3)[0]
    before = codec.decode(codec.encode(state))
    drawn = kind.draw(state, ask(4))
    between = codec.decode(codec.encode(drawn.state))
    kind.learn(drawn.state, learned(4, drawn.clients))
    assert equal(state, before) and equal(drawn.state, between)


@pytest.mark.parametrize("text", ALL)
def test_replies_that_were_not_used_teach_no_loss(text: str) -> None:
    kind = choice(text)
    drawn = kind.draw(kind.begin(20), ask())
    number = len(drawn.clients)
    news = learned(1, drawn.clients, answered=np.zeros(number, bool))
    silent = learned(1, drawn.clients, np.nan, answered=np.zeros(number, bool))
    assert equal(kind.learn(drawn.state, news), kind.learn(drawn.state, silent))


def test_uniform_and_weighted_keep_nothing() -> None:
    assert not leaves(Uniform().begin(10**6)) and not leaves(choice("weighted").begin(10**6))


# --- the text ---------------------------------------------------------------------------------------------------------


def test_texts() -> None:
    assert choice("uniform") == Uniform()
    assert choice(" power:30 ") == Power(30)
    assert choice("tifl:5,credits=40") == TiFL(5, 40)
    assert choice("oort:alpha=0.5, threshold=100") == Oort(alpha=0.5, threshold=100.0)
    mine = Power(7)
    assert choice(mine) is mine
    for usage, line in choices():
        name = usage.partition("[")[0].partition(":")[0]
        made = choice(name + ":12" * (":" in usage.partition("[")[0]))
        assert made.name == name and len(line) > 30
        assert all(f"{field}: " in (made.__doc__ or "") for field in vars(made)), usage


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("orrt", "unknown choice 'orrt'", "did you mean 'oort'?"),
        (
            "zzz",
            "unknown choice 'zzz'",
            "known: cyclic, fair, importance, oort, poisson, power, tifl, uniform, weighted",
        ),
        ("", "choice '': a name is missing", "known: "),
        ("power", "choice 'power': power needs candidates", "write power:CANDIDATES[,MOST]"),
        ("power:0", "choice 'power:0': candidates = '0' is not a whole number at least 1", "write power:"),
        ("tifl:2,0", "credits = '0' is not a whole number at least 1", "write tifl:TIERS[,CREDITS,EVERY]"),
        ("oort:beta=1", "oort has no setting 'beta'", "known: alpha, blacklist, exploration, threshold"),
        ("importance:0", "even = '0' is not a number above 0 and at most 1", "write importance[:EVEN]"),
        ("uniform:3", "uniform takes no arguments", "write uniform"),
        (7, "choose = 7 is a int", "give a text"),
        (Uniform, "is a ABCMeta", "an object"),
    ],
)
def test_texts_that_name_nothing(text: Any, message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        choice(text)
    assert message in caught.value.message and hint in (caught.value.hint or "")


def test_what_cannot_be_drawn_is_said() -> None:
    with pytest.raises(ConfigError, match="draws 4 candidates, and 5 clients are to be asked"):
        Power(4).draw(Power(4).begin(20), ask())
    with pytest.raises(ConfigError, match=r"has [67] samples, and most = 5"):
        choice("weighted:5").draw(Record(), ask(count=20))
    with pytest.raises(ConfigError, match="nothing is known of their devices"):
        TiFL(2).draw(TiFL(2).begin(20), ask(duration=lambda k: np.zeros(len(k))))


# --- one's own --------------------------------------------------------------------------------------------------------


def test_the_example_in_the_contract() -> None:
    done = doctest.testmod(contract)
    assert done.attempted >= 5 and not done.failed


def test_a_choice_of_ones_own_as_the_documentation_writes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = [each.read_text("utf-8") for each in (Path(__file__).parents[2] / "docs").glob("time*.md")]
    blocks = [part.partition("```")[0] for page in pages for part in page.split("```python\n")[1:]]
    (code,) = (block for block in blocks if "class Quickest" in block)
    module = ModuleType("ofmine")
    monkeypatch.setitem(sys.modules, "ofmine", module)
    exec(code, vars(module))
    with pytest.raises(ConfigError, match="imported only where you name it yourself"):
        choice("ofmine:Quickest")
    own.admit("ofmine:Quickest", "choose")
    kind = choice("ofmine:Quickest")
    assert isinstance(kind, Choice) and isinstance(kind.draw(Record(), ask()), Chosen)
    found = kind.draw(kind.begin(20), ask(away=[0, 8], count=3)).clients
    assert found == [5, 11, 19]  # 1 + 7 k mod 11 is 3, 1 and 2 for them
    module.number = 7  # type: ignore[attr-defined]
    own.admit("ofmine:number", "choose")
    with pytest.raises(ConfigError, match="'ofmine:number' is no choice"):
        choice("ofmine:number")
