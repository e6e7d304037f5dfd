"""A bank and a shop that know different things about the same people: one model that neither could train alone.

Shows: two tables with ids of which some are common, private set intersection, boosted trees whose gradients travel
under Okamoto-Uchiyama, what each party learns, and a model in halves.

Data: default of credit card clients (UCI; `atoll data get credit-default`), of which the bank has who they are, what
they owed, and who did not pay; the shop how they paid in six months. Each lacks a tenth of the customers.

Out: AUC of the bank alone and of both together, that the model is the same without encryption, and a picture of both
with the bytes that were sent.

    python examples/bank_and_shop.py [--rows 4000] [--trees 15] [--picture bank_and_shop.png]
"""

from __future__ import annotations

import argparse
import lzma
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from atoll.vertical import Fitted, Party, fit


def tables(rows: int) -> dict[str, Party]:
    """The two parties, from one table that nobody would have in life."""
    file = Path(os.environ.get("ATOLL_DATA", "data")) / "credit-default" / "UCI_Credit_Card.csv.xz"
    if not file.is_file():
        raise SystemExit(f"{file} is not there: atoll data get credit-default")
    with lzma.open(file, "rt") as lines:
        names = next(lines).replace('"', "").strip().split(",")
        table = np.loadtxt(lines, delimiter=",")
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(table))[:rows]
    of_shop = [name for name in names if name.startswith("PAY_")]
    of_bank = [name for name in names[1:-1] if name not in of_shop]
    found = {}
    for party, columns in (("guest", of_bank), ("host", of_shop)):
        own = table[rng.permutation(chosen)[: rows * 9 // 10]]
        frame = {"customer": own[:, 0].astype(int), **{name: own[:, names.index(name)] for name in columns}}
        if party == "guest":
            frame["defaults"] = own[:, -1].astype(int)
        found[party] = Party.read(
            frame, id="customer", label="defaults" if party == "guest" else None, name=party
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--trees", type=int, default=15)
    parser.add_argument("--picture", default="bank_and_shop.png")
    given = parser.parse_args()
    both = tables(given.rows)
    settings = {"trees": given.trees, "depth": 3, "lr": 0.3, "bins": 32}
    nothing = replace(both["host"], x=both["host"].x[:, :0], columns=())
    alone = fit({"guest": both["guest"], "host": nothing}, "secureboost", crypto="none", **settings)
    open_ = fit(both, "secureboost", crypto="none", **settings)
    sealed = fit(both, "secureboost", crypto="ou", **settings)
    print(
        f"{sealed.figures['common']:,} customers in common, of {len(both['guest']):,} and {len(both['host']):,}"
    )
    for name, run in (("bank alone", alone), ("bank and shop", sealed)):
        print(f"{name:14} AUC {run.figures['auc']:.4f}, KS {run.figures['test']['ks']:.3f}")
    same = all(str(sealed.halves[name].model) == str(open_.halves[name].model) for name in ("guest", "host"))
    print(f"the same model as without encryption: {same}; {sealed.figures['ciphertexts']:,} ciphertexts")
    ids, score = sealed.predict_proba(both)
    print(f"customer {ids[0]}: {score[0, 1]:.1%} likely to default")
    draw(alone, sealed, given.picture)
    print(given.picture)


def draw(alone: Fitted, sealed: Fitted, path: str) -> None:
    """AUC of both runs, and bytes by kind of message."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 2])
    left.bar(
        ["bank alone", "bank and shop"],
        [alone.figures["auc"], sealed.figures["auc"]],
        color=["#9aa5b1", "#0f766e"],
    )
    left.set(ylim=(0.5, 0.85), ylabel="AUC on test rows")
    kinds = sorted(((n, kind) for kind, n in sealed.figures["bytes"].items() if n > 1000), reverse=True)
    right.barh([kind for _, kind in kinds][::-1], [n / 1e6 for n, _ in kinds][::-1], color="#c2410c")
    right.set(xlabel="MB sent under encryption and around it", xscale="log")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
