"""What runs spend of their privacy in tables, comparisons, figures and the thinned log; and what is no promise."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from atoll.runs.compare import Comparison
from atoll.runs.csvs import Csv, clients_csv, metrics_csv
from atoll.runs.digest import compact
from atoll.runs.events import Event
from atoll.runs.figures import write
from atoll.runs.loggers import scalars
from atoll.runs.promise import NOT_PRIVATE, epsilon_text, promised, so_far, stated
from atoll.runs.story import Story

from .blurred import KINDS, events, played, rounds

pytest.importorskip("dp_accounting")

BLURRED = ["private", "seeded"]


def parse(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))


# --- what there is to know ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_story_tells_what_its_run_promised(kind: str) -> None:
    story, run = Story(events(kind)), played(kind)
    assert story.promised == run.privacy
    assert bool(story.promised) == (kind in BLURRED)
    assert story.budget == KINDS[kind].get("epsilon")
    assert story.spent().epsilon == run.privacy.get("epsilon")
    spent = run.rounds[3].spent
    assert story.spent(4).epsilon == (None if spent is None else spent.epsilon)


@pytest.mark.parametrize("kind", BLURRED)
def test_a_run_that_is_not_over_tells_its_last_round(kind: str) -> None:
    told = [each for each in events(kind) if each["event"] != "result"]
    spent = rounds(kind)[-1]["spent"]
    found = Story(told).promised
    assert (found["epsilon"], found["delta"]) == (spent["epsilon"], 1e-3)
    assert (
        f"at most {epsilon_text(spent['epsilon'])} at delta = 0.001 for every user after 8 rounds"
        in found["privacy"]
    )
    assert found["private"] is (kind == "private")
    assert stated(found).startswith("not private; no promise") == (kind == "seeded")


def test_one_round_with_a_seed_breaks_the_promise() -> None:
    spendings = [each["spent"] for each in rounds("private")]
    broken = [spendings[0], {**spendings[1], "private": False}, *spendings[2:]]
    assert promised(spendings)["private"] is True
    assert promised(broken)["private"] is False
    assert "no promise" in promised(broken)["privacy"]


def test_a_round_in_words() -> None:
    spent = {"epsilon": 1.7094, "delta": 1e-3, "private": True}
    assert so_far(spent, 6.0) == "epsilon at most 1.71 of 6 at delta = 0.001"
    assert so_far(spent, None) == "epsilon at most 1.71 at delta = 0.001"
    assert so_far({**spent, "private": False}, None).startswith(NOT_PRIVATE)
    assert so_far({**spent, "epsilon": None}, None) == "epsilon at most infinite at delta = 0.001"


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BLURRED)
def test_metrics_have_columns_of_privacy(kind: str) -> None:
    rows = parse(metrics_csv(events(kind)))
    assert list(rows[0])[8:10] == ["epsilon", "clipped"]
    for row, each in zip(rows, rounds(kind), strict=True):
        assert float(row["epsilon"]) == each["spent"]["epsilon"]
        assert float(row["clipped"]) == each["spent"]["clipped"]


def test_groups_of_columns_stand_beside_each_other() -> None:
    """Rounds with a clock, with noise, with both and with neither, in one table; a resumption takes some away."""
    clock = {"ended": 1.0, "energy": 2.0, "wasted": 3.0, "staleness": 0.5, "late": [4], "failed": []}
    bare: list[Event] = [{"event": "round", "round": n, "seconds": 1.0} for n in range(1, 5)]
    spent = {"epsilon": 1.5, "clipped": None}
    told = [bare[0], {**bare[1], "clock": clock}, {**bare[2], "spent": spent}]
    rows = parse(metrics_csv([*told, {**bare[3], "clock": clock, "spent": spent}]))
    assert list(rows[0])[8:] == [
        *("virtual_seconds", "energy", "wasted", "staleness", "late", "failed"), *("epsilon", "clipped")
    ]  # fmt: skip
    assert [row["virtual_seconds"] for row in rows] == ["", "1.0", "", "1.0"]
    assert [row["late"] for row in rows] == ["", "1", "", "1"]
    assert [row["epsilon"] for row in rows] == ["", "", "1.5", "1.5"]
    back = parse(metrics_csv([*told, {"event": "resume", "round": 2}]))
    assert "epsilon" not in back[0] and "virtual_seconds" in back[0]


@pytest.mark.parametrize("kind", ["private", "plain"])
def test_the_live_table_is_the_whole_one(kind: str, tmp_path: Path) -> None:
    reader, file = Csv(), tmp_path / "metrics.csv"
    reader.open(tmp_path)
    for number, each in enumerate(events(kind)):
        reader.event(each)
        if each["event"] == "round":
            assert file.read_bytes() == metrics_csv(events(kind)[: number + 1]).encode()
    reader.close()


@pytest.mark.parametrize("kind", ["hidden", "plain"])
def test_files_without_noise_have_no_word_of_it(kind: str) -> None:
    assert not {"epsilon", "clipped"} & set(parse(metrics_csv(events(kind)))[0])
    assert not [name for name in scalars(rounds(kind)[-1]) if "privacy" in name]
    assert not [each for each in compact(events(kind)) if "spent" in each]


def test_hidden_updates_leave_cells_empty() -> None:
    rows = parse(clients_csv(events("hidden")))
    assert {row["norm"] for row in rows} == {row["cosine"] for row in rows} == {""}
    assert any(row["train_loss"] for row in rows)


@pytest.mark.parametrize("kind", BLURRED)
def test_loggers_and_the_thinned_log(kind: str) -> None:
    thin = [each for each in compact(events(kind)) if each["event"] == "round"]
    for short, full in zip(thin, rounds(kind), strict=True):
        spent = full["spent"]
        found = scalars(full)
        assert [found[f"privacy/{name}"] for name in ("epsilon", "clipped")] == [
            spent["epsilon"], spent["clipped"]
        ]  # fmt: skip
        for name in ("epsilon", "clipped"):
            assert short["spent"][name] == pytest.approx(spent[name], rel=1e-4)
        assert {k: v for k, v in short["spent"].items() if k not in ("epsilon", "clipped")} == {
            k: v for k, v in spent.items() if k not in ("epsilon", "clipped")
        }


# --- comparisons ------------------------------------------------------------------------------------------------------


def test_epsilon_beside_each_other() -> None:
    compared = Comparison.of([events(kind) for kind in KINDS], "loss:2.295")
    tables = {group.stories[0].name: group for group in compared.groups}
    for kind in BLURRED:
        group = tables[kind]
        told = group.to_dict()
        assert told["table"]["epsilon"]["mean"] == played(kind).privacy["epsilon"]
        at = next(n for n, found in group.stories[0].evaluations if found["overall"]["loss"] <= 2.295)
        assert told["table"]["epsilon_to_target"]["mean"] == rounds(kind)[at - 1]["spent"]["epsilon"]
        assert told["curve"]["epsilon"] == [each["spent"]["epsilon"] for each in rounds(kind)]
        assert (told["private"], told["delta"]) == (kind == "private", 1e-3)
    for kind in ("hidden", "plain"):
        told = tables[kind].to_dict()
        assert told["table"]["epsilon"] is None and told["curve"]["epsilon"] == []
        assert not {"private", "delta"} & set(told)
    words = " ".join(str(compared).split())
    assert "traffic time epsilon" in words and "Epsilon at delta = 0.001" in words.replace(
        "epsilon", "Epsilon"
    )
    assert f"in brackets, {NOT_PRIVATE}, which keeps no promise: {tables['seeded'].label};" in words
    assert f"({epsilon_text(played('seeded').privacy['epsilon'])})" in words
    assert f"no noise: {tables['hidden'].label}, {tables['plain'].label};" in words
    row = parse(compared.csv())[0]
    assert float(row["epsilon"]) == played("private").privacy["epsilon"]


def test_a_seeded_epsilon_wins_nothing() -> None:
    """It is marked as the best nowhere, however small it is."""
    told = [events("private"), events("seeded")]
    cheap = [{**e, "spent": {**e["spent"], "epsilon": 1e-3}} if e["event"] == "round" else e for e in told[1]]
    page = Comparison.of([told[0], told[0], cheap], "loss:2.295")._repr_html_()
    assert "font-weight:bold'>(0.001)" not in page and ">(0.001)<" in page


def test_a_comparison_without_noise_has_no_word_of_it() -> None:
    compared = Comparison.of([events("hidden"), events("plain")])
    assert "epsilon" not in str(compared) and "noise" not in str(compared)
    assert "epsilon" not in parse(compared.csv())[0]


# --- figures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["private", "hidden"])
def test_the_figure_of_privacy(kind: str, tmp_path: Path) -> None:
    found = {path.stem for path in write(events(kind), tmp_path)}
    assert ("privacy" in found) == ("affinity" in found) == (kind == "private")
    if kind == "private":
        text = (tmp_path / "privacy.svg").read_text()
        for words in ("epsilon (delta = 0.001)", "updates clipped", "budget"):
            assert f"<!-- {words} -->" in text
        assert NOT_PRIVATE not in text


def test_the_figure_marks_what_is_no_promise() -> None:
    plots = pytest.importorskip("atoll.runs.plots_privacy")
    figure = plots.spent(Story(events("seeded")))
    assert figure.axes[0].get_title() == NOT_PRIVATE
    unseen = [
        {**e, "spent": {**e["spent"], "clipped": None}} if "spent" in e else e for e in events("private")
    ]
    assert len(plots.spent(Story(unseen)).axes) == 1 and len(figure.axes) == 2


def test_curves_over_epsilon_in_a_figure(tmp_path: Path) -> None:
    compared = Comparison.of([events(kind) for kind in ("private", "seeded", "plain")])
    both = compared.figures(tmp_path)
    text = next(p for p in both if p.name == "comparison-privacy.svg").read_text()
    assert "<!-- epsilon, at most -->" in text and "<!-- round -->" not in text
    labels = [group.label for group in compared.groups]
    assert [f"<!-- not private: {each} -->" in text for each in labels] == [False, True, False]
    alone = Comparison.of([events("plain"), events("hidden")]).figures(tmp_path / "plain")
    assert "comparison-privacy" not in {path.stem for path in alone}
