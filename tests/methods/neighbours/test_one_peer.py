"""A peer that speaks to its neighbours comes to the bits of the simulation."""

from __future__ import annotations

import pytest
import torch

from atoll.assembly import build_method
from atoll.methods import METHODS, Decentralised

from .peers import begun, one_by_one, replied, same

SERVERLESS = [name for name, kind in METHODS.items() if issubclass(kind, Decentralised)]
GRAPHS = ["ring", "exponential", "one-peer", "base:2", "erdos:0.5", "complete", "star", "epidemic:2"]
CASES = [
    (name, graph)
    for name in SERVERLESS
    for graph in (["grid:2"] if name == "moshpit" else GRAPHS)
    if not (graph == "epidemic:2" and name not in ("pushsum", "gossip"))
    and not (graph == "star" and name in ("pushsum", "choco"))
]


@pytest.mark.parametrize(("name", "graph"), CASES)
def test_one_peer_and_all_at_once(name: str, graph: str) -> None:
    """With everybody there, then with some who are not, and with everybody again."""
    method = build_method(name, {"topology": graph})
    assert isinstance(method, Decentralised)
    state, draw = begun(method, 7), torch.Generator().manual_seed(1)
    for there in (range(7), [0, 2, 3, 6], range(7)):
        replies = replied(state, method, list(there), draw)
        found, new = one_by_one(method, state, replies), method.update(state, replies)
        assert all(same(new, peer, values) for peer, values in found.items())
        away = [peer for peer in range(7) if peer not in there]
        assert all(torch.equal(new.peers[n][away], v[away]) for n, v in state.peers.items())
        state = new


@pytest.mark.parametrize("rule", ["clipped:0.5", "trimmed:1"])
def test_rules_of_one_peer_and_of_all(rule: str) -> None:
    method = build_method("dpsgd", {"topology": "regular:4", "mixing": rule})
    assert isinstance(method, Decentralised)
    state, draw = begun(method, 7), torch.Generator().manual_seed(1)
    for _ in range(2):
        replies = replied(state, method, list(range(7)), draw)
        found, state = one_by_one(method, state, replies), method.update(state, replies)
        assert all(same(state, peer, values) for peer, values in found.items())
