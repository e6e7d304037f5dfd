"""Which part of a reply says how a client's model changed."""

from __future__ import annotations

from typing import Literal, NamedTuple

from atoll.tensors import Record, Tensors

__all__ = ["Change"]


class Change(NamedTuple):
    """How far local training moved a client's model, as its reply tells it.

    `field` of the reply is a difference already, or, with `since`, a whole model: then the change is what it differs
    by from the field `since` of what the client `received`, or of its `memory` where it trains on from that. Drift
    figures look at the change; transforms of a channel that bound, blur or shorten updates act on it.
    """

    field: str
    since: str | None = None
    where: Literal["received", "memory"] = "received"

    def of(self, values: Record, received: Record, memory: Record) -> Tensors | None:
        """The change in a reply with these values; None where it has none (a program that trains nothing).

        Values stacked by client [K, ...] give stacked changes.
        """
        sent = values.get(self.field)
        if not sent:
            return None
        if self.since is None:
            return sent  # type: ignore[no-any-return]
        start = (memory if self.where == "memory" else received)[self.since]
        return Tensors({name: value - start[name] for name, value in sent.items()})

    def put(self, change: Tensors, values: Record, received: Record, memory: Record) -> Record:
        """The inverse of `of`: the values with another change in them."""
        if self.since is None:
            return values.replace(**{self.field: change})
        start = (memory if self.where == "memory" else received)[self.since]
        return values.replace(
            **{self.field: Tensors({name: start[name] + value for name, value in change.items()})}
        )
