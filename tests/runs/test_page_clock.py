"""The page of a run on a virtual clock, in a browser: what is drawn, over what, and a live run as its report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.runs import report
from atoll.runs.compare import Comparison
from atoll.runs.events import encode
from atoll.runs.serve import Dash

from .browser import BROWSER, DRIVER, Page, browser
from .clocked import KINDS, events, played, rounds

pytestmark = pytest.mark.skipif(
    not BROWSER or not DRIVER, reason="there is no browser here: apt-get install chromium chromium-driver"
)

PANELS = ["devices", "utilisation", "staleness"]
OPTIONS = "return [...document.querySelectorAll('#learning .over option')].map((o) => o.textContent)"
OVER = """
    const over = document.querySelector("#learning .over");
    over.value = arguments[0];
    over.dispatchEvent(new Event("change"));
    return document.querySelector("#learning .at").textContent;
"""


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with browser() as found:
        yield found


def opened(page: Page, kind: str, place: Path, *, width: int = 1440, dark: bool = False) -> None:
    file = place / f"{kind}.html"
    report.write(file, kind, [events(kind)])
    page.open(file.as_uri(), width=width, dark=dark)
    page.ready()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1440, 390])
def test_devices_time_and_staleness_are_drawn(page: Page, tmp_path: Path, dark: bool, width: int) -> None:
    opened(page, "keep", tmp_path, width=width, dark=dark)
    assert page.empty(PANELS) == []
    assert page.js("return document.documentElement.scrollWidth") == width
    clocks = [each["clock"] for each in rounds("keep")]
    late, failed = (sum(len(clock[name]) for clock in clocks) for name in ("late", "failed"))
    figures = page.text("#utilisation .figures")
    spent, wasted = (sum(clock[name] for clock in clocks) for name in ("spent", "wasted"))
    assert f"Used{100 * (1 - wasted / spent):.1f} %" in figures
    assert figures.endswith(f"Late{late}Broken off{failed}")
    used = sum(clock["used"] for clock in clocks)
    stale = sum(clock["staleness"] * clock["used"] for clock in clocks) / used
    assert f"{used} replies" in page.text("#staleness .note")
    assert f"{stale:.2f} steps old on average" in page.text("#staleness .note")
    jain = played("keep").to_dict()["participation"]
    assert f"Jain’s index{jain:.2f}" in page.text("#participation .figures")
    for panel in PANELS:
        page.js("document.querySelector(`#${arguments[0]} details.data summary`).click()", panel)
        path = f"#{panel} details.data tbody tr"
        page.until(lambda path=path: page.js("return document.querySelectorAll(arguments[0]).length", path))
    assert page.errors() == []


def test_an_order_is_told_where_the_pointer_is(page: Page, tmp_path: Path) -> None:
    opened(page, "deadline", tmp_path)
    page.js(
        "const s = document.querySelector('#devices select'); s.value = '1'; s.dispatchEvent(new Event('change'))"
    )
    last = rounds("deadline")[-1]
    columns, cohort = last["clients"], last["cohort"]
    slowest = max(range(len(cohort)), key=lambda i: columns["done"][i] - columns["began"][i])
    told = page.js("""
        const host = document.querySelector("#devices .mid");
        const box = host.getBoundingClientRect();
        const found = new Set();
        for (let y = 22; y < box.height - 30; y += 4) {
          host.dispatchEvent(new PointerEvent("pointermove", { clientX: box.left + 140, clientY: box.top + y }));
          found.add(document.querySelector("#tip").textContent);
        }
        return [...found];
    """)
    assert any(text.startswith(f"client {cohort[slowest]}round {last['round']}: asked at") for text in told)
    late = last["clock"]["late"]
    assert late and any("late, not used" in text for text in told)
    assert f"Round {last['round']} took" in page.text("#devices .note")
    assert f"{len(late)} late" in page.text("#devices .note")


def test_curves_run_over_what_one_chooses(page: Page, tmp_path: Path) -> None:
    opened(page, "buffered", tmp_path)
    assert page.js(OPTIONS) == ["Rounds", "Virtual time", "Energy", "Traffic", "Machine time"]
    run = played("buffered")
    assert page.js(OVER, "rounds") == "round 15"
    assert page.js(OVER, "virtual_seconds") == f"virtual time {run.virtual_seconds:.3g} s"
    energy = sum(each["clock"]["energy"] for each in rounds("buffered"))
    assert page.js(OVER, "energy") == f"energy {energy:.3g} J"
    assert page.js(OVER, "seconds").startswith("machine time ")
    total = sum(each["bytes_up"] + each["bytes_down"] for each in rounds("buffered"))
    assert page.js(OVER, "bytes") == f"after {total / 1e3:.3g} kB"
    assert f"Virtual time{run.virtual_seconds:.3g} s" in page.text("#run-kpis").replace("\u00a0", " ")
    assert "machine time" in page.text("#run-time")
    assert page.js("return document.querySelector('#devices select').value") == "12"  # orders outlast rounds
    assert page.errors() == []


def test_who_came_and_left_is_shown(page: Page, tmp_path: Path) -> None:
    opened(page, "moving", tmp_path)
    came, left = (
        [k for each in rounds("moving") for k in each["clock"].get(what, ())] for what in ("came", "left")
    )
    assert len(came) == 4 and len(left) == 6
    away = len({*left} - {*came})
    assert f"Came and left4, 6{away} clients away" in page.text("#utilisation .figures")
    page.js("document.querySelector('#utilisation details.data summary').click()")
    cells = "(row) => [...row.cells].map((cell) => cell.textContent)"
    rows = f"return [...document.querySelectorAll('#utilisation tbody tr')].map({cells})"
    page.until(lambda: page.js(rows))
    assert [sum(int(row[at]) for row in page.js(rows)) for at in (7, 8)] == [4, 6]
    assert page.errors() == []


def test_a_run_without_a_clock_has_none_of_it(page: Page, tmp_path: Path) -> None:
    opened(page, "plain", tmp_path)
    for panel in PANELS:
        assert page.js("return document.getElementById(arguments[0]).hidden", panel)
    assert page.js(OPTIONS) == ["Rounds", "Traffic", "Time"]
    assert "virtual" not in page.text("#run-kpis").lower() and "machine" not in page.text("#run-time")
    assert page.errors() == []


def test_a_live_run_shows_what_its_report_does(page: Page, tmp_path: Path) -> None:
    """Events come one by one, as they are in the log, and not thinned."""
    opened(page, "buffered", tmp_path)
    whole = [page.text(f"#{panel} .{part}") for panel, part in WORDS]
    told = events("buffered")
    half = next(i for i, each in enumerate(told) if each.get("round") == 5 and each["event"] == "round")
    folder = tmp_path / "live"
    folder.mkdir()
    (folder / "events.jsonl").write_bytes(b"".join(map(encode, told[: half + 1])))
    with Dash(folder) as dash:
        page.open(dash.url)
        page.until(lambda: page.text("#run-round") == "round 5 of 15")
        page.ready()
        with open(folder / "events.jsonl", "ab") as file:
            file.writelines(map(encode, told[half + 1 :]))
        page.until(lambda: page.text("#run-status") == "finished")
        page.until(lambda: [page.text(f"#{panel} .{part}") for panel, part in WORDS] == whole)
        assert page.errors() == []


WORDS = [("devices", "note"), ("utilisation", "figures"), ("staleness", "note")]


@pytest.mark.parametrize("width", [1440, 390])
def test_a_comparison_tells_runs_with_a_clock_from_those_without(
    page: Page, tmp_path: Path, width: int
) -> None:
    runs = [events(kind) for kind in KINDS]
    compared = Comparison.of(runs, "own:0.3")
    file = tmp_path / "comparison.html"
    report.write(file, "paces", runs, compared.to_dict())
    page.open(file.as_uri(), width=width)
    page.ready()
    assert page.js("return document.documentElement.scrollWidth") == width
    buttons = page.js(
        "return [...document.querySelectorAll('#compare-curves .axis button')].map((b) => b.textContent)"
    )
    assert buttons == ["Rounds", "Virtual time", "Energy", "Traffic", "Machine time"]
    head = page.text("#compare-table thead")
    for title in ("Virtual time to 30.0 %", "Energy to 30.0 %", "Machine time to 30.0 %", "Machine time"):
        assert title in head
    legend = (
        "return document.querySelectorAll('#compare-curves .legend button').length - 1"  # without "See all"
    )
    assert page.js(legend) == 4
    page.js("document.querySelectorAll('#compare-curves .axis button')[1].click()")
    assert page.js(legend) == 3
    bare = compared.groups[-1].label
    assert page.text("#compare-curves .note").endswith(f"Not drawn, without a virtual clock: {bare}.")
    longest = max(each.virtual_seconds or 0 for each in map(played, KINDS))
    assert page.text("#compare-curves .at") == page.js(
        "return `virtual time ${Base.duration(arguments[0])}`", longest
    )
    assert page.errors() == []
