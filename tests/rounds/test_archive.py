"""What is known of each of many clients in rounds that are over: in a file, and the same to the bit."""

from __future__ import annotations

import copy
import gc
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import atoll
from atoll.rounds import archive
from atoll.rounds.archive import Archive
from atoll.rounds.evaluation import Evaluation
from atoll.rounds.history import Round

CLIENTS = 150
NAN = float("nan")


def federation(rounds: int = 6, **more: Any) -> atoll.Federation:
    """Many clients with few samples, of whom most take part in each round and all are judged."""
    draws = torch.Generator().manual_seed(0)
    inputs = torch.randn(CLIENTS * 6, 3, generator=draws)
    data = atoll.data.from_arrays(inputs, (inputs.sum(1) > 0).long()).partition(
        atoll.data.IID(clients=CLIENTS), seed=0
    )
    return atoll.Federation(
        lambda: nn.Linear(3, 2), data, "fedavg", rounds=rounds, cohort=CLIENTS - 10, engine="batched", workers=1,
        batch_size=8, eval_every=1, **more,
    )  # fmt: skip


def told(record: Round) -> str:
    """All that a round says but its times; as text, in which NaN is equal to itself."""
    columns = {name: list(column) for name, column in record.clients.items() if name not in ("start", "end")}
    evaluation = record.evaluation
    assert evaluation is not None
    each = {kind: {name: dict(found) for name, found in by.items()} for kind, by in evaluation.each.items()}
    return repr((list(record.cohort), columns, each, evaluation, record.loss, record.refused, record.dropped))


def test_rounds_say_the_same_from_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    found = federation().fit(progress=False)
    assert type(found.rounds[0].clients) is not dict and type(found.rounds[-1].clients) is dict
    assert found.rounds[0].evaluation is not None
    assert len(found.rounds[0].clients["loss"]) == CLIENTS - 10
    assert len(found.rounds[0].evaluation.each["clients"]["accuracy"]) == CLIENTS
    monkeypatch.setattr(archive, "_MANY", 10**9)
    due = federation().fit(progress=False)
    assert type(due.rounds[0].clients) is dict
    assert [*map(told, found.rounds)] == [*map(told, due.rounds)]
    events = [[e for e in run.events() if e["event"] == "round"] for run in (found, due)]
    for event in events[0] + events[1]:
        for name in ("time", "seconds"):
            del event[name]
        for name in ("start", "end"):
            del event["clients"][name]
    assert events[0] == events[1]


def test_rounds_that_are_over_hold_next_to_nothing() -> None:
    """Python's live objects after each round: its figures client by client would be more than a thousand."""
    live = []
    for _ in federation(rounds=9).play():
        gc.collect()
        live.append(sys.getallocatedblocks())
    assert (live[7] - live[1]) / 6 < 300  # before a checkpoint is written, which has modules imported


def record(clients: Sequence[int], number: int = 1) -> Round:
    """A round of these clients."""
    values = {client: client / 7 for client in clients}
    return Round(
        number, list(clients), clients={"loss": [NAN, *list(values.values())[1:]]},
        evaluation=Evaluation(each={"clients": {"loss": values, "auc": {}}}),
    )  # fmt: skip


def test_a_round_of_few_clients_stays_as_it_is() -> None:
    found = record(range(archive._MANY - 1))
    assert Archive().laid(found).clients is found.clients


def test_nothing_is_left_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no name, and its room is given back with the last round that reads there."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = Archive()
    laid, handle = store.laid(record(range(1000))), store._file
    assert handle is not None and not list(tmp_path.iterdir())
    assert os.fstat(handle).st_nlink == 0
    del store, laid
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(handle)


def test_a_copy_is_a_dict() -> None:
    made = record(range(1000))
    laid = Archive().laid(made)  # nothing but the round holds the file now
    gc.collect()
    assert repr(laid.clients["loss"]) == repr(made.clients["loss"]) and laid.evaluation == made.evaluation
    copied = copy.deepcopy(laid)
    assert type(copied.clients) is dict and repr(copied) == repr(made)
    assert repr(asdict(laid)) == repr(asdict(made))


def test_cohorts_share_the_numbers_of_clients() -> None:
    store = Archive()
    first = store.laid(record(range(1000, 2000)))
    again = store.laid(record(range(1000, 2000), 2), first)
    some = store.laid(record([*range(900, 1000), *range(1500, 2500)], 3), again)
    assert again.cohort is first.cohort
    assert some.cohort == [*range(900, 1000), *range(1500, 2500)]
    assert {*map(id, first.cohort)} >= {id(client) for client in some.cohort if 1500 <= client < 2000}


def test_without_room_a_round_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(archive.os, "pwrite", full)
    made, store = record(range(1000)), Archive()
    assert store.laid(made) is made
    monkeypatch.undo()
    assert repr(store.laid(made).clients["loss"]) == repr(made.clients["loss"])
