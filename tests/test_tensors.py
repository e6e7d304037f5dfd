"""Named tensors, records and counter-based streams."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import vmap
from torch.utils import _pytree as pytree

from atoll import seeds
from atoll.rounds.memories import MemoryStore
from atoll.tensors import Record, Tensors, leaves, map_leaves, to_device


def pair() -> tuple[Tensors, Tensors]:
    return (
        Tensors(a=torch.tensor([1.0, 2.0]), b=torch.tensor([[3.0]])),
        Tensors(a=torch.tensor([10.0, 20.0]), b=torch.tensor([[30.0]])),
    )


def test_arithmetic_is_by_name() -> None:
    x, y = pair()
    z = x - y * 0.1 + 2
    assert z["a"].tolist() == [2.0, 2.0]
    assert (y / 10)["b"].tolist() == [[3.0]]
    assert float(x.dot(y)) == 10 + 40 + 90
    assert float(x.norm()) == pytest.approx(14**0.5)
    with pytest.raises(KeyError, match="c"):
        x + Tensors(a=x["a"], c=x["b"])


def test_flat_and_back() -> None:
    x, _ = pair()
    assert x.flat().tolist() == [1, 2, 3]
    assert x.unflat(torch.tensor([4.0, 5.0, 6.0]))["b"].tolist() == [[6.0]]
    assert (x.size(), x.nbytes()) == (3, 12)


def test_records_are_values_whose_fields_are_attributes() -> None:
    record = Record(update=torch.ones(2), pop=3)
    assert record.update.tolist() == [1, 1]
    assert record.replace(pop=4).pop == 4
    assert record["pop"] == 3
    with pytest.raises(AttributeError, match="replace"):
        record.pop = 5
    for name in ("get", "items", "keys", "replace", "values"):
        with pytest.raises(ValueError, match=name):
            Record({name: 1})
        with pytest.raises(ValueError, match=name):
            record.replace(**{name: 1})
    with pytest.raises(AttributeError, match="update"):
        _ = record.missing


def nested() -> Record:
    return Record(
        round=3,
        params=Tensors({"0.weight": torch.randn(2, 3), "0.bias": torch.randn(3, dtype=torch.float64)}),
        inner=Record(count=torch.tensor(5), empty=Tensors(), deep=Record()),
        flag=torch.tensor([True, False]),
        half=torch.randn(3).to(torch.bfloat16),
    )


def test_what_a_broken_off_round_put_is_forgotten() -> None:
    store = MemoryStore()
    store.put(1, Record(w=torch.ones(2)))
    store.commit()
    store.put(1, Record(w=torch.zeros(2)))
    store.put(2, Record(w=torch.zeros(2)))
    assert store.clients() == [1, 2]
    store.rollback()
    assert store.clients() == [1]
    assert store.changed == {1}
    found = store.get(1)
    assert found is not None
    assert float(found.w.sum()) == 2.0


def test_memories_spill_to_disk_and_come_back() -> None:
    store = MemoryStore(budget=5 * 4000)
    for client in range(40):
        store.put(client, Record(w=Tensors(a=torch.full((1000,), float(client)))))
        store.commit()
    store.put(3, Record(w=Tensors(a=torch.full((1000,), -3.0))))
    store.commit()
    assert 0 < store.held <= 5 * 4000
    assert store.clients() == list(range(40))
    for client in (0, 3, 17, 39):
        found = store.get(client)
        assert found is not None
        assert float(found.w["a"][0]) == (-3.0 if client == 3 else client)
    assert store.get(99) is None
    store.close()


# --- streams ---


def test_streams_have_addresses() -> None:
    draw = seeds.rng(1, "order", 2, 3).integers(0, 1 << 60, 4)
    assert np.array_equal(draw, seeds.rng(1, "order", 2, 3).integers(0, 1 << 60, 4))
    for other in ((2, "order", 2, 3), (1, "cohort", 2, 3), (1, "order", 3, 3), (1, "order", 2, 4)):
        assert not np.array_equal(draw, seeds.rng(*other).integers(0, 1 << 60, 4))


@pytest.mark.parametrize("seed", [0, 7, -3, 1 << 40])
def test_addresses_of_many_clients_are_those_of_each(seed: int) -> None:
    clients = [0, 1, 5, 1 << 20, 5]
    assert seeds.addresses(seed, "step", 3, clients) == [seeds.address(seed, "step", 3, c) for c in clients]


def test_a_stream_is_philox_with_its_address_as_key_and_counter() -> None:
    """What NumPy gives for that key, however the generator is made; a copy goes on where it stands."""
    found = seeds.rng(7, "order", 3, 12)
    key, counter = np.array([7, seeds._word("order")], np.uint64), np.array([0, 0, 12, 3], np.uint64)
    assert (
        found.random(9) == np.random.Generator(np.random.Philox(key=key, counter=counter)).random(9)
    ).all()
    assert (copy.deepcopy(found).random(5) == found.random(5)).all()


def test_tensors_that_are_there_are_not_moved() -> None:
    cpu, meta = torch.device("cpu"), torch.device("meta")
    tree = Record(params=Tensors(w=torch.ones(2)), lr=torch.tensor(0.1), rounds=3)
    whole = Record(params=tree.params, lr=tree.lr)
    assert to_device(whole, cpu) is whole
    moved = to_device(whole, meta)
    assert moved.params["w"].device == meta and moved.lr.device == meta and whole.lr.device == cpu
    assert to_device(Record(a=tree.lr, b=moved.lr), meta).a.device == meta
    assert to_device(tree, cpu).rounds == 3


def test_tensor_streams_look_uniform_and_normal() -> None:
    key = torch.tensor(seeds.address(0, "test"))
    u = seeds.uniform(key, (200, 500))
    assert float(u.min()) >= 0 and float(u.max()) < 1
    assert float(u.mean()) == pytest.approx(0.5, abs=0.005)
    assert float(u.var()) == pytest.approx(1 / 12, rel=0.02)
    assert abs(float(torch.corrcoef(torch.stack([u[:-1].flatten(), u[1:].flatten()]))[0, 1])) < 0.01
    counts = torch.histc(u, 50, 0, 1)
    assert float(((counts - 2000) ** 2 / 2000).sum()) < 90  # chi-square, 49 degrees of freedom
    z = seeds.normal(key, (100_000,))
    assert float(z.mean()) == pytest.approx(0, abs=0.02)
    assert float(z.std()) == pytest.approx(1, abs=0.02)


@given(st.integers(0, 2**62 - 1), st.integers(0, 1000))
def test_streams_do_not_depend_on_batching_or_on_rows_below(address: int, step: int) -> None:
    keys = torch.tensor([address, (address * 31 + 7) % 2**62])
    folded = vmap(lambda k: seeds.uniform(seeds.fold(k, step), (5, 3)))(keys)
    alone = seeds.uniform(seeds.fold(keys[1], step), (9, 3))
    assert torch.equal(folded[1], alone[:5])
    assert not torch.equal(folded[0], folded[1])


def test_scoped_seeding_leaves_the_global_state() -> None:
    before = torch.get_rng_state()
    with seeds.scoped(5):
        first = torch.rand(3)
    with seeds.scoped(5):
        assert torch.equal(first, torch.rand(3))
    assert torch.equal(before, torch.get_rng_state())


def test_map_leaves_keeps_structure() -> None:
    record = nested()
    doubled = map_leaves(
        lambda v: v * 2 if isinstance(v, torch.Tensor) and v.is_floating_point() else v, record
    )
    assert torch.equal(doubled.params["0.weight"], record.params["0.weight"] * 2)
    assert doubled.round == 3


class Named(NamedTuple):
    """A structure that is not ours."""

    part: Tensors
    rest: list[torch.Tensor]


def structures() -> list[Any]:
    x, y = pair()
    return [
        torch.ones(2), Record(), Tensors(), x, Record(a=x, n=3, none=None, deep=Record(b=y, c=torch.ones(()))),
        Record(a=[x, {"k": y}], t=Named(x, [torch.zeros(1)])), [Record(a=x), (y,)], 2.5, None,
    ]  # fmt: skip


@pytest.mark.parametrize("at", range(len(structures())))
def test_structures_are_gone_through_as_pytrees_are(at: int) -> None:
    tree = structures()[at]

    def plus(one: Any, two: Any = 0) -> Any:
        return one if one is None else (one + two, type(one))

    assert list(map(id, leaves(tree))) == list(map(id, pytree.tree_leaves(tree)))
    for rest in ((), (tree,)):
        mine, torchs = map_leaves(plus, tree, *rest), pytree.tree_map(plus, tree, *rest)
        assert str(mine) == str(torchs)
        assert type(mine) is type(torchs)
    again = map_leaves(lambda leaf: leaf, tree)
    assert again is not tree or not isinstance(tree, Record | Tensors)


@pytest.mark.parametrize(
    "other",
    [Record(b=1, a=2), Record(a=1), Record(a=1, b=2, c=3), Tensors(), Record(a=1, b=Record(c=1, d=2)), 3],
)
def test_structures_of_other_forms_are_refused(other: Any) -> None:
    with pytest.raises(ValueError, match=r"Node|Type mismatch"):
        map_leaves(lambda a, b: a, Record(a=1, b=Record(c=1)), other)
