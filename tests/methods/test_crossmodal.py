"""Contrast between parts of samples, against plain loops over plain networks."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import atoll
from atoll.contract import ClientData, Population
from atoll.errors import ConfigError
from atoll.methods import CrossModal, FedAvg
from atoll.methods.crossmodal import contrast
from atoll.modalities import HERE, present
from atoll.parts import Parts
from atoll.task import Batch, Task
from atoll.tensors import Record, leaves, nbytes

from .driver import Client, Played

PLAN: dict[str, Any] = {"lr": 0.2, "epochs": 2, "batch_size": 4}
SIZES = (8, 11, 6)
PARTS = ("left", "right")


class Both(nn.Module):
    """A layer for each part, and one behind their sum."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(3, 4), nn.Linear(2, width), nn.Linear(4, 3)

    def forward(self, left: Tensor, right: Tensor, here: Tensor) -> Tensor:
        found: Tensor = self.head(self.left(left) * here[:, :1] + self.right(right) * here[:, 1:])
        return found


def task(module: type[nn.Module] = Both) -> Task:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Task(module())


def clients() -> list[Client]:
    """The first knows nothing of class 2 and lacks the right part in all, the second in some; the third has all."""
    draw = torch.Generator().manual_seed(5)
    made = []
    for k, size in enumerate(SIZES):
        y = torch.randint(3, (size,), generator=draw) if k else torch.arange(size) % 2
        here = torch.ones(size, 2)
        here[: (size, 5, 0)[k], 1] = 0
        parts = {
            n: torch.randn(size, d, generator=draw) + y[:, None] for n, d in zip(PARTS, (3, 2), strict=True)
        }
        parts["right"] = parts["right"] * here[:, 1:]
        made.append(Client(Parts({**parts, HERE: here}), y))  # type: ignore[arg-type]
    return made


def encoded(params: Any, inputs: Any) -> list[Tensor]:
    given = dict(inputs.items())
    return [given[name] @ params[f"{name}.weight"].T + params[f"{name}.bias"] for name in PARTS]


def bits(one: Record, other: Record) -> bool:
    return all(map(torch.equal, leaves(one), leaves(other)))


def test_without_a_contrast_it_is_federated_averaging_to_the_bit() -> None:
    given = {**PLAN, "momentum": 0.5, "clip": 1.0}
    plain, none, pulled = (
        Played(method, task(), clients()).rounds(3)
        for method in (FedAvg(**given), CrossModal(**given, mu=0.0), CrossModal(**given))
    )
    assert bits(Record(params=plain.state.params), Record(params=none.state.params))
    assert not bits(Record(params=plain.state.params), Record(params=pulled.state.params))


def test_in_the_first_round_nothing_is_known_and_nothing_pulls() -> None:
    plain, pulled = (
        Played(method, task(), clients()).rounds(1) for method in (FedAvg(**PLAN), CrossModal(**PLAN))
    )
    torch.testing.assert_close(pulled.params, plain.params)


def trained(run: Played, k: int) -> Any:
    """The model with which a client ended its round."""
    return run.before + run.sent[k].values.update  # type: ignore[attr-defined]


def played(run: Played, cohort: list[int] | None = None) -> None:
    run.before = run.state.params  # type: ignore[attr-defined]
    run.round(cohort)


def test_prototypes_are_means_over_those_who_have_the_part_and_the_class() -> None:
    own = clients()
    run = Played(CrossModal(**PLAN), task(), own)
    assert run.state.prototypes.shape == (2, 3, 4)
    played(run, [0])
    assert run.state.known.tolist() == [[1, 1, 0], [0, 0, 0]]
    assert not run.state.prototypes[1].any() and not run.state.prototypes[0, 2].any()
    played(run)
    for m in range(2):
        for c in range(3):
            found = []
            for k, client in enumerate(own):
                e = encoded(trained(run, k), client.inputs)[m]
                found += [
                    row
                    for row, has, y in zip(e, present(client.inputs)[:, m], client.targets, strict=True)
                    if has and y == c
                ]
            torch.testing.assert_close(
                run.state.prototypes[m, c], torch.stack(found).mean(0), rtol=1e-5, atol=1e-5
            )
    before = run.state.prototypes.clone()
    played(run, [0])  # who has neither the right part nor class 2
    assert run.state.known.all()
    assert torch.equal(run.state.prototypes[1], before[1])
    assert torch.equal(run.state.prototypes[0, 2], before[0, 2])
    assert not torch.equal(run.state.prototypes[0, 0], before[0, 0])


def test_rows_of_padding_are_in_no_prototype() -> None:
    """Whatever they hold."""
    method, one, own = CrossModal(**PLAN), task(), clients()[1]
    state = method.setup(one, Population(1, (one,), own.inputs[:1]))
    received, found = method.broadcast(state, [0]).received(0), []
    rows = torch.tensor([*range(11), 3, 8, 9])
    for some in (rows[:11], rows):
        mask = (torch.arange(len(some)) < 11).float()
        train = Batch(own.inputs[some], own.targets[some], mask, torch.tensor(0))
        data = ClientData(torch.tensor(11.0), torch.tensor(0), train)
        local = method.begin(one, received, Record(), data)
        found.append(method.finish(one, local, data)[0].values)
    assert found[0].counts.sum() > 0
    for name in ("sums", "counts"):
        torch.testing.assert_close(found[0][name], found[1][name])


def spelt(e: Any, here: Any, y: int, prototypes: Tensor, known: Tensor, tau: float) -> Tensor:
    """The contrast of one sample, whose embeddings are e [M, d]."""
    total = torch.zeros(())
    for m in range(len(e)):
        others = [o for o in range(len(e)) if o != m and known[o, y]]
        if not here[m] or not others:
            continue
        for o in others:
            classes = [c for c in range(known.shape[1]) if known[o, c]]
            near = [F.cosine_similarity(e[m], prototypes[o, c], dim=0) / tau for c in classes]
            total = total - torch.log_softmax(torch.stack(near), 0)[classes.index(y)] / len(others)
    return total


@pytest.mark.parametrize("tau", [0.05, 0.5])
def test_the_contrast_is_its_formula_for_three_parts(tau: float) -> None:
    draw = torch.Generator().manual_seed(1)
    e, p = torch.randn(20, 3, 4, generator=draw), torch.randn(3, 5, 4, generator=draw)
    here, known = (torch.rand(s, generator=draw).round() for s in ((20, 3), (3, 5)))
    y = torch.randint(5, (20,), generator=draw)
    wanted = torch.stack([spelt(e[i], here[i], int(y[i]), p, known, tau) for i in range(20)])
    assert (wanted == 0).any() and (wanted > 0).any()
    torch.testing.assert_close(contrast(e, here, y, p, known, tau), wanted, rtol=1e-4, atol=1e-5)
    none = contrast(e.requires_grad_(), here, y, p, torch.zeros(3, 5), tau)
    assert not none.any()
    (slope,) = torch.autograd.grad(none.sum(), e)
    assert not slope.any()


@pytest.mark.parametrize("k", range(3))
def test_training_is_its_formula_whatever_parts_a_client_has(k: int) -> None:
    own, mu, tau = clients(), 2.0, 0.4
    run = Played(CrossModal(**PLAN, mu=mu, tau=tau), task(), own)
    run.round([1])
    prototypes, known, w = run.state.prototypes, run.state.known, dict(run.state.params)
    played(run, [k])
    for _ in range(PLAN["epochs"]):
        for at in range(0, len(own[k].targets), 4):
            x, y = own[k].inputs[at : at + 4], own[k].targets[at : at + 4]
            w = {n: p.detach().requires_grad_() for n, p in w.items()}
            e, here = torch.stack(encoded(w, x), 1), present(x)
            logits = (e * here.unsqueeze(2)).sum(1) @ w["head.weight"].T + w["head.bias"]
            pulls = [spelt(e[i], here[i], int(y[i]), prototypes, known, tau) for i in range(len(y))]
            value = F.cross_entropy(logits, y) + mu * torch.stack(pulls).mean()
            slopes = torch.autograd.grad(value, list(w.values()))
            w = {n: p - PLAN["lr"] * s for (n, p), s in zip(w.items(), slopes, strict=True)}
    for name, found in trained(run, k).items():
        torch.testing.assert_close(found, w[name].detach(), rtol=1e-3, atol=1e-5)
    if k == 0:  # it has no right part, and its left one moves otherwise than without the others'
        alone = Played(FedAvg(**PLAN), task(), own)
        alone.round([1])
        alone.round([0])
        assert (alone.params - run.params).abs().max() > 1e-3


def halves(lack: bool = True) -> atoll.FederatedData:
    """Two parts of which each tells half of the label; half of the clients hold one alone."""
    draw = torch.Generator().manual_seed(0)
    y = torch.randint(0, 4, (120,), generator=draw)
    parts = {"left": (y // 2).float()[:, None], "right": (y % 2).float()[:, None]}
    noisy = {n: part.repeat(1, 3) + 0.2 * torch.randn(120, 3, generator=draw) for n, part in parts.items()}
    data = atoll.data.from_arrays(noisy, y).partition("iid", clients=6, seed=0)
    return atoll.data.lacking(data, 0.5, seed=1) if lack else data


def federation(fusion: str = "late", lack: bool = True, **settings: Any) -> atoll.Federation:
    model = partial(atoll.models.build, f"fused:{fusion}", {"left": (3,), "right": (3,)}, 4)
    given = {
        "rounds": 2,
        "lr": 0.1,
        "batch_size": 7,
        "eval_every": 0,
        "seed": 2,
        "engine": "loop",
        "workers": 1,
    }
    made = atoll.Federation(model, halves(lack), "crossmodal", **{**given, **settings})
    made.fit(progress=False)
    return made


@pytest.mark.parametrize("fusion", ["late", "attention"])
def test_engines_agree_beside_a_mean_for_each_part(fusion: str) -> None:
    loop, *others = (federation(fusion, engine=engine).state for engine in ("loop", "batched", "processes"))
    assert loop.known.all()
    assert loop.prototypes.shape == (2, 4, 4 if fusion == "late" else 64)
    for other in others:
        assert (other.params - loop.params).norm() < 1e-5 * loop.params.norm()
        torch.testing.assert_close(other.prototypes, loop.prototypes, rtol=1e-4, atol=1e-5)


def test_sums_that_hide_who_sent_what_are_enough() -> None:
    plain, hidden = (federation(channel=channel).state for channel in (None, "secagg:20,range=20"))
    torch.testing.assert_close(hidden.prototypes, plain.prototypes, rtol=1e-2, atol=1e-2)


def test_prototypes_travel_with_the_model() -> None:
    made = federation(lack=False)
    state = made.state
    sent = sum(nbytes(each) for each in (state.params, state.prototypes, state.known))
    last = made.history[-1]
    assert last.bytes_up == len(last.cohort) * sent


class Unnamed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.right = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, left: Tensor, right: Tensor, here: Tensor) -> Tensor:
        outputs: Tensor = self.one(left) * here[:, :1] + self.right(right) * here[:, 1:]
        return outputs


class Twice(Unnamed):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(3, 4)
        self.more = nn.ModuleDict({"left": nn.Linear(3, 4)})


class Idle(Unnamed):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(3, 4)


class Unequal(Unnamed):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.behind = nn.Linear(3, 5), nn.Linear(5, 4)

    def forward(self, left: Tensor, right: Tensor, here: Tensor) -> Tensor:
        outputs: Tensor = self.behind(self.left(left)) * here[:, :1] + self.right(right) * here[:, 1:]
        return outputs


@pytest.mark.parametrize(
    ("module", "said", "hint"),
    [
        (Unnamed, "of Unnamed none is called left", "self.left = "),
        (Twice, "of Twice several are called left: left, more.left", "call one submodule left"),
        (Idle, "submodule left of Idle gives no tensor with a row a sample", r"self.left\(left\)"),
        (Unequal, "differ in width: left 5, right 4", "as many numbers"),
    ],
)
def test_models_without_embeddings_of_parts_are_refused(module: Any, said: str, hint: str) -> None:
    data = halves()
    with pytest.raises(ConfigError, match=said) as caught:
        atoll.Federation(module, data, "crossmodal", by_part=False)
    assert caught.value.hint is not None
    assert re.search(hint, caught.value.hint)


def test_samples_of_one_part_are_refused() -> None:
    data = atoll.data.from_arrays(torch.randn(20, 6), torch.arange(20) % 2).partition("iid", clients=2)
    with pytest.raises(ConfigError, match="the inputs are 6") as caught:
        atoll.Federation(nn.Linear(6, 2), data, "crossmodal")
    assert "av-mnist" in str(caught.value.hint)


def test_it_is_for_classes() -> None:
    x = torch.randn(20, 3)
    data = atoll.data.from_arrays({"left": x, "right": x}, x).partition("iid", clients=2, seed=0)
    model = partial(atoll.models.build, "fused", {"left": (3,), "right": (3,)}, 3)
    with pytest.raises(ConfigError, match="CrossModal needs one class label"):
        atoll.Federation(model, data, "crossmodal", loss="mse")


def test_settings_and_populations_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="CrossModal: mu"):
        CrossModal(mu=-1.0)
    with pytest.raises(ConfigError, match="CrossModal: tau"):
        CrossModal(tau=0.0)
    with pytest.raises(ConfigError, match="needs one input"):
        CrossModal().setup(task(), Population(2, (task(),)))
