"""What runs between two parties cost: alignment, boosted trees, linear models, split networks, one after the other.

    ATOLL_DATA=... python benchmarks/vertical.py [--only psi,boost,glm,split] [--write]

Each part is a script of its own (`vertical_psi.py` ...), with further options. `--write` stores what they print in
benchmarks/results/vertical.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
PARTS = {
    "psi": ["100000x100000"],
    "boost": ["--trees", "6", "--ciphers", "none,ou", "--workers", "2"],
    "glm": [],
    "split": [],
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    wanted = given.only.split(",")
    if unknown := set(wanted) - set(PARTS):
        parser.error(f"--only: no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    lines = [
        "# What runs between parties cost", "", f"`python benchmarks/vertical.py --write`, {os.cpu_count()} cores.", "",
    ]  # fmt: skip
    for name in wanted:
        load, began = os.getloadavg()[0], time.perf_counter()
        command = [sys.executable, str(HERE / f"vertical_{name}.py"), *PARTS[name]]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        told = f"`vertical_{name}.py {' '.join(PARTS[name])}`".replace(" `", "`")
        about = f"{told}, load before {load:.1f}, {time.perf_counter() - began:.0f} s"
        print(f"{about}\n{done.stdout}", flush=True)
        lines += [about, "", *(["```", done.stdout.rstrip(), "```"]), ""]
    if given.write:
        (HERE / "results" / "vertical.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
