"""Models judged on clients' validation data: the figures, and runs that stop by them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import atoll
import atoll.data
from atoll.errors import ConfigError
from atoll.federation import Federation
from atoll.rounds.evaluation import Evaluation, Spread
from atoll.rounds.history import Round, best
from atoll.runs.checkpoint import list_checkpoints


def clients(validation: float = 0.3) -> atoll.FederatedData:
    """Three clients; one has a single training sample, and none to spare for validation."""
    rng, made = np.random.default_rng(3), {}
    for name, n in (("a", 25), ("b", 1), ("c", 17)):
        x = rng.normal(size=(n + 9, 4)).astype(np.float32)
        y = (x[:, 0] > 0).astype(np.int64) + (x[:, 1] + rng.normal(size=n + 9) > 0)
        made[name] = {"train": (x[:n], y[:n]), "test": (x[n:], y[n:])}
    return atoll.data.from_clients(made, validation=validation)


def federation(method: str = "fedavg", data: Any = None, **settings: Any) -> Federation:
    given: dict[str, Any] = {"rounds": 30, "lr": 0.3, "engine": "loop", "device": "cpu", **settings}
    return Federation(lambda: nn.Linear(4, 3), data or clients(), method, **given)


def by_hand(fed: Federation) -> list[float]:
    """The accuracy of the model that each client with validation data would use, on these."""
    found = []
    for client in (0, 2):
        samples = fed.data.samples(client, "validation")
        assert samples is not None
        with torch.no_grad():
            guesses = fed.personal(client).eval()(samples.inputs).argmax(1)
        found.append(float((guesses == samples.targets).double().mean()))
    return found


@pytest.mark.parametrize("engine", ["loop", "batched", "processes"])
@pytest.mark.parametrize("method", ["fedavg", "ditto", "fedavg-ft"])
def test_what_clients_would_use_is_judged_on_their_validation_data(method: str, engine: str) -> None:
    fed = federation(method, engine=engine, rounds=3, patience=9)
    found = fed.fit().evaluation
    assert found is not None
    accuracy = found.validation["accuracy"]
    assert accuracy.clients == 2 and accuracy.mean == pytest.approx(np.mean(by_hand(fed)))
    assert found.value("validation") == accuracy.mean != found.value("own")
    assert found.value("validation.loss") == found.validation["loss"].mean
    assert found.score == accuracy.mean


def test_nobody_is_judged_there_who_did_not_ask() -> None:
    plain, asking = federation(rounds=2), federation(rounds=2, target="validation:2")
    before, after = plain.fit().evaluation, asking.fit().evaluation
    assert before is not None and after is not None
    assert (
        not before.validation and "validation" not in before.to_dict() and before.value("validation") is None
    )
    assert after.validation and (before.overall, before.clients) == (after.overall, after.clients)


def test_populations_made_on_demand_answer_themselves() -> None:
    whole = clients()

    def make(client: int) -> dict[str, Any]:
        splits = {s: whole.samples(client, s) for s in ("train", "validation", "test")}
        return {name: (s.inputs, s.targets) for name, s in splits.items() if s is not None}

    lazy = atoll.data.from_function(make, clients=3, classes=3)
    for method in ("fedavg", "ditto"):
        one, other = (federation(method, data, patience=1).evaluate() for data in (whole, lazy))
        assert one.validation["loss"].mean == pytest.approx(other.validation["loss"].mean, rel=1e-5)
        assert one.validation["accuracy"].clients == 2


@pytest.mark.parametrize("method", ["fedavg", "ditto"])
def test_a_target_stops_at_the_first_round_that_is_there(method: str) -> None:
    free = federation(method, patience=99)
    values = []
    for _ in range(12):
        free.round()
        values.append(float(np.mean(by_hand(free))))
    goal = max(values[3:])
    wanted = next(k for k, value in enumerate(values, 1) if value >= goal - 1e-9)
    assert wanted > 1
    run = federation(method, target=f"validation:{goal - 1e-9}").fit()
    assert run.target_round == len(run.rounds) == wanted
    assert run.to_dict()["best_round"] == wanted
    losing = federation(method, target="validation.loss:0.98", rounds=60).fit()
    history = losing.history("validation.loss")
    assert history[-1][1] <= 0.98 < history[-2][1]


def judged(*values: float, measure: str = "accuracy") -> list[Round]:
    """Rounds with these means on validation data, every other round evaluated."""
    rounds = []
    for k, value in enumerate(values):
        spread = {measure: Spread.of([value], [1])}
        rounds += [
            Round(2 * k + 1, [0], evaluation=Evaluation(spread, validation=spread)),
            Round(2 * k + 2, [0]),
        ]  # type: ignore[arg-type]
    return rounds


def test_the_best_round_and_how_long_ago_it_was() -> None:
    assert best([]) == (None, 0) == best([Round(1, [0], evaluation=Evaluation({"accuracy": 1.0}))])
    assert best(judged(0.1, 0.5, 0.5, 0.4)) == (3, 2)  # the first of equals
    assert best(judged(0.9, 0.5, 0.7, measure="loss")) == (3, 1)
    assert best(judged(0.9, float("nan"), float("nan"))) == (1, 2)


def test_patience_ends_a_run_that_gets_no_better_and_says_so(tmp_path: Path) -> None:
    run = federation(patience=3, runs=tmp_path, checkpoint=1).fit()
    curve = [value for _, value in run.history("validation")]
    top = curve.index(max(curve)) + 1
    assert top > 1 and len(curve) == top + 3 < 30 and run.best_round == top
    assert all(k - 1 - int(np.argmax(curve[:k])) < 3 for k in range(1, len(curve)))  # and no earlier
    result = next(event for event in run.events() if event["event"] == "result")
    assert (result["reason"], result["best_round"], result["rounds"]) == ("patience", top, top + 3)
    assert f"{top + 3}, best on validation data in round {top}" in str(run)
    assert run.folder is not None
    tied = len(curve) - curve[::-1].index(max(curve))  # of equal ones the latest stays
    assert [number for number, _ in list_checkpoints(run.folder.path)] == [tied, top + 3]


@pytest.mark.parametrize("method", ["fedavg", "ditto"])
def test_a_resumed_run_has_as_much_patience_as_an_undisturbed_one(method: str, tmp_path: Path) -> None:
    whole = federation(method, patience=3).fit()

    class Stop(atoll.Callback):
        def on_round_end(self, federation: Federation, record: Round) -> None:
            if record.number == len(whole.rounds) - 2:
                federation.stop()

    federation(method, patience=3, runs=tmp_path, callbacks=[Stop()]).fit()
    run = federation(method, patience=3, runs=tmp_path).resume().fit()
    assert (len(run.rounds), run.best_round) == (len(whole.rounds), whole.best_round)
    assert run.history("validation") == whole.history("validation")
    longer = federation(method, patience=6, runs=tmp_path).resume().fit()
    assert len(longer.rounds) > len(run.rounds)


@pytest.mark.parametrize(
    ("settings", "validation", "words"),
    [
        (
            {"patience": 3},
            0,
            "patience = 3 looks at validation data, and the clients have none.*validation=0.1",
        ),
        ({"target": "validation:0.9"}, 0, "target = validation:0.9 looks at.*have none.*validation=0.1"),
        ({"patience": 3, "eval_every": 0}, 0.3, "eval_every = 0 there is none but the last.*eval_every=1"),
        ({"target": "validation.mae:0.9"}, 0.3, "does not measure 'mae'.*accuracy, loss"),
        ({"target": "valid:0.9"}, 0.3, "does not measure 'valid'.*'validation'"),
        ({"patience": 0}, 0.3, "patience cannot be 0.*at least 1"),
    ],
)
def test_what_cannot_be_stopped_by(settings: dict[str, Any], validation: float, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        federation(data=clients(validation), **settings)
    assert re.search(words, f"{caught.value.message} {caught.value.hint}")


def test_in_a_file_and_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "exp.toml"
    file.write_text('data = "digits"\nclients = 4\nvalidation = 0.2\npatience = 1\nrounds = 3\nlr = 1e-6\n')
    run = atoll.run(file, sets=["engine=loop", "runs=none", "target=validation.loss:0.1"])
    start = next(event for event in run.events() if event["event"] == "start")
    assert start["config"]["patience"] == 1 and start["target"] == "validation.loss:0.1"
    assert (
        run.best_round is not None
        and run.evaluation is not None
        and run.evaluation.validation["loss"].clients == 4
    )
