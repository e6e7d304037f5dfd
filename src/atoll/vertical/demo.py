"""A run to look at: breast cancer, of which a clinic has ten columns and the label, and a laboratory twenty."""

from __future__ import annotations

from importlib.resources import files

from atoll.vertical.settings import Vertical, Where

__all__ = ["plan"]


def plan() -> Vertical:
    """Boosted trees under Okamoto-Uchiyama on two tables that come with the package."""
    place = files("atoll.vertical") / "embedded"
    return Vertical(
        protocol="secureboost",
        label="benign",
        party={
            "guest": Where(data=str(place / "clinic.csv.xz")),
            "host": Where(data=str(place / "laboratory.csv.xz")),
        },
        given={"trees": 5, "bins": 16},
    )
