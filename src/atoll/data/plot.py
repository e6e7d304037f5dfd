"""The partition report as one SVG text, drawn by hand: no plotting library, no external file."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .report import PartitionReport

__all__ = ["draw"]

_MOST = 64
_FONT = "font-family='system-ui,sans-serif' font-size='11'"


def draw(report: PartitionReport, width: int) -> str:
    """An SVG text, `width` pixels wide."""
    shown = np.unique(np.linspace(0, len(report.names) - 1, min(_MOST, len(report.names))).astype(int))
    left, top, right, bar = 110, 34, 16, 120
    height = 16
    total = top + height * len(shown) + 24
    largest = int(report.sizes.max())
    title = escape(f"{report.dataset}, {report.partition}")
    parts = [f"<text x='{left}' y='14' font-weight='bold'>{title}</text>"]
    grid = width - left - right - bar
    if report.counts is not None:
        classes = report.counts.shape[1]
        cell = grid / classes
        top_count = max(1, int(report.counts.max()))
        reach = min(cell, height) / 2 - 1
        every = max(1, int(np.ceil(classes * 18 / grid)))
        parts += [
            f"<text x='{left + (c + 0.5) * cell:.1f}' y='{top - 5}' text-anchor='middle'>{c}</text>"
            for c in range(0, classes, every)
        ]
    else:
        bar += grid
    for line, row in enumerate(map(int, shown)):
        y = top + line * height
        name = report.names[row]
        label = escape(name if len(name) <= 16 else name[:15] + "…")
        parts.append(f"<text x='{left - 6}' y='{y + 12}' text-anchor='end'>{label}</text>")
        size = int(report.sizes[row])
        if report.counts is not None:
            for column, count in enumerate(map(int, report.counts[row])):
                if not count:
                    continue
                share = count / int(report.counts[row].sum())
                x = left + column * cell
                radius = max(0.6, reach * np.sqrt(count / top_count))
                parts.append(
                    f"<rect x='{x:.1f}' y='{y}' width='{cell:.1f}' height='{height}' fill='#1f77b4' "
                    f"fill-opacity='{0.06 + 0.6 * share:.2f}'/>"
                    f"<circle cx='{x + cell / 2:.1f}' cy='{y + height / 2}' r='{radius:.1f}' fill='#0b2e4a'>"
                    f"<title>{escape(name)}, class {column}: {count}</title></circle>"
                )
        length = max(1.0, (bar - 56) * size / largest)
        x = width - right - bar + 8
        parts.append(
            f"<rect x='{x}' y='{y + 3}' width='{length:.1f}' height='{height - 6}' fill='#ff7f0e'/>"
            f"<text x='{x + length + 4:.1f}' y='{y + 12}'>{size:,}</text>"
        )
    note = f"{len(shown):,} of {report.population:,} clients. Colour: share of the class. Bubble: samples."
    parts.append(f"<text x='{left}' y='{total - 8}' fill='#666'>{note}</text>")
    body = "".join(parts)
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {total}' width='{width}' "
        f"height='{total}' "
        f"{_FONT}><rect width='100%' height='100%' fill='white'/>{body}</svg>"
    )
