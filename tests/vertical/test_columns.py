"""Columns on disk do what arrays do in memory, and nothing of them is left."""

from __future__ import annotations

import asyncio
import os
import tracemalloc
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.errors import RunError
from atoll.parties import play
from atoll.vertical.alignment import Alignment, align, columns, curve, keys
from atoll.vertical.alignment.columns import Column, Scratch
from atoll.vertical.alignment.ids import distinct
from atoll.vertical.alignment.spilled import Mixed, meet, ordered, shuffled

KEYS = st.lists(st.integers(0, 40), max_size=30, unique=True)


def keyed(numbers: list[int], seed: int = 0) -> Any:
    """A key for each number, as random as those of points."""
    all_keys = np.random.default_rng(seed).integers(0, 256, (41, keys.KEY), np.uint8)
    return all_keys[numbers].reshape(-1, keys.KEY)


def column(scratch: Scratch, rows: Any) -> Column:
    found = scratch.column("u1", rows.shape[1])
    found.add(rows)
    return found


@pytest.fixture(params=[0, columns._HELD], ids=["on disk", "in memory"])
def held(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How much of a column stays in memory; 0 would be without end."""
    monkeypatch.setattr(columns, "_HELD", max(1, request.param))
    return request.param  # type: ignore[no-any-return]


@pytest.mark.parametrize(("dtype", "width"), [("u1", 3), ("<i4", 0)])
def test_a_column_is_its_pieces(held: int, dtype: str, width: int) -> None:
    parts = [np.arange(count * max(1, width), dtype=dtype) for count in (4, 0, 1, 9)]
    if width:
        parts = [part.reshape(-1, width) for part in parts]
    whole = np.concatenate(parts)
    with Scratch(4) as scratch:
        found = scratch.column(dtype, width)
        assert found[:].shape == whole[:0].shape and list(found.pieces(3)) == []
        for part in parts:
            found.add(part)
            assert np.array_equal(found[: len(part)], whole[: len(part)])  # what is read moves no end
        assert len(found) == 14 and found[:].dtype == whole.dtype
        for low in range(15):
            assert np.array_equal(found[low : low + 5], whole[low : low + 5])
        assert np.array_equal(np.concatenate(list(found.pieces(5))), whole)


@settings(max_examples=40, deadline=None)
@given(KEYS, KEYS, st.sampled_from([1, 2, 7, 100]))
def test_columns_meet_as_arrays_do(one: list[int], other: list[int], chunk: int) -> None:
    ours, theirs = keyed(one), keyed(other)
    first, last = keys.meet(ours, theirs)
    with Scratch(chunk) as scratch:
        met = asyncio.run(meet(column(scratch, ours), column(scratch, theirs), scratch))
        assert np.array_equal(met.first[:], first) and np.array_equal(met.last[:], last)
        assert np.array_equal(met.keys[:], ours[first])
        whole = asyncio.run(ordered(column(scratch, ours), scratch))
        assert np.array_equal(whole[:], ours[keys.order(ours)])


def test_a_key_that_is_twice_is_found_in_any_bucket() -> None:
    for numbers in ([1, 2, 1], [3, 3, 3]):
        for pair in ((numbers, [5]), ([1], numbers), (numbers, numbers)):
            with Scratch(1) as scratch:
                sides = [column(scratch, keyed(side)) for side in pair]
                with pytest.raises(ValueError, match="twice"):
                    asyncio.run(meet(sides[0], sides[1], scratch))


@pytest.mark.parametrize("chunk", [3, 100])
def test_rows_are_mixed_with_their_names(chunk: int) -> None:
    rows = np.arange(3 * 40, dtype=np.uint8).reshape(-1, 3)
    seen = set()
    for _ in range(3):
        with Scratch(chunk) as scratch:
            mixed = Mixed(scratch, 40, 3)
            for low in range(0, 40, 7):
                mixed.add(rows[low : low + 7], np.arange(low, min(40, low + 7), dtype=np.int32))
            found, names = asyncio.run(mixed.done())
            assert np.array_equal(np.sort(names[:]), np.arange(40))
            assert np.array_equal(found[:], rows[names[:]])
            seen.add(names[:].tobytes())
    assert len(seen) == 3


def test_every_order_is_as_likely_as_any_other() -> None:
    """Of three rows in up to four buckets: all six orders, each within five deviations of its share."""
    counts: dict[bytes, int] = {}
    rows = np.zeros((3, 1), np.uint8)
    for _ in range(600):
        with Scratch(1) as scratch:
            mixed = Mixed(scratch, 3, 1)
            mixed.add(rows, np.arange(3, dtype=np.int32))
            names = asyncio.run(mixed.done())[1][:]
        counts[names.tobytes()] = counts.get(names.tobytes(), 0) + 1
    assert len(counts) == 6
    assert all(abs(count - 100) < 5 * (600 * 5 / 36) ** 0.5 for count in counts.values())
    assert sorted(shuffled(5).tolist()) == [0, 1, 2, 3, 4]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 6), max_size=20), st.sampled_from([1, 3, 64]), st.data())
def test_ids_that_repeat_are_together_whatever_the_pieces(
    numbers: list[int], chunk: int, data: st.DataObject
) -> None:
    ids = [f"id {number}" for number in numbers]
    samples = [f"{at:02d}" for at in data.draw(st.permutations(range(len(ids))))]
    found = distinct(ids, sample_ids=samples, chunk=chunk)
    first = np.concatenate([np.zeros(0, np.int32), *found.pieces(chunk)])
    want = {
        name: sorted((row for row in range(len(ids)) if ids[row] == name), key=samples.__getitem__)
        for name in set(ids)
    }
    assert len(found) == len(first) == len(want)
    assert first.tolist() == sorted(rows[0] for rows in want.values())
    assert found.digest == distinct(ids, sample_ids=samples).digest
    chosen = first[::-2]
    assert found.counts(chosen).tolist() == [len(want[ids[row]]) for row in chosen]
    assert found.all_rows(chosen).tolist() == [row for lead in chosen for row in want[ids[lead]]]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are listed by Linux alone")
def test_no_file_is_left(held: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = os.listdir("/proc/self/fd")
    sets = [[f"{at}" for at in range(start, 40)] for start in range(3)]
    names = ("guest", "host", "bank")
    for count in (2, 3):
        play(
            {
                name: partial(align, ids=ids, parties=names[:count], options=Alignment(chunk=8))
                for name, ids in zip(names[:count], sets, strict=False)
            }
        )
    assert os.listdir("/proc/self/fd") == before and not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="it has no device that is always full")
def test_a_disk_that_is_full_is_said_with_what_helps() -> None:
    with (
        open("/dev/full", "r+b", buffering=0) as full,
        pytest.raises(RunError, match="cannot be put aside: No space left") as caught,
    ):
        Column(full, "u1", 4).add(np.zeros((2, 4), np.uint8))
    assert "TMPDIR" in str(caught.value.hint)


def test_memory_does_not_grow_with_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an alignment holds at its highest, beyond what few ids take, is less than one set of points."""
    monkeypatch.setattr(columns, "_HELD", 1 << 12)
    monkeypatch.setattr(curve, "point", lambda name, salt: sha256(name).digest()[:31] + b"\0")
    monkeypatch.setattr(curve, "raised", lambda flat, key: flat)  # nothing here but memory

    def highest(count: int) -> int:
        ids = [f"{at:06d}"[::-1] for at in range(count)]
        roles = {
            name: partial(align, ids=ids, parties=("guest", "host"), options=Alignment(chunk=512))
            for name in ("guest", "host")
        }
        tracemalloc.start()
        try:
            found = play(roles).results["guest"]
            assert len(found.rows) == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    highest(600)
    assert highest(12_000) - highest(600) < 11_400 * 32
