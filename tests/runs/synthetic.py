"""Event logs like those of real runs, made up: learning curves, unequal clients in groups, refusals, endings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from atoll.runs.events import Event, encode

__all__ = ["log", "spread", "write"]

BEGINNING = 1_795_000_000.0


def spread(values: np.ndarray[Any, Any], weights: np.ndarray[Any, Any] | None = None) -> dict[str, Any]:
    p10, median, p90 = (float(v) for v in np.percentile(values, [10, 50, 90]))
    return {
        "mean": float(values.mean()),
        "std": float(values.std()),
        "min": float(values.min()),
        "p10": p10,
        "median": median,
        "p90": p90,
        "max": float(values.max()),
        "pooled": float(np.average(values, weights=weights)),
        "clients": len(values),
    }


def _list(values: np.ndarray[Any, Any], digits: int = 5) -> list[float]:
    return [float(f"{value:.{digits}g}") for value in values.tolist()]


def log(
    clients: int = 30,
    rounds: int = 40,
    cohort: int = 10,
    *,
    name: str = "2026-11-21_081233-fedavg-a3f1",
    method: str = "fedavg",
    personalised: bool = False,
    classes: int | None = 10,
    seed: int = 0,
    planned: int | None = None,
    eval_every: int = 1,
    affinity_every: int = 10,
    refused: float = 0.01,
    dropped: float = 0.02,
    groups: int = 3,
    level: float = 0.93,
    names: Sequence[str] | None = None,
    config: dict[str, Any] | None = None,
    ending: str | None = "rounds",
) -> Iterator[Event]:
    """The events of one run, in order. `ending` is a reason of `result`, a kind of `error`, or None for neither."""
    rng = np.random.default_rng(seed)
    measure = "loss" if classes is None else "accuracy"
    group = rng.integers(0, groups, clients)
    sizes = np.maximum(4, rng.lognormal(3.6, 0.7, clients)).astype(int)
    skill = np.clip(rng.normal(level, 0.05, clients) - 0.16 * (rng.random(clients) < 0.12), 0.2, 0.995)
    speed = rng.lognormal(0, 0.35, clients)
    gain = rng.normal(0.03, 0.045, clients)
    bytes_each = 38_480
    now = BEGINNING

    def event(kind: str, /, **fields: Any) -> Event:
        return {"event": kind, "time": round(now, 3), **fields}

    settings: dict[str, Any] = {
        "method": method,
        "data": "digits",
        "partition": "dirichlet:0.3",
        "clients": clients,
        "cohort": cohort,
        "rounds": planned or rounds,
        "model": "mlp",
        "lr": 0.1,
        "epochs": 2,
        "batch_size": 32,
        "seed": seed,
        "engine": "auto",
        "eval_every": eval_every,
        **(config or {}),
    }
    yield event(
        "start",
        schema=1,
        run=name,
        method=method,
        data="digits",
        partition="dirichlet:0.3",
        model="mlp",
        seed=seed,
        rounds=planned or rounds,
        cohort=cohort,
        clients=clients,
        parameters=9_610,
        classes=classes,
        measure=measure,
        personalised=personalised,
        target="accuracy:0.95" if classes else None,
        device="cpu",
        engine="auto",
        config=settings,
        versions={"atoll": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "numpy": "2.4.6"},
        command=f"atoll run --set method={method} --set rounds={planned or rounds}",
        commit="849af27",
    )
    named = list(names) if names is not None else [f"client {k}" for k in range(clients)]
    few = clients <= 10_000
    yield event(
        "partition",
        names=named if few else None,
        sizes=sizes.tolist() if few else None,
        judged=list(range(clients)),
        report=_report(rng, clients, classes, sizes, group, groups, named),
    )
    participations = np.zeros(clients)
    for number in range(1, rounds + 1):
        chosen = np.sort(rng.choice(clients, cohort, replace=False))
        yield event("begin", round=number, cohort=chosen.tolist())
        if number == 1:
            yield event(
                "engine",
                round=1,
                name="batched",
                workers=1,
                text="batched (10 at a time), 3.1 times the loop",
            )
        slow = chosen[rng.random(cohort) < dropped]
        bad = [int(k) for k in chosen if rng.random() < refused and k not in slow]
        progress = 1 - np.exp(-number / (8 + 2 * groups))
        start = rng.uniform(0, 0.01, cohort)
        work = 0.02 * speed[chosen] * sizes[chosen] / sizes.mean() + 0.004
        seconds = float((start + work).max()) + 0.003
        now += seconds + 0.02
        participations[chosen] += 1
        evaluation = None
        if number % eval_every == 0 or number == rounds:
            ours = np.clip(skill * (0.15 + 0.85 * progress) + rng.normal(0, 0.012, clients), 0.02, 1)
            own = np.clip(ours + gain * np.minimum(1, participations / 3), 0.02, 1)
            values = {"clients": {"accuracy": ours, "loss": -np.log(ours)}}
            if personalised:
                values["personal"] = {"accuracy": own, "loss": -np.log(own)}
            if classes is None:
                values = {kind: {"loss": found["loss"]} for kind, found in values.items()}
            spreads = {
                kind: {m: spread(v, sizes) for m, v in found.items()} for kind, found in values.items()
            }
            overall = {m: spreads["clients"][m]["pooled"] for m in values["clients"]}
            evaluation = {
                "overall": overall,
                "clients": spreads["clients"],
                "personal": spreads.get("personal", {}),
                "each": {kind: {m: _list(v) for m, v in found.items()} for kind, found in values.items()},
            }
        yield event(
            "round",
            round=number,
            cohort=chosen.tolist(),
            dropped=[int(k) for k in slow],
            refused={str(k): "the update is not finite (0.weight)" for k in bad},
            loss=float(2.2 * (1 - progress) + 0.12 + rng.normal(0, 0.015)),
            bytes_up=bytes_each * (cohort - len(slow)),
            bytes_down=bytes_each * cohort,
            seconds=round(seconds, 6),
            clients={
                "loss": _list(np.abs(2.2 * (1 - progress) + 0.1 + rng.normal(0, 0.1, cohort))),
                "samples": sizes[chosen].tolist(),
                "norm": _list(np.abs((1.4 - progress) * rng.lognormal(0, 0.25, cohort)) + 0.05),
                "cosine": _list(
                    np.clip(
                        0.75 - 0.45 * progress + 0.08 * (group[chosen] - 1) + rng.normal(0, 0.08, cohort),
                        -1,
                        1,
                    )
                ),
                "start": _list(start),
                "end": _list(start + work),
            },
            evaluation=evaluation,
        )
        if affinity_every and number % affinity_every == 0:
            some = np.arange(min(clients, 60))
            alike = 0.15 + 0.5 * (group[some][:, None] == group[some][None, :])
            matrix = np.clip(alike + rng.normal(0, 0.07, alike.shape), -1, 1)
            matrix = (matrix + matrix.T) / 2
            np.fill_diagonal(matrix, 1)
            rows = [_list(row, 3) for row in matrix]
            yield event("affinity", round=number, of="update cosine", clients=some.tolist(), matrix=rows)
            yield event("checkpoint", round=number, path=f"checkpoints/round-{number:05d}")
    if ending in ("rounds", "target", "stopped"):
        now += 0.05
        yield event("result", reason=ending, method=method, rounds=rounds, seconds=round(now - BEGINNING, 3))
    elif ending:
        yield event(
            "error",
            kind=ending,
            message=f"interrupted after round {rounds}"
            if ending == "Interrupted"
            else "the model left the numbers",
            hint=None,
            exit_code=130 if ending == "Interrupted" else 6,
            round=rounds,
        )


def _report(
    rng: np.random.Generator,
    clients: int,
    classes: int | None,
    sizes: np.ndarray[Any, Any],
    group: np.ndarray[Any, Any],
    groups: int,
    names: list[str],
) -> dict[str, Any]:
    shown = np.unique(np.linspace(0, clients - 1, min(200, clients)).astype(int))
    found: dict[str, Any] = {
        "names": [names[k] for k in shown],
        "sizes": sizes[shown].tolist(),
        "counts": None,
        "emd": None,
        "js": None,
        "effective": None,
        "gini": float(np.abs(np.subtract.outer(sizes[shown], sizes[shown])).mean() / 2 / sizes[shown].mean()),
        "population": clients,
    }
    if classes is not None:
        prior = np.full((groups, classes), 0.25)
        for number in range(groups):
            prior[number, number::groups] = 1.5
        share = np.stack([rng.dirichlet(prior[group[k]]) for k in shown])
        counts = np.stack([rng.multinomial(sizes[k], p) for k, p in zip(shown, share, strict=True)])
        share = counts / counts.sum(1, keepdims=True)
        whole = counts.sum(0) / counts.sum()
        entropy = -(share * np.log(np.where(share > 0, share, 1))).sum(1)
        found["counts"] = counts.tolist()
        found["emd"] = _list(np.abs(share - whole).sum(1), 4)
        found["js"] = _list(np.abs(share - whole).sum(1) / 2.5, 4)
        found["effective"] = _list(np.exp(entropy), 4)
    return found


def write(folder: Path, events: Iterator[Event] | Sequence[Event]) -> Path:
    """A run folder with these events; returns its events.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "events.jsonl"
    with open(file, "wb") as out:
        for event in events:
            out.write(encode(event))
    return file
