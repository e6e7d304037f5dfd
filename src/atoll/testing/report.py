"""What a check of a method came to: one finding for each promise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from atoll.errors import ConfigError, suggest

__all__ = ["CHECKS", "Finding", "Notes", "Report"]

CHECKS: Mapping[str, str] = {
    "settings": "a frozen, hashable dataclass; settings documented, of types that TOML can hold",
    "runs": "rounds and judging play to the end, also with a client of one sample",
    "reads": "programs look only at the splits that they declare",
    "values": "nothing that is handed in is changed in place",
    "draws": "random numbers come from addresses; global random states are left alone",
    "steps": "a step keeps the form of the working state",
    "replies": "replies have the form that was promised, finite numbers, and a weight",
    "rules": "fields have rules that fit, and rules have fields",
    "change": "the declared change is there",
    "memory": "a client's memory keeps one form",
    "codec": "state, payloads, memories and replies survive their bytes",
    "padding": "what stands in padded rows does not matter",
    "by hand": "clients asked alone, in another order and through bytes: the same bits",
    "seed": "same seed, same bits; another seed, other draws",
    "resume": "a run that is broken off and resumed ends with the same bits",
    "batched": "the batched engine agrees with the loop",
    "processes": "worker processes agree with the loop",
}
"""The findings of a report by name, and what each says when all is well."""


@dataclass(frozen=True)
class Finding:
    """One promise of the contract: kept, broken (`problem` says what is wrong and where, `hint` what to do), or not
    looked at (`skipped` says why)."""

    name: str
    problem: str | None = None
    hint: str | None = None
    skipped: str | None = None

    @property
    def ok(self) -> bool:
        """Whether it was looked at and found kept."""
        return self.problem is None and self.skipped is None

    def __str__(self) -> str:
        if self.problem is None:
            return f"not checked: {self.skipped}" if self.skipped else f"ok     {CHECKS[self.name]}"
        return f"WRONG  {self.problem}" + (f"\n{'':18}hint: {self.hint}" if self.hint else "")


@dataclass(frozen=True)
class Report:
    """What a check of a method came to. It prints as a table, a line for each promise."""

    method: str
    findings: tuple[Finding, ...]
    seconds: float = field(default=0.0, compare=False)

    @property
    def ok(self) -> bool:
        """Whether no promise was found broken."""
        return not self.problems

    @property
    def problems(self) -> list[Finding]:
        """The promises that are broken."""
        return [each for each in self.findings if each.problem is not None]

    def __getitem__(self, name: str) -> Finding:
        """The finding of that name.  Raises ConfigError if there is none."""
        for each in self.findings:
            if each.name == name:
                return each
        names = [each.name for each in self.findings]
        raise ConfigError(f"the report has no finding {name!r}", hint=suggest(name, names))

    def __str__(self) -> str:
        wrong = len(self.problems)
        end = "all is well" if not wrong else f"{wrong} of {len(self.findings)} findings are wrong"
        lines = [f"{self.method}: {end} ({self.seconds:.1f} s)"]
        return "\n".join([*lines, *(f"  {each.name:9} {each}" for each in self.findings)])


class Notes:
    """Collects what is wrong while a method is played: the first problem of each name counts."""

    def __init__(self) -> None:
        self.problems: dict[str, Finding] = {}
        self.skipped: dict[str, str] = {}

    def wrong(self, name: str, problem: str, hint: str | None = None) -> None:
        """Note a problem under one of the `CHECKS`."""
        self.problems.setdefault(name, Finding(name, problem, hint))

    def skip(self, name: str, why: str) -> None:
        """Note that something could not be looked at."""
        self.skipped.setdefault(name, why)

    def report(self, method: str, engines: tuple[str, ...], seconds: float) -> Report:
        """All findings in order."""
        asked = [name for name in CHECKS if name not in ("batched", "processes") or name in engines]
        return Report(
            method,
            tuple(self.problems.get(name) or Finding(name, skipped=self.skipped.get(name)) for name in asked),
            seconds,
        )
