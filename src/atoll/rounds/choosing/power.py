"""Of some candidates, those with the largest loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from atoll.errors import ConfigError
from atoll.tensors import Record

from .contract import Ask, Choice, Chosen, Learned, chosen
from .drawing import by_size, changed

__all__ = ["Power"]


@dataclass(frozen=True)
class Power(Choice):
    """Candidates drawn by size, of which those are asked that had the largest loss when they were last asked.

    Cho, Wang and Joshi, "Client Selection in Federated Learning: Convergence Analysis and Power-of-Choice Selection
    Strategies" (arXiv 2010.01243): the variant rpow-d, in which nobody computes a loss for the draw. Who was never
    asked has an infinite one, and comes first; equal losses are put in an order by chance.

    Args:
        candidates: d, at least as many as are asked. As many: the choice `weighted`. More: more bias to large losses.
        most: no client has more samples, as `weighted` has it.
    """

    candidates: int
    most: int | None = None

    name = "power"

    def begin(self, clients: int) -> Record:
        """Everybody's last loss, nan where it is unknown."""
        return Record(loss=torch.full((clients,), torch.nan, dtype=torch.float64))

    def draw(self, state: Record, ask: Ask) -> Chosen:
        """Raises ConfigError where more clients are wanted than there are candidates."""
        if ask.count > self.candidates:
            raise ConfigError(
                f"choose: power draws {self.candidates} candidates, and {ask.count} clients are to be asked",
                hint=f"write power:{ask.count} or more",
            )
        rng = ask.rng()
        drawn = rng.permutation(by_size(ask, rng, self.candidates, self.most))
        loss = np.nan_to_num(state.loss.numpy()[drawn], nan=np.inf, posinf=np.inf)
        return chosen(drawn[np.argsort(-loss, kind="stable")[: ask.count]], state)

    def learn(self, state: Record, learned: Learned) -> Record:
        """Last losses of those whose reply counted."""
        told = learned.told
        return state.replace(loss=changed(state.loss, learned.clients[told], learned.loss[told]))
