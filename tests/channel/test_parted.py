"""The mean of a part's tensors is over those who have it, whatever the method and the engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import atoll
from atoll.channel.parted import Parted, Sharing
from atoll.contract import ClientData, Population, Replies
from atoll.data import FederatedData
from atoll.errors import ConfigError
from atoll.methods import FedAvg
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors

ENGINES = ("loop", "batched", "processes")


class Both(nn.Module):
    """A linear layer for each part."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 2), nn.Linear(4, 2)

    def forward(self, left: Tensor, right: Tensor, here: Tensor) -> Tensor:
        outputs: Tensor = self.left(left) * here[:, :1] + self.right(right) * here[:, 1:]
        return outputs


class Unnamed(nn.Module):
    """The same, whose layers do not say what they are for."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(3, 2), nn.Linear(4, 2)

    def forward(self, left: Tensor, right: Tensor, here: Tensor) -> Tensor:
        outputs: Tensor = self.one(left) * here[:, :1] + self.other(right) * here[:, 1:]
        return outputs


def clients(lack: dict[int, tuple[int, ...]], count: int = 4, size: int = 6) -> FederatedData:
    """Client -> the rows that lack the right part."""
    draw = torch.Generator().manual_seed(0)
    found = []
    for client in range(count):
        here = torch.ones(size, 2)
        here[list(lack.get(client, ())), 1] = 0
        parts = {"left": torch.randn(size, 3, generator=draw), "right": torch.randn(size, 4, generator=draw)}
        y = torch.randint(0, 2, (size,), generator=draw)
        found.append(atoll.data.from_arrays({**parts, "here": here}, y, classes=2))
    return atoll.data.from_clients(found, test=None, classes=2)


def came(
    data: FederatedData, method: str = "fedavg", rounds: int = 1, model: Any = Both, **settings: Any
) -> Tensors:
    given = {"lr": 0.5, "engine": "loop", "eval_every": 0, "seed": 2, **settings}
    run = atoll.Federation(model, data, method, rounds=rounds, **given).fit(progress=False)
    return Tensors({name: p.detach() for name, p in run.model.named_parameters()})


def of(found: Tensors, part: str) -> Tensors:
    return Tensors({name: value for name, value in found.items() if name.startswith(part)})


def close(one: Tensors, other: Tensors, atol: float = 1e-6) -> bool:
    return all(torch.allclose(one[name], other[name], atol=atol) for name in one)


LACK = {1: tuple(range(6)), 3: tuple(range(6))}


def test_who_lacks_a_part_does_not_dilute_it() -> None:
    """Clients 1 and 3 lack the right part: it is what clients 0 and 2 make of it by themselves."""
    data = clients(LACK)
    alone = came(data.choose([0, 2]))
    assert close(of(came(data), "right"), of(alone, "right"))
    assert not close(of(came(data, by_part=False), "right"), of(alone, "right"))
    assert close(of(came(data), "left"), of(came(data, by_part=False), "left"))


def test_of_samples_that_lack_a_part_the_mean_is_over_the_others() -> None:
    """One step of all data: the gradient of the right part is that of all samples that have it, wherever they are."""
    lack = {0: (1, 2, 5), 2: (0,), 3: tuple(range(6))}
    data = clients(lack)
    module = Both()
    each = [data.samples(client) for client in range(4)]
    begun = came(data, lr=1e-12)
    module.load_state_dict({**begun})
    parts = [{str(name): part for name, part in s.inputs.items()} for s in each]  # type: ignore[union-attr]
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    losses = nn.functional.cross_entropy(
        module(**whole), torch.cat([s.targets for s in each]), reduction="none"  # type: ignore[union-attr]
    )  # fmt: skip
    losses.sum().backward()
    moved = came(data, batch_size=None)
    wanted = {"left": 24, "right": int(whole["here"][:, 1].sum())}
    for name, p in module.named_parameters():
        assert p.grad is not None
        step = 0.5 * p.grad / wanted[name.split(".")[0]]
        assert torch.allclose(begun[name] - moved[name], step, atol=1e-5)


def test_what_nobody_has_stays_as_it_is() -> None:
    data = clients({k: tuple(range(6)) for k in range(4)})
    assert torch.equal(
        of(came(data, weight_decay=0.1), "right")["right.weight"], came(data, lr=1e-12)["right.weight"]
    )


@pytest.mark.parametrize(
    "method", ["fedprox", "scaffold", "fedadam", "feddyn", "fednova", "fedsgd", "ditto", "moon"]
)
def test_any_method_that_averages_changes(method: str) -> None:
    """With all clients alike but for the part, its encoder learns what it would among those who have it."""
    settings: dict[str, Any] = {"batch_size": 3} if method != "fedsgd" else {}
    data = clients(LACK)
    found, other = (came(data, method, 2, by_part=by_part, **settings) for by_part in (True, False))
    assert not close(of(found, "right"), of(other, "right"), 1e-4)
    assert all(bool(value.isfinite().all()) for value in found.values())


class Counting(Both):
    """With running statistics of the right part."""

    def __init__(self) -> None:
        super().__init__()
        self.right = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))  # type: ignore[assignment]


def statistics(data: FederatedData, **settings: Any) -> dict[str, Tensor]:
    given: dict[str, Any] = {
        "rounds": 1,
        "lr": 1e-6,
        "epochs": 30,
        "engine": "loop",
        "eval_every": 0,
        "seed": 2,
    }
    run = atoll.Federation(Counting, data, "fedavg", **{**given, **settings}).fit(progress=False)
    return {name: value.detach() for name, value in run.model.named_buffers()}


def test_statistics_are_means_over_the_clients_that_have_the_part() -> None:
    """However many of their samples lack it; a change twice as long would leave a variance below 0."""
    some = clients(dict.fromkeys(range(4), (0, 1, 2)))
    found, plain = statistics(some), statistics(some, by_part=False)
    assert all(torch.allclose(found[name], plain[name], atol=1e-6) for name in plain)
    assert bool((found["right.1.running_var"] > 0).all())
    few, alone = statistics(clients(LACK)), statistics(clients(LACK).choose([0, 2]))
    assert all(torch.allclose(few[name], alone[name], atol=1e-5) for name in alone)
    assert few["right.1.num_batches_tracked"] == 30
    none = statistics(clients({k: tuple(range(6)) for k in range(4)}))
    assert none["right.1.running_mean"].tolist() == [0, 0] and none["right.1.running_var"].tolist() == [1, 1]


def test_what_a_client_lacks_does_not_move_though_its_weights_would_decay() -> None:
    data = clients(LACK)
    found, alone = came(data, weight_decay=0.1), came(data.choose([0, 2]), weight_decay=0.1)
    assert close(of(found, "right"), of(alone, "right"))


def test_a_share_that_was_rounded_to_nothing_lets_nothing_through() -> None:
    """As secure aggregation may round it, and not what it is of."""
    update = Tensors({"left.weight": torch.ones(2), "right.weight": torch.full((2,), 1e-3)})
    mean = Record(update=update, buffers=Tensors(), parts=torch.tensor([[0.5, 0.0], [1.0, 0.0]]))
    made = Parted(owners=(("left.weight", 0), ("right.weight", 1)))
    _, found = made.learn(Record(), Replies([0], 1.0, mean))
    assert found.mean.update["left.weight"].tolist() == [2, 2]
    assert found.mean.update["right.weight"].tolist() == [0, 0]
    assert "parts" not in found.mean


def test_rows_of_padding_are_no_samples() -> None:
    task, method = Task(Both()), FedAvg()
    held = clients({0: (1, 2)}).samples(0)
    assert held is not None
    sent = method.broadcast(method.setup(task, Population(1, (task,), held.inputs[:1])), [0]).received(0)
    rows, found = torch.tensor([0, 1, 2, 3, 4, 5, 0, 0, 3]), []
    for some, mask in ((rows[:6], torch.ones(6)), (rows, (torch.arange(9) < 6).float())):
        batch = Batch(held.inputs[some], held.targets[some], mask, torch.tensor(0))
        data = ClientData(torch.tensor(6.0), torch.tensor(0), batch)
        found.append(Sharing(method, ()).begin(task, sent, Record(), data).shares.tolist())
    assert found[0] == found[1] == pytest.approx([1, 4 / 6])


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_agree(engine: str) -> None:
    data = clients({0: (1, 2), 1: tuple(range(6))})
    assert close(came(data, rounds=2, engine=engine, batch_size=4), came(data, rounds=2, batch_size=4), 1e-5)


def test_a_sum_that_hides_who_sent_what_is_enough() -> None:
    data = clients(LACK)
    assert close(came(data, channel="secagg:20"), came(data), 2e-4)


def test_nothing_is_done_where_all_samples_have_all_parts() -> None:
    data = clients({})
    one, other = came(data), came(data, by_part=False)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"channel": "clip:0.5"}, "channel = 'clip:0.5'"),
        ({"aggregate": "median"}, "aggregate = 'median'"),
        ({"dp_sgd": "1.0,1.1"}, "dp_sgd"),
        ({"model": Unnamed}, "for left alone"),
        ({"method": "fedma"}, "does not average"),
    ],
)
def test_what_cannot_be_is_said_and_what_to_do(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        came(clients(LACK), **settings)
    assert "by_part=false" in str(caught.value.hint)
