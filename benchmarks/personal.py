"""What docs/personalisation.md says of single methods, measured again.

    python benchmarks/personal.py circle           # FEDORA on 36 rotated clients
    python benchmarks/personal.py related          # ... whose neighbours without a server are those alike, or others
    python benchmarks/personal.py permuted         # ... half of them with permuted labels
    python benchmarks/personal.py newcomers        # ... six of them not there
    python benchmarks/personal.py sketches         # neighbours found from private sketches
    python benchmarks/personal.py scale            # FEDORA's server with 10,000 clients
    python benchmarks/personal.py hypernetwork     # pFedHN, two classes a client
    python benchmarks/personal.py matching         # PFNM from own starts, one exchange
    python benchmarks/personal.py layers           # FedMA on a narrow VGG, with communication

Needs MNIST and, for "layers", CIFAR-10 (ATOLL_DATA). `--seeds 0,1,2`; `--write` keeps the table in
results/personal-NAME.md. Accuracies are in %, times in seconds of wall time.
"""

from __future__ import annotations

import argparse
import math
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import atoll
from atoll.contract import Job, Population, Replies, Reply, Work
from atoll.data import Dataset
from atoll.data.partition.parse import resolve
from atoll.data.samples import Samples
from atoll.methods import Fedora
from atoll.methods.personal.relatedness import likeness
from atoll.models.convolutional import vgg
from atoll.results import Run
from atoll.task import Task
from atoll.tensors import Record, Tensors

CIRCLE = {
    "data": "mnist", "partition": "rotated:36", "clients": 36, "cohort": 36, "rounds": 80, "epochs": 5,
    "batch_size": 64, "lr": 0.005, "momentum": 0.9, "weight_decay": 5e-5, "model": "mlp:128,128",
}  # fmt: skip
ALWAYS = {"method": "fedora", "gate": "always"}
BESIDE = {"method": "fedora", "gate": "beside"}
QUIET = {"runs": None, "eval_every": 0}
DELTA = 1e-5


def played(**settings: Any) -> tuple[atoll.Federation, Run, float]:
    """A federation after its run, and the seconds it took to build and play it."""
    start = time.perf_counter()
    federation = atoll.Experiment.read(**{**QUIET, **settings}).build()
    run = federation.fit()
    return federation, run, time.perf_counter() - start


def own(run: Run) -> float:
    assert run.evaluation is not None
    return 100 * run.evaluation.own["accuracy"].mean


def lines(head: Sequence[str], rows: Mapping[str, Sequence[str]]) -> list[str]:
    found = [f"| | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    return [*found, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items())]


def mean(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.1f}"


# --- FEDORA ---------------------------------------------------------------------------------------------------------


def circle(seeds: Sequence[int]) -> list[str]:
    rows = {}
    for name, settings in (
        ("FEDORA, `gate=always`", ALWAYS), ("FEDORA, `gate=beside`", BESIDE), ("FEDORA", {"method": "fedora"}),
        ("Local", {"method": "local"}), ("FedAvg", {"method": "fedavg"}),
    ):  # fmt: skip
        found = [played(**CIRCLE, **settings, seed=seed)[1:] for seed in seeds]
        figures = [own(run) for run, _ in found]
        taken = [seconds for _, seconds in found]
        rows[name] = [*(f"{v:.1f}" for v in figures), mean(figures), f"{min(taken):.0f}-{max(taken):.0f} s"]
    return lines([*(f"seed {seed}" for seed in seeds), "mean", "wall time"], rows)


def related(seeds: Sequence[int]) -> list[str]:
    rows = {}
    for name, settings in (
        ("`related:2`", {"topology": "related:2"}), ("`regular:2`, at random", {"topology": "regular:2"}),
        ("`related:4`", {"topology": "related:4"}), ("`regular:4`, at random", {"topology": "regular:4"}),
        ("alone", {"method": "local"}),
    ):  # fmt: skip
        found = [played(**{**CIRCLE, "method": "dpsgd", **settings}, seed=seed)[1] for seed in seeds]
        sent = statistics.fmean(run.rounds[-1].bytes_up for run in found) / 1e6
        rows[name] = [*(f"{own(run):.1f}" for run in found), mean([*map(own, found)]), f"{sent:.1f}"]
    return lines([*(f"seed {seed}" for seed in seeds), "mean", "MB a round"], rows)


def permuted(seeds: Sequence[int]) -> list[str]:
    setting = {**CIRCLE, "partition": "rotated:36+permuted:18,0.5"}
    methods = {
        "Local": {"method": "local"}, "FEDORA": {"method": "fedora"}, "FEDORA, `gate=always`": ALWAYS,
        "FEDORA, `gate=soft`": {"method": "fedora", "gate": "soft"}, "FEDORA, `gate=beside`": BESIDE,
    }  # fmt: skip
    rows, alone = {}, (0.0, 0.0)
    for name, settings in methods.items():
        groups: tuple[list[float], list[float]] = ([], [])
        for seed in seeds:
            _, run, _ = played(**setting, **settings, seed=seed)
            assert run.evaluation is not None
            kind = "personal" if run.evaluation.personal else "clients"
            each = run.evaluation.each[kind]["accuracy"]
            rule: Any = resolve(setting["partition"], 36, atoll.data.load("mnist"))
            changed = rule.assignment(36, seed) > 0
            for group, member in zip(groups, (changed, ~changed), strict=True):
                group.append(100 * float(np.mean([each[int(k)] for k in np.flatnonzero(member)])))
        values = statistics.fmean(groups[0]), statistics.fmean(groups[1])
        alone = values if name == "Local" else alone
        rows[name] = [f"{v:.1f} ({v - a:+.1f})" for v, a in zip(values, alone, strict=True)]
    return lines(["permuted clients", "the others"], rows)


def newcomers(seeds: Sequence[int]) -> list[str]:
    setting = {**CIRCLE, "cohort": 30, "newcomers": 6, "adapt": 0}
    methods = {
        "FEDORA": {"method": "fedora"}, "FEDORA, `gate=always`": ALWAYS, "Local": {"method": "local"},
        "global model (FedAvg)": {"method": "fedavg"},
    }  # fmt: skip
    rows = {}
    for name, settings in methods.items():
        waits = (0,) if settings["method"] == "fedavg" else (0, 20, 80)
        found: dict[int, list[float]] = {wait: [] for wait in waits}
        offered = []
        for seed in seeds:
            federation, _, _ = played(**setting, **settings, seed=seed)
            judge, apart = federation.judge, federation.membership.newcomers
            for wait in waits:
                judge.adapt = wait
                found[wait].append(100 * federation.evaluate().newcomers["accuracy"].mean)
            if isinstance(federation.method, Fedora):
                values = []
                for k in apart:
                    train, test = federation.data.samples(k), federation.data.samples(k, "test")
                    assert train is not None
                    assert test is not None
                    model = federation.method.offer(federation.state, train.inputs)
                    values.append(judge.measures(*model, test)["accuracy"].mean())
                offered.append(100 * float(np.mean(values)))
        rows[name] = [mean(found[wait]) if wait in found else "" for wait in (0, 20, 80)]
        if offered:
            rows[f"{name}, without labels"] = [mean(offered), "", ""]
    return lines(["given at once", "after 20 rounds", "after 80 rounds"], rows)


def sketches(seeds: Sequence[int]) -> list[str]:
    rows = {}
    for samples in (1000, 128):
        part = "rotated:36" if samples == 128 else f"rotated:36,train={samples}"
        data = atoll.data.load("mnist").partition(part, seed=seeds[0])
        federation = atoll.Federation(
            lambda: atoll.models.mlp(784, 10), data, "fedora", cohort=36, engine="loop", eval_every=0
        )

        def right(**settings: Any) -> float:
            """The share of each client's two nearest that are its neighbours on the circle."""
            job = Job(Fedora(**settings), Work(Record(), program="sketch", reduction="each"), range(36), 0, 0)
            replies, _ = federation.engine.run(job, federation.memories)  # noqa: B023
            assert replies is not None
            made = torch.stack([reply.values.sketch for reply in replies.each])
            values = likeness(made, made).fill_diagonal_(-1)
            top = values.topk(2, 1).indices
            return 100 * float(np.mean([(int(j) - i) % 36 in (1, 35) for i in range(36) for j in top[i]]))

        def private(epsilon: float) -> str:
            noise = math.sqrt(2 * math.log(1.25 / DELTA)) * math.sqrt(2) / (samples * epsilon)  # noqa: B023
            return " / ".join(f"{right(sketch_dim=d, sketch_noise=noise):.0f}" for d in (16, 64)) + " %"

        cells = [f"{right():.0f} %", " / ".join(f"{right(sketch_dim=d):.0f}" for d in (16, 64)) + " %"]
        rows[f"{samples:,} samples"] = [*cells, *(private(epsilon) for epsilon in (0.9, 0.5, 0.2))]
    return lines(["exact", "projected to 16 / 64", "epsilon 0.9", "epsilon 0.5", "epsilon 0.2"], rows)


def scale(seeds: Sequence[int]) -> list[str]:
    torch.set_num_threads(1)
    clients, rows = 10_000, {}
    method, generator = Fedora(), torch.Generator().manual_seed(seeds[0])
    state = method.setup(Task(nn.Linear(784, 10)), Population(clients))

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        found = work()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        rows[name] = [f"{time.perf_counter() - start:.1f} s", f"{peak:.2f} GB"]
        return found

    def place() -> Record:
        known = state
        for start in range(0, clients, 1000):
            made = torch.nn.functional.normalize(torch.randn(1000, 794, 1, generator=generator), dim=1)
            replies = [Reply(Record(sketch=each), torch.ones(()), Record()) for each in made]
            known = method.welcome(known, Replies(list(range(start, start + 1000)), 1.0, Record(), replies))
        return known

    state = timed("placing all clients", place)

    def kept() -> Record:
        shapes = {name: value.shape for name, value in state.params.items()}
        params = [Tensors({n: torch.randn(s) for n, s in shapes.items()}) for _ in range(clients)]
        each = [Reply(Record(params=p, buffers=Tensors()), torch.ones(()), Record()) for p in params]
        return method.update(state, Replies(list(range(clients)), 1.0, Record(), each))

    state = timed("keeping all models", kept)
    for count in (100, clients):
        timed(f"propagating to {count:,}", lambda: method.broadcast(state, range(count)))  # noqa: B023
    return lines(["time", "peak memory so far"], rows)


# --- others ---------------------------------------------------------------------------------------------------------


def hypernetwork(seeds: Sequence[int]) -> list[str]:
    setting = {
        "data": "mnist", "partition": "pathological:2", "clients": 20, "model": "mlp:100", "rounds": 100,
        "engine": "batched", "workers": 1,
    }  # fmt: skip
    sgd = {"steps": 50, "lr": 0.005, "momentum": 0.9, "weight_decay": 5e-5}
    methods: dict[str, dict[str, Any]] = {
        "pFedHN": {"method": "pfedhn"}, "pFedHN-PC": {"method": "pfedhn-pc"},
        "Local, the same steps": {"method": "local", **sgd},
        "Local, one epoch, lr 0.02": {"method": "local", "lr": 0.02, "momentum": 0.9},
        "FedAvg": {"method": "fedavg", **sgd},
    }  # fmt: skip
    rows = {}
    for name, settings in methods.items():
        rows[name] = [
            mean([own(played(**setting, **settings, cohort=cohort, seed=seed)[1]) for seed in seeds])
            for cohort in (5, 20)
        ]
    return lines(["cohort 5", "cohort 20"], rows)


def matching(seeds: Sequence[int]) -> list[str]:
    setting = {
        "data": "mnist", "partition": "dirichlet:0.5", "clients": 10, "cohort": 10, "model": "mlp:100", "rounds": 1,
        "epochs": 10, "batch_size": 32, "lr": 0.01, "momentum": 0.9, "engine": "batched", "workers": 1,
    }  # fmt: skip
    rows = {}
    for start in ("own", "shared"):
        for name, match in (("matched", True), ("plain", False)):
            values = [one_exchange({**setting, "seed": seed}, start, match) for seed in seeds]
            rows[f"{name}, {start} start"] = [*(f"{v:.1f}" for v in values), mean(values)]
    return lines([*(f"seed {seed}" for seed in seeds), "mean"], rows)


def one_exchange(setting: Mapping[str, Any], start: str, match: bool) -> float:
    """Accuracy of the average after one round, of matched units or of units as they come."""
    if start == "shared" and not match:
        run = played(**{**setting, "method": "fedavg"})[1]
    else:
        experiment = atoll.Experiment.read(**{**QUIET, **setting, "method": "pfnm", "start": start})
        federation = experiment.build()
        if not match:
            federation = federation.replace(method=Unmatched(**experiment.settings))
        run = federation.fit()
    assert run.accuracy is not None
    return 100 * run.accuracy


class Unmatched(atoll.PFNM):
    """From starts of one's own to the mean by samples, without matching."""

    def update(self, state: Record, replies: Replies) -> Record:
        params = state.params.zeros()
        for reply in replies.each:
            params = params + reply.values.params * (reply.weight / replies.weight)
        return state.replace(params=params, round=state.round + 1)


def layers(seeds: Sequence[int]) -> list[str]:
    whole = atoll.data.load("cifar10")

    def pooled(samples: Samples) -> Samples:
        inputs = torch.as_tensor(np.asarray(samples.inputs)).float()
        return Samples(torch.nn.functional.avg_pool2d(inputs, 2), samples.targets)

    rows: dict[str, list[str]] = {}
    for images, clients, epochs in ((3000, 6, 4), (1600, 8, 20)):
        chosen = whole.train.take(np.random.default_rng(0).permutation(whole.train.count)[:images])
        small = Dataset("cifar10", pooled(chosen), pooled(whole.test), classes=10)
        for seed in seeds:
            data = small.partition("dirichlet:0.5", clients=clients, seed=seed)
            for name, method, settings in (
                ("FedAvg", "fedavg", {}), ("FedMA", "fedma", {}),
                ("FedMA, `later=matched`", "fedma", {"later": "matched"}),
            ):  # fmt: skip
                federation = atoll.Federation(
                    lambda: vgg((3, 16, 16), 10, 8), data, method, rounds=18, cohort=clients, seed=seed,
                    engine="processes", eval_every=9, eval_clients=1, batch_size=32, lr=0.02, momentum=0.9,
                    epochs=epochs, **settings,
                )  # fmt: skip
                judged = [r.evaluation.overall["accuracy"] for r in federation.fit().rounds if r.evaluation]
                rows.setdefault(name, []).append(", ".join(f"{100 * value:.1f}" for value in judged))
    return lines([f"E = {e}, seed {seed}" for e in (4, 20) for seed in seeds], rows)


TABLES = {
    each.__name__: each
    for each in (circle, related, permuted, newcomers, sketches, scale, hypernetwork, matching, layers)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("table", choices=sorted(TABLES))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    found = TABLES[given.table]([int(seed) for seed in given.seeds.split(",")])
    print("\n".join(found))
    if given.write:
        place = Path(__file__).parent / "results" / f"personal-{given.table}.md"
        place.write_text("\n".join(found) + "\n")


if __name__ == "__main__":
    main()
