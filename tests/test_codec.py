"""The codec of records: what comes back, what is refused and how it is said."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from atoll.codec import OWN, Form, Layout, Limits, decode, encode, outline, pieces, viewed
from atoll.engines.arena import Arena
from atoll.errors import CodecError
from atoll.tensors import RESERVED, Record, Tensors, fields_of

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]
DTYPES = [*FLOATS, *INTEGERS, torch.bool]


def bits(tensor: Tensor) -> bytes:
    plain = tensor.detach().view(torch.int16) if tensor.dtype is torch.bfloat16 else tensor.detach()
    return plain.numpy().tobytes()


def same(one: Any, other: Any) -> bool:
    """Equal to the bit: kinds, names and their order, dtypes, shapes, values."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and (
            one.dtype == other.dtype and one.shape == other.shape and bits(one) == bits(other)
        )
    if type(one) is not type(other):
        return False
    if isinstance(one, (Record, Tensors)):
        return list(one) == list(other) and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, float):
        return (math.isnan(one) and math.isnan(other)) or struct.pack("d", one) == struct.pack("d", other)
    return bool(one == other)


def nested() -> Record:
    return Record(
        round=3,
        params=Tensors({"0.weight": torch.arange(12.0).reshape(3, 4), "0.bias": torch.ones(3).double()}),
        inner=Record(count=torch.tensor(5), empty=Tensors(), deep=Record(lr=0.1, more=None)),
        flag=torch.tensor([True, False, True]),
        half=torch.tensor([0.5, -2.0, 1.0]).to(torch.bfloat16),
        said="yes",
        sure=True,
        nothing=torch.zeros(0, 3),
    )


# --- what comes back ------------------------------------------------------------------------------------------------


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    made = torch.randint(
        -100, 100, [*shape, 2], generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))
    )
    made = made.to(dtype)
    return made[..., 0] if draw(st.booleans()) else made.transpose(0, -1)


LEAVES = st.one_of(
    tensors(),
    st.integers(),
    st.integers(-(1 << 300), 1 << 300),
    st.floats(),
    st.booleans(),
    st.text(),
    st.none(),
)
LEVELS = st.dictionaries(st.text(), tensors(), max_size=3).map(Tensors)
FIELDS = st.text().filter(lambda name: name not in RESERVED)
RECORDS = st.recursive(
    st.dictionaries(FIELDS, st.one_of(LEAVES, LEVELS), max_size=4).map(Record),
    lambda inner: st.dictionaries(FIELDS, st.one_of(LEAVES, LEVELS, inner), max_size=4).map(Record),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(RECORDS)
def test_any_record_comes_back_to_the_bit(record: Record) -> None:
    blob = encode(record)
    back = decode(blob, Form.of(record))
    assert same(record, back)
    assert encode(back) == blob
    header, held = outline(record)
    layout = Layout(header, OWN, 64)
    buffer = bytearray(layout.size)
    layout.write(buffer, held)
    assert same(record, Layout(header, OWN, 64).view(buffer))


def test_names_mean_nothing() -> None:
    names = ["@x", "", "a/b", "a.b", "__metadata__", "0", "record", "update", "é\n\x00\u2028", "🪸", '"\\']
    record = Record({name: at for at, name in enumerate(names)})
    record = record.replace(inner=Record(record), tensors=Tensors({n: torch.ones(1) for n in names}))
    assert same(record, decode(encode(record)))


def test_numbers_stay_exact() -> None:
    values = [
        0,
        -1,
        1 << 64,
        -(10**5000),
        0.1,
        -0.0,
        5e-324,
        math.inf,
        -math.inf,
        math.nan,
        True,
        False,
        None,
        "",
    ]
    record = Record({str(at): value for at, value in enumerate(values)})
    assert same(record, decode(encode(record), limits=OWN))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (2, 3)])
def test_all_dtypes_and_shapes_in_files_and_arenas(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    made = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 9).to(dtype)
    record = Record(odd=torch.ones(3, dtype=torch.uint8), made=Tensors(made=made))
    assert same(record, decode(encode(record)))
    arena = Arena()
    assert same(record, arena.read(arena.write(record)))


def test_views_and_shared_memory() -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    record = Record(
        a=whole, b=whole.T, c=whole[1:3, ::2], d=whole.expand(2, 4, 6), e=whole[0].requires_grad_()
    )
    back = decode(encode(record))
    assert same(record, back)
    assert all(value.is_contiguous() and not value.requires_grad for value in back.values())
    back.a.zero_()
    assert same(Record(back).replace(a=whole), record)


def test_tensors_own_aligned_memory() -> None:
    record = Record(odd=torch.ones(3, dtype=torch.uint8), **{str(n): torch.ones(n) for n in range(1, 9)})
    blob = encode(record)
    back = decode(blob)
    views = Arena()
    for value in [*back.values(), *views.read(views.write(record)).values()]:
        assert value.data_ptr() % 64 == 0
    assert len({value.untyped_storage().data_ptr() for value in back.values()}) == len(back)
    back["8"].add_(1)
    assert same(decode(blob), record)


def test_an_arena_is_read_in_place_and_grows() -> None:
    arena = Arena()
    small = arena.read(arena.write(Record(w=torch.zeros(4))))
    arena.read(arena.write(Record(w=torch.ones(4))))
    assert small.w.tolist() == [1, 1, 1, 1]
    large = Record(w=torch.randn(100_000))
    assert same(arena.read(arena.write(large)), large)


def test_other_programs_can_read_the_file() -> None:
    read = safetensors.torch.load(encode(nested()))
    assert sorted(read) == ["0", "1", "2", "3", "4", "5"]
    assert torch.equal(read["0"], nested().params["0.weight"])
    assert torch.equal(read["4"], nested().half)


def test_a_buffer_must_hold_what_the_header_claims() -> None:
    header, held = outline(nested())
    layout = Layout(header, OWN, 64)
    for act in (lambda b: layout.view(b), lambda b: layout.write(b, held)):
        with pytest.raises(CodecError, match=r"the tensors take \d+ bytes, and the buffer has 100"):
            act(bytearray(100))


# --- what cannot be written -----------------------------------------------------------------------------------------


def looped() -> Record:
    record = Record()
    fields_of(record)["again"] = record
    return record


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (Record(a=Record(b=np.float64(1))), "a.b is a numpy.float64, which a Record cannot hold"),
        (Record(a=[1, 2]), "a is a builtins.list, which a Record cannot hold"),
        (Record(a={"b": 1}), "a is a builtins.dict, which a Record cannot hold"),
        (Record(a=torch.ones(2, dtype=torch.complex64)), "a is a torch.complex64 tensor"),
        (Record(a=torch.ones(2).to_sparse()), r"a is a torch.float32 tensor \(torch.sparse_coo, cpu\)"),
        (Record(a=torch.ones(2, device="meta")), r"a is a torch.float32 tensor \(torch.strided, meta\)"),
        (Record(p=Tensors(w=1.0)), "p.w is a float, which a Tensors cannot hold"),  # type: ignore[arg-type]
        (Record(p=Tensors(w=Tensors())), "p.w is a Tensors, which a Tensors cannot hold"),  # type: ignore[arg-type]
        (Record(a=Record({1: 2})), "a has a field with the name 1"),  # type: ignore[dict-item]
        (Record({"\ud800": 2}), r"\S+ (record )?has a field with the name '\\ud800'"),
        (Record(a="\ud800"), "a is a str, which"),
        (looped(), "again.* is deeper than 64 levels"),
        (Tensors(w=torch.ones(2)), "a Tensors is no Record"),
    ],
)  # fmt: skip
def test_what_no_record_can_hold(record: Any, message: str) -> None:
    with pytest.raises(CodecError, match=message) as caught:
        encode(record)
    assert caught.value.hint
    if "levels" not in message:
        with pytest.raises(CodecError, match=message):
            Form.of(Record(x=record)).check(Record()) if type(record) is Record else Form.of(record)


# --- what is expected -----------------------------------------------------------------------------------------------


def changed(**fields: Any) -> Record:
    return nested().replace(**fields)


def params(other: dict[str, Tensor]) -> Tensors:
    return Tensors({**nested().params, **other})


WRONG: list[tuple[Record, str]] = [
    (changed(params=params({"0.weight": torch.ones(4, 4)})), r"params.0.weight has shape \(4, 4\), not \(3, 4\)"),
    (changed(params=params({"0.bias": torch.ones(3)})), "params.0.bias has dtype float32, not float64"),
    (changed(params=Tensors({"0.weight": torch.ones(3, 4)})), "params.0.bias is missing"),
    (changed(params=params({"1.bias": torch.ones(3)})), "params.1.bias is not expected"),
    (changed(params=Tensors(reversed(nested().params.items()))), "the fields of params are in another order"),
    (changed(params=Record(nested().params)), "params is a Record, not a Tensors"),
    (changed(round=3.0), "round is a float, not an int"),
    (changed(sure=1), "sure is an int, not a bool"),
    (changed(flag=None), "flag is None, not a tensor"),
    (changed(said=torch.ones(1)), "said is a tensor, not a str"),
    (changed(inner=Record()), "inner.count is missing"),
    (changed(inner=nested().inner.replace(deep=Record(lr=0.1))), "inner.deep.more is missing"),
    (changed(extra=1), "extra is not expected"),
    (Record(list(nested().items())[::-1]), "the fields of the record are in another order"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "message"), WRONG)
def test_another_form_is_refused_by_name(record: Record, message: str) -> None:
    form = Form.of(nested())
    for refused in (lambda: form.check(record), lambda: decode(encode(record), form)):
        with pytest.raises(CodecError, match=f"^{message}") as caught:
            refused()
        assert "same model" in str(caught.value)


def test_values_do_not_count_and_any_is_anything() -> None:
    form = Form.of(nested().replace(inner=Form.any()))
    other = changed(round=7, said="no", nothing=torch.ones(0, 3), inner=Record({"5": nested(), "9": 2}))
    for inner in (other.inner, Record(), 3, torch.ones(2), Tensors()):
        form.check(other.replace(inner=inner))
        assert same(decode(encode(other.replace(inner=inner)), form).inner, inner)
    with pytest.raises(CodecError, match="inner is missing"):
        form.check(Record({name: value for name, value in other.items() if name != "inner"}))
    with pytest.raises(CodecError, match=r"inner\.5\.inner\.empty is deeper than 3 levels"):
        decode(encode(other), form, Limits(depth=3))


def test_nothing_is_made_of_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("made a tensor")

    blob = encode(nested())
    monkeypatch.setattr(torch, "empty", never)
    with pytest.raises(CodecError, match="round is an int, not a float"):
        decode(blob, Form.of(changed(round=1.0)))


def test_a_view_of_a_buffer_is_the_record() -> None:
    """Views are what copies are, and refused for the same reasons; in pieces a record is the same bytes."""
    blob = encode(nested())
    assert b"".join(pieces(nested())) == blob
    buffer = bytearray(blob)
    assert same(viewed(buffer, OWN), decode(blob, limits=OWN))
    truth = Record(a=torch.ones(3), b=torch.tensor([True, False, True]))
    damaged = bytearray(encode(truth))
    found = viewed(damaged)
    damaged[-1] = 2
    assert found.b.view(torch.uint8)[2] == 2, "it was a copy"
    with pytest.raises(CodecError, match="truth values"):
        viewed(damaged)
    with pytest.raises(CodecError, match="and there are"):
        viewed(bytearray(blob[:-1]), OWN)
