"""All attacks on one federation, and what they came to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from atoll.audit.canary import Canaries, plant
from atoll.audit.claims import reported
from atoll.audit.inversion import Inversion, invert
from atoll.audit.membership import Membership, infer
from atoll.audit.skipped import Skipped
from atoll.contract import Method
from atoll.errors import ConfigError, suggest
from atoll.federation import Federation

__all__ = ["ATTACKS", "Audit", "audit", "check"]

ATTACKS = ("inversion", "membership", "canary")


@dataclass(frozen=True)
class Audit:
    """What attacks found; None where one was not tried, and in `skipped` why, if it could not be.

    `epsilon` is what the run reports of itself, `protected` are the transforms of its channel as they are written,
    `summed` tells whether a sum over them is all that the server needs, `rounds` how many had
    been played at its end. An audit that finds nothing proves nothing.
    """

    inversion: Inversion | None
    membership: Membership | None
    canary: Canaries | None
    epsilon: float | None
    protected: list[str]
    summed: bool
    rounds: int
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def leaks(self) -> list[str]:
        """The attacks that succeeded."""
        found = {name: getattr(self, name) for name in ATTACKS}
        return [name for name, each in found.items() if each is not None and each.succeeded]

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        found = {name: getattr(self, name) for name in ATTACKS}
        return {
            **{name: None if each is None else each.to_dict() for name, each in found.items()},
            "epsilon": self.epsilon,
            "protected": self.protected,
            "leaks": self.leaks,
            "rounds": self.rounds,
            "skipped": self.skipped,
        }


def check(name: str) -> None:
    """Raise ConfigError where no attack has that name."""
    if name not in ATTACKS:
        raise ConfigError(f"there is no attack {name!r}", hint=suggest(name, ATTACKS))


def audit(
    federation: Federation,
    attacks: Sequence[str] = ATTACKS,
    *,
    epsilon: float | None = None,
    tell: Callable[[str], object] = lambda _: None,
) -> Audit:
    """Attack a federation as its server could, and as whoever gets the model could.

    "inversion" and "canary" attack its first rounds, played beside it. "membership" attacks its model; a federation
    that has not begun is trained for that.

    Args:
        attacks: which.
        epsilon: what the run claims; by default what it reports.
        tell: hears what takes a moment.

    Raises ConfigError for an unknown attack, and whatever training raises.
    """
    for name in attacks:
        check(name)
    fresh = federation.replace() if federation.number else federation
    claimed = reported(federation) if epsilon is None else epsilon

    def trained() -> Membership:
        if not federation.number:
            federation.fit(progress=False)
        return infer(federation)

    doing: dict[str, tuple[str, Callable[[], Any]]] = {
        "inversion": ("reading samples off updates", lambda: invert(fresh)),
        "canary": ("planting canaries", lambda: plant(fresh, reported=claimed)),
        "membership": ("telling members by their losses", trained),
    }
    found: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    for name, (what, attack) in doing.items():  # membership last: it may train what the others need untrained
        if name in attacks:
            tell(what)
            try:
                found[name] = attack()
            except Skipped as reason:
                skipped[name] = str(reason)
    fresh.engine.close()
    text, method = federation.settings.channel, federation.method
    summed = method.reduction == "mean" and type(method).reducer is Method.reducer
    return Audit(
        found.get("inversion"), found.get("membership"), found.get("canary"), claimed,
        [] if text is None else [each.strip() for each in text.split("|")], summed,
        federation.number,
        {name: skipped[name] for name in ATTACKS if name in skipped},
    )  # fmt: skip
