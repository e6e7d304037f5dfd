"""A bank and a shop that know different things about the same people: one model that neither could train alone.

The bank has who they are, what they owed, and who did not pay; the shop how they paid in six months. Each lacks a tenth
of the customers. Rows are found by private set intersection; gradients of boosted trees travel under Okamoto-Uchiyama.
"""

from __future__ import annotations

import lzma
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

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


def learn(settings: Mapping[str, Any], rows: int) -> tuple[Fitted, Fitted, str]:
    """The bank alone, and both under encryption; what came of it in words."""
    both = tables(rows)
    nothing = replace(both["host"], x=both["host"].x[:, :0], columns=())
    alone = fit({"guest": both["guest"], "host": nothing}, "secureboost", crypto="none", **settings)
    open_ = fit(both, "secureboost", crypto="none", **settings)
    sealed = fit(both, "secureboost", crypto="ou", **settings)
    lines = [
        f"{sealed.figures['common']:,} customers in common, of {len(both['guest']):,} and {len(both['host']):,}"
    ]
    for name, run in (("bank alone", alone), ("bank and shop", sealed)):
        lines.append(f"{name:14} AUC {run.figures['auc']:.4f}, KS {run.figures['test']['ks']:.3f}")
    same = all(str(sealed.halves[name].model) == str(open_.halves[name].model) for name in ("guest", "host"))
    sent = sum(sealed.figures["bytes"].values()) / 1e6
    lines.append(
        f"the same model as without encryption: {same}; {sealed.figures['ciphertexts']:,} ciphertexts, {sent:.1f} MB"
    )
    ids, score = sealed.predict_proba(both)
    lines.append(f"customer {ids[0]}: {score[0, 1]:.1%} likely to default")
    return alone, sealed, "\n".join(lines)
