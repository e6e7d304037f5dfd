"""The page of a run that spends privacy, in a browser: what is drawn, what is marked, and what hidden updates leave."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.runs import report
from atoll.runs.compare import Comparison
from atoll.runs.events import Event, encode
from atoll.runs.promise import NOT_PRIVATE, epsilon_text
from atoll.runs.serve import Dash

from .blurred import events, played, rounds
from .browser import BROWSER, DRIVER, Page, browser

pytest.importorskip("dp_accounting")
pytestmark = pytest.mark.skipif(
    not BROWSER or not DRIVER, reason="there is no browser here: apt-get install chromium chromium-driver"
)

MARK = "return document.querySelector('#privacy .mark').hidden"
HIDDEN = "return document.getElementById(arguments[0]).hidden"
OPTIONS = "return [...document.querySelectorAll('#learning .over option')].map((o) => o.textContent)"
TABLE = "document.querySelector(`#${arguments[0]} details.data summary`).click()"


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with browser() as found:
        yield found


def opened(page: Page, told: list[Event], place: Path, *, width: int = 1440, dark: bool = False) -> None:
    file = place / "run.html"
    report.write(file, "run", [told])
    page.open(file.as_uri(), width=width, dark=dark)
    page.ready()


def table(page: Page, panel: str) -> str:
    page.js(TABLE, panel)
    return str(page.until(lambda: page.text(f"#{panel} details.data table")))


DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP6DwABBQECz6AuzQAAAABJRU5ErkJggg=="
FOUND = {
    "rounds": 8,
    "page": {
        "rows": [
            {"attack": "inversion", "figure": "120.0 dB", "verdict": "LEAK: it is <b>read</b>", "leak": True},
            {"attack": "membership", "figure": "AUC 0.5", "verdict": "nothing", "leak": False},
        ],
        "caveat": "It proves nothing.", "samples": [DOT] * 4, "guesses": [DOT] * 4, "roc": [[0, 0], [0.4, 0.5], [1, 1]],
    },
}  # fmt: skip
IMAGES = "return [...document.querySelectorAll('#audit img')].map((each) => each.naturalWidth)"


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1440, 390])
def test_an_audit_has_its_pictures(page: Page, tmp_path: Path, dark: bool, width: int) -> None:
    file = tmp_path / "run.html"
    report.write(file, "run", [events("private")], audits=[FOUND])
    page.open(file.as_uri(), width=width, dark=dark)
    page.ready()
    assert page.js(HIDDEN, "audit") is False
    assert page.js("return document.documentElement.scrollWidth") == width
    page.until(lambda: page.js(IMAGES) == [1] * 8)  # its policy lets them in
    assert page.js("return document.querySelector('#audit .curve').getBBox().width") > 90
    said = page.text("#audit .verdicts")
    assert "LEAK: it is <b>read</b>" in said
    assert page.js("return document.querySelectorAll('#audit .leak').length") == 1
    assert page.text("#audit .note") == "It proves nothing. Asked after 8 rounds."


def test_a_run_that_nobody_audited_says_nothing_of_it(page: Page, tmp_path: Path) -> None:
    opened(page, events("private"), tmp_path)
    assert page.js(HIDDEN, "audit") is True


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1440, 390])
def test_epsilon_and_clipping_are_drawn(page: Page, tmp_path: Path, dark: bool, width: int) -> None:
    opened(page, events("private"), tmp_path, width=width, dark=dark)
    assert page.empty(["privacy"]) == []
    assert page.js("return document.documentElement.scrollWidth") == width
    run = played("private")
    assert page.text("#privacy .note") == run.privacy["privacy"]
    spent = [each["spent"] for each in rounds("private")]
    share = sum(each["clipped"] for each in spent) / len(spent)
    exact = epsilon_text(run.privacy["epsilon"])
    figures = page.text("#privacy .figures")
    for words in (f"Epsilon{exact}of 2.5", "Delta0.001", "Noise multiplier2", f"Clipped{100 * share:.1f} %"):
        assert words in figures
    assert page.js(MARK)
    assert f"Epsilon{exact}of 2.5 at delta 0.001" in page.text("#run-kpis")
    assert f"8{epsilon_text(spent[-1]['epsilon'])}0.0012" in table(page, "privacy")
    assert page.errors() == []


def test_noise_from_a_seed_is_marked(page: Page, tmp_path: Path) -> None:
    opened(page, events("seeded"), tmp_path, width=390)
    assert not page.js(MARK) and page.text("#privacy .mark") == NOT_PRIVATE
    box = page.js(
        "const b = document.querySelector('#privacy .mark').getBoundingClientRect();return [b.left, b.right]"
    )
    assert box[0] >= 0
    assert box[1] <= 390
    assert page.text("#privacy .note").startswith("no promise")
    assert "not private" in page.text("#run-kpis")
    assert "were the noise secret" in page.text("#privacy .figures")


def test_the_budget_is_in_sight(page: Page, tmp_path: Path) -> None:
    """However far it is above what was spent."""
    first, *rest = events("private")
    rich = [{**first, "config": {**first["config"], "epsilon": 40.0}}, *rest]
    opened(page, [{**e, "reason": "budget"} if e["event"] == "result" else e for e in rich], tmp_path)
    drawn = page.js("""
        const texts = [];
        const paint = CanvasRenderingContext2D.prototype.fillText;
        CanvasRenderingContext2D.prototype.fillText = function (...words) {
          texts.push(words[0]);
          paint.apply(this, words);
        };
        document.querySelector("#theme").click(); // all is drawn anew
        return new Promise((done) => setTimeout(() => done(texts), 300));
    """)
    assert "budget 40" in drawn
    assert "its privacy is spent" in page.text("#run-time")


def test_curves_run_over_epsilon(page: Page, tmp_path: Path) -> None:
    opened(page, events("private"), tmp_path)
    assert page.js(OPTIONS) == ["Rounds", "Privacy spent", "Traffic", "Time"]
    at = page.js("""
        const over = document.querySelector("#learning .over");
        over.value = "epsilon";
        over.dispatchEvent(new Event("change"));
        return document.querySelector("#learning .at").textContent;
    """)
    assert at == f"epsilon at most {epsilon_text(rounds('private')[-1]['spent']['epsilon'])}"
    assert page.errors() == []


def test_what_nobody_sees_is_not_shown(page: Page, tmp_path: Path) -> None:
    """On a network nobody knows how many updates were clipped, and a bound may be missing."""
    told = [
        {**e, "spent": {**e["spent"], "clipped": None, "epsilon": None}} if e["event"] == "round" else e
        for e in events("private")
        if e["event"] != "result"
    ]
    opened(page, told, tmp_path)
    assert page.js("return document.querySelector('#privacy .clipped').parentNode.hidden")
    assert "Clipped" not in page.text("#privacy .figures")
    assert "Epsilonat most infinite" in page.text("#privacy .figures")
    assert page.errors() == []


@pytest.mark.parametrize("kind", ["plain", "hidden"])
def test_a_run_without_noise_has_none_of_it(page: Page, tmp_path: Path, kind: str) -> None:
    opened(page, events(kind), tmp_path)
    assert page.js(HIDDEN, "privacy")
    assert page.js(OPTIONS) == ["Rounds", "Traffic", "Time"]
    assert "Epsilon" not in page.text("#run-kpis")
    for panel in ("drift", "affinity"):
        assert page.js(HIDDEN, panel) == (kind == "hidden")
    assert ("Norm" in table(page, "clients")) == (kind == "plain")
    colours = page.js("return [...document.querySelectorAll('#clients .by option')].map((o) => o.value)")
    assert ("norm" in colours) == ("cosine" in colours) == (kind == "plain")
    assert page.errors() == []


def test_a_live_run_shows_what_its_report_does(page: Page, tmp_path: Path) -> None:
    opened(page, events("seeded"), tmp_path)
    whole = [page.text(f"#privacy .{part}") for part in ("note", "figures")]
    told = events("seeded")
    half = next(i for i, each in enumerate(told) if each.get("round") == 3 and each["event"] == "round")
    folder = tmp_path / "live"
    folder.mkdir()
    (folder / "events.jsonl").write_bytes(b"".join(map(encode, told[: half + 1])))
    with Dash(folder) as dash:
        page.open(dash.url)
        page.until(lambda: page.text("#run-round") == "round 3 of 8")
        page.ready()
        most = epsilon_text(rounds("seeded")[2]["spent"]["epsilon"])
        said = f"no promise: noise followed from a seed; were it secret, epsilon is at most {most} at delta = 0.001"
        assert page.text("#privacy .note") == f"{said} for every user after 3 rounds"
        with open(folder / "events.jsonl", "ab") as file:
            file.writelines(map(encode, told[half + 1 :]))
        page.until(lambda: [page.text(f"#privacy .{part}") for part in ("note", "figures")] == whole)
        assert page.errors() == []


@pytest.mark.parametrize("made", [True, False])
@pytest.mark.parametrize("width", [1440, 390])
def test_a_comparison_over_epsilon(page: Page, tmp_path: Path, width: int, made: bool) -> None:
    runs = [events(kind) for kind in ("private", "seeded", "plain")]
    compared = Comparison.of(runs, "loss:2.295")
    file = tmp_path / "comparison.html"
    report.write(file, "noise", runs, compared.to_dict() if made else None)
    page.open(file.as_uri(), width=width)
    page.ready()
    assert page.js("return document.documentElement.scrollWidth") == width
    buttons = page.js(
        "return [...document.querySelectorAll('#compare-curves .axis button')].map((b) => b.textContent)"
    )
    assert buttons == ["Rounds", "Privacy spent", "Traffic", "Time"]
    page.js("document.querySelectorAll('#compare-curves .axis button')[1].click()")
    assert "Not drawn, without noise: " in page.text("#compare-curves .note")
    told = page.text("#compare-table .promises")
    assert told.startswith(f"Epsilon at delta = 0.001. In brackets, {NOT_PRIVATE}")
    rows = page.text("#compare-table tbody")
    assert epsilon_text(played("private").privacy["epsilon"]) in rows
    assert f"({epsilon_text(played('seeded').privacy['epsilon'])})" in rows
    assert page.errors() == []
