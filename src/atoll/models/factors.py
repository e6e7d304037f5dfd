"""Matrix factorisation with a client a user: what is known of the items, and one user's taste."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atoll.errors import ConfigError

__all__ = ["Factors"]


class Factors(nn.Module):
    """Scores of all items for one user: bias of the item + factors of the item . taste + bias of the user.

    The last layer is the user's (`taste`, with its bias), all before it the items' (`items`, of which the last column
    is the bias): methods that keep the head of a model with the client (`FedPer`, `FedRep`) keep just that, and share
    the items. Koren, Bell and Volinsky, Computer 2009, equation 5.

    What comes in is the user's history, which only says how many lists are asked for.

    Args:
        items: how many items there are.
        rank: factors of an item.
    """

    def __init__(self, items: int, rank: int = 8) -> None:
        super().__init__()
        if items < 2 or rank < 1:
            raise ConfigError(
                f"factors: {items} items and {rank} factors", hint="two items and one factor at least"
            )
        self.items = nn.Embedding(items, rank + 1)
        self.taste = nn.Linear(rank, 1)
        with torch.no_grad():
            self.items.weight.mul_(0.3)
            self.items.weight[:, -1] = 0
            self.taste.weight.copy_(0.1 * torch.randn(1, rank))
            self.taste.bias.zero_()

    def forward(self, history: Tensor) -> Tensor:
        """Histories [b, items] to scores [b, items]."""
        factors, bias = self.items.weight[:, :-1], self.items.weight[:, -1]
        scores: Tensor = self.taste(factors)[:, 0] + bias  # the taste's turn comes last: it is the head
        return scores.expand(history.shape[0], -1)
