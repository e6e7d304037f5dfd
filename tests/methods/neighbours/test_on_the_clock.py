"""Peers on the virtual clock: what their links cost, and pairs that wait for nobody."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import atoll
from atoll.callbacks import Callback
from atoll.clock.profiles import MEDIANS
from atoll.contract import Replies, Reply
from atoll.errors import ConfigError
from atoll.methods import ADPSGD, Decentralised, get
from atoll.tensors import Record, Tensors

from .peers import begun

PEERS = 8


def made(method: str, *, peers: int = PEERS, **settings: Any) -> atoll.Federation:
    data = atoll.data.load("digits").partition("iid", clients=peers, seed=0)
    usual = {"rounds": 1, "devices": "equal", "engine": "loop", "eval_every": 0, "steps": 1, "batch_size": 8}
    return atoll.Federation(lambda: atoll.models.mlp(64, 10), data, method, **{**usual, **settings})


# --- links ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("graph", "heard", "sent"),
    [
        ("ring", [2] * 8, [2] * 8),
        ("complete", [7] * 8, [7] * 8),
        ("star", [7, *[1] * 7], [7, *[1] * 7]),
        ("one-peer", [1] * 8, [1] * 8),
    ],
)
def test_a_round_costs_a_peer_what_it_hears_and_sends(graph: str, heard: list[int], sent: list[int]) -> None:
    made_ = made("dpsgd", topology=graph)
    (round,) = made_.fit(progress=False).rounds
    size = 4 * made_.state.params.size()
    assert round.clients["download"] == pytest.approx([n * size / MEDIANS["download"] for n in heard])
    assert round.clients["upload"] == pytest.approx([n * size / MEDIANS["upload"] for n in sent])
    assert sum(round.clients["upload"]) * MEDIANS["upload"] == pytest.approx(round.bytes_up)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("choco", {"codec": "topk:0.01"}), ("tracking", {}), ("gossip", {}), ("pushsum", {"topology": "epidemic:2"}),
        ("moshpit", {"topology": "grid:3"}), ("adpsgd", {"topology": "complete"}), ("diloco", {}), ("d2", {}),
    ],
)  # fmt: skip
def test_all_that_is_sent_takes_time_whatever_the_method(method: str, settings: dict[str, Any]) -> None:
    """Also where some are not there: they cost nothing."""
    for cohort in (PEERS, 5):
        run = made(method, cohort=cohort, rounds=2, **settings).fit(progress=False)
        for round in run.rounds:
            assert sum(round.clients["upload"]) * MEDIANS["upload"] == pytest.approx(round.bytes_up)
            assert sum(round.clients["download"]) * MEDIANS["download"] == pytest.approx(round.bytes_up)


def test_a_complete_graph_takes_longer_than_a_ring() -> None:
    ring, whole = (
        made("dpsgd", topology=graph).fit(progress=False).rounds[0].clock for graph in ("ring", "complete")
    )
    assert ring is not None and whole is not None
    more = 5 * 4 * 650 * (1 / MEDIANS["download"] + 1 / MEDIANS["upload"])
    assert whole.ended - ring.ended == pytest.approx(more)


# --- pairs without rounds ---------------------------------------------------------------------------------------------


def replied(state: Record, method: Decentralised, peer: int, move: float) -> tuple[Reply, Record]:
    """A reply of a peer whose numbers all moved by as much, and what it was sent."""
    sent = method.broadcast(state, [peer]).received(peer)
    floats = Tensors({name: value for name, value in sent.buffers.items() if value.is_floating_point()})
    counters = Tensors({name: value + 1 for name, value in sent.buffers.items() if name not in floats})
    values = Record(params=sent.params.map(lambda v: v + move), buffers=floats, counters=counters)
    one = torch.ones(())
    return Reply(values, one, Record(loss=one, count=one, steps=one)), sent


def test_what_was_learned_counts_on_top_of_what_others_made_of_the_model() -> None:
    method = ADPSGD(topology="complete")
    state = begun(method, 5)
    spread = torch.randn(state.peers.model.shape, generator=torch.Generator().manual_seed(1))
    state = state.replace(peers=state.peers.replace(model=state.peers.model + spread))
    slow, sent = replied(state, method, 2, 0.5)
    for number, peer in enumerate((0, 1, 3, 4, 0, 1)):
        quick, _ = replied(state, method, peer, 0.1)
        before = state.peers.model
        state = method.meet(state, Replies([peer], 1.0, each=[quick]), range(5))
        moved = (state.peers.model - before).abs().amax(1) > 0
        assert moved[peer] and int(moved.sum()) == 2 and state.round == number + 1
        a, b = moved.nonzero().flatten().tolist()
        assert torch.equal(state.peers.model[a], state.peers.model[b])
        assert method.carried(state) == 2 * 4 * (before.shape[1] + state.peers.buffers.shape[1])
        torch.testing.assert_close(state.peers.model.sum(0), before.sum(0) + 0.1, rtol=0, atol=1e-5)
    before = state.peers.model
    late = method.caught_up(state, 2, slow, sent)
    torch.testing.assert_close(late.values.params.flat(), before[2] + 0.5, rtol=0, atol=1e-5)
    state = method.meet(state, Replies([2], 1.0, each=[late]), [1, 2])
    torch.testing.assert_close(state.peers.model[1], (before[1] + before[2] + 0.5) / 2, rtol=0, atol=1e-5)
    assert torch.equal(state.peers.model[1], state.peers.model[2])
    alone, _ = replied(state, method, 3, 0.1)
    assert method.carried(method.meet(state, Replies([3], 1.0, each=[alone]), [3])) == 0


def test_staleness_is_how_many_steps_others_took_meanwhile() -> None:
    """Of C peers with like devices C - 1 on average, each waiting for nobody."""
    run = made("adpsgd", peers=6, pace="pairs", devices="exponential:2", rounds=160, topology="ring").fit(
        progress=False
    )
    clocks = [round.clock for round in run.rounds if round.clock is not None]
    assert np.mean([clock.staleness for clock in clocks[20:]]) == pytest.approx(5, abs=0.5)
    assert clocks[-1].ended == pytest.approx(160 * 2 / 6, rel=0.2)
    assert all(round.bytes_up == 2 * 4 * 650 for round in run.rounds)


class _Stop(Callback):
    def on_round_end(self, federation: atoll.Federation, record: Any) -> None:
        if record.number == 7:
            federation.stop()


def test_a_run_in_pairs_goes_on_to_the_bit_and_in_every_engine(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "pace": "pairs", "devices": "lognormal:1.0 + markov:0.2,0.1", "rounds": 16, "topology": "exponential",
    }  # fmt: skip
    whole = made("adpsgd", **settings)
    whole.fit(progress=False)
    made("adpsgd", runs=tmp_path, callbacks=[_Stop()], **settings).fit(progress=False)
    rest = made("adpsgd", runs=tmp_path, **settings).resume()
    assert rest.number == 7
    rest.fit(progress=False)
    assert torch.equal(rest.state.peers.model, whole.state.peers.model)
    other = made("adpsgd", **{**settings, "engine": "batched"})
    other.fit(progress=False)
    torch.testing.assert_close(other.state.peers.model, whole.state.peers.model, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "pace", "hint"),
    [
        ("dpsgd", "pairs", "method=adpsgd"),
        ("fedavg", "pairs", "method=adpsgd"),
        ("adpsgd", "buffered:2", 'pace="pairs"'),
    ],
)
def test_paces_that_do_not_fit_are_said(method: str, pace: str, hint: str) -> None:
    with pytest.raises(ConfigError) as raised:
        made(method, pace=pace)
    assert hint in str(raised.value)
    assert get("adpsgd").pairwise
