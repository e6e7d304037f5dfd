"""Neighbours whose data are alike: who they are, what they are told, and what is gained by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import atoll
from atoll.callbacks import Callback
from atoll.contract import Replies
from atoll.errors import ConfigError
from atoll.methods import DPSGD, Fedora
from atoll.topology import figures, related, topology
from tests.methods.driver import Client, Played, network


def groups(*sizes: int) -> list[Client]:
    """Clients of several groups, whose samples lie in other directions and have other labels."""
    draw, clients = torch.Generator().manual_seed(1), []
    for group, size in enumerate(sizes):
        for _ in range(size):
            inputs = 0.2 * torch.randn(12, 6, generator=draw)
            inputs[:, group] += 2
            clients.append(Client(inputs, torch.full((12,), group)))
    return clients


def asked(played: Played, cohort: list[int] | None = None) -> None:
    """New peers tell their sketches."""
    everybody = list(range(len(played.clients)))
    found = played.method.enrol(played.state, cohort or everybody)
    if found is not None:
        new, work = found
        program = played.method.program(work.program)
        each = [played.client(k, program, work.received(k))[0] for k in new]
        played.state = played.method.welcome(played.state, Replies(new, float(len(new)), each=each))


def neighbours(played: Played) -> list[list[int]]:
    method = played.method
    assert isinstance(method, DPSGD)
    (weights,) = method.exchanges(method.graphs(played.state), 0, range(len(played.clients)))
    assert weights.symmetric and weights.doubly
    return [weights.hears(peer) for peer in range(len(played.clients))]


def test_neighbours_are_of_ones_own_group() -> None:
    played = Played(DPSGD(topology="related:2", lr=0.1), network(), groups(3, 4))
    asked(played)
    for peer, heard in enumerate(neighbours(played)):
        assert len(heard) >= 2 and all((peer < 3) == (other < 3) for other in heard)


def test_they_are_fedoras() -> None:
    """Each has those for neighbours that FEDORA would propagate from, and those that would from it."""
    clients = groups(4, 4)
    ours, theirs = (
        Played(DPSGD(topology="related:2"), network(), clients),
        Played(Fedora(top_k=2), network(), clients),
    )
    asked(ours)
    asked(theirs)
    chosen = theirs.state.near.neighbours.tolist()
    for peer, heard in enumerate(neighbours(ours)):
        assert set(heard) == {*chosen[peer], *(other for other in range(8) if peer in chosen[other])}


def test_who_comes_is_placed_and_who_leaves_is_forgotten() -> None:
    played = Played(DPSGD(topology="related:2"), network(), groups(4, 4))
    asked(played, [0, 1, 2, 4, 5, 6])
    assert neighbours(played)[3] == []
    before = neighbours(played)
    asked(played)
    assert 3 in {other for heard in neighbours(played)[:3] for other in heard}
    played.state = played.method.leave(played.state, [3, 7])
    assert neighbours(played) == before
    assert played.method.enrol(played.state, [0, 1, 2]) is None


def test_bytes_of_sketches_are_counted_once() -> None:
    method = DPSGD(topology="related:1", lr=0.1)
    played = Played(method, network(), groups(2, 2))
    asked(played)
    played.round()
    links, model = sum(map(len, neighbours(played))), 4 * played.state.params.size()
    sketch = 4 * (6 + 3)
    assert method.carried(played.state) == 4 * 3 * sketch + links * model
    played.round()
    assert method.carried(played.state) == links * model


@pytest.mark.parametrize("method", ["dpsgd", "gossip", "choco"])
def test_methods_take_it_and_go_on_to_the_bit(method: str, tmp_path: Path) -> None:
    data = atoll.data.load("digits").partition("rotated:6,20,0,5", clients=6, seed=0)

    def made(place: Path | None, *hooks: Callback) -> atoll.Federation:
        return atoll.Federation(
            lambda: atoll.models.mlp(64, 10), data, method, topology="related:2", rounds=3, cohort=4, eval_every=0,
            engine="loop", runs=place, callbacks=[*hooks],
        )  # fmt: skip

    whole = made(None)
    whole.fit(progress=False)
    made(tmp_path, _Stop()).fit(progress=False)
    rest = made(tmp_path).resume()
    assert rest.number == 1
    rest.fit(progress=False)
    assert torch.equal(rest.state.peers.model, whole.state.peers.model)
    assert len(whole.state.links) > 0


class _Stop(Callback):
    def on_round_end(self, federation: atoll.Federation, record: Any) -> None:
        federation.stop()


def test_turned_images_learn_more_from_their_like() -> None:
    """Of twelve peers whose digits are turned by other angles, and a graph of as many links at random."""
    data = atoll.data.load("digits").partition("rotated:12,110,0,29", clients=12, seed=0)

    def accuracy(topology: str) -> float:
        made = atoll.Federation(
            lambda: atoll.models.mlp(64, 10), data, "dpsgd", topology=topology, rounds=10, lr=0.3, batch_size=16,
            epochs=3, eval_every=0,
        )  # fmt: skip
        found = made.fit(progress=False).evaluation
        assert found is not None
        return found.own["accuracy"].mean

    assert accuracy("related:4") > accuracy("regular:4") + 0.05


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(ConfigError, match="below the number of peers"):
        topology("related:4", 4)
    with pytest.raises(ConfigError, match="few coordinates"):
        related("related:2,noise=0.1")
    with pytest.raises(ConfigError, match="follows from data"):
        figures(topology("related:2", 4))
    assert related("ring") is None and related("related:2,16,0.01") == {"k": 2, "dim": 16, "noise": 0.01}
