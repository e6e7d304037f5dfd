"""An event log thinned for the page: small enough to inline or to send, with everything that the page draws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import floor, log10
from typing import Any

from atoll.runs.events import Event
from atoll.runs.packed import pack, quantiles, short
from atoll.runs.virtual import orders

__all__ = ["Digest", "compact"]

_COLUMNS = {
    "loss": 4,
    "samples": 5,
    "norm": 4,
    "cosine": 4,
    "kept": 3,
    "work": 3,
    "start": 5,
    "end": 5,
    "download": 4,
    "compute": 4,
    "upload": 4,
    "staleness": 5,
}  # significant digits
_MOMENTS = ("began", "done")  # on the virtual clock, to a ten-thousandth of the round
_ORDERS = 12  # rounds that say when each order began and was done
_TIMED = ("download", "compute", "upload", "staleness", *_MOMENTS)
_SUMMARISED = ("loss", "norm", "cosine")
_LATEST = ("loss", "norm", "cosine")
_SPENT = ("epsilon", "clipped")
_SPREAD = ("mean", "p10", "median", "p90", "min", "max")
_ROUNDS = 60  # with columns about each client of the cohort
_CELLS = 20_000  # clients in the rounds that have them
_EVALUATIONS = 24  # with a value for each client
_VALUES = 100_000  # in those evaluations, of one kind
_RECENT = 3  # evaluations kept beside the evenly spaced ones: a `resume` may void the last
_REASONS = 200  # different texts about refused replies, or problems
_TEXT = 500  # characters of one
_AFFINITY = 300  # clients


def compact(events: Iterable[Event], share: int = 1) -> list[Event]:
    """The events that the page needs, in the shape of `docs/runs.md` but for what follows.

    Void events are gone, as are kinds that the page does not know. Of `engine`, `affinity`, `checkpoint` and `crypto`
    the last one is left, of `begin` one whose round is not over. Equal `problem`s are one, with their `count`. In a
    `round`:

    - `cohort` and `dropped` are packed (see `atoll.runs.packed.pack`), `refused` is a list of [reason, packed clients];
    - `clients` is there for the last 60 rounds or fewer (about 20,000 entries); the rounds before have `quantiles`,
      {column: [p10, median, p90]}; `partial` counts those whose `work` is below 1;
    - `clock` has `late`, `failed`, `came` and `left` packed, and `stale`, how many replies were of which staleness,
      where some were above 0; the columns of the virtual clock (`began`, `download`, `compute`, `upload`, `done`,
      `staleness`) are there for the last 12 of the rounds with `clients`;
    - a spread has mean, p10, median, p90, min and max; `each` holds the first measure alone, and is there for the
      first, the last and about 12 to 24 evenly spaced evaluations, fewer where more than 4,000 clients are judged;
    - `confusion` is there for the last three evaluations.

    One kind is added: `latest` {`clients`, `round`, `loss`, `norm`, `cosine`} tells what is last known of clients
    whose last round has no `clients`.

    Args:
        share: how many runs share the space: the numbers above are divided by it.
    """
    digest = Digest(share)
    for event in events:
        digest.add(event)
    return digest.events()


# --- small parts --------------------------------------------------------------------------------------------


def _spreads(spreads: Mapping[str, Mapping[str, Any]] | None) -> dict[str, dict[str, Any]]:
    found = (spreads or {}).items()
    return {measure: {name: short(spread.get(name)) for name in _SPREAD} for measure, spread in found}


def _clock(event: Event) -> dict[str, Any]:
    """What a round was on the virtual clock."""
    clock = event["clock"]
    found = {name: short(clock.get(name)) for name in ("spent", "wasted", "energy", "staleness", "used")}
    found |= dict(zip(("began", "ended"), _moments([clock["began"], clock["ended"]], clock), strict=True))
    found |= {name: pack(clock[name]) for name in ("late", "failed", "came", "left") if clock.get(name)}
    stale = Counter(int(order.staleness) for order in orders(event) if order.used)
    if any(stale):
        found["stale"] = sorted(stale.items())
    return found


def _moments(values: list[Any], clock: Mapping[str, Any] | None) -> list[Any]:
    """Moments of a round, as exactly as a picture of it needs them."""
    span = (clock["ended"] - clock["began"] if clock else 0.0) or 1.0
    places = max(0, 4 - floor(log10(span)))
    return [value if value is None else round(value, places) for value in values]


def _square(event: Event) -> Event:
    """An affinity of at most 300 clients, to three decimals."""
    clients, matrix = event.get("clients") or [], event.get("matrix") or []
    step = -(-len(clients) // _AFFINITY) or 1
    rows = [[None if v is None else round(v, 3) for v in row[::step]] for row in matrix[::step]]
    return {**event, "clients": clients[::step], "matrix": rows}


# --- the whole ----------------------------------------------------------------------------------------------


@dataclass
class _Round:
    number: int
    event: Event
    order: int
    cohort: list[int]
    columns: dict[str, list[Any]] | None
    evaluated: bool


@dataclass
class _Each:
    index: int
    round: int
    values: dict[str, dict[str, list[Any]]]
    fresh: bool = True


@dataclass
class Digest:
    """Takes events one by one, in a bounded amount of memory, and gives the thinned list at any time."""

    share: int = 1
    _others: list[tuple[int, Event]] = field(default_factory=list)
    _rounds: list[_Round] = field(default_factory=list)
    _each: list[_Each] = field(default_factory=list)
    _confused: list[dict[str, Any]] = field(default_factory=list)  # evaluations with a confusion matrix
    _latest: dict[int, tuple[int, list[Any]]] = field(default_factory=dict)
    _problems: dict[tuple[str, str], Event] = field(default_factory=dict)
    _reasons: set[str] = field(default_factory=set)
    _begin: Event | None = None
    _measure: str = "accuracy"
    _full: int = 0  # how many of the rounds, from the end, have columns
    _stride: int = 1
    _order: int = 0

    def add(self, event: Event) -> None:
        """Take the next event of the log, void or not."""
        kind = event["event"]
        self._order += 1
        if kind == "round":
            self._add_round(event)
        elif kind == "begin":
            self._begin = event
        elif kind == "problem":
            self._add_problem(event)
        elif kind in ("engine", "affinity", "checkpoint", "crypto"):
            same = [pair for pair in self._others if pair[1]["event"] == kind]
            for pair in same[:-1]:  # two are kept: a `resume` may void the last
                self._others.remove(pair)
            self._others.append((self._order, event))
        elif kind in ("start", "partition", "resume", "result", "error"):
            if kind == "start":
                self._measure = event.get("measure") or "accuracy"
            if kind == "resume":
                self._void(int(event.get("round") or 0))
            if kind in ("result", "error"):
                self._begin = None
            self._others.append((self._order, event))

    def events(self) -> list[Event]:
        """The thinned log."""
        last: dict[str, tuple[int, Event]] = {}
        listed: list[tuple[int, Event]] = []
        for order, event in self._others:
            if event["event"] in ("engine", "affinity", "checkpoint", "crypto"):
                last[event["event"]] = (order, event)
            else:
                listed.append((order, event))
        if "affinity" in last:
            last["affinity"] = (last["affinity"][0], _square(last["affinity"][1]))
        each = self._chosen()
        listed += last.values()
        listed += [(found.order, self._shown(found, each.get(found.number))) for found in self._rounds]
        events = [event for _, event in sorted(listed, key=lambda pair: pair[0])]
        events += self._problems.values()
        if self._latest:
            events.append(self._known())
        if self._begin is not None:
            events.append({**self._begin, "cohort": pack(self._begin.get("cohort") or [])})
        return events

    # --- rounds -----------------------------------------------------------------------------------------------

    def _add_round(self, event: Event) -> None:
        number = int(event.get("round") or 0)
        if self._begin is not None and int(self._begin.get("round") or 0) <= number:
            self._begin = None
        cohort = list(event.get("cohort") or [])
        thin = {key: event.get(key) for key in ("event", "time", "round", "bytes_up", "bytes_down")}
        thin |= {"seconds": short(event.get("seconds")), "loss": short(event.get("loss"))}
        thin["cohort"] = pack(cohort)
        if event.get("dropped"):
            thin["dropped"] = pack(event["dropped"])
        if event.get("refused"):
            thin["refused"] = self._refusals(event["refused"])
        evaluation = event.get("evaluation")
        if evaluation:
            overall = {name: short(value) for name, value in (evaluation.get("overall") or {}).items()}
            found: dict[str, Any] = {
                "overall": overall,
                "clients": _spreads(evaluation.get("clients")),
                "personal": _spreads(evaluation.get("personal")),
                "newcomers": _spreads(evaluation.get("newcomers")),
            }
            if evaluation.get("validation"):
                found["validation"] = _spreads(evaluation["validation"])
            if evaluation.get("consensus") is not None:
                found["consensus"] = short(evaluation["consensus"])
            if evaluation.get("confusion"):
                found["confusion"] = evaluation["confusion"]
                self._confused.append(found)
                for old in self._confused[:-_RECENT]:
                    del old["confusion"]
                self._confused = self._confused[-_RECENT:]
            thin["evaluation"] = found
            self._add_each(number, evaluation.get("each") or {})
        shares = (event.get("clients") or {}).get("work") or ()
        if partial := sum(share is not None and share < 1 for share in shares):
            thin["partial"] = partial
        columns = {
            name: list(values)
            for name, values in (event.get("clients") or {}).items()
            if name in _COLUMNS or name in _MOMENTS
        }
        if event.get("clock"):
            thin["clock"] = _clock(event)
        if links := event.get("links"):
            thin["links"] = links
        if spent := event.get("spent"):
            thin["spent"] = {key: short(each) if key in _SPENT else each for key, each in spent.items()}
        self._rounds.append(_Round(number, thin, self._order, cohort, columns, bool(evaluation)))
        self._full += 1
        if len(self._rounds) > max(1, _ORDERS // self.share):
            earlier = self._rounds[-1 - max(1, _ORDERS // self.share)]
            for name in _TIMED:
                (earlier.columns or {}).pop(name, None)
        self._summarise()

    def _summarise(self) -> None:
        """Turn the columns of the oldest rounds that still have them into quantiles, until the rest is small."""
        while self._full > 1:
            cells = sum(len(found.cohort) for found in self._rounds[-self._full :])
            if self._full * self.share <= _ROUNDS and cells * self.share <= _CELLS:
                return
            oldest = self._rounds[-self._full]
            columns = oldest.columns or {}
            known = {name: quantiles(columns[name]) for name in _SUMMARISED if name in columns}
            if known:
                oldest.event["quantiles"] = known
                found = [columns.get(name) or [None] * len(oldest.cohort) for name in _LATEST]
                for client, *values in zip(oldest.cohort, *found, strict=False):
                    self._latest[client] = (oldest.number, values)
            oldest.columns = None
            oldest.cohort = []
            self._full -= 1

    def _shown(self, found: _Round, each: Mapping[str, Any] | None) -> Event:
        event = dict(found.event)
        if found.columns:
            event["clients"] = {
                name: _moments(values, event.get("clock"))
                if name in _MOMENTS
                else [short(value, _COLUMNS[name]) for value in values]
                for name, values in found.columns.items()
            }
        if each is not None:
            event["evaluation"] = {**event["evaluation"], "each": each}
        return event

    def _known(self) -> Event:
        """`latest`: of clients that are in none of the rounds with columns."""
        covered: set[int] = set()
        for found in self._rounds[-self._full :] if self._full else []:
            covered.update(found.cohort)
        rest = sorted(client for client in self._latest if client not in covered)
        event: Event = {"event": "latest", "clients": pack(rest), "round": [self._latest[k][0] for k in rest]}
        for place, name in enumerate(_LATEST):
            event[name] = [short(self._latest[k][1][place], 4) for k in rest]
        return event

    # --- evaluations ------------------------------------------------------------------------------------------

    def _add_each(self, number: int, each: Mapping[str, Mapping[str, list[Any]]]) -> None:
        values = {}
        for kind, measures in each.items():
            if measures:
                measure = self._measure if self._measure in measures else next(iter(measures))
                values[kind] = {measure: measures[measure]}
        index = self._each[-1].index + 1 if self._each else 0
        self._each.append(_Each(index, number, values))
        judged = max((len(v) for measures in values.values() for v in measures.values()), default=1) or 1
        limit = max(3, min(_EVALUATIONS, _VALUES // judged) // self.share)
        while sum(found.index % self._stride == 0 for found in self._each) > limit:
            self._stride *= 2
        recent = self._each[-_RECENT:]
        self._each = [f for f in self._each[:-_RECENT] if f.index % self._stride == 0] + recent

    def _chosen(self) -> dict[int, dict[str, Any]]:
        """Round -> the values for each client, rounded, of the first, the last and evenly spaced evaluations."""
        chosen = [found for found in self._each[:-1] if found.index % self._stride == 0] + self._each[-1:]
        for found in chosen:
            if found.fresh:
                found.fresh = False
                for measures in found.values.values():
                    for measure, values in measures.items():
                        measures[measure] = [short(value, 4) for value in values]
        return {found.round: found.values for found in chosen}

    # --- trouble ----------------------------------------------------------------------------------------------

    def _refusals(self, refused: Mapping[str, str]) -> list[list[Any]]:
        by: dict[str, list[int]] = {}
        for client, reason in refused.items():
            by.setdefault(self._reason(str(reason)), []).append(int(client))
        return [[reason, pack(clients)] for reason, clients in by.items()]

    def _reason(self, text: str) -> str:
        text = text if len(text) <= _TEXT else text[: _TEXT - 1] + "…"
        if text not in self._reasons and len(self._reasons) >= _REASONS:
            return "other reasons"
        self._reasons.add(text)
        return text

    def _add_problem(self, event: Event) -> None:
        where, message = str(event.get("where", "")), self._reason(str(event.get("message", "")))
        before = self._problems.get((where, message))
        count = before["count"] + 1 if before else 1
        self._problems[where, message] = {**event, "where": where, "message": message, "count": count}

    def _void(self, after: int) -> None:
        """Forget what happened after this round, and how the run ended before it was resumed."""
        self._begin = None
        gone = sum(found.number > after for found in self._rounds)
        self._rounds = [found for found in self._rounds if found.number <= after]
        self._full = max(0, self._full - gone)
        self._each = [found for found in self._each if found.round <= after]
        self._latest = {k: known for k, known in self._latest.items() if known[0] <= after}
        self._others = [
            (order, event)
            for order, event in self._others
            if event["event"] not in ("result", "error") and int(event.get("round") or 0) <= after
        ]
