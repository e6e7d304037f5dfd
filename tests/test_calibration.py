"""Calibration against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from atoll.calibration import calibration_error, reliability
from atoll.metrics import NAMED


def test_the_curve_and_its_error_by_hand() -> None:
    rows = np.array([[0.05, 0], [0.05, 1], [0.92, 1], [1.0, 1]])
    assert reliability(rows) == pytest.approx(np.array([[2, 0.05, 0.5], [2, 0.96, 1]]))
    assert calibration_error(rows) == pytest.approx((2 * 0.45 + 2 * 0.04) / 4)


def test_of_two_classes_the_second_and_of_more_the_predicted_one() -> None:
    rng = np.random.default_rng(0)
    for classes in (2, 3):
        logits = torch.from_numpy(rng.normal(size=(40, classes)))
        labels = torch.from_numpy(rng.integers(0, classes, 40))
        given = torch.softmax(logits, -1).numpy()
        at = np.ones(40, int) if classes == 2 else given.argmax(1)
        rows = np.stack([given[np.arange(40), at], (labels.numpy() == at).astype(float)], 1)
        metric = NAMED["ece"]
        taken = metric.taken("ece", logits, labels).numpy()
        halves = [{"ece": taken[:15]}, {"ece": taken[15:]}]
        assert metric.value(halves, "ece") == pytest.approx(calibration_error(rows))


def test_who_is_always_right_and_says_so_is_calibrated() -> None:
    logits, labels = torch.tensor([[30.0, -30.0], [-30.0, 30.0]]), torch.tensor([0, 1])
    taken = NAMED["ece"].taken("ece", logits, labels).numpy()
    assert NAMED["ece"].value([{"ece": taken}], "ece") == pytest.approx(0, abs=1e-9)
