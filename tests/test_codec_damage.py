"""Bytes that are no record: every way of being wrong is a CodecError, by name, and costs nothing."""

from __future__ import annotations

import copy
import json
import math
import random
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from atoll.codec import Form, Limits, decode, encode
from atoll.errors import AtollError, CodecError
from atoll.tensors import Record, Tensors

from .test_codec import nested, same

WIDTHS = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


def parts(blob: bytes) -> tuple[list[Any], dict[str, Any], bytes]:
    """The nodes, the table and the numbers of a file."""
    end = 8 + int.from_bytes(blob[:8], "little")
    table = json.loads(blob[8:end])
    return json.loads(table.pop("__metadata__")["record"]), table, blob[end:]


def tabled(nodes: list[Any]) -> dict[str, Any]:
    """The table that goes with nodes, where there is one."""
    found = [node for node in nodes if node[1] in WIDTHS and isinstance(node[2], list)]
    table: dict[str, Any] = {str(at): {"dtype": node[1], "shape": node[2]} for at, node in enumerate(found)}
    end = 0
    for at in sorted(range(len(found)), key=lambda at: -WIDTHS[found[at][1]]):
        begin, end = end, end + math.prod(found[at][2]) * WIDTHS[found[at][1]]
        table[str(at)]["data_offsets"] = [begin, end]
    return table


def packed(
    nodes: Any, table: dict[str, Any] | None = None, numbers: bytes = b"", metadata: Any = None
) -> bytes:
    """A file of these parts, wrong or right."""
    text = json.dumps(nodes, separators=(",", ":"), ensure_ascii=False)
    content = {"__metadata__": metadata or {"record": text}, **(tabled(nodes) if table is None else table)}
    head = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head + numbers


def test_the_format_is_what_it_is() -> None:
    nodes, table, numbers = parts(encode(nested()))
    assert nodes[:4] == [
        ["", "record", 8],
        ["round", "int", "0x3"],
        ["params", "tensors", 2],
        ["0.weight", "F32", [3, 4]],
    ]
    assert table == tabled(nodes)
    assert packed(nodes, table, numbers) == encode(nested())


def edited(
    edit: Callable[[list[Any], dict[str, Any]], Any], numbers: Callable[[bytes], bytes] = bytes
) -> bytes:
    nodes, table, held = parts(encode(nested()))
    edit(nodes, table)
    return packed(nodes, table, numbers(held))


def claimed(*nodes: Any, count: int | None = None) -> bytes:
    """A record of these fields, with a table that agrees."""
    return packed([["", "record", len(nodes) if count is None else count], *nodes])


def spelled(old: bytes, new: bytes) -> bytes:
    """A file whose head is written otherwise."""
    blob = encode(nested())
    end = 8 + int.from_bytes(blob[:8], "little")
    head = blob[8:end].rstrip().replace(old, new, 1)
    return len(head).to_bytes(8, "little") + head + blob[end:]


GOOD = encode(nested())
DEEP = b'{"__metadata__":{"record":"[]"},"x":' + b"[" * 100_000
BAD: list[tuple[bytes, str]] = [
    (b"", "there are 0 bytes, and the header alone ends at 8"),
    (b"\x01\x00", "there are 2 bytes, and the header alone ends at 9"),
    (GOOD[:40], "there are 40 bytes, and the header alone ends at"),
    (b"\xff" * 8 + GOOD[8:], "the header has 18446744073709551615 bytes, and the limit"),
    (GOOD[:-1], "the tensors take 89 bytes, and there are 88"),
    (GOOD + b"\0", "the tensors take 89 bytes, and there are 90"),
    (bytes(8), "the header cannot be read"),
    (packed([], metadata={"format": "pt"}), "the header cannot be read: .*record"),
    (packed({}), "the header cannot be read: .*array"),
    (len(DEEP).to_bytes(8, "little") + DEEP, "the header cannot be read: .*recursion"),
    (packed([]), "the header does not begin with a record"),
    (packed([["", "tensors", 0]]), "the header does not begin with a record"),
    (packed([["x", "record", 0]]), "the header does not begin with a record"),
    (packed([["", "record", []]]), r"the record has \[\] for the number of its fields"),
    (packed([["", "record", -1]]), "the record has -1 for the number of its fields"),
    (packed([["", "record"]]), "the header cannot be read: .*length 3"),
    (packed([["", "record", 0, 1]]), "the header cannot be read: .*length 3"),
    (claimed(["a", "none", ""], count=2), "the record ends before all its fields are there"),
    (claimed(["p", "record", 2], ["a", "none", ""]), "p comes|p ends before all its fields"),
    (claimed(["a", "none", ""], ["b", "none", ""], count=1), "b comes after the last field"),
    (claimed(["a", "none", ""], ["a", "int", "0x1"]), "a is there twice"),
    (claimed(["p", "tensors", 1], ["a", "int", "0x1"], count=1), "p.a is 'int' in a Tensors"),
    (claimed(["p", "record", "1"]), "p has '1' for the number of its fields"),
    (claimed(["p", "record", 10**15]), "p ends before all its fields"),
    (claimed(["a", "pickle", "x"]), "a is of an unknown kind, 'pickle'"),
    (claimed(["a", "F32", "x"]), "a has 'x' for up to 16 dimensions"),
    (claimed(["a", "F32", [1] * 17]), "a has .* for up to 16 dimensions"),
    (claimed(["a", "F32", [-1]]), r"a has the impossible shape \[-1\]"),
    (claimed(["a", "F32", [-1, -4]]), r"a has the impossible shape \[-1, -4\]"),
    (claimed(["a", "F32", [1 << 32, 1 << 32]]), "a has the impossible shape"),
    (claimed(["a", "F32", [0, 1 << 62]]), "a has the impossible shape"),
    (claimed(["a", "F32", [10**4000]]), "a has the impossible shape"),
    (claimed(["a", "F32", [1.5]]), "the header cannot be read"),
    (claimed(["a", "F32", [10**15]]), "with a there are 4000000000000000 bytes, limit"),
    (claimed(*([str(n), "F64", [1 << 25]] for n in range(9))), "with 4 there are 1342177280 bytes, limit"),
    (claimed(["a", "U8", [5]]), "the tensors take 5 bytes, and there are 0"),
    (claimed(["a", "int", "3"]), "a is not an int of up to 4096 characters: '3'"),
    (claimed(["a", "int", "0x_1"]), "a is not an int"),
    (claimed(["a", "int", 3]), "a is not an int"),
    (claimed(["a", "float", "0.1"]), "a is not a float"),
    (claimed(["a", "float", "0x1p+99999"]), "a is not a float"),
    (claimed(["a", "bool", "True"]), "a is not a bool"),
    (claimed(["a", "none", "null"]), "a is not None"),
    (claimed(["a", "str", [1]]), "a is not a str"),
    (claimed(["\x1b[31m" * 9, "none", "x"]), r"'\\x1b\[31m.* is not None"),
    (edited(lambda n, t: t.pop("1")), "params.0.bias is not in the table of tensors"),
    (edited(lambda n, t: t.update({"9": t["1"]})), "the table has a tensor '9', and the record has not"),
    (edited(lambda n, t: t["0"].update(dtype="I32")), "params.0.weight has dtype 'I32' in the table of tensors"),
    (edited(lambda n, t: t["0"].update(shape=[4, 3])), r"params.0.weight has shape \[4, 3\] in the table"),
    (edited(lambda n, t: t["0"].update(shape=[10**15])), r"params.0.weight has shape \[10+\] in the table"),
    (edited(lambda n, t: t["2"].update(data_offsets=t["1"]["data_offsets"])), "inner.count has bytes"),
    (edited(lambda n, t: t["0"].update(data_offsets=[0, 1 << 70])), "params.0.weight has bytes"),
    (edited(lambda n, t: t["0"].update(data_offsets=[0])), "params.0.weight has bytes"),
    (edited(lambda n, t: t["0"].update(data_offsets="no")), "the table of tensors cannot be read"),
    (edited(lambda n, t: t.update({"0": 5})), "the table of tensors cannot be read"),
    (edited(lambda n, t: t["0"].update(more=1)), "the header has a name twice, further metadata, or another spelling"),
    (packed(*parts(GOOD), {"record": json.dumps(parts(GOOD)[0])}), "the header has a name twice"),
    (spelled(b'"0":{', b'"0":{"dtype":"F32",'), "the header has a name twice"),
    (spelled(b'{"record"', b'{"more":"","record"'), "the header has a name twice"),
    (spelled(b'"dtype"', b'"\\u0064type"'), "the header has a name twice"),
    (spelled(b"{", b" {"), "the header has a name twice"),
    (spelled(b'"record"', b'"record":"[]","record"'), "the header has a name twice"),
    (spelled(b"round", b"ro\xffnd"), "the header cannot be read"),
    (spelled(b"round", b"\\\\ud800"), "the header cannot be read"),
    (edited(lambda n, t: None, lambda b: b[:-3] + b"\2" + b[-2:]), "flag has truth values that are neither 0 nor 1"),
]  # fmt: skip


@pytest.mark.parametrize(("blob", "message"), BAD, ids=range(len(BAD)))
def test_wrong_bytes_are_refused_by_name(blob: bytes, message: str) -> None:
    with pytest.raises(CodecError, match=f"^({message})") as caught:
        decode(blob)
    assert isinstance(caught.value, AtollError) and isinstance(caught.value, ValueError)
    assert caught.value.exit_code == 2
    assert "damaged" in str(caught.value)
    assert len(str(caught.value)) < 500
    assert str(caught.value).replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(nbytes=len(GOOD) - 1), "there are .* bytes, and the limit is"),
        (Limits(header=200), "the header has .* bytes, and the limit is 200"),
        (Limits(fields=5), "the record has 15 fields, and the limit is 5"),
        (Limits(depth=1), "inner.empty is deeper than 1 levels"),
        (Limits(name=5), "params: the name has 6 characters, limit 5"),
        (Limits(text=2), "round is not an int of up to 2 characters"),
        (Limits(dimensions=1), r"params.0.weight has \[3, 4\] for up to 1 dimensions"),
    ],
)
def test_limits(limits: Limits, message: str) -> None:
    with pytest.raises(CodecError, match=f"^{message}"):
        decode(GOOD, limits=limits)


def test_exact_limits_are_kept() -> None:
    limits = Limits(nbytes=len(GOOD), fields=15, depth=2, name=8, text=20, dimensions=2)
    assert same(decode(GOOD, limits=limits), nested())


# --- thousands of wrong blobs ---------------------------------------------------------------------------------------

NASTY = [
    -1, 0, 1, 2, 255, 10**15, 1 << 31, (1 << 63) - 1, 1 << 64, 10**40, 1.5, True, None, "", "x", "0x1", "nan", "-inf",
    "F32", "F64", "U8", "BOOL", "record", "tensors", "int", "float", "none", "str", "bool", [], [0], [-1], [10**15],
    [1 << 62, 4], [2, 3], [3, 4], [1] * 40, {}, {"a": 1}, [[]], "@x", "a/b", "é", "0.weight", "9" * 600,
]  # fmt: skip


def spoil_tree(draw: random.Random, tree: Any) -> None:
    """Change one thing in a structure of JSON, in place."""
    while tree:
        at: Any = draw.choice(list(tree) if isinstance(tree, dict) else range(len(tree)))
        if isinstance(tree[at], (dict, list)) and tree[at] and draw.random() < 0.8:
            tree = tree[at]
            continue
        if isinstance(tree, list) and draw.random() < 0.3:
            taken = tree.pop(at)  # gone, elsewhere, or there twice
            for _ in range(draw.randrange(3)):
                tree.insert(draw.randrange(len(tree) + 1), taken)
        elif isinstance(tree, dict) and draw.random() < 0.3:
            tree[str(draw.choice(NASTY))[:9]] = tree.pop(at)
        else:
            tree[at] = copy.deepcopy(draw.choice(NASTY))
        return


def spoiled(draw: random.Random, blob: bytes) -> bytes:
    """A blob that differs, in one of many ways."""
    way = draw.randrange(10)
    raw = bytearray(blob)
    end = 8 + int.from_bytes(blob[:8], "little")
    if way == 0:
        return blob[: draw.randrange(len(blob))]
    if way == 1:
        return blob + draw.randbytes(draw.randint(1, 40))
    if way == 2:  # bits anywhere, or in the head
        for _ in range(draw.randint(1, 4)):
            raw[draw.randrange(draw.choice([len(raw), end]))] ^= 1 << draw.randrange(8)
        return bytes(raw)
    if way == 3:
        length = draw.choice(
            [0, 1, end - 9, end - 7, 1 << 20, 1 << 40, (1 << 64) - 1, draw.randrange(1 << 64)]
        )
        return length.to_bytes(8, "little") + blob[8:]
    if way == 4:  # a piece goes, comes twice or is put elsewhere
        a, b, to = draw.randrange(end), draw.randrange(8, end), draw.randrange(8, len(raw))
        piece = bytes(raw[min(a, b) : max(a, b)])
        body = bytes(raw[8:to]) + piece + bytes(raw[to:])
        return (end - 8 + draw.choice([0, len(piece)])).to_bytes(8, "little") + body
    if way == 5:
        return draw.randbytes(draw.randrange(200))
    nodes, table, numbers = parts(blob)
    for _ in range(draw.randint(1, 2)):
        spoil_tree(draw, table if way == 6 else nodes)
    if way == 7:
        return packed(nodes, table, numbers)
    if way == 8:  # deep nesting, in the table or in the record
        inner: Any = draw.choice(NASTY)
        for _ in range(draw.randrange(400)):
            inner = draw.choice([[inner], {"a": inner}])
        return packed(draw.choice([nodes, inner, [*nodes, inner]]), {**table, "x": inner}, numbers)
    try:  # a table that agrees, and as many bytes as it takes
        table = tabled(nodes) if way == 9 else table
        size = max((entry["data_offsets"][1] for entry in table.values()), default=0)
        return packed(nodes, table, (numbers * 2)[:size])
    except Exception:
        return packed(nodes, table, numbers)


@pytest.fixture
def no_large_tensors(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """What tensors were made, in bytes."""
    made: list[int] = []
    empty = torch.empty

    def counted(shape: list[int], *, dtype: torch.dtype) -> Tensor:
        made.append(math.prod(shape) * dtype.itemsize)
        assert made[-1] <= 100_000, f"{made[-1]} bytes"
        return empty(shape, dtype=dtype)

    monkeypatch.setattr(torch, "empty", counted)
    yield made
    monkeypatch.undo()


def test_ten_thousand_wrong_blobs(no_large_tensors: list[int]) -> None:
    """Each is refused with a CodecError, or is the encoding of a record of the same form and of no other."""
    draw = random.Random(7)
    good = [nested(), Record(), Record(p=Tensors(w=torch.ones(5)), n=1), Record(a=Record(b=Record(c=0.5)))]
    blobs, forms = [encode(record) for record in good], [Form.of(record) for record in good]
    refused = 0
    reasons = set()
    for number in range(10_000):
        at = draw.choice([0, 0, 0, 1, 2, 3])
        blob = spoiled(draw, blobs[at])
        no_large_tensors.clear()
        try:
            back = decode(blob, forms[at] if number % 2 else None)
        except CodecError as error:
            reasons.add(error.message)
            refused += 1
            continue
        assert sum(no_large_tensors) <= len(blob)
        assert encode(back) == blob
        if number % 2:
            forms[at].check(back)
    assert 8_500 < refused < 10_000
    assert len(reasons) > 50


@pytest.mark.parametrize(
    "blob",
    [
        claimed(["a", "F32", [10**15]]),
        claimed(["a", "record", 10**15]),
        claimed(["a", "F64", [1 << 26]]),
        packed([["", "record", 1]] * 20_000),
        packed([["a", "none", ""]], {f"{n}": {} for n in range(50_000)}),
        (1 << 19).to_bytes(8, "little") + b'{"__metadata__":{"record":"' + b"[" * (1 << 19),
        (10**15).to_bytes(8, "little"),
    ],
    ids=range(7),
)
def test_claims_cost_no_memory_and_no_time(blob: bytes) -> None:
    tracemalloc.start()
    try:
        begun = time.perf_counter()
        with pytest.raises(CodecError):
            decode(blob)
        assert time.perf_counter() - begun < 2
        assert tracemalloc.get_traced_memory()[1] < 32 * len(blob) + 100_000
    finally:
        tracemalloc.stop()


def test_a_field_that_no_record_can_have_is_refused_by_name() -> None:
    blob = encode(Record(itemz=1)).replace(b"itemz", b"items")
    with pytest.raises(CodecError, match=r"items has a name that no field of a Record can have"):
        decode(blob)
