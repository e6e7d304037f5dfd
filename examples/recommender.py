"""A federated recommender: the items' factors are shared, each user's taste stays with the user.

Shows: matrix factorisation, rating = mean + item bias + user bias + item factors . user factors, where every user is a
client. A user's vector and bias are private (a method of a few lines: `PrivateUsers`), so that only item factors
travel. It is compared with means, with users who train alone, with everything averaged (FedAvg: one "average user"),
and with the bar: the same model trained centrally, on all ratings in one place.

Data: by default made on the spot: 150 users, 120 items, noisy low-rank ratings from 1 to 5, few active users and many
occasional ones. Your own: `--ratings FILE.csv` with the columns user, item, rating; users need 5 ratings or more.

Privacy: ratings and user vectors never leave a client, but this example has no secure aggregation and adds no noise.
The server sees which rows of the item table a client's update moves, that is, which items this user rated, and could
infer more from how they move.

Out: a table of RMSE on held-out ratings, a quarter of each user's, and `recommender.png`: RMSE over rounds.

    python examples/recommender.py [--ratings FILE.csv] [--rounds 50] [--seed 0] [--out DIR]
"""

from __future__ import annotations

import argparse
import csv
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import atoll

try:
    from matplotlib.figure import Figure
except ImportError:
    sys.exit(str(atoll.MissingExtraError("matplotlib", "plots", "drawing the picture")))

FACTORS = 4
LEAST = 5
COLOURS = {"Local": "#999999", "FedAvg": "#E69F00", "federated factors": "#0072B2"}


class Ratings(nn.Module):
    """Item ids [b] to predicted ratings [b], for one user."""

    def __init__(self, items: int, mean: float) -> None:
        super().__init__()
        self.mean = mean
        self.item = nn.Embedding(items, FACTORS)
        self.item_bias = nn.Embedding(items, 1)
        self.user = nn.Parameter(0.1 * torch.randn(FACTORS))
        self.user_bias = nn.Parameter(torch.zeros(1))
        nn.init.normal_(self.item.weight, std=0.3)
        nn.init.zeros_(self.item_bias.weight)

    def forward(self, items: Tensor) -> Tensor:
        return self.mean + self.item_bias(items)[:, 0] + self.user_bias + self.item(items) @ self.user


@dataclass(frozen=True, kw_only=True)
class PrivateUsers(atoll.PartlyShared):
    """Average what belongs to items; what belongs to the user never leaves the client.

    An item's row moves only at the users who rated it, but the mean is over all: `server_lr` makes up for that.
    """

    server_lr: float = 8.0

    def private(self, task: atoll.Task) -> frozenset[str]:
        return frozenset({"user", "user_bias"})

    def update(self, state: atoll.Record, replies: atoll.Replies) -> atoll.Record:
        mean = replies.mean.replace(update=replies.mean.update * self.server_lr)
        return super().update(state, replace(replies, mean=mean))


def made(seed: int, users: int = 150, items: int = 120) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """user -> (item numbers, ratings): tastes of rank 3 and noise; few users rate much, few items are rated often."""
    rng = np.random.default_rng(seed)
    taste, kind = rng.normal(size=(users, 3)), rng.normal(size=(items, 3))
    mild, good = rng.normal(0, 0.3, users), rng.normal(0, 0.5, items)
    popular = np.arange(1, items + 1) ** -0.6
    counts = np.clip(10 + 14 * rng.pareto(1.3, users), 10, 90).astype(int)
    ratings = {}
    for user, count in enumerate(counts):
        rated = rng.choice(items, count, replace=False, p=popular / popular.sum())
        liked = 3.4 + mild[user] + good[rated] + 0.5 * kind[rated] @ taste[user] + rng.normal(0, 0.4, count)
        ratings[str(user)] = rated, np.clip(np.round(2 * liked) / 2, 1, 5)
    return ratings


def read(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The same from a file with the columns user, item, rating.  Raises DataError that names the line."""
    with path.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        missing = {"user", "item", "rating"} - set(reader.fieldnames or ())
        if missing:
            raise atoll.DataError(
                f"{path}: no column {', '.join(sorted(missing))}", hint="needed: user,item,rating"
            )
        numbers: dict[str, int] = {}
        found: dict[str, dict[int, float]] = {}
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            try:
                rating = float(row["rating"])
            except (TypeError, ValueError):
                raise atoll.DataError(f"{where}: rating {row['rating']!r} is no number") from None
            if not np.isfinite(rating) or not row["user"] or not row["item"]:
                raise atoll.DataError(f"{where}: an empty user or item, or a rating that is not finite")
            own = found.setdefault(row["user"], {})
            if own.setdefault(numbers.setdefault(row["item"], len(numbers)), rating) != rating:
                raise atoll.DataError(
                    f"{where}: user {row['user']} rated item {row['item']} twice, and differently"
                )
    kept = {user: own for user, own in found.items() if len(own) >= LEAST}
    if len(kept) < 2:
        raise atoll.DataError(
            f"{path}: {len(kept)} users with {LEAST} ratings or more", hint="two are needed"
        )
    return {user: (np.array(list(own)), np.array(list(own.values()))) for user, own in kept.items()}


def pooled(data: atoll.FederatedData, split: str) -> tuple[Tensor, Tensor, Tensor]:
    """(user, item, rating) of everybody in one place, for the baselines."""
    parts = [data.samples(client, split) for client in range(len(data))]
    users = torch.cat([torch.full((part.count,), client) for client, part in enumerate(parts)])
    return users, torch.cat([part.inputs for part in parts]), torch.cat([part.targets for part in parts])


def rmse(predicted: Tensor, wanted: Tensor) -> float:
    return float((predicted - wanted).square().mean().sqrt())


def baselines(data: atoll.FederatedData, items: int, mean: float, seed: int) -> dict[str, float]:
    """RMSE of means, and of matrix factorisation on all ratings in one place."""
    users, rated, wanted = pooled(data, "train")
    to_users, to_items, truth = pooled(data, "test")
    counts = torch.bincount(rated, minlength=items)
    sums = torch.bincount(rated, wanted - mean, minlength=items)
    item_mean = mean + sums / counts.clamp(min=1)

    torch.manual_seed(seed)
    tables = [nn.Embedding(len(data), FACTORS), nn.Embedding(items, FACTORS)]
    biases = [nn.Embedding(len(data), 1), nn.Embedding(items, 1)]
    for table, spread in zip(tables + biases, (0.1, 0.3, 0, 0), strict=True):
        nn.init.normal_(table.weight, std=spread)
    optimizer = torch.optim.Adam([table.weight for table in tables + biases], lr=0.02)

    def predict(u: Tensor, i: Tensor) -> tuple[Tensor, Tensor]:
        parts = [tables[0](u), tables[1](i), biases[0](u), biases[1](i)]
        rating = mean + (parts[0] * parts[1]).sum(1) + parts[2][:, 0] + parts[3][:, 0]
        return rating, sum(part.square().sum(1).mean() for part in parts)

    for _ in range(200):
        rating, size = predict(users, rated)
        optimizer.zero_grad()
        ((rating - wanted).square().mean() + 0.05 * size).backward()
        optimizer.step()
    with torch.no_grad():
        central = rmse(predict(to_users, to_items)[0], truth)
    return {
        "global mean": rmse(torch.full_like(truth, mean), truth),
        "item mean": rmse(item_mean[to_items], truth),
        "centralised": central,
    }


def curve(
    data: atoll.FederatedData, items: int, mean: float, method: atoll.Method, options: argparse.Namespace
):
    """[(round, RMSE)] over all held-out ratings, each user with the model this user would use."""
    run = atoll.Federation(
        lambda: Ratings(items, mean), data, method, rounds=options.rounds, cohort=len(data), loss="mse",
        eval_every=max(1, options.rounds // 25), engine="batched", workers=1, seed=options.seed,
    ).fit()  # fmt: skip
    return [(r.number, r.evaluation.own["loss"].pooled ** 0.5) for r in run.rounds if r.evaluation]


def draw(curves: dict[str, list[tuple[int, float]]], fixed: dict[str, float], path: Path) -> None:
    figure = Figure(figsize=(7.6, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for name, points in curves.items():
        axes.plot(
            *zip(*points, strict=True),
            color=COLOURS[name],
            linewidth=2.2,
            label=f"{name} {points[-1][1]:.2f}",
        )
    for name, style in (("item mean", ":"), ("centralised", "--")):
        axes.axhline(
            fixed[name], color="black", linestyle=style, linewidth=1.2, label=f"{name} {fixed[name]:.2f}"
        )
    axes.set_xlabel("round")
    axes.set_ylabel("RMSE on held-out ratings (lower is better)")
    axes.grid(axis="y", color="#e3e3e3")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
    ours, bar, start = curves["federated factors"][-1][1], fixed["centralised"], fixed["item mean"]
    share = 100 * (start - ours) / (start - bar) if start > bar else float("nan")
    title = f"Shared items and private tastes close {share:.0f} % of the gap to pooled ratings"
    figure.suptitle(
        title if share > 0 else "Shared items and private tastes do not beat the item mean", weight="bold"
    )
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--ratings", type=Path, help="a csv file with columns user, item, rating (default: made)"
    )
    parser.add_argument("--rounds", type=int, default=50, help="rounds of every method (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="everything random follows from it")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the picture (default: here)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    ratings = read(options.ratings) if options.ratings else made(options.seed)
    items = 1 + max(int(rated.max()) for rated, _ in ratings.values())
    clients = {
        user: (torch.from_numpy(rated), torch.from_numpy(given).float())
        for user, (rated, given) in ratings.items()
    }
    wanted = {"classes": "regression", "test": 0.25, "seed": options.seed}  # stars may be whole numbers
    data = atoll.data.from_clients(clients, name="ratings", **wanted)
    mean = float(pooled(data, "train")[2].mean())
    print(f"{len(data)} users, {items} items, {sum(len(rated) for rated, _ in ratings.values())} ratings\n")

    fixed = baselines(data, items, mean, options.seed)
    common = {"lr": 0.1, "epochs": 4, "batch_size": 16, "weight_decay": 0.002}
    methods = {
        "Local": atoll.Local(**common), "FedAvg": atoll.FedAvg(**common), "federated factors": PrivateUsers(**common)
    }  # fmt: skip
    curves = {name: curve(data, items, mean, method, options) for name, method in methods.items()}
    last = {name: points[-1][1] for name, points in curves.items()}
    rows = {"global mean": fixed["global mean"], "item mean": fixed["item mean"], **last}
    for name, value in {**rows, "centralised": fixed["centralised"]}.items():
        print(f"{name:20}RMSE {value:.3f}")
    path = options.out / "recommender.png"
    draw(curves, fixed, path)
    print(f"\n{path}")


if __name__ == "__main__":
    try:
        main()
    except (atoll.AtollError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))
