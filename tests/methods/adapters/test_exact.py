"""What servers make of factors of low rank: the mean of the products B A, or what they lack of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atoll import models
from atoll.adapters import apply, pairs, product
from atoll.contract import Population
from atoll.errors import ConfigError
from atoll.methods import FFA, FedAvg, FedEx, FedIT, FedSA, FlexLoRA, FLoRA, HetLoRA, RoLoRA, get
from atoll.methods.adapters.factors import product_error
from atoll.methods.adapters.flora import drawn
from atoll.methods.adapters.hetlora import tail
from atoll.methods.adapters.ranked import Ranked
from atoll.methods.adapters.told import heard, lengths, untold
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors
from tests.methods.driver import Client, Played

SIZES = (12, 5, 8)
EXACT = (FFA, RoLoRA, FLoRA, FedEx)


class Conv1D(nn.Module):
    """GPT-2's, known by its name: a linear layer whose weight is [in, out]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


def base(dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Embedding(11, 7), nn.Flatten(), nn.Linear(21, 9), nn.Tanh(), Conv1D(9, 6), nn.Linear(6, 4)
        ).to(dtype)


def task(text: str = "lora:3,6,*", dtype: torch.dtype = torch.float64) -> Task:
    return Task(apply(base(dtype), text), shares=True)


def people(sizes: Sequence[int] = SIZES) -> list[Client]:
    generator = torch.Generator().manual_seed(1)
    return [
        Client(
            torch.randint(0, 11, (n, 3), generator=generator), torch.randint(0, 4, (n,), generator=generator)
        )
        for n in sizes
    ]


def weights(played: Played, method: Any) -> Tensors:
    """The weights that the global model computes with, base and product together."""
    params, _ = method.model(played.state)
    found = product(played.task.module, params)
    return found.map_names(lambda name, value: value + params.get(name, played.task.frozen[name]))


def means(played: Played, method: Any, before: Any, sent: dict[int, Tensors]) -> Tensors:
    """The weighted mean of the weights that clients end with; `before` is the state that the round began with."""
    total: dict[str, Tensor] = {}
    for k, left in sent.items():
        p = len(played.clients[k].inputs) / sum(SIZES)
        for pair in pairs(played.task.module):
            own = pair.delta(left[pair.A], left[pair.B])
            total[pair.weight] = total.get(pair.weight, 0) + p * own
    based = before.get("base", Tensors())
    return Tensors(total).map_names(lambda name, value: value + based.get(name, played.task.frozen[name]))


def watched(kind: type[FedAvg], dtype: torch.dtype, rounds: int) -> list[tuple[Tensors, Tensors]]:
    """(the weights of the global model, the mean of the clients') of each round."""
    left: dict[int, Tensors] = {}

    class Watched(kind):  # type: ignore[misc, valid-type]
        """Tells what clients end with."""

        def finish(self, task: Task, local: Any, data: Any) -> Any:
            own = {name: p.detach() for name, p in task.module.named_parameters() if p.requires_grad}
            left[len(left)] = Tensors({**own, **local.get("fixed", Tensors()), **local.params})
            return super().finish(task, local, data)

    method = Watched(lr=0.5, epochs=2, batch_size=4)
    played, found = Played(method, task(dtype=dtype), people()), []
    for _ in range(rounds):
        left.clear()
        before = played.state
        played.round()
        found.append((weights(played, method), means(played, method, before, left)))
    return found


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_exact_methods_make_the_mean_of_the_products(
    kind: type[FedAvg], dtype: torch.dtype, close: float
) -> None:
    assert kind.exact is True
    moved = 0.0
    start = task(dtype=dtype).frozen
    for made, mean in watched(kind, dtype, 4):
        for name, value in mean.items():
            scale = float(value.abs().max())
            assert float((made[name] - value).abs().max()) <= close * max(scale, 1.0)
            moved = max(moved, float((value - start[name]).abs().max()))
    assert moved > 0.01  # and something was learned


def test_the_mean_of_factors_is_not_the_mean_of_products() -> None:
    found = watched(FedIT, torch.float64, 3)
    off = [max(float((made[n] - mean[n]).abs().max()) for n in mean) for made, mean in found]
    assert FedIT.exact is False
    assert min(off) > 1e-5


def test_what_fedit_is_off_by() -> None:
    module = task().module
    played = Played(FedIT(lr=0.5, epochs=2, batch_size=4), task(), people())
    played.round()
    start = played.state.params
    played.round()
    sent = [start + played.sent[k].values["update"] for k in range(3)]
    error = product_error(pairs(module), sent, SIZES)
    assert 1e-4 < error < 1
    assert product_error(pairs(module), sent[:1], [2.0]) < 1e-15
    alike = [Tensors({n: (sent[0] if n.endswith(".A") else each)[n] for n in each}) for each in sent]
    assert product_error(pairs(module), alike, SIZES) < 1e-15
    # by hand, of dense matrices
    squares = [0.0, 0.0]
    for pair in pairs(module):
        dense = [pair.delta(each[pair.A], each[pair.B]) for each in sent]
        mean = sum(n / 25 * each for n, each in zip(SIZES, dense, strict=True))
        a, b = (
            sum(n / 25 * each[name] for n, each in zip(SIZES, sent, strict=True)) for name in (pair.A, pair.B)
        )
        squares[0] += float((mean - pair.delta(a, b)).square().sum())
        squares[1] += float(mean.square().sum())
    assert error == pytest.approx((squares[0] / squares[1]) ** 0.5, rel=1e-12)


def test_fedit_is_fedavg_of_adapters() -> None:
    one, other = (Played(kind(lr=0.5, batch_size=4), task(), people()) for kind in (FedIT, FedAvg))
    for _ in range(3):
        one.round()
        other.round()
    assert all(torch.equal(one.state.params[name], value) for name, value in other.state.params.items())


def test_flora_stacks_unequal_ranks() -> None:
    tasks = tuple(task(text) for text in ("lora:1,2,*", "lora:4,8,*", "lora:2,1,*"))
    method = FLoRA(lr=0.5, epochs=2, batch_size=4)
    clients = people()
    state = method.setup(tasks[0], Population(3, tasks, clients[0].inputs[:1]))
    work, replies, total = method.broadcast(state, [0, 1, 2]), {}, {}
    left: dict[int, Tensors] = {}
    reducer = method.reducer(work)
    for k, each in enumerate(tasks):
        played = Played(method, each, clients)
        kept: list[Any] = []

        class Watched(FLoRA):
            """Tells what a client ends with."""

            def finish(self, task: Task, local: Any, data: Any, kept: list[Any] = kept) -> Any:
                kept.append(local.params)
                return super().finish(task, local, data)

        replies[k], _ = played.client(k, Watched(lr=0.5, epochs=2, batch_size=4), work.received(k))
        assert {n: v.shape for n, v in replies[k].values["update"].items()} == {
            n: v.shape for n, v in work.forms[k]["update"].items()
        }
        left[k] = kept[0]
        reducer.add(k, replies[k])
        for pair in pairs(each.module):
            part = SIZES[k] / sum(SIZES) * pair.delta(left[k][pair.A], left[k][pair.B])
            total[pair.weight] = total.get(pair.weight, 0) + part
    found = reducer.result()
    assert found is not None
    after = method.update(state, found)
    for name, value in total.items():
        torch.testing.assert_close(after.base[name] - state.base[name], value, rtol=1e-12, atol=1e-14)
    first = next(iter(pairs(tasks[0].module)))
    start = [left[k][first.A].shape[0] for k in range(3)]
    assert start == [1, 4, 2]


def test_flexlora_gives_the_nearest_of_each_rank() -> None:
    tasks = tuple(task(text) for text in ("lora:4,8,*", "lora:1,3,*", "lora:2,2,*"))
    method, clients = FlexLoRA(lr=0.5, epochs=2, batch_size=4), people()
    state = method.setup(tasks[0], Population(3, tasks, clients[0].inputs[:1]))
    for number in range(3):
        work = method.broadcast(state, [0, 1, 2])
        reducer, total = method.reducer(work), {}
        for k, each in enumerate(tasks):
            given = work.received(k)
            reply, _ = Played(method, each, clients).client(k, method, given)
            reducer.add(k, reply)
            left = given.params + reply.values["update"]
            for pair in pairs(each.module):
                dense = pair.delta(left[pair.A], left[pair.B])
                total[pair.weight] = total.get(pair.weight, 0) + SIZES[k] / sum(SIZES) * dense
        found = reducer.result()
        assert found is not None
        state = method.update(state, found)
        for k, each in enumerate(tasks):
            given = method.given(state, k)
            for pair in pairs(each.module):
                u, s, v = torch.linalg.svd(total[pair.weight])
                r = pair.rank
                nearest = u[:, :r] * s[:r] @ v[:r]
                torch.testing.assert_close(
                    pair.delta(given[pair.A], given[pair.B]), nearest, rtol=1e-9, atol=1e-12
                )
        assert number < 2 or float(s[0]) > 1e-3


def test_hetlora_counts_by_norms_and_prunes_what_fades() -> None:
    method, clients = HetLoRA(lr=0.5, epochs=2, batch_size=4, gamma=0.5, decay=1.0), people()
    played = Played(method, task("lora:4,8,*"), clients)
    given = played.state
    played.round()
    norms = []
    for k in range(3):
        left = given.params + played.sent[k].values["update"]
        squares = [
            pair.delta(left[pair.A], left[pair.B]).square().sum() for pair in pairs(played.task.module)
        ]
        norms.append(float(sum(squares)) ** 0.5)
    for pair in pairs(played.task.module):
        mean = sum(
            n / sum(norms) * (given.params[pair.B] + played.sent[k].values["update"][pair.B])
            for k, n in enumerate(norms)
        )
        torch.testing.assert_close(played.state.params[pair.B], mean, rtol=1e-10, atol=1e-12)
    for _ in range(4):
        work = method.broadcast(played.state, [0, 1, 2])
        before = {k: {n: v.shape for n, v in work.own[k].params.items()} for k in range(3)}
        for k in range(3):
            reply, _ = played.client(k, method, work.received(k))
            assert {n: v.shape for n, v in reply.values["update"].items()} == before[k]
        reducer = method.reducer(work)
        for k in range(3):
            reducer.add(k, played.client(k, method, work.received(k))[0])
        found = reducer.result()
        assert found is not None
        played.state = method.update(played.state, found)
    ranks = [int(rank) for one in played.state.pruned.values() for rank in one.values()]
    assert min(ranks) < 4
    assert min(ranks) >= 1
    assert min(int(rank) for rank in played.state.pruned["0"].values()) < 4
    shapes = [{name: v.shape for name, v in each.params.items()} for each in (given, played.state)]
    assert shapes[0] == shapes[1]  # the global model has the first adapter's, whoever was pruned
    assert method.leave(played.state, [1]).pruned.keys() == {"0", "2"}


def test_without_pruning_ranks_stay() -> None:
    played = Played(HetLoRA(lr=0.5, batch_size=4, gamma=1.0), task("lora:4,8,*"), people())
    for _ in range(3):
        played.round()
    assert {int(rank) for one in played.state.pruned.values() for rank in one.values()} == {4}


def test_fedsa_keeps_b_with_the_client() -> None:
    played = Played(FedSA(lr=0.5, batch_size=4), task(), people())
    for _ in range(2):
        played.round()
    names = {pair.A for pair in pairs(played.task.module)}
    assert set(played.sent[0].values["update"]) == names
    assert set(played.state.params) == names
    kept = [played.memories[k].params for k in range(3)]
    assert set(kept[0]) == {pair.B for pair in pairs(played.task.module)}
    assert any(not torch.equal(kept[0][name], kept[1][name]) for name in kept[0])


def test_rolora_trains_one_factor_at_a_time() -> None:
    played = Played(RoLoRA(lr=0.5, batch_size=4), task(), people())
    known = pairs(played.task.module)
    for number in range(4):
        before = played.state.params
        played.round()
        moving = {pair.A if number % 2 else pair.B for pair in known}
        assert set(played.sent[0].values["update"]) == moving
        moved = {name for name, value in played.state.params.items() if not torch.equal(value, before[name])}
        assert moved == moving


@pytest.mark.parametrize("name", ["fedit", "ffa", "rolora", "flora", "fedex", "flexlora", "hetlora", "fedsa"])
def test_methods_of_adapters_say_so(name: str) -> None:
    kind = get(name)
    assert kind.low_rank
    assert (kind.exact is None) == (name == "fedsa")


@pytest.mark.parametrize("name", ["fedit", "ffa", "rolora", "flora", "fedex", "flexlora", "hetlora", "fedsa"])
def test_models_without_factors_are_refused(name: str) -> None:
    method = get(name)()
    gpt = models.gpt(11, 6, 1, 8, 2)
    for module, said in ((base(), "the model has none"), (apply(gpt, "prompt:2"), "of this model has none")):
        with pytest.raises(ConfigError, match=said) as error:
            method.setup(Task(module), Population(1, (Task(module),)))
        assert "lora:8,16" in str(error.value.hint)


def test_factors_that_were_trained_before_are_where_a_run_begins() -> None:
    """As those of `from_peft`: every method's global model computes at first what the module does."""
    generator = torch.Generator().manual_seed(4)
    module = apply(base(), "lora:3,6,*")
    with torch.no_grad():
        for pair in pairs(module):
            b = module.get_parameter(pair.B)
            b.copy_(torch.randn(b.shape, generator=generator))
    begun, x = Task(module), people()[0].inputs
    for kind in (FFA, RoLoRA, FLoRA, FedEx, FedIT, FlexLoRA, HetLoRA):
        method = kind()
        state = method.setup(begun, Population(3, (begun,)))
        torch.testing.assert_close(begun.predict(*method.model(state), x)[0], module(x))
        if isinstance(method, Ranked):
            for key, value in method.given(state, 0).items():
                torch.testing.assert_close(value, begun.initial()[0][key])


def test_a_base_of_halves_stays_one() -> None:
    played = Played(FLoRA(lr=0.5, batch_size=4), task(dtype=torch.bfloat16), people())
    before = played.state.base
    played.round()
    after = played.state.base
    assert {value.dtype for value in after.values()} == {torch.bfloat16}
    assert any(not torch.equal(value, before[name]) for name, value in after.items())


def test_flora_draws_a_for_what_reads_it() -> None:
    like, key = torch.zeros(1, 400), torch.tensor(3)
    for embedding, bound in ((False, 400**-0.5), (True, 3**0.5)):
        found = drawn(key, 0, 2, like, embedding)
        assert 0.9 * bound < float(found.abs().max()) <= bound
        assert torch.equal(drawn(key, 0, 1, like, embedding), found[:1])


def test_no_change_is_no_error() -> None:
    module = task().module
    still = task().initial()[0]
    assert product_error(pairs(module), [still, still], [1.0, 2.0]) == 0


def test_flexlora_of_a_few_rows_keeps_the_largest_rank() -> None:
    tasks = tuple(task(text) for text in ("lora:4,8,*", "lora:1,3,*"))
    method, clients = FlexLoRA(lr=0.5, batch_size=4), people()
    state = method.setup(tasks[0], Population(2, tasks, clients[0].inputs[:1]))
    work = method.broadcast(state, [1])
    reducer = method.reducer(work)
    reply, _ = Played(method, tasks[1], clients).client(1, method, work.received(1))
    reducer.add(1, reply)
    found = reducer.result()
    assert found is not None
    after = method.update(state, found)
    for pair in pairs(tasks[0].module):
        a, b = after.whole[pair.A], after.whole[pair.B]
        assert (a.shape, b.shape) == (state.whole[pair.A].shape, state.whole[pair.B].shape)
        torch.testing.assert_close(a @ a.t(), torch.eye(4, dtype=a.dtype))
        assert not b[:, 1:].any()


@pytest.mark.parametrize("bad", [{"gamma": 0.0}, {"gamma": 1.1}, {"decay": -0.1}, {"least": 0}])
def test_settings_of_hetlora_that_cannot_be(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(bad))} "):
        HetLoRA(**bad)


def test_hetlora_prunes_no_further_than_the_least_rank() -> None:
    assert [HetLoRA(gamma=0.1).kept(rank) for rank in (9, 1)] == [1, 1]
    assert [HetLoRA(gamma=0.5, least=3).kept(rank) for rank in (8, 4, 2)] == [4, 3, 2]


def test_hetlora_where_nobody_moved_anything() -> None:
    played = Played(HetLoRA(lr=1e-300, batch_size=4), task("lora:4,8,*"), people())
    before = played.state.whole
    played.round()
    for name, value in played.state.whole.items():
        torch.testing.assert_close(value, before[name])


def test_hetlora_penalises_what_might_be_pruned() -> None:
    method, plain = (HetLoRA(batch_size=4, gamma=0.5, decay=decay) for decay in (0.3, 0.0))
    here, client = task("lora:4,8,*"), people()[0]
    work = method.broadcast(method.setup(here, Population(1, (here,))), [0])
    batch = Batch(client.inputs, client.targets, torch.ones(len(client.targets)), torch.tensor(0))
    generator = torch.Generator().manual_seed(4)
    local = plain.begin(here, work.received(0), Record(), None)  # type: ignore[arg-type]
    stirred = local.params.map(lambda value: torch.randn(value.shape, generator=generator).to(value))
    local = local.replace(params=stirred)
    found, without = (each.gradient(here, local, batch)[0] for each in (method, plain))
    for pair in pairs(here.module):
        a, b = (stirred[name].clone().requires_grad_() for name in (pair.A, pair.B))
        due = torch.autograd.grad(0.3 * tail(a, b, 2), (a, b))
        torch.testing.assert_close(found[pair.A] - without[pair.A], due[0])
        torch.testing.assert_close(found[pair.B] - without[pair.B], due[1])
    for factor in (".A", ".B"):  # of nothing, there is nothing to fade
        still = stirred.map_names(lambda name, value: value * 0 if name.endswith(factor) else value)  # noqa: B023
        gradient, _ = method.gradient(here, local.replace(params=still), batch)
        assert all(bool(torch.isfinite(value).all()) for value in gradient.values())


def test_what_clients_have_missed() -> None:
    told = untold()
    assert lengths(told, [0], 5, 100, stranger=True) == {0: 105}
    assert lengths(told, [0], 5, 100, stranger=False) == {0: 5}
    told = heard(told, [0, 1], 30, 100)
    told = heard(told, [1], 20, 100)
    # who was there in a round missed what it came to; a newcomer all, or nothing but the beginning
    assert lengths(told, [0, 1, 2], 5, 100, stranger=False) == {0: 55, 1: 25, 2: 55}
    assert lengths(told, [2], 5, 100, stranger=True) == {2: 105}
    assert lengths(told, [0], 5, 40, stranger=False) == {0: 45}
    for _ in range(9):
        told = heard(told, [1], 30, 100)
    assert len(told.sizes) == 3
    assert lengths(told, [0, 1], 5, 100, stranger=False) == {0: 105, 1: 35}
