"""What a run goes on from besides the server's state and clients' memories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from atoll.contract import Channel, Method
from atoll.rounds.flights import Flight, of_records, to_records
from atoll.tensors import Record

__all__ = ["Progress"]


@dataclass(frozen=True)
class Progress:
    """Where a run is between two rounds.

    `choice`, `rule`, `told` and `spread` are the states of what chooses cohorts, of what adapts local work, of the
    channel (`Channel.begin`) and of what packs the broadcast (`atoll.channel.Down`). The others are those of the
    virtual clock: `time` in seconds, and when the last round `began`, up to which methods know who has left;
    `flights`, orders that are under way, in the order in which they land,
    `landed`, replies that wait for the server's next step, and `failing`, client -> (how many orders in a row it
    broke off, the round up to which it is not asked).
    """

    choice: Record = field(default_factory=Record)
    rule: Record = field(default_factory=Record)
    told: Record = field(default_factory=Record)
    spread: Record = field(default_factory=Record)
    time: float = 0.0
    began: float = 0.0
    flights: Sequence[Flight] = ()
    landed: Sequence[Flight] = ()
    failing: Mapping[int, tuple[int, int]] = field(default_factory=dict)

    def to_record(self) -> Record:
        """As what a checkpoint holds."""
        rows = [[client, *pair] for client, pair in sorted(self.failing.items())]
        return Record(
            choice=self.choice,
            rule=self.rule,
            told=self.told,
            spread=self.spread,
            time=self.time,
            began=self.began,
            flights=to_records([*self.landed, *self.flights]),
            landed=len(self.landed),
            failing=torch.tensor(rows, dtype=torch.int64) if rows else torch.empty(0, 3, dtype=torch.int64),
        )

    @staticmethod
    def of_record(found: Record, method: Method, channel: Channel | None, seed: int) -> Progress:
        """The inverse of `to_record`."""
        flights = of_records(found.flights, method, channel, seed)
        failing = {client: (count, until) for client, count, until in found.failing.tolist()}
        return Progress(
            found.choice,
            found.rule,
            found.told,
            found.get("spread", Record()),
            found.time,
            found.began,
            flights[found.landed :],
            flights[: found.landed],
            failing,
        )
