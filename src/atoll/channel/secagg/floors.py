"""What a client decides for itself, whatever the server proposes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Protocol

from atoll.channel.secagg.errors import RefusedError
from atoll.channel.secagg.terms import Terms
from atoll.errors import ConfigError

__all__ = ["Floors", "Marks", "MarksInMemory", "once_a_round"]


@dataclass(frozen=True)
class Floors:
    """The least protection with which a client takes part. A server cannot lower it.

    Args:
        cohort: of how many clients a sum must be.
        threshold: shares that must be needed to give back a secret.
        degree: neighbours that a client must have; all others, where there are fewer.
        active: insist on the protocol against a server that lies. There, more than two thirds of the holders of a
            secret must be needed, and a graph that is not complete must follow from randomness that the client knows.
        repeats: whether the update of one round may go into sums of different clients, or change between two sums. Two
            sums that differ by one client give that client away. Once it has agreed to a sum, a client takes part in
            a further attempt of the round only with the same update, for a sum of the same clients.
    """

    cohort: int = 3
    threshold: int = 2
    degree: int = 2
    active: bool = True
    repeats: bool = False

    def check(self, terms: Terms, model: bytes, beacon: bytes | None) -> None:
        """Raises RefusedError for terms below a floor, of another model, or that cannot work.

        `model` is the hash of the model that the client has, `beacon` the randomness that it knows of by itself.
        """
        try:
            terms.check()
        except ConfigError as error:
            raise RefusedError(error.message) from error
        n, k, t = len(terms.nodes), terms.degree, terms.threshold
        complete = k == n - 1
        for what, given, least in (
            ("a number of clients", n, self.cohort),
            ("the threshold", t, self.threshold),
            ("the degree", k, min(self.degree, n - 1)),
        ):
            if given < least:
                raise RefusedError(
                    f"the server proposes {given} as {what}, and this client's floor is {least}"
                )
        if self.active and not terms.active:
            raise RefusedError("the server proposes no consistency check, and this client insists on one")
        if terms.active and 3 * t <= 2 * (k + 1):
            raise RefusedError(
                f"a threshold of {t} among {k + 1} holders is not more than two thirds of them"
            )
        if terms.active and not complete and terms.beacon != beacon:
            raise RefusedError("the graph does not follow from the public randomness that this client knows")
        if terms.model != model:
            raise RefusedError("the server speaks of another model than this client has")


class Marks(Protocol):
    """What a client has done once and must not do again, across restarts."""

    def once(self, what: str, of: bytes) -> bool:
        """Write down that this was done, durably before it returns. False if it was written down before."""
        ...

    def only(self, what: str, of: bytes, value: bytes) -> bool:
        """Write down this value, durably before it returns. False if another one was written down before."""
        ...


@dataclass
class MarksInMemory:
    """Marks of a client that does not outlive its process, as in a simulation."""

    done: dict[tuple[str, bytes], bytes] = field(default_factory=dict)

    def once(self, what: str, of: bytes) -> bool:
        if (what, of) in self.done:
            return False
        self.done[what, of] = b""
        return True

    def only(self, what: str, of: bytes, value: bytes) -> bool:
        return self.done.setdefault((what, of), value) == value


def once_a_round(terms: Terms) -> bytes:
    """What the attempts of one round have in common."""
    return hashlib.sha256(f"{len(terms.run)} {terms.run} {terms.round}".encode()).digest()
