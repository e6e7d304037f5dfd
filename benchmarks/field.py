"""Every method in one setting, over several seeds: accuracy of clients, rounds to convergence, gain over Local.

    python benchmarks/field.py mnist --write
    python benchmarks/field.py cifar10 --seeds 3 --jobs 2 --runs runs

The setting, and what single methods need in it, stands in benchmarks/field/NAME.toml. Runs are kept under --runs, and
the same command again goes on where it stopped. `--write` stores the table in benchmarks/results/field-NAME.md; with
`--only` it replaces the rows of those methods there and leaves the others as they are.

All columns are in points of accuracy, means over seeds with their standard deviation. "clients" is the mean over
clients of the model that each would use (its own where the method personalises, else the global one), "pooled" the
same over samples, "p10" and "worst" the clients that do badly; "global" is the global model on the official test
set. "rounds" is the first evaluated round within half a point of the run's best mean over clients, and "gain" and
"worse off" compare client by client with Local.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from atoll.methods import METHODS
from atoll.runs.averages import Average, Group
from atoll.runs.compare import Comparison
from atoll.trials.sweeping import Sweep, prepare

HERE = Path(__file__).parent
NEAR = 0.005  # of the best accuracy, to have converged
HEAD = """\
| method | clients | pooled | p10 | worst | global | rounds | gain | worse off |
|---|---|---|---|---|---|---|---|---|
"""
NOTES = "\n\nNot in the means:\n\n"


def converged(group: Group) -> str:
    """The first evaluated round that comes near the run's best one, mean over seeds."""
    found = []
    for story in group.stories:
        curve = story.curve("own")
        found.append(next(number for number, value in curve.items() if value >= max(curve.values()) - NEAR))
    return f"{statistics.fmean(found):.0f}"


def points(value: Average | int | None, digits: int = 1) -> str:
    if not isinstance(value, Average):
        return "–"
    spread = "" if value.std is None else f" ± {100 * value.std:.{digits}f}"
    return f"{100 * value.mean:.{digits}f}{spread}"


def worse(group: Group) -> str:
    share, by = group.table["worse_off"], group.table["worse_by"]
    if not isinstance(share, Average):
        return "–"
    below = f" ({100 * by.mean:.1f})" if isinstance(by, Average) and share.mean else ""
    return f"{100 * share.mean:.0f} %{below}"


def table(comparison: Comparison, kept: str = "") -> str:
    """The groups as a table of Markdown, the best mean over clients first, among the other methods' rows of `kept`."""
    stored, _, notes = kept.strip().removeprefix(HEAD).partition(NOTES)
    rows = {_method(line): line for line in stored.splitlines()}
    for group in comparison.groups:
        found = group.table
        cells = [points(found[key]) for key in ("own", "pooled", "p10", "worst", "global")]
        name = group.stories[0].method
        rows[name] = (
            f"| {name} | {' | '.join(cells)} | {converged(group)} | {points(found['gain'])} | {worse(group)} |"
        )

    def clients(line: str) -> float:
        return -float(line.split("|")[2].split()[0])

    played = {group.stories[0].method for group in comparison.groups}
    left = [
        line for line in notes.splitlines() if line.partition("method=")[2].partition(",")[0] not in played
    ]
    left += [f"* {failed}" for failed in comparison.failed]
    lines = "\n".join(sorted(rows.values(), key=clients))
    return f"{HEAD}{lines}{NOTES if left else ''}" + "\n".join(left)


def _method(line: str) -> str:
    return line.split("|")[1].strip()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("setting", choices=sorted(path.stem for path in (HERE / "field").glob("*.toml")))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--only", default="", help="methods, with commas")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    methods = [each for each in given.only.split(",") if each] or [
        each for each in METHODS if each != "crossmodal"
    ]
    sweep = prepare(
        HERE / "field" / f"{given.setting}.toml", grid={"method": methods}, seeds=given.seeds, runs=given.runs,
        name=f"field-{given.setting}", jobs=given.jobs,
    )  # fmt: skip
    told: set[str] = set()

    def watch(sweep: Sweep) -> None:
        for trial in sweep.trials:
            if trial.status in ("finished", "failed") and trial.point.label not in told:
                told.add(trial.point.label)
                print(
                    f"[{len(told)}/{len(sweep.trials)}] {trial.point.label}: {trial.status}", file=sys.stderr
                )

    comparison = sweep.play(watch)
    place = HERE / "results" / f"field-{given.setting}.md"
    kept = place.read_text() if given.only and place.exists() else ""
    text = table(comparison, kept)
    print(text)
    if given.write:
        place.write_text(f"{text}\n")


if __name__ == "__main__":
    main()
