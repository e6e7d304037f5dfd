"""Methods in which clients influence each other one by one: FedAMP, HeurFedAMP, IFCA, CFL, FedFomo."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from atoll.codec import decode, encode
from atoll.contract import ClientData, Program, Reply
from atoll.errors import ConfigError
from atoll.federation import Federation
from atoll.methods import CFL, IFCA, FedAMP, FedAvg, FedFomo, HeurFedAMP, Local
from atoll.methods.personal.cfl import bipartition
from atoll.tensors import Record, Tensors

from .driver import CURVES, Client, Played, batches, blobs, disagreeing, line, network, quadratic, whole

PLAN: dict[str, Any] = {"lr": 0.2, "epochs": 2, "batch_size": 4}
FULL: dict[str, Any] = {"lr": 0.05, "epochs": 3, "batch_size": None}


def two_kinds(clients: int = 6, size: int = 40) -> list[Client]:
    """Clients with like features; for every second one all labels mean something else."""
    made = []
    for k, client in enumerate(blobs(*[size] * clients, tested=20)):
        shift = -0.3 * k  # undo the shift of features: the kinds differ in their labels alone
        assert client.test is not None
        turn = k % 2
        test = (client.test[0] + shift, (client.test[1] + turn) % 3)
        made.append(Client(client.inputs + shift, (client.targets + turn) % 3, test))
    return made


def kinds(clients: Sequence[int]) -> list[list[int]]:
    return [[k for k in clients if k % 2 == turn] for turn in (0, 1)]


class Validated(Played):
    """A federation whose clients check models on their test data."""

    @torch.no_grad()
    def client(
        self, k: int, program: Program, received: Record, epochs: int | None = None
    ) -> tuple[Reply, Record]:
        own, plan = self.clients[k], program.plan()
        splits = {"validation": own.test and whole(*own.test), "test": own.test and whole(*own.test)}
        data = ClientData(
            torch.tensor(float(len(own.inputs))), torch.tensor(0), **{n: splits[n] for n in program.reads}
        )
        memory = self.memories[k] if k in self.memories else program.remember(self.task, received)
        local = program.begin(self.task, received, memory, data)
        for batch in batches(plan, own, plan.epochs):
            local = program.step(self.task, local, batch)
        return program.finish(self.task, local, data)


def own(played: Played, k: int) -> float:
    """A client's own model where it is a single number."""
    return float(played.memories[k].params.flat())


def same_memories(one: Played, other: Played) -> None:
    assert one.memories.keys() == other.memories.keys()
    for k, memory in one.memories.items():
        for part in ("params", "buffers"):
            for name, value in memory[part].items():
                assert torch.equal(value, other.memories[k][part][name])


# --- identities -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", [FedAMP(**PLAN, alpha=0), FedAMP(**PLAN, lam=0), HeurFedAMP(**PLAN, self_weight=1.0)]
)
def test_without_messages_or_pull_clients_train_alone_to_the_bit(method: Any) -> None:
    clients = blobs(8, 12, 5)
    alone = Played(Local(**PLAN), network(normalised=True), clients)
    played = Played(method, network(normalised=True), clients)
    for cohort in ([0, 1, 2], [0, 2], [1, 2], [0, 1, 2]):
        alone.round(cohort)
        played.round(cohort)
    same_memories(played, alone)


@pytest.mark.parametrize("method", [FedAMP(**PLAN), HeurFedAMP(**PLAN)])
def test_messages_make_a_difference(method: Any) -> None:
    clients = blobs(8, 12, 5)
    alone = Played(Local(**PLAN), network(), clients).rounds(3)
    played = Played(method, network(), clients).rounds(3)
    for k in range(3):
        assert (played.memories[k].params - alone.memories[k].params).norm() > 1e-3


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("method", [IFCA(**PLAN, clusters=1), CFL(**PLAN, eps1=0.0), CFL(**PLAN, start=3)])
def test_with_one_cluster_it_is_federated_averaging_to_the_bit(method: Any, normalised: bool) -> None:
    clients = blobs(8, 12, 5)
    average = Played(FedAvg(**PLAN), network(normalised), clients)
    played = Played(method, network(normalised), clients)
    for cohort in ([0, 1, 2], [0, 2], [1]):
        average.round(cohort)
        played.round(cohort)
    assert torch.equal(played.params, average.params)
    for name, value in average.state.buffers.items():
        assert torch.equal(played.state.buffers[name], value)


def test_fedfomo_alone_in_its_population_or_unsure_is_local_training() -> None:
    (client,) = blobs(8, tested=6)
    alone = Played(Local(**PLAN), network(), [client]).rounds(3)
    same_memories(Validated(FedFomo(**PLAN), network(), [client]).rounds(3), alone)
    untested = blobs(8, 12)
    alone = Played(Local(**PLAN), network(), untested).rounds(3)
    same_memories(Validated(FedFomo(**PLAN), network(), untested).rounds(3), alone)


# --- FedAMP ---------------------------------------------------------------------------------------------------------


def fedamp_by_hand(
    rounds: int, alpha: float, lam: float, sigma: float, median: bool, least: float, inert: bool = False
) -> list[float]:
    """The algorithm box on quadratics of one number."""
    curves = list(CURVES)
    w, shown = [0.0] * len(curves), False
    for _ in range(rounds):
        target, pull = list(w), [0.0] * len(curves)
        if shown:
            square = [[(a - b) ** 2 for b in w] for a in w]
            pairs = sorted(x for k, row in enumerate(square) for j, x in enumerate(row) if j != k)
            unit = pairs[(len(pairs) - 1) // 2] if median else 1.0
            for k in range(len(w)):
                attention = [
                    math.exp(-x / unit / sigma) / sigma if j != k else 0.0 for j, x in enumerate(square[k])
                ]
                step = min(alpha, (1 - least) / sum(attention))
                target[k] = (1 - step * sum(attention)) * w[k]
                target[k] += step * sum(a * other for a, other in zip(attention, w, strict=True))
                pull[k] = 0.0 if inert else min(lam / step, 1 / FULL["lr"])
        new = []
        for k, (a, b) in enumerate(curves):
            v = w[k]
            for _ in range(3):
                v -= 0.05 * (a * (v - b) + pull[k] * (v - target[k]))
            new.append(v)
        w, shown = new, True
    return w


@pytest.mark.parametrize(
    ("settings", "median"),
    [
        ({"alpha": 0.4, "lam": 0.5, "sigma": 0.5}, True),
        ({"alpha": 0.4, "lam": 0.5, "sigma": 3.0, "unit": "absolute"}, False),
        ({"alpha": 50.0, "lam": 0.3, "sigma": 2.0, "unit": "absolute", "self_weight": 0.0}, False),  # capped
        ({"alpha": 50.0, "lam": 0.3, "sigma": 2.0, "unit": "absolute"}, False),
        ({"alpha": 0.4, "lam": 30.0, "sigma": 0.5}, True),  # a pull above 1 / lr
    ],
)
def test_fedamp_on_quadratics_is_the_algorithm_box(settings: dict[str, Any], median: bool) -> None:
    played = Played(FedAMP(**FULL, **settings), line(), disagreeing()).rounds(6)
    alpha, lam, sigma = (settings[name] for name in ("alpha", "lam", "sigma"))
    least = settings.get("self_weight", 0.5)
    wanted = fedamp_by_hand(6, alpha, lam, sigma, median, least)
    got = [own(played, k) for k in range(3)]
    assert got == pytest.approx(wanted, rel=1e-6)
    inert = fedamp_by_hand(6, alpha, lam, sigma, median, least, inert=True)
    assert max(abs(g - w) for g, w in zip(got, inert, strict=True)) > 0.02  # a pull without gradient fails


def test_the_own_weight_is_never_negative() -> None:
    """However large alpha, u_k lies between the models."""
    played = Played(FedAMP(**FULL, alpha=1e4, sigma=1.0, self_weight=0), line(), disagreeing()).rounds(2)
    models = [own(played, k) for k in range(3)]
    work = played.method.broadcast(played.state, [0, 1, 2])
    for k in range(3):
        cloud = float(work.own[k].cloud.flat())
        assert min(models) <= cloud <= max(models)
        others = [m for j, m in enumerate(models) if j != k]
        assert min(others) - 1e-9 <= cloud <= max(others) + 1e-9  # own weight 0


def test_the_own_model_has_half_the_weight_however_many_others_there_are() -> None:
    """Attention is a sum over the others: with a step size alone, many of them would leave nothing of one's own."""
    for count, least in ((3, 0.9), (400, 0.5)):
        rows = torch.randn(count, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        messages, step = FedAMP().weights(Record(), rows, rows, torch.eye(count, dtype=torch.bool))
        own = 1 - messages.sum(1)
        assert float(own.min()) == pytest.approx(least, abs=0.1) and float(own.min()) >= 0.5 - 1e-12
        assert float(step.max()) <= 0.1


def test_absent_clients_keep_the_model_they_showed_last() -> None:
    played = Played(FedAMP(**PLAN), network(), blobs(8, 12, 5))
    played.round()
    before = played.state.models
    played.round([0, 2])
    assert played.state.models["1"] is before["1"]
    assert not torch.equal(played.state.models["0"]["0.weight"], before["0"]["0.weight"])
    assert torch.equal(played.state.models["0"]["0.weight"], played.memories[0].params["0.weight"])


def test_the_unit_makes_sigma_independent_of_the_models_size() -> None:
    method = FedAMP(sigma=0.5)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    same = torch.eye(5, dtype=torch.bool)
    weights, _ = method.weights(Record(), rows, rows, same)
    larger, _ = method.weights(Record(), rows * 100, rows * 100, same)
    torch.testing.assert_close(weights, larger)
    absolute, _ = FedAMP(sigma=0.5, unit="absolute").weights(Record(), rows * 100, rows * 100, same)
    assert float(absolute.sum()) < 1e-6


def test_heuristic_messages_are_the_softmax_of_cosines() -> None:
    method = HeurFedAMP(**PLAN, self_weight=0.3, temperature=4.0, centred=False, lam=0.5, alpha=2.0)
    played = Played(method, network(), blobs(8, 12, 5)).rounds(2)
    rows = [played.memories[k].params.flat().double().numpy() for k in range(3)]
    work = played.method.broadcast(played.state, [0, 1, 2])
    for k in range(3):
        others = [j for j in range(3) if j != k]
        cosines = [rows[k] @ rows[j] / np.linalg.norm(rows[k]) / np.linalg.norm(rows[j]) for j in others]
        share = np.exp(4.0 * np.array(cosines))
        share *= 0.7 / share.sum()
        wanted = 0.3 * rows[k] + sum(s * rows[j] for s, j in zip(share, others, strict=True))
        np.testing.assert_allclose(work.own[k].cloud.flat().numpy(), wanted, rtol=1e-4, atol=1e-6)
        assert float(work.own[k].pull) == 0.25


@pytest.mark.parametrize("method", [FedAMP(**PLAN), HeurFedAMP(**PLAN)])
def test_affinity_of_models_has_a_block_for_each_kind(method: Any) -> None:
    played = Played(method, network(), two_kinds()).rounds(8)
    clients, matrix = played.method.affinity(played.state) or ([], torch.zeros(0))
    assert clients == list(range(6))
    assert torch.allclose(matrix.diagonal(), torch.ones(6, dtype=matrix.dtype))
    like = torch.tensor([[(i - j) % 2 == 0 for j in clients] for i in clients])
    within = matrix[like & ~torch.eye(6, dtype=torch.bool)].min()
    assert within > matrix[~like].max() + 0.1


# --- IFCA -----------------------------------------------------------------------------------------------------------


def ifca_by_hand(start: list[float], rounds: int) -> tuple[list[float], list[int]]:
    """The algorithm box on quadratics of one number, clients of 1, 2, 3 ... samples."""
    models, choice = list(start), list[int]()
    for _ in range(rounds):
        sums, counts, choice = [0.0] * len(models), [0.0] * len(models), []
        for n, (a, b) in enumerate(CURVES, 1):
            losses = [a / 2 * (w - b) ** 2 for w in models]
            j = losses.index(min(losses))
            w = models[j]
            for _ in range(3):
                w -= 0.05 * a * (w - b)
            sums[j] += n * (w - models[j])
            counts[j] += n
            choice.append(j)
        models = [w + s / c if c else w for w, s, c in zip(models, sums, counts, strict=True)]
    return models, choice


def test_ifca_on_quadratics_is_the_algorithm_box() -> None:
    clients = [quadratic(a, b, n) for n, (a, b) in enumerate(CURVES, 1)]
    played = Played(IFCA(**FULL, clusters=3), line(), clients)
    start = [0.1, 2.5, 30.0]  # nobody chooses the last
    played.state = played.state.replace(
        cluster_params=played.state.cluster_params.map(
            lambda v: torch.tensor(start, dtype=v.dtype).view(3, 1, 1)
        )
    )
    played.rounds(4)
    models, choice = ifca_by_hand(start, 4)
    assert played.state.cluster_params.flat().tolist() == pytest.approx(models)
    assert played.state.groups.group.tolist() == choice
    assert models[2] == 30.0 and set(choice) == {0, 1}
    weights = [sum(n for n, j in enumerate(choice, 1) if j == at) for at in range(3)]
    mean = sum(w * n for w, n in zip(models, weights, strict=True)) / 6
    assert float(played.params) == pytest.approx(mean)


def test_ifca_starts_from_different_copies_of_the_model() -> None:
    task, clients = network(normalised=True), blobs(8, 8)
    params, _ = task.initial()
    state = Played(IFCA(clusters=3), task, clients).state
    for name, value in params.items():
        copies = state.cluster_params[name]
        assert torch.equal(copies[0], value)
        if float(value.std()) > 0:
            assert not torch.equal(copies[1], copies[2])
            assert float(copies[1].std()) == pytest.approx(float(value.std()), rel=0.6)
        else:
            assert torch.equal(copies[1], value)  # BatchNorm's scale stays 1
    again = Played(IFCA(clusters=3), task, clients).state
    other = Played(IFCA(clusters=3), task, clients, seed=1).state
    assert torch.equal(again.cluster_params.flat(), state.cluster_params.flat())
    assert not torch.equal(other.cluster_params.flat(), state.cluster_params.flat())
    equal = Played(IFCA(clusters=3, spread=0.0), task, clients).state.cluster_params
    torch.testing.assert_close(equal.map(lambda v: v[2]).flat(), params.flat())


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_ifca_separates_two_kinds_of_clients(seed: int) -> None:
    played = Played(IFCA(**PLAN), network(), two_kinds(), seed)
    for number in range(10):
        played.round(range(6) if number % 2 else [0, 1, 4, 5])
    clusters = [
        [
            k
            for k, j in zip(
                played.state.groups.clients.tolist(), played.state.groups.group.tolist(), strict=True
            )
            if j == at
        ]
        for at in (0, 1)
    ]
    assert sorted(clusters) == kinds(range(6))
    clients, matrix = played.method.affinity(played.state) or ([], torch.zeros(0))
    assert matrix.tolist() == [[float((i - j) % 2 == 0) for j in clients] for i in clients]
    one = Played(FedAvg(**PLAN), network(), two_kinds()).rounds(10)
    for k in range(6):
        assert played.personal(k).accuracy > 0.85
    assert sum(one.personal(k).accuracy for k in range(6)) < 0.75 * 6


# --- CFL ------------------------------------------------------------------------------------------------------------


def cut(similarity: Any, right: Any) -> float:
    return float(similarity[~right][:, right].max())


@pytest.mark.parametrize("seed", range(8))
def test_single_linkage_finds_the_best_cut_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(7, 4))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    similarity = rows @ rows.T
    cuts = [np.array([False, *bits]) for bits in itertools.product([False, True], repeat=6) if any(bits)]
    best = min(cut(similarity, right) for right in cuts)
    assert cut(similarity, bipartition(similarity, "single")) == pytest.approx(best)
    assert cut(similarity, bipartition(similarity)) >= best - 1e-12


@pytest.mark.parametrize("linkage", ["complete", "single"])
@pytest.mark.parametrize("seed", range(4))
def test_bipartition_is_agglomerative_clustering(linkage: str, seed: int) -> None:
    """Against a few lines that recompute every linkage from the members."""
    similarity: Any = np.corrcoef(np.random.default_rng(seed).normal(size=(9, 5)))
    groups = [[k] for k in range(9)]
    link = min if linkage == "complete" else max
    while len(groups) > 2:
        pairs = itertools.combinations(range(len(groups)), 2)
        a, b = max(pairs, key=lambda p: link(similarity[i, j] for i in groups[p[0]] for j in groups[p[1]]))
        groups[a] += groups.pop(b)
    right = bipartition(similarity, linkage)
    found = [np.flatnonzero(right).tolist(), np.flatnonzero(~right).tolist()]
    assert sorted(found) == sorted(sorted(group) for group in groups)


def test_bipartition_of_few() -> None:
    assert bipartition(np.eye(2)).tolist() == [False, True]
    blocks = np.kron(np.eye(2), np.ones((2, 2))) * 1.5 - 0.5
    assert bipartition(blocks).tolist() == [False, False, True, True]


def test_cfl_separates_two_kinds_of_clients() -> None:
    settings: dict[str, Any] = {"lr": 0.3, "epochs": 2, "batch_size": None}
    played = Played(CFL(**settings, start=5), network(), two_kinds())
    average = Played(FedAvg(**settings), network(), two_kinds())
    split = 0
    for number in range(1, 41):
        played.round()
        average.round()
        found = sorted(played.method.clusters(played.state).values())  # type: ignore[attr-defined]
        if len(found) > 1 and not split:
            split = number
        if not split:
            assert torch.equal(played.params, average.params)
    assert 5 < split < 30
    assert found == kinds(range(6))
    for k in range(6):
        assert played.personal(k).accuracy > 0.85
    assert sum(average.personal(k).accuracy for k in range(6)) < 0.75 * 6
    clients, _ = played.method.affinity(played.state) or ([], torch.zeros(0))
    assert clients == list(range(6))


def split_quadratics(**settings: Any) -> Played:
    """Four clients, two at -1 and two at 1, with one model in the middle: the first round splits it."""
    clients = [quadratic(1.0, b) for b in (-1.0, 1.0, -1.1, 1.1, -1.0, 1.0)]
    method = CFL(**{**FULL, "start": 0, "eps1": 0.4, **settings})
    return Played(method, line(), clients)


def test_a_split_gives_each_side_its_own_mean_and_keeps_where_it_was_made() -> None:
    played = split_quadratics()
    played.round([0, 1, 2, 3])
    moved = 1 - 0.95**3
    nodes = played.state.nodes
    assert float(nodes["0"].params.flat()) == 0.0
    assert nodes["0"].left == 1 and nodes["0"].right == 2
    assert float(nodes["1"].params.flat()) == pytest.approx(-1.05 * moved)
    assert float(nodes["2"].params.flat()) == pytest.approx(1.05 * moved)
    assert played.method.clusters(played.state) == {1: [0, 2], 2: [1, 3]}  # type: ignore[attr-defined]
    assert float(played.params) == pytest.approx(0.0)
    _, matrix = played.method.affinity(played.state) or ([], torch.zeros(0))
    assert matrix.tolist() == [[1, -1, 1, -1], [-1, 1, -1, 1]] * 2


def test_clients_that_missed_a_split_are_placed_by_their_update_from_where_it_was_made() -> None:
    played = split_quadratics()
    played.round([0, 1, 2, 3])
    before = [float(played.state.nodes[str(n)].params.flat()) for n in (1, 2)]
    work = played.method.broadcast(played.state, [0, 4, 5])
    assert float(work.received(0).params.flat()) == before[0]
    assert float(work.received(4).params.flat()) == float(work.received(5).params.flat()) == 0.0
    played.round([4, 5])
    after = [float(played.state.nodes[str(n)].params.flat()) for n in (1, 2)]
    assert after == before  # an update from elsewhere is averaged into nothing
    assert played.method.clusters(played.state) == {1: [0, 2, 4], 2: [1, 3, 5]}  # type: ignore[attr-defined]
    played.round([0, 4])
    assert float(played.state.nodes["1"].params.flat()) < before[0]
    assert float(played.state.nodes["2"].params.flat()) == before[1]


def test_what_keeps_a_cluster_whole() -> None:
    for settings in (
        {"eps1": 0.0},
        {"eps2": 2.0},
        {"start": 1},
        {"least": 5},
        {"unit": "absolute", "eps1": 0.4, "eps2": 1.6},
    ):
        played = split_quadratics(**settings)
        played.round([0, 1, 2, 3])
        assert len(played.state.nodes) == 1
    played = split_quadratics(unit="absolute", eps1=0.01, eps2=0.1)
    played.round([0, 1, 2, 3])
    assert len(played.state.nodes) == 3


def test_clients_that_agree_within_gamma_are_not_split() -> None:
    similar = [quadratic(1.0, b) for b in (1.0, 1.1, 0.9)]
    settings: dict[str, Any] = {**FULL, "start": 0, "eps1": 2.0, "eps2": 0.1}
    parted = Played(CFL(**settings), line(), similar).rounds(1)
    kept = Played(CFL(**settings, gamma=0.5), line(), similar).rounds(1)
    assert len(parted.state.nodes) == 3
    assert len(kept.state.nodes) == 1


# --- FedFomo --------------------------------------------------------------------------------------------------------


def test_fedfomo_is_the_algorithm_box() -> None:
    """Weights and mixture of the second round, recomputed from the models and losses of the first."""
    clients = blobs(8, 12, 10, 9, tested=12)
    played = Validated(FedFomo(**PLAN, models=2), network(), clients).rounds(1)
    method, state, task = played.method, played.state, played.task
    assert isinstance(method, FedFomo)

    def loss(k: int, params: Tensors) -> float:
        test = clients[k].test
        assert test is not None
        return float(task.totals(params, Tensors(), whole(*test)).loss) / 12

    helped = 0
    for k in range(4):
        mine = played.memories[k].params
        chosen = method.choice(state, k)
        assert len(set(chosen)) == 2 and k not in chosen
        others = [played.memories[j].params for j in chosen]
        raw = [
            max(0.0, (loss(k, mine) - loss(k, theirs)) / float((theirs - mine).norm())) for theirs in others
        ]
        wanted = mine
        if sum(raw) > 0:
            helped += 1
            for a, theirs in zip(raw, others, strict=True):
                wanted = wanted + (theirs - mine) * (a / sum(raw))
        received = method.broadcast(state, [k]).received(k)
        test = clients[k].test
        assert test is not None
        data = ClientData(torch.tensor(8.0), torch.tensor(0), validation=whole(*test))
        with torch.no_grad():
            local = method.begin(task, received, played.memories[k], data)
        torch.testing.assert_close(local.params.flat(), wanted.flat(), rtol=1e-4, atol=1e-5)
        assert local.help.tolist() == pytest.approx(raw, rel=1e-3, abs=1e-5)
    assert helped > 0
    played.round()
    for k in range(4):
        liked = method.liked(played.state, k)
        assert list(liked) == sorted(method.choice(state, k))
        assert [liked[j] for j in method.choice(state, k)] == pytest.approx(
            played.sent[k].values.help.tolist()
        )


def test_fedfomo_likes_its_own_kind() -> None:
    played = Validated(FedFomo(**PLAN, models=3, explore=0.5), network(), two_kinds(size=10)).rounds(10)
    clients, matrix = played.method.affinity(played.state) or ([], torch.zeros(0))
    like = torch.tensor([[(i - j) % 2 == 0 for j in clients] for i in clients])
    assert matrix[like].sum() > 5 * matrix[~like].sum()
    alone = Played(Local(**PLAN), network(), two_kinds(size=10)).rounds(10)
    accuracy = [[one.personal(k).accuracy for k in range(6)] for one in (played, alone)]
    assert sum(accuracy[0]) >= sum(accuracy[1])


def test_fedfomo_explores_less_and_less_and_always_the_same_way() -> None:
    played = Validated(
        FedFomo(**PLAN, models=1, explore=1.0, decay=0.5), network(), blobs(*[6] * 8, tested=4)
    )
    played.round()
    state, method = played.state, played.method
    assert isinstance(method, FedFomo)
    row = Record(others=torch.tensor([3]), sums=torch.tensor([2.0], dtype=torch.float64))
    state = state.replace(liking=Record({str(k): row for k in range(8)}))
    late = [method.choice(state.replace(round=60), k) for k in range(8) if k != 3]
    assert late == [[3]] * 7
    early = [method.choice(state.replace(round=0), k) for k in range(8) if k != 3]
    assert any(choice != [3] for choice in early)
    assert early == [method.choice(state.replace(round=0), k) for k in range(8) if k != 3]
    assert early != [method.choice(state.replace(round=0, seed=1), k) for k in range(8) if k != 3]


def test_fedfomo_says_at_once_that_it_needs_validation_data() -> None:
    import atoll.data

    rng = np.random.default_rng(0)
    made = {f"c{k}": (rng.normal(size=(9, 6)).astype(np.float32), rng.integers(0, 3, 9)) for k in range(3)}
    with pytest.raises(ConfigError, match="validation"):
        Federation(network().module, atoll.data.from_clients(made, classes=3), "fedfomo", device="cpu")


# --- all ------------------------------------------------------------------------------------------------------------

ALL = [
    FedAMP(**PLAN),
    HeurFedAMP(**PLAN),
    IFCA(**PLAN),
    CFL(**PLAN, start=1, eps1=9.0, eps2=0.0),
    FedFomo(**PLAN),
]


@pytest.mark.parametrize("method", ALL)
def test_a_stored_state_goes_on_to_the_bit(method: Any) -> None:
    clients = blobs(8, 12, 5, 7, tested=5)
    kind = Validated if isinstance(method, FedFomo) else Played
    first, second = (kind(method, network(normalised=True), clients) for _ in range(2))
    for cohort in ([0, 1, 2], [0, 1, 2], [1, 3]):
        first.round(cohort)
        second.round(cohort)
        second.state = decode(encode(second.state))
        second.memories = {k: decode(encode(memory)) for k, memory in second.memories.items()}
    assert encode(first.state) == encode(second.state)
    same_memories(first, second)
    assert torch.equal(first.params, second.params)
    if isinstance(method, CFL):
        assert len(first.state.nodes) > 1


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        (FedAMP, {"alpha": -1.0}, "alpha"),
        (FedAMP, {"lam": -1.0}, "lam"),
        (FedAMP, {"sigma": 0.0}, "sigma"),
        (FedAMP, {"unit": "mean"}, "unit"),
        (HeurFedAMP, {"alpha": 0.0}, "alpha"),
        (HeurFedAMP, {"self_weight": 1.5}, "self_weight"),
        (HeurFedAMP, {"temperature": -1.0}, "temperature"),
        (IFCA, {"clusters": 0}, "clusters"),
        (IFCA, {"spread": -1.0}, "spread"),
        (CFL, {"eps1": -1.0}, "eps1"),
        (CFL, {"eps2": -1.0}, "eps2"),
        (CFL, {"unit": "second"}, "unit"),
        (CFL, {"start": -1}, "start"),
        (CFL, {"least": 1}, "least"),
        (CFL, {"linkage": "ward"}, "linkage"),
        (CFL, {"gamma": 2.0}, "gamma"),
        (FedFomo, {"models": 0}, "models"),
        (FedFomo, {"explore": 2.0}, "explore"),
        (FedFomo, {"decay": -0.1}, "decay"),
    ],
)
def test_settings_outside_their_range_are_refused(method: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=f"{method.__name__}: {words}"):
        method(**settings)
