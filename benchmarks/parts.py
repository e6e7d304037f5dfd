"""What docs/modalities.md says of clients that lack parts of their samples, measured again.

    python benchmarks/parts.py            # one seed of all rows
    python benchmarks/parts.py --seeds 0,1,2 --write

Needs MNIST and spoken-digits (ATOLL_DATA). A run takes about 40 s of CPU. `--write` keeps results/parts.md.
Accuracies are in %, of six voices that never trained beside MNIST's test images, means over seeds.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import atoll
from atoll.modalities import modalities, present

COMMON = {
    "data": "av-mnist", "rounds": 24, "cohort": 10, "epochs": 5, "batch_size": 16, "lr": 0.05, "momentum": 0.9,
    "runs": None, "eval_every": 0, "engine": "processes", "workers": 1,
}  # fmt: skip
HALF = {"missing_parts": 0.5}
DROP = {"augment": "drop:0.5"}
CONTRAST = {"method": "crossmodal"}
ROWS: dict[str, dict[str, Any]] = {
    "image alone": {"data": "av-mnist:image"},
    "audio alone": {"data": "av-mnist:audio"},
    "all have both": {},
    "all have both + dropout": DROP,
    "all have both + crossmodal": CONTRAST,
    "half lack one": HALF,
    "half lack one + dropout": {**HALF, **DROP},
    "half lack one + one mean": {**HALF, "by_part": False},
    "half lack one + crossmodal": {**HALF, **CONTRAST},
    "half lack one + attention": {**HALF, "model": "fused:attention"},
    "half lack one + attention + crossmodal": {**HALF, **CONTRAST, "model": "fused:attention"},
}
COLUMNS = ["both", "only image", "only audio", "clients with both", "... image", "... audio"]


def played(seed: int, settings: dict[str, Any]) -> dict[str, float]:
    """Accuracies of a run: with all parts, with each alone, and of clients on their own data by what these hold."""
    federation = atoll.Experiment.read(**{**COMMON, "seed": seed, **settings}).build()
    run = federation.fit(progress=False)
    found = {f"only {name}": v for name, v in run.accuracy_by_parts.items() if "+" not in name}
    assert run.accuracy is not None
    assert run.evaluation is not None
    found["both"] = run.accuracy
    of: dict[str, list[float]] = {}
    for client, value in run.evaluation.each["clients"]["accuracy"].items():
        samples = federation.data.samples(client)
        assert samples is not None
        names = modalities(samples.inputs)
        holds = (
            [name for name, has in zip(names, present(samples.inputs)[0], strict=True) if has]
            if names
            else []
        )
        of.setdefault("clients with both" if len(holds) != 1 else f"... {holds[0]}", []).append(value)
    return {**found, **{name: statistics.mean(values) for name, values in of.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--rows", nargs="*", choices=list(ROWS), default=list(ROWS), help="some rows alone")
    parser.add_argument("--write", action="store_true")
    wish = parser.parse_args()
    seeds = [int(seed) for seed in wish.seeds.split(",")]
    lines = [f"| | {' | '.join(COLUMNS)} |", f"|---|{'---:|' * len(COLUMNS)}"]
    print("\n".join(lines), flush=True)
    for name, settings in ROWS.items():
        if name not in wish.rows:
            continue
        runs = [played(seed, settings) for seed in seeds]
        cells = []
        for column in COLUMNS:
            values = [100 * run[column] for run in runs if column in run]
            more = (
                f" ({', '.join(f'{v:.1f}' for v in values)})" if len(values) > 1 and column == "both" else ""
            )
            cells.append(f"{statistics.mean(values):.1f}{more}" if values else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    if wish.write:
        said = f"Seeds {wish.seeds}; `python benchmarks/parts.py --seeds {wish.seeds} --write`.\n\n"
        (Path(__file__).parent / "results" / "parts.md").write_text(said + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
