"""`atoll privacy`: what noise promises, or how much noise a promise needs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atoll.errors import ConfigError

if TYPE_CHECKING:
    from atoll.privacy import Gaussian

__all__ = ["Question", "answer"]

_PARTS = (0.1, 0.25, 0.5, 0.75, 1.0)  # of the rounds, that are told of


@dataclass(frozen=True)
class Question:
    """What was asked; None where an option was left out."""

    population: int
    cohort: int
    rounds: int
    delta: float
    noise: float | None
    epsilon: float | None
    sampling: str

    def check(self) -> None:
        """Raise ConfigError for what cannot be."""
        from atoll.privacy import check_delta

        for name, value in (
            ("population", self.population),
            ("cohort", self.cohort),
            ("rounds", self.rounds),
        ):
            if value < 1:
                raise ConfigError(
                    f"--{name} cannot be {value}", hint=f"--{name} is a whole number, 1 or more"
                )
        if self.cohort > self.population:
            raise ConfigError(
                f"a cohort of {self.cohort:,} is more than the population of {self.population:,}",
                hint="--cohort is how many take part in a round, --population how many there are",
            )
        if self.sampling not in ("poisson", "fixed"):
            raise ConfigError(
                f"--sampling cannot be {self.sampling!r}",
                hint="poisson: each takes part by a coin of its own; fixed: a cohort of just that size",
            )
        if (self.noise is None) == (self.epsilon is None):
            raise ConfigError(
                "give either --noise or --epsilon",
                hint="--noise Z tells the epsilon of that noise, --epsilon E the noise that it needs",
            )
        for name, given in (("noise", self.noise), ("epsilon", self.epsilon)):
            if given is not None and not 0 < given < math.inf:
                why = (
                    "without noise nothing is promised" if name == "noise" else "a promise is a finite number"
                )
                raise ConfigError(f"--{name} cannot be {given:g}", hint=f"--{name} is above 0: {why}")
        check_delta(self.delta, self.population)

    def event(self, noise: float) -> Gaussian:
        """A round with that noise."""
        from atoll.privacy import Fixed, Gaussian, Poisson

        if self.sampling == "fixed":
            return Gaussian(noise=noise, sampling=Fixed(self.cohort, self.population))
        return Gaussian(noise=noise, sampling=Poisson(self.cohort / self.population))


def answer(question: Question, json: bool) -> None:
    """Print the answer, as text or as one line of JSON."""
    question.check()
    import msgspec

    from atoll import privacy

    if question.noise is not None:
        noise = question.noise
    else:
        assert question.epsilon is not None
        found = privacy.noise(question.epsilon, question.delta, question.event(1.0), rounds=question.rounds)
        noise = math.ceil(found * 10_000) / 10_000  # as it is printed, and still enough
    event = question.event(noise)
    whole = privacy.epsilon([msgspec.structs.replace(event, count=question.rounds)], question.delta)
    if json:
        print(msgspec.json.encode(_facts(question, noise, whole)).decode())
        return
    over = {}
    for rounds in sorted({math.ceil(part * question.rounds) for part in _PARTS}):
        so_far = [msgspec.structs.replace(event, count=rounds)]
        over[rounds] = privacy.epsilon(so_far, question.delta, step=privacy.step_for(whole.epsilon))
    over[question.rounds] = whole
    _show(question, noise, over)


def _facts(question: Question, noise: float, found: Any) -> dict[str, Any]:
    return {
        "epsilon": found.epsilon,
        "noise": noise,
        "delta": question.delta,
        "population": question.population,
        "cohort": question.cohort,
        "rounds": question.rounds,
        "sampling": question.sampling,
        "adjacency": found.adjacency,
        "accountant": found.accountant.lower(),
        "rdp": found.rdp,
        "pld": found.pld,
    }


def _show(question: Question, noise: float, over: dict[int, Any]) -> None:
    last = over[question.rounds]
    print(f"epsilon    {last.epsilon:.4g}  at delta = {question.delta:g}, by {last.accountant}")
    print(f"noise      {noise:.6g}  deviation of what is added to a round's sum, in clips")
    share = f"{question.cohort:,} of {question.population:,} in each of {question.rounds:,} rounds"
    neighbours = {
        "add-remove": "neighbours differ by one client, there or not",
        "replace-one": "neighbours differ by one client, exchanged for another: twice the clip",
    }[last.adjacency]
    print(f"sampling   {question.sampling}, {share}; {neighbours}")
    print("rounds     " + "  ".join(f"{rounds:>9,}" for rounds in over))
    print("epsilon    " + "  ".join(f"{found.epsilon:>9.4g}" for found in over.values()))
    if question.sampling == "fixed":
        print(
            "Poisson sampling, where the size of a cohort is left to chance, is accounted for with far less noise"
        )
