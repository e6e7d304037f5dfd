"""Methods that compare features: FedProto and kNN-Per. Each is checked against plain loops over a plain network."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import atoll.data
from atoll.contract import ClientData, Method, Population
from atoll.errors import ConfigError
from atoll.federation import Federation
from atoll.methods import FedAvg, FedProto, KNNPer, Local
from atoll.methods.personal.fedproto import nearness
from atoll.methods.personal.knnper import best, mixture, neighbours
from atoll.task import Batch, Task
from atoll.tensors import Record, leaves

from .driver import Client, Played, blobs, network, whole

PLAN: dict[str, Any] = {"lr": 0.2, "epochs": 2, "batch_size": 4}
SIZES = (8, 13, 6)


def some() -> list[Client]:
    """Clients with test data; the first knows nothing of class 2, and nobody of it alone."""
    first, *rest = blobs(*SIZES, tested=5)
    return [first._replace(targets=first.targets % 2), *rest]


def bits(one: Any, other: Any) -> bool:
    return all(
        torch.equal(torch.as_tensor(a), torch.as_tensor(b))
        for a, b in zip(leaves(one), leaves(other), strict=True)
    )


def plain(params: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    z = torch.tanh(x @ params["0.weight"].T + params["0.bias"])
    return z, z @ params["2.weight"].T + params["2.bias"]


def noisy(first: int = 8) -> Callable[[], nn.Module]:
    """A network whose features have width 8, whatever the width of its first layer."""
    return lambda: nn.Sequential(
        nn.Linear(6, first), nn.BatchNorm1d(first), nn.Tanh(), nn.Dropout(0.2), nn.Linear(first, 8), nn.ReLU(),
        nn.Linear(8, 3),
    )  # fmt: skip


def federated(validation: float = 0) -> Any:
    made = {}
    for k, client in enumerate(blobs(13, 5, 2, 9, tested=6)):
        assert client.test is not None
        test = (client.test[0].numpy(), client.test[1].numpy())
        made[f"c{k}"] = {"train": (client.inputs.numpy(), client.targets.numpy()), "test": test}
    return atoll.data.from_clients(made, classes=3, validation=validation)


def federation(model: Any, method: Method, engine: str, **settings: Any) -> Federation:
    validation = settings.pop("validation", 0)
    given = {"rounds": 2, "cohort": 3, "engine": engine, "workers": 1, "eval_every": 0, "device": "cpu"}
    return Federation(model, federated(validation), method, **{**given, **settings})


def padded(batch: Batch, rows: int) -> Batch:
    """The same samples with so many rows of padding, which look like real ones."""
    more = torch.zeros(rows, dtype=torch.int64)
    inputs, targets = (
        torch.cat([batch.inputs, batch.inputs[more]]),
        torch.cat([batch.targets, batch.targets[more]]),
    )
    return Batch(inputs, targets, torch.cat([batch.mask, torch.zeros(rows)]), batch.key)


# --- FedProto -------------------------------------------------------------------------------------------------------


def test_without_a_pull_clients_train_alone_to_the_bit() -> None:
    task = network(normalised=True)
    alone, none, pulled = (
        Played(method, task, some()).rounds(3)
        for method in (Local(**PLAN, momentum=0.5), FedProto(**PLAN, momentum=0.5, lam=0.0), FedProto(**PLAN))
    )
    for k in range(3):
        assert bits(alone.memories[k], none.memories[k])
        assert not bits(alone.memories[k], pulled.memories[k])
        assert (
            FedProto(lam=0.0, predict="model").personal(Record(), none.memories[k])[0]
            is none.memories[k].params
        )
    assert bits(none.state.params, network(normalised=True).initial()[0])


def test_prototypes_are_means_over_all_samples_and_stale_ones_stay() -> None:
    clients = some()
    run = Played(FedProto(**PLAN), network(), clients)
    assert run.state.prototypes.shape == (3, 8)
    assert run.state.known.tolist() == [0, 0, 0]
    run.round([0])
    assert run.state.known.tolist() == [1, 1, 0]
    assert not run.state.prototypes[2].any()
    run.round()
    held = [plain(run.memories[k].params, client.inputs)[0] for k, client in enumerate(clients)]
    z, y = torch.cat(held), torch.cat([client.targets for client in clients])
    wanted = torch.stack([z[y == c].mean(0) for c in range(3)])
    torch.testing.assert_close(run.state.prototypes, wanted, rtol=1e-5, atol=1e-6)
    own = [[h[c.targets == 0].mean(0) for h, c in zip(held, clients, strict=True) if (c.targets == 0).any()]]
    assert (torch.stack(own[0]).mean(0) - wanted[0]).norm() > 1e-2  # clients weighed alike: another result
    stale = run.state.prototypes[2].clone()
    run.round([0])
    assert run.state.known.tolist() == [1, 1, 1]
    assert torch.equal(run.state.prototypes[2], stale)
    assert not torch.equal(run.state.prototypes[0], wanted[0])


def by_hand(client: Client, w: Any, prototypes: Tensor, known: Tensor, lam: float, distance: str) -> Any:
    """A client's training on cross entropy and the pull to known prototypes."""
    v = dict(w)
    for _ in range(PLAN["epochs"]):
        for at in range(0, len(client.inputs), 4):
            x, y = client.inputs[at : at + 4], client.targets[at : at + 4]
            v = {n: p.detach().requires_grad_() for n, p in v.items()}
            z, out = plain(v, x)
            pull, met = torch.zeros(()), 0
            for features, c in zip(z, y.tolist(), strict=True):
                if known[c]:
                    gap = (features - prototypes[c]).square()
                    pull, met = pull + (gap.sum() if distance == "sum" else gap.mean()), met + 1
            count = max(met, 1) if distance == "known only" else len(y)
            value = F.cross_entropy(out, y) + lam * pull / count
            slopes = torch.autograd.grad(value, list(v.values()))
            v = {n: (p - PLAN["lr"] * s).detach() for (n, p), s in zip(v.items(), slopes, strict=True)}
    return v


def test_the_pull_is_its_formula_where_prototypes_are_known() -> None:
    clients = some()
    run = Played(FedProto(**PLAN, lam=3.0), network(), clients)
    run.round([0])  # class 2 stays unknown
    prototypes, known = run.state.prototypes, run.state.known
    start = network().initial()[0]
    run.round([1])
    wanted, *wrong = (
        by_hand(clients[1], start, prototypes, known, 3.0, each) for each in ("mean", "sum", "known only")
    )
    assert (clients[1].targets == 2).any()
    got = run.memories[1].params
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, rtol=2e-4, atol=2e-6)
    for other in wrong:
        assert max(float((got[name] - value).abs().max()) for name, value in other.items()) > 1e-3


def test_a_reply_is_as_many_numbers_as_the_prototypes_and_counts() -> None:
    run = Played(FedProto(**PLAN), network(normalised=True), some())
    run.round()
    for reply in run.sent.values():
        assert {name: tuple(value.shape) for name, value in reply.values.items()} == {
            "sums": (3, 8),
            "counts": (3,),
        }
        assert float(reply.values.counts.sum()) == pytest.approx(1.0)
    assert [float(reply.weight) for reply in run.sent.values()] == list(SIZES)
    made = federation([noisy(8), noisy(12)], FedProto(**PLAN), "loop", cohort=4)
    record = made.round()
    assert record.bytes_up == 4 * 4 * (3 * 8 + 3)
    assert record.bytes_down == 4 * 4 * (3 * 8 + 3 + 1)


def test_padding_does_not_count() -> None:
    task, (client,) = network(normalised=True), blobs(8)
    method = FedProto(**PLAN)
    received = method.broadcast(method.setup(task, Population(1, (task,), client.inputs[:1])), [0]).received(
        0
    )
    replies = []
    with torch.no_grad():
        for train in (whole(client.inputs, client.targets), padded(whole(client.inputs, client.targets), 5)):
            data = ClientData(torch.tensor(8.0), torch.tensor(0), train=train)
            local = method.begin(task, received, method.remember(task, received), data)
            replies.append(method.finish(task, local, data)[0].values)
        empty = method.finish(task, local, ClientData(torch.tensor(0.0), torch.tensor(0)))[0].values
    torch.testing.assert_close(replies[0], replies[1])
    assert not empty.sums.any() and not empty.counts.any()


def test_clients_predict_with_the_nearest_known_prototype() -> None:
    clients = some()
    run = Played(FedProto(**PLAN), network(), clients)
    task = network()
    before, model = run.personal(1), task.initial()
    measured = task.totals(*model, whole(*clients[1].test))  # type: ignore[misc]
    assert before.accuracy == float(measured.accuracy / 5)
    assert before.loss == pytest.approx(float(measured.loss / 5))
    run.round([0])
    run.round([0, 1])
    x, y = clients[1].test  # type: ignore[misc]
    z, out = plain(run.memories[1].params, x)
    apart = torch.stack([(z - p).square().sum(1) for p in run.state.prototypes], 1)
    judged = run.personal(1)
    assert judged.accuracy == float((apart.argmin(1) == y).float().mean())
    assert judged.loss == pytest.approx(float(F.cross_entropy(-apart, y)), rel=1e-5)
    plainly = Played(FedProto(**PLAN, predict="model"), task, clients)
    plainly.state, plainly.memories = run.state, run.memories
    assert plainly.personal(1).loss == pytest.approx(float(F.cross_entropy(out, y)), rel=1e-5)
    assert 2 not in run.memories  # it has not taken part: features of the initial model
    x, y = clients[2].test  # type: ignore[misc]
    apart = torch.cdist(plain(task.initial()[0], x)[0], run.state.prototypes)
    assert run.personal(2).accuracy == float((apart.argmin(1) == y).float().mean())


def test_a_class_without_a_prototype_is_never_nearest() -> None:
    z, prototypes = torch.zeros(2, 4), torch.tensor([[1e3] * 4, [0.0] * 4, [3.0] * 4])
    near = nearness(z, prototypes, torch.tensor([1.0, 0.0, 1.0]))
    assert near.isfinite().all()
    assert near.argmax(1).tolist() == [2, 2]
    assert (near[:, 1] < near[:, [0, 2]].amin(1)).all()


@pytest.mark.parametrize("engine", ["batched", "processes"])
def test_architectures_may_differ_in_every_engine(engine: str) -> None:
    runs = [
        federation([noisy(8), noisy(12)], FedProto(lr=0.05, batch_size=4), each, newcomers=1)
        for each in ("loop", engine)
    ]
    judged = [run.fit().evaluation for run in runs]
    one, two = (run.state for run in runs)
    assert one.known.tolist() == [1, 1, 1]
    torch.testing.assert_close(two.prototypes, one.prototypes, rtol=1e-4, atol=1e-5)
    seen = set()
    for k in range(4):
        kept, same = (run.memories.get(k) for run in runs)
        assert (kept is None) == (same is None) == (k in runs[0].membership.newcomers)
        if kept is not None and same is not None:
            seen.add(len(kept.params["0.bias"]))
            torch.testing.assert_close(same.params.flat(), kept.params.flat(), rtol=1e-3, atol=1e-5)
    assert seen == {8, 12}
    assert judged[0] is not None and judged[1] is not None
    for kind in ("personal", "newcomers"):
        spreads = [getattr(each, kind)["loss"].mean for each in judged]
        assert spreads[0] == pytest.approx(spreads[1], rel=1e-3)


def test_features_of_different_widths_are_refused_with_the_widths() -> None:
    def narrow() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))

    def many() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))

    with pytest.raises(
        ConfigError, match=r"features of different architectures, and they have 8, 5 features"
    ):
        federation([noisy(), narrow], FedProto(), "loop")
    with pytest.raises(ConfigError, match=r"they have 8, 8, 4|they have 3, 4 outputs"):
        federation([noisy(), many], FedProto(), "loop")


@pytest.mark.parametrize("method", [FedProto(), KNNPer(lam=0.5)])
def test_methods_with_classes_refuse_regression(method: Method) -> None:
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)).numpy()
    data = atoll.data.from_clients({"a": {"train": (x, x[:, :1]), "test": (x, x[:, :1])}})
    with pytest.raises(ConfigError, match=rf"{type(method).__name__} needs one class label .* loss is mse"):
        Federation(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 1)), data, method)


# --- kNN-Per --------------------------------------------------------------------------------------------------------


def test_local_memories_leave_training_as_federated_averaging() -> None:
    task = network(normalised=True)
    shared, knn = (Played(m, task, some()).rounds(3) for m in (FedAvg(**PLAN), KNNPer(**PLAN, lam=0.5)))
    assert bits(shared.state, knn.state)
    assert not knn.memories


def with_lam(lam: float | None, **settings: Any) -> Played:
    return Played(KNNPer(**PLAN, lam=lam, **settings), network(), some()).rounds(2)


def test_without_neighbours_clients_predict_with_the_global_model() -> None:
    shared, run = Played(FedAvg(**PLAN), network(), some()).rounds(2), with_lam(0.0)
    for k in range(3):
        assert run.personal(k).accuracy == shared.personal(k).accuracy
        assert run.personal(k).loss == pytest.approx(shared.personal(k).loss, rel=1e-6)


def test_the_nearest_neighbour_alone_gives_its_label() -> None:
    run = with_lam(1.0, k=1)
    for k, client in enumerate(run.clients):
        x, y = client.test  # type: ignore[misc]
        mine, theirs = (plain(run.state.params, each)[0] for each in (client.inputs, x))
        labels = [
            int(client.targets[min(range(len(mine)), key=lambda i: float((mine[i] - z).norm()))])
            for z in theirs
        ]
        assert run.personal(k).accuracy == pytest.approx(
            sum(a == b for a, b in zip(labels, y.tolist(), strict=True)) / 5
        )
        assert math.isfinite(run.personal(k).loss)


def votes(z: Tensor, keys: Tensor, labels: Tensor, k: int, scale: float, distance: str = "") -> Tensor:
    """Shares of the classes among neighbours, sample by sample."""
    found = torch.zeros(len(z), 3)
    for at, row in enumerate(z):
        d = [float(((row - key) ** 2).sum()) ** (1 if distance == "squared" else 0.5) for key in keys]
        d = [each / (len(row) if distance == "divided" else 1) for each in d]
        for i in sorted(range(len(d)), key=d.__getitem__)[:k]:
            found[at, int(labels[i])] += math.exp(-d[i] / scale)
    return found / found.sum(1, keepdim=True)


@pytest.mark.parametrize("k", [4, 50])
def test_predictions_are_their_formula(k: int) -> None:
    run = with_lam(0.3, k=k, bandwidth=0.25)
    wrong = {"divided": 0.0, "squared": 0.0}
    for client in range(3):
        own = run.clients[client]
        x, y = own.test  # type: ignore[misc]
        (keys, _), (z, out) = plain(run.state.params, own.inputs), plain(run.state.params, x)
        losses = {
            kind: float(
                F.nll_loss(
                    torch.log(0.3 * votes(z, keys, own.targets, k, 0.25, kind) + 0.7 * out.softmax(1)), y
                )
            )
            for kind in ("", *wrong)
        }
        assert run.personal(client).loss == pytest.approx(losses[""], rel=1e-4)
        wrong = {kind: max(gap, abs(losses[kind] - losses[""])) for kind, gap in wrong.items()}
    assert all(gap > 1e-2 for gap in wrong.values()), wrong


def test_padded_samples_are_nobodys_neighbours() -> None:
    generator = torch.Generator().manual_seed(2)
    z, keys = torch.randn(300, 4, generator=generator), torch.randn(5, 4, generator=generator)
    labels, real = torch.tensor([0, 1, 2, 0, 1]), torch.ones(5)
    more = torch.cat([keys, z[:3]]), torch.cat([labels, torch.zeros(3, dtype=torch.int64)])
    for k in (1, 3, 20):
        found = neighbours(z, keys, labels, real, k, 1.0, 3)
        torch.testing.assert_close(found, votes(z, keys, labels, k, 1.0), rtol=1e-4, atol=1e-6)
        masked = neighbours(z, *more, torch.cat([real, torch.zeros(3)]), k, 1.0, 3)
        torch.testing.assert_close(masked, found, rtol=1e-6, atol=1e-7)
    nobody = neighbours(z, keys, labels, torch.zeros(5), 3, 1.0, 3)
    assert not nobody.any()
    model = torch.log_softmax(z[:, :3], 1)
    assert torch.equal(mixture(torch.tensor(0.8), nobody, model), model)
    sharp = neighbours(z, 1e3 * keys, labels, real, 5, 1e-3, 3)  # every e^{-d} is 0 in single precision
    torch.testing.assert_close(sharp.sum(1), torch.ones(300))


def test_the_share_of_neighbours_is_the_best_on_validation_samples() -> None:
    task = Task(nn.Linear(2, 2))
    q = torch.tensor([[1.0, 0.0], [0.3, 0.7], [0.9, 0.1]])
    model = torch.log(torch.tensor([[0.2, 0.8], [0.9, 0.1], [0.3, 0.7]]))

    def chosen(targets: list[int], mask: list[float] | None = None) -> float:
        labels, real = torch.tensor(targets), torch.tensor(mask or [1.0] * len(targets))
        lam = best(task, q, model, Batch(torch.zeros(3, 2), labels, real, torch.tensor(0)))
        scores = []
        for at in range(11):
            p = at / 10 * q.clamp(min=1e-12) + (1 - at / 10) * model.exp()
            hits = float(((p.argmax(1) == labels) * real).sum())
            scores.append((-hits, float((-p[range(3), targets].log() * real).sum()), at / 10))
        assert float(lam) == pytest.approx(min(scores)[2])
        return float(lam)

    assert chosen([0, 0, 0]) == pytest.approx(0.6)  # all right from 0.4 to 0.6; the least loss is at 0.7
    assert chosen([1, 0, 1]) == 0.0
    assert chosen([0, 0, 1], [1.0, 1.0, 0.0]) == pytest.approx(0.6)
    assert chosen([0, 0, 1], [0.0, 0.0, 0.0]) == 0.0  # nothing to choose by


@pytest.mark.parametrize(
    ("lam", "engine"),
    [
        (None, "batched"),
        pytest.param(0.4, "batched", marks=pytest.mark.slow),
        pytest.param(None, "processes", marks=pytest.mark.slow),
    ],
)
def test_engines_agree_on_neighbours(engine: str, lam: float | None) -> None:
    method = KNNPer(lr=0.05, batch_size=4, lam=lam, k=7)
    judged = []
    for kind in ("loop", engine):
        run = federation(noisy(), method, kind, validation=0.2 if lam is None else 0).fit()
        assert run.evaluation is not None
        judged.append({name: spread.mean for name, spread in run.evaluation.personal.items()})
    assert judged[0] == pytest.approx(judged[1], rel=1e-3, abs=1e-5)


def test_a_share_to_be_chosen_needs_validation_samples() -> None:
    with pytest.raises(ConfigError, match=r"KNNPer looks at validation data, and the clients have none"):
        federation(noisy(), KNNPer(), "loop")
    assert KNNPer(lam=0.5).program("personal").reads == ("train", "test")


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        (FedProto, {"lam": -1.0}, "FedProto: lam"),
        (FedProto, {"predict": "both"}, "predict"),
        (KNNPer, {"k": 0}, "KNNPer: k"),
        (KNNPer, {"lam": 1.5}, "lam"),
        (KNNPer, {"bandwidth": 0.0}, "bandwidth"),
    ],
)
def test_settings_outside_their_range_are_refused(method: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        method(**settings)
