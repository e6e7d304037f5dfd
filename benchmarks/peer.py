"""Without a server: rounds and bytes to 95 % on MNIST for every topology and algorithm, and how far models are apart.

    python benchmarks/peer.py [--quick] [--seeds 1,2,3] [--rounds 60] [--only dpsgd:ring,choco:exponential] [--write]

McMahan's 2NN (199,210 numbers), 16 peers with labels by Dirichlet(0.5), all of them in every round, one local epoch in
batches of 32, SGD with 0.1. Judged is each peer's own model on its own test data, the mean over peers (of FedAvg the
global model, of clients that count alike). Bytes are of all messages between peers; FedAvg's go up to a server and
down again. Where peers are killed, five of the 16 are, one after the other, and each is back after a quarter of the
run: on the virtual clock, what they were at is lost, and they go on from what they had. `consensus` is the root of the
mean squared distance of peers' models to their mean in the end. `--quick` plays 12 rounds of a few,
one seed. `--write` stores benchmarks/results/peer.md and peer.svg (matplotlib).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import atoll

RESULTS = Path(__file__).parent / "results"
TARGET = 0.95

GRAPHS = (
    "ring", "torus", "erdos:0.4", "smallworld:4,0.2", "regular:4", "exponential", "one-peer", "base:1", "base:2",
    "equitopo", "grid:2", "complete", "star",
)  # fmt: skip
OTHERS = (
    "adpsgd:exponential", "pushsum:exponential", "pushsum:epidemic:2", "gossip:exponential", "tracking:exponential",
    "d2:exponential", "choco:exponential", "choco:ring", "moshpit:grid:2", "diloco:exponential",
)  # fmt: skip
KILLED = " (5 killed)"
ALL = (
    "fedavg", *(f"dpsgd:{graph}" for graph in GRAPHS), *OTHERS, f"dpsgd:exponential{KILLED}", f"dpsgd:ring{KILLED}",
)  # fmt: skip
QUICK = ("fedavg", "dpsgd:ring", "dpsgd:exponential", "choco:exponential", "tracking:exponential")
MORE: dict[str, dict[str, Any]] = {
    "choco": {"codec": "topk:0.01", "gamma": 0.1},
    "diloco": {"outer_momentum": 0.5},
}


class Played(NamedTuple):
    """One run: accuracy by round, bytes of a round, and consensus in the end."""

    curve: list[float]
    sent: float
    consensus: float | None

    @property
    def first(self) -> int | None:
        """The round that reached the target."""
        return next((at for at, value in enumerate(self.curve, 1) if value >= TARGET), None)


def play(text: str, rounds: int, seed: int) -> Played:
    """A method, and behind a colon its topology."""
    method, _, graph = text.removesuffix(KILLED).partition(":")
    more = {**({"topology": graph} if graph else {"weights": "equal"}), **MORE.get(method, {})}

    def run_of(rounds: int, **more: Any) -> atoll.Run:
        return atoll.run(
            data="mnist", partition="dirichlet:0.5", clients=16, cohort=16, model="mlp:200,200", method=method, lr=0.1,
            epochs=1, batch_size=32, rounds=rounds, seed=seed, progress=False, runs="none", **more,
        )  # fmt: skip

    if text.endswith(KILLED):
        one = run_of(1, devices="equal", **more).rounds[0].clock
        assert one is not None
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(hours(one.ended * rounds), file)
            file.flush()
            run = run_of(rounds, devices=file.name, **more)
    else:
        run = run_of(rounds, **more)
    curve = [each.evaluation.own["accuracy"].mean for each in run.rounds if each.evaluation]
    both = [each.bytes_up + (0 if graph else each.bytes_down) for each in run.rounds]
    last = run.evaluation
    return Played(curve, float(np.mean(both)), None if last is None else last.consensus)


def hours(end: float) -> list[dict[str, Any]]:
    """When the 16 peers are there, in a run that takes so long: five are gone for a quarter of it, each from its own
    time on."""
    cuts = [(end * (0.1 + 0.1 * at), end * (0.35 + 0.1 * at)) for at in range(5)]
    gone = [{"active": [0, back], "inactive": [killed, 1e12]} for killed, back in cuts]
    always = {"active": None, "inactive": None}
    return [{"client": at, **(gone[at] if at < 5 else always)} for at in range(16)]


def line(text: str, found: Sequence[Played], rounds: int) -> str:
    """The line of a table: means over seeds, of those that came there."""
    method, _, graph = text.partition(":")
    first = [each.first for each in found if each.first is not None]
    sent = float(np.mean([each.sent for each in found])) / 1e6
    there = f"{np.mean(first):.1f} | {np.mean(first) * sent:.1f}" if first else f"over {rounds} |  "
    if 0 < len(first) < len(found):
        there = f"{there} ({len(first)} of {len(found)} seeds)"
    apart = [each.consensus for each in found if each.consensus is not None]
    last = [100 * each.curve[-1] for each in found]
    spread = f" ± {np.std(last, ddof=1):.2f}" if len(last) > 1 else ""
    return (
        f"| `{method}` | {graph or 'a server'} | {np.mean(last):.2f}{spread} | {there} | {sent:.2f} |"
        f" {f'{np.mean(apart):.3g}' if apart else ''} |"
    )


def picture(known: dict[str, list[Played]], path: Path) -> None:
    """Accuracy over rounds, and over bytes."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    for text, found in known.items():
        curve = 100 * np.mean([each.curve for each in found], axis=0)
        xs, sent = np.arange(1, len(curve) + 1), np.mean([each.sent for each in found]) / 1e6
        style = "--" if text.startswith("dpsgd") else "-"
        left.plot(xs, curve, style, label=text, linewidth=1)
        right.plot(xs * sent, curve, style, linewidth=1)
    left.set(xlabel="round", ylabel="accuracy of peers' own models, %", ylim=(60, 100))
    right.set(xlabel="MB between peers", xscale="log")
    for axes in (left, right):
        axes.axhline(100 * TARGET, color="grey", linewidth=0.5)
    figure.legend(*left.get_legend_handles_labels(), loc="center right", fontsize=6)
    figure.tight_layout(rect=(0, 0, 0.82, 1))
    figure.savefig(path)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--only", default="", help="commas between; a topology's own comma as it stands")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    rounds, seeds = (
        (12, [1]) if given.quick else (given.rounds, [int(each) for each in given.seeds.split(",")])
    )
    chosen = QUICK if given.quick else ALL
    if given.only:
        chosen = tuple(each for each in ALL if f",{each}," in f",{given.only},")
    lines = [
        "| method | topology | accuracy in the end, % | rounds to 95 % | MB to 95 % | MB a round | consensus |",
        "|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    known: dict[str, list[Played]] = {}
    for text in chosen:
        known[text] = [play(text, rounds, seed) for seed in seeds]
        lines.append(line(text, known[text], rounds))
        print(lines[-1], flush=True)
    if given.write:
        RESULTS.mkdir(exist_ok=True)
        about = (__doc__ or "").partition("[--write]")[2].split("`--quick`")[0].strip()
        head = ["# Without a server", "", about, "", f"{rounds} rounds, seeds {given.seeds}.", "", *lines, ""]
        (RESULTS / "peer.md").write_text(
            "\n".join([*head, "![accuracy over rounds and bytes](peer.svg)", ""])
        )
        picture(known, RESULTS / "peer.svg")


if __name__ == "__main__":
    main()
