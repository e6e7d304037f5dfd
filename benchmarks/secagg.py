"""What secure aggregation costs: processor seconds of a client and of the server, and bytes, for 10 to 1,000 clients.

    python benchmarks/secagg.py [--only 0,3] [--write]

Every message of every client is real. Masking is, too, for three clients of a row, which are timed; of the others the
masks that do not cancel are put on in one go, since a thousand clients would not wait for one processor. The sum that
the server finds is compared with the sum of what went in. `--write` stores benchmarks/results/secagg.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from atoll.channel.secagg import Client, Encoding, Floors, MarksInMemory, Server, Terms, keys, masks, pack
from atoll.channel.secagg.messages import Masked

RESULTS = Path(__file__).parent / "results" / "secagg"
BEACON = sha256(b"benchmark").digest()
TIMED = 3


@dataclass(frozen=True)
class Row:
    """A cohort. `active`: with the consistency check, which needs more than two thirds of the holders."""

    n: int
    degree: int
    threshold: int
    d: int
    lost: int
    active: bool = False


ROWS = (
    Row(10, 9, 7, 1_000_000, 1, active=True),
    Row(50, 20, 14, 1_000_000, 5),
    Row(100, 99, 67, 1_000_000, 10, active=True),
    Row(100, 30, 21, 1_000_000, 10, active=True),
    Row(100, 30, 21, 10_000_000, 10, active=True),
    Row(500, 50, 34, 1_000_000, 25),
    Row(1000, 60, 41, 1_000_000, 50, active=True),
    Row(1000, 34, 18, 1_000_000, 50),
)


class Ledger:
    """Stands in for `masks.apply`, and keeps which masks are left when those of pairs have cancelled."""

    def __init__(self) -> None:
        self.plus: set[bytes] = set()
        self.minus: set[bytes] = set()

    def apply(self, total: Any, plus: Iterable[bytes] = (), minus: Iterable[bytes] = ()) -> None:
        for seeds, these, others in ((plus, self.plus, self.minus), (minus, self.minus, self.plus)):
            for seed in seeds:
                if seed in others:
                    others.remove(seed)
                else:
                    these.add(seed)


def spent(call: Any, *arguments: Any) -> tuple[float, Any]:
    start = time.process_time()
    found = call(*arguments)
    return time.process_time() - start, found


def measure(row: Row) -> dict[str, Any]:
    """Processor seconds (medians over clients) and bytes of one attempt."""
    nodes = tuple(f"{k:06d}" for k in range(row.n))
    identities = {node: Ed25519PrivateKey.generate() for node in nodes}
    known = {node: key.public_key().public_bytes_raw() for node, key in identities.items()}
    encoding = Encoding(row.d, clip=0.1, bits=16, levels=1)
    terms = Terms(
        "benchmark", 0, 0, nodes, row.degree, row.threshold, encoding, b"", row.active,
        b"" if row.degree == row.n - 1 else BEACON,
    )  # fmt: skip
    update = np.random.default_rng(0).normal(0, 0.01, row.d).astype(np.float32)
    rng = np.random.Generator(np.random.Philox(0))
    encoding.encode(update, 1.0, rng)
    encode, values = spent(encoding.encode, update, 1.0, rng)
    floors = Floors(active=row.active)
    clients = {
        node: Client(node, identities[node].sign, known, floors, MarksInMemory(), b"", BEACON)
        for node in nodes
    }
    server = Server(terms, known)
    lost = set(nodes[TIMED :: (row.n - TIMED) // row.lost][: row.lost])
    kept = [node for node in nodes if node not in lost]
    seconds: dict[str, list[float]] = {}
    size: dict[str, int] = {}
    in_server: dict[str, float] = {}
    messages: dict[str, Any] = dict.fromkeys(nodes, server.open())
    ledger, real = Ledger(), masks.apply
    for node in nodes:
        clients[node].contribute(values)
    while stage := server.stage:
        for place, node in enumerate(nodes if stage in ("keys", "shares") else kept):
            timed = stage != "masked" or place < TIMED
            if not timed:
                masks.apply = ledger.apply
            took, answer = spent(clients[node].receive, messages[node])
            masks.apply = real
            if timed:
                seconds.setdefault(stage, []).append(took)
            if stage == "masked" and node == kept[-1]:
                rest = np.frombuffer(answer.values, dtype="<u4").copy()
                masks.apply(rest, ledger.plus, ledger.minus)
                answer = Masked(terms.sid, rest.tobytes())
            size[stage] = len(pack(answer))
            in_server[stage] = in_server.get(stage, 0.0) + spent(server.deliver, node, answer)[0]
        took, messages = spent(server.close)
        if stage != "unmask":
            in_server[stage] += took
    self_masks = np.zeros(row.d + 1, np.uint32)
    seeds = [sha256(node.encode()).digest() for node in kept]
    selfs, _ = spent(masks.apply, self_masks, (), seeds)
    expected = values.astype(np.uint64) * len(kept)
    assert np.array_equal(server.total.sums, expected), "the sum is wrong"
    middle = {stage: statistics.median(each) for stage, each in seconds.items()}
    return {
        **asdict(row),
        "client_encode": encode,
        "client_keys": middle["keys"],
        "client_share": middle["shares"],
        "client_mask": middle["masked"],
        "client_unmask": middle["unmask"] + middle.get("consistency", 0.0),
        "bytes_keys": size["keys"],
        "bytes_shares": size["shares"],
        "bytes_vector": size["masked"],
        "bytes_unmask": size["unmask"] + size.get("consistency", 0),
        "server_messages": sum(in_server.values()),
        "server_unmask": took,
        "server_self_masks": selfs,
        "server_pairs": took - selfs,
    }


COLUMNS = (
    ("client: share", lambda r: f"{1e3 * r['client_share']:.1f} ms"),
    ("client: encode", lambda r: f"{1e3 * r['client_encode']:.1f} ms"),
    ("client: mask", lambda r: f"{1e3 * r['client_mask']:.0f} ms"),
    ("client: unmask", lambda r: f"{1e3 * r['client_unmask']:.1f} ms"),
    ("shares up", lambda r: f"{r['bytes_shares'] / 1e3:.1f} kB"),
    ("vector up", lambda r: f"{r['bytes_vector'] / 1e6:.1f} MB"),
    ("server: messages", lambda r: f"{r['server_messages']:.2f} s"),
    ("server: self masks", lambda r: f"{r['server_self_masks']:.2f} s"),
    ("server: lost pairs", lambda r: f"{r['server_pairs']:.2f} s"),
)


def table(found: list[dict[str, Any]]) -> str:
    """The rows as a table of Markdown."""
    heads = ["clients", "neighbours (threshold)", "numbers", "lost", "server", *(name for name, _ in COLUMNS)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for r in found:
        cells = [
            str(r["n"]), f"{r['degree']} ({r['threshold']})", f"{r['d'] // 1_000_000} M", str(r["lost"]),
            "active" if r["active"] else "curious", *(show(r) for _, show in COLUMNS),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def primitives() -> str:
    """What the parts cost on this processor, at this time: the rest of the table depends on them."""
    total, seeds = np.zeros(1_000_000, np.uint32), [sha256(bytes((k,))).digest() for k in range(40)]
    masks.apply(total, seeds)
    mask = min(spent(masks.apply, total, seeds)[0] for _ in range(3)) / len(seeds)
    one, other = keys.Private(b"1" * 32), keys.Private(b"2" * 32)
    agree = min(spent(one.agree, other.public)[0] for _ in range(200))
    identity = Ed25519PrivateKey.generate()
    public, signature = identity.public_key().public_bytes_raw(), identity.sign(b"")
    check = min(spent(keys.verify, public, signature, b"")[0] for _ in range(200))
    return (
        f"Beside it, alone: a mask for 1 M numbers {1e3 * mask:.2f} ms, a key agreement {1e6 * agree:.0f} us, "
        f"a signature checked {1e6 * check:.0f} us (load about {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores)."
    )


TEXT = """# What secure aggregation costs

Processor seconds of one thread, and bytes of one client's messages; clients' are medians. `python benchmarks/secagg.py`

{table}

"Server" says against which one the protocol protects: against an active one there is the consistency check, whose
signatures are counted in "unmask". "Share" checks the neighbours' signatures, "mask" opens their boxes and agrees on
keys. "Messages" is all that the server does until the last stage; "self masks" is their stream alone, and "lost pairs"
the rest of unmasking: shares put together, keys agreed on, and the masks of those lost. {primitives}
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="numbers of rows, from 0")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    chosen = [int(k) for k in given.only.split(",")] if given.only else range(len(ROWS))
    found = [measure(ROWS[k]) for k in chosen]
    parts = primitives()
    print(table(found), parts, sep="\n\n")
    if given.write:
        RESULTS.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        RESULTS.with_suffix(".md").write_text(TEXT.format(table=table(found), primitives=parts), "utf-8")


if __name__ == "__main__":
    main()
