"""How unevenly data is divided: counts, distances to the whole, inequality of sizes, and pictures of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .samples import IntArray

if TYPE_CHECKING:
    from .federated import FederatedData

__all__ = ["PartitionReport", "measure"]

FloatArray = NDArray[np.float64]
_SHADES = " ·░▒▓█"
_SHOWN = 16
_WIDE = 72


@dataclass(frozen=True, eq=False)
class PartitionReport:
    """The shape of a partition, from the training data of the clients that were looked at.

    Attributes:
        dataset, partition: what was divided and how.
        population: how many clients there are; `names` may hold fewer for a lazy population.
        sizes: training samples per client.
        counts: (clients, classes) how often each class occurs; None for a regression. Where a sample has a
            sequence of targets, each of them counts.
        emd: per client, the sum over classes of |client share - overall share|: 0 is alike, 2 is disjoint
            (the distance of Zhao et al., 2018, "Federated Learning with Non-IID Data").
        js: per client, the Jensen-Shannon divergence to the overall distribution in bits, 0 to 1.
        effective: per client, the effective number of classes, exp(entropy).
        gini: inequality of the sizes, 0 (equal) to 1.
    """

    dataset: str
    partition: str
    population: int
    names: Sequence[str]
    sizes: IntArray
    counts: IntArray | None
    emd: FloatArray | None
    js: FloatArray | None
    effective: FloatArray | None
    gini: float

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain lists and numbers, ready for JSON."""
        result: dict[str, Any] = {
            "dataset": self.dataset,
            "partition": self.partition,
            "population": self.population,
            "names": list(self.names),
            "gini": self.gini,
        }
        for name in ("sizes", "counts", "emd", "js", "effective"):
            value = getattr(self, name)
            result[name] = None if value is None else value.tolist()
        return result

    def summary(self) -> list[tuple[str, str]]:
        """The figures worth reading first, as (name, text)."""
        low, middle, high = np.percentile(self.sizes, [0, 50, 100])
        looked = "" if len(self.names) == self.population else f" ({len(self.names):,} looked at)"
        rows = [
            ("clients", f"{self.population:,}{looked}"),
            ("samples", f"{int(self.sizes.sum()):,}"),
            ("size", f"min {low:,.0f}, median {middle:,.0f}, max {high:,.0f}, Gini {self.gini:.2f}"),
        ]
        if self.counts is not None and self.emd is not None and self.js is not None:
            assert self.effective is not None
            rows += [
                ("EMD", f"mean {self.emd.mean():.2f}, max {self.emd.max():.2f}   (0 alike ... 2 disjoint)"),
                ("JS", f"mean {self.js.mean():.2f}, max {self.js.max():.2f} bits"),
                (
                    "classes",
                    f"{np.median(self.effective):.1f} effective in the median client, "
                    f"of {self.counts.shape[1]}",
                ),
            ]
        return rows

    def __str__(self) -> str:
        lines = [f"{self.dataset}, {self.partition}"]
        lines += [f"  {name:<8} {text}" for name, text in self.summary()]
        shown = np.unique(np.linspace(0, len(self.names) - 1, min(_SHOWN, len(self.names))).astype(int))
        width = min(20, max(6, *(len(self.names[int(row)]) for row in shown)))
        largest = int(self.sizes.max())
        if self.counts is not None:
            lines.append(f"  {'client':<{width}} {'size':>8}  share of each class")
        else:
            lines.append(f"  {'client':<{width}} {'size':>8}")
        for row in map(int, shown):
            name = self.names[row][:width]
            if self.counts is not None:
                cells = _squeeze(self.counts[row], _WIDE)
                share = cells / max(1, cells.max())
                picture = "".join(_SHADES[int(np.ceil(value * (len(_SHADES) - 1)))] for value in share)
                picture = f"|{picture}|"
            else:
                picture = "█" * max(1, round(40 * int(self.sizes[row]) / largest))
            lines.append(f"  {name:<{width}} {int(self.sizes[row]):>8,}  {picture}")
        if len(shown) < self.population:
            lines.append(f"  ... {len(shown)} of {self.population:,} clients shown")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(name)}</th>"
            f"<td style='text-align:left'>{escape(text)}</td></tr>"
            for name, text in self.summary()
        )
        title = escape(f"{self.dataset}, {self.partition}")
        return f"<div><b>{title}</b><table>{rows}</table>{self.plot_svg()}</div>"

    def plot_svg(self, width: int = 720) -> str:
        """A picture as one self-contained SVG text: client by class, or sizes alone for a regression.

        Colour is the share of the class inside the client; the area of a bubble is how many samples there
        are. Of more than 64 clients, 64 evenly spaced ones are drawn.
        """
        from .plot import draw

        return draw(self, width)


def _squeeze(values: IntArray, width: int) -> FloatArray:
    if len(values) <= width:
        return values.astype(np.float64)
    return np.array([part.sum() for part in np.array_split(values, width)], dtype=np.float64)


def measure(data: FederatedData, clients: IntArray) -> PartitionReport:
    """The report over the clients at these positions."""
    sizes = np.array([data.size(int(client)) for client in clients], dtype=np.int64)
    counts = None
    if data.classes is not None:
        counts = np.zeros((len(clients), data.classes), dtype=np.int64)
        pool = data.pool()
        targets = None if pool is None else pool.targets.cpu().numpy()
        for row, client in enumerate(clients):
            rows = data.rows(int(client))
            if targets is not None and rows is not None:
                own = targets[rows]
            else:
                samples = data.samples(int(client))
                assert samples is not None
                own = samples.targets.cpu().numpy()
            counts[row] = np.bincount(own[own >= 0].reshape(-1), minlength=data.classes)
    names = [data.names[int(client)] for client in clients]
    emd = js = effective = None
    if counts is not None:
        emd, js, effective = _distances(counts)
    return PartitionReport(
        data.dataset, data.partition, len(data), names, sizes, counts, emd, js, effective, _gini(sizes)
    )


def _distances(counts: IntArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    share = counts / counts.sum(1, keepdims=True)
    whole = counts.sum(0) / counts.sum()
    middle = (share + whole) / 2

    def entropy(p: FloatArray) -> FloatArray:
        result: FloatArray = -(p * np.log(np.where(p > 0, p, 1.0))).sum(-1)
        return result

    js = np.clip((entropy(middle) - (entropy(share) + entropy(whole)) / 2) / np.log(2), 0.0, 1.0)
    return np.abs(share - whole).sum(1), js, np.exp(entropy(share))


def _gini(sizes: IntArray) -> float:
    ordered = np.sort(sizes).astype(np.float64)
    n = len(ordered)
    return float((2 * np.arange(1, n + 1) - n - 1) @ ordered / (n * ordered.sum()))
