"""What a terminal shows of the privacy that a run spends; what is no promise is marked wherever it stands."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from atoll.cli.runs_view import card, line, table
from atoll.runs.events import Event, encode
from atoll.runs.folder import RunFolder
from atoll.runs.listing import Entry
from atoll.runs.promise import NOT_PRIVATE, epsilon_text
from atoll.show.summary import result_html, result_text
from atoll.show.table import Lines, LiveTable
from tests.runs.blurred import events, played, rounds

pytest.importorskip("dp_accounting")


def text(shown: RenderableType, width: int = 200) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None).print(shown)
    return stream.getvalue()


def entry(told: list[Event], place: Path) -> Entry:
    place.mkdir(parents=True)
    (place / "events.jsonl").write_bytes(b"".join(map(encode, told)))
    return Entry.of(RunFolder(place))


def shown_live(kind: str) -> str:
    screen = LiveTable(Console(file=io.StringIO(), width=80))
    screen.open(None)
    for each in events(kind):
        screen.event(each)
    screen.close()
    return text(screen._view(), 80)


def test_the_live_table_has_a_line_of_it() -> None:
    last = rounds("private")[-1]["spent"]
    assert (
        f"\nprivacy: epsilon at most {epsilon_text(last['epsilon'])} of 2.5 at delta = 0.001\n"
        in "\n".join(each.rstrip() for each in shown_live("private").splitlines())
    )
    assert f"privacy: {NOT_PRIVATE}" in shown_live("seeded")
    assert "privacy" not in shown_live("plain") and "privacy" not in shown_live("hidden")


@pytest.mark.parametrize(("kind", "end"), [("private", " of 2.5  "), ("seeded", " (not private)  ")])
def test_lines_for_logs(kind: str, end: str) -> None:
    stream = io.StringIO()
    lines = Lines(Console(file=stream, width=300, color_system=None))
    for each in events(kind):
        lines.event(each)
    told = rounds(kind)[-1]
    epsilon = f"epsilon ≤{epsilon_text(told['spent']['epsilon'])}"
    assert f"{epsilon}{end}" in stream.getvalue().splitlines()[-1]
    assert epsilon in line(told)
    assert ("not private" in line(told)) == (kind == "seeded")


@pytest.mark.parametrize("kind", ["private", "seeded"])
def test_the_summary_has_the_sentence_within_80_columns(kind: str, tmp_path: Path) -> None:
    run = played(kind)
    mark = "" if kind == "private" else "not private; "
    for shown in (result_text(run), text(card(entry(events(kind), tmp_path / kind)))):
        first = next(n for n, each in enumerate(shown.splitlines()) if each.startswith("privacy "))
        lines = [each.rstrip() for each in shown.splitlines()[first : first + 4]]
        assert f"{mark}{run.privacy['privacy']}" in " ".join(" ".join(lines).split())
        assert max(map(len, lines)) <= 80
    assert f"{mark}{run.privacy['privacy']}" in " ".join(result_html(run).split())


def test_a_list_and_a_card(tmp_path: Path) -> None:
    kinds = ("private", "seeded", "plain", "hidden")
    private, seeded, plain, hidden = (entry(events(kind), tmp_path / kind) for kind in kinds)
    shown = text(table([private, seeded, plain]))
    assert "epsilon" in shown and f"({epsilon_text(played('seeded').privacy['epsilon'])})" in shown
    assert shown.rstrip().endswith(NOT_PRIVATE)
    assert NOT_PRIVATE not in text(table([private, plain]))
    assert "epsilon" not in text(table([plain, hidden]))
    for each in (plain, hidden):
        assert "\nprivacy " not in text(card(each))
    assert "\nprivacy " in text(card(private))
    assert {k: private.to_dict()[k] for k in played("private").privacy} == played("private").privacy
    assert "epsilon" not in plain.to_dict()
    told = [{**e, "reason": "budget"} if e["event"] == "result" else e for e in events("private")]
    assert "more privacy than is allowed" in text(card(entry(told, tmp_path / "budget")))
