"""Split networks: one network in parts; what travels, what is kept, what goes on where it broke off."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from atoll import codec, compress
from atoll.errors import CodecError, ConfigError, DataError, DivergedError
from atoll.parties import play
from atoll.tensors import Record, Tensors, leaves
from atoll.vertical.figures import auc, figures
from atoll.vertical.protocol import Case, Progress
from atoll.vertical.side import Side
from atoll.vertical.splitnn import SplitNN
from atoll.vertical.splitnn.losses import losses
from atoll.vertical.splitnn.nets import Guest, Join, Scale, built, own_seed
from atoll.vertical.splitnn.run import Workset, batches, likeness
from tests.vertical.split_runs import BINARY, asked, divided, learn, made, real, sides, whole

TWO = Case("binary", hosts=("left", "right"))
PLAIN: dict[str, Any] = {"optimizer": "sgd", "lr": 0.2, "width": 4, "batch": 16}


def fixed(text: str, seed: int) -> Callable[[int, int], nn.Module]:
    """A factory whose modules have known weights."""

    def make(inputs: int, outputs: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            if text == "linear":
                return nn.Linear(inputs, outputs)
            return nn.Sequential(nn.Linear(inputs, 6), nn.Tanh(), nn.Linear(6, outputs))

    return make


def alike(one: Record, other: Record) -> bool:
    """Whether halves are the same to the bit."""
    return codec.encode(one) == codec.encode(other)


# --- one network in parts -------------------------------------------------------------------------------------------


def together(how: SplitNN, parts: list[Tensor], bottoms: list[nn.Module], y: Tensor, case: Case) -> nn.Module:
    """One module over all columns, trained by torch alone."""

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.below = nn.ModuleList(bottoms)
            self.above = Guest(None, how.join, how.width, len(parts), lambda n: fixed("deep", 9)(n, 1))

        def forward(self, rows: Tensor) -> Tensor:
            every = [f(x[rows]) for f, x in zip(self.below, parts, strict=True)]
            return self.above(torch.zeros(len(rows), 0), every)  # type: ignore[no-any-return]

    module = Joined()
    solver = torch.optim.SGD(module.parameters(), lr=how.lr)
    for epoch in range(how.epochs):
        for rows in batches(case.seed, epoch, len(y), how.batch):
            solver.zero_grad()
            losses(case, module(rows), y[rows], None).mean().backward()
            solver.step()
    return module


@pytest.mark.parametrize("join", ["concat", "sum", "mean", "attention"])
@pytest.mark.parametrize("hosts", [1, 2])
@pytest.mark.parametrize("own", [0, 2])
def test_a_split_network_is_one_network_on_all_columns(join: Join, hosts: int, own: int) -> None:
    guest, others = made(hosts=hosts, own=own)
    case = TWO if hosts == 2 else BINARY
    how = {
        name: SplitNN(bottom=fixed("deep", at), top=fixed("deep", 9), join=join, epochs=3, **PLAIN)
        for at, name in enumerate(("guest", *case.hosts))
    }
    halves = learn(how, guest, others, case).results
    mine = [guest] if own else []
    parts = [Scale.of(side.x)(side.x) for side in (*mine, *others)]
    first = 0 if own else 1
    bottoms = [fixed("deep", first + at)(x.shape[1], 4) for at, x in enumerate(parts)]
    assert guest.y is not None
    one = together(how["guest"], parts, bottoms, torch.from_numpy(guest.y).float(), case)
    for at, name in enumerate(case.hosts, len(mine)):
        for key, value in one.below[at].state_dict().items():  # type: ignore[operator, index, union-attr]
            assert torch.allclose(halves[name].net.params[key], value, rtol=0, atol=1e-6)
    for key, value in one.above.state_dict().items():  # type: ignore[operator, union-attr]
        assert torch.allclose(halves["guest"].net.params[key], value, rtol=0, atol=1e-6)
    with torch.no_grad():
        due = torch.sigmoid(one(torch.arange(len(guest)))[:, 0]).numpy()
    found = asked(how, guest, dict(zip(case.hosts, others, strict=True)), halves, case)
    assert np.abs(found - due).max() < 1e-6
    moved = halves[case.hosts[0]].net.params["0.weight"] - fixed("deep", 1)(3, 4)[0].weight  # type: ignore[index]
    assert float(moved.detach().abs().max()) > 1e-2


def test_the_sum_of_linear_bottoms_is_one_layer_on_the_joined_columns() -> None:
    guest, (host,) = made()
    how = {
        name: SplitNN(bottom=fixed("linear", at), top=fixed("deep", 9), join="sum", epochs=3, **PLAIN)
        for at, name in enumerate(("guest", "host"))
    }
    halves = learn(how, guest, [host]).results
    one, two = fixed("linear", 0)(2, 4), fixed("linear", 1)(3, 4)
    layer = nn.Linear(5, 4)
    with torch.no_grad():
        layer.weight.copy_(torch.cat([one.weight, two.weight], 1))  # type: ignore[list-item]
        layer.bias.copy_(one.bias + two.bias)  # type: ignore[operator]
    module = nn.Sequential(layer, fixed("deep", 9)(4, 1))
    x = torch.cat([Scale.of(side.x)(side.x) for side in (guest, host)], 1)
    y = torch.from_numpy(guest.y).float()  # type: ignore[arg-type]
    # Two biases of one sum each take the step that the one bias takes.
    solver = torch.optim.SGD(
        [{"params": [layer.bias], "lr": 0.4}, {"params": [layer.weight, *module[1].parameters()]}], lr=0.2
    )
    for epoch in range(3):
        for rows in batches(0, epoch, len(y), 16):
            solver.zero_grad()
            losses(BINARY, module(x[rows]), y[rows], None).mean().backward()
            solver.step()
    found = torch.cat([halves["guest"].net.params["own.weight"], halves["host"].net.params["weight"]], 1)
    assert torch.allclose(found, layer.weight, rtol=0, atol=1e-6)


def test_attention_weighs_parties_by_a_learned_query() -> None:
    module = Guest(None, "attention", 2, 2, lambda inputs: nn.Identity())
    with torch.no_grad():
        module.query.copy_(torch.tensor([math.sqrt(2) * math.log(3), 0.0]))  # type: ignore[union-attr]
    one, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert torch.allclose(module(torch.zeros(1, 0), [one, other]), torch.tensor([[0.75, 0.25]]))


# --- what travels ---------------------------------------------------------------------------------------------------


def test_bytes_are_two_tensors_of_the_batch_and_width_for_every_host() -> None:
    guest, hosts = made(rows=90, hosts=2)
    counts = learn(SplitNN(epochs=2, batch=16, width=4), guest, hosts, TWO).transcript.counts()
    due = 2 * 90 * 4 * 4
    for host in TWO.hosts:
        by = {count.kind: count for count in counts if host in (count.sender, count.receiver)}
        assert by["split.embedding"].nbytes == by["split.gradient"].nbytes == due
        assert by["split.embedding"].messages == by["split.gradient"].messages == 2 * 6
        assert by.keys() == {"split.begin", "split.embedding", "split.gradient"}


@pytest.mark.parametrize("text", ["int8", "int4", "bf16", "fp16", "topk:0.25"])
def test_a_codec_makes_messages_as_small_as_its_form(text: str) -> None:
    guest, (host,) = made(rows=96)
    how = SplitNN(epochs=3, batch=32, width=4, codec=text)
    played = learn(how, guest, [host])
    each = compress.parse(text).nbytes((32, 4))
    found = played.transcript.nbytes()
    name = text.partition(":")[0]
    assert found[f"split.embedding.{name}"] == found[f"split.gradient.{name}"] == 9 * each
    assert each < 32 * 4 * 4
    halves = played.results
    exact = asked(replace(how, codec=None), guest, {"host": host}, halves)
    assert 0 < np.abs(asked(how, guest, {"host": host}, halves) - exact).max() < 0.3


def test_nothing_that_is_said_is_a_label_a_column_or_a_number_of_a_row() -> None:
    guest, (host,) = made(rows=64)
    how = SplitNN(epochs=3, batch=64, width=4, lr=0.01)
    played = learn(how, guest, [host])
    kinds = {kind.name for kind in SplitNN.kinds}
    known = np.hstack([guest.x, host.x, guest.y[:, None]])  # type: ignore[index]
    for _, _, kind, record in played.transcript.said:
        assert kind in kinds
        tensors = [value for value in record.values() if isinstance(value, Tensor)]
        assert all(value.is_floating_point() for value in tensors)
    for kind in ("split.embedding", "split.gradient"):
        for said in whole(played, kind, how, 64):
            columns = said[:, said.std(0) > 0].numpy()
            both = np.corrcoef(np.hstack([columns, known]).T)[: columns.shape[1], columns.shape[1] :]
            assert np.abs(both).max() < 0.9999
    # The same look finds a network that only scales.
    copied = np.corrcoef(np.hstack([3 * host.x - 1, known]).T)
    assert np.abs(copied[:3, 3:]).max() > 0.9999


@pytest.mark.parametrize(
    "bottom",
    [
        lambda inputs, outputs: nn.Identity(),
        lambda inputs, outputs: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(inputs)),
        lambda inputs, outputs: nn.utils.skip_init(nn.Linear, inputs, outputs),
    ],
    ids=["identity", "scaled", "permuted"],
)
def test_a_bottom_that_sends_columns_as_they_are_is_refused_before_it_has(bottom: Any) -> None:
    guest, (host,) = made(own=0)

    def make(inputs: int, outputs: int) -> nn.Module:
        module: nn.Module = bottom(inputs, outputs)
        if isinstance(module, nn.Linear):
            with torch.no_grad():
                module.weight.copy_(2 * torch.eye(inputs)[torch.tensor([2, 0, 1])])
                module.bias.fill_(1.0)
        return module

    said: list[int] = []

    async def look(link: Any) -> None:
        try:
            await SplitNN(bottom=make, width=3).host(link, host, BINARY, Progress())
        finally:
            said.append(len(link.transcript.said))

    with pytest.raises(ConfigError, match="sends a column as it is"):
        play(
            {
                "guest": lambda link: SplitNN(width=3).guest(link, guest, BINARY, Progress()),
                "host": look,
            }
        )
    assert said == [0]


def test_first_weights_follow_from_a_partys_own_rows_which_others_do_not_have() -> None:
    guest, (host,) = made()
    other = replace(host, x=host.x + 1e-9)
    assert own_seed(0, host) == own_seed(0, copy.deepcopy(host))
    assert len({own_seed(0, host), own_seed(1, host), own_seed(0, other), own_seed(0, guest)}) == 4


# --- who does not fit -----------------------------------------------------------------------------------------------


def test_other_rows_and_other_settings_are_refused_by_name() -> None:
    guest, (host,) = made()
    how = SplitNN(epochs=1)
    with pytest.raises(DataError, match="host has 89 rows, and guest has 90"):
        learn(how, guest, [host.take(slice(89))])
    with pytest.raises(ConfigError, match="host has other settings: epochs=1 batch=32"):
        learn({"guest": how, "host": replace(how, batch=32)}, guest, [host])
    with pytest.raises(ConfigError, match="host has other settings"):
        learn({"guest": how, "host": replace(how, width=3)}, guest, [host])
    with pytest.raises(DataError, match="guest has no label"):
        learn(how, replace(guest, y=None), [host])
    with pytest.raises(ConfigError, match="right is not there"):
        play({
            "guest": lambda link: how.guest(link, guest, TWO, Progress()),
            "left": lambda link: how.host(link, host, TWO, Progress()),
        })  # fmt: skip
    with pytest.raises(DataError, match="host has no columns"):
        learn(how, guest, [Side(np.zeros((90, 0)), ())])


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"width": 0}, "width = 0"),
        ({"batch": 1}, "batch = 1"),
        ({"noise": 1.0}, "there is no clip"),
        ({"clip": 0.0}, "clip = 0"),
        ({"cache": 2}, "cache = 2"),
        ({"drop": 1.0}, "drop = 1"),
        ({"join": "product"}, "join = 'product'"),
        ({"codec": "powersgd:2"}, "codec = 'powersgd:2'"),
        ({"labels": "marvell:0"}, "power = '0'"),
        ({"labels": "hidden"}, "unknown labels 'hidden'"),
        ({"labels": "marvell:4,bound=0.6"}, "has a power and a bound"),
        ({"optimizer": "adm"}, "adm"),
        ({"lr": math.inf}, "lr = inf"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        SplitNN(**settings)


def test_a_case_that_cannot_be_is_refused() -> None:
    for how, case in (
        (SplitNN(), Case("binary", crypto="ou")),
        (SplitNN(labels="marvell"), Case("regression")),
        (SplitNN(labels="response:1"), Case("poisson")),
        (SplitNN(), Case("binary", hosts=())),
    ):
        with pytest.raises(ConfigError):
            how.check(case)


def test_a_network_that_diverges_says_so() -> None:
    guest, (host,) = made()
    with pytest.raises(DivergedError, match=r"not finite|the loss is"):
        learn(SplitNN(optimizer="sgd", lr=1e30, epochs=20, batch=32), guest, [host])


# --- going on -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optimizer": "sgd:0.9", "local": 3, "cache": 2},
        {"drop": 0.3, "join": "attention", "codec": "int8"},
        {"labels": "marvell:4", "clip": 1.0, "noise": 0.5, "noise_seed": 5},
        {"labels": "response:1", "optimizer": "adagrad"},
        {
            "bottom": lambda i, o: nn.Sequential(
                nn.Linear(i, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, o)
            )
        },
    ],
    ids=["plain", "cache", "drop", "noise", "response", "dropout"],
)
def test_a_run_that_broke_off_goes_on_to_the_same_model_to_the_bit(settings: dict[str, Any]) -> None:
    guest, (host,) = made()
    how = SplitNN(epochs=4, batch=32, **settings)
    told: dict[str, list[tuple[int, bytes]]] = {"guest": [], "host": []}

    def keeper(name: str) -> Progress:
        return Progress(tell=lambda number, half, _: told[name].append((number, codec.encode(half))))

    full = learn(how, guest, [host], begin={name: keeper(name) for name in told}).results
    assert [number for number, _ in told["host"]] == [1, 2, 3, 4]
    begin = {name: Progress(2, codec.decode(told[name][1][1])) for name in told}
    again = learn(how, guest, [host], begin=begin).results
    assert alike(full["guest"], again["guest"])
    assert alike(full["host"], again["host"])
    assert told["host"][3][1] == codec.encode(full["host"])
    assert not alike(full["host"], codec.decode(told["host"][1][1]))


def test_a_half_of_another_network_is_refused() -> None:
    guest, (host,) = made()
    how = SplitNN(epochs=1)
    halves = learn(how, guest, [host]).results
    with pytest.raises(CodecError, match="those of another network"):
        asked(replace(how, bottom="mlp:7"), guest, {"host": host}, halves)
    with pytest.raises(CodecError, match="learned from 3 columns, and there are 2"):
        asked(how, guest, {"host": Side(host.x[:, :2], host.columns[:2])}, halves)
    with pytest.raises(CodecError, match="another optimiser"):
        learn(
            replace(how, optimizer="sgd", epochs=2),
            guest,
            [host],
            begin={"host": Progress(1, halves["host"])},
        )


def test_a_half_has_nothing_of_the_other_partys() -> None:
    guest, (host,) = made(own=2)
    halves = learn(SplitNN(epochs=1, batch=30, bottom="mlp:7", width=4), guest, [host]).results
    assert halves["host"].keys() == {"net", "scale"}
    rows = {len(guest), 30}
    assert not any(
        rows & set(leaf.shape)
        for half in halves.values()
        for leaf in leaves(half)
        if isinstance(leaf, Tensor)
    )
    assert not any(2 in leaf.shape for leaf in leaves(halves["host"].scale))


# --- tasks and holes ------------------------------------------------------------------------------------------------


def test_classes_numbers_and_counts_are_learned_too() -> None:
    chance = np.random.default_rng(1)
    x, z = chance.normal(size=(600, 3)), chance.normal(size=(600, 3))
    names = ("a", "b", "c")
    host = Side(z, names)
    score = x[:, 0] + z[:, 0]
    exposure = chance.uniform(0.5, 2, 600)
    labels = {
        Case("multiclass", classes=3): (score > -0.5).astype(float) + (score > 0.5),
        Case("regression", classes=1): 1000 + 50 * score,
        Case("poisson", classes=1): chance.poisson(exposure * np.exp(0.6 * score)).astype(float),
    }
    for case, y in labels.items():
        guest = Side(x, names, y, exposure if case.task == "poisson" else None)
        how = SplitNN(epochs=12, batch=64, lr=0.01)
        halves = learn(how, guest, [host], case, keep=False).results
        scores = asked(how, guest, {"host": host}, halves, case)
        found = figures(case.task, y, scores)
        if case.task == "multiclass":
            assert scores.shape == (600, 3)
            assert np.allclose(scores.sum(1), 1)
            assert found["accuracy"] > 0.9
        elif case.task == "regression":
            assert found["r2"] > 0.95
        else:
            assert found["d2"] > 0.25
            double = asked(how, replace(guest, exposure=2 * exposure), {"host": host}, halves, case)
            assert np.allclose(double, 2 * scores)


def test_a_value_that_is_missing_counts_as_the_mean_of_its_column() -> None:
    x = np.random.default_rng(2).normal(3, 5, size=(50, 2))
    x[7, 0] = np.nan
    scale = Scale.of(x)
    found = scale(x)
    assert found[7, 0] == 0
    rest = np.delete(x[:, 0], 7)
    assert np.allclose(np.delete(found[:, 0].numpy(), 7), (rest - rest.mean()) / rest.std(), atol=1e-6)
    guest, (host,) = made()
    holes = replace(host, x=np.where(np.random.default_rng(3).random(host.x.shape) < 0.2, np.nan, host.x))
    how = SplitNN(epochs=1, batch=32)
    halves = learn(how, guest, [holes]).results
    means = np.where(np.isnan(holes.x), halves["host"].scale.mean.numpy(), holes.x)
    one, two = (asked(how, guest, {"host": replace(host, x=each)}, halves) for each in (holes.x, means))
    assert np.allclose(one, two, atol=1e-6)


def test_a_column_of_one_value_and_a_last_row_alone_do_no_harm() -> None:
    guest, (host,) = made(rows=33)
    host = replace(host, x=np.hstack([host.x[:, :2], np.ones((33, 1))]))
    assert [len(rows) for rows in batches(0, 0, 33, 16)] == [16, 17]
    assert sorted(torch.cat(batches(4, 1, 33, 16)).tolist()) == list(range(33))
    halves = learn(SplitNN(epochs=1, batch=16), guest, [host]).results
    assert all(
        bool(torch.isfinite(leaf).all()) for leaf in leaves(halves["host"]) if isinstance(leaf, Tensor)
    )


# --- fewer messages, and absent hosts -------------------------------------------------------------------------------


def test_local_steps_use_one_gradient_several_times() -> None:
    """With a linear bottom its slope does not move: q steps are one step q times as long."""
    guest, (host,) = made(rows=32)

    def run(local: int) -> Record:
        how = SplitNN(bottom=fixed("linear", 1), epochs=1, local=local, **{**PLAIN, "batch": 32})
        played = learn(how, guest, [host])
        assert played.transcript.nbytes()["split.embedding"] == 32 * 4 * 4
        return played.results["host"].net.params  # type: ignore[no-any-return]

    start = fixed("linear", 1)(3, 4).state_dict()
    once, four = run(1), run(4)
    for name, value in start.items():
        assert torch.allclose(four[name] - value, 4 * (once[name] - value), atol=1e-6)


def test_a_table_of_old_messages_gives_them_in_turn_and_weighs_them() -> None:
    table = Workset(3, again=2)
    seen = []
    for entry in "abcd":
        table.add(entry)
        seen.append("".join(table.turns()))
    assert len(seen[0]) == 2 and seen[0] == "aa"
    assert set("".join(seen[2:])) == {"a", "b", "c", "d"}
    table.clear()
    table.add("z")
    assert table.turns() == ["z", "z"]
    old = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    new = torch.tensor([[2.0, 0.0], [1.0, 1.0], [1.0, 3.0]])
    assert torch.allclose(likeness([old], [new]), torch.tensor([1.0, math.sqrt(0.5), 0.0]))


def test_rows_whose_old_messages_have_aged_count_for_less_on_both_sides() -> None:
    """One batch, one further step with what was said of it, by hand."""
    guest, (host,) = made(rows=32, own=0)
    how = SplitNN(
        bottom=fixed("linear", 1), top=fixed("deep", 9), epochs=1, local=2, cache=1,
        optimizer="sgd", lr=30.0, width=4, batch=32,
    )  # fmt: skip
    played = learn({"guest": replace(how, lr=0.3), "host": how}, guest, [host])
    x = Scale.of(host.x)(host.x)[batches(0, 0, 32, 32)[0]]
    y = torch.from_numpy(guest.y).float()[batches(0, 0, 32, 32)[0]]  # type: ignore[arg-type]
    said, slope = (record.x for _, _, kind, record in played.transcript.said if kind != "split.begin")

    bottom = fixed("linear", 1)(3, 4)
    solver = torch.optim.SGD(bottom.parameters(), lr=30.0)
    bottom(x).backward(slope)
    solver.step()
    solver.zero_grad()
    weight = likeness([said], [bottom(x).detach()])
    assert int(((weight > 0) & (weight < 0.99)).sum()) > 0
    bottom(x).backward(slope * weight[:, None])
    solver.step()
    assert torch.allclose(played.results["host"].net.params["weight"], bottom.weight, atol=1e-5)  # type: ignore[arg-type]

    top = fixed("deep", 9)(4, 1)
    solver = torch.optim.SGD(top.parameters(), lr=0.3)
    losses(BINARY, top(said), y, None).mean().backward()
    solver.step()
    solver.zero_grad()
    h = said.clone().requires_grad_()
    each = losses(BINARY, top(h), y, None)
    (now,) = torch.autograd.grad(each.mean(), h, retain_graph=True)
    weight = likeness([slope], [now])
    assert int(((weight > 0) & (weight < 0.99)).sum()) > 0
    (each * weight).mean().backward()
    solver.step()
    assert torch.allclose(played.results["guest"].net.params["top.0.weight"], top[0].weight, atol=1e-5)  # type: ignore[index]


@real
def test_local_steps_learn_more_from_the_same_messages() -> None:
    guest, host = sides("breast")
    common: dict[str, Any] = {"epochs": 2, "batch": 64, "lr": 0.002}
    loss = {}
    for name, more in {"one": {}, "bcd": {"local": 5}, "celu": {"local": 5, "cache": 3}}.items():
        told: list[float] = []
        progress = Progress(tell=lambda _, __, said, told=told: told.append(said["loss"]))
        played = learn(SplitNN(**common, **more), guest, [host], begin={"guest": progress})
        loss[name] = told[-1]
        assert played.transcript.nbytes()["split.embedding"] == 2 * 569 * 16 * 4
    assert loss["bcd"] < 0.6 * loss["one"]
    assert loss["celu"] < 0.6 * loss["one"]


def test_a_host_that_is_absent_counts_as_its_mean_embedding() -> None:
    guest, hosts = made(hosts=2)
    how = SplitNN(epochs=10, batch=32, lr=0.02, drop=0.2)
    played = learn(how, guest, hosts, TWO)
    halves = played.results
    last = torch.cat([
        record.x for sender, _, kind, record in played.transcript.said
        if sender == "right" and kind == "split.embedding"
    ])[-90:]  # fmt: skip
    assert torch.allclose(halves["guest"].means["right"], last.mean(0), atol=1e-6)
    found = asked(how, guest, {"left": hosts[0]}, halves, TWO)
    both = asked(how, guest, dict(zip(TWO.hosts, hosts, strict=True)), halves, TWO)
    assert np.abs(found - both).max() > 0.05
    assert guest.y is not None
    assert auc(guest.y, found) < auc(guest.y, both)
    # The same as a host who says its mean of every row.
    params = dict(halves["right"].net.params)
    params["3.weight"], params["3.bias"] = torch.zeros(16, 16), halves["guest"].means["right"]
    mean = halves["right"].replace(net=halves["right"].net.replace(params=Tensors(params)))
    said = asked(how, guest, dict(zip(TWO.hosts, hosts, strict=True)), {**halves, "right": mean}, TWO)
    assert np.abs(found - said).max() < 1e-6


# --- real columns ---------------------------------------------------------------------------------------------------


@real
def test_three_epochs_of_breast_take_seconds() -> None:
    guest, host = sides("breast")
    train, test = divided(guest.y)  # type: ignore[arg-type]
    began = time.perf_counter()
    how = SplitNN(epochs=3, batch=32)
    halves = learn(how, guest.take(train), [host.take(train)]).results
    assert time.perf_counter() - began < 5
    score = asked(how, guest.take(test), {"host": host.take(test)}, halves)
    assert auc(guest.y[test], score) > 0.98  # type: ignore[index]


def centralised(how: SplitNN, parts: list[Tensor], y: Tensor) -> Callable[[list[Tensor]], Tensor]:
    """The same network by torch alone, over the columns that are given."""
    torch.manual_seed(0)
    bottoms = nn.ModuleList([built(how.bottom, x.shape[1], how.width) for x in parts])
    top = built(how.top, how.width * len(parts), 1)
    solver = torch.optim.Adam([*bottoms.parameters(), *top.parameters()], lr=how.lr)

    def score(xs: list[Tensor]) -> Tensor:
        return top(torch.cat([f(x) for f, x in zip(bottoms, xs, strict=True)], 1))  # type: ignore[no-any-return]

    for epoch in range(how.epochs):
        for rows in batches(0, epoch, len(y), how.batch):
            solver.zero_grad()
            losses(BINARY, score([x[rows] for x in parts]), y[rows], None).mean().backward()
            solver.step()
    return score


@real
def test_default_credit_is_learned_as_well_as_by_one_network_and_better_than_alone() -> None:
    guest, host = sides("default_credit")
    assert guest.y is not None
    train, test = divided(guest.y)
    how = SplitNN(epochs=5)
    halves = learn(how, guest.take(train), [host.take(train)], keep=False).results
    found = auc(guest.y[test], asked(how, guest.take(test), {"host": host.take(test)}, halves))
    y = torch.from_numpy(guest.y[train]).float()
    due = {}
    for name, both in {"all": [guest, host], "alone": [guest]}.items():
        scales = [Scale.of(side.x[train]) for side in both]
        score = centralised(how, [scale(side.x[train]) for scale, side in zip(scales, both, strict=True)], y)
        with torch.no_grad():
            each = score([scale(side.x[test]) for scale, side in zip(scales, both, strict=True)])
        due[name] = auc(guest.y[test], each[:, 0].numpy())
    print(f"split {found:.4f}, one network {due['all']:.4f}, guest alone {due['alone']:.4f}")
    assert abs(found - due["all"]) < 0.02
    assert found > 0.7149 + 0.02  # logistic regression on all columns
    assert found > due["alone"] + 0.02
