"""A figure is the same figure wherever a run is shown: what clients would use, beside it the global model's."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console, RenderableType
from torch import nn

import atoll
import atoll.data
from atoll.cli import runs_view
from atoll.federation import Federation
from atoll.methods import METHODS
from atoll.runs.compare import Comparison
from atoll.runs.digest import compact
from atoll.runs.listing import Entry
from atoll.runs.tail import Glances
from atoll.show.summary import result_text
from atoll.show.table import Lines
from atoll.words import value_text
from tests.halves import fitting


def hospitals() -> atoll.FederatedData:
    """Four clients whose labels differ, so that a mean over clients is no mean over samples."""
    rng, made = np.random.default_rng(3), {}
    for k, n in enumerate((26, 35, 44, 31)):
        x = rng.normal(size=(n, 6)).astype(np.float32)
        y = (x[:, 0] + (x[:, 1] > k - 1) + rng.normal(size=n) > 0.8).astype(np.int64) + (x[:, 2] > 1)
        made[f"h{k}"] = {"train": (x[:18], y[:18]), "test": (x[18:], y[18:])}
    public = torch.randn(12, 6, generator=torch.Generator().manual_seed(2))
    return atoll.data.from_clients(made, classes=3, validation=0.3, seed=0).publish(public)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def printed(view: RenderableType) -> str:
    console = Console(width=200, file=io.StringIO(), color_system=None, highlight=False)
    console.print(view)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


FEW = ("fedavg", "local", "fedora", "ditto", "heterofl", "fedproto", "ifca", "fedavg-ft")
"""Methods that span what there is to show; the long run has all."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FEW else pytest.mark.slow) for name in METHODS]
)
def test_no_figure_of_a_run_differs_between_those_who_show_it(name: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"lr": 0.1}
    if name == "fedkseed":  # of their defaults, 200 and 4096
        settings |= {"steps": 6, "seeds": 64}
    if METHODS[name].low_rank:
        settings["adapter"] = "lora:2"
    if name.startswith("pfedhn"):
        settings["steps"] = 3
    if name == "feddf":
        settings["distill_steps"] = 3
    given = {"rounds": 1, "newcomers": 1, "engine": "loop", "device": "cpu", "runs": str(tmp_path)}
    model, data = fitting(name, network if name == "fedbn" else plain, hospitals())
    run = Federation(model, data, name, **given, **settings).fit()
    folder, last = run.folder, run.evaluation
    assert folder is not None and last is not None
    spread = (last.personal or last.clients)["accuracy"]
    own, worst, test = spread.mean, spread.min, last.overall.get("accuracy")
    newcomers = last.newcomers["accuracy"].mean
    told_of = next(e for e in folder.log().events if e["event"] == "partition")
    assert len(told_of["newcomers"]) == 1 and not {*told_of["newcomers"]} & {*told_of["judged"]}

    told = run.to_dict()  # the result
    assert (told["clients"]["mean"], told["clients"]["min"], told["accuracy"]) == (own, worst, test)
    entry = Entry.of(folder)  # atoll ls --json
    glance = entry.to_dict()
    assert (glance["score"], glance["worst"], glance["test"]) == pytest.approx((own, worst, test))
    assert Glances().look("it", folder)["value"] == pytest.approx(own)  # the list of runs on the page
    comparison = Comparison.of([folder])  # atoll compare, and the page of it
    table = comparison.groups[0].table
    found = [table[key].mean for key in ("own", "worst", "global", "newcomers")]  # type: ignore[union-attr]
    assert found == pytest.approx([own, worst, test, newcomers])
    assert comparison.shown == "own" and comparison.groups[0].curve("own").mean == pytest.approx([own])
    shown = next(e for e in compact(folder.log().events) if e["event"] == "round")[
        "evaluation"
    ]  # the page, a report
    kept = (shown["personal"] or shown["clients"])["accuracy"]
    assert [kept["mean"], kept["min"]] == pytest.approx([own, worst], rel=1e-4)
    assert shown["newcomers"]["accuracy"]["mean"] == pytest.approx(newcomers, rel=1e-4)

    texts = [value_text("accuracy", value) for value in (own, worst, newcomers)]
    lines = Console(width=200, file=io.StringIO(), color_system=None)
    screen = Lines(lines)
    for event in folder.log().events:
        screen.event(event)
    live = lines.file.getvalue()  # type: ignore[attr-defined]
    assert (
        f"client mean {texts[0]}" in live and f"worst {texts[1]}" in live and f"newcomers {texts[2]}" in live
    )
    listed = printed(runs_view.table([entry]))
    assert texts[0] in listed and texts[1] in listed and value_text("accuracy", test or 0.0) in listed
    for view in (result_text(run, 200), printed(runs_view.card(entry))):
        rows = {line.strip().split("  ")[0]: line for line in view.splitlines()}
        row = rows["personal models" if last.personal else "global model"]
        assert texts[0] in row and texts[1] in row
        assert texts[2] in rows["newcomers"]
        client = min(
            last.each["personal" if last.personal else "clients"]["accuracy"].items(), key=lambda e: e[1]
        )[0]
        count = {0: 8, 1: 17, 2: 26, 3: 13}[client]
        assert (
            f"h{client}: {texts[1]}, {round(worst * count)} of {count} test samples right"
            in rows["worst client"]
        )
