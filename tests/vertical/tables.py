"""Small tables of two parties, of which some rows are common."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from atoll.vertical.party import Party

HEADER = {"guest": ("a0", "a1"), "host": ("b0", "b1", "b2")}


def parties(count: int = 240, seed: int = 3) -> dict[str, Party]:
    """A guest with two columns and a label, a host with three; 200 of 240 rows are common."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 5))
    y = (x @ np.array([1.0, -1.0, 2.0, 0.5, 0.0]) + 0.3 * rng.standard_normal(count) > 0).astype(np.float64)
    ids = np.array([f"row {at}" for at in range(count)])
    guest, host = rng.permutation(count)[: count - 20], rng.permutation(count)[: count - 20]
    return {
        "guest": Party(ids[guest].tolist(), x[guest, :2], HEADER["guest"], y[guest], ("no", "yes")),
        "host": Party(ids[host].tolist(), x[host, 2:], HEADER["host"]),
    }


def written(place: Path, protocol: str = "glm", ports: dict[str, int] | None = None, **given: object) -> Path:
    """The tables as files, and a run's file beside them."""
    for name, party in parties().items():
        label = name == "guest"
        lines = [",".join(["id", *(["y"] if label else []), *party.columns])]
        for at, row in enumerate(party.x):
            lines.append(",".join([party.ids[at], *([str(party.labels[int(party.y[at])])] if label else []),  # type: ignore[index]
                                   *(repr(float(value)) for value in row)]))  # fmt: skip
        (place / f"{name}.csv").write_text("\n".join(lines) + "\n")
    names = ["guest", "host", *(["arbiter"] if protocol == "glm" else [])]
    lines = [f'protocol = "{protocol}"', 'crypto = "none"', "timeout = 30.0"]
    for name in names:
        lines += [f"[party.{name}]"] + ([f'data = "{place / name}.csv"'] if name != "arbiter" else [])
        lines += [f'address = "127.0.0.1:{ports[name]}"'] if ports else []
    lines += [f"[{protocol}]", *(f"{key} = {value}" for key, value in given.items())]
    file = place / "run.toml"
    file.write_text("\n".join(lines) + "\n")
    return file
