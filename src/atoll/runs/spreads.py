"""A mean and its standard deviation, in words."""

from __future__ import annotations

from atoll.runs.promise import epsilon_text
from atoll.words import bytes_text, duration_text, energy_text

__all__ = ["count", "energy", "epsilon", "percent", "plain", "seconds", "traffic"]


def percent(mean: float, std: float | None) -> str:
    return f"{100 * mean:.1f}" + ("" if std is None else f" ± {100 * std:.1f}")


def plain(mean: float, std: float | None) -> str:
    return f"{mean:.4g}" + ("" if std is None else f" ± {std:.2g}")


def count(mean: float, std: float | None) -> str:
    return f"{mean:.0f}" if not std else f"{mean:.1f} ± {std:.1f}"


def traffic(mean: float, std: float | None) -> str:
    number, unit = bytes_text(round(mean)).split()
    return (
        f"{number} {unit}" if not std or not mean else f"{number} ± {std * float(number) / mean:.2g} {unit}"
    )


def seconds(mean: float, std: float | None) -> str:
    return duration_text(mean) if not std or mean >= 100 else f"{mean:.3g} ± {std:.2g} s"


def epsilon(mean: float, std: float | None) -> str:
    return epsilon_text(mean) if not std else f"{mean:.3g} ± {std:.2g}"


def energy(mean: float, std: float | None) -> str:
    number, unit = energy_text(mean).split()
    return (
        f"{number} {unit}" if not std or not mean else f"{number} ± {std * float(number) / mean:.2g} {unit}"
    )
