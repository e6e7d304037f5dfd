"""One schema, three doors."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import atoll
from atoll.errors import ConfigError
from atoll.experiment import Experiment, run_settings
from atoll.methods import METHODS, fields


def test_three_doors_one_experiment(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        'method = "fedprox"\nmu = 0.5\nrounds = 7\nbatch_size = "full"\ncohort = 0.2\nlr = 1\ntest = "none"\n'
    )
    texts = ["method=fedprox", "mu=0.5", "rounds=7", "batch_size=full", "cohort=0.2", "lr=1", "test=none"]
    words = {
        "method": "fedprox",
        "mu": 0.5,
        "rounds": 7,
        "batch_size": None,
        "cohort": 0.2,
        "lr": 1.0,
        "test": None,
    }
    by_file, by_text, by_word = Experiment.read(file), Experiment.read(sets=texts), Experiment.read(**words)
    assert by_file == by_text == by_word
    assert by_file.settings["batch_size"] is None
    assert isinstance(by_text.settings["lr"], float)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_written_is_read_back(method: str, tmp_path: Path) -> None:
    experiment = Experiment.read(
        method=method, rounds=3, test=None, target="accuracy:0.5", data='a "b".csv', label="y"
    )
    if "batch_size" in experiment.settings:
        experiment = Experiment.read(**{**experiment.to_dict(), "batch_size": None})
    file = tmp_path / "run.toml"
    file.write_text(experiment.to_toml())
    assert Experiment.read(file) == experiment


def test_settings_of_tables_are_one_at_all_doors(tmp_path: Path) -> None:
    texts = ["features=age, sex", "categorical=sex:f|m", "classes=no,yes", "missing=mark", "scale=age:50:15"]
    lists = (
        "features = ['age', 'sex']\ncategorical = ['sex:f|m']\nclasses = ['no', 'yes']\nmissing = 'mark'\n"
        "scale = ['age:50:15']\n"
    )
    file = tmp_path / "run.toml"
    file.write_text(f"data = 't.csv'\nlabel = 'ill'\n{lists}")
    by_file, by_text = Experiment.read(file), Experiment.read(None, ["data=t.csv", "label=ill", *texts])
    assert by_file == by_text
    assert (by_text.features, by_text.classes) == (("age", "sex"), ("no", "yes"))
    file.write_text(by_text.to_toml())
    assert Experiment.read(file) == by_text
    assert Experiment.read(None, ["data=t.csv", "classes=10"]).classes == 10
    assert Experiment.read(None, ["data=t.csv", "classes=regression"]).classes == "regression"
    with pytest.raises(ConfigError, match=r"missing cannot be 'fill'.*\n.*drop, zero, mark or none"):
        Experiment.read(None, ["data=t.csv", "missing=fill"])
    with pytest.raises(ConfigError, match="scale is for data files"):
        Experiment.read(None, ["scale=federated"])
    with pytest.raises(ConfigError, match=r"t.csv is data(.|\n)*--set data=.*t.csv --set label=COLUMN"):
        Experiment.read(tmp_path / "t.csv")


def test_later_doors_win(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("rounds = 1\nlr = 0.1\nseed = 1\n")
    experiment = Experiment.read(file, ["rounds=2", "lr=0.2"], rounds=3)
    assert (experiment.rounds, experiment.settings["lr"], experiment.seed) == (3, 0.2, 1)


def test_a_table_of_a_method_is_for_it_alone(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("method = 'ditto'\nlr = 0.1\n[ditto]\nlam = 0.5\nlr = 0.3\n[fedprox]\nmu = 0.7\n")
    ditto, fedprox = Experiment.read(file), Experiment.read(file, ["method=fedprox"])
    assert (ditto.settings["lam"], ditto.settings["lr"]) == (0.5, 0.3)
    assert (fedprox.settings["mu"], fedprox.settings["lr"]) == (0.7, 0.1)
    assert Experiment.read(file, ["lr=0.2"]).settings["lr"] == 0.2
    assert Experiment.read(file, method="fedavg").settings["lr"] == 0.1
    with pytest.raises(ConfigError, match="unknown key 'mu'"):
        Experiment.read(file, ["mu=1"])
    file.write_text("[dito]\nlam = 0.5\n")
    with pytest.raises(ConfigError, match=r"dito is a table .*\n.*or in a table with a method's name"):
        Experiment.read(file)


@pytest.mark.parametrize("word", ["full", "all", "inf", "none", "FULL"])
def test_words_for_a_full_batch(word: str) -> None:
    assert Experiment.read(sets=[f"batch_size={word}"]).settings["batch_size"] is None


def test_no_setting_hides_a_key_of_the_run() -> None:
    for kind in METHODS.values():
        assert not {each.name for each in fields(kind)} & run_settings().keys()


def test_objects_belong_to_the_federation() -> None:
    with pytest.raises(ConfigError) as caught:
        Experiment.read(method=atoll.FedAvg())
    assert "atoll.Federation" in str(caught.value.hint)


def test_natural_clients_are_taken_unless_a_number_is_given() -> None:
    heart = Experiment.read(data="heart", model="logistic", rounds=1, engine="loop")
    assert len(heart.build().data) == 4
    assert len(dataclasses.replace(heart, clients=6).build().data) == 6


def test_run_takes_keywords() -> None:
    run = atoll.run(rounds=2, clients=4, model="logistic", engine="loop", method="fedavgm", beta=0.5)
    assert (run.method, run.data, run.partition) == ("fedavgm", "digits", "dirichlet:0.3")
    assert len(run.rounds) == 2
    text = str(run)
    assert text.startswith("fedavgm on digits, dirichlet:0.3\n")
    assert "\x1b" not in text
    for word in (
        "global model",
        "client mean",
        "± std",
        "p10",
        "median",
        "worst",
        "rounds",
        "kB up",
        "loop",
        "client mean by round",
    ):
        assert word in text


def test_same_seed_same_start() -> None:
    settings = {"rounds": 1, "clients": 4, "engine": "loop"}
    first, again = (Experiment.read(**settings).build() for _ in range(2))
    other = Experiment.read(seed=1, **settings).build()
    name = next(iter(first.state.params))
    assert first.state.params[name].equal(again.state.params[name])
    assert not first.state.params[name].equal(other.state.params[name])
