"""What attacks found, as pictures: SVG by hand, with nothing from outside in it."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from atoll.audit.findings import Audit
from atoll.audit.inversion import Inversion
from atoll.audit.membership import Membership
from atoll.audit.words import CAVEAT, rows
from atoll.runs.folder import writing

__all__ = ["png", "reconstructions", "roc", "shown", "write"]

_FONT = "font-family='system-ui,sans-serif' font-size='11'"
_SIDE, _GAP, _LEFT = 96, 8, 60


def write(audit: Audit, directory: str | Path) -> list[Path]:
    """Write audit.json, and inversion.svg and membership.svg where these were tried.  Raises RunError."""
    place = Path(directory)
    texts = {"audit.json": json.dumps({**audit.to_dict(), "page": shown(audit)}, indent=1) + "\n"}
    if audit.inversion is not None:
        texts["inversion.svg"] = reconstructions(audit.inversion)
    if audit.membership is not None:
        texts["membership.svg"] = roc(audit.membership)
    with writing(place, "the audit in"):
        place.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (place / name).write_text(text, "utf-8")
    return [place / name for name in texts]


def shown(audit: Audit) -> dict[str, Any]:
    """What the page of a run shows: words, PNG files in base 64, the points of the ROC curve."""
    found: dict[str, Any] = {
        "rows": [
            {"attack": name, "figure": figure, "verdict": verdict, "leak": name in audit.leaks}
            for name, figure, verdict in rows(audit)
        ],
        "caveat": CAVEAT,
    }
    if (read := audit.inversion) is not None:
        low, high = float(read.originals.min()), float(read.originals.max())
        for name, samples in (("samples", read.originals), ("guesses", read.guesses)):
            found[name] = [base64.b64encode(png(_pixels(each, low, high))).decode() for each in samples]
    if audit.membership is not None:
        found["roc"] = [[round(float(a), 4), round(float(b), 4)] for a, b in _points(audit.membership)]
    return found


def reconstructions(found: Inversion) -> str:
    """Samples above, and below them what was read."""
    low, high = float(found.originals.min()), float(found.originals.max())
    parts = []
    for row, (name, samples) in enumerate((("sample", found.originals), ("read", found.guesses))):
        y = 24 + row * (_SIDE + _GAP)
        parts.append(f"<text x='{_LEFT - 6}' y='{y + _SIDE / 2:.0f}' text-anchor='end'>{name}</text>")
        for column, sample in enumerate(samples):
            x = _LEFT + column * (_SIDE + _GAP)
            picture = base64.b64encode(png(_pixels(sample, low, high))).decode()
            parts.append(
                f"<image x='{x}' y='{y}' width='{_SIDE}' height='{_SIDE}' preserveAspectRatio='none'"
                f" style='image-rendering:pixelated' href='data:image/png;base64,{picture}'/>"
                f"<rect x='{x}' y='{y}' width='{_SIDE}' height='{_SIDE}' fill='none' stroke='#ccc'/>"
            )
    title = f"{found.attack}: {found.psnr:.1f} dB, a blind guess {found.chance:.1f} dB"
    width = _LEFT + len(found.originals) * (_SIDE + _GAP) + _GAP
    return _page(width, 24 + 2 * (_SIDE + _GAP), title, parts)


def roc(found: Membership) -> str:
    """The ROC curve of membership, beside that of guessing."""
    side, left, top = 220, 44, 26
    points = " ".join(f"{left + side * a:.1f},{top + side * (1 - b):.1f}" for a, b in _points(found))
    parts = [
        f"<rect x='{left}' y='{top}' width='{side}' height='{side}' fill='none' stroke='#ccc'/>",
        f"<line x1='{left}' y1='{top + side}' x2='{left + side}' y2='{top}' stroke='#999' stroke-dasharray='4 3'/>",
        f"<polyline points='{points}' fill='none' stroke='#1f77b4' stroke-width='1.6'/>",
        f"<text x='{left + side / 2}' y='{top + side + 28}' text-anchor='middle'>false positive rate</text>",
        f"<text transform='translate(12 {top + side / 2}) rotate(-90)' text-anchor='middle'>true positive rate</text>",
    ]
    for share in (0.0, 0.5, 1.0):
        at = side * share
        parts.append(f"<text x='{left + at}' y='{top + side + 13}' text-anchor='middle'>{share:g}</text>")
        parts.append(f"<text x='{left - 4}' y='{top + side - at + 4}' text-anchor='end'>{share:g}</text>")
    title = f"{found.model} model: AUC {found.auc:.3f}, {found.members:,} members, {found.others:,} others"
    return _page(left + side + 96, top + side + 36, title, parts)


def _points(found: Membership) -> list[tuple[float, float]]:
    """Enough of the ROC curve to be drawn."""
    false, true = found.curve
    few = np.unique(np.linspace(0, len(false) - 1, 300).astype(int))
    return list(zip(false[few].tolist(), true[few].tolist(), strict=True))


def png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG file of pixels [height, width] (grey) or [height, width, 3]."""
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, -1)
    raw = np.concatenate(
        [np.zeros((height, 1), np.uint8), rows], 1
    ).tobytes()  # each row begins with its filter: none
    head = struct.pack(">IIBBBBB", width, height, 8, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(raw)), (b"IEND", b""))
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _pixels(sample: Tensor, low: float, high: float) -> NDArray[np.uint8]:
    """A sample as pixels: colours of three channels, else the first one; rows of what has no height."""
    values = (
        ((sample.double() - low) / max(high - low, 1e-12))
        .clamp(0, 1)
        .mul(255)
        .round()
        .numpy()
        .astype(np.uint8)
    )
    if values.ndim == 3:
        return np.ascontiguousarray(values.transpose(1, 2, 0)) if len(values) == 3 else values[0]
    return values if values.ndim == 2 else values.reshape(1, -1)


def _page(width: int, height: int, title: str, parts: list[str]) -> str:
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' height='{height}' "
        f"{_FONT}><rect width='100%' height='100%' fill='white'/><text x='8' y='15' font-weight='bold'>{title}</text>"
        f"{''.join(parts)}</svg>\n"
    )
