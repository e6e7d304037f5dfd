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


SUMS = [name for name, kind in METHODS.items() if issubclass(kind, Decentralised) and not kind.apart]


@pytest.mark.parametrize("name", SUMS)
def test_masked_of_one_peer_and_of_all(name: str) -> None:
    """The whole numbers that peers add up are those of the simulation; whoever is absent, nobody hears one alone."""
    graph = "grid:2" if name == "moshpit" else "exponential"
    method = build_method(name, {"topology": graph, "mixing": "masked"})
    assert isinstance(method, Decentralised)
    state, draw = begun(method, 9), torch.Generator().manual_seed(1)
    for there in (range(9), [0, 2, 3, 5], range(9)):
        replies = replied(state, method, list(there), draw)
        found, new = one_by_one(method, state, replies), method.update(state, replies)
        assert all(same(new, peer, values) for peer, values in found.items())
        for weights in method.exchanges(method.graphs(state), state.round, list(there)):
            assert all(len(weights.hears(peer)) != 1 for peer in range(len(there)))
        state = new


@pytest.mark.parametrize("name", SUMS)
def test_masked_comes_to_what_plain_comes_to(name: str) -> None:
    graph, ends = "grid:2" if name == "moshpit" else "ring", []
    for mixing in ("plain", "masked"):
        method = build_method(name, {"topology": graph, "mixing": mixing})
        assert isinstance(method, Decentralised)
        state, draw = begun(method, 9), torch.Generator().manual_seed(1)
        for _ in range(3):
            state = method.update(state, replied(state, method, list(range(9)), draw))
        ends.append(state)
    plain, masked = ends
    assert (plain.peers.model - masked.peers.model).abs().max() < 1e-5
    assert plain.carried == masked.carried  # 32 bits for a number, as before
