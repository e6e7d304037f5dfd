"""The little text languages: which texts each place accepts, what they mean, and what is said about the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from atoll.data import load
from atoll.data.partition import parse_partition
from atoll.errors import ConfigError
from atoll.membership import Membership
from atoll.methods.heterofl import HeteroFL
from atoll.models import build
from atoll.optimizers import schedule_factor
from atoll.runs.checkpoint import Keep
from atoll.runs.readers import make
from atoll.trials.points import parse_grid
from atoll.trials.shared import Shared

TEN = load("digits").partition("iid", clients=10)
ROUNDS = (0, 1, 4, 40)


def network(text: str) -> tuple[int, ...]:
    module = build(text, (1, 8, 8), 10)
    return tuple(layer.out_features for layer in module.modules() if isinstance(layer, nn.Linear))


def channels(text: str) -> tuple[int, ...]:
    module = build(text, (1, 8, 8), 10)
    return tuple(layer.out_channels for layer in module.modules() if isinstance(layer, nn.Conv2d))[:2]


def norms(text: str) -> int:
    return sum(isinstance(each, nn.BatchNorm1d) for each in build(text, (1, 8, 8), 10).modules())


def joining(text: str) -> dict[int, int]:
    """Clients at each round."""
    rounds = [*Membership(TEN, 0, joins=text).joins.values()]
    return {round: rounds.count(round) for round in sorted(rounds)}


def reader(text: str) -> Any:
    """Which reader, and where it writes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("atoll.runs.csvs.Csv", lambda: "csv")
        patch.setattr("atoll.runs.loggers.TensorBoard", lambda where: ("tensorboard", where))
        patch.setattr("atoll.runs.mlflows.MLflow", lambda where: ("mlflow", where))
        return make(text)


READ: dict[str, Callable[[str], Any]] = {
    "partition": lambda text: repr(parse_partition(text, 8)),
    "partition alone": lambda text: repr(parse_partition(text)),
    "model": network,
    "channels": channels,
    "norms": norms,
    "joins": joining,
    "keep": lambda text: (Keep.parse(text).best, Keep.parse(text).every),
    "reader": reader,
    "schedule": lambda text: tuple(schedule_factor(text, round) for round in ROUNDS),
    "rates": lambda text: HeteroFL(rates=text).levels,
    "grid": lambda text: parse_grid([text]),
    "set": lambda text: Shared(None, [text], {}).method({}),
    "dataset": lambda text: load(text, clients=2).name,
}

ACCEPTED: list[tuple[str, str, Any]] = [
    ("partition", "iid", "IID(clients=8, sizes=None)"),
    ("partition", " iid ", "IID(clients=8, sizes=None)"),
    ("partition", "iid:", "IID(clients=8, sizes=None)"),
    ("partition", "dirichlet:0.3", "Dirichlet(clients=8, alpha=0.3, min_size=1, balance=False)"),
    ("partition", "dirichlet : 3e-1", "Dirichlet(clients=8, alpha=0.3, min_size=1, balance=False)"),
    ("partition", "dirichlet:0.3, 5 ,TRUE", "Dirichlet(clients=8, alpha=0.3, min_size=5, balance=True)"),
    ("partition", "dirichlet:0.3,balance=true", "Dirichlet(clients=8, alpha=0.3, min_size=1, balance=True)"),
    ("partition", "dirichlet:min_size = 1_0, alpha = 2", "Dirichlet(clients=8, alpha=2.0, min_size=10, balance=False)"),
    ("partition", "dirichlet:inf", "Dirichlet(clients=8, alpha=inf, min_size=1, balance=False)"),
    ("partition", "dirichlet:-1", "Dirichlet(clients=8, alpha=-1.0, min_size=1, balance=False)"),
    ("partition", "shards", "Shards(clients=8, per_client=2)"),
    ("partition", "shards:", "Shards(clients=8, per_client=2)"),
    ("partition", "sizes:square", "Sizes(clients=8, growth='square', min_size=1)"),
    ("partition", "sizes:cubic", "Sizes(clients=8, growth='cubic', min_size=1)"),
    ("partition", "continuous:age, 0.5", "Continuous(column='age', clients=8, strictness=0.5)"),
    ("partition", "rotated:8,16", "Rotated(clients=8, train=16, validation=64, test=277)"),
    ("partition", "rotated:train=16", "Rotated(clients=8, train=16, validation=64, test=277)"),
    (
        "partition", "iid + permuted:3, 0.75",
        "LabelPermutation(base=IID(clients=8, sizes=None), groups=3, fraction=0.75)",
    ),
    (
        "partition", "iid:+permuted:",
        "LabelPermutation(base=IID(clients=8, sizes=None), groups=1, fraction=0.5)",
    ),
    (
        "partition", "iid+permuted+permuted:fraction=1",
        "LabelPermutation(base=LabelPermutation(base=IID(clients=8, sizes=None), groups=1, fraction=0.5),"
        " groups=1, fraction=1.0)",
    ),
    ("partition alone", "natural", "By(column=None, min_size=1, max_clients=None, group=1)"),
    ("partition alone", "natural:", "By(column=None, min_size=1, max_clients=None, group=1)"),
    ("partition alone", "natural:20,group=2", "By(column=None, min_size=20, max_clients=None, group=2)"),
    ("partition alone", "by:writer", "By(column='writer', min_size=1, max_clients=None, group=1)"),
    ("partition alone", "by:a b,2,3", "By(column='a b', min_size=2, max_clients=3, group=1)"),
    ("partition alone", "by:min_size=2,column=x", "By(column='x', min_size=2, max_clients=None, group=1)"),
    ("partition alone", "rotated", "Rotated(clients=36, train=128, validation=64, test=277)"),
    ("model", "mlp", (128, 10)),
    ("model", "mlp:64", (64, 10)),
    ("model", "mlp:128, 64 ,32", (128, 64, 32, 10)),
    ("model", "mlp-bn:64,32", (64, 32, 10)),
    ("model", "logistic", (10,)),
    ("model", "2nn", (200, 200, 10)),
    ("model", "auto", (128, 10)),
    ("channels", "vgg", (32, 64)),
    ("channels", "vgg: 8", (8, 16)),
    ("channels", "vgg-bn:8", (8, 16)),
    ("norms", "2nn-bn", 2),
    ("norms", "mlp-bn-bn:8,8", 4),
    ("joins", "6@20", {20: 6}),
    ("joins", " 3 @ 20, 0.1@2,1e0@20", {2: 1, 20: 4}),
    ("joins", "0.25@3", {3: 3}),
    ("joins", "0.01@3", {3: 1}),
    ("joins", "2.0@1_0", {10: 2}),
    ("keep", "last", (False, 0)),
    ("keep", "best", (True, 0)),
    ("keep", "all", (False, 1)),
    ("keep", "last, best ,every:50", (True, 50)),
    ("keep", "every:3,every:2", (False, 2)),
    ("keep", "all,every:5", (False, 5)),
    ("keep", "every:5,all", (False, 1)),
    ("reader", "csv", "csv"),
    ("reader", "tensorboard", ("tensorboard", None)),
    ("reader", "tensorboard:there/a,b + c=d:e", ("tensorboard", "there/a,b + c=d:e")),
    ("reader", "mlflow:http://host:5000/x?a=b,c", ("mlflow", "http://host:5000/x?a=b,c")),
    ("schedule", "constant", (1.0, 1.0, 1.0, 1.0)),
    ("schedule", "constant:", (1.0, 1.0, 1.0, 1.0)),
    ("schedule", "exponential:0.5", (1.0, 0.5, 0.0625, 0.5**40)),
    ("schedule", "exponential:1e+0", (1.0, 1.0, 1.0, 1.0)),
    ("schedule", "step:2, 0.1", (1.0, 1.0, 0.1**2, 0.1**20)),
    ("schedule", "step:2.9,-1", (1.0, 1.0, 1.0, 1.0)),
    ("schedule", "cosine:4", (1.0, 0.8535533905932737, 0.0, 0.0)),
    ("schedule", "cosine:inf", (1.0, 1.0, 1.0, 1.0)),
    ("schedule", "warmup:4", (0.25, 0.5, 1.0, 1.0)),
    ("rates", "1", (1.0,)),
    ("rates", "1,0.5, 0.25", (1.0, 0.5, 0.25)),
    ("rates", "5e-1, 1.0", (0.5, 1.0)),
    ("grid", "lr=0.01,0.1", {"lr": ["0.01", "0.1"]}),
    ("grid", " lr = 0.01 , 0.1 ", {"lr": ["0.01", "0.1"]}),
    ("grid", "partition=dirichlet:0.3,iid + permuted:2", {"partition": ["dirichlet:0.3", "iid + permuted:2"]}),
    ("grid", 'model=["mlp:64,32", "2nn"]', {"model": ["mlp:64,32", "2nn"]}),
    ("grid", "lr=[0.1, 1]", {"lr": [0.1, 1]}),
    ("grid", "runs=a=b,c", {"runs": ["a=b", "c"]}),
    ("set", "method = ditto ", "ditto"),
    ("set", "lr=0.1", "fedavg"),
    ("dataset", "synthetic:1,1", "synthetic:1,1"),
    ("dataset", "synthetic: 0 , 0.5", "synthetic:0,0.5"),
]  # fmt: skip

REFUSED: list[tuple[str, str]] = [
    ("partition", ""),
    ("partition", "dirichlett:0.3"),
    ("partition", "dirichlet"),
    ("partition", "dirichlet:big"),
    ("partition", "dirichlet:,5"),
    ("partition", "dirichlet:0.3,"),
    ("partition", "dirichlet:0.3,1.5"),
    ("partition", "dirichlet:0.3,1,maybe"),
    ("partition", "dirichlet:0.3,alpah=2"),
    ("partition", "dirichlet:0.3,alpha=2"),
    ("partition", "dirichlet:0.3,clients=2"),
    ("partition", "dirichlet:0.3,1,true,4"),
    ("partition", "iid:3"),
    ("partition", "iid+"),
    ("partition", "+permuted:2"),
    ("partition", "iid+noise:1"),
    ("partition", "iid+permuted:2,1,1"),
    ("partition", "permuted:2"),
    ("partition", "rotated:36"),
    ("partition", "by:writer"),
    ("partition alone", "by"),
    ("partition alone", "by:"),
    ("partition alone", "natural:column=x"),
    ("partition alone", "iid"),
    ("model", ""),
    ("model", "lenett"),
    ("model", "mlpp-bn:64"),
    ("model", "cnn + mlp:64"),
    ("model", "cnn:3"),
    ("model", "cnn:"),
    ("model", "mlp:"),
    ("model", "mlp:8,,8"),
    ("model", "mlp:8,x"),
    ("model", "mlp:8,0"),
    ("model", "mlp:8.0"),
    ("model", "vgg:"),
    ("model", "vgg:8,16"),
    ("joins", ""),
    ("joins", "6"),
    ("joins", "6@3,"),
    ("joins", "six@3"),
    ("joins", "6@3.5"),
    ("joins", "6@3@4"),
    ("joins", "2.5@3"),
    ("joins", "0@3"),
    ("joins", "-1@3"),
    ("joins", "3@1"),
    ("joins", "6@3, 5@4"),
    ("keep", ""),
    ("keep", "worst"),
    ("keep", "last,"),
    ("keep", "every"),
    ("keep", "every:"),
    ("keep", "every:0"),
    ("keep", "last, every:1.5"),
    ("keep", "best:2"),
    ("reader", ""),
    ("reader", "tensorbord:there"),
    ("reader", "csv:here"),
    ("reader", "csv:"),
    ("reader", "mlflow:"),
    ("schedule", ""),
    ("schedule", "cosin:3"),
    ("schedule", "constant:1"),
    ("schedule", "cosine"),
    ("schedule", "exponential:"),
    ("schedule", "exponential:0"),
    ("schedule", "exponential:nan"),
    ("schedule", "step:30"),
    ("schedule", "step:30,"),
    ("schedule", "step:30,0.1,2"),
    ("schedule", "step:0.5,0.1"),
    ("schedule", "warmup:ten"),
    ("rates", ""),
    ("rates", "1,half"),
    ("rates", "1,0.5,"),
    ("rates", "1,0"),
    ("rates", "2,1"),
    ("rates", "0.5,0.25"),
    ("grid", "lr"),
    ("grid", "=0.1"),
    ("grid", "lr="),
    ("grid", 'model=["mlp:64"'),
    ("dataset", "synthetic"),
    ("dataset", "synthetic:"),
    ("dataset", "synthetic:1"),
    ("dataset", "synthetic:1,1,1"),
    ("dataset", "synthetic:1,one"),
    ("dataset", "digits:3"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "meaning"), ACCEPTED)
def test_texts_that_are_accepted_keep_their_meaning(kind: str, text: str, meaning: Any) -> None:
    assert READ[kind](text) == meaning


@pytest.mark.parametrize(("kind", "text"), REFUSED)
def test_other_texts_are_refused(kind: str, text: str) -> None:
    with pytest.raises(ConfigError):
        READ[kind](text)
