"""A federated recommender in five steps: the items are shared, each user's taste stays with the user.

    python examples/recommender/run.py [--quick] [--ratings FILE.csv] [--liked 4] [--explicit] [--for USER]

Adapts the data (a list a user), takes a model whose last layer is the taste, personalises (`methods.py`), federates,
and evaluates: NDCG@10 and recall@10 over what each user does not know yet, beside guessing, the most popular items,
users alone and all ratings in one place; users who never trained apart. `docs/applications/recommender.md` goes
through it.

Data: made up (`made.py`), or your own: a csv with the columns user, item, rating. Out: a table, and recommender.png.
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path

import torch
from made import made
from torch import Tensor, nn

import atoll
from atoll.data import Ratings, from_ratings
from atoll.models import Factors
from atoll.ranking import listwise, ndcg, rated, recall
from methods import RelatedItems, SharedItems

try:
    from matplotlib.figure import Figure
except ImportError:
    sys.exit(str(atoll.MissingExtraError("matplotlib", "plots", "drawing the picture")))

RANK = 4
DECAY = 0.05
RATE = {"listwise": 1.0, "rated": 0.1}
SHARED = {"head_epochs": 5, "epochs": 1, "server_lr": 0.05, "tau": 1e-4}
COLD, ADAPT = 0.1, 3


class Study:
    """The ratings as lists, and what is measured: implicit feedback by default, explicit where ratings are learned."""

    def __init__(self, ratings: Ratings, liked: float, explicit: bool, rounds: int, seed: int) -> None:
        self.explicit, self.rounds, self.seed, self.size = explicit, rounds, seed, len(ratings.items)
        self.loss = "rated" if explicit else "listwise"
        worth = liked if explicit else None  # a rating from here on is a like; in lists of likes all are
        self.figures = {"ndcg@10": ndcg(10, worth), "recall@10": recall(10, worth)}
        least = f">={liked:g}" if explicit else ""
        self.names = {name: f"{name}{least}" for name in self.figures}
        self.metrics = ", ".join([*self.names.values(), *(["rmse"] if explicit else [])])
        # Step 1, adapt the data: a user is a client, a sample is a list.
        self.data = ratings.lists(liked=None if explicit else liked, validation=0.1, seed=seed)
        self.cold: list[int] = []
        self.common = {"lr": RATE[self.loss], "weight_decay": DECAY, "batch_size": None}

    def fit(
        self, method: atoll.Method, rounds: int, base: nn.Module | None = None, channel: str | None = None
    ) -> atoll.Run:
        """A run in which a tenth of the users never take part, and are judged after a few rounds by themselves."""
        federation = atoll.Federation(
            # Step 2, the model: from the start, or from what another run knows of the items.
            (lambda: Factors(self.size, RANK)) if base is None else (lambda: copy.deepcopy(base)),
            self.data, method, rounds=rounds, cohort=len(self.data) - self.apart, newcomers=self.apart, adapt=ADAPT,
            loss=self.loss, metrics=self.metrics, eval_every=max(1, rounds // 10), engine="batched", workers=1,
            seed=self.seed, channel=channel,
        )  # fmt: skip
        run = federation.fit(progress=False)
        self.cold = sorted(set(range(len(self.data))) - set(run.evaluation.each["personal"]["loss"]))
        return run

    @property
    def apart(self) -> int:
        """How many users never take part."""
        return max(1, round(COLD * len(self.data)))

    def judge(self, scores: Tensor) -> dict[str, float]:
        """The figures of scores [users, items], the mean over known users, and the NDCG of cold ones."""
        targets = torch.cat([self.data.samples(user, "test").targets for user in range(len(self.data))])
        warm = [user for user in range(len(self.data)) if user not in self.cold]
        found = {name: float(f(scores, targets)[warm].nanmean()) for name, f in self.figures.items()}
        found["cold"] = float(self.figures["ndcg@10"](scores, targets)[self.cold].nanmean())
        if self.explicit:
            there = targets[warm] > 0
            found["rmse"] = float((scores[warm] - targets[warm])[there].square().mean().sqrt())
        return found

    def told(self, run: atoll.Run) -> dict[str, float]:
        """The same figures of a run, and the megabytes that all users together have sent and received."""
        own, apart = run.evaluation.own, run.evaluation.newcomers
        found = {name: own[key].mean for name, key in self.names.items()}
        found |= {
            "cold": apart[self.names["ndcg@10"]].mean,
            **({"rmse": own["rmse"].pooled} if self.explicit else {}),
        }
        return found | {"MB": sum(each.bytes_up + each.bytes_down for each in run.rounds) / 1e6}


def popular(study: Study, train: Tensor) -> Tensor:
    """The same scores for everybody: how many have an item (liked it); of ratings, the mean, drawn to that of all."""
    there = (train > 0).float()
    if not study.explicit:
        return there.sum(0).expand(train.shape)
    mean = train.sum() / there.sum()
    return ((train.sum(0) + 5 * mean) / (there.sum(0) + 5)).expand(train.shape)


def centralised(study: Study, train: Tensor, cold: list[int]) -> Tensor:
    """The same model and the same objective on all lists in one place; cold users' tastes at last, items fixed."""
    torch.manual_seed(study.seed)
    items, tastes = nn.Embedding(study.size, RANK + 1), nn.Embedding(len(train), RANK + 1)
    items.weight.data.mul_(0.3)[:, -1] = 0
    tastes.weight.data.mul_(0.1)
    warm = torch.tensor([user not in cold for user in range(len(train))])
    loss = {"rated": rated, "listwise": listwise}[study.loss]

    def scores() -> Tensor:
        one, other = items.weight, tastes.weight
        return other[:, :-1] @ one[:, :-1].T + one[:, -1] + other[:, -1:]

    for parameters, who, steps in (([items, tastes], warm, 300), ([tastes], ~warm, 100)):
        optimizer = torch.optim.Adam([each.weight for each in parameters], lr=0.05)
        for _ in range(steps):
            optimizer.zero_grad()
            sizes = items.weight.square().sum() + tastes.weight[who].square().sum(1).mean()
            (loss(scores(), train)[who].mean() + DECAY / 2 * sizes).backward()
            optimizer.step()
    return scores().detach()


def compare(study: Study, channel: str | None) -> tuple[dict[str, dict[str, float]], atoll.Run]:
    """Steps 3 to 5: figures by the way of learning, and the run that shares items."""
    shared = study.fit(SharedItems(**study.common, **SHARED), study.rounds, channel=channel)
    related = study.fit(
        RelatedItems(**study.common, epochs=5, strength=0.5), max(2, study.rounds // 10), base=shared.model
    )
    alone = study.fit(atoll.Local(**study.common, epochs=5), max(2, study.rounds // 5))
    train = torch.cat([study.data.samples(user).targets for user in range(len(study.data))])
    others = train.clone()
    others[study.cold] = 0  # nobody but themselves has what cold users rated
    return {
        "guessing": study.judge(torch.zeros_like(train)),
        "popular": study.judge(popular(study, others)),
        "Local": study.told(alone),
        "shared items": study.told(shared),
        "and FEDORA": study.told(related),
        "centralised": study.judge(centralised(study, train, study.cold)),
    }, shared


def recommend(study: Study, ratings: Ratings, user: int, shared: atoll.Run) -> list[str]:
    """Ten items that a user does not know, best first: the taste is learned here, from the shared items."""
    model, known = copy.deepcopy(shared.model), study.data.samples(user)
    seen = torch.cat([study.data.samples(user, "test").targets < 0, known.targets > 0]).any(0)
    optimizer = torch.optim.SGD(model.taste.parameters(), lr=study.common["lr"], weight_decay=DECAY)
    loss = {"rated": rated, "listwise": listwise}[study.loss]
    for _ in range(ADAPT * SHARED["head_epochs"]):
        optimizer.zero_grad()
        loss(model(known.inputs), known.targets).mean().backward()
        optimizer.step()
    scores = model(known.inputs)[0].detach().masked_fill(seen, -torch.inf)
    return [ratings.items[at] for at in scores.argsort(descending=True)[:10]]


def draw(rows: dict[str, dict[str, float]], shared: atoll.Run, name: str, path: Path) -> None:
    """NDCG@10 over rounds between popularity and all ratings in one place, and of users who never trained."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    judged = [(each.number, each.evaluation.own[name].mean) for each in shared.rounds if each.evaluation]
    left.plot(*zip(*judged, strict=True), color="#0072B2", marker="o", markersize=4, label="shared items")
    for way, style in (("centralised", "--"), ("popular", ":")):
        value = rows[way]["ndcg@10"]
        left.axhline(value, color="black", linestyle=style, linewidth=1.2, label=f"{way} {value:.3f}")
    left.set_xlabel("round")
    left.set_ylabel("NDCG@10, mean over users")
    left.legend(frameon=False, loc="lower right")
    ways = list(rows)
    for key, label, colour, shift in (
        ("ndcg@10", "who trained", "#0072B2", -0.2), ("cold", "who never did", "#E69F00", 0.2)
    ):  # fmt: skip
        places = [place + shift for place in range(len(ways))]
        right.barh(places, [rows[way][key] for way in ways], height=0.38, color=colour, label=label)
    right.set_yticks(range(len(ways)), ways)
    right.invert_yaxis()
    right.set_xlabel("NDCG@10 of users")
    right.legend(frameon=False, loc="upper right")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    ours, bar, start = (rows[way]["ndcg@10"] for way in ("shared items", "centralised", "popular"))
    finding = "Shared items and private tastes do not beat the most popular items"
    if ours > start:
        finding = "Shared items and private tastes beat the most popular items"
        if bar > start and ours < bar:
            finding += f": {100 * (ours - start) / (bar - start):.0f} % of what pooling would gain"
    figure.suptitle(finding, weight="bold", fontsize=11)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer users, items and rounds")
    parser.add_argument(
        "--ratings", type=Path, help="a csv with the columns user, item, rating (default: made up)"
    )
    parser.add_argument("--liked", type=float, default=4.0, help="ratings from here on are likes (default 4)")
    parser.add_argument("--explicit", action="store_true", help="learn the ratings, and not what is liked")
    parser.add_argument("--for", dest="user", help="ten recommendations for this user, at the end")
    parser.add_argument(
        "--channel", help='what happens to shared items on their way: "int8", "clip:1 | noise:1" ...'
    )
    parser.add_argument("--rounds", type=int, help="rounds of sharing (default 60; 30 with --quick)")
    parser.add_argument("--seed", type=int, default=0, help="everything random follows from it")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the picture (default: here)")
    options = parser.parse_args()
    if options.ratings is not None:
        ratings = from_ratings(options.ratings)
    else:
        ratings = made(options.seed, *((120, 80) if options.quick else (300, 200)))
    wanted = None if options.user is None else ratings.position(options.user)
    options.out.mkdir(parents=True, exist_ok=True)

    rounds = options.rounds or (30 if options.quick else 60)
    study = Study(ratings, options.liked, options.explicit, rounds, options.seed)
    print(f"{len(ratings.users)} users, {len(ratings.items)} items, {len(ratings.user):,} ratings", end="")
    print(f"; {ratings.few} users with too few left out\n" if ratings.few else "\n")
    rows, shared = compare(study, options.channel)
    columns = [*study.names, "cold", *(["rmse"] if options.explicit else []), "MB"]
    print(f"{'':14}" + "".join(f"{column:>11}" for column in columns))
    for way, row in rows.items():
        cells = [f"{row[c]:11.1f}" if c == "MB" else f"{row[c]:11.3f}" for c in columns if c in row]
        print(f"{way:14}" + "".join(cells))
    if shared.privacy:
        print(f"\nshared items: {shared.privacy['privacy']}")
    if wanted is not None:
        print(f"\nfor {options.user}: " + ", ".join(recommend(study, ratings, wanted, shared)))
    path = options.out / "recommender.png"
    draw(rows, shared, study.names["ndcg@10"], path)
    print(f"\n{path}")


if __name__ == "__main__":
    try:
        main()
    except (atoll.AtollError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))
