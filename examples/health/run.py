"""Four hospitals train one model over a network, and their coordinator sees nothing but a noisy sum.

    python examples/health/run.py [--quick] [--kill] [--out DIR]

Starts an authority, a coordinator and four nodes, each a process with certificates of its own, on this machine. Updates
are clipped, get noise at each hospital and are masked: secure aggregation under a privacy budget. Then each hospital
judges what came of it: accuracy, and whether a risk that the model names is one (calibration), beside training alone,
no privacy, fairness (q-FedAvg) and all patients in one place. `docs/applications/health.md` goes through it.

With --kill the same run without noise before it, whose coordinator and one hospital are killed in the middle and
started again: the model is that of a simulation, bit for bit.

Data: UCI heart disease, in the package. Out: a table, and health.png, in a directory that is new or empty.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from processes import Network, Processes
from safetensors.torch import load_file

import atoll
from atoll.calibration import calibration_error, reliability
from atoll.data import FederatedData, from_clients
from atoll.experiment import Experiment
from atoll.runs.folder import RunFolder

try:
    from matplotlib.figure import Figure
except ImportError:
    sys.exit(str(atoll.MissingExtraError("matplotlib", "plots", "drawing the picture")))

SETTINGS = Path(__file__).resolve().with_name("settings.toml")
HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
MODEL = "model.safetensors"
"""What the coordinator writes at the end of the private run."""
OPEN = {"channel": None, "epsilon": None, "delta": None, "sampling": None}
"""The same run without privacy."""

Rows = np.ndarray
"""Of a hospital's test patients: the risk that a model names, and whether they were ill [patients, 2]."""


def files(place: Path) -> None:
    """Each hospital's patients in a file of its own: what a hospital would have, and nobody else."""
    data = atoll.data.load("heart").partition("natural", test=None)
    for at, name in enumerate(data.names):
        samples = data.samples(at)
        np.savez(place / f"{name}.npz", x=np.asarray(samples.inputs), y=samples.targets.numpy())


def described(rounds: int, **other: object) -> Experiment:
    """The run of the settings, or another one of them, as a simulation."""
    return Experiment.read(SETTINGS, data="nodes.csv", runs=None, rounds=rounds, engine="processes", **other)


def divided(place: Path) -> FederatedData:
    """The files as nodes divide them: the same patients are for the test."""
    known = described(1)
    return from_clients(
        {name: place / f"{name}.npz" for name in HOSPITALS}, test=known.test, seed=known.seed, classes=2
    )


# --- over the network -----------------------------------------------------------------------------------------------


def private(place: Path, rounds: int) -> tuple[torch.nn.Module, dict[str, float]]:
    """The model of a private run between processes, and what it cost."""
    with Processes(place) as processes:
        Network(
            processes,
            (str(SETTINGS), "--set", f"rounds={rounds}", "--save", MODEL),
            HOSPITALS,
        )
        print("an authority, a coordinator and four hospitals, over TLS")
        processes.until("coordinator", "model saved")
    print("\n".join(line for line in processes.log("coordinator").splitlines() if "round " in line))
    model = atoll.models.logistic(15, 2)
    model.load_state_dict(load_file(place / MODEL))
    events = RunFolder.find("last", place / "coordinator" / "runs").log().events
    result = next(event for event in reversed(events) if event["event"] == "result")
    return model, {"epsilon": result["epsilon"], "kB": (result["bytes_up"] + result["bytes_down"]) / 1e3}


def killed(place: Path, rounds: int) -> None:
    """The run without noise, whose coordinator and one hospital die. Raises RunError unless nothing comes of that."""
    sets = [f"rounds={rounds}", "channel=none", "epsilon=none", "delta=none", "sampling=none", "eval_every=1"]
    with Processes(place) as processes:
        network = Network(
            processes,
            (
                str(SETTINGS),
                *(word for each in sets for word in ("--set", each)),
                "--save",
                "open.safetensors",
            ),
            HOSPITALS,
        )
        processes.until("coordinator", rf"round +{max(1, rounds // 3)}/")
        processes.kill("coordinator")
        network.begin()
        print(f"the coordinator was killed after round {max(1, rounds // 3)}, and started again")
        processes.until("coordinator", rf"round +{max(2, 2 * rounds // 3)}/")
        processes.kill("va")
        network.join("va")
        print(f"va was killed after round {max(2, 2 * rounds // 3)}, and started again")
        processes.until("coordinator", "model saved")
    run = described(rounds, **OPEN).federate(divided(place)).fit(progress=False)
    due, found = run.model.state_dict(), load_file(place / "open.safetensors")
    if found.keys() != due.keys() or not all(torch.equal(found[name], due[name]) for name in due):
        raise atoll.RunError("the model differs from the simulation's")
    print("the model is the simulation's, bit for bit\n")


# --- what each hospital finds ---------------------------------------------------------------------------------------


def risks(model: torch.nn.Module, data: FederatedData, hospital: int) -> Rows:
    """What a model says of a hospital's test patients; computed there, and told to nobody."""
    test = data.samples(hospital, "test")
    with torch.no_grad():
        said = torch.softmax(model(test.inputs), -1)[:, 1]
    return np.stack([said.numpy(), test.targets.numpy()], 1).astype(float)


def compared(place: Path, rounds: int) -> tuple[dict[str, list[Rows]], dict[str, float]]:
    """The risks that other ways of training name, hospital by hospital, and the kilobytes that they take.

    The first of them begins with the private model, which is in `place`, and goes on at each hospital by itself.
    """
    data = divided(place)
    everybody = range(len(data))

    def one(run: atoll.Run) -> list[Rows]:
        return [risks(run.model, data, hospital) for hospital in everybody]

    def sent(run: atoll.Run) -> float:
        return sum(each.bytes_up + each.bytes_down for each in run.rounds) / 1e3

    def at_home(**start: object) -> list[Rows]:
        alone = described(rounds, **OPEN, method="local", **start).federate(data)
        alone.fit(progress=False)
        return [risks(alone.personal(name).eval(), data, at) for at, name in enumerate(data.names)]

    plain = described(rounds, **OPEN).federate(data).fit(progress=False)
    fair = described(rounds, **OPEN, method="qfedavg", q=1.0).federate(data).fit(progress=False)
    parts = [data.samples(hospital) for hospital in everybody]
    pooled = from_clients(
        {"all": (torch.cat([p.inputs for p in parts]), torch.cat([p.targets for p in parts]))}, test=None, classes=2
    )  # fmt: skip
    whole = described(rounds, **OPEN).federate(pooled).fit(progress=False)
    found = {
        "private, then at home": at_home(base=str(place / MODEL)),
        "Local": at_home(),
        "FedAvg": one(plain),
        "q-FedAvg": one(fair),
        "centralised": one(whole),
    }
    return found, {"FedAvg": sent(plain), "q-FedAvg": sent(fair)}


def accuracy(rows: Rows) -> float:
    """In per cent."""
    return 100 * float(((rows[:, 0] > 0.5) == (rows[:, 1] > 0.5)).mean())


def table(ways: dict[str, list[Rows]], costs: dict[str, dict[str, float]]) -> str:
    """Accuracy by hospital, its mean, worst and spread; calibration errors; epsilon and traffic."""
    head = "".join(f"{each:>13}" for each in (*HOSPITALS, "mean", "worst", "spread", "ECE", "worst ECE"))
    lines = [f"{'':22}{head}{'epsilon':>10}{'kB':>8}"]
    for way, found in ways.items():
        scores, off = [accuracy(rows) for rows in found], [calibration_error(rows) for rows in found]
        cells = [*scores, np.mean(scores), min(scores), np.std(scores)]
        line = f"{way:22}" + "".join(f"{each:11.1f} %" for each in cells)
        line += f"{np.mean(off):13.3f}{max(off):13.3f}"
        epsilon, kilobytes = (costs.get(way, {}).get(key) for key in ("epsilon", "kB"))
        line += f"{'' if epsilon is None else f'{epsilon:.1f}':>10}{'' if kilobytes is None else f'{kilobytes:.1f}':>8}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def draw(ways: dict[str, list[Rows]], path: Path) -> None:
    """Accuracy by hospital and way, and the reliability curves of the private model."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    names = list(ways)
    for hospital, (name, colour) in enumerate(zip(HOSPITALS, COLOURS, strict=True)):
        scores = [accuracy(ways[way][hospital]) for way in names]
        many = len(ways[names[0]][hospital])
        left.plot(
            scores, range(len(names)), "o", color=colour, markersize=8, label=f"{name}, {many} patients"
        )
        curve = reliability(ways[names[0]][hospital], bins=5)
        right.plot(curve[:, 1], curve[:, 2], "o-", color=colour, markersize=5)
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    left.set_xlabel("accuracy on the hospital's own patients, %")
    left.grid(axis="x", color="#e3e3e3")
    right.plot([0, 1], [0, 1], color="black", linestyle=":", linewidth=1.2)
    right.set_xlabel("risk that the private model names")
    right.set_ylabel("share that was ill")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    scores = {way: np.mean([accuracy(rows) for rows in found]) for way, found in ways.items()}
    told = {"private": names[0], "without privacy": "FedAvg", "alone": "Local"}
    figure.suptitle(", ".join(f"{what} {scores[way]:.1f} %" for what, way in told.items()), weight="bold")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="four rounds in the place of ten")
    parser.add_argument(
        "--kill", action="store_true", help="a run without noise before it, in which processes die"
    )
    parser.add_argument("--rounds", type=int, help="rounds of every run (default 10)")
    parser.add_argument(
        "--out", type=Path, default=Path("health"), help="a new or empty directory (default: health)"
    )
    options = parser.parse_args()
    place: Path = options.out.resolve()
    place.mkdir(parents=True, exist_ok=True)
    if any(place.iterdir()):
        raise atoll.ConfigError(f"{place} is not empty", hint="name another directory with --out")
    rounds = options.rounds or (4 if options.quick else 10)
    if options.kill:
        aside = place / "kill"
        aside.mkdir()
        files(aside)
        killed(aside, max(3, rounds))
    files(place)
    model, cost = private(place, rounds)
    others, traffic = compared(place, rounds)
    data = divided(place)
    ways = {"private, over TLS": [risks(model, data, at) for at in range(len(data))], **others}
    costs = {"private, over TLS": cost, **{way: {"kB": value} for way, value in traffic.items()}}
    print("\n" + table(ways, costs))
    path = place / "health.png"
    draw(ways, path)
    print(f"\n{path}")


if __name__ == "__main__":
    try:
        main()
    except (atoll.AtollError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))
