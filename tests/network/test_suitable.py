"""Settings between machines: each does what it does in a simulation, or is refused before nodes are waited for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from atoll.errors import ConfigError
from atoll.network.worker import Begin, _Work
from tests.network.onethread import OneThread, clients

SIX = ("a", "b", "c", "d", "e", "f")

SAME: dict[str, dict[str, Any]] = {
    "newcomers": {"newcomers": 1, "adapt": 2},
    "joins and leaves": {"joins": "1@2", "leaves": "1@3", "rounds": 3},
    "augment": {"augment": "noise:0.1"},
    "metrics of whole sets": {"metrics": "auc, macro_f1, confusion"},
    "several architectures": {"model": "mlp:8 + mlp:4,8", "method": "fedproto", "newcomers": 1},
    "sub-models": {"model": "mlp-bn:8", "method": "heterofl"},
    "weights": {"weights": "equal"},
    "poisson": {"sampling": "poisson", "cohort": 2, "rounds": 3},
    "choose by loss": {"choose": "oort", "cohort": 2, "rounds": 3},
    "stragglers": {"stragglers": 0.5, "epochs": 3},
    "patience": {"patience": 1, "validation": 0.3, "rounds": 6},
    "moving clip": {"channel": "clip:0.5,quantile=0.5", "rounds": 3},
    "local noise": {"channel": "clip:0.5 | local:1.0"},
}


QUICK = ("newcomers", "joins and leaves", "several architectures", "augment")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in SAME]
)
def test_what_works_is_the_simulation(name: str, tmp_path: Path) -> None:
    """To the bit; nobody's answer is refused, and as many clients are judged, with the same figures."""
    made = OneThread(tmp_path, SAME[name], clients(SIX), {"repeatable_noise": True}).play()
    assert made.same()
    due, found = made.twin().history, made.federation.history
    assert len(found) == len(due)
    for one, other in zip(found, due, strict=True):
        assert not one.refused and not other.refused
        assert one.evaluation is not None and other.evaluation is not None
        for kind in ("clients", "personal", "newcomers", "validation"):
            figures, others = getattr(one.evaluation, kind), getattr(other.evaluation, kind)
            assert figures.keys() == others.keys()
            for measure, spread in figures.items():
                assert spread.to_dict() == pytest.approx(others[measure].to_dict(), abs=1e-6), (kind, measure)


def test_a_target_ends_the_run(tmp_path: Path) -> None:
    """Reached as nodes judge, on their own test data."""
    made = OneThread(tmp_path, {"target": "accuracy:0.4", "rounds": 9}, clients(SIX)).play()
    values = [round.evaluation.value("accuracy") for round in made.federation.history if round.evaluation]
    assert 1 < len(values) < 9 and all(value is not None for value in values)
    assert [value >= 0.4 for value in values if value is not None] == [False] * (len(values) - 1) + [True]


@pytest.mark.slow
def test_noise_for_a_budget_is_known_before_nodes_are_told(tmp_path: Path) -> None:
    """The plan has the multiplier, which nodes check against what they require; and the budget holds."""
    settings = {"channel": "clip:0.5 | noise", "epsilon": 8.0, "delta": 0.1, "cohort": 2, "rounds": 2}
    made = OneThread(tmp_path, {**settings, "eval_every": 0}, clients(SIX)).play()
    plan = made.coordinator.office.plan
    assert plan.channel is not None and "noise:" in plan.channel
    assert made.federation.settings.channel == plan.channel
    spent = made.federation.history[-1].spent
    assert len(made.federation.history) == 2 and spent is not None and 0 < spent.epsilon <= 8.0


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "attackers": ({"attackers": 2, "attack": "signflip"}, "attackers = 2 is for simulations"),
    "no server": ({"method": "pushsum"}, "has no server, and a coordinator is one"),
    "sums of groups": (
        {"aggregate": "trimmed:1", "channel": "clip:1 | secagg:16"},
        "looks at updates one by one",
    ),
    "private steps": ({"dp_sgd": "1.0,1.1"}, "nodes do not take private steps yet"),
    "encryption": ({"channel": "clip:0.5 | he"}, "secure aggregation alone"),
    "weights by name": ({"weights": "a:2"}, "weights of single nodes are not known here"),
    "architectures": ({"model": "mlp:8 + mlp:4"}, "gives all clients one architecture"),
    "sums over memories": ({"method": "scaffold", "leaves": "1@2"}, "a node keeps that to itself"),
    "newcomers": ({"newcomers": 6}, "newcomers"),
    "devices": ({"devices": "equal"}, "for simulations"),
    "late": ({"late": "keep", "deadline": 5.0}, "for simulations"),
    "deadline": ({"deadline": "share:0.8"}, "nobody can know how long nodes will take"),
    "adaptive": ({"adaptive": "adacomm"}, "for simulations"),
    "codecs without rounds": (
        {"adaptive": "bandwidth", "channel": "int8 / drive", "pace": "buffered:2"},
        "chooses codecs for a round",
    ),
    "precision": ({"precision": "bfloat16"}, "how a node trains is its own affair"),
    "batches in parts": ({"accumulate": 2}, "how a node trains is its own affair"),
    "engines of a silo": ({"silo": "ddp:2"}, "how a node trains is its own affair"),
    "a model of a file": ({"model": "mlp:8 + hf:nets"}, "is a path on this machine"),
    "public samples of clients": ({"public": 5}, "nodes have theirs"),
    "partition": ({"partition": "iid"}, "nodes have theirs"),
    "pace": ({"method": "fedma", "pace": "buffered:2"}, "cannot go at pace"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_to_be_had_is_refused_before_anybody_comes(name: str, tmp_path: Path) -> None:
    """With a sentence that says why, and what to do; nothing has been made yet."""
    settings, why = REFUSED[name]
    made = OneThread(tmp_path, settings, clients(SIX))
    with pytest.raises(ConfigError, match=why) as raised:
        made.play()
    assert raised.value.hint
    assert not made.nodes and not (tmp_path / "coordinator").exists()


def test_a_run_by_virtual_time_is_refused(tmp_path: Path) -> None:
    """Nodes come when they come; that is known once the federation is there."""
    made = OneThread(tmp_path, {"joins": "1@1h"}, clients(SIX))
    with pytest.raises(ConfigError, match="virtual time"):
        made.play()


def test_a_node_refuses_private_steps_itself(tmp_path: Path) -> None:
    """It would train without: a coordinator of another release must not get that out of it."""
    made = OneThread(tmp_path, {"eval_every": 0, "rounds": 1}).play()
    plan = msgspec.structs.replace(made.coordinator.office.plan, dp_sgd="1.0,1.1")
    with pytest.raises(ConfigError, match="private steps"):
        _Work(Begin(plan, str(tmp_path / "ann.npz"), 0, "ann", str(tmp_path)))
