"""A run on a virtual clock in tables, comparisons, figures and the thinned log; none of it is the machine's time."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from atoll.runs.compare import Comparison
from atoll.runs.csvs import Csv, clients_csv, metrics_csv
from atoll.runs.digest import compact
from atoll.runs.events import encode
from atoll.runs.figures import write
from atoll.runs.loggers import scalars
from atoll.runs.packed import unpack
from atoll.runs.story import Spent, Story
from atoll.runs.virtual import orders, totals
from atoll.words import duration_text

from .clocked import KINDS, events, played, rounds

CLOCKED = [kind for kind in KINDS if kind != "plain"]
COLUMNS = ["virtual_seconds", "energy", "wasted", "staleness", "late", "failed"]
TIMED = ["began", "download", "compute", "upload", "done", "staleness"]


def parse(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))


# --- what there is to know ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CLOCKED)
def test_orders_add_up_to_the_rounds(kind: str) -> None:
    """Told from the columns alone, client by client, they are what the round says as a whole."""
    assert any(each["clock"]["staleness"] > 0 for each in rounds(kind)) == (kind != "deadline")
    for each in rounds(kind):
        found = [order for order in orders(each, kind == "keep") if not order.kept]
        spent = sum(order.done - order.began for order in found)
        wasted = sum(order.done - order.began for order in found if not order.used)
        assert spent == pytest.approx(each["clock"]["spent"], rel=1e-3, abs=1e-3)
        assert wasted == pytest.approx(each["clock"]["wasted"], rel=1e-3, abs=1e-3)
        used = [order for order in found if order.used]
        assert len(used) == each["clock"]["used"]
        stale = sum(order.staleness for order in used) / max(1, len(used))
        assert stale == pytest.approx(each["clock"]["staleness"])
        assert {order.client for order in found if order.failed} <= set(each["clock"]["failed"])


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_story_tells_what_its_run_knew(kind: str) -> None:
    story, run = Story(events(kind)), played(kind)
    assert story.clocked == run.clocked()
    assert bool(story.clocked) == (kind != "plain")
    assert story.spent().virtual_seconds == run.virtual_seconds
    assert story.spent().seconds == pytest.approx(sum(r.seconds for r in run.rounds), abs=1e-4)
    assert story.spent(0) == Spent()
    halfway = story.spent(7)
    assert halfway.energy == (
        None if kind == "plain" else pytest.approx(sum(r.clock.energy for r in run.rounds[:7] if r.clock))
    )


def test_a_run_without_a_clock_has_no_totals() -> None:
    assert totals([]) == {}
    assert [orders(each) for each in rounds("plain")] == [[]] * 15


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CLOCKED)
def test_metrics_have_columns_of_the_clock(kind: str) -> None:
    rows = parse(metrics_csv(events(kind)))
    assert list(rows[0])[8:14] == COLUMNS
    for row, each in zip(rows, rounds(kind), strict=True):
        clock = each["clock"]
        assert float(row["virtual_seconds"]) == clock["ended"] != float(row["seconds"])
        assert [float(row[name]) for name in ("energy", "wasted", "staleness")] == [
            clock[name] for name in ("energy", "wasted", "staleness")
        ]
        assert [int(row[name]) for name in ("late", "failed")] == [
            len(clock[name]) for name in ("late", "failed")
        ]


@pytest.mark.parametrize("kind", ["deadline", "plain"])
def test_the_live_table_is_the_whole_one(kind: str, tmp_path: Path) -> None:
    reader, file = Csv(), tmp_path / "metrics.csv"
    reader.open(tmp_path)
    for number, each in enumerate(events(kind)):
        reader.event(each)
        if each["event"] == "round":
            assert file.read_bytes() == metrics_csv(events(kind)[: number + 1]).encode()
    reader.close()


@pytest.mark.parametrize("kind", CLOCKED)
def test_clients_have_what_they_worked(kind: str) -> None:
    rows = parse(clients_csv(events(kind)))
    clocks = [each["clock"] for each in rounds(kind)]
    for name, key in (("virtual_seconds", "spent"), ("wasted", "wasted")):
        whole = sum(float(row[name] or 0) for row in rows)
        assert whole == pytest.approx(sum(clock[key] for clock in clocks), rel=1e-3, abs=0.01)
    for name in ("late", "failed"):
        assert sum(int(row[name] or 0) for row in rows) == sum(len(clock[name]) for clock in clocks)
    assert any(float(row["staleness"] or 0) > 0 for row in rows) == (kind != "deadline")


def test_files_without_a_clock_have_no_word_of_it() -> None:
    for text in (metrics_csv(events("plain")), clients_csv(events("plain"))):
        assert not set(parse(text)[0]) & set(COLUMNS)


def test_loggers_call_it_virtual() -> None:
    last = rounds("deadline")[-1]
    found = scalars(last)
    assert found["virtual/seconds"] == last["clock"]["ended"] and found["seconds"] == last["seconds"]
    assert found["virtual/late"] == len(last["clock"]["late"])
    assert not [name for name in scalars(rounds("plain")[-1]) if "virtual" in name]


# --- the thinned log --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CLOCKED)
def test_the_thinned_log_keeps_the_clock(kind: str) -> None:
    thin = [each for each in compact(events(kind)) if each["event"] == "round"]
    for short, full in zip(thin, rounds(kind), strict=True):
        clock = full["clock"]
        for name in ("late", "failed"):
            assert unpack(short["clock"].get(name, {"gaps": []})) == list(clock[name])
        for name in ("began", "ended", "spent", "wasted", "energy", "staleness"):
            assert short["clock"][name] == pytest.approx(clock[name], rel=1e-3, abs=1e-3)
        stale = dict(short["clock"].get("stale", [(0, clock["used"])]))
        assert sum(stale.values()) == clock["used"]
        assert sum(age * n for age, n in stale.items()) == pytest.approx(clock["staleness"] * clock["used"])
    assert ["began" in each["clients"] for each in thin] == [False] * 3 + [True] * 12
    span = clock["ended"] - clock["began"]
    for name in ("began", "done"):
        assert short["clients"][name] == pytest.approx(full["clients"][name], abs=1e-3 * span)


def test_a_long_run_on_a_clock_stays_small() -> None:
    start, told = events("buffered")[:2], rounds("buffered")
    many = [{**told[n % len(told)], "round": n + 1} for n in range(2000)]
    bare = []
    for each in many:
        columns = {name: column for name, column in each["clients"].items() if name not in TIMED}
        bare.append({**each, "clients": columns, "clock": None})
    thin, without = (sum(len(encode(each)) for each in compact([*start, *told])) for told in (many, bare))
    assert thin - without < 2000 * 200 + 12 * 600


# --- comparisons ------------------------------------------------------------------------------------------------------


def test_costs_to_the_target_on_the_clock() -> None:
    compared = Comparison.of([events(kind) for kind in KINDS], "loss:2.2")
    for group in compared.groups:
        story = group.stories[0]
        at = next(n for n, found in story.evaluations if found["overall"]["loss"] <= 2.2)
        clock = story.rounds[at - 1].get("clock")
        found = group.to_dict()["table"]
        if clock is None:
            assert found["virtual_seconds_to_target"] is found["energy_to_target"] is found["wasted"] is None
            assert group.curve().virtual_seconds == group.curve().energy == []
            continue
        assert found["virtual_seconds_to_target"]["mean"] == clock["ended"]
        spent = sum(each["clock"]["energy"] for each in story.rounds[:at])
        assert found["energy_to_target"]["mean"] == pytest.approx(spent)
        assert found["virtual_seconds"]["mean"] == story.rounds[-1]["clock"]["ended"]
        assert group.curve().virtual_seconds == [each["clock"]["ended"] for each in story.rounds]
    text = " ".join(str(compared).split())
    assert "reached by rounds virtual time energy traffic machine time" in text
    assert "rounds virtual time energy traffic machine time wasted, %" in text
    assert f"no virtual clock: {compared.groups[-1].label};" in text
    assert len({group.label for group in compared.groups}) == len(KINDS)
    rows = parse(compared.csv())
    assert rows[-1]["virtual_seconds_to_target"] == "" != rows[0]["virtual_seconds_to_target"]


def test_the_soonest_to_the_target_is_marked() -> None:
    compared = Comparison.of([events(kind) for kind in ("deadline", "buffered")], "loss:2.2")
    times = [g.table["virtual_seconds_to_target"].mean for g in compared.groups]  # type: ignore[union-attr]
    page = compared._repr_html_()
    best, other = duration_text(min(times)), duration_text(max(times))
    assert f"font-weight:bold'>{best}<" in page and f"font-weight:bold'>{other}<" not in page


def test_a_comparison_without_clocks_has_no_word_of_them() -> None:
    compared = Comparison.of([events("plain")], "loss:2.2")
    assert "virtual" not in str(compared) and "machine" not in str(compared)
    assert not [name for name in parse(compared.csv())[0] if "virtual" in name or "energy" in name]


# --- figures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(KINDS))
def test_figures_of_the_clock(kind: str, tmp_path: Path) -> None:
    found = {path.stem for path in write(events(kind), tmp_path)}
    assert ({"virtual-time", "devices"} & found) == (
        set() if kind == "plain" else {"virtual-time", "devices"}
    )
    if kind == "deadline":
        text = (tmp_path / "devices.svg").read_text()
        for words in ("virtual seconds", "download", "compute", "upload", "late", "broken off"):
            assert f"<!-- {words} -->" in text


def test_curves_over_virtual_time_in_a_figure(tmp_path: Path) -> None:
    both = Comparison.of([events("deadline"), events("plain")]).figures(tmp_path)
    text = next(p for p in both if p.name == "comparison-virtual-time.svg").read_text()
    assert "<!-- virtual seconds -->" in text and "<!-- round -->" not in text
    alone = Comparison.of([events("plain")]).figures(tmp_path / "plain")
    assert "comparison-virtual-time" not in {path.stem for path in alone}
