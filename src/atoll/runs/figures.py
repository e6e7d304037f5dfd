"""Figures for papers, each as SVG and PNG, from the events of one run or of several. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atoll.errors import ConfigError, MissingExtraError
from atoll.runs.averages import Compared
from atoll.runs.events import Event
from atoll.runs.folder import writing
from atoll.runs.story import Story

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write", "write_comparison"]

_STYLE: dict[str, Any] = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "lines.linewidth": 1.3,
    "lines.solid_capstyle": "round",
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.linewidth": 0.5,
    "grid.color": "#e3e3e3",
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.04,
    "figure.constrained_layout.h_pad": 0.03,
    "savefig.dpi": 300,
    "svg.fonttype": "path",  # letters as outlines: they look the same wherever the figure goes
    "svg.hashsalt": "atoll",  # names inside the file follow from what is drawn, not from chance
}


def write(events: Sequence[Event], directory: str | Path) -> list[Path]:
    """Write the figures of one run into a directory.

    Its measures over rounds, how they are spread over clients, who took part, traffic, labels of the clients,
    affinity, on a virtual clock the first measure over virtual seconds and what devices did when, and the privacy that
    was spent; what the run does not know is left out.

    Raises ConfigError if there are no events, MissingExtraError without matplotlib, RunError where the directory cannot
    be written.
    """
    if not events:
        raise ConfigError("there is nothing to draw: no events")
    _check()
    from atoll.runs import plots, plots_clock, plots_privacy

    story = Story(events)
    drawings: dict[str, Callable[[], Figure | None]] = {
        story.measure: lambda: plots.measure(story, story.measure),
        "loss": lambda: plots.measure(story, "loss"),
        **{name: lambda name=name: plots.measure(story, name) for name in story.better},  # type: ignore[misc]
        "clients": lambda: plots.distribution(story),
        "participation": lambda: plots.participation(story),
        "traffic": lambda: plots.traffic(story),
        "labels": lambda: plots.labels(story),
        "affinity": lambda: plots.affinity(story),
        "virtual-time": lambda: plots_clock.virtual_time(story),
        "devices": lambda: plots_clock.devices(story),
        "privacy": lambda: plots_privacy.spent(story),
    }
    return _save(drawings, Path(directory))


def write_comparison(comparison: Compared, directory: Path) -> list[Path]:
    """Write the figures of a comparison: curves of every measure with bands over seeds, and bars of final scores.

    Where runs personalise, one more has the curves of the models that clients would use ("own"); on a virtual clock one
    has them over virtual seconds, where updates are blurred one over epsilon.
    """
    _check()
    from atoll.runs import plots_compare

    names = list(dict.fromkeys([comparison.shown, comparison.measure, "loss"]))
    drawings: dict[str, Callable[[], Figure | None]] = {
        f"comparison-{name}": lambda name=name: plots_compare.curves(comparison, name)  # type: ignore[misc]
        for name in names
    }
    for name, over in (("virtual-time", "virtual_seconds"), ("privacy", "epsilon")):
        drawings[f"comparison-{name}"] = lambda over=over: plots_compare.curves(  # type: ignore[misc]
            comparison, comparison.shown, over
        )
    drawings["comparison-scores"] = lambda: plots_compare.scores(comparison)
    return _save(drawings, directory)


def _check() -> None:
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise MissingExtraError("matplotlib", "plots", "drawing figures") from None


def _save(drawings: Mapping[str, Callable[[], Figure | None]], directory: Path) -> list[Path]:
    written = []
    with writing(directory, "figures in"):
        directory.mkdir(parents=True, exist_ok=True)
    for name, draw in drawings.items():
        with _styled():
            figure = draw()
            if figure is None:
                continue
            for kind, about in (("svg", {"Date": None, "Creator": "atoll"}), ("png", {"Software": "atoll"})):
                path = directory / f"{name}.{kind}"
                with writing(path, "the figure"):
                    figure.savefig(path, format=kind, metadata=about)
                written.append(path)
    return written


@contextmanager
def _styled() -> Iterator[None]:
    """Inside, matplotlib draws in this style, whatever the user's own one; the user's is back afterwards."""
    from matplotlib import style

    with style.context(["default", _STYLE]):
        yield
