"""What private set intersection costs: CPU seconds, bytes and memory of all parties together, in one process.

    python benchmarks/vertical_psi.py [100000x100000 1000x100000 20000x20000x20000] [--workers 1] [--write]

Each argument is one run: how many ids the guest has, and each host. Half of the smallest set is common to all. CPU
seconds are those of all processes; "x bare" says how many times as long they are as the multiplications alone, 2 an id
for two parties and k for k, timed beside them. Memory is the most that this process held for all parties, libraries
included, of which "at first" is what they take; ids themselves are not counted. With `--cache` the largest host's
blinded ids are kept, and the second of two runs is shown. With `--stand-in` a map that costs next to nothing stands for
the multiplications, for memory at sizes where they would take an hour: all else is as it is. `--write` stores
benchmarks/results/vertical_psi.md.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from atoll.parties import Played, play
from atoll.vertical.alignment import Alignment, align, curve

RESULTS = Path(__file__).parent / "results"
HEAD = [
    "| guest x hosts | common | CPU s | x bare | MB sent | peak MB | at first |",
    "|---|---|---|---|---|---|---|",
]


def memory() -> float:
    """The most MB that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def cpu() -> float:
    """Seconds that this process and those that it waited for have computed."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class Ids(Sequence[str]):
    """Ids of which the first `common` are everybody's, made when they are asked for: their memory is their owner's."""

    def __init__(self, size: int, common: int, party: int) -> None:
        self.size, self.common, self.party = size, common, party

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, at: Any) -> Any:
        if at >= self.size:
            raise IndexError(at)
        return f"c{at:012d}" if at < self.common else f"{self.party}{at:012d}"


def once(sizes: list[int], common: int, workers: int, cache: Path | None) -> Played:
    """One alignment, checked."""
    names = ["guest", *(f"host{at}" for at in range(1, len(sizes)))]
    largest = max(range(1, len(sizes)), key=sizes.__getitem__)
    roles = {
        name: partial(
            align,
            ids=Ids(size, common, at),
            parties=names,
            options=Alignment(),
            cache=cache if at == largest else None,
            workers=workers,
        )
        for at, (name, size) in enumerate(zip(names, sizes, strict=True))
    }
    played = play(roles)
    first, *others = (found.rows for found in played.results.values())
    assert np.bincount(first, minlength=common).tobytes() == np.ones(common, int).tobytes(), (
        "not the intersection"
    )
    assert all(np.array_equal(other, first) for other in others), "not in one order"
    return played


def stand_in() -> None:
    """Let points be digests, and raising them a mask that a secret makes, which commutes as well."""

    def raised(points: bytes, key: bytes) -> bytes:
        mask = np.frombuffer(key, np.uint8) & np.uint8(0x7F)
        return (np.frombuffer(points, np.uint8).reshape(-1, curve.BYTES) ^ mask).tobytes()

    curve.raised = raised
    curve.point = lambda name, salt: sha256(salt + name).digest()[:31] + b"\0"


def bare(count: int = 10_000) -> float:
    """CPU seconds of one multiplication."""
    points, key = curve.point(b"a", b"") * count, curve.secret()
    begun = cpu()
    curve.raised(points, key)
    return (cpu() - begun) / count


def measured(text: str, workers: int, cached: bool, stood: bool) -> str:
    """A line of the table."""
    sizes = [int(size) for size in text.split("x")]
    common, first = min(sizes) // 2, memory()
    with tempfile.TemporaryDirectory() as place:
        cache = Path(place) / "ids" if cached else None
        if cached:
            once(sizes, common, workers, cache)
        unit = bare()
        begun = cpu()
        played = once(sizes, common, workers, cache)
        spent = cpu() - begun
        unit = (unit + bare()) / 2
    times = "-" if stood else f"{spent / (unit * len(sizes) * sum(sizes)):.2f}"
    how = " (kept)" * cached + " (stand-in)" * stood
    sent = sum(count.nbytes + count.framing for count in played.transcript.counts()) / 1e6
    return (
        f"| {text.replace('x', ' x ')}{how} | {common} | {spent:.1f} |"
        f" {times} | {sent:.2f} | {memory():.0f} | {first:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sizes", nargs="*", default=["100000x100000"])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--cache", action="store_true")
    parser.add_argument("--stand-in", action="store_true")
    parser.add_argument("--alone", action="store_true", help="print one line, without a process for each run")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    if given.stand_in:
        stand_in()
    if given.alone:
        print(measured(given.sizes[0], given.workers, given.cache, given.stand_in))
        return
    lines = list(HEAD)
    print("\n".join(lines), flush=True)
    for text in given.sizes:
        more = [*["--cache"] * given.cache, *["--stand-in"] * given.stand_in]
        command = [sys.executable, __file__, text, "--alone", "--workers", str(given.workers), *more]
        lines.append(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
        print(lines[-1], flush=True)
    if given.write:
        about = (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].split(" `--write`")[0].strip()
        page = ["# Private set intersection", "", about, "", *lines, ""]
        (RESULTS / "vertical_psi.md").write_text("\n".join(page), "utf-8")


if __name__ == "__main__":
    main()
