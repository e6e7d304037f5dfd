"""What is told after every round is what the whole comes to: tight, never too little, and quick."""

from __future__ import annotations

import math
import time

import pytest

from atoll.privacy import Fixed, Gaussian, Laplace, Ledger, Poisson, Skellam, Terms, curves, epsilon
from atoll.privacy.accounting import Accountant, renyi_epsilon
from atoll.privacy.composed import Composition

pytest.importorskip("dp_accounting")

STEP = 1e-3
ROUND = Gaussian(noise=1.0, sampling=Poisson(0.05))
LOCAL = Laplace(noise=20.0)


@pytest.mark.parametrize(
    ("event", "count"), [(ROUND, 40), (Gaussian(noise=3.0, sampling=Poisson(0.3)), 200), (LOCAL, 30)]
)
def test_it_is_what_the_library_composes(event: Gaussian | Laplace, count: int) -> None:
    ours = Composition("add-remove", STEP, 1e-5).epsilon({event: count})
    theirs = curves.loss(event, "add-remove", STEP).self_compose(count).get_epsilon_for_delta(1e-5)
    assert ours == pytest.approx(theirs, abs=1e-6)


def test_different_events_add_up_as_the_library_has_it() -> None:
    events = {ROUND: 20, Gaussian(noise=2.0, sampling=Poisson(0.1)): 30, LOCAL: 5}
    whole = None
    for event, count in events.items():
        part = curves.loss(event, "add-remove", STEP).self_compose(count)
        whole = part if whole is None else whole.compose(part)
    ours = Composition("add-remove", STEP, 1e-5).epsilon(events)
    assert ours == pytest.approx(whole.get_epsilon_for_delta(1e-5), abs=1e-6)


@pytest.mark.parametrize("delta", [1e-3, 1e-6, 1e-10])
@pytest.mark.parametrize("count", [1, 7, 300])
def test_it_is_never_below_the_truth_that_is_known(delta: float, count: int) -> None:
    """Normal noise without sampling has a formula; composed from losses it says a little more, and only a little."""
    event = Gaussian(noise=20.0)
    moved = curves.shift({event: count}, "add-remove")
    assert moved is not None
    truth = curves.exact(moved, delta)
    found = Composition("add-remove", 1e-3, delta).epsilon({event: count})
    assert found is not None
    assert truth <= found <= truth + 1e-3 * truth + 1e-4


def test_the_formula_is_the_one_of_balle_and_wang() -> None:
    def kept(epsilon: float, moved: float) -> float:
        phi = lambda x: math.erfc(-x / math.sqrt(2)) / 2  # noqa: E731
        return phi(moved / 2 - epsilon / moved) - math.exp(epsilon) * phi(-moved / 2 - epsilon / moved)

    for moved in (0.1, 1.0, 5.0):
        assert kept(curves.exact(moved, 1e-5), moved) == pytest.approx(1e-5, rel=1e-6)
    assert curves.exact(0.01, 0.5) == 0.0


# --- round after round ----------------------------------------------------------------------------------------------


def test_round_after_round_it_is_what_all_rounds_come_to() -> None:
    with Ledger.nowhere(Terms(level="user", delta=1e-5, population=1000)) as ledger:
        said = []
        for number in range(1, 61):
            ledger.charge(ROUND, number)
            if number % 9 == 0:
                ledger.charge(LOCAL, number)
            said.append(ledger.at_most())
            if number in (1, 9, 10, 37):
                assert said[-1] == pytest.approx(ledger.spent().epsilon, abs=1e-6)
        spent = ledger.spent()
    assert said == sorted(said)
    assert said[-1] == pytest.approx(spent.epsilon, abs=1e-6)
    assert spent.accountant == "PLD"
    assert spent.rdp is not None
    assert said[-1] < spent.rdp


def test_ten_thousand_rounds_take_milliseconds_each() -> None:
    event, accountant, every = Gaussian(noise=5.0, sampling=Poisson(0.01)), Accountant(1e-5), 0.0
    accountant.told({event: 1})
    for number in range(1, 10_001, 40):
        begun = time.process_time()
        found = accountant.told({event: number})
        every += time.process_time() - begun
    assert found.epsilon == pytest.approx(epsilon([event] * number, 1e-5).epsilon, abs=1e-6)
    assert every / 250 < 0.05


def test_taking_rounds_back_is_noticed() -> None:
    accountant = Accountant(1e-5, STEP)
    accountant.told({ROUND: 50})
    assert accountant.told({ROUND: 10}).epsilon == pytest.approx(
        Accountant(1e-5, STEP).told({ROUND: 10}).epsilon, abs=1e-9
    )


def test_bounds_stand_in_where_there_is_no_distribution() -> None:
    whole = Skellam(deviation=100.0, l1=30.0, l2=10.0)
    for events in ({whole: 3}, {Gaussian(noise=1.0, sampling=Fixed(10, 100_000)): 3}):
        found = Accountant(1e-6).told(events)  # type: ignore[arg-type]
        assert found.epsilon == renyi_epsilon(events, 1e-6)  # type: ignore[arg-type]
        assert found.accountant == "RDP"
    many = {Gaussian(noise=3.0, sampling=Poisson(0.01 + at / 10_000)): 1 for at in range(4)}
    assert Accountant(1e-6, STEP, kinds=3).told(many).pld is None
    assert Accountant(1e-6, STEP, kinds=4).told(many).accountant == "PLD"
