"""Events are written as typed structures, from which the documentation is made and against which the page is held."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, Union

import msgspec
import pytest
from msgspec.structs import fields

from atoll.errors import ConfigError
from atoll.facts import round_event
from atoll.rounds.history import Round
from atoll.runs import digest, report
from atoll.runs.csvs import clients_csv, metrics_csv
from atoll.runs.events import encode, kinds, plain, read, table
from atoll.runs.folder import RunFolder
from atoll.runs.listing import Entry
from atoll.runs.tail import Glances
from tests.runs.test_resume import StopAfter, federation

EARLIER = Path(__file__).parent / "earlier"
"""A run of Ditto that the version before typed events wrote: a callback failed, it was interrupted, and resumed."""

STRICT: Any = Union[tuple(kinds.KINDS.values())]  # noqa: UP007 - of a list
PAGE = Path(report.FILES)


def strict(file: Path) -> list[kinds.Written]:
    """The lines of a file, each of which must be what the structures say, and be written by them in the same way."""
    found = []
    for line in file.read_bytes().splitlines(keepends=True):
        found.append(msgspec.json.decode(line, type=STRICT))
        assert encode(found[-1]) == line
    return found


# --- writing and reading --------------------------------------------------------------------------------------------


def test_lines_are_what_the_structures_say(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"rounds": 4, "eval_every": 2, "joins": {"site1": 3}}
    federation("ditto", newcomers=1, runs=tmp_path, callbacks=[StopAfter(3)], **settings).fit()
    again = federation("ditto", newcomers=1, runs=tmp_path, **settings).resume()
    again.fit()
    assert again.folder is not None
    seen = {type(each) for each in strict(again.folder.events_file)}
    assert seen == {*kinds.KINDS.values()} - {kinds.Problem, kinds.Error, kinds.Crypto}


def test_writing_is_strict() -> None:
    with pytest.raises(TypeError, match="cohorts"):
        kinds.Begin(round=1, cohorts=[2])  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="round"):
        kinds.Begin()  # type: ignore[call-arg]


def test_what_a_run_has_not_is_left_out() -> None:
    assert plain(kinds.Round(round=2, seconds=0.5, time=1.0)) == {
        "event": "round",
        "time": 1.0,
        "round": 2,
        "seconds": 0.5,
    }


def test_a_run_of_the_version_before_is_read_by_every_reader(tmp_path: Path) -> None:
    assert len(strict(EARLIER / "events.jsonl")) == 22
    events = read(EARLIER / "events.jsonl").events
    assert metrics_csv(events).encode() == (EARLIER / "metrics.csv").read_bytes()
    assert clients_csv(events).encode() == (EARLIER / "clients.csv").read_bytes()
    entry = Entry.of(RunFolder(EARLIER))
    assert (entry.status, entry.round, entry.story.planned, entry.story.seed) == ("finished", 4, 4, 5)
    judged = next(each["judged"] for each in events if each["event"] == "partition")
    rounds = [Round.of_event(each, judged) for each in events if each["event"] == "round"]
    assert [plain(round_event(each, judged)) | {"time": 0} for each in rounds] == [
        each | {"time": 0} for each in events if each["event"] == "round"
    ]
    last = rounds[-1].evaluation
    assert last is not None and last.value("own") == entry.story.score
    assert Glances().look("earlier", RunFolder(EARLIER))["value"] == pytest.approx(last.own["accuracy"].mean)
    report.write(tmp_path / "report.html", "earlier", [events])
    assert RunFolder(EARLIER).config()["method"] == "Ditto"


def test_unknown_kinds_and_fields_are_ignored() -> None:
    events = read(EARLIER / "events.jsonl").events
    more = [{**each, "colour": "blue"} for each in events] + [{"event": "weather", "time": 1.0, "sun": True}]
    assert metrics_csv(more) == metrics_csv(events) and clients_csv(more) == clients_csv(events)
    assert [each["event"] for each in digest.compact(more)] == [
        each["event"] for each in digest.compact(events)
    ]


# --- the documentation ----------------------------------------------------------------------------------------------


def test_the_documentation_lists_what_is_written() -> None:
    page = (Path(__file__).parents[2] / "docs" / "runs.md").read_text("utf-8")
    assert table.within(page) == page, "python -m atoll.runs.events docs/runs.md"
    with pytest.raises(ConfigError, match="no place"):
        table.within("no marks")
    for kind in (*kinds.KINDS.values(), kinds.Report, kinds.Columns, kinds.Evaluation, kinds.Spread):
        assert all(row[2] for row in table.rows(kind)), kind


# --- the page -------------------------------------------------------------------------------------------------------

PASSED_OVER: set[str] = set()
"""Kinds that the page has no use for."""

THINNED = {"round": {"partial", "quantiles"}, "problem": {"count"}}
"""Fields that a digest adds (`atoll.runs.digest.compact`)."""

LATEST = {"event", "clients", "round", "loss", "norm", "cosine"}
"""The kind that a digest adds."""


@cache
def script(name: str) -> str:
    return (PAGE / name).read_text("utf-8")


def known(*found: type[msgspec.Struct]) -> set[str]:
    return {"event"} | {each.name for kind in found for each in fields(kind)}


def test_the_page_handles_every_kind() -> None:
    handled = set(re.findall(r"^\s+on_(\w+)\(event\)", script("run.js"), re.M))
    assert handled - {"latest"} == set(kinds.KINDS) - PASSED_OVER


def test_the_page_reads_fields_that_there_are() -> None:
    parts = re.split(r"^    on_(\w+)\(event\) \{", script("run.js"), flags=re.M)[1:]
    looked = 0
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        body = body.partition("\n    // ---")[0]
        read = set(re.findall(r"\bevent\.(\w+)", body))
        there = LATEST if name == "latest" else known(kinds.KINDS[name]) | THINNED.get(name, set())
        assert read <= there, name
        looked += len(read)
    assert looked > 30
    drawn = set(re.findall(r"\bevent\.(\w+)", script("updates.js").partition("--- affinity ---")[2]))
    assert drawn and drawn <= known(kinds.Affinity)


READ_LATER = {
    r"\bstart": (kinds.Start,),
    r"\b(?:run|this)\.partition": (kinds.Partition,),
    r"\breport": (kinds.Report,),
    r"\b(?:run|this)\.engine": (kinds.Engine,),
    r"\brun\.checkpoint": (kinds.Checkpoint,),
    r"\b(?:run|this)\.ending": (kinds.Result, kinds.Error),
    r"(?<!\.)\bevaluation": (kinds.Evaluation,),
    r"\.evaluation": (kinds.Evaluation,),
}
"""What the page calls an event, or a part of one, that it keeps."""


@pytest.mark.parametrize("what", READ_LATER)
def test_what_the_page_keeps_has_the_fields_that_it_reads(what: str) -> None:
    read = {name for file in PAGE.glob("*.js") for name in re.findall(rf"{what}\.(\w+)", script(file.name))}
    assert read and read <= known(*READ_LATER[what])
