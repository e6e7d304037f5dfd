"""Numbers, and what others have said, as people read them."""

from __future__ import annotations

import math

__all__ = ["bytes_text", "duration_text", "energy_text", "number_text", "printable", "value_text"]


def bytes_text(count: int) -> str:
    """Bytes in powers of 1000: 812 B, 3.2 MB."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 999.5 or unit == "TB":
            break
        size /= 1000
    return f"{size:.3g} {unit}"


def duration_text(seconds: float) -> str:
    """A length of time: 23 ms, 1.8 s, 42.1 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.3g} ms" if seconds >= 1e-6 else "0 s"
    if seconds < 99.5:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def energy_text(joules: float) -> str:
    """Energy in powers of 1000: 12 J, 3.4 kJ."""
    for unit in ("J", "kJ", "MJ", "GJ"):
        if joules < 999.5 or unit == "GJ":
            break
        joules /= 1000
    return f"{joules:.3g} {unit}"


def number_text(value: float) -> str:
    """Four digits, or a dash where it is not finite."""
    return f"{value:.4g}" if math.isfinite(value) else "–"


def value_text(name: str, value: float, digits: int = 1) -> str:
    """A measure as people read it: accuracies, also of single parts, and the success of attacks in percent."""
    if name.partition(".")[0] in ("accuracy", "attack_success") and math.isfinite(value):
        return f"{100 * value:.{digits}f} %"
    return number_text(value)


def printable(text: str, breaks: str = "\n") -> str:
    """A text that others had a say in, with ? for what would change a terminal or a log that it is shown in.

    >>> printable("done\\x1b[2J")
    'done?[2J'
    """
    return "".join(each if each.isprintable() or each in breaks else "?" for each in text)
