"""Metrics: means that may lack a value, figures of a whole set, and which of two values is the better one."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import atoll
import atoll.data
from atoll.errors import ConfigError, DivergedError
from atoll.federation import Federation
from atoll.measures import Target
from atoll.metrics import NAMED, Confusion, Metric, chosen
from atoll.rounds.evaluation import Evaluation

OF_TWO = "auc, f1, macro_f1, precision, recall, sensitivity, specificity, balanced_accuracy"


def hospitals(classes: int = 2) -> dict[str, Any]:
    """Three clients with few of some classes; the last one has class 0 alone."""
    rng, made = np.random.default_rng(0), {}
    for name, n, most in (("a", 60, classes), ("b", 45, classes), ("c", 25, 1)):
        y = rng.integers(0, most, n) * (rng.random(n) < 0.6)
        x = rng.normal(size=(n, 4)).astype(np.float32)
        x[:, 0] += y
        made[name] = {"train": (x[: n // 2], y[: n // 2]), "test": (x[n // 2 :], y[n // 2 :])}
    return made


def by_hand(logits: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> dict[str, float]:
    """The figures of two classes, as their definitions read."""
    guess, score = logits.argmax(1), logits[:, 1] - logits[:, 0]
    cells = [[int(((y == t) & (guess == g)).sum()) for g in (0, 1)] for t in (0, 1)]
    (tn, fp), (fn, tp) = cells
    pairs = [float(a > b) + 0.5 * float(a == b) for a in score[y == 1] for b in score[y == 0]]
    f1 = {True: 2 * tp / max(1, 2 * tp + fp + fn), False: 2 * tn / max(1, 2 * tn + fp + fn)}
    nan = math.nan
    recall, specificity = (tp / (tp + fn) if tp + fn else nan), (tn / (tn + fp) if tn + fp else nan)
    there = [each for each in (recall, specificity) if each == each]
    return {
        "auc": float(np.mean(pairs)) if pairs else nan,
        "f1": f1[True] if tp + fp + fn else nan,
        "macro_f1": float(np.mean([f1[True], f1[False]])) if tp + fp + fn else 1.0,
        "precision": tp / (tp + fp) if tp + fp else nan,
        "recall": recall,
        "sensitivity": recall,
        "specificity": specificity,
        "balanced_accuracy": float(np.mean(there)),
    }


@pytest.mark.parametrize("engine", ["loop", "batched", "processes"])
@pytest.mark.parametrize("method", ["fedavg", "ditto"])
def test_figures_of_a_set_are_those_of_all_samples_together(method: str, engine: str) -> None:
    held = hospitals()
    data = atoll.data.from_clients(held)
    fed = Federation(
        nn.Linear(4, 2),
        data,
        method,
        metrics=OF_TWO,
        rounds=3,
        lr=0.3,
        batch_size=8,
        engine=engine,
        device="cpu",
    )
    run = fed.fit()
    found = run.evaluation
    assert isinstance(found, Evaluation)
    models = [fed.personal(name).eval() for name in held]
    tests = [held[name]["test"] for name in held]
    with torch.no_grad():
        logits = [m(torch.from_numpy(x)).double().numpy() for m, (x, _) in zip(models, tests, strict=True)]
    own = [by_hand(each, y) for each, (_, y) in zip(logits, tests, strict=True)]
    together = by_hand(np.concatenate(logits), np.concatenate([y for _, y in tests]))
    for name, value in together.items():
        values = [each[name] for each in own if each[name] == each[name]]
        spread = found.own[name]
        assert spread.pooled == pytest.approx(value, abs=1e-6), name
        assert spread.mean == pytest.approx(np.mean(values), abs=1e-6), name
        assert (spread.clients, spread.undefined) == (len(values), 3 - len(values)), name
        assert run.to_dict()["metrics"][name] == found.value(name)
    assert found.own["auc"].undefined == 1  # nobody is ill there
    assert 2 not in found.each["personal" if method == "ditto" else "clients"]["auc"]


def test_of_several_classes_the_mean_over_those_that_occur_counts() -> None:
    rng = np.random.default_rng(1)
    y, scores = rng.integers(0, 3, 50), rng.normal(size=(50, 4)).round(1)
    metric = NAMED["auc"]
    rows = metric.taken("auc", torch.from_numpy(scores), torch.from_numpy(y))
    chances = torch.log_softmax(torch.from_numpy(scores), -1).numpy()
    each = [
        np.mean([(a > b) + 0.5 * (a == b) for a in chances[y == k, k] for b in chances[y != k, k]])
        for k in range(3)
    ]
    assert metric.value([{"auc": rows}], "auc") == pytest.approx(np.mean(each))
    halves = [{"auc": rows[:20]}, {"auc": rows[20:]}]
    assert metric.value(halves, "auc") == pytest.approx(np.mean(each))
    assert math.isnan(metric.value([{"auc": rows[y == 1]}], "auc"))


def test_one_logit_and_many_targets_a_sample() -> None:
    y = torch.tensor([0, 1, 1, 0, 1])
    logit = torch.tensor([[-1.0], [2.0], [-0.5], [-0.7], [0.3]])
    assert NAMED["auc"].value([{"auc": NAMED["auc"].taken("auc", logit, y.float())}], "auc") == 1.0
    dense = torch.tensor([[0, 1, -1], [1, -1, -1]])  # negative labels do not count
    outputs = torch.nn.functional.one_hot(torch.tensor([[0, 1, 1], [0, 1, 0]]), 2).float()
    rows = NAMED["recall"].taken("recall", outputs, dense)
    assert NAMED["recall"].value([{"recall": rows}], "recall") == 0.5


def line() -> atoll.FederatedData:
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    return atoll.data.from_arrays(x, x @ torch.tensor([1.0, 2.0, 3.0])).partition("iid", clients=4, seed=0)


def mistaken(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.reshape(len(targets)) - targets).abs()


@pytest.mark.parametrize("metrics", ["mae, rmse", {"mae": mistaken}, {"mae": Metric(mistaken)}])
def test_an_error_is_reached_from_above(metrics: Any) -> None:
    data, model = line(), lambda: nn.Linear(3, 1)
    given: dict[str, Any] = {"metrics": metrics, "lr": 0.05, "rounds": 12, "engine": "loop"}
    history = Federation(model, data, "fedavg", **given).fit().history("mae")
    wanted = next(number for number, value in history if value <= 0.4)
    run = Federation(model, data, "fedavg", target="mae:0.4", **given).fit()
    assert 1 < wanted < 12 and run.target_round == len(run.rounds) == wanted
    assert atoll.compare([run], target="mae:0.4").groups[0].table["rounds_to_target"].mean == wanted  # type: ignore[union-attr]
    if metrics == "mae, rmse":
        found = run.evaluation
        assert found is not None and found.overall["rmse"] == pytest.approx(math.sqrt(found.overall["loss"]))


def test_a_measure_of_its_own_says_which_of_its_values_are_better() -> None:
    def fit(metric: Any) -> atoll.Run:
        given: dict[str, Any] = {"metrics": {"off": metric}, "target": "off:0.4", "lr": 0.05}
        return Federation(nn.Linear(3, 1), line(), "fedavg", rounds=12, engine="loop", **given).fit()

    with pytest.raises(ConfigError, match="whether more or less of 'off' is better") as caught:
        fit(mistaken)
    assert 'metrics={"off": atoll.Metric(function, better="lower")}' in str(caught.value.hint)
    assert fit(Metric(mistaken, "lower")).target_round != 1


@pytest.mark.parametrize("method", ["fedavg", "ditto"])
def test_what_has_no_value_for_a_sample_is_left_out(method: str) -> None:
    x = torch.randn(120, 3, generator=torch.Generator().manual_seed(0))
    y = (x @ torch.tensor([1.0, 2.0, 3.0])).clamp(min=0)  # half of the targets are 0
    parts = {str(k): (x[k::3], y[k::3] * (k < 2)) for k in range(3)}  # all of the last client's
    data = atoll.data.from_clients(parts, seed=0)
    share = lambda outputs, targets: mistaken(outputs, targets) / targets  # noqa: E731
    fed = Federation(
        nn.Linear(3, 1),
        data,
        method,
        metrics={"share": share},
        rounds=2,
        lr=0.05,
        engine="loop",
        device="cpu",
    )
    found = fed.fit().evaluation
    assert found is not None and math.isfinite(found.own["share"].mean)
    assert (found.own["share"].clients, found.own["share"].undefined) == (2, 1)
    values = []
    for client in range(3):
        held = data.samples(client, "test")
        assert held is not None
        with torch.no_grad():
            each = share(fed.personal(client)(held.inputs), held.targets)
        values += each[each.isfinite()].tolist()
    assert found.own["share"].pooled == pytest.approx(np.mean(values), rel=1e-5)


def test_a_loss_that_is_not_finite_is_divergence_still() -> None:
    with pytest.raises(DivergedError, match="the loss on the test set is"):
        Federation(nn.Linear(3, 1), line(), "fedavg", lr=1e20, epochs=1, batch_size=None, engine="loop").fit()


def test_a_figure_of_ones_own() -> None:
    def kappa(rows: np.ndarray[Any, Any]) -> float:
        agreed = (rows[:, 0] == rows[:, 1]).mean()
        chance = sum((rows[:, 0] == k).mean() * (rows[:, 1] == k).mean() for k in (0, 1))
        return float((agreed - chance) / (1 - chance)) if chance < 1 else math.nan

    rows = lambda outputs, targets: torch.stack([targets, outputs.argmax(1)], 1)  # noqa: E731
    data = atoll.data.from_clients(hospitals())
    metrics = {"kappa": Metric(rows, "higher", kappa)}
    found = Federation(
        nn.Linear(4, 2), data, "fedavg", metrics=metrics, rounds=3, lr=0.3, engine="loop"
    ).fit()
    assert found.evaluation is not None and -1 < found.evaluation.clients["kappa"].pooled < 1


def test_figures_of_classes_and_of_probabilities_by_hand() -> None:
    """Three classes, of which only two occur: means over classes; errors are those of the label's probability."""
    p = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.5, 0.4, 0.1], [0.1, 0.8, 0.1]])
    y = torch.tensor([0, 1, 1, 0])
    of = {
        name: chosen(name, "cross_entropy")[name]
        for name in ("f1", "recall", "precision", "mae", "mse", "rmse")
    }
    found = {
        name: each.value([each.total(name, each.taken(name, p.log(), y).numpy())], name)
        for name, each in of.items()
    }
    assert found["recall"] == found["precision"] == found["f1"] == 0.5
    assert found["mae"] == pytest.approx((0.3 + 0.4 + 0.6 + 0.9) / 4)
    brier = [0.09 + 0.04 + 0.01, 0.09 + 0.16 + 0.01, 0.25 + 0.36 + 0.01, 0.81 + 0.64 + 0.01]
    assert found["mse"] == pytest.approx(sum(brier) / 8)
    assert found["rmse"] == pytest.approx((sum(brier) / 8) ** 0.5)
    two = chosen("mae, mse", "bce")
    logit, label = torch.tensor([[0.3], [-1.0]]), torch.tensor([[1.0], [1.0]])
    off = 1 - torch.sigmoid(logit)
    assert torch.allclose(two["mae"].taken("mae", logit, label), off[:, 0])
    assert torch.allclose(two["mse"].taken("mse", logit, label), off[:, 0].square())
    with pytest.raises(ConfigError, match="auc is nothing that a model with the loss mse has"):
        chosen("auc", "mse")


def test_targets_that_do_not_count_are_in_no_figure() -> None:
    names = "auc, f1, macro_f1, recall, balanced_accuracy, mae, mse, rmse"
    g = torch.Generator().manual_seed(2)
    outputs, targets = torch.randn(5, 7, 3, generator=g), torch.randint(0, 3, (5, 7), generator=g)
    left = torch.rand(5, 7, generator=g) < 0.4
    holes = targets.masked_fill(left, -1)
    holes[0] = -1
    left[0] = True
    for name, each in chosen(names, "cross_entropy").items():
        found = each.value([each.total(name, each.taken(name, outputs, holes).numpy())], name)
        if each.whole is None:  # a mean over samples, of what counts in each
            parts = [
                each.sample(o[~out], t[~out]).mean()
                for o, t, out in zip(outputs[1:], targets[1:], left[1:], strict=True)
            ]
            assert found == pytest.approx(float(torch.stack(parts).mean()), abs=1e-6), name
            continue
        alone = each.total(name, each.taken(name, outputs[~left], targets[~left]).numpy())
        assert found == pytest.approx(each.value([alone], name)), name


def test_several_by_name_beside_the_accuracy_of_ten_classes() -> None:
    run = atoll.run(sets=["metrics=auc, f1, mae", "rounds=2", "clients=5", "runs=none", "engine=loop"])
    told = run.to_dict()
    assert {"auc", "f1", "mae"} <= told["metrics"].keys() and told["accuracy"] > 0


@pytest.mark.parametrize(
    ("metrics", "classes", "words"),
    [
        ("aux", 2, "there is no metric 'aux'.*did you mean 'auc'"),
        (
            {"set": lambda o, t: (o.argmax(1) == t).float().mean()},
            2,
            r"the metric set returned shape \(\).*atoll.Metric",
        ),
    ],
)
def test_what_cannot_be_measured(metrics: Any, classes: int, words: str) -> None:
    data = atoll.data.from_clients(hospitals(classes), classes=classes)
    with pytest.raises(ConfigError) as caught:
        Federation(nn.Linear(4, classes), data, metrics=metrics)
    assert re.search(words, f"{caught.value.message} {caught.value.hint}")


# --- which classes are taken for which ------------------------------------------------------------------------------


def taken_for(outputs: Tensor, targets: Tensor) -> Any:
    """The counts of a batch, as samples that are all real, and as a masked batch whose last row is padding."""
    confusion = Confusion()
    rows = confusion.taken(outputs, targets)
    whole = confusion.value([{"confusion": confusion.total(rows.double().numpy())}])
    mask = torch.ones(len(rows) + 1)
    mask[-1] = 0
    padded = torch.cat([rows, rows[:1]])
    assert confusion.value([{"confusion": confusion.summed(padded, mask).tolist()}]) == whole
    twice = {
        "confusion": torch.func.vmap(confusion.summed)(padded.expand(2, *padded.shape), mask.expand(2, -1))[1]
    }
    assert confusion.value([twice, twice]) == [[2 * n for n in row] for row in whole]
    return whole


def test_counts_of_classes_by_hand() -> None:
    logits = torch.eye(3)[[0, 1, 1, 2, 0]]
    assert taken_for(logits, torch.tensor([0, 1, 2, 2, -1])) == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    one = torch.tensor([[-1.0], [2.0], [-0.5], [0.3]])
    assert taken_for(one, torch.tensor([0.0, 1.0, 1.0, 0.0])) == [[1, 1], [1, 1]]


@pytest.mark.parametrize("first", [False, True])
def test_labels_of_sequences_that_are_ignored_do_not_count(first: bool) -> None:
    """Five labels a sample, more than there are classes; classes last, or where torch has them."""
    labels = torch.tensor([[0, 1, 1, -1, 0], [-1, 1, 0, 1, -1]])
    guesses = torch.tensor([[0, 1, 0, 1, 1], [0, 1, 0, 1, 0]])
    outputs = torch.nn.functional.one_hot(guesses, 2).float()
    assert taken_for(outputs.movedim(-1, 1) if first else outputs, labels) == [[2, 1], [1, 3]]


@pytest.mark.parametrize("engine", ["loop", "batched", "processes"])
@pytest.mark.parametrize("method", ["fedavg", "ditto"])
def test_counts_are_those_of_all_samples_of_the_models_that_clients_would_use(
    method: str, engine: str, tmp_path: Path
) -> None:
    held = hospitals(3)
    given: dict[str, Any] = {
        "metrics": "confusion",
        "rounds": 2,
        "lr": 0.3,
        "batch_size": 8,
        "engine": engine,
    }
    data = atoll.data.from_clients(held)
    fed = Federation(lambda: nn.Linear(4, 3), data, method, device="cpu", runs=tmp_path, **given)
    run = fed.fit()
    tests = [held[name]["test"] for name in held]

    def by_hand(models: list[Any]) -> list[list[int]]:
        counts = np.zeros((3, 3), int)
        for model, (x, y) in zip(models, tests, strict=True):
            with torch.no_grad():
                np.add.at(counts, (y, model.eval()(torch.from_numpy(x)).argmax(1).numpy()), 1)
        return counts.tolist()  # type: ignore[no-any-return]

    found = run.evaluation
    assert found is not None
    assert found.confusion["own"] == by_hand([fed.personal(name) for name in held])
    assert found.confusion["overall"] == by_hand([run.model] * 3)  # the test set is all that clients have
    assert (found.confusion["own"] == found.confusion["overall"]) == (method == "fedavg")
    assert "confusion" not in found.further and "confusion" not in run.to_dict()["metrics"]
    rounds = [e["evaluation"] for e in run.events() if e["event"] == "round"]
    result = next(e for e in run.events() if e["event"] == "result")
    assert rounds[-1]["confusion"] == result["evaluation"]["confusion"] == found.confusion
    fresh = Federation(lambda: nn.Linear(4, 3), data, method, device="cpu", runs=tmp_path, **given)
    again = fresh.resume().fit()
    assert [r.evaluation.confusion for r in again.rounds if r.evaluation] == [e["confusion"] for e in rounds]


def test_a_matrix_is_no_figure() -> None:
    data = atoll.data.from_clients(hospitals(), validation=0.2)
    for target in ("confusion:0.9", "validation.confusion:0.9"):
        with pytest.raises(ConfigError, match="confusion is a matrix, and no single number"):
            Federation(nn.Linear(4, 2), data, metrics="confusion", target=target)
    run = Federation(nn.Linear(4, 2), data, metrics="confusion", rounds=1, engine="loop").fit()
    with pytest.raises(ConfigError, match="it can be no target, and has no curve"):
        run.history("confusion")
    with pytest.raises(ConfigError, match="confusion is a matrix"):
        atoll.compare([run], target="confusion:1")
    with pytest.raises(ConfigError, match="confusion is nothing that a model with the loss mse has"):
        Federation(nn.Linear(3, 1), line(), metrics="confusion")


def test_by_name_in_a_file_and_on_the_command_line() -> None:
    run = atoll.run(sets=["metrics=macro_f1, auc", "data=digits", "rounds=2", "clients=5", "runs=none"])
    told = run.to_dict()
    assert list(told["metrics"]) == ["macro_f1", "auc"] and all(0 < v < 1 for v in told["metrics"].values())
    assert next(e for e in run.events() if e["event"] == "start")["metrics"]["auc"] == "higher"


@given(
    labels=st.lists(st.booleans(), min_size=1, max_size=40),
    share=st.sampled_from([0.0, 0.01, 0.1, 0.25, 0.29, 0.9]),
    data=st.data(),
)
def test_tpr_at_a_rate_of_false_alarms_is_the_best_of_all_thresholds(
    labels: list[bool], share: float, data: st.DataObject
) -> None:
    scores = np.array([data.draw(st.integers(-3, 3)) for _ in labels], np.float64)
    y = np.array(labels)
    metric = chosen(f"tpr@{share}", "cross_entropy")[f"tpr@{share}"]
    assert isinstance(metric, Metric) and metric.better == "higher"
    logits = torch.stack([torch.zeros(len(y)), torch.tensor(scores).float()], 1)
    name = f"tpr@{share}"
    found = metric.value(
        [metric.total(name, metric.taken(name, logits, torch.tensor(y).long()).numpy())], name
    )
    thresholds = [-np.inf, *np.unique(scores)]
    allowed = [t for t in thresholds if (scores[~y] > t).mean() <= share + 1e-12] if (~y).any() else []
    best = max(((scores[y] > t).mean() for t in allowed), default=math.nan) if y.any() else math.nan
    assert found == pytest.approx(best, nan_ok=True)


def test_tpr_at_reads_its_rate() -> None:
    for wrong in ("tpr@", "tpr@1", "tpr@-0.1", "tpr@much"):
        with pytest.raises(ConfigError, match="share"):
            chosen(wrong, "cross_entropy")
    with pytest.raises(ConfigError, match="nothing that a model with the loss mse has"):
        chosen("tpr@0.01", "mse")
    assert str(Target.parse("tpr@0.01:0.5").check({"tpr@0.01": "higher"})) == "tpr@0.01:0.5"
