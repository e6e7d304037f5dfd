"""Atoll and the loop everybody writes, beside none, one and two processes that keep a core busy each, in alternation.

    python benchmarks/neighbour.py [--only W1,W2] [--neighbours 0,1,2] [--repeat 3] [--rounds 12] [--engines auto]

Run it with the interpreter of the environment in which Atoll is installed, and nothing else on the machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from run import RESULTS, Json, System, machine, measure, revision

BUSY = "while True: sum(range(10000))"
"""What a neighbour does: it never waits for anything."""


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """So many busy processes beside the block."""
    started = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for each in started:
            each.kill()
            each.wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="W1,W2")
    parser.add_argument("--neighbours", default="0,1,2")
    parser.add_argument("--engines", default="auto", help="of Atoll, with commas")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=12)
    given = parser.parse_args()
    engines = given.engines.split(",")
    systems = [
        *(System(f"Atoll, {each}", "atoll", "atoll_bench.py", ("--engine", each)) for each in engines),
        System("tutorial loop", "tutorial", "peers/tutorial_loop.py"),
    ]
    rows: list[Json] = []
    for workload in given.only.split(","):
        for count in map(int, given.neighbours.split(",")):
            runs: dict[str, list[Json]] = {each.title: [] for each in systems}
            with neighbours(count):
                for _ in range(given.repeat):
                    for system in systems:
                        runs[system.title].append(measure(system, workload, given.rounds))
            times = {
                title: statistics.median(one["seconds_per_round"] for one in found)
                for title, found in runs.items()
                if not any("failed" in one for one in found)
            }
            loop = times.get("tutorial loop")
            for title, found in runs.items():
                own = times.get(title)
                ratio = loop / own if loop and own else None
                rows.append(
                    {
                        "workload": workload,
                        "neighbours": count,
                        "system": title,
                        "ratio": ratio,
                        "runs": found,
                    }
                )
                shown = "failed" if own is None else f"{own:8.4f} s a round"
                faster = (
                    "" if ratio is None or title == "tutorial loop" else f"  {ratio:5.1f}x the tutorial loop"
                )
                engine = found[-1].get("engine", "")
                print(f"{workload}  {count} beside  {title:20s} {shown}{faster}  {engine}", flush=True)
    path = RESULTS / f"neighbour-{time.strftime('%Y-%m-%d-%H%M')}.json"
    path.write_text(json.dumps({**machine(), "revision": revision(), "rows": rows}, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
