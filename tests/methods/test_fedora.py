"""FEDORA: sketches, propagation and the gate, against plain NumPy; new clients; many clients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import atoll.data
from atoll import seeds
from atoll.contract import ClientData, Population, Replies, Reply
from atoll.errors import ConfigError
from atoll.federation import Federation
from atoll.methods import Fedora
from atoll.methods.personal.relatedness import (
    closed_form,
    likeness,
    nearest,
    propagate,
    transition,
    truncated,
    walk,
)
from atoll.methods.personal.sketches import Sketch, basis
from atoll.rounds.cohort import Cohort
from atoll.rounds.round import ServerRound
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors, leaves
from atoll.testing import check

from .driver import line, whole


def bases(n: int, width: int = 12, rank: int = 1, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(
        np.stack([np.linalg.qr(rng.normal(size=(width, rank)))[0] for _ in range(n)])
    ).float()


def graph(n: int, k: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weights and neighbours of n random clients."""
    values = likeness(bases(n, seed=seed), bases(n, seed=seed))
    values.fill_diagonal_(-torch.inf)
    scores, neighbours = nearest(values, torch.arange(n), k)
    return transition(scores, 10.0), neighbours


# --- relatedness ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 3])
def test_likeness_is_the_sum_of_the_cosines_of_principal_angles(rank: int) -> None:
    from scipy.linalg import subspace_angles

    some = bases(5, rank=rank)
    found = likeness(some, some)
    for i in range(5):
        for j in range(5):
            want = np.cos(subspace_angles(some[i].double().numpy(), some[j].double().numpy())).sum()
            assert float(found[i, j]) == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8])
def test_the_walk_is_the_closed_form(alpha: float) -> None:
    weights, neighbours = graph(36)
    matrix = closed_form(weights, neighbours, alpha)
    torch.testing.assert_close(matrix.sum(1), torch.ones(36, dtype=torch.float64))
    assert float(matrix.min()) >= -1e-16  # an inverse in floating point: what is 0 may come out just below
    assert float(matrix.diagonal().min()) >= 1 - alpha - 1e-6
    models = torch.randn(36, 50, dtype=torch.float64)
    everyone = torch.arange(36)
    torch.testing.assert_close(walk(weights, neighbours, alpha, everyone), matrix, rtol=0, atol=1e-6)
    some = torch.tensor([5, 3, 30])
    for width, wanted in (
        (50, everyone),
        (7, everyone),
        (50, some),
    ):  # by the rows of P, by the models' numbers
        cut = Tensors(a=models[:, :4].reshape(36, 2, 2), b=models[:, 4:width])
        moved = propagate(weights, neighbours, alpha, cut, wanted)
        found = torch.cat([value.flatten(1) for value in moved.values()], dim=1)
        torch.testing.assert_close(found, (matrix @ models[:, :width])[wanted], rtol=0, atol=1e-6)
        assert moved["a"].shape == (len(wanted), 2, 2)


def test_weights_of_high_rank_sketches_do_not_overflow() -> None:
    weights = transition(torch.tensor([[12.0, 11.5], [30.0, -torch.inf], [-torch.inf, -torch.inf]]), 10.0)
    assert bool(torch.isfinite(weights).all())
    torch.testing.assert_close(weights[0], torch.tensor([0.9933, 0.0067]), atol=1e-4, rtol=0)
    assert weights[1].tolist() == [1.0, 0.0]
    assert weights[2].tolist() == [0.0, 0.0]


# --- the method in pieces -------------------------------------------------------------------------------------------


def answers(sketches: Tensor, clients: list[int]) -> Replies:
    each = [Reply(Record(sketch=u), torch.ones(()), Record()) for u in sketches]
    return Replies(clients, float(len(clients)), Record(), each)


def test_clients_that_come_one_after_another_are_placed_as_if_all_came_at_once() -> None:
    method, sketches = Fedora(top_k=3), bases(9)
    start = method.setup(line(), Population(9))
    once = method.welcome(start, answers(sketches, list(range(9))))
    slowly = start
    for part in ([0, 1], [2], [3, 4, 5, 6], [7, 8]):
        slowly = method.welcome(slowly, answers(sketches[part], part))
    assert torch.equal(once.near.neighbours, slowly.near.neighbours)
    torch.testing.assert_close(once.near.scores, slowly.near.scores)
    left = method.leave(once, [2, 5])
    fresh = method.welcome(start, answers(sketches[[0, 1, 3, 4, 6, 7, 8]], [0, 1, 3, 4, 6, 7, 8]))
    assert left.near.ids.tolist() == fresh.near.ids.tolist()
    assert torch.equal(left.near.neighbours, fresh.near.neighbours)


def test_absent_clients_propagate_their_last_own_model() -> None:
    method, task = Fedora(), line()
    sketches = bases(6)
    state = method.welcome(method.setup(task, Population(6)), answers(sketches, list(range(6))))

    def trained(clients: list[int], values: list[float]) -> Replies:
        each = [
            Reply(Record(params=Tensors(weight=torch.tensor([[v]], dtype=torch.float64)), buffers=Tensors()),
                  torch.ones(()), Record())
            for v in values
        ]  # fmt: skip
        return Replies(clients, float(len(clients)), Record(), each)

    state = method.update(state, trained(list(range(6)), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
    state = method.update(state, trained([1, 4], [20.0, 50.0]))
    weights = transition(state.near.scores, 10.0)
    matrix = closed_form(weights, state.near.neighbours, method.alpha)
    want = matrix @ torch.tensor([1.0, 20.0, 3.0, 4.0, 50.0, 6.0], dtype=torch.float64)
    own = method.broadcast(state, range(6)).own
    got = [float(own[k].params["weight"]) for k in range(6)]
    assert got == pytest.approx(want.tolist(), abs=1e-6)


def data_of(validation: Batch) -> ClientData:
    return ClientData(torch.tensor(4.0), torch.tensor(0), validation=validation)


def begun(method: Fedora, own: float, anchor: float, best: float = 0.0, lr: float = 0.1) -> Record:
    """The working state of a client with F(w) = (w - best)^2 on its validation data."""
    tensors = {
        name: Tensors(weight=torch.tensor([[v]], dtype=torch.float64))
        for name, v in (("o", own), ("a", anchor))
    }
    received = Record(lr=torch.tensor(lr, dtype=torch.float64), params=tensors["a"], buffers=Tensors())
    memory = Record(params=tensors["o"], buffers=Tensors())
    inputs = torch.ones(4, 1, dtype=torch.float64)
    return method.begin(line(), received, memory, data_of(whole(inputs, inputs * best)))


def test_the_gate_opens_where_the_received_model_generalises_better() -> None:
    method = Fedora(lr=0.1, strength=2.0)
    assert float(begun(method, own=1.0, anchor=1.5).pull) == 0.0
    assert float(begun(method, own=1.0, anchor=1.0).pull) == 2.0
    gain = 1.0**2 - 0.5**2
    assert float(begun(method, own=1.0, anchor=0.5).pull) == pytest.approx(2.0 * np.exp(gain / 2))
    assert float(begun(method, own=10.0, anchor=0.0).pull) == pytest.approx(
        1 / 0.1
    )  # bounded: lr lambda <= 1
    always = Fedora(gate="always", strength=3.0)
    assert float(begun(always, own=1.0, anchor=9.0).pull) == 3.0
    soft = Fedora(gate="soft", softness=0.5)
    assert float(begun(soft, own=1.0, anchor=0.5).pull) == pytest.approx(1 / (1 + np.exp(-gain / 0.5)))


@pytest.mark.parametrize("prox", ["explicit", "implicit"])
def test_a_step_is_the_papers(prox: str) -> None:
    method = Fedora(lr=0.1, gate="always", strength=2.0, prox=prox, momentum=0.9)  # type: ignore[arg-type]
    local = begun(method, own=1.0, anchor=3.0)
    w, v, momentum = 1.0, 3.0, 0.0
    for _ in range(4):
        inputs = torch.ones(2, 1, dtype=torch.float64)
        local = method.step(line(), local, whole(inputs, 0.0 * inputs))
        momentum = 0.9 * momentum + 2 * w
        after = w - 0.1 * momentum
        w = after - 0.1 * 2.0 * (w - v) if prox == "explicit" else (after + 0.2 * v) / 1.2
        assert float(local.params["weight"]) == pytest.approx(w, abs=1e-12)


def chosen(own: float, alone: float, targets: Tensor, mask: Tensor | None = None) -> Record:
    """What a client remembers after no step, with F_i(w) = (w - y_i)^2 on its validation samples."""
    method, inputs = Fedora(gate="beside"), torch.ones(len(targets), 1, dtype=torch.float64)
    model = {
        name: Record(params=Tensors(weight=torch.full((1, 1), v, dtype=torch.float64)), buffers=Tensors())
        for name, v in (("own", own), ("alone", alone))
    }
    received = Record(lr=torch.tensor(0.1, dtype=torch.float64), **model["own"])
    memory = method.remember(line(), received).replace(alone=model["alone"])
    batch = whole(inputs, targets.reshape(-1, 1).double())
    data = data_of(batch if mask is None else batch._replace(mask=mask))
    return method.finish(line(), method.begin(line(), received, memory, data), data)[1]


def test_a_client_predicts_with_the_model_that_loses_less_on_its_validation_samples() -> None:
    seen, generator = set(), np.random.default_rng(7)
    for _ in range(20):
        targets = generator.normal(size=9)
        own, alone = generator.normal(scale=0.3, size=2)
        follows = ((own - targets) ** 2).mean() <= ((alone - targets) ** 2).mean()
        seen.add(bool(follows))
        padded = torch.cat([torch.from_numpy(targets), torch.full((4,), 50.0, dtype=torch.float64)])
        for kept in (
            chosen(own, alone, torch.from_numpy(targets)),
            chosen(own, alone, padded, torch.tensor([1.0] * 9 + [0.0] * 4)),
        ):
            assert float(kept.follows) == follows
            params, _ = Fedora(gate="beside").personal(Record(), kept)
            assert float(params["weight"]) == (own if follows else alone)
    assert seen == {True, False}


def test_a_client_that_cannot_compare_predicts_with_the_pulled_model() -> None:
    assert float(chosen(0.0, 0.0, torch.tensor([9.0, 9.0])).follows) == 1
    assert float(chosen(0.0, 9.0, torch.tensor([9.0, 9.0])).follows) == 0
    assert float(chosen(0.0, 9.0, torch.tensor([9.0, 9.0]), torch.zeros(2)).follows) == 1
    method = Fedora(gate="beside")
    received = Record(lr=torch.tensor(0.1), params=line().initial()[0], buffers=Tensors())
    data = ClientData(torch.tensor(4.0), torch.tensor(0))
    local = method.begin(line(), received, method.remember(line(), received), data)
    reply, kept = method.finish(line(), local, data)
    assert float(kept.follows) == 1
    assert set(reply.values) == {"params", "buffers"}  # what it would be alone stays with the client


def test_sketches_are_exact_and_blind_to_padding() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.random((20, 7)).astype(np.float32), rng.integers(0, 3, 20)
    task = Task(nn.Linear(7, 3))
    method = Fedora(rank=2, label_scale=0.5)
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)
    padded = Batch(
        torch.cat([inputs, inputs[:6]]), torch.cat([targets, targets[:6]]),
        torch.cat([torch.ones(20), torch.zeros(6)]), torch.zeros((), dtype=torch.int64),
    )  # fmt: skip
    rows = np.concatenate([x, 0.5 * np.eye(3)[y]], axis=1)
    want = torch.from_numpy(np.linalg.svd(rows.T, full_matrices=False)[0][:, :2]).float()
    for batch in (whole(inputs, targets), padded):
        program = method.programs()["sketch"]
        local = program.begin(
            task, Record(), Record(), ClientData(torch.tensor(20.0), torch.tensor(0), train=batch)
        )
        sketch = local.sketch
        torch.testing.assert_close(sketch.T @ sketch, torch.eye(2), atol=1e-5, rtol=0)
        torch.testing.assert_close(
            likeness(sketch[None], want[None])[0, 0], torch.tensor(2.0), atol=1e-4, rtol=0
        )


def test_sketches_of_rows_with_empty_columns() -> None:
    """Images have pixels that are never set; single precision does not get through that many equal eigenvalues."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.zeros(900, 794)
    rows[:, 300:340] = torch.rand(900, 40, generator=generator)
    rows[torch.arange(900), 784 + torch.arange(900) % 10] = 1.0
    vector = basis(rows, 1)
    wanted = torch.linalg.svd(rows.double(), full_matrices=False)[2][0]
    assert abs(float(vector[:, 0].double() @ wanted)) == pytest.approx(1.0, abs=1e-5)


def test_noise_hides_and_a_basis_remains() -> None:
    rng = np.random.default_rng(1)
    x, y = torch.from_numpy(rng.random((200, 30)).astype(np.float32)), torch.zeros(200, dtype=torch.int64)
    task, found = Task(nn.Linear(30, 2)), []
    for noise in (0.0, 0.003, 0.3):
        method = Fedora(sketch_dim=8, sketch_noise=noise)
        batch = Batch(x, y, torch.ones(200), torch.tensor(77))
        local = method.programs()["sketch"].begin(
            task,
            Record(projection=torch.tensor(5)),
            Record(),
            ClientData(torch.tensor(200.0), torch.tensor(77), train=batch),
        )
        assert local.sketch.shape == (10, 1)
        assert float(local.sketch.norm()) == pytest.approx(1.0, abs=1e-5)
        found.append(local.sketch)
    near, far = (float(likeness(found[0][None], other[None])) for other in found[1:])
    assert near > 0.99
    assert far < near


def test_the_noise_has_its_deviation_where_no_sample_counts_for_more_than_one() -> None:
    """The Gaussian mechanism: symmetric noise in the mean of x x' with every |x| <= 1, and each client's own."""
    rng = np.random.default_rng(2)
    x, y, noise = (rng.normal(size=(40, 5)) * 9).astype(np.float32), rng.integers(0, 2, 40), 0.2
    task, program = Task(nn.Linear(5, 2)), Sketch(rank=2, label_scale=1.0, dim=0, noise=noise)
    rows = np.concatenate([x, np.eye(2)[y]], axis=1)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1)
    for key in (torch.tensor(77), torch.tensor(78)):
        data = ClientData(
            torch.tensor(40.0), key, train=whole(torch.from_numpy(x), torch.from_numpy(y))._replace(key=key)
        )
        sketch = program.begin(task, Record(), Record(), data).sketch.double().numpy()
        drawn = np.triu(seeds.normal(key, (7, 7)).double().numpy())
        moment = rows.T @ rows / 40 + noise * (drawn + np.triu(drawn, 1).T)
        want = np.linalg.eigh(moment)[1][:, -2:]
        assert np.linalg.norm(sketch.T @ want) ** 2 == pytest.approx(2, abs=1e-4)


# --- the whole ------------------------------------------------------------------------------------------------------


def groups(clients: int = 8, samples: int = 120, opposite: bool = False) -> dict[str, object]:
    """Two groups of clients with different inputs; with `opposite` their labels mean different things, too."""
    rng = np.random.default_rng(4)
    weights = rng.normal(size=(10, 3))
    centre = rng.normal(size=(2, 10)) * 2
    made = {}
    for k in range(clients):
        x = (rng.normal(size=(samples, 10)) + centre[k % 2]).astype(np.float32)
        y = ((x - centre[k % 2]) @ weights).argmax(1)
        if opposite and k % 2:
            y = (y + 1) % 3
        made[f"c{k}"] = {"train": (x[:60], y[:60]), "test": (x[60:], y[60:])}
    return made


def federation(method: object, made: dict[str, object], **settings: object) -> Federation:
    data = atoll.data.from_clients(made, classes=3, validation=0.3)
    return Federation(
        lambda: nn.Linear(10, 3),
        data,
        method,
        rounds=20,
        cohort=len(data),
        engine="loop",
        eval_every=0,
        **settings,
    )  # type: ignore[arg-type]


def test_without_a_pull_it_is_local_training() -> None:
    made = groups()
    alone = federation("local", made, lr=0.1, batch_size=7)
    alone.fit()
    pulled = federation(Fedora(lr=0.1, batch_size=7, strength=0.0), made)
    pulled.fit()
    for k in range(8):
        one, other = alone.memories.get(k), pulled.memories.get(k)
        assert one is not None and other is not None
        assert all(torch.equal(a, b) for a, b in zip(leaves(one.params), leaves(other.params), strict=True))


def some_alike(odd: int = 3) -> dict[str, object]:
    """Eight clients with like inputs and few samples; the labels of one mean something else."""
    rng = np.random.default_rng(4)
    weights, made = rng.normal(size=(10, 3)), {}
    for k in range(8):
        x = (rng.normal(size=(140, 10)) + 1).astype(np.float32)
        y = (x @ weights + 0.5 * rng.normal(size=(140, 3))).argmax(1)
        y = (y + 1) % 3 if k == odd else y
        made[f"c{k}"] = {"train": (x[:40], y[:40]), "test": (x[40:], y[40:])}
    return made


def test_beside_whoever_neighbours_help_follows_and_whoever_they_hurt_does_not() -> None:
    made, settings = some_alike(), {"lr": 0.3, "batch_size": 8, "momentum": 0.5, "clip": 2.0}
    found = {}
    for name, method in (
        ("beside", Fedora(gate="beside", strength=0.5, **settings)),  # type: ignore[arg-type]
        ("always", Fedora(gate="always", strength=0.5, **settings)),  # type: ignore[arg-type]
        ("local", "local"),
    ):
        fed = federation(method, made, **({} if isinstance(method, Fedora) else settings))
        run = fed.fit()
        assert run.evaluation is not None
        kind = "personal" if run.evaluation.personal else "clients"
        memories = [fed.memories.get(k) for k in range(8)]
        found[name] = memories, [run.evaluation.each[kind]["accuracy"][k] for k in range(8)]
    follows = [bool(m.follows) for m in found["beside"][0]]  # type: ignore[union-attr]
    assert not follows[3]
    assert sum(follows) >= 5
    for k, (beside, always, local) in enumerate(zip(*(found[n][0] for n in found), strict=True)):
        assert beside is not None and always is not None and local is not None
        assert torch.equal(beside.params["weight"], always.params["weight"])
        assert torch.equal(beside.alone.params["weight"], local.params["weight"])
        assert found["beside"][1][k] == found["always" if follows[k] else "local"][1][k]
    gains = [after - before for after, before in zip(found["beside"][1], found["local"][1], strict=True)]
    assert found["local"][1][3] > found["always"][1][3] + 0.2
    assert sum(gains) / len(gains) > 0.03
    assert min(gains) > -0.02


def test_beside_without_a_pull_trains_one_model_twice() -> None:
    fed = federation(Fedora(lr=0.1, batch_size=7, strength=0.0, gate="beside"), groups(), joins={5: 6})
    fed.fit()
    for k in (0, 2, 5):
        kept = fed.memories.get(k)
        assert kept is not None
        assert float(kept.follows) == 1
        assert torch.equal(kept.params["weight"], kept.alone.params["weight"])


def test_beside_keeps_the_contract_in_every_engine() -> None:
    report = check(Fedora(gate="beside", batch_size=8, momentum=0.5), raises=False, rounds=2)
    assert report.ok, str(report)


def test_neighbours_are_of_the_own_group_and_a_newcomer_is_served_at_once() -> None:
    made = groups(opposite=True)
    stranger = made.pop("c7")
    fed = federation(Fedora(lr=0.3, batch_size=7, gate="always", strength=0.5), made)
    run = fed.fit()
    near = fed.state.near
    for at, client in enumerate(near.ids.tolist()):
        assert all(near.ids[j] % 2 == client % 2 for j in near.neighbours[at])
    assert run.evaluation is not None
    x, y = (torch.from_numpy(part) for part in stranger["test"])  # type: ignore[index]
    params, buffers = fed.method.offer(fed.state, x)  # type: ignore[attr-defined]
    offered = fed.task.measure(params, buffers, x, y).accuracy.mean()
    everyone = fed.task.measure(*fed.method.model(fed.state), x, y).accuracy.mean()
    assert float(offered) > 0.6
    assert float(offered) > float(everyone) + 0.1


def test_who_comes_late_starts_from_the_mean_of_its_neighbours_models() -> None:
    fed = federation(Fedora(lr=0.3, batch_size=7, top_k=3, temperature=4.0), groups(), joins={6: 5})
    for _ in range(4):
        fed.round()
    models = {int(k): model["weight"].numpy() for k, model in fed.state.models.items()}
    assert sorted(models) == [0, 1, 2, 3, 4, 5, 7]
    inputs = fed.data.samples(6).inputs  # type: ignore[union-attr]
    order = fed.state.near.ids.tolist()

    def mean(sketch: torch.Tensor, sketches: torch.Tensor) -> np.ndarray:
        """What an independent reading of the formula gives."""
        like = {k: abs(float(sketch[:, 0] @ sketches[order.index(k), :, 0])) for k in models}
        best = sorted(models, key=lambda k: -like[k])[:3]
        weights = np.exp([4.0 * like[k] for k in best])
        return np.einsum("k,kij->ij", weights / weights.sum(), np.stack([models[k] for k in best]))

    part = fed.state.near.sketches[:, :10]
    offered, _ = fed.method.offer(fed.state, inputs)  # type: ignore[attr-defined]
    sketch = torch.linalg.svd(inputs, full_matrices=False)[2][:1].T
    np.testing.assert_allclose(
        offered["weight"], mean(sketch, part / part.norm(dim=1, keepdim=True)), atol=1e-5
    )
    others = {k: fed.memories.get(k).params["weight"].clone() for k in models}  # type: ignore[union-attr]
    now = fed.simulation
    asked = ServerRound(now.method, now.population, now.state, Cohort([6]), 5, fed.seed)
    assert asked.job is not None
    asked.settle(*fed.engine.run(asked.job, fed.memories))
    state = asked.state
    order = state.near.ids.tolist()
    start = fed.method.broadcast(state, [6]).own[6].params["weight"]
    np.testing.assert_allclose(
        start, mean(state.near.sketches[order.index(6)], state.near.sketches), atol=1e-5
    )
    assert all(torch.equal(fed.memories.get(k).params["weight"], w) for k, w in others.items())  # type: ignore[union-attr]


def test_validation_data_is_asked_for_before_anything_runs() -> None:
    data = atoll.data.from_clients(groups(), classes=3)
    with pytest.raises(ConfigError, match="Fedora looks at validation data, and the clients have none"):
        Federation(lambda: nn.Linear(10, 3), data, Fedora())
    Federation(lambda: nn.Linear(10, 3), data, Fedora(gate="always"))


def test_ten_thousand_clients_are_related_without_a_square_matrix() -> None:
    sketches = bases(10_000, width=32)
    method = Fedora()
    state = method.setup(line(), Population(10_000))
    for start in range(0, 10_000, 2_500):
        clients = list(range(start, start + 2_500))
        state = method.welcome(state, answers(sketches[start : start + 2_500], clients))
    assert max(v.numel() for v in leaves(state.near) if isinstance(v, Tensor)) == 10_000 * 32
    weights = transition(state.near.scores, 10.0)
    some = torch.arange(0, 10_000, 100)
    moved = propagate(weights, state.near.neighbours, 0.8, Tensors(w=torch.ones(10_000, 200)), some)
    torch.testing.assert_close(moved["w"], torch.ones(100, 200))


def test_sketches_without_labels_are_orthonormal() -> None:
    cut = truncated(bases(4, rank=2), 9)
    torch.testing.assert_close(cut.transpose(1, 2) @ cut, torch.eye(2).expand(4, 2, 2), atol=1e-5, rtol=0)
