"""What a terminal shows of a run on a virtual clock, apart from the machine's time."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from atoll.cli.runs_view import card, line, table
from atoll.runs.events import Event, encode
from atoll.runs.folder import RunFolder
from atoll.runs.listing import Entry
from atoll.show.table import Lines, cells_of, columns_of
from atoll.words import duration_text
from tests.runs.clocked import events, played


def text(shown: RenderableType, width: int = 200) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None).print(shown)
    return stream.getvalue()


def entry(told: list[Event], place: Path) -> Entry:
    place.mkdir(parents=True)
    (place / "events.jsonl").write_bytes(b"".join(map(encode, told)))
    return Entry.of(RunFolder(place))


@pytest.mark.parametrize("kind", ["deadline", "keep", "buffered"])
def test_rounds_say_when_they_ended_and_who_was_late(kind: str) -> None:
    rounds = played(kind).rounds
    columns = columns_of(rounds)
    names = [column.heading for column in columns]
    assert names[-2:] == ["virtual", "machine"] and "time" not in names
    late = failed = False
    for each in rounds:
        assert each.clock is not None
        cells = dict(zip(names, cells_of(each, columns), strict=True))
        assert cells["virtual"] == duration_text(each.clock.ended)
        assert cells["machine"] == duration_text(each.seconds)
        assert cells["clients"].split()[0] == str(each.clock.used)
        for what, who in (("late", each.clock.late), ("failed", each.clock.failed)):
            assert (f"{len(who)} {what}" in cells["clients"]) == bool(who)
        late, failed = late or bool(each.clock.late), failed or bool(each.clock.failed)
    assert (late, failed) == ((False, False) if kind == "buffered" else (True, True))


def test_rounds_without_a_clock_are_as_ever() -> None:
    rounds = played("plain").rounds
    names = [column.heading for column in columns_of(rounds)]
    assert names[-1] == "time" and not {"virtual", "machine"} & set(names)
    assert "virtual" not in str(played("plain")) and "machine" not in str(played("plain"))


def test_lines_for_logs() -> None:
    stream = io.StringIO()
    lines = Lines(Console(file=stream, width=300, color_system=None))
    for each in events("deadline"):
        lines.event(each)
    last = played("deadline").rounds[-1]
    assert last.clock is not None
    end = f"virtual {duration_text(last.clock.ended)}  machine {duration_text(last.seconds)}"
    assert stream.getvalue().splitlines()[-1].endswith(end)
    told = [each for each in events("deadline") if each["event"] == "round"][-1]
    assert line(told).endswith(end)


def test_a_card_and_a_list_tell_the_times_apart(tmp_path: Path) -> None:
    told = entry(events("deadline"), tmp_path / "deadline")
    plain = entry(events("plain"), tmp_path / "plain")
    run = played("deadline")
    virtual = duration_text(run.virtual_seconds or 0)
    shown = text(card(told))
    for title in ("virtual time", "devices", "participation", "machine time"):
        assert f"\n{title} " in shown
    assert virtual in shown and "late" in shown and "failed" in shown
    assert "virtual" not in text(card(plain)) and "\ntime " in text(card(plain))
    both = text(table([told, plain]))
    assert "virtual time" in both and "machine time" in both and virtual in both
    assert "virtual" not in text(table([plain]))
    assert told.to_dict()["virtual_seconds"] == run.virtual_seconds
    assert "virtual_seconds" not in plain.to_dict()


def test_the_summary_names_both() -> None:
    summary = str(played("deadline"))
    assert "virtual time" in summary and "machine time" in summary and "late" in summary
