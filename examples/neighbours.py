"""Phones in a ring: what do people learn from each other where there is no server?

Shows: sixteen phones with digits of a few classes each, that train by themselves, with the two beside them in a ring,
with four on an exponential graph, and with a server. How fast a graph mixes is told before; how far models are apart
is measured. Two phones may lie: `--liars 2` has them send five times the opposite of what they learned, and neighbours
that clip what they hear go on. Figures are of the others.

Data: handwritten digits (in the package).

Out: the accuracy of each phone's own model on its own digits, the distance between models, megabytes between phones,
and a picture of both over rounds.

    python examples/neighbours.py [--rounds 40] [--liars 0] [--out .]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import atoll
from atoll.topology import figures, topology

PHONES = 16


@dataclass(frozen=True, kw_only=True)
class Liars(atoll.DPSGD):
    """D-PSGD in which the first few learn nothing, and send start - 5 (trained - start) to their neighbours."""

    liars: int = 0

    def update(self, state: atoll.Record, replies: atoll.Replies) -> atoll.Record:
        for at, peer in enumerate(replies.clients):
            if peer < self.liars:
                reply = replies.each[at]
                start = self.broadcast(state, [peer]).received(peer).params
                lie = start - (reply.values.params - start) * 5.0
                replies.each[at] = reply._replace(values=reply.values.replace(params=lie))
        new = super().update(state, replies)
        models = new.peers.model.clone()
        models[: self.liars] = state.peers.model[: self.liars]
        return new.replace(peers=new.peers.replace(model=models))


def honest(found: atoll.Evaluation, liars: int) -> list[float]:
    """The accuracy of each phone's own model, of those that do not lie."""
    each = (found.each.get("personal") or found.each["clients"])["accuracy"]
    return [value for phone, value in each.items() if phone >= liars]


def play(
    name: str, method: atoll.Method, data: atoll.FederatedData, rounds: int, liars: int
) -> atoll.Run | None:
    """One way to learn, and a line about it; None where it comes to nothing."""
    made = atoll.Federation(lambda: atoll.models.mlp(64, 32, 10), data, method, rounds=rounds)
    try:
        run = made.fit(progress=False)
    except atoll.DivergedError:
        print(f"{name:22} diverged in round {made.number + 1}")
        return None
    last = run.evaluation
    assert last is not None
    own, sent = honest(last, liars), sum(each.bytes_up for each in run.rounds) / 1e6
    apart = "" if last.consensus is None else f"{last.consensus:.3f}"
    print(f"{name:22} {100 * sum(own) / len(own):5.1f} % {100 * min(own):6.1f} % {apart:>8} {sent:8.2f} MB")
    return run


def picture(runs: dict[str, atoll.Run], liars: int, path: Path) -> None:
    """Accuracy and distance over rounds."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.5))
    for name, run in runs.items():
        found = [(each.number, each.evaluation) for each in run.rounds if each.evaluation]
        shown = [honest(each, liars) for _, each in found]
        (line,) = left.plot([at for at, _ in found], [100 * sum(own) / len(own) for own in shown], label=name)
        if found[-1][1].consensus is not None:
            right.plot([at for at, _ in found], [each.consensus for _, each in found], color=line.get_color())
    left.set(xlabel="round", ylabel="accuracy of phones' own models, %")
    right.set(xlabel="round", ylabel="distance to the mean model")
    left.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--liars", type=int, default=0)
    parser.add_argument("--out", default=".")
    given = parser.parse_args(arguments)
    for text in ("ring", "exponential"):
        known = figures(topology(text, PHONES))
        print(f"{text}: {known.degree} neighbours, models come {known.gap:.0%} closer in a round at least")
    data = atoll.data.load("digits").partition("dirichlet:0.5", clients=PHONES, seed=0)
    print("\nhow                   own model   worst    apart    sent")
    ways: dict[str, atoll.Method] = {
        "alone": atoll.Local(batch_size=10),
        "ring": Liars(topology="ring", liars=given.liars, batch_size=10),
        "exponential": Liars(topology="exponential", liars=given.liars, batch_size=10),
        "a server": atoll.FedAvg(batch_size=10),
    }
    if given.liars:
        clipped = Liars(topology="exponential", liars=given.liars, mixing="clipped:1", batch_size=10)
        ways = {**ways, "exponential, clipped": clipped}
    played = {name: play(name, method, data, given.rounds, given.liars) for name, method in ways.items()}
    runs = {name: run for name, run in played.items() if run is not None}
    path = Path(given.out) / "neighbours.png"
    picture(runs, given.liars, path)
    print(path)


if __name__ == "__main__":
    main()
