"""Which clients lie."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from atoll import seeds, spec
from atoll.data import FederatedData
from atoll.errors import ConfigError

__all__ = ["Amount", "drawn"]

Amount = int | float | str | Sequence[str]
"""So many clients, a share of them, or their names (a list, or a text with commas)."""


def drawn(given: Amount, data: FederatedData, seed: int, never: Collection[int] = ()) -> tuple[int, ...]:
    """The clients that lie, ascending: those named, or drawn from the others than `never` at an address of the seed.

    They are the same in all rounds. A text that is a number is one, not a name. Raises ConfigError for more than half
    of the clients, against whom nothing helps, and for names that nobody has.
    """
    amount = _number(given)
    free = len(data) - len(never)
    if amount is None:
        names = spec.items(given, "attackers =") if isinstance(given, str) else [str(name) for name in given]  # type: ignore[union-attr]
        found = sorted({data.position(name) for name in names})
        if idle := [data.names[client] for client in found if client in never]:
            raise ConfigError(
                f"attackers: {idle[0]!s} is a newcomer, and takes part in no round", hint="leave it out"
            )
        count = len(found)
    else:
        count = max(1, round(amount * free)) if isinstance(amount, float) else amount
    if count == 0:
        raise ConfigError("attackers names nobody", hint="leave it out, or set attackers=0.2")
    if 2 * count > free:
        raise ConfigError(
            f"attackers = {given!r} are {count} of {free} clients: against more than half no rule can help",
            hint=f"at most {free // 2}, such as attackers=0.2",
        )
    if amount is None:
        return tuple(found)
    pool = np.setdiff1d(np.arange(len(data)), [*never]) if never else len(data)
    chosen = seeds.rng(seed, "attackers").choice(pool, count, replace=False)
    return tuple(sorted(int(client) for client in chosen))


def _number(given: Amount) -> int | float | None:
    """So many, or a share; None for names."""
    if isinstance(given, int | float):
        return given
    if not isinstance(given, str) or "," in given:
        return None
    try:
        float(given)
    except ValueError:
        return None
    return spec.amount("attackers").read(given.strip(), f"attackers = {given!r}", "such as 4, or 0.2")  # type: ignore[no-any-return]
