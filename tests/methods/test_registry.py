"""Methods by name, their settings and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest

from atoll.errors import ConfigError
from atoll.methods import (
    METHODS,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedDyn,
    FedNova,
    FedProx,
    FedSGD,
    FineTune,
    QFedAvg,
    Scaffold,
    describe,
    fields,
    get,
)


def test_every_method_is_found_by_its_name() -> None:
    assert get("scaffold") is Scaffold
    assert [get(name) for name in METHODS] == list(METHODS.values())
    assert len(set(METHODS.values())) == len(METHODS)


def test_a_misspelt_method_is_a_clear_error() -> None:
    with pytest.raises(ConfigError, match=r"unknown method 'fedprx'\n.*did you mean 'fedprox'"):
        get("fedprx")


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_is_documented(name: str) -> None:
    settings = fields(METHODS[name])
    assert {setting.name for setting in settings} >= {"lr", "schedule"}
    for setting in settings:
        assert setting.help, f"{name}.{setting.name} has no line in the Args section"
        assert setting.type
    assert METHODS[name](**{setting.name: setting.default for setting in settings}) == METHODS[name]()


def test_settings_are_read_from_the_docstrings() -> None:
    by_name = {setting.name: setting for setting in fields(FedAdagrad)}
    assert by_name["beta1"].help.startswith(
        "decay of the first moment; 0 means none"
    )  # the nearest class wins
    assert by_name["tau"].help.endswith("server_lr / tau.")  # continued on a second line
    assert by_name["momentum"].help == by_name["nesterov"].help == 'for "sgd".'  # two settings on a line
    assert by_name["beta1"].default == 0.0
    assert by_name["epochs"].type == "int"


def test_the_list_of_methods_has_a_line_on_each() -> None:
    rows = describe()
    assert [row.name for row in rows] == list(METHODS)
    for row in rows:
        assert row.paper
        assert row.cost
        assert row.line.endswith(".")
        assert len(row.line) < 90
    assert len({row.line for row in rows}) == len(rows)
    assert next(row.cost for row in rows if row.name == "local") == "nothing"


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        (FedAvg, {"lr": 0.0}, "FedAvg: lr = 0.0"),
        (FedSGD, {"lr": -1.0}, "FedSGD: lr = -1.0"),
        (FedSGD, {"clip": -1.0}, "clip"),
        (FedSGD, {"weight_decay": -1.0}, "weight_decay"),
        (FedSGD, {"schedule": "never"}, "never"),
        (FedProx, {"mu": -0.1}, "mu"),
        (FedProx, {"gamma": 1.0}, "gamma"),
        (FedProx, {"gamma": 0.5, "weight_decay": 0.1}, "gamma"),
        (FedProx, {"lr": 0.0}, "FedProx: lr"),
        (FedAvgM, {"beta": 1.0}, "beta"),
        (FedAvgM, {"server_lr": 0.0}, "server_lr"),
        (FedAdam, {"beta1": 1.0}, "beta1"),
        (FedAdam, {"beta2": 1.0}, "beta2"),
        (FedAdam, {"tau": 0.0}, "tau"),
        (Scaffold, {"option": 3}, "option"),
        (Scaffold, {"server_lr": 0.0}, "server_lr"),
        (Scaffold, {"momentum": 0.9}, "momentum = 0.9, but it must be 0 with option=2"),
        (Scaffold, {"optimizer": "adam"}, "optimizer"),
        (Scaffold, {"clip": 1.0}, "clip"),
        (FedNova, {"mu": -1.0}, "mu"),
        (FedNova, {"mu": 10.0, "lr": 0.1}, "mu"),
        (FedNova, {"optimizer": "adam"}, "optimizer"),
        (FedNova, {"clip": 1.0}, "clip"),
        (FedNova, {"server_momentum": 1.0}, "server_momentum"),
        (FedDyn, {"alpha": 0.0}, "alpha"),
        (QFedAvg, {"q": -1.0}, "q = -1.0"),
        (FineTune, {"finetune_epochs": 0}, "finetune_epochs"),
        (FineTune, {"finetune_lr": 0.0}, "finetune_lr = 0.0, but it must be above 0"),
    ],
)
def test_settings_outside_their_range_are_refused(method: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        method(**settings)


def test_the_first_option_of_scaffold_takes_any_solver() -> None:
    assert Scaffold(option=1, momentum=0.9, clip=1.0).reads == ("train",)
    assert Scaffold(option=2).reads == ()
