"""The live table, the plain lines and the summary."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

import atoll
from atoll.experiment import Experiment
from atoll.show.summary import result_text, sparkline
from atoll.show.table import LiveTable
from atoll.words import bytes_text, duration_text


def test_bytes() -> None:
    assert [bytes_text(count) for count in (0, 999, 1000, 384_400, 23_064_000, 5 * 10**15)] == [
        "0 B", "999 B", "1 kB", "384 kB", "23.1 MB", "5e+03 TB",
    ]  # fmt: skip


def test_durations() -> None:
    assert [duration_text(seconds) for seconds in (0, 2.3e-4, 0.416, 0.99, 7.45, 42.06, 99.6, 7500)] == [
        "0 s", "0.23 ms", "416 ms", "990 ms", "7.45 s", "42.1 s", "1 min 40 s", "2 h 5 min",
    ]  # fmt: skip


def test_sparkline() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([1.0, math.nan, 1.0]) == "▁ ▁"
    assert sparkline([]) == sparkline([math.nan]) == ""
    long = sparkline(list(range(1000)))
    assert len(long) == 40
    assert (long[0], long[-1]) == ("▁", "█")


def screen(width: int = 100) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, force_terminal=True, width=width, height=40, color_system=None), stream


WIDTHS = (60, 100, 160)


@pytest.fixture(scope="module")
def shown() -> dict[int, tuple[Console, io.StringIO, LiveTable]]:
    """One run, watched at several widths."""
    screens = {width: screen(width) for width in WIDTHS}
    tables = {width: LiveTable(console) for width, (console, _) in screens.items()}
    experiment = Experiment.read(rounds=12, clients=5, model="logistic", engine="loop", method="fedavg-ft")
    federation = experiment.build()
    federation.keeper.session.log.extend(tables.values())
    federation.fit()
    return {width: (*screens[width], tables[width]) for width in WIDTHS}


@pytest.mark.parametrize("width", WIDTHS)
def test_the_live_table_shows_the_last_rounds(
    width: int, shown: dict[int, tuple[Console, io.StringIO, LiveTable]]
) -> None:
    console, stream, table = shown[width]
    console.file = last = io.StringIO()
    console.print(table._view())
    text = last.getvalue()
    assert "fedavg-ft on digits" in text
    assert "lr 0.1" in text
    assert "12/12" in text
    numbers = [line.split()[0] for line in text.splitlines() if line.split() and line.split()[0].isdecimal()]
    assert numbers == [str(number) for number in range(3, 13)]
    assert "…" not in text
    assert stream.getvalue()


def test_refused_and_dropped_clients_are_counted() -> None:
    table = LiveTable(screen()[0])
    table.rounds.append(atoll.Round(1, [1, 2, 3], dropped=[4], refused={2: "not finite"}, loss=math.nan))
    console, stream = screen()
    from atoll.show.table import _rounds_table

    console.print(_rounds_table(list(table.rounds)))
    assert "2 (1 refused, 1 dropped)" in stream.getvalue()


def test_summary_of_a_regression_looks_at_the_loss() -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(120, 3)).astype("float32")
    data = atoll.data.from_arrays(inputs, inputs.sum(1, keepdims=True)).partition("iid", clients=6)
    run = atoll.Federation(lambda: atoll.models.mlp(3, 8, 1), data, rounds=2, engine="loop").fit()
    text = result_text(run)
    assert "loss" in text.splitlines()[2]
    assert "%" not in text


def test_summary_of_no_round() -> None:
    federation = Experiment.read(rounds=1, clients=4, model="logistic", engine="loop").build()
    run = federation.fit()
    run.rounds.clear()
    assert "rounds" in result_text(run)
