"""What devices can do, and how long orders take: by hand, in closed form, and for a million clients."""

from __future__ import annotations

import subprocess
import sys
import time as wall
import tracemalloc
from typing import Any

import numpy as np
import pytest

from atoll.clock import MEDIANS, Profiles, Spans, devices
from atoll.clock.parts import CLASSES

ONE = np.zeros(1, dtype=np.int64)


def spans(text: Any, clients: Any = ONE, **given: Any) -> Spans:
    order = {"samples": 600, "down": 4e6, "up": 1e6, "time": 0.0, "seed": 0, "number": 1} | given
    many = int(np.max(clients)) + 1
    return devices(text, clients=many, seed=order["seed"]).spans(np.asarray(clients), **order)


# --- by hand --------------------------------------------------------------------------------------------------------


def test_the_median_device_by_hand() -> None:
    found = spans("equal")
    assert (found.latency, found.download, found.compute, found.upload) == (0.05, 4.0, 6.0, 4.0)
    assert found.total == 14.05 and found.broken == np.inf
    assert found.energy() == 2.0 * 6 + 1.0 * (4 + 4)


def test_energy_follows_the_order_of_the_work() -> None:
    """Wait 0.05 s, receive 4 s at 1 W, compute 6 s at 2 W, send 4 s at 1 W."""
    found = spans("equal")
    for until, joules in (
        (0.0, 0),
        (0.05, 0),
        (1.05, 1),
        (4.05, 4),
        (5.05, 6),
        (10.05, 16),
        (12.05, 18),
        (99.0, 20),
    ):
        assert found.energy(until) == pytest.approx(joules)
    assert spans("equal", np.arange(3)).energy(np.array([1.05, 5.05, np.inf])) == pytest.approx([1, 6, 20])


def test_every_field_counts() -> None:
    device = {
        "speed": 50, "download": 2e6, "upload": 5e5, "latency": 1.5, "memory": 1e9, "failure": 0, "watts": 7,
        "radio": 3,
    }  # fmt: skip
    made = devices({"a": device, "b": {**device, "speed": 100}}, clients=2, names=["b", "a"])
    profiles = made.profiles(np.array([1, 0]))
    assert Profiles._fields == tuple(device)
    assert profiles.speed.tolist() == [50, 100]
    for name in [*device][1:]:
        assert getattr(profiles, name).tolist() == [device[name]] * 2, name
    found = made.spans(ONE + 1, samples=[100], down=[1e6], up=[1e6], time=9.0, seed=0, number=1)
    assert (found.latency, found.download, found.compute, found.upload) == (1.5, 0.5, 2.0, 2.0)
    assert found.energy() == 7 * 2 + 3 * (0.5 + 2)


def test_nothing_to_do_takes_the_latency() -> None:
    assert spans("equal", samples=0, down=0, up=0).total == MEDIANS["latency"]


def test_fedscale_rows_by_hand() -> None:
    """client_metadata.py: 3 * batch * steps * ms / 1000 seconds, and (up + down) in kilobits through the bandwidth."""
    found = spans({"0": {"computation": 162.0, "communication": 5648.0}}, samples=20 * 10, down=2e6, up=1e6)
    assert found.compute == pytest.approx(3.0 * 20 * 10 * 162.0 / 1000)
    assert found.download + found.upload == pytest.approx((2e6 + 1e6) * 8 / 1000 / 5648.0)


def test_flops_are_the_model_s() -> None:
    given = {"0": {"flops": 3e9}, "1": {"flops": 6e9}}
    assert devices(given, clients=2, flop=1.5e6).profiles(np.arange(2)).speed.tolist() == [2000, 4000]


# --- breaking off ---------------------------------------------------------------------------------------------------


def test_work_breaks_off_when_the_device_goes_away() -> None:
    hours = {"active": [0, 100], "inactive": [10, 120], "finish_time": 200}
    assert spans({"0": hours}, time=0.0).broken == 10  # of 14.05 s
    assert spans({"0": hours}, time=4.0).broken == 6
    assert spans({"0": hours}, time=100.0).broken == np.inf
    assert spans({"0": hours}, time=50.0).broken == 0  # nobody was there
    assert spans({"0": hours}, time=4.0).energy(6.0) == pytest.approx(4 * 1 + 1.95 * 2)
    exact = {"active": [0], "inactive": [14.05], "finish_time": 200}
    assert spans({"0": exact}, time=0.0).broken == np.inf  # done in the moment in which it goes


def test_failures_are_as_many_and_as_late_as_they_should_be() -> None:
    many = np.arange(40_000)
    found = spans("lognormal:0.5 + failing:0.2", many)
    failed = np.isfinite(found.broken)
    assert failed.mean() == pytest.approx(0.2, abs=0.008)
    late = (found.broken / found.total)[failed]
    assert (late < 1).all() and late.mean() == pytest.approx(0.5, abs=0.013)
    assert np.quantile(late, [0.1, 0.9]) == pytest.approx([0.1, 0.9], abs=0.015)
    again = spans("lognormal:0.5 + failing:0.2", many, number=2)
    assert np.corrcoef(failed, np.isfinite(again.broken))[0, 1] == pytest.approx(0, abs=0.02)
    assert not (again.broken[failed] == found.broken[failed]).any()
    assert (np.isfinite(spans("failing:0.2", many, nth=1).broken) != failed).any()
    assert (spans("failing:0", many).broken == np.inf).all()


def test_what_comes_first_breaks_it_off() -> None:
    hours = {"active": [0], "inactive": [7], "finish_time": 100}
    many = np.arange(200)
    fails = spans({client: {"failure": 1} for client in range(200)}, many).broken
    both = spans({client: {"failure": 1, **hours} for client in range(200)}, many).broken
    assert (both == np.minimum(fails, 7)).all() and 0 < (both == 7).mean() < 1


def test_times_are_finite() -> None:
    for text in ("equal", "diurnal:0.5", "markov:5,5"):
        for time in (-1.0, np.inf, np.nan):
            with pytest.raises(ValueError, match="nobody can be looked at"):
                devices(text, clients=1).available(ONE, time)


def test_a_trace_has_failures_of_its_own() -> None:
    given = {str(client): {"failure": client % 2} for client in range(100)}
    broken = (
        devices(given, clients=100)
        .spans(np.arange(100), samples=1, down=1, up=1, time=0.0, seed=0, number=1)
        .broken
    )
    assert (np.isfinite(broken) == (np.arange(100) % 2 == 1)).all()


# --- generators -----------------------------------------------------------------------------------------------------


def test_lognormal_is_spread_around_the_medians() -> None:
    found = devices("lognormal:0.6,1.2", clients=50_000).profiles(np.arange(50_000))
    speed, down, up = np.log(found.speed / 100), np.log(found.download / 1e6), np.log(found.upload / 0.25e6)
    assert speed.mean() == pytest.approx(0, abs=0.011) and speed.std() == pytest.approx(0.6, rel=0.015)
    assert down.mean() == pytest.approx(0, abs=0.022) and down.std() == pytest.approx(1.2, rel=0.015)
    assert np.abs(up - down).max() < 1e-12 and abs(np.corrcoef(speed, down)[0, 1]) < 0.02
    alone = devices("lognormal:0.6", clients=10).profiles(np.arange(10))
    assert (alone.speed == found.speed[:10]).all()
    assert alone.download == pytest.approx(1e6 * (found.download[:10] / 1e6) ** 0.5)
    flat = devices("lognormal:0", clients=10).profiles(np.arange(10))
    assert (flat.speed == 100).all() and (flat.upload == 0.25e6).all()


def test_classes_have_their_shares() -> None:
    found = devices("classes:phone=0.6,laptop=0.3,server=0.1,board=0", clients=30_000).profiles(
        np.arange(30_000)
    )
    for name, share in (("phone", 0.6), ("laptop", 0.3), ("server", 0.1), ("board", 0)):
        of = found.speed == CLASSES[name]["speed"]
        assert of.mean() == pytest.approx(share, abs=0.012)
        assert (found.memory[of] == CLASSES[name]["memory"]).all() and (
            found.watts[of] == CLASSES[name]["watts"]
        ).all()


def test_waiting_for_exponential_devices_has_a_closed_form() -> None:
    """All of 10: H_10 times the mean. The first 10 of 13: H_13 - H_3, 2.17 times sooner (over-selection by 1.3)."""
    made = devices("exponential:2.5", clients=13)
    order: dict[str, Any] = {"samples": 600, "down": 4e6, "up": 1e6, "time": 0.0, "seed": 1, "number": 1}
    each, nth = np.tile(np.arange(13), 20_000), np.repeat(np.arange(20_000), 13)
    totals = made.spans(each, nth=nth, **order).total.reshape(20_000, 13)
    harmonic = np.cumsum(1 / np.arange(1, 14))
    assert harmonic[9] == pytest.approx(2.929, abs=1e-3) and harmonic[12] - harmonic[2] == pytest.approx(
        1.3468, abs=1e-4
    )
    assert totals[:, :10].max(axis=1).mean() / 2.5 == pytest.approx(harmonic[9], rel=0.02)
    assert np.sort(totals, axis=1)[:, 9].mean() / 2.5 == pytest.approx(harmonic[12] - harmonic[2], rel=0.02)
    assert totals.mean() == pytest.approx(2.5, rel=0.01)
    by_round = np.array([made.spans(np.arange(13), **order | {"number": n}).total for n in range(500)])
    assert by_round.mean() == pytest.approx(2.5, rel=0.05)
    other = made.spans(np.arange(13), **order | {"samples": 1, "down": 0.0})
    assert (other.total == totals[0]).all() and (other.compute == other.total).all()


# --- addresses and populations --------------------------------------------------------------------------------------

ALL_SORTS = "lognormal:0.8 + markov:600,300 + failing:0.3"


def test_nothing_depends_on_who_else_is_asked() -> None:
    everybody = np.arange(2000)
    some = np.random.default_rng(1).permutation(everybody)[:77]
    for text in (ALL_SORTS, "classes:phone=0.5,laptop=0.5 + diurnal:0.4", "exponential + diurnal:0.4"):
        order: dict[str, Any] = {
            "samples": 60,
            "down": 4e6,
            "up": 1e6,
            "time": 5000.0,
            "seed": 7,
            "number": 3,
            "nth": 2,
        }
        whole = devices(text, clients=2000, seed=7)
        for made in (whole, devices(text, clients=2000, seed=7)):
            assert all(
                (a == b[some]).all()
                for a, b in zip(made.profiles(some), whole.profiles(everybody), strict=True)
            )
            assert all(
                (a == b[some]).all()
                for a, b in zip(made.spans(some, **order), whole.spans(everybody, **order), strict=True)
            )
            for look in ("available", "until", "returns"):
                assert (
                    getattr(made, look)(some, 777.0) == getattr(whole, look)(everybody, 777.0)[some]
                ).all()
    other = devices(ALL_SORTS, clients=2000, seed=8)
    assert (other.profiles(some).speed != devices(ALL_SORTS, clients=2000, seed=7).profiles(some).speed).all()


def test_numbers_and_arrays_are_alike() -> None:
    made, three = devices("lognormal:1", clients=3), np.arange(3)
    order: dict[str, Any] = {"time": 0.0, "seed": 0, "number": 1}
    one = made.spans(three, samples=7, down=8.0, up=9, **order)
    several = made.spans(three, samples=np.full(3, 7), down=[8, 8, 8], up=np.full(3, 9.0), **order)
    assert all((a == b).all() and a.shape == b.shape == (3,) for a, b in zip(one, several, strict=True))
    assert all(each.shape == (0,) for each in made.spans(three[:0], samples=7, down=8.0, up=9, **order))


def test_a_cohort_of_a_million_costs_as_much_as_a_cohort() -> None:
    cohort = np.random.default_rng(0).choice(10**6, 100, replace=False)
    made = devices(ALL_SORTS, clients=10**6)
    order: dict[str, Any] = {"samples": 60, "down": 4e6, "up": 1e6, "seed": 0, "number": 1}
    made.spans(cohort[:1], time=0.0, **order)  # imports torch
    tracemalloc.start()
    made = devices(ALL_SORTS, clients=10**6)
    for time in range(0, 1000, 100):
        made.profiles(cohort)
        made.available(cohort, float(time))
        made.spans(cohort, time=float(time), **order)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e6, "a flat array over the clients alone would be 1 to 8 MB"


@pytest.mark.parametrize(
    "text", ["equal", "lognormal:1 + diurnal:0.3 + failing:0.1", "classes:phone=1", "markov:600,300"]
)
def test_all_of_a_million_are_asked_in_a_few_passes(text: str) -> None:
    everybody, made = np.arange(10**6), devices(text, clients=10**6)
    made.available(ONE, 0.0), made.profiles(ONE)  # imports torch
    used = []
    for _ in range(2):
        began = wall.process_time()
        made.profiles(everybody)
        there = made.available(everybody, 0.0)
        used.append(wall.process_time() - began)
    assert there.shape == (10**6,)
    assert min(used) < 0.5, f"{min(used):.2f} CPU seconds"


def test_a_text_is_understood_without_torch() -> None:
    code = "import sys, atoll.clock as c; c.devices('lognormal:1 + markov:5,5', clients=9)"
    code += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
