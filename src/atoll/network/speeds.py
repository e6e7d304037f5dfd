"""How quickly nodes send, as their last answers came, and the codecs that a rule chooses by it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from atoll.contract import Job
from atoll.data import FederatedData
from atoll.network.journal import Journal
from atoll.rounds.adapting import Rule, seen
from atoll.tensors import Record

__all__ = ["Speeds"]


@dataclass
class Speeds:
    """What uploads took, written down. What is chosen by it is a fact of its round, the same when that is played again.

    `wanted` is whether anybody looks at it.
    """

    journal: Journal
    wanted: bool = False

    def measured(self, client: int, nbytes: int, seconds: float, before: float) -> None:
        """An answer of so many bytes came in so many seconds, `before` which the node had worked on it."""
        if self.wanted and nbytes > 0:
            rate = nbytes / max(seconds, 1e-6)
            self.journal.put(f"speed/{client}", {"rate": rate, "before": before})

    def chosen(
        self, job: Job, data: FederatedData, rule: Rule, state: Record, codecs: int, deadline: float | None
    ) -> Mapping[int, int]:
        """By client, the codec of a round, as a rule that chooses has it.

        Of whom nothing is known yet takes the smallest.
        """
        key = f"round/{job.round}/codecs"
        known = self.journal.get(key)
        if known is None:
            found = self._chosen(job, data, rule, state, codecs, math.inf if deadline is None else deadline)
            known = {str(client): at for client, at in found.items()}
            self.journal.put(key, known)
        return {int(client): at for client, at in known.items()}

    def _chosen(
        self, job: Job, data: FederatedData, rule: Rule, state: Record, codecs: int, deadline: float
    ) -> dict[int, int]:
        with_each = [
            replace(job, work=job.work.choosing(dict.fromkeys(job.clients, at))) for at in range(codecs)
        ]
        sizes = np.array([[each.nbytes(job.form(k), k) for k in job.clients] for each in with_each], float)
        found = dict(zip(job.clients, sizes.argmin(0).tolist(), strict=True))
        facts = {k: fact for k in job.clients if (fact := self.journal.get(f"speed/{k}")) is not None}
        if facts:
            at = [list(job.clients).index(k) for k in facts]
            rates = np.array([fact["rate"] for fact in facts.values()])
            before = np.array([fact["before"] for fact in facts.values()])
            measured = replace(job, clients=[*facts])
            view = seen(measured, data, fixed=before, deadline=deadline, uploads=sizes[:, at] / rates)
            found |= rule.codecs(state, view)
        return found
