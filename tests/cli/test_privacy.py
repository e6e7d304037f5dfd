"""`atoll privacy`: figures, JSON, and what cannot be asked."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from .conftest import Atoll

PAGE = Path(__file__).parents[2] / "docs" / "privacy.md"
USUAL = {"population": "10000", "cohort": "500", "rounds": "20", "delta": "1e-5", "noise": "1"}


def options(**changes: str | None) -> list[str]:
    found = {name: value for name, value in (USUAL | changes).items() if value is not None}
    return ["privacy", *(word for name, value in found.items() for word in (f"--{name}", value))]


def test_epsilon_of_noise_and_noise_of_epsilon_agree(atoll: Atoll) -> None:
    pytest.importorskip("dp_accounting")
    done = atoll(*options(), "--json")
    assert done.code == 0, done.err
    there = json.loads(done.out)
    assert list(there) == [
        "epsilon", "noise", "delta", "population", "cohort", "rounds", "sampling", "adjacency", "accountant", "rdp",
        "pld",
    ]  # fmt: skip
    assert (there["accountant"], there["sampling"], there["noise"]) == ("pld", "poisson", 1.0)
    assert there["epsilon"] == there["pld"] < there["rdp"]
    back = json.loads(atoll(*options(noise=None, epsilon=str(there["epsilon"])), "--json").out)
    assert back["noise"] == pytest.approx(1.0, abs=2e-3)
    assert back["epsilon"] <= there["epsilon"]


def test_a_fixed_cohort_says_so(atoll: Atoll) -> None:
    pytest.importorskip("dp_accounting")
    out = atoll(*options(sampling="fixed", noise="9")).out
    assert "by RDP" in out
    assert "exchanged for another: twice the clip" in out
    assert "Poisson sampling" in out


def test_the_page_shows_what_is_printed(atoll: Atoll) -> None:
    pytest.importorskip("dp_accounting")
    command, _, shown = PAGE.read_text("utf-8").partition("$ atoll ")[2].partition("```")[0].partition("\n")
    assert atoll(*shlex.split(command)).out == shown


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"noise": "-1"}, "--noise cannot be -1", "above 0"),
        ({"noise": "0"}, "--noise cannot be 0", "without noise nothing is promised"),
        ({"noise": "nan"}, "--noise cannot be nan", "above 0"),
        ({"noise": None, "epsilon": "0"}, "--epsilon cannot be 0", "above 0"),
        ({"noise": None, "epsilon": "inf"}, "--epsilon cannot be inf", "finite"),
        ({"noise": None}, "give either --noise or --epsilon", "--noise Z tells the epsilon"),
        ({"epsilon": "1"}, "give either --noise or --epsilon", "--noise Z tells the epsilon"),
        ({"delta": "1e-4"}, "delta = 0.0001 says nothing about one of 10,000", "1e-05 is usual"),
        ({"delta": "0"}, "delta cannot be 0", "above 0"),
        (
            {"cohort": "10001"},
            "a cohort of 10,001 is more than the population of 10,000",
            "--population how many",
        ),
        ({"cohort": "0"}, "--cohort cannot be 0", "1 or more"),
        ({"rounds": "0"}, "--rounds cannot be 0", "1 or more"),
        ({"population": "-5"}, "--population cannot be -5", "1 or more"),
        ({"sampling": "chance"}, "--sampling cannot be 'chance'", "poisson"),
    ],
)
def test_what_cannot_be_asked(atoll: Atoll, changes: dict[str, str | None], message: str, hint: str) -> None:
    done = atoll(*options(**changes))
    assert (done.code, done.out) == (2, "")
    first, second = done.err.splitlines()
    assert first.startswith("error: ") and message in first
    assert second.startswith(" hint: ") and hint in second


def test_noise_that_would_never_be_enough(atoll: Atoll) -> None:
    pytest.importorskip("dp_accounting")
    done = atoll(*options(noise=None, epsilon="1e-9", delta="1e-12"))
    assert done.code == 2
    assert "no noise up to 100000 clips gives epsilon = 1e-09" in done.err
