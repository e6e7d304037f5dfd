"""Everything that is worth knowing about Atoll on a GPU, from one command that ends in time.

    PYTHONPATH=src python benchmarks/gpu.py                       # about three minutes on an H100
    PYTHONPATH=src python benchmarks/gpu.py --device cpu --quick  # a dry run of every part

It needs no installed package; `benchmarks/README.md` says which wheels to carry along. What it measures stands in
`gpu_agree.py`, `gpu_train.py`, `gpu_parts.py`, `gpu_text.py` and `gpu_graph.py`. Each case runs guarded: one that fails
becomes a row with the end of its traceback, and the rest goes on. Exit status 1 says that a case failed, 2 that nothing
could run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import gpu_agree
import gpu_graph
import gpu_parts
import gpu_text
import gpu_train
import torch
from gpu_runner import Json, Outcome, Part, Setting, exit_code, play, table
from workloads import process_age


def about(setting: Setting, given: argparse.Namespace) -> Json:
    """What the figures depend on besides the code."""
    cuda = setting.cuda
    properties = torch.cuda.get_device_properties(setting.device) if cuda else None
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "only": given.only,
        "device": str(setting.device),
        "device_name": properties.name if properties else platform.processor() or platform.machine(),
        "device_memory_mib": round(properties.total_memory / 2**20) if properties else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "quick": setting.quick,
        "budget": given.budget,
        "tf32": {
            "matmul": torch.backends.cuda.matmul.allow_tf32,
            "convolutions": torch.backends.cudnn.allow_tf32,
        },
    }


def store(path: Path, facts: Json, outcomes: Sequence[Outcome], seconds: float) -> None:
    """Write all figures so far; a run that is cut off leaves those of the parts it has done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = [outcome.to_dict() for outcome in outcomes]
    path.write_text(json.dumps({**facts, "seconds": round(seconds, 1), "parts": parts}, indent=1) + "\n")


def all_parts(setting: Setting) -> list[Part]:
    """Every part. Graphs come last: one that cannot be recorded may leave the device unusable."""
    return [
        *gpu_agree.parts(setting), *gpu_train.parts(setting), *gpu_parts.parts(setting), gpu_text.part(setting),
        gpu_graph.part(setting),
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Check and measure Atoll on a GPU.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does everything run?")
    parser.add_argument("--budget", type=float, default=220.0, help="seconds; what does not fit is skipped")
    parser.add_argument("--only", default="", help="names of parts, with commas between")
    parser.add_argument("--out", type=Path, help="the JSON file; default benchmarks/results/gpu-DEVICE.json")
    given = parser.parse_args(arguments)
    begun = time.monotonic() - process_age()  # the budget is that of the whole process, imports included
    setting = Setting(torch.device(given.device), given.quick)
    if setting.cuda and not torch.cuda.is_available():
        print(
            "error: torch sees no CUDA device here\nhint: --device cpu --quick is a dry run", file=sys.stderr
        )
        return 2
    if given.quick:  # threads of a busy machine would wait for each other
        torch.set_num_threads(1)
    parts = all_parts(setting)
    wanted = [name for name in given.only.split(",") if name] or [part.name for part in parts]
    if unknown := set(wanted) - {part.name for part in parts}:
        names = ", ".join(part.name for part in parts)
        parser.error(f"--only: no part {', '.join(sorted(unknown))}; there are {names}")
    facts = about(setting, given)
    kind = facts["device_name"].replace(" ", "-") if setting.cuda else setting.device.type
    path = given.out or Path(__file__).parent / "results" / f"gpu-{kind}.json"
    # torch warns of the switch that it will take in later releases; the old one works in all that Atoll runs with.
    warnings.filterwarnings("ignore", message=".*TF32.*")
    outcomes = play(
        [part for part in parts if part.name in wanted],
        setting,
        given.budget,
        begun,
        lambda so_far: store(path, facts, so_far, time.monotonic() - begun),
    )
    print(f"\n{facts['device_name']}, torch {facts['torch']}, CUDA {facts['cuda']}, {facts['date']}\n")
    print("\n\n".join(table(outcome) for outcome in outcomes))
    print(f"\n{path}: {time.monotonic() - begun:.0f} s", flush=True)
    return exit_code(outcomes)


if __name__ == "__main__":
    sys.exit(main())
