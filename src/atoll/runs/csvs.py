"""A run as tables for spreadsheets: metrics.csv with a line a round, clients.csv with a line a client.

Commas, double quotes and CRLF as in RFC 4180, in UTF-8; a cell is empty where a number is unknown. A spreadsheet would
take a text that begins with = + - @, a tab or a carriage return for a formula, so such a text (a client's name, say)
gets an apostrophe in front.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from atoll.errors import ConfigError
from atoll.runs.events import Event, follow
from atoll.runs.folder import RunFolder, writing
from atoll.runs.readers import Reader
from atoll.runs.virtual import orders

__all__ = ["Csv", "clients_csv", "comparison_csv", "known", "metrics_csv"]

FILE = "metrics.csv"

_BASE = ("round", "seconds", "clients", "refused", "dropped", "train_loss", "bytes_up", "bytes_down")
_CLOCK = ("virtual_seconds", "energy", "wasted", "staleness", "late", "failed")
_SPENT = ("epsilon", "clipped")
_GROUPS = (_CLOCK, _SPENT)  # columns that not every run has
_KINDS = ("overall", "clients", "personal", "validation")
_SPREAD = ("mean", "pooled", "std", "p10", "median", "p90", "min", "max")

_Column = tuple[
    int, str, int
]  # index of the kind, measure, index in the spread: their order is that in the file
_Columns = tuple[_Column, ...]
_Row = tuple[list[Any], tuple[list[Any] | None, ...], _Columns, list[Any]]  # the second as `_GROUPS`
_Seen = dict[int, dict[Any, Any]]


def known(value: Any) -> Any:
    """A number, or None where it is missing or not finite."""
    return value if value is not None and math.isfinite(value) else None


# --- metrics.csv ----------------------------------------------------------------------------------------------------


def metrics_csv(events: Iterable[Event]) -> str:
    """A line for every "round" among these (sound) events.

    The columns are round, seconds (the machine's), clients (how many took part), refused, dropped, train_loss,
    bytes_up, bytes_down; on a virtual clock virtual_seconds (since the run began, at the round's end), energy (joules),
    wasted (client-seconds whose replies were not used), staleness (mean), late, failed (how many); where updates are
    blurred epsilon (at most, of all rounds so far), clipped (the share of updates that were shortened);
    <measure> of the global model on the global test set; clients_<measure>_<mean, pooled, std, p10, median, p90, min,
    max> of the global model over clients; personal_<measure>_<...> of the clients' own models;
    validation_<measure>_<...> on validation data. Only measures that occur in some round have columns.
    """
    metrics = _Metrics()
    for each in events:
        metrics.take(each)
    return metrics.text()


class _Metrics:
    """The lines of metrics.csv."""

    def __init__(self) -> None:
        self.rows: dict[int, _Row] = {}
        self.columns: list[_Column] = []
        self.groups: set[int] = set()  # those of `_GROUPS` that some row has
        self._shapes: dict[
            _Columns, _Columns
        ] = {}  # rows share their columns: there may be a million of them

    def take(self, event: Event) -> bool | None:
        """Learn from an event: None if nothing changed, True if a line was added, False if more than that."""
        if event["event"] == "resume":
            kept = {number: row for number, row in self.rows.items() if number <= event["round"]}
            if len(kept) == len(self.rows):
                return None
            self.rows = kept
            self.columns = sorted({column for _, _, columns, _ in kept.values() for column in columns})
            self.groups = {group for _, told, _, _ in kept.values() for group in _told(told)}
            return False
        if event["event"] != "round":
            return None
        number, (base, told, columns, values) = event["round"], _row(event)
        row = base, told, self._shapes.setdefault(columns, columns), values
        before = self.rows.get(number)
        if before == row:
            return None
        self.rows[number] = row
        if _told(told) <= self.groups and set(columns) <= set(self.columns):
            return before is None
        self.groups |= _told(told)
        self.columns = sorted({*self.columns, *columns})
        return False

    def header(self) -> list[str]:
        found = (name for group in sorted(self.groups) for name in _GROUPS[group])
        return [*_BASE, *found, *map(_title, self.columns)]

    def line(self, number: int) -> list[Any]:
        base, told, columns, values = self.rows[number]
        cells = dict(zip(columns, values, strict=True))
        found = (v for group in sorted(self.groups) for v in told[group] or [None] * len(_GROUPS[group]))
        return [*base, *found, *(cells.get(column) for column in self.columns)]

    def text(self) -> str:
        return _text(self.header(), map(self.line, self.rows))


def _row(event: Event) -> _Row:
    base = [event["round"], known(event.get("seconds"))]
    base += [
        None if event.get(name) is None else len(event[name]) for name in ("cohort", "refused", "dropped")
    ]
    base += [known(event.get(name)) for name in ("loss", "bytes_up", "bytes_down")]
    timed = blurred = None
    if clock := event.get("clock"):
        timed = [known(clock.get(name)) for name in ("ended", "energy", "wasted", "staleness")]
        timed += [len(clock.get(name) or ()) for name in ("late", "failed")]
    if spent := event.get("spent"):
        blurred = [known(spent.get(name)) for name in _SPENT]
    cells: dict[_Column, Any] = {}
    for index, kind in enumerate(_KINDS):
        for measure, found in ((event.get("evaluation") or {}).get(kind) or {}).items():
            values = [found] if kind == "overall" else [found.get(name) for name in _SPREAD]
            cells |= {(index, measure, place): known(value) for place, value in enumerate(values)}
    return base, (timed, blurred), tuple(cells), list(cells.values())


def _told(row: Sequence[list[Any] | None]) -> set[int]:
    """Which groups of columns a row has."""
    return {group for group, found in enumerate(row) if found is not None}


def _title(column: _Column) -> str:
    kind, measure, place = column
    return _safe(f"{_KINDS[kind]}_{measure}_{_SPREAD[place]}" if kind else measure)


class Csv(Reader):
    """Keeps metrics.csv in the run folder up to date, line by line; at any moment the file is a whole table.

    The file is written anew from events.jsonl when a run goes on, and when the first evaluation adds columns.
    """

    name = FILE

    def __init__(self) -> None:
        self._metrics = _Metrics()
        self._folder: RunFolder | None = None
        self._file: IO[str] | None = None

    def open(self, folder: Path | None) -> None:
        """Raises ConfigError without a folder."""
        if folder is None:
            raise ConfigError(
                "there is no run folder to keep it in", hint="keep runs in a directory: runs=DIR"
            )
        self._folder = RunFolder(folder)
        if self._folder.events_file.is_file():
            for event, _ in follow(self._folder.events_file):
                if event is not None:
                    self._metrics.take(event)
        self._rewrite(self._folder)

    def event(self, event: Event) -> None:
        added = self._metrics.take(event)
        if added is None or self._folder is None:
            return
        if added and self._file is not None:
            with writing(self._folder.path / FILE, "the file"):
                csv.writer(self._file).writerow(self._metrics.line(event["round"]))
                self._file.flush()
        else:
            self._rewrite(self._folder)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _rewrite(self, folder: RunFolder) -> None:
        self.close()  # some systems replace no open file
        folder.write(FILE, self._metrics.text().encode())
        self._file = open(folder.path / FILE, "a", newline="", encoding="utf-8")  # noqa: SIM115 - until `close`


# --- clients.csv ----------------------------------------------------------------------------------------------------


def clients_csv(events: Iterable[Event]) -> str:
    """A line for every client, or for those seen in the (sound) events where the events do not list all.

    The columns are client (position), name, samples, rounds (it took part in), refused (how often), last_round;
    train_loss, norm, cosine (the last known); on a virtual clock virtual_seconds (at work, all its orders together),
    wasted (those of them whose replies were not used), staleness (mean over its replies that were), late, failed (how
    often); <measure>_first and <measure> (the first and last of the global model on
    the client's test data) and personal_<measure> (the last of the client's own model).
    """
    seen: _Seen = {}
    listed: Mapping[str, Any] = {}
    keeps = clocked = False
    for each in events:
        if each["event"] == "start":
            keeps = (each.get("config") or {}).get("late") == "keep"
        elif each["event"] == "partition":
            listed = each
        elif each["event"] == "round":
            clocked = clocked or bool(each.get("clock"))
            _count(each, seen)
            _time(each, keeps, seen)
            _judge(each, listed.get("judged") or [], seen)
    names, sizes = listed.get("names"), listed.get("sizes")
    clients = sorted(seen) if names is None and sizes is None else range(len(names or sizes or []))
    measured = {column for row in seen.values() for column in row if isinstance(column, tuple)}
    columns = sorted(measured)
    fixed: tuple[str, ...] = ("rounds", "refused", "last_round", "loss", "norm", "cosine")
    header = ["client", "name", "samples", "rounds", "refused", "last_round", "train_loss", "norm", "cosine"]
    if clocked:
        fixed, header = (*fixed, *_WORKED), [*header, *_WORKED]
    lines = []
    for client in clients:
        row = {"rounds": 0, "refused": 0, **seen.get(client, {})}
        name = _safe(str(names[client])) if names is not None else None
        size = sizes[client] if sizes is not None else None
        lines.append([client, name, size, *(row.get(column) for column in [*fixed, *columns])])
    return _text([*header, *(_safe(title) for _, _, _, title in columns)], lines)


def _count(event: Event, seen: _Seen) -> None:
    """Who took part in a round, and what is known of it."""
    columns = event.get("clients") or {}
    for place, client in enumerate(event.get("cohort") or ()):
        row = seen.setdefault(client, {})
        row["rounds"] = row.get("rounds", 0) + 1
        row["last_round"] = event["round"]
        for name in ("loss", "norm", "cosine"):
            if name in columns and (value := known(columns[name][place])) is not None:
                row[name] = value
    for client in map(int, event.get("refused") or ()):
        row = seen.setdefault(client, {})
        row["refused"] = row.get("refused", 0) + 1


_WORKED = ("virtual_seconds", "wasted", "staleness", "late", "failed")


def _time(event: Event, keeps: bool, seen: _Seen) -> None:
    """What orders took a client on the virtual clock, and what became of them."""
    for order in orders(event, keeps):
        row = seen.setdefault(order.client, {})
        for name in _WORKED:
            row.setdefault(name, 0)
        row["late"] += order.late
        row["failed"] += order.failed
        if order.kept:  # it counts where it is done
            continue
        took = order.done - order.began
        row["virtual_seconds"] += took
        row["wasted"] += 0 if order.used else took
        if order.used:
            row["replies"] = row.get("replies", 0) + 1
            row["staleness"] += (order.staleness - row["staleness"]) / row["replies"]


def _judge(event: Event, judged: Sequence[int], seen: _Seen) -> None:
    """What an evaluation found for each client, in columns (kind, measure, order, title) that sort as in the file."""
    each = (event.get("evaluation") or {}).get("each") or {}
    for measure, values in (each.get("clients") or {}).items():
        for client, value in zip(judged, values, strict=False):
            if known(value) is not None:
                row = seen.setdefault(client, {})
                row.setdefault((0, measure, 0, f"{measure}_first"), value)
                row[0, measure, 1, measure] = value
    for measure, values in (each.get("personal") or {}).items():
        for client, value in zip(judged, values, strict=False):
            if known(value) is not None:
                seen.setdefault(client, {})[1, measure, 0, f"personal_{measure}"] = value


# --- several runs ---------------------------------------------------------------------------------------------------


def comparison_csv(comparison: Mapping[str, Any]) -> str:
    """A line for every experiment of a comparison (its `to_dict`).

    The columns are setting (what the experiment is called), runs (how many seeds), and for every figure that some
    experiment has <figure>, its mean over seeds, and <figure>_std, their standard deviation; `reached` is a number.
    """
    tables = [group["table"] for group in comparison["groups"]]
    figures = [key for key in (tables[0] if tables else {}) if any(t[key] is not None for t in tables)]
    header = ["setting", "runs"]
    for key in figures:
        header += [key] if key == "reached" else [key, f"{key}_std"]
    lines = []
    for group, table in zip(comparison["groups"], tables, strict=True):
        line: list[Any] = [_safe(group["label"]), len(group["runs"])]
        for key in figures:
            value = table[key]
            line += [value] if key == "reached" else [(value or {}).get(name) for name in ("mean", "std")]
        lines.append(line)
    return _text(header, lines)


# --- both -----------------------------------------------------------------------------------------------------------


def _safe(text: str) -> str:
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _text(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    into = io.StringIO(newline="")
    writer = csv.writer(into)
    writer.writerow(header)
    writer.writerows(lines)
    return into.getvalue()
