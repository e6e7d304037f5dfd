"""When devices are there: what is said of a moment fits what was written, and what is said of other moments."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.clock import Devices, devices, draws
from atoll.clock.markov import Markov

Windows = list[tuple[int, int]]


@st.composite
def listed(draw: st.DrawFn) -> tuple[Windows, int | None]:
    """Some windows on whole seconds, perhaps touching, perhaps up to the end; and their period, or None."""
    edges = sorted(draw(st.sets(st.integers(0, 12), max_size=8)))
    spans = [*zip(edges[::2], edges[1::2], strict=False)]
    for at in range(len(spans) - 1):
        if draw(st.booleans()):
            spans[at] = (spans[at][0], spans[at + 1][0])  # they touch
    period = draw(st.sampled_from([None, 12, 13, 20]))
    return spans, period


def there(windows: Windows, period: int | None, time: float) -> bool:
    """The slow twin: whether a device is there."""
    moment = time if period is None else time % period
    return any(start <= moment < end for start, end in windows)


def change(windows: Windows, period: int | None, time: float) -> float:
    """When that changes, found on the grid of whole seconds."""
    now = there(windows, period, time)
    grid = range(int(np.floor(time)) + 1, int(time) + 60)
    return next((float(each) for each in grid if there(windows, period, each) != now), np.inf)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(listed(), min_size=1, max_size=5),
    st.sampled_from([0.0, 0.5, 3.0, 12.0, 12.5, 19.0, 20.0, 61.25, 130.0]),
)
def test_windows_are_what_a_grid_says(rows: list[tuple[Windows, int | None]], time: float) -> None:
    if not any(windows for windows, _ in rows):
        rows = [*rows, ([(0, 1)], None)]
    made = devices(
        {
            client: {
                "active": [start for start, _ in windows],
                "inactive": [end for _, end in windows],
                "finish_time": period,
            }
            for client, (windows, period) in enumerate(rows)
        },
        clients=len(rows),
    )
    everybody = np.arange(len(rows))
    now = [there(*row, time) for row in rows]
    changes = [change(*row, time) for row in rows]
    assert made.available(everybody, time).tolist() == now
    assert made.until(everybody, time).tolist() == [
        c if n else time for n, c in zip(now, changes, strict=True)
    ]
    assert made.returns(everybody, time).tolist() == [
        time if n else c for n, c in zip(now, changes, strict=True)
    ]


def test_windows_that_touch_over_the_end_are_one() -> None:
    made = devices({"0": {"active": [0, 80], "inactive": [10, 100], "finish_time": 100}}, clients=1)
    one = np.zeros(1, dtype=np.int64)
    assert made.until(one, 85.0) == 110 and made.until(one, 5.0) == 10 and made.returns(one, 10.0) == 80
    whole = devices({"0": {"active": [0, 50], "inactive": [50, 100], "finish_time": 100}}, clients=1)
    assert whole.available(one, 1e9).all() and whole.until(one, 1e9) == np.inf


ROUGH = [
    "diurnal:0.3,86400",
    "diurnal:0.7,0.1",
    "diurnal:0.001,3",
    "markov:10,5",
    "markov:0.1,1000",
    "markov:7,0.001",
]


@pytest.mark.parametrize("text", ROUGH)
@pytest.mark.parametrize("time", [0.0, 12345.678, 1e6 / 7])
def test_a_client_is_there_until_it_is_not_and_back_when_it_returns(text: str, time: float) -> None:
    """To the bit: whoever waits until somebody returns finds it there."""
    everybody = np.arange(40 if text != "markov:0.1,1000" else 20)
    made = devices(text, clients=len(everybody), seed=4)
    now, until, returns = (look(everybody, time) for look in (made.available, made.until, made.returns))
    assert (until[now] > time).all() and (returns[now] == time).all()
    assert (returns[~now] > time).all() and (until[~now] == time).all()
    other = devices(text, clients=len(everybody), seed=4)
    for client in everybody:
        one = np.array([client])
        moment = until[client] if now[client] else returns[client]
        assert other.available(one, moment)[0] != now[client]
        assert other.available(one, np.nextafter(moment, 0))[0] == now[client]


@pytest.mark.parametrize(
    ("text", "share"), [("diurnal:0.3", 0.3), ("diurnal:0.05,100", 0.05), ("markov:30,10", 0.75)]
)
def test_shares(text: str, share: float) -> None:
    everybody = np.arange(20_000)
    made = devices(text, clients=len(everybody))
    for time in (0.0, 33.0, 1000.0):
        assert made.available(everybody, time).mean() == pytest.approx(
            share, abs=4 * (share * (1 - share) / 2e4) ** 0.5
        )


def test_a_day_has_one_window() -> None:
    made, one = devices("diurnal:0.25,100", clients=9), np.array([5])
    begin = made.returns(one, made.until(one, float(made.returns(one, 200.0)[0]))[0])[0]
    assert made.until(one, begin)[0] - begin == pytest.approx(25)
    assert made.returns(one, begin + 30)[0] - begin == pytest.approx(100)


def by_hand(on: float, off: float, seed: int, client: int, time: float) -> tuple[bool, float]:
    """The slow twin of `Markov`: one client, stay after stay from the start."""
    one = np.array([client])
    now = bool(draws.uniform(draws.start(seed, "device there"), one)[0] < on / (on + off))
    end, nth = 0.0, 0
    while True:
        end += float(draws.exponential(draws.start(seed, "device stay"), one, nth)[0] * (on if now else off))
        if end > time:
            return now, end
        now, nth = not now, nth + 1


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.floats(0, 200), st.lists(st.integers(0, 30), min_size=1, max_size=8)), max_size=8),
    st.sampled_from([(5.0, 5.0), (1.0, 20.0), (40.0, 0.5)]),
)
def test_markov_does_not_depend_on_who_was_asked_when(
    asked: list[tuple[float, list[int]]], means: tuple[float, float]
) -> None:
    chain = Markov(*means)
    for time, clients in asked:  # back and forth, clients again and again, also twice at once
        found = chain.look(2, np.array(clients), time)
        due = [by_hand(*means, 2, client, time) for client in clients]
        assert [*zip(found.now.tolist(), found.change.tolist(), strict=True)] == due


def test_markov_has_exponential_stays() -> None:
    made, everybody = devices("markov:30,10", clients=20_000), np.arange(20_000)
    now = made.available(everybody, 500.0)
    stay = made.until(everybody, 500.0)[now] - 500
    away = made.returns(everybody, 500.0)[~now] - 500  # without memory: what is left has the same mean
    assert stay.mean() == pytest.approx(30, rel=0.04) and away.mean() == pytest.approx(10, rel=0.06)
    assert np.median(stay) == pytest.approx(30 * np.log(2), rel=0.05)


def test_always() -> None:
    for text, always in (("equal", True), ("diurnal:1", True), ("diurnal:0.9", False)):
        assert devices(text, clients=3).always == always
    made: Devices = devices("equal", clients=3)
    everybody = np.arange(3)
    assert made.available(everybody, 1e9).all()
    assert (made.until(everybody, 5.0) == np.inf).all() and (made.returns(everybody, 5.0) == 5).all()
