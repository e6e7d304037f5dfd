"""Cases, parts, and the runner that guards each case and keeps to a budget of seconds."""

from __future__ import annotations

import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

Json = dict[str, Any]

OK, FAILED, SKIPPED, NEEDS_CUDA = "ok", "failed", "skipped", "needs CUDA"


@dataclass(frozen=True)
class Setting:
    """Where and how large: the device, and whether this is a dry run with tiny sizes."""

    device: torch.device
    quick: bool = False

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def synchronize(self) -> None:
        """Wait for the device; nothing on a CPU."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def median(self, work: Callable[[], object], repeat: int, warm_up: int = 1) -> float:
        """Seconds that `work` takes, with all that it has started on the device."""
        seconds = []
        for _ in range(warm_up + repeat):
            self.synchronize()
            start = time.perf_counter()
            work()
            self.synchronize()
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds[warm_up:])


@dataclass(frozen=True)
class Case:
    """One row: `work` returns its figures. `expect` is the most seconds it should take on a GPU.

    Figures under "failed" (a text) make the row a failed one and are kept.
    """

    label: str
    work: Callable[[Setting], Json]
    expect: float = 10.0
    needs_cuda: bool = False


@dataclass(frozen=True)
class Part:
    """Cases that belong in one table."""

    name: str
    title: str
    cases: Sequence[Case]


@dataclass
class Outcome:
    """What became of a part."""

    part: Part
    rows: list[Json] = field(default_factory=list)

    @property
    def status(self) -> str:
        """The worst of its rows."""
        found = [row["status"] for row in self.rows]
        return next((status for status in (FAILED, SKIPPED, NEEDS_CUDA) if status in found), OK)

    def to_dict(self) -> Json:
        peaks = [row["peak_mib"] for row in self.rows if row.get("peak_mib") is not None]
        return {
            "name": self.part.name,
            "title": self.part.title,
            "status": self.status,
            "peak_mib": max(peaks, default=None),
            "rows": self.rows,
        }


# --- running ------------------------------------------------------------------------------------------------


def play(
    parts: Iterable[Part],
    setting: Setting,
    budget: float,
    begun: float | None = None,
    after: Callable[[list[Outcome]], object] = lambda outcomes: None,
) -> list[Outcome]:
    """Run the cases of all parts; `after` is called with what there is so far when a part is done.

    A case that no longer fits in the `budget` (seconds since `begun`, by `time.monotonic`) is skipped.
    """
    begun = time.monotonic() if begun is None else begun
    outcomes: list[Outcome] = []
    for part in parts:
        outcomes.append(Outcome(part))
        for case in part.cases:
            left = budget - (time.monotonic() - begun)
            row = run_case(case, setting, left)
            outcomes[-1].rows.append(row)
            says = row.get("error", "").splitlines()[-1:] or [figures(row)]
            status = "" if row["status"] == OK else f"{row['status']}: "
            print(
                f"[{time.monotonic() - begun:5.1f} s] {part.name}: {case.label}: {status}{says[0]}",
                file=sys.stderr,
                flush=True,
            )
        after(outcomes)
    return outcomes


def run_case(case: Case, setting: Setting, left: float) -> Json:
    """The row of one case, with `left` seconds to go."""
    row: Json = {"case": case.label}
    if case.needs_cuda and not setting.cuda:
        return {**row, "status": NEEDS_CUDA}
    if not setting.quick and case.expect > left:
        return {**row, "status": SKIPPED, "error": f"may take {case.expect:.0f} s, {max(left, 0):.0f} s left"}
    if setting.cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(setting.device)
    start = time.monotonic()
    found, error = attempt(lambda: case.work(setting))
    found = {"failed": error} if found is None else dict(found)
    failed = found.pop("failed", None)
    row |= {"status": FAILED if failed else OK, **found, "took": round(time.monotonic() - start, 2)}
    if setting.cuda:
        row["peak_mib"] = round(torch.cuda.max_memory_allocated(setting.device) / 2**20, 1)
    return {**row, "error": failed} if failed else row


def attempt(work: Callable[[], Any], lines: int = 6) -> tuple[Any, str | None]:
    """(result, None), or (None, the last lines of the traceback)."""
    try:
        return work(), None
    except Exception:
        told = [line for line in traceback.format_exc().splitlines() if line.strip(" ^~")]
        return None, "\n".join(told[-lines:])


def exit_code(outcomes: Iterable[Outcome]) -> int:
    """1 if any case failed."""
    return int(any(outcome.status == FAILED for outcome in outcomes))


# --- telling ------------------------------------------------------------------------------------------------

_APART = ("case", "status", "error", "took")


def figures(row: Json) -> str:
    """The figures of a row in one line."""
    return ", ".join(f"{name} {shown(value)}" for name, value in row.items() if name not in _APART)


def shown(value: Any) -> str:
    """A figure in four digits."""
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 1e-4 else f"{value:.4g}"
    return "" if value is None else str(value)


def table(outcome: Outcome) -> str:
    """A part as plain text, the errors under it."""
    names = [name for row in outcome.rows for name in row if name not in (*_APART, "peak_mib")]
    columns = ["case", *dict.fromkeys(names), "peak_mib", "status"]
    rows = [columns, *([shown(row.get(name)) for name in columns] for row in outcome.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [outcome.part.title]
    for row in rows:
        first, *rest = zip(row, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(text.rjust(width) for text, width in rest)]
        lines.append("  ".join(cells).rstrip())
    errors = [f"  {row['case']}: {row['status']}: {row['error']}" for row in outcome.rows if row.get("error")]
    return "\n".join([*lines, *errors])
