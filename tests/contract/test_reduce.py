"""Reducers: a rule for each field, parts, stacks, and what crosses a process."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from atoll.contract import Answer, Each, Gathering, Job, Mean, Reducer, Reply, Work, chunks
from atoll.errors import RunError
from atoll.methods import FedAvg
from atoll.tensors import Record, Tensors, leaves

RULES = {"counters": "max", "votes": "sum"}


def reply(seed: int) -> Reply:
    generator = torch.Generator().manual_seed(seed)
    return Reply(
        Record(
            update=Tensors(w=torch.randn(2, 3, generator=generator), b=torch.randn((), generator=generator)),
            counters=Tensors(n=torch.randint(100, (2,), generator=generator)),
            votes=torch.randint(5, (4,), generator=generator),
        ),
        torch.tensor(float(seed % 7 + 1)),
        Record(loss=torch.tensor(1.0)),
    )


def stacked(replies: list[Reply]) -> Reply:
    from atoll.tensors import map_leaves

    return map_leaves(lambda *values: torch.stack(values), replies[0], *replies[1:])  # type: ignore[no-any-return]


def expected(replies: list[Reply]) -> tuple[Tensor, Tensor, Tensor]:
    weights = torch.stack([each.weight for each in replies]).double()
    update = torch.stack([each.values["update"]["w"].double() for each in replies])
    mean = torch.tensordot(weights / weights.sum(), update, 1)
    counters = torch.stack([each.values.counters["n"] for each in replies]).amax(0)
    return mean, counters, torch.stack([each.values.votes for each in replies]).sum(0)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=9), st.integers(0, 9))
def test_added_stacked_merged_or_carried_over_it_is_the_same(drawn: list[int], cut: int) -> None:
    replies = [reply(each) for each in drawn]
    one, other, first, second = (Mean(RULES) for _ in range(4))
    for client, each in enumerate(replies):
        one.add(client, each)
        (first if client < cut else second).add(client, each)
    other.add_stacked(range(len(replies)), stacked(replies))
    carried = Mean(RULES)
    carried.take(first.held())  # what a worker held, as a record
    carried.merge(second)
    mean, counters, votes = expected(replies)
    for reducer in (one, other, carried):
        found = reducer.result()
        assert found is not None
        assert found.clients == list(range(len(replies)))
        assert found.weight == sum(float(each.weight) for each in replies)
        torch.testing.assert_close(found.mean["update"]["w"].double(), mean, rtol=1e-4, atol=1e-5)
        assert torch.equal(found.mean.counters["n"], counters)
        assert torch.equal(found.mean.votes, votes)


def test_whole_numbers_are_not_averaged_by_accident() -> None:
    for add in ("add", "add_stacked"):
        reducer = Mean({"votes": "sum"})
        with pytest.raises(RunError, match=r"counters\.n holds whole numbers.*\n.*rules"):
            reducer.add(0, reply(1)) if add == "add" else reducer.add_stacked([0], stacked([reply(1)]))


def test_replies_are_left_as_they_were() -> None:
    replies = [reply(1), reply(2)]
    before = [value.clone() for each in replies for value in leaves(each)]
    reducer = Mean(RULES)
    for client, each in enumerate(replies):
        reducer.add(client, each)
    reducer.result()
    for value, kept in zip((v for each in replies for v in leaves(each)), before, strict=True):
        assert torch.equal(value, kept)


def test_each_keeps_all_in_client_order() -> None:
    reducer, part = Each(), Each()
    reducer.add(4, reply(4))
    part.add_stacked([1, 3], stacked([reply(1), reply(3)]))
    carried = Each()
    carried.take(part.held())
    reducer.merge(carried)
    found = reducer.result()
    assert found is not None and found.clients == [1, 3, 4] and found.count == 3
    for client, each in zip(found.clients, found.each, strict=True):
        for a, b in zip(leaves(each), leaves(reply(client)), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("reducer", [Mean(RULES), Each()])
def test_nothing_or_no_weight_is_no_result(reducer: Reducer) -> None:
    assert reducer.result() is None
    reducer.add(0, reply(1)._replace(weight=torch.tensor(0.0)))
    assert reducer.result() is None


def test_a_sum_is_divided_where_it_lies_and_only_once() -> None:
    reducer = Mean(RULES)
    for client in (1, 2):
        reducer.add(client, reply(client))
    assert reducer.result() is not None
    with pytest.raises(AssertionError):
        reducer.result()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 200), st.randoms(use_true_random=False))
def test_answers_in_any_order_are_summed_as_if_they_had_come_in_order(count: int, random: object) -> None:
    method = FedAvg()
    clients = list(range(0, 2 * count, 2))
    values = {k: Record(update=Tensors(w=reply(k).values["update"]["w"])) for k in clients}
    job = Job(method, Work(Record()), clients, 1, 0)
    results = []
    for shuffled in (False, True):
        order = list(clients)
        if shuffled:
            random.shuffle(order)  # type: ignore[attr-defined]
        gathering = Gathering(job)
        for k in order:
            gathering.deliver(Answer(k, Reply(values[k], torch.tensor(float(k + 1)), Record())))
        assert gathering.missing == []
        reducer, outcomes = gathering.result()
        assert [each.client for each in outcomes] == clients
        found = reducer.result()
        assert found is not None
        results.append(found.mean["update"]["w"])
    assert torch.equal(*results)
    whole = Mean()
    for run in chunks(count):
        part = Mean()
        for at in run:
            part.add(clients[at], Reply(values[clients[at]], torch.tensor(float(clients[at] + 1)), Record()))
        whole.merge(part)
    found = whole.result()
    assert found is not None and torch.equal(found.mean["update"]["w"], results[0])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=9))
def test_a_part_of_one_reply_is_added_tensor_by_tensor(drawn: list[int]) -> None:
    """To the bit what a part makes that is merged, and the reply stays what it was."""
    whole, one = Mean(RULES), Mean(RULES)
    for client, seed in enumerate(drawn):
        part = Mean(RULES)
        part.add(client, reply(seed))
        whole.merge(part)
        given_, before = reply(seed), reply(seed)
        one.merge_one(lambda: Mean(RULES), client, given_)
        assert all(map(torch.equal, leaves(given_.values), leaves(before.values)))
    due, found = whole.result(), one.result()
    assert (
        due is not None and found is not None and (due.clients, due.weight) == (found.clients, found.weight)
    )
    assert all(map(torch.equal, leaves(due.mean), leaves(found.mean)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("turned", [False, True])
def test_a_large_reply_is_a_part_of_its_own_piece_by_piece(dtype: torch.dtype, turned: bool) -> None:
    """Weighed and rounded before it is added, whatever lies between pieces."""
    draw = torch.Generator().manual_seed(1)
    values = [torch.randn(401, 1003, generator=draw).to(dtype) for _ in range(3)]
    values = [each.t() for each in values] if turned else values
    replies = [
        Reply(Record(update=Tensors(w=each)), torch.tensor(0.3 + at), Record())
        for at, each in enumerate(values)
    ]
    one, other = Mean(), Mean()
    for client, reply in enumerate(replies):
        one.merge_one(Mean, client, reply)
        part = Mean()
        part.add(client, reply)
        other.merge(part)
    found, due = one.result(), other.result()
    assert found is not None and due is not None
    assert torch.equal(found.mean.update["w"], due.mean.update["w"]) and found.mean.update["w"].dtype == dtype
