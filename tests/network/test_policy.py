"""What a node allows: each key of a policy refuses what it is against, and nothing else."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atoll.contract import Gathering, Job, Population
from atoll.engines.client import Client
from atoll.errors import BudgetError, ConfigError
from atoll.methods import METHODS, FedAvg
from atoll.network.allowance import Allowance
from atoll.network.approval import WIDTH, approval
from atoll.network.here import Here
from atoll.network.hours import opens, windows
from atoll.network.models import models_of
from atoll.network.policy import Policy
from atoll.network.wire import Blob, Plan, Task
from atoll.networks import architectures, networks
from atoll.privacy import Gaussian, Ledger, Poisson, epsilon
from atoll.rounds.outcomes import mean_loss
from tests.network.test_here import plan

NOON = datetime(2025, 3, 30, 12, 0)
HIDDEN = plan(channel="clip:0.5 | noise:1.0 | secagg:16,protocol", cohort=8)


def task(**changes: Any) -> Task:
    blob = Blob(sha256="0" * 64, size=1)
    return msgspec.structs.replace(
        Task(id="3-0-0", round=3, program="train", shared=blob, cohort=8), **changes
    )


def has(sent: Plan, **changes: Any) -> Plan:
    return msgspec.structs.replace(sent, **changes)


@pytest.fixture
def here(tmp_path: Path) -> Here:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3)).astype("float32")
    np.savez(tmp_path / "a.npz", x=x, y=(x[:, 0] > 0).astype(np.int64))
    return Here.load(str(tmp_path / "a.npz"), 2, "hospital-a", plan(data={"classes": 2}))


# --- the plan -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "fits", "not_"),
    [
        ({"methods": ("fedavg", "fedprox")}, {"method": "fedprox"}, {"method": "scaffold"}),
        ({"programs": ("train",)}, {}, {"method": "fedora"}),
        ({"most_epochs": 2}, {"hyper": {"epochs": 2}}, {"hyper": {"epochs": 3}}),
        ({"most_epochs": 2}, {"hyper": {"steps": 7, "batch_size": 10}}, {"hyper": {"steps": 11, "batch_size": 10}}),
        ({"most_epochs": 2}, {"method": "fedsgd"}, {"method": "fedrep", "hyper": {"head_epochs": 2}}),
        ({"most_rounds": 10}, {}, {"rounds": 11}),
        ({"smallest_cohort": 8}, {"cohort": 8}, {"cohort": 7}),
        ({"require": ("clip",)}, {"channel": "clip:9"}, {"channel": None}),
        ({"require": ("clip",)}, {"channel": "clip:9"}, {"channel": "clip:inf"}),
        ({"require": ("clip:1.0",)}, {"channel": "clip:1"}, {"channel": "clip:1.1"}),
        ({"require": ("clip:1.0",)}, {"channel": "clip:1"}, {"channel": "clip:0.1,0.5"}),
        ({"require": ("noise:1.0",)}, {"channel": "clip:1 | noise:1"}, {"channel": "clip:1 | noise:0.9"}),
        ({"require": ("noise",)}, {"channel": "clip:1 | noise:1"}, {"channel": "clip:1 | noise:1,7"}),
        ({"require": ("noise",)}, {"channel": "clip:1 | noise:1"}, {"channel": "clip:1 | noise:0"}),
        ({"require": ("local:2",)}, {"channel": "clip:1 | local:2"}, {"channel": "clip:1 | local:1"}),
        ({"require": ("secagg",)}, {"channel": "secagg:16,protocol"}, {"channel": "secagg:16"}),
        ({"require": ("clip",)}, {"channel": "clip:1"}, {"channel": "clip:1", "method": "heterofl"}),
        (
            {"epsilon": 8.0, "delta": 1e-3, "metrics": False},
            {"channel": "clip:1 | local:2"},
            {"channel": "clip:1 | noise:2"},
        ),
        ({"epsilon": 8.0, "delta": 1e-3, "metrics": False}, {"dp_sgd": "1.0,1.1"}, {"dp_sgd": "1.0,0"}),
        (
            {"epsilon": 8.0, "delta": 1e-3, "metrics": False},
            {"channel": "clip:1 | local:2"},
            {"channel": "clip:1,0.5 | local:2"},
        ),
        (
            {"epsilon": 8.0, "delta": 1e-3, "metrics": False},
            {"dp_sgd": "1.0,1.1"},
            {"dp_sgd": "1.0,1.1", "method": "fedora"},
        ),
    ],
)  # fmt: skip
def test_a_plan_is_refused(policy: dict[str, Any], fits: dict[str, Any], not_: dict[str, Any]) -> None:
    found, samples = Policy(**policy), 40
    assert found.check_plan(has(plan(), **fits), [], samples) == []
    (refusal,) = found.check_plan(has(plan(), **not_), [], samples)
    assert refusal.startswith(next(iter(policy)))
    assert Policy().check_plan(has(plan(), **not_), [], samples) == []


def test_all_refusals_come_at_once() -> None:
    policy = Policy(methods=("fedprox",), most_rounds=5, require=("secagg", "clip:1"), columns=("age",))
    found = policy.check_plan(plan(), ["age", "income"], 40)
    assert [each.split(" ")[0].rstrip(":") for each in found] == [
        "methods",
        "most_rounds",
        "require",
        "require",
        "columns",
    ]
    assert "reads income" in found[-1]
    assert policy.check_plan(HIDDEN, ["age"], 40) == found[:2]


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "fedavgg"},
        {"hyper": {"epoch": 2}},
        {"hyper": {"epochs": 0}},
        {"channel": "clip"},
        {"dp_sgd": "1"},
        {"method": "fed\x1b[2Javg"},
    ],
)
def test_a_plan_that_cannot_be_is_a_refusal(changes: dict[str, Any]) -> None:
    (found,) = Policy().check_plan(has(plan(), **changes), [], 40)
    assert found.startswith("the plan cannot be carried out here")
    assert "\x1b" not in found


def test_a_coordinator_does_not_write_to_the_terminal() -> None:
    (refusal,) = Policy(columns=("age",)).check_plan(plan(), ["\x1b[2Jage"], 40)
    told = Policy(programs=("train",)).check_task(task(program="\x1b[2J"), plan(), NOON)
    assert told is not None
    assert "\x1b" not in refusal + told


# --- tasks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "fits", "not_"),
    [
        ({"programs": ("evaluate",)}, {"program": "evaluate"}, {}),
        ({"programs": ("train",)}, {}, {"program": "personal on validation"}),
        ({"programs": ("train", "personal")}, {"program": "personal on validation"}, {"program": "evaluate"}),
        ({"most_epochs": 2}, {"epochs": 2}, {"epochs": 3}),
        ({"most_rounds": 3}, {}, {"round": 4}),
        ({"smallest_cohort": 8}, {}, {"cohort": 7}),
        ({"evaluate": False}, {}, {"program": "evaluate on validation"}),
        ({"metrics": False}, {}, {"program": "personal"}),
        ({"require": ("clip",)}, {"program": "evaluate"}, {"program": "sketch"}),
        ({"require": ("clip",)}, {}, {"program": "train on validation"}),
        ({"epsilon": 1.0, "delta": 1e-3, "metrics": False}, {}, {"program": "sketch"}),
        ({"hours": "12:00-13:00"}, {}, None),
    ],
)
def test_a_task_is_refused(policy: dict[str, Any], fits: dict[str, Any], not_: dict[str, Any] | None) -> None:
    found, sent = Policy(**policy), plan()
    later = NOON + timedelta(hours=1) if not_ is None else NOON
    assert found.check_task(task(**fits), sent, NOON) is None
    refusal = found.check_task(task(**not_ or {}), sent, later)
    assert refusal is not None
    assert refusal.startswith(next(iter(policy)))
    assert Policy().check_task(task(**not_ or {}), sent, later) is None


def test_a_run_ends_where_its_plan_does() -> None:
    assert Policy().check_task(task(round=10), plan(), NOON) is None
    assert Policy().check_task(task(round=11), plan(), NOON) == "rounds = 10: the task is of round 11"


def test_figures_stay_and_the_round_goes_on(here: Here) -> None:
    """Without figures the sum over clients is the same, and the round has no loss instead of a wrong one."""
    method = FedAvg()
    tasks = architectures(networks("mlp:4", here), here, method, 0, None, None)
    state = method.setup(tasks[0], Population(3, tasks))
    work = method.broadcast(state, [2])
    job = Job(method, work, [2], 1, 0, method.expects(state))
    answer, _ = Client(tasks[0], here, torch.device("cpu")).answer(job.order(2), method, None)
    results = []
    for policy in (Policy(), Policy(metrics=False)):
        gathering = Gathering(job)
        gathering.deliver(answer._replace(reply=policy.told(answer.reply)))
        reducer, outcomes = gathering.result()
        results.append((reducer.result(), mean_loss(outcomes), outcomes[0].metrics))
    (shown, loss, _), (hidden, unknown, figures) = results
    assert shown is not None
    assert hidden is not None
    assert torch.equal(shown.mean.update.flat(), hidden.mean.update.flat())
    assert loss > 0
    assert unknown != unknown
    assert not figures


# --- hours ----------------------------------------------------------------------------------------------------------

SECONDS = st.integers(0, 24 * 3600 - 1)
MINUTES = st.integers(0, 24 * 60 - 1)


def clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


@given(begin=MINUTES, length=st.integers(1, 24 * 60 - 1), second=SECONDS)
def test_a_window_opens_when_it_says(begin: int, length: int, second: int) -> None:
    """Seen minute by minute from the beginning, which needs no arithmetic over midnight."""
    inside = {(begin + minute) % (24 * 60) for minute in range(length)}
    found = windows([f"{clock(begin)}-{clock((begin + length) % (24 * 60))}"])
    now = datetime(2025, 3, 30) + timedelta(seconds=second)
    wait = opens(found, now)
    assert (wait == 0) == (second // 60 in inside)
    then = now + timedelta(seconds=wait)
    assert then.hour * 60 + then.minute in inside
    if wait:
        assert (then.hour * 60 + then.minute, then.second) == (begin, 0)
        assert opens(found, then - timedelta(seconds=1)) == 1


@given(second=SECONDS)
def test_several_windows_open_when_the_first_does(second: int) -> None:
    texts, now = ("22:00-06:00", "12:00-13:30"), datetime(2025, 1, 1) + timedelta(seconds=second)
    each = [opens(windows([text]), now) for text in texts]
    assert Policy(hours=texts).opens(now) == min(each)


def test_the_edges_of_a_window() -> None:
    policy = Policy(hours="20:00-06:00")
    for at, wait in {
        "05:59:59": 0,
        "06:00:00": 14 * 3600,
        "19:59:59.500000": 0.5,
        "20:00:00": 0,
        "00:00:00": 0,
    }.items():
        assert policy.opens(datetime.fromisoformat(f"2025-10-26T{at}")) == wait
    assert Policy(hours="00:00-24:00").opens(NOON) == Policy().opens(NOON) == 0


@pytest.mark.parametrize("text", ["20-06", "25:00-06:00", "20:60-21:00", "06:00-06:00", "always", ""])
def test_hours_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="hours = "):
        Policy(hours=text)


# --- the budget -----------------------------------------------------------------------------------------------------

BUDGET = Policy(epsilon=3.0, delta=1e-3, metrics=False)
LOCAL = plan(data={"classes": 2}, channel="clip:1 | local:4")


def test_a_budget_is_counted_before_anything_leaves(tmp_path: Path, here: Here) -> None:
    path, event = tmp_path / "privacy.jsonl", Gaussian(noise=2.0)
    allowance = Allowance(path, BUDGET, LOCAL, here)
    paid = 0
    while allowance.refuses(task(round=paid + 1)) is None:
        allowance.charge(task(id=f"{paid + 1}-0-0", round=paid + 1), private=True)
        paid += 1
        assert len(Ledger.read(path).charges) == paid  # on the disk, while the ledger is open
    assert epsilon([event] * paid, 1e-3).epsilon <= 3.0 < epsilon([event] * (paid + 1), 1e-3).epsilon
    with pytest.raises(BudgetError, match=r"epsilon = 3 .*is spent"):
        allowance.charge(task(), private=True)
    with pytest.raises(BudgetError, match="another process writes"):
        Allowance(path, BUDGET, LOCAL, here)
    allowance.close()
    again = Allowance(
        path, replace(BUDGET, epsilon=6.0), LOCAL, here
    )  # more is allowed, what was spent is known
    assert again.refuses(task()) is None
    assert len(again.ledger.charges) == paid
    again.close()


def test_noise_that_others_know_pays_for_nothing(tmp_path: Path, here: Here) -> None:
    allowance = Allowance(tmp_path / "privacy.jsonl", BUDGET, LOCAL, here)
    with pytest.raises(BudgetError, match="which the coordinator knows"):
        allowance.charge(task(), private=False)
    assert not allowance.ledger.charges
    allowance.close()


def test_steps_that_are_asked_for_are_paid_for(tmp_path: Path, here: Here) -> None:
    """A client's 39 samples in batches of 10: 4 steps a pass; what counts is what the task asks, not the plan."""
    sent = plan(data={"classes": 2}, dp_sgd="1.0,2.0", hyper={"batch_size": 10, "epochs": 2})
    allowance = Allowance(tmp_path / "privacy.jsonl", BUDGET, sent, here)
    n = here.size(2)
    a_pass = -(-n // 10)

    def due(steps: int) -> Gaussian:
        return Gaussian(noise=2.0, sampling=Poisson(10 / n), count=steps)

    assert allowance.event(task()) == due(2 * a_pass)
    assert allowance.event(task(epochs=50)) == due(50 * a_pass)
    assert allowance.event(task(limit=3)) == due(3)
    assert allowance.event(task(epochs=0)) is None
    allowance.charge(task(epochs=1), private=True)
    assert [each.event for each in allowance.ledger.charges] == [due(a_pass)]
    allowance.close()


def test_budgets_that_promise_nothing(tmp_path: Path, here: Here) -> None:
    path = tmp_path / "privacy.jsonl"
    with pytest.raises(ConfigError, match="no noise of this node's own"):
        Allowance(path, BUDGET, plan(), here)
    with pytest.raises(ConfigError, match="says nothing about one of"):
        Allowance(path, replace(BUDGET, delta=0.5), LOCAL, here)
    with pytest.raises(ConfigError, match="dp_sgd hides samples"):
        Allowance(path, BUDGET, plan(dp_sgd="1,1", method="fedora", data={"classes": 2}), here)


# --- the file -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('method = ["fedavg"]', "unknown key 'method'(.|\n)*did you mean 'methods'"),
        ("[limits]\nmost_epochs = 2", "unknown key 'limits'"),
        ('methods = ["fedavgg"]', "unknown method 'fedavgg'(.|\n)*fedavg"),
        ("most_epochs = 0", "most_epochs takes a whole number at least 1"),
        ("most_rounds = 1.5", "most_rounds cannot be 1.5"),
        ('require = "secagg"', "require takes a list"),
        ('require = ["secag"]', "did you mean 'secagg'"),
        ('require = ["clip:0"]', "not a number above 0"),
        ("epsilon = 8", "one promise"),
        ("epsilon = 8\ndelta = 1e-5", "figures leave without any(.|\n)*metrics = false"),
        ("epsilon = -1", "epsilon takes a number above 0"),
        ("evaluate = 1", "evaluate takes true or false"),
        ("most_epochs 3", "is not TOML"),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        Policy.read(path)
    assert "policy.toml" in caught.value.message


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(
        'methods = ["fedavg"]\nmost_epochs = 5\nrequire = ["secagg", "clip:1.0"]\nhours = ["20:00-06:00"]\n'
        'columns = ["age"]\nepsilon = 8\ndelta = 1e-5\nmetrics = false\n'
    )
    policy = Policy.read(path)
    assert policy == Policy(
        methods=("fedavg",), most_epochs=5, require=("secagg", "clip:1.0"), hours=("20:00-06:00",), columns=("age",),
        epsilon=8.0, delta=1e-5, metrics=False,
    )  # fmt: skip
    path.write_text("".join(f"{key} = {value}\n" for key, value in policy.stated().items()))
    assert Policy.read(path) == policy
    path.write_text("")
    assert Policy.read(path) == Policy()
    with pytest.raises(ConfigError, match="cannot read"):
        Policy.read(tmp_path / "absent.toml")


def test_every_key_is_on_the_page(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "policy.md").read_text("utf-8")
    for each in fields(Policy):
        assert f"`{each.name}`" in text
    example = text.partition("```toml\n")[2].partition("```")[0]
    file = tmp_path / "policy.toml"
    file.write_text(example)
    assert len(Policy.read(file).stated()) == 7


# --- what a person reads --------------------------------------------------------------------------------------------


def test_what_is_approved(here: Here) -> None:
    sent = plan(
        data={"classes": 2}, method="scaffold", channel="clip:0.5 | secagg:16,protocol", metrics="auc"
    )
    text = approval(sent, here, Policy(require=("secagg",), most_rounds=7), models_of(sent, here))
    told = " ".join(text.split())
    for each in (
        "hospital-a, client 2",
        "38 (train), 10 (validation), 12 (test)",
        "the model mlp:8 by scaffold, 100 numbers",  # twice the model: the control variates go as well
        "Through clip:0.5: shortened to this length",
        "the coordinator sees the sum over the nodes and nothing else",
        "sums of the training loss, and of how many samples. Nothing hides these",
        "For auc: each test sample's label",
        "At most 7 rounds",
        'require = ["secagg"]',
    ):
        assert each in told
    quiet = " ".join(approval(sent, here, Policy(metrics=False), models_of(sent, here)).split())
    assert "No losses, counts or figures" in quiet
    assert "test samples" not in quiet
    sent = plan(data={"classes": 2})
    assert "the coordinator sees it" in " ".join(
        approval(sent, here, Policy(), models_of(sent, here)).split()
    )


@pytest.mark.parametrize("method", sorted({*METHODS} - {"heterofl"}))
def test_every_method_can_be_shown(here: Here, method: str) -> None:
    adapter = "lora:2" if METHODS[method].low_rank else None
    sent = plan(data={"classes": 2}, method=method, adapter=adapter)
    text = approval(sent, here, Policy(), models_of(sent, here))
    assert max(map(len, text.splitlines())) <= WIDTH
    assert f"by {method}," in " ".join(text.split())
    if method == "fedora":
        assert "the program sketch" in text


def test_no_file_is_read_that_a_coordinator_names(here: Here) -> None:
    with pytest.raises(ConfigError, match="a path of another machine"):
        models_of(plan(data={"classes": 2}, model="mlp:8 + hf:/etc"), here)
