"""What a run spends of its privacy: paid before it is shown, refused where the budget ends, and never too little."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

import atoll
from atoll import facts, privacy
from atoll.callbacks import Callback
from atoll.errors import BudgetError, ConfigError
from atoll.experiment import Experiment
from atoll.federation import Federation
from atoll.privacy import Everyone, Fixed, Gaussian, Ledger, Poisson, epsilon
from atoll.rounds.history import Round
from atoll.rounds.spent import Spent
from atoll.runs.events import encode
from atoll.runs.promise import promised, so_far

pytest.importorskip("dp_accounting")


def federation(**settings: Any) -> Federation:
    data = atoll.data.load("digits").partition(atoll.data.IID(clients=40), seed=0)
    usual: dict[str, Any] = {
        "rounds": 4, "cohort": 8, "seed": 1, "device": "cpu", "engine": "loop", "eval_every": 0,
        "channel": "clip:0.5 | noise:2.0", "delta": 1e-3,
    }  # fmt: skip
    return Federation(lambda: atoll.models.mlp(64, 10), data, "fedavg", **{**usual, **settings})


def test_a_result_says_what_was_spent() -> None:
    run = federation().fit(progress=False)
    exact = epsilon([Gaussian(noise=2.0, sampling=Poisson(0.2), count=4)], 1e-3)
    found = run.to_dict()
    assert found["epsilon"] == pytest.approx(exact.epsilon)
    assert found["delta"] == 1e-3
    assert found["private"] is True
    assert "for every user" in found["privacy"]
    rising = [record.spent.epsilon for record in run.rounds if record.spent is not None]
    assert len(rising) == 4
    assert rising == sorted(rising)
    assert rising[-1] >= exact.epsilon
    assert run.rounds[0].spent is not None
    assert run.rounds[0].spent.clipped is not None
    event = next(each for each in run.events() if each["event"] == "round")
    assert event["spent"]["noise"] == 2.0


def test_a_fixed_cohort_is_accounted_for_as_what_it_is() -> None:
    run = federation(sampling="fixed").fit(progress=False)
    exact = epsilon([Gaussian(noise=2.0, sampling=Fixed(8, 40), count=4)], 1e-3)
    assert run.to_dict()["epsilon"] == pytest.approx(exact.epsilon)
    assert all(len(record.cohort) == 8 for record in run.rounds)


@pytest.mark.parametrize(
    "channel", ["clip:0.5 | noise:2.0,7", "clip:0.5 | local:2.0", "clip:0.5 | skellam:2 | secagg"]
)
def test_noise_that_can_be_repeated_promises_nothing(channel: str) -> None:
    found = federation(channel=channel, rounds=1).fit(progress=False).to_dict()
    assert found["private"] is False
    assert found["privacy"].startswith("no promise")
    assert found["epsilon"] > 0


def test_the_round_that_would_spend_more_is_not_played() -> None:
    allowed = epsilon([Gaussian(noise=2.0, sampling=Poisson(0.2), count=3)], 1e-3).epsilon
    run = federation(epsilon=allowed + 1e-3, rounds=10).fit(progress=False)
    assert len(run.rounds) == 3
    assert run.to_dict()["epsilon"] <= allowed + 1e-3
    spent = [each.spent.epsilon for each in run.rounds if each.spent is not None]
    assert spent[-1] == pytest.approx(run.to_dict()["epsilon"], abs=1e-6)
    assert spent == sorted(spent)
    assert "3, the next would spend more privacy than is allowed" in " ".join(str(run).split())
    with pytest.raises(BudgetError, match="a single round"):
        federation(epsilon=0.01).fit(progress=False)


def test_clients_and_samples_are_two_promises(tmp_path: Path) -> None:
    run = federation(dp_sgd="1.0,2.0", runs=str(tmp_path), epsilon=20.0, rounds=2).fit(progress=False)
    found, plain = run.to_dict(), federation(rounds=2).fit(progress=False).to_dict()
    assert found["epsilon"] == plain["epsilon"]
    assert run.folder is not None
    users, samples = (
        Ledger.read(run.folder.path / name) for name in ("privacy.jsonl", "privacy-records.jsonl")
    )
    assert (users.terms.level, samples.terms.level) == ("user", "record")
    assert samples.terms.epsilon is None
    assert len(users.charges) == len(samples.charges) == 2
    assert found["samples_epsilon"] == samples.spent().epsilon
    assert found["samples_delta"] == samples.terms.delta < 1 / 1200
    assert "for every user" in found["privacy"] and "for every record" in found["privacy"]
    spent = run.rounds[-1].spent
    assert spent is not None
    assert spent.samples_epsilon == pytest.approx(samples.spent().epsilon, abs=1e-6)
    told = [each["spent"] for each in run.events() if each["event"] == "round"]
    assert Spent.of_event(told[-1]).samples_delta == samples.terms.delta
    assert "Single samples: at most" in promised(told)["privacy"]
    assert so_far(told[-1], 20.0).endswith(f"; samples {spent.samples_epsilon:.3g}")
    assert "samples_epsilon" not in plain


# --- noise for a budget ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channel", "event"),
    [
        ("clip:0.5 | noise", Gaussian(noise=1.0, sampling=Poisson(0.2))),
        ("clip:0.5,0.5 | noise:seed=7", Gaussian(noise=1.0, sampling=Poisson(0.2))),
        ("clip:0.5 | noise:matrix=2", None),
    ],
)
def test_noise_is_found_for_a_budget_that_all_rounds_keep(channel: str, event: Gaussian | None) -> None:
    run = federation(channel=channel, epsilon=4.0, cohort=8)
    found = run.simulation.channel.noise  # type: ignore[attr-defined]
    if event is not None:
        assert found.multiplier == pytest.approx(privacy.noise(4.0, 1e-3, event, rounds=4), abs=1e-4)
    assert run.settings.channel == run.simulation.channel.text  # type: ignore[attr-defined]
    assert f"noise:{found.multiplier:g}" in run.keeper.opening()[0].config["channel"]
    result = run.fit(progress=False).to_dict()
    assert result["rounds"] == 4
    assert 3.9 < result["epsilon"] <= 4.0


def test_noise_for_a_budget_follows_the_settings_and_a_fixed_cohort_needs_more() -> None:
    def multiplier(run: Federation) -> float:
        return run.simulation.channel.noise.multiplier  # type: ignore[attr-defined, no-any-return]

    run = federation(channel="clip:0.5 | noise", epsilon=4.0)
    assert multiplier(run.replace(rounds=8)) > multiplier(run)
    assert multiplier(run.replace(sampling="fixed")) > multiplier(run)
    assert multiplier(run.replace(newcomers=20)) > multiplier(run)


class Halt(Callback):
    def on_round_end(self, federation: Federation, record: Round) -> None:
        if record.number == 2:
            federation.stop()


def test_found_noise_stays_when_a_run_goes_on(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "channel": "clip:0.5 | noise",
        "epsilon": 4.0,
        "runs": str(tmp_path),
        "checkpoint": 1,
    }
    run = federation(**given, callbacks=[Halt()])
    run.fit(progress=False)
    assert run.number == 2
    assert run.folder is not None
    again = federation(**given)
    again.resume(run.folder.path)
    assert again.settings.channel == run.settings.channel
    assert 3.9 < again.fit(progress=False).to_dict()["epsilon"] <= 4.0


@pytest.mark.parametrize(("method", "calls"), [("fedavg", 1), ("ditto", 2)])
def test_noise_in_steps_is_found_for_a_budget_that_all_rounds_keep(
    method: str, calls: int, tmp_path: Path
) -> None:
    data = federation().data
    run = Federation(
        lambda: atoll.models.mlp(64, 10), data, method, dp_sgd="0.5,auto", epsilon=4.0, delta=1e-4, cohort=40,
        batch_size=8, rounds=2, runs=str(tmp_path), seed=1, device="cpu", engine="loop", eval_every=0,
    )  # fmt: skip
    clip, noise = map(float, str(run.settings.dp_sgd).split(","))
    assert clip == 0.5
    cost = 0.0
    for n in {data.size(k) for k in range(40)}:
        event = Gaussian(noise=noise / calls**0.5, sampling=Poisson(8 / n), count=2 * -(-n // 8))
        cost = max(cost, epsilon([event], 1e-4).epsilon)
    assert 3.99 < cost <= 4.0
    assert all(task.rule.noise == noise for task in run.tasks)  # type: ignore[attr-defined]
    assert run.keeper.opening()[0].config["dp_sgd"] == run.settings.dp_sgd
    found = run.fit(progress=False).to_dict()
    assert (found["rounds"], found["epsilon"]) == (2, pytest.approx(cost, abs=1e-3))


@pytest.mark.parametrize(("key", "asked"), [("channel", "clip:0.5 | noise:seed=3"), ("dp_sgd", "0.5,auto")])
def test_found_noise_stands_in_the_folder_of_a_command(key: str, asked: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"data": "digits", "clients": 10, "rounds": 2, "device": "cpu", "engine": "loop"}
    asking = Experiment(**given, epsilon=4.0, runs=str(tmp_path), **{key: asked})  # type: ignore[arg-type]
    run = asking.build()
    run.fit(progress=False)
    assert run.folder is not None
    again = Experiment.of_run(run.folder)
    assert getattr(again, key) == getattr(run.settings, key) != asked
    assert run.events()[0]["config"][key] == getattr(again, key)
    assert getattr(Experiment.of_run(run.folder, rounds=4), key) == getattr(run.settings, key)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "there is none"),
        ({"epsilon": 4.0, "channel": "clip:0.5 | noise:1.0"}, "about clients"),
        ({"epsilon": 4.0, "delta": 0.5}, "delta"),
    ],
)
def test_noise_in_steps_that_cannot_be_found_is_an_error(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        federation(**{"channel": None, "dp_sgd": "0.5,auto", "delta": None, **settings})


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "there is none"),
        ({"epsilon": 4.0, "joins": "6@3"}, "joins"),
        ({"epsilon": 4.0, "delta": 0.5}, "delta"),
    ],
)
def test_noise_that_cannot_be_found_is_an_error(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        federation(channel="clip:0.5 | noise", **settings)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"delta": 0.1}, "says nothing about one of 40"),
        ({"channel": None, "epsilon": 2.0}, "nothing in this run spends any"),
        ({"channel": "clip:1", "epsilon": 2.0}, "nothing in this run spends any"),
        ({"channel": "clip:1 | noise:0"}, "nothing in this run spends any"),
        ({"epsilon": 0.0}, "epsilon"),
    ],
)
def test_budgets_that_make_no_sense(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        federation(**settings)


class StopAfter(Callback):
    def on_round_end(self, federation: Federation, record: Round) -> None:
        if record.number == 2:
            federation.stop()


def test_a_run_goes_on_with_its_ledger(tmp_path: Path) -> None:
    first = federation(runs=tmp_path, checkpoint=1, callbacks=[StopAfter()])
    first.fit(progress=False)
    again = federation(runs=tmp_path, checkpoint=1).resume()
    run = again.fit(progress=False)
    assert again.folder is not None
    ledger = Ledger.read(again.folder.path / "privacy.jsonl")
    assert [each.round for each in ledger.charges] == [1, 2, 3, 4]
    assert run.to_dict()["epsilon"] == pytest.approx(ledger.spent().epsilon)
    assert [record.spent is not None for record in run.rounds] == [True] * 4


SCRIPT = """
import os, signal, sys
import torch
from pathlib import Path
from atoll.federation import Federation
from atoll.rounds.play import Simulation
sys.path.insert(0, sys.argv[2])
from tests.test_spending import federation
torch.set_num_threads(1)
before = Simulation.judged if sys.argv[3] == "judge" else Simulation.commit
def killed(self, played):
    if played.record.number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return before(self, played)
setattr(Simulation, "judged" if sys.argv[3] == "judge" else "commit", killed)
federation(runs=Path(sys.argv[1]), checkpoint=1, eval_every=1).fit(progress=False)
"""


@pytest.mark.parametrize("when", ["judge", "commit"])
def test_a_round_that_is_killed_between_noise_and_release_counts(when: str, tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), str(root), when], check=False, capture_output=True
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()[-500:]
    (folder,) = [each for each in tmp_path.iterdir() if each.is_dir() and (each / "privacy.jsonl").is_file()]
    assert [each.round for each in Ledger.read(folder / "privacy.jsonl").charges] == [1, 2, 3]
    again = federation(runs=tmp_path, checkpoint=1, eval_every=1).resume()
    run = again.fit(progress=False)
    charged = [each.round for each in Ledger.read(folder / "privacy.jsonl").charges]
    assert charged == [1, 2, 3, 3, 4]  # what was drawn before is another draw than what is released
    exact = epsilon([Gaussian(noise=2.0, sampling=Poisson(0.2), count=5)], 1e-3)
    assert run.to_dict()["epsilon"] == pytest.approx(exact.epsilon)


def test_a_spent_budget_ends_a_command_with_one_screen(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(
        'data = "digits"\nclients = 40\ncohort = 8\nrounds = 2\nchannel = "clip:0.5 | noise:2.0"\n'
        'delta = 1e-3\nruns = "none"\nengine = "loop"\n'
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "atoll.cli", "run", str(file), "--json", *more]
        return subprocess.run(command, check=False, capture_output=True, text=True, env=environment)

    refused = run("--set", "epsilon=0.01")
    assert refused.returncode == 2
    assert "hint:" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) <= 3
    sound = run("--set", "epsilon=8")
    assert sound.returncode == 0, sound.stderr
    result = json.loads(sound.stdout.strip().splitlines()[-1])
    assert 0 < result["epsilon"] < 8
    assert result["delta"] == 1e-3


def test_a_round_without_any_bound_is_read_as_it_was() -> None:
    """JSON has no infinity: an event says null."""
    spent = Spent("user", math.inf, 1e-3, 2.0, True)
    told = facts.round_event(Round(1, [0], clients={}, spent=spent), [])
    back = msgspec.json.decode(encode(told))
    assert back["spent"]["epsilon"] is None
    assert Round.of_event({**back, "evaluation": None}, []).spent == spent


# --- correlated noise, and samples ----------------------------------------------------------------------------------


@pytest.mark.parametrize("matrix", ["tree", "4"])
def test_correlated_rounds_are_one_release(matrix: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "channel": f"clip:0.5 | noise:4.0,3,matrix={matrix}",
        "rounds": 5,
        "checkpoint": 1,
    }
    whole = federation(**settings)
    run = whole.fit(progress=False)
    cohorts = [set(record.cohort) for record in run.rounds]
    assert all(len(each) == 8 for each in cohorts)
    assert all(not one & other for at, one in enumerate(cohorts) for other in cohorts[at + 1 : at + 5])
    spent = [record.spent.epsilon for record in run.rounds if record.spent is not None]
    assert len(set(spent)) == 1  # paid for in the first round, for all of them
    plain = {"channel": "clip:0.5 | noise:0", "sampling": "fixed", "choose": "cyclic", "delta": None}
    free = federation(**{**settings, **plain})
    free.fit(progress=False)
    assert not torch.equal(whole.state.params.flat(), free.state.params.flat())
    first = federation(**settings, runs=tmp_path, callbacks=[StopAfter()])
    first.fit(progress=False)
    again = federation(**settings, runs=tmp_path).resume()
    again.fit(progress=False)
    assert torch.equal(again.state.params.flat(), whole.state.params.flat())


def test_correlated_noise_cancels_over_rounds() -> None:
    """What rounds add up to has far less of it than of independent noise, whose variance grows with the rounds."""

    def total(channel: str) -> torch.Tensor:
        made = federation(channel=channel, rounds=32, lr=1e-9, sampling="fixed", cohort=1)
        start = made.state.params.flat()
        made.fit(progress=False)
        return made.state.params.flat() - start  # type: ignore[no-any-return]

    independent, tree = total("clip:1 | noise:1,3"), None
    made = federation(channel="clip:1 | noise:1,3,matrix=tree", rounds=32, lr=1e-9, cohort=1)
    start = made.state.params.flat()
    made.fit(progress=False)
    tree = made.state.params.flat() - start
    assert float(independent.std()) == pytest.approx(32**0.5, rel=0.15)
    assert float(tree.std()) < 2.0  # one node of the tree, estimated from below


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"channel": "clip:0.5,0.5 | noise:4,matrix=tree"}, "one bound holds for all rounds"),
        ({"channel": "clip:0.5 | noise:4,matrix=9"}, "come again after 5 rounds"),
        ({"channel": "clip:0.5 | noise:4,matrix=tree", "sampling": "poisson"}, "cohorts in turn"),
        ({"channel": "clip:0.5 | noise:4,matrix=tree", "joins": "6@2"}, "clients come or go"),
        ({"channel": "clip:0.5 | noise:4,matrix=0"}, "number of bands"),
    ],
)
def test_correlated_noise_that_cannot_be_accounted_for(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        federation(**settings)


def test_samples_are_accounted_for_apart() -> None:
    run = federation(channel=None, dp_sgd="1.0,1.5", cohort=40, delta=1e-4, batch_size=8, rounds=2).fit(
        progress=False
    )
    found = run.to_dict()
    sizes = [run.rounds[0].clients["samples"]]
    assert sizes
    assert found["private"] is False
    assert "for every record" in found["privacy"]
    n = min(federation().data.size(k) for k in range(40))
    exact = epsilon([Gaussian(noise=1.5, sampling=Poisson(8 / n), count=2 * -(-n // 8))], 1e-4)
    assert found["epsilon"] == pytest.approx(exact.epsilon)


def test_a_round_costs_what_it_costs_the_client_that_it_hides_least() -> None:
    """A sample of 33, in two batches of 32, is told more of than one of 32, in one batch of them all."""
    rng = np.random.default_rng(0)
    clients = {}
    for n in (5, 32, 33, 90):
        rows = rng.normal(size=(n, 4)).astype(np.float32), rng.integers(0, 3, n)
        clients[f"c{n}"] = {"train": rows, "test": rows}
    data = atoll.data.from_clients(clients, classes=3, validation=0.0)
    run = Federation(
        lambda: atoll.models.mlp(4, 3), data, "fedavg", rounds=2, batch_size=32, dp_sgd="1.0,2.0", delta=1e-3,
        device="cpu", engine="loop", eval_every=0,
    )  # fmt: skip
    each = []
    for n in (5, 32, 33, 90):
        size = min(n, 32)
        sampling = Poisson(size / n) if n > size else Everyone()
        event = Gaussian(noise=2.0, sampling=sampling, count=2 * -(-n // size))
        each.append(epsilon([event], 1e-3).epsilon)
    assert run.fit(progress=False).to_dict()["epsilon"] == pytest.approx(max(each)) == pytest.approx(each[2])
    assert max(each) > 1.3 * each[1]
