"""Figures by name: a live evaluation and one that was read back say the same."""

from __future__ import annotations

import json

import pytest

from atoll.errors import ConfigError
from atoll.measures import OF_MAIN, Figures, Target
from atoll.rounds.evaluation import Evaluation, Spread
from atoll.runs.story import Story

VALUES = {0: 0.2, 1: 0.9, 2: 0.7, 3: 0.4}


def evaluation(measure: str, personal: bool) -> Evaluation:
    spread = Spread.of(list(VALUES.values()), [1, 2, 3, 4])
    own = Spread.of([value / 2 for value in VALUES.values()], [1, 2, 3, 4])
    return Evaluation({measure: 0.5}, {measure: spread}, {measure: own} if personal else {}, {measure: own})


@pytest.mark.parametrize("measure", ["accuracy", "loss"])
@pytest.mark.parametrize("personal", [False, True])
def test_live_and_read_back_say_the_same(measure: str, personal: bool) -> None:
    live = evaluation(measure, personal)
    back = json.loads(json.dumps(live.to_event([])))
    story = Story([{"event": "start", "measure": measure}])
    for name in (*OF_MAIN, "std", measure, "f1"):
        assert live.value(name) == story.value(back, name) == Figures(back, measure).value(name)
    scale = 0.5 if personal else 1.0
    assert live.value("worst") == scale * (0.9 if measure == "loss" else 0.2)
    assert live.value("personal") == (live.value("own") if personal else None)
    own = live.value("own")
    assert live.first == "own" and Evaluation({measure: 0.5}).first == measure
    assert live.score == (own if measure == "accuracy" or own is None else -own)


@pytest.mark.parametrize(
    ("text", "reached"),
    [("accuracy:0.5", True), ("accuracy:0.51", False), ("worst:0.2", True), ("f1:0.1", False), ("0.5", True)],
)
def test_whether_a_target_is_reached(text: str, reached: bool) -> None:
    target = Target.parse(text, "accuracy")
    found = evaluation("accuracy", False)
    assert target.reached(found) == reached
    told = [{"event": "round", "round": 4, "evaluation": found.to_dict()}]
    assert Story(told).arrival(target) == (4 if reached else None)
    assert Target.parse(str(target)) == target


def test_figures_of_a_kind_by_measure() -> None:
    spread, own = Spread.of([0.5, 0.7], [1, 1]), Spread.of([0.2], [1])
    found = Evaluation({"accuracy": 0.9}, {"accuracy": own}, validation={"accuracy": spread, "mae": own})
    assert (found.value("validation"), found.value("validation.mae"), found.value("clients.mae")) == (
        0.6,
        0.2,
        None,
    )
    assert found.score == 0.6 and found.first == "own"
    back = json.loads(json.dumps(found.to_event([])))
    assert Evaluation.of_event(back, []) == found
    measured = {"accuracy": None, "mae": None, "off": None}
    for text, reached in (
        ("validation:0.6", True),
        ("validation.mae:0.2", True),
        ("validation.mae:0.1", False),
    ):
        target = Target.parse(text).check(measured)  # type: ignore[arg-type]
        assert target.on_validation and target.reached(found) == reached and Target.parse(str(target)).measure
    assert not Target.parse("clients.mae:1").on_validation
    with pytest.raises(ConfigError, match="whether more or less of 'off' is better is not known"):
        Target.parse("validation.off:1").check(measured)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="does not measure 'own'"):
        Target.parse("validation.own:1").check(measured)  # type: ignore[arg-type]


def test_a_loss_is_reached_from_above() -> None:
    found = evaluation("loss", False)
    assert Target("worst", 0.9).reached(found) and not Target("worst", 0.8).reached(found)
    assert Target("loss", 0.5).reached(found) and not Target("loss", 0.4).reached(found)


@pytest.mark.parametrize("text", ["0.97", "accuracy", "accuracy:high", "accuracy:nan", ":0.5"])
def test_what_is_no_target(text: str) -> None:
    with pytest.raises(ConfigError, match=r"target .* is (not MEASURE:VALUE|not a number|empty)"):
        Target.parse(text)
    with pytest.raises(ConfigError, match="does not measure 'speed'"):
        Target("speed", 1.0).check({"accuracy": "higher"})
