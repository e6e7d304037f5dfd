"""The little text languages: which texts each place accepts, what they mean, and what is said about the others."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from dataclasses import astuple
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from atoll import spec
from atoll.data import load
from atoll.data.partition import parse_partition
from atoll.errors import ConfigError
from atoll.methods.heterofl import HeteroFL
from atoll.models import build
from atoll.optimizers import schedule_factor
from atoll.rounds.membership import Membership
from atoll.runs.checkpoint import Keep
from atoll.runs.sinks import make
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
        patch.setattr("atoll.runs.sinks.Csv", lambda: "csv")
        patch.setattr("atoll.runs.sinks.TensorBoard", lambda where: ("tensorboard", where))
        patch.setattr("atoll.runs.sinks.MLflow", lambda where: ("mlflow", where))
        return make(text)


READ: dict[str, Callable[[str], Any]] = {
    "partition": lambda text: repr(parse_partition(text, 8)),
    "partition alone": lambda text: repr(parse_partition(text)),
    "model": network,
    "channels": channels,
    "norms": norms,
    "joins": joining,
    "keep": lambda text: astuple(Keep.parse(text)),
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
    ("keep", "last", (False, 0, 1)),
    ("keep", "last:2, best", (True, 0, 2)),
    ("keep", "best", (True, 0, 1)),
    ("keep", "all", (False, 1, 1)),
    ("keep", "last, best ,every:50", (True, 50, 1)),
    ("keep", "every:1", (False, 1, 1)),
    ("keep", "every:3,every:2", (False, 2, 1)),
    ("keep", "all,every:5", (False, 5, 1)),
    ("keep", "every:5,all", (False, 1, 1)),
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
    ("schedule", "warmup:1", (1.0, 1.0, 1.0, 1.0)),
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

REFUSED: list[tuple[str, str, str]] = [
    ("partition", "", "a name is missing"),
    ("partition", "dirichlett:0.3", "unknown partition 'dirichlett' in 'dirichlett:0.3'"),
    ("partition", "permuted:2", "unknown partition 'permuted'"),
    ("partition", "dirichlet", "dirichlet needs alpha"),
    ("partition", "dirichlet:big", "alpha = 'big' is not a number"),
    ("partition", "dirichlet:nan", "alpha = 'nan' is not a number"),
    ("partition", "dirichlet:,5", "alpha is empty"),
    ("partition", "dirichlet:0.3,", "min_size is empty"),
    ("partition", "dirichlet:0.3,1.5", "min_size = '1.5' is not a whole number"),
    ("partition", "dirichlet:0.3,1,maybe", "balance = 'maybe' is not true or false"),
    ("partition", "dirichlet:0.3,alpah=2", "dirichlet has no setting 'alpah'"),
    ("partition", "dirichlet:0.3,alpha=2", "alpha is given twice"),
    ("partition", "dirichlet:0.3,clients=2", "dirichlet has no setting 'clients'"),
    ("partition", "dirichlet:0.3,1,true,4", "dirichlet takes at most 3 arguments"),
    ("partition", "iid:3", "iid takes no arguments"),
    ("partition", "iid+", "'' cannot follow a '+'"),
    ("partition", "iid+noise:1", "'noise' cannot follow a '+'"),
    ("partition", "+permuted:2", "a name is missing"),
    ("partition", "iid+permuted:2,1,1", "permuted takes at most 2 arguments"),
    ("partition alone", "by", "by needs column"),
    ("partition alone", "by:", "by needs column"),
    ("partition alone", "natural:column=x", "natural has no setting 'column'"),
    ("partition alone", "iid", "needs clients"),
    ("model", "", "a name is missing"),
    ("model", "lenett", "unknown model 'lenett'"),
    ("model", "mlpp-bn:64", "unknown model 'mlpp' in 'mlpp-bn:64'"),
    ("model", "cnn + mlp:64", "unknown model 'cnn + mlp'"),
    ("model", "cnn:3", "cnn takes no arguments"),
    ("model", "cnn:", "cnn takes no arguments"),
    ("model", "mlp:", "widths is empty"),
    ("model", "mlp:8,,8", "widths is empty"),
    ("model", "mlp:8,x", "widths = 'x' is not a whole number at least 1"),
    ("model", "mlp:8,0", "widths = '0' is not a whole number at least 1"),
    ("model", "mlp:8.0", "widths = '8.0' is not a whole number at least 1"),
    ("model", "vgg:", "width is empty"),
    ("model", "vgg:8,16", "vgg takes at most 1 argument"),
    ("joins", "", "joins = '' is empty"),
    ("joins", "6", "joins = '6' is not CLIENTS@ROUND"),
    ("joins", "6@3,", "joins = '6@3,': part 2 of 2 is empty"),
    ("joins", "@3", "clients is empty"),
    ("joins", "2@4, six@3", "'six@3': clients = 'six' is not a whole number above 0 or a share below 1"),
    ("joins", "2.5@3", "clients = '2.5' is not a whole number above 0 or a share below 1"),
    ("joins", "0@3", "clients = '0' is not"),
    ("joins", "-1@3", "clients = '-1' is not"),
    ("joins", "inf@3", "clients = 'inf' is not"),
    ("joins", "6@3.5", "round = '3.5' is not a whole number"),
    ("joins", "6@3@4", "round = '3@4' is not a whole number"),
    ("keep", "", "a name is missing"),
    ("keep", "worst", "unknown keep 'worst'"),
    ("keep", "last,", "a name is missing"),
    ("keep", "every", "every needs rounds"),
    ("keep", "every:", "rounds is empty"),
    ("keep", "every:0", "rounds = '0' is not a whole number at least 1"),
    ("keep", "last, every:1.5", "rounds = '1.5' is not a whole number at least 1"),
    ("keep", "every:²", "rounds = '²' is not a whole number at least 1"),
    ("keep", "best:2", "best takes no arguments"),
    ("reader", "", "a name is missing"),
    ("reader", "tensorbord:there", "unknown reader 'tensorbord' in 'tensorbord:there'"),
    ("reader", "csv:here", "csv takes no arguments"),
    ("reader", "csv:", "csv takes no arguments"),
    ("reader", "mlflow:", "uri is empty"),
    ("schedule", "", "a name is missing"),
    ("schedule", "cosin:3", "unknown schedule 'cosin' in 'cosin:3'"),
    ("schedule", "constant:1", "constant takes no arguments"),
    ("schedule", "cosine", "cosine needs rounds"),
    ("schedule", "exponential:", "exponential needs factor"),
    ("schedule", "exponential:0", "factor = '0' is not a number above 0"),
    ("schedule", "exponential:nan", "factor = 'nan' is not a number above 0"),
    ("schedule", "step:30", "step needs factor"),
    ("schedule", "step:30,", "factor is empty"),
    ("schedule", "step:30,0.1,2", "step takes at most 2 arguments"),
    ("schedule", "step:0.5,0.1", "rounds = '0.5' is not a number at least 1"),
    ("schedule", "step:inf,0.1", "rounds = 'inf' is not a number at least 1 and below inf"),
    ("schedule", "warmup:ten", "rounds = 'ten' is not a number at least 1"),
    ("rates", "", "HeteroFL: rates = '' is empty"),
    ("rates", "1,half", "HeteroFL: rates = '1,half': rate = 'half' is not a number above 0 and at most 1"),
    ("rates", "1,0.5,", "part 3 of 3 is empty"),
    ("rates", "1,0", "rate = '0' is not a number above 0 and at most 1"),
    ("rates", "2,1", "rate = '2' is not a number above 0 and at most 1"),
    ("grid", "lr", "--grid 'lr' is not KEY=VALUE,VALUE ..."),
    ("grid", "=0.1", "--grid '=0.1' is not KEY=VALUE,VALUE ..."),
    ("grid", "lr=", "--grid lr = '' is empty"),
    ("grid", "lr=0.1,", "--grid lr = '0.1,': part 2 of 2 is empty"),
    ("grid", 'model=["mlp:64"', "is not an array"),
    ("set", "lr", "--set 'lr' is not KEY=VALUE"),
    ("dataset", "synthetic", "synthetic needs alpha and beta"),
    ("dataset", "synthetic:", "alpha is empty"),
    ("dataset", "synthetic:1", "synthetic needs beta"),
    ("dataset", "synthetic:1,1,1", "synthetic takes at most 2 arguments"),
    ("dataset", "synthetic:1,one", "beta = 'one' is not a number"),
    ("dataset", "digits:3", "digits takes no arguments"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "meaning"), ACCEPTED)
def test_texts_that_are_accepted_keep_their_meaning(kind: str, text: str, meaning: Any) -> None:
    assert READ[kind](text) == meaning


@pytest.mark.parametrize(("kind", "text", "said"), REFUSED)
def test_of_other_texts_is_said_what_is_wrong_where_and_what_would_fit(
    kind: str, text: str, said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        READ[kind](text)
    assert said in caught.value.message
    assert text.removesuffix(":").partition("=")[0] in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("kind", "text", "hint"),
    [
        ("partition", "dirichlett:0.3", "did you mean 'dirichlet'"),
        ("partition", "dirichlet:0.3,alpah=2", "did you mean 'alpha'?"),
        ("partition", "dirichlet", "write dirichlet:ALPHA[,MIN_SIZE,BALANCE]"),
        ("partition", "iid:3", "write iid"),
        ("model", "mlp:8,x", "write mlp[:WIDTHS,...]"),
        ("joins", "six@3", "write CLIENTS@ROUND, such as 6@20"),
        ("keep", "last,", "known: all, best, every, last"),
        ("schedule", "step:30", "write step:ROUNDS,FACTOR"),
        ("rates", "1,half", "write RATE,RATE,..."),
        ("grid", "lr", "for example --grid lr=0.01,0.1"),
        ("set", "lr", "for example --set lr=0.05"),
    ],
)
def test_hints_say_what_to_write(kind: str, text: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        READ[kind](text)
    assert (caught.value.hint or "").startswith(hint)


# --- the reader itself ----------------------------------------------------------------------------------------------


def test_the_examples_in_its_docstrings() -> None:
    done = doctest.testmod(spec)
    assert done.attempted >= 8
    assert not done.failed


def test_a_chain_may_be_joined_by_anything() -> None:
    known = {
        "clip": (spec.number("norm", above=0),),
        "noise": (spec.number("scale"), spec.word("kind", optional=True)),
    }
    calls = spec.chain("clip:1e+3|noise : 2 , laplace", "channel", "|")
    assert [(call.name, call.read(known)) for call in calls] == [
        ("clip", {"norm": 1000.0}),
        ("noise", {"scale": 2.0, "kind": "laplace"}),
    ]
    with pytest.raises(
        ConfigError, match=r"unknown channel 'nois' in 'clip:1\|nois'\n.*did you mean 'noise'"
    ):
        spec.chain("clip:1|nois", "channel", "|")[1].read(known)


def test_arguments_may_be_named_and_the_last_may_be_many() -> None:
    known = {"vote": (spec.word("rule"), spec.many(spec.whole("weights", optional=True)))}
    assert spec.parse("vote:most,1,2", "attack").read(known) == {"rule": "most", "weights": (1, 2)}
    assert spec.parse("vote:rule=most", "attack").read(known) == {"rule": "most"}
    with pytest.raises(ConfigError, match=r"vote needs rule\n  hint: write vote:RULE\[,WEIGHTS,\.\.\.\]"):
        spec.parse("vote:weights=1", "attack").read(known)


@given(st.text("ab:,+@=|.-_01eninf² ", max_size=12))
def test_whatever_a_text_holds_it_is_read_or_refused_with_a_hint(text: str) -> None:
    known = {
        "a": (spec.amount("many"), spec.flag("b", optional=True)),
        "b": (spec.many(spec.whole("n", at_least=1, optional=True)),),
        "ab": (spec.rest("all"),),
    }
    readings: list[Callable[[], Any]] = [
        lambda: [call.read(known) for call in spec.chain(text, "text", "+")],
        lambda: spec.parse(f"a:{text}", "text").read(known),
        lambda: spec.parse(f"b:{text}", "text").read(known),
        lambda: spec.values(text, "text", spec.number("x", above=0, below=5)),
        lambda: spec.pairs(text, "text", "@", spec.amount("x"), spec.whole("y", at_most=3)),
        lambda: spec.assignment(text, "text"),
    ]
    hints: list[str | None] = []
    for reading in readings:
        try:
            reading()
        except ConfigError as error:
            hints.append(error.hint)
    assert all(hints)


def test_numbers_beyond_the_range_of_floats() -> None:
    digits = "1" + "0" * 400
    assert spec.whole("n").read(digits, "here", "") == 10**400
    with pytest.raises(ConfigError, match="is not a whole number above 0 or a share"):
        spec.amount("n").read(digits, "here", "")
