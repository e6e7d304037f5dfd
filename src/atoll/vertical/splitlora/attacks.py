"""Audits: how much of a client's text can be read from the activations that it sends.

Who reads is the server, which has the base, and where adapters are averaged, the clients' adapters as well: it can
compute what a client computes. Targets, which the server is sent in any case, are left out of account here: this is
what a server that is trusted with targets no more (a head at the clients) would still see.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["nearest", "recovered", "search"]


def nearest(h: Tensor, embedding: nn.Module) -> Tensor:
    """The token whose embedding lies nearest each activation, at its place: [b, t].

    h = embedding + what the blocks have added, of which nothing is known here.

    Args:
        h: activations [b, t, d].
        embedding: tokens [b, t] to vectors [b, t, d], with `token`, the table.
    """
    vocabulary = int(embedding.token.num_embeddings)  # type: ignore[union-attr, arg-type]
    every = torch.arange(vocabulary)[:, None].expand(-1, h.shape[1])
    with torch.no_grad():
        known = embedding(every)  # [v, t, d]
        return torch.stack([_closest(h[:, t], known[:, t]) for t in range(h.shape[1])], 1)


def search(h: Tensor, part: nn.Module, vocabulary: int = 256) -> Tensor:
    """The text [b, t] by trying: place after place, the token with which the client's part comes nearest what was sent.

    A causal part's activation at a place follows from the tokens up to it. So with the part at hand and no noise every
    token is found, by `vocabulary` tries each.

    Args:
        h: activations [b, t, d].
        part: the client's: tokens [b, t] to activations [b, t, d].
    """
    found = torch.zeros(h.shape[:2], dtype=torch.int64)
    with torch.no_grad():
        for row in range(len(h)):
            for t in range(h.shape[1]):
                tries = found[row, : t + 1].expand(vocabulary, -1).clone()
                tries[:, t] = torch.arange(vocabulary)
                found[row, t] = _closest(h[row, t][None], part(tries)[:, t])[0]
    return found


def recovered(tokens: Tensor, guess: Tensor) -> float:
    """The share of tokens that a guess has right."""
    return float((tokens == guess).double().mean())


def _closest(h: Tensor, known: Tensor) -> Tensor:
    """For each row of h [b, d] the nearest of the known rows [v, d], by the angle after their mean is taken away."""
    centre = known.mean(0)
    one, other = (nn.functional.normalize(value - centre, dim=1) for value in (h, known))
    return (one @ other.T).argmax(1)
