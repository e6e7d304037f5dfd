"""What each method without a server must do: identities, optima of peers that disagree, masses, failures, lies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import atoll
from atoll.errors import ConfigError
from atoll.methods import Decentralised, FedAvg, FedSGD, get
from atoll.optimizers import SGD
from atoll.tensors import Record
from atoll.topology import Mixture
from tests.methods.driver import Client, Played, blobs, line, network, quadratic

from .peers import begun, replied


def peers(name: str, **settings: Any) -> Decentralised:
    made = get(name)(**settings)
    assert isinstance(made, Decentralised)
    return made


def models(played: Played) -> Tensor:
    """All peers' models in rows."""
    method = played.method
    assert isinstance(method, Decentralised)
    return method.start(played.state.peers)


DYADIC = [quadratic(a, b) for a, b in ((2.0, -1.0), (8.0, 3.0), (2.0, 5.0), (8.0, -2.0))]
"""Peers whose gradients, sums and quarters are exact in double precision for a few rounds."""


# --- identities -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("graph", ["complete", "star"])
def test_one_step_on_the_complete_graph_is_fedsgd_to_the_bit(graph: str) -> None:
    """Where no sum is rounded: peers step and then average, FedSGD averages gradients and then steps."""
    ours = Played(peers("dpsgd", topology=graph, lr=1 / 16, batch_size=None), line(), DYADIC).rounds(6)
    theirs = Played(FedSGD(lr=1 / 16), line(), DYADIC).rounds(6)
    assert torch.equal(models(ours), theirs.params.expand(4, 1))


@pytest.mark.parametrize("graph", ["complete", "star"])
def test_the_star_is_fedavg(graph: str) -> None:
    """Of clients that count alike, whatever their local work: with the mean of all, at all, after each round."""
    local: dict[str, Any] = {"lr": 0.3, "epochs": 2, "batch_size": 4, "momentum": 0.5}
    clients = blobs(12, 12, 12, 12, 12)
    ours = Played(peers("dpsgd", topology=graph, **local), network(normalised=True), clients).rounds(4)
    theirs = Played(FedAvg(**local), network(normalised=True), clients).rounds(4)
    for row in models(ours):
        torch.testing.assert_close(row, theirs.params, rtol=0, atol=1e-6)
    buffers, theirs_buffers = ours.method.model(ours.state)[1], theirs.state.buffers
    for name, value in theirs_buffers.items():
        torch.testing.assert_close(buffers[name], value, rtol=1e-6, atol=1e-6)


def test_full_batches_on_the_complete_graph_are_descent_on_the_mean_of_gradients() -> None:
    """Which is what DistributedDataParallel does, with a worker for each peer."""
    task, clients = network(), blobs(9, 9, 9)
    ours = Played(peers("dpsgd", topology="complete", lr=0.4, batch_size=None), task, clients).rounds(5)
    theirs = Played(FedSGD(lr=0.4), task, clients).rounds(5)
    torch.testing.assert_close(models(ours)[1], theirs.params, rtol=0, atol=1e-6)


def test_all_have_one_model_after_each_round_of_a_complete_graph() -> None:
    played = Played(peers("dpsgd", topology="complete", lr=0.3), network(), blobs(7, 5, 9)).rounds(2)
    rows = models(played)
    assert torch.equal(rows[0], rows[1]) and torch.equal(rows[0], rows[2])


def test_an_outer_step_of_one_is_dpsgd() -> None:
    clients = blobs(8, 8, 8, 8)
    one = Played(peers("diloco", outer_lr=1.0, outer_momentum=0.0), network(), clients).rounds(3)
    two = Played(peers("dpsgd"), network(), clients).rounds(3)
    torch.testing.assert_close(models(one), models(two), rtol=0, atol=1e-6)


def test_on_the_complete_graph_the_outer_step_is_dilocos() -> None:
    """SGD with Nesterov momentum on the mean of what local steps changed."""
    clients = blobs(8, 8, 8)
    local: dict[str, Any] = {"lr": 0.2, "steps": 4, "batch_size": 4}
    ours = Played(peers("diloco", topology="complete", **local), network(), clients)
    theirs = Played(FedAvg(**local), network(), clients)
    outer = SGD(momentum=0.9, nesterov=True)
    moments = outer.init(theirs.state.params)
    for _ in range(4):
        ours.round()
        start = theirs.state.params
        theirs.round()
        new, moments = outer.update(start - theirs.state.params, moments, start, 0.7)
        theirs.state = theirs.state.replace(params=new)
    torch.testing.assert_close(models(ours)[0], theirs.params, rtol=0, atol=1e-6)


def test_moshpit_on_a_full_grid_is_the_mean_of_all() -> None:
    clients = blobs(*[6] * 8)
    one = Played(peers("moshpit", topology="grid:3"), network(), clients).rounds(3)
    two = Played(peers("dpsgd", topology="complete"), network(), clients).rounds(3)
    torch.testing.assert_close(models(one), models(two), rtol=0, atol=1e-6)


# --- peers that disagree ----------------------------------------------------------------------------------------------

CURVES = (1.0, 2.0, 5.0, 1.0, 3.0), (-1.0, 2.0, 4.0, 7.0, 0.0)
UNEQUAL = [quadratic(a, b) for a, b in zip(*CURVES, strict=True)]
BEST = (-1.0 + 4.0 + 20.0 + 7.0 + 0.0) / 12.0
"""Where the mean of their objectives is least."""


def descended(method: Decentralised, rounds: int, steps: int = 1, lr: float = 1 / 16) -> Tensor:
    """All peers' models after rounds on UNEQUAL, local steps written out and rows mixed at once."""
    state = Played(method, line(), UNEQUAL).state
    own, graphs = state.peers, method.graphs(state)
    a, b = (torch.tensor(each, dtype=torch.float64).reshape(5, 1) for each in CURVES)
    for at in range(rounds):
        z, told = method.start(own), method.told(own)
        for _ in range(steps):
            z = z - lr * (a * (z - b) + told.get("correction", 0.0))
        trained = Record(model=z, buffers=own.buffers, steps=torch.full((5, 1), float(steps)).double(), lr=lr)
        offered = method.offer(own, trained)
        mixed = offered
        for weights in method.exchanges(graphs, at, range(5)):
            mixed = Record({name: Mixture().all(value, weights) for name, value in mixed.items()})
        own = method.settle(own, trained, offered, mixed)
    return method.start(own)


@pytest.mark.parametrize("graph", ["ring", "exponential"])
@pytest.mark.parametrize("name", ["tracking", "d2"])
def test_tracking_and_d2_reach_the_common_optimum(name: str, graph: str) -> None:
    assert (descended(peers(name, topology=graph), 600) - BEST).abs().max() < 1e-9


@pytest.mark.parametrize("graph", ["ring", "exponential"])
def test_dpsgd_does_not(graph: str) -> None:
    assert (descended(peers("dpsgd", topology=graph), 600) - BEST).abs().max() > 0.05


def test_tracking_reaches_it_by_several_local_steps() -> None:
    """Five between two exchanges, with which FedAvg's clients drift."""
    assert (descended(peers("tracking"), 900, 5, 1 / 64) - BEST).abs().max() < 1e-9
    drifted = descended(peers("dpsgd", topology="complete"), 900, 5, 1 / 64)
    assert (drifted - BEST).abs().max() > 0.03


def test_with_one_step_tracking_is_gradient_tracking() -> None:
    """y_i <- sum_j W_ij y_j + g_i' - g_i;  x_i <- sum_j W_ij (x_j - lr y_j)."""
    method = peers("tracking", lr=1 / 16, batch_size=None)
    played = Played(method, line(0.5), UNEQUAL)
    w = torch.from_numpy(method.graphs(played.state).exchanges(0)[0].dense())
    a, b = (torch.tensor(each, dtype=torch.float64) for each in CURVES)
    x = torch.full((5,), 0.5, dtype=torch.float64)
    y = a * (x - b)
    for _ in range(10):
        played.round()
        new = w @ (x - y / 16)
        y = w @ y + a * (new - b) - a * (x - b)
        x = new
        torch.testing.assert_close(models(played)[:, 0], x, rtol=1e-12, atol=1e-12)


def test_d2_is_the_papers_update() -> None:
    """x <- V (2 x - x' - lr g + lr g'), primes being the round before."""
    method = peers("d2", lr=1 / 16, batch_size=None)
    played = Played(method, line(0.5), UNEQUAL)
    w = torch.from_numpy(method.graphs(played.state).exchanges(0)[0].dense())
    v = (w + torch.eye(5, dtype=torch.float64)) / 2
    a, b = (torch.tensor(each, dtype=torch.float64) for each in CURVES)
    x = torch.full((5,), 0.5, dtype=torch.float64)
    before, g_before = x, None
    for _ in range(8):
        g = a * (x - b)
        moved = x - g / 16 if g_before is None else 2 * x - before - (g - g_before) / 16
        before, g_before, x = x, g, v @ moved
        played.round()
        torch.testing.assert_close(models(played)[:, 0], x, rtol=1e-12, atol=1e-12)


# --- averages ---------------------------------------------------------------------------------------------------------


def still(method: Decentralised, values: Tensor, rounds: int, there: Any = None) -> Record:
    """All peers' values after rounds in which nobody learns anything."""
    count = len(values)
    state = begun(method, count)
    own = Record(model=values, buffers=values[:, :0], **method.outset(values))
    if "mass" in own or "age" in own:
        own = Record({n: torch.ones_like(values) if n in ("mass", "age") else v for n, v in own.items()})
    for at in range(rounds):
        here = list(range(count)) if there is None else there(at)
        some = Record({name: value[here] for name, value in own.items()})
        trained = Record(model=method.start(some), buffers=some.buffers, steps=torch.zeros(len(here), 1))
        mixed = offered = method.offer(some, trained)
        for weights in method.exchanges(method.graphs(state), at, here):
            mixed = Record({name: Mixture().all(value, weights) for name, value in mixed.items()})
        new = method.settle(some, trained, offered, mixed)
        own = Record(
            {name: value.index_copy(0, torch.tensor(here), new[name]) for name, value in own.items()}
        )
    return own


@pytest.mark.parametrize("degree", [1, 2, 4])
def test_push_sum_keeps_its_mass_and_finds_the_mean_on_directed_graphs(degree: int) -> None:
    values = torch.randn(16, 1, generator=torch.Generator().manual_seed(degree)).double()
    method = peers("pushsum", topology=f"epidemic:{degree}")
    own = still(method, values, 120)
    assert float(own.mass.sum()) == pytest.approx(16, abs=1e-11)
    assert (method.start(own) - values.mean()).abs().max() < 1e-10
    assert (own.mass - 1).abs().max() > 1e-3  # links are uneven, and the mass says how


def test_push_sum_keeps_its_mass_where_peers_come_and_go() -> None:
    values = torch.randn(12, 1, generator=torch.Generator().manual_seed(5)).double()
    method = peers("pushsum", topology="epidemic:2")
    own = still(method, values, 300, lambda at: [k for k in range(12) if (at + k) % 4])
    assert float(own.mass.sum()) == pytest.approx(12, abs=1e-11)
    assert (method.start(own) - values.mean()).abs().max() < 1e-10


def test_gossip_merges_by_age() -> None:
    method = peers("gossip", topology="complete")
    own = Record(model=torch.tensor([1.0]), buffers=torch.zeros(0), age=torch.tensor([3.0]))
    offers = []
    for value, age in ((1.0, 3.0), (5.0, 1.0)):
        trained = Record(model=torch.tensor([value]), buffers=torch.zeros(0), steps=torch.zeros(1))
        offers.append(method.offer(own.replace(age=torch.tensor([age])), trained))
    row = method.exchanges(method.graphs(begun(method, 2)), 0, range(2))[0].of_peer(0)
    assert row.peers == (0, 1)
    found = method.settle(own, trained, offers[0], method.combine(offers, row, 0))
    assert float(found.model) == pytest.approx((3 * 1.0 + 1 * 5.0) / 4) and float(found.age) == 3.0


def test_pairs_take_their_mean() -> None:
    values = torch.arange(6.0, dtype=torch.float64).reshape(6, 1)
    rows = still(peers("adpsgd", topology="complete"), values, 1).model.flatten().tolist()
    assert sorted(map(rows.count, rows)) == [2] * 6 and sum(rows) == 15.0


@pytest.mark.parametrize(("codec", "gamma"), [("topk:0.01", 0.02), ("sign", 0.1), ("int8", 1.0)])
def test_choco_finds_the_mean(codec: str, gamma: float) -> None:
    """Of 200 numbers two travel at 1 %, and in the end everybody has the mean all the same."""
    method = peers("choco", codec=codec, gamma=gamma, topology="complete")
    state = begun(method, 6)
    size, draw = state.peers.model.shape[1], torch.Generator().manual_seed(2)
    values = torch.randn(6, size, generator=draw)
    own = state.peers.replace(model=values)
    (weights,) = method.exchanges(method.graphs(state), 0, range(6))
    start = (values - values.mean(0)).norm()
    for at in range(1000 if codec.startswith("topk") else 300):
        key = torch.arange(6).reshape(6, 1) + 100 * at
        trained = Record(model=own.model, buffers=own.buffers, steps=torch.ones(6, 1), lr=0.1, key=key)
        offered = method.offer(own, trained)
        mixed = Record({n: torch.from_numpy(weights.dense()).float() @ v for n, v in offered.items()})
        own = method.settle(own, trained, offered, mixed)
    assert (own.model - values.mean(0)).norm() < 0.02 * start
    assert method.message(Record({n: v[0] for n, v in offered.items()})) < (
        0.7 if codec == "int8" else 1
    ) * 4 * (size + own.buffers.shape[1])


# --- peers that fail or lie -------------------------------------------------------------------------------------------


def test_absent_peers_keep_theirs_and_come_back() -> None:
    method = peers("dpsgd", lr=0.2)
    played = Played(method, network(), blobs(6, 6, 6, 6, 6))
    played.round([0, 1, 3])
    initial = played.state.params.flat()
    assert torch.equal(models(played)[2], initial) and not torch.equal(models(played)[1], initial)
    assert played.state.met.tolist() == [True, True, False, True, False]
    mean = method.model(played.state)[0].flat()
    torch.testing.assert_close(mean, models(played)[[0, 1, 3]].mean(0), rtol=0, atol=1e-6)
    played.rounds(40)
    found = method.consensus(played.state)
    assert found is not None and found < 0.5


def test_who_left_is_no_part_of_the_mean() -> None:
    method = peers("dpsgd")
    played = Played(method, network(), blobs(6, 6, 6)).rounds(1)
    left = method.leave(played.state, [1])
    mean = method.model(left)[0].flat()
    torch.testing.assert_close(mean, models(played)[[0, 2]].mean(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("rule", "holds"), [("plain", False), ("clipped:0.5", True), ("trimmed:2", True)])
def test_peers_that_flip_signs(rule: str, holds: bool) -> None:
    """Two of twelve send back, tenfold, what they should have."""
    method = peers("dpsgd", topology="complete", mixing=rule, lr=0.2, epochs=3)
    clients = [Client(c.inputs - 0.3 * k, c.targets) for k, c in enumerate(blobs(*[30] * 12))]
    played = Played(method, network(), clients)
    for _ in range(12):
        replies = _flipped(played, (3, 8))
        played.state = method.update(played.state, replies)
    right = 0.0
    for k, client in enumerate(clients):
        if k not in (3, 8):
            params = played.state.params.unflat(models(played)[k])
            outputs = played.task.predict(params, played.state.buffers, client.inputs)[0]
            right += float((outputs.argmax(1) == client.targets).float().mean()) / 10
    assert (right > 0.85) is holds


def _flipped(played: Played, liars: tuple[int, ...]) -> Any:
    """A round's replies, in which liars move the other way."""
    before = played.state
    replies = played.round()
    played.state = before
    for at in liars:
        sent, start = replies.each[at], played.method.broadcast(before, [at]).received(at).params
        lie = start - (sent.values.params - start) * 10.0
        replies.each[at] = sent._replace(values=sent.values.replace(params=lie))
    return replies


# --- figures and words ------------------------------------------------------------------------------------------------


def test_consensus_is_the_root_of_the_mean_squared_distance() -> None:
    method = peers("dpsgd")
    values = torch.tensor([[0.0], [0.0], [3.0], [1.0]]).double()
    state = begun(method, 4)
    state = state.replace(peers=state.peers.replace(model=values), met=torch.ones(4, dtype=torch.bool))
    assert method.consensus(state) == pytest.approx(1.5**0.5)


@pytest.mark.parametrize(
    ("name", "graph", "models_sent"),
    [
        ("dpsgd", "ring", 16),
        ("dpsgd", "star", 14),
        ("dpsgd", "one-peer", 8),
        ("tracking", "ring", 32),
        ("moshpit", "grid:3", 24),
    ],
)
def test_bytes_are_what_peers_send_each_other(name: str, graph: str, models_sent: int) -> None:
    method = peers(name, topology=graph)
    played = Played(method, network(), blobs(*[5] * 8)).rounds(1)
    size = 4 * played.state.params.size()
    assert method.carried(played.state) == models_sent * size


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("dpsgd", {"topology": "epidemic:2"}, "pushsum"),
        ("pushsum", {"topology": "star"}, "complete"),
        ("choco", {"topology": "star"}, "complete"),
        ("adpsgd", {"topology": "epidemic:1"}, "both"),
        ("moshpit", {"topology": "ring"}, "grid"),
        ("tracking", {"mixing": "trimmed:1"}, "plain"),
        ("tracking", {"momentum": 0.9}, "0"),
        ("choco", {"codec": "powersgd:2"}, "one vector"),
        ("choco", {"codec": "randk:0.1"}, "nearer"),
        ("choco", {"gamma": 2.0}, "at most 1"),
        ("diloco", {"outer_momentum": 1.0}, "in [0, 1)"),
        ("choco", {"mixing": "masked"}, "what each neighbour offers"),
        ("gossip", {"mixing": "masked"}, "what each neighbour offers"),
        ("adpsgd", {"mixing": "masked"}, "what each neighbour offers"),
        ("dpsgd", {"mixing": "masked", "topology": "one-peer"}, "alone"),
        ("dpsgd", {"mixing": "masked", "topology": "star"}, "alone"),
        ("dpsgd", {"mixing": "masked", "topology": "related:2"}, "sketch"),
        ("pushsum", {"mixing": "masked", "topology": "epidemic:2"}, "alone"),
        ("moshpit", {"mixing": "masked", "topology": "grid:3"}, "alone"),
        ("dpsgd", {"mixing": "masked:0"}, "above 0"),
    ],
)
def test_what_does_not_fit_is_said(name: str, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        begun(peers(name, **settings), 6)
    assert says in str(raised.value)


def test_draws_of_a_round_are_those_of_its_number() -> None:
    """A matching does not depend on what was drawn before."""
    method, draw = peers("adpsgd", topology="complete"), torch.Generator().manual_seed(1)
    state = begun(method, 6)
    one = method.update(state.replace(round=4), replied(state, method, range(6), draw))
    two = method.exchanges(method.graphs(state), 4, range(6))
    assert one.carried == two[0].links * 4 * (state.params.size() + state.peers.buffers.shape[1])


@pytest.mark.parametrize(
    ("channel", "says"),
    [("int8", "method=choco"), ("secagg:8", "mixing=masked"), ("clip:1 | noise:1", "each")],
)
def test_channels_that_do_not_fit_are_said(channel: str, says: str) -> None:
    data = atoll.data.load("digits").partition("iid", clients=4, seed=0)
    with pytest.raises(ConfigError) as raised:
        atoll.Federation(atoll.models.mlp(64, 10), data, "dpsgd", channel=channel, rounds=1)
    assert says in str(raised.value)


@pytest.mark.parametrize(
    "method", ["dpsgd", "adpsgd", "gossip", "pushsum", "tracking", "d2", "choco", "diloco"]
)
def test_what_neighbours_see_may_be_blurred(method: str) -> None:
    """Local differential privacy: what all make of their data is clipped, and noised, before anybody mixes it."""
    data = atoll.data.load("digits").partition("iid", clients=4, seed=0)

    def played(channel: str) -> tuple[Tensor, Tensor]:
        made = atoll.Federation(
            lambda: atoll.models.mlp(64, 10), data, method, topology="complete", channel=channel, rounds=1,
            engine="loop", eval_every=0,
        )  # fmt: skip
        start = made.state.params.flat()
        made.fit(progress=False)
        return start, made.state.peers.model

    start, clipped = played("clip:0.001 | local:0.0")
    assert 0.0 < float((clipped - start).norm(dim=1).max()) <= 0.0014  # an outer step may be a third longer
    blurred = played("clip:0.001 | local:2.0")[1]
    assert 0.003 < float((blurred - clipped).norm(dim=1).mean()) < 0.0022 * len(start) ** 0.5
