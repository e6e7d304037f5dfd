"""Test vectors of the wire, for other implementations: `python -m tests.network.vectors.make` writes them anew."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atoll.codec import encode
from atoll.codec.header import DTYPES
from atoll.codec.layout import array
from atoll.network import wire
from atoll.tensors import Record, Tensors

PLACE = Path(__file__).parent
CODES = {dtype: code for code, dtype in DTYPES.items()}


def described(value: Any) -> Any:
    """A record as plain JSON: numbers of tensors as the hex of their little-endian bytes, levels as lists."""
    if isinstance(value, Tensor):
        numbers = array(value.contiguous()).tobytes().hex()
        return {"kind": CODES[value.dtype], "shape": list(value.shape), "bytes": numbers}
    if isinstance(value, Record | Tensors):
        kind = "record" if isinstance(value, Record) else "tensors"
        return {"kind": kind, "fields": [[name, described(each)] for name, each in value.items()]}
    if isinstance(value, bool):
        return {"kind": "bool", "value": value}
    if isinstance(value, int):
        return {"kind": "int", "value": str(value)}
    if isinstance(value, float):
        return {"kind": "float", "value": value.hex()}
    return {"kind": "none"} if value is None else {"kind": "str", "value": value}


# --- records ----------------------------------------------------------------------------------------------------


def records() -> dict[str, Record]:
    """What can be written, by what it shows."""
    kinds = Record({code: torch.tensor([0, 1, 1]).to(dtype) for code, dtype in DTYPES.items()})
    floats = [0.0, -0.0, 1.5, 0.1, -2.0, 5e-324, 2.2250738585072014e-308, 1.7976931348623157e308]
    floats += [math.inf, -math.inf, math.nan]
    texts = ["", "plain", 'quotes " and \\ and /', "\b\f\n\r\t\x00\x1f\x7f\u2028", "Ångström, 数, 😀"]
    deep = Record(end=None)
    for _ in range(15):
        deep = Record(level=deep)
    return {
        "nothing": Record(),
        "ints": Record({f"n{at}": n for at, n in enumerate([0, 1, -1, 255, 2**63, -(2**70)])}),
        "floats": Record({f"x{at}": x for at, x in enumerate(floats)}),
        "texts": Record({text or "empty": text for text in texts}),
        "others": Record(yes=True, no=False, none=None),
        "types": kinds,
        "widest first": Record(
            a=torch.tensor([1, 2, 3], dtype=torch.uint8),
            b=torch.tensor([1.5, -2.5]),
            c=torch.tensor(7),
            d=torch.tensor([True, False]),
            e=torch.tensor([0.5], dtype=torch.float64),
        ),
        "shapes": Record(
            scalar=torch.tensor(3.0), none=torch.zeros(0, 3), cube=torch.arange(8.0).reshape(2, 2, 2)
        ),
        "levels": Record(
            params=Tensors({"1.weight": torch.tensor([[1.0, 2.0]]), "1.bias": torch.tensor([0.5])}),
            buffers=Tensors(),
            inner=Record(empty=Record(), after=1),
            last=torch.tensor([-1]),
        ),
        "names": Record(
            {"1": 1, "0": 0, "__metadata__": None, "__proto__": True, "constructor": "x", "é": 2, "": 3}
        ),
        "names of tensors": Record(t=Tensors({"items": torch.tensor(1.0), "0": torch.tensor(2.0)})),
        "deepest": deep,
    }


def file(
    nodes: Any, table: dict[str, Any] | None = None, data: bytes = b"", spelled: str | None = None
) -> bytes:
    """A file with this header, whatever it says."""
    head: dict[str, Any] = {
        "__metadata__": {"record": json.dumps(nodes, separators=(",", ":"))},
        **(table or {}),
    }
    text = (json.dumps(head, separators=(",", ":")) if spelled is None else spelled).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def refused() -> Iterator[tuple[str, bytes]]:
    """What is no record, and why."""
    good = encode(Record(a=torch.tensor([1.0, 2.0]), b=torch.tensor([3])))
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    one, eight = [["", "record", 1], ["a", "F32", [2]]], bytes(8)
    yield "no bytes", b""
    yield "seven bytes", bytes(7)
    yield "a header longer than the file", (1 << 62).to_bytes(8, "little") + good[8:]
    yield "a byte is missing", good[:-1]
    yield "a byte too many", good + b"\0"
    yield "no metadata", file([], spelled='{"a":' + json.dumps(entry) + "}", data=eight)
    yield "not UTF-8", good.replace(b'\\"a\\"', b'\\"\xff\\"', 1)
    yield "no JSON", file([], spelled="{")
    yield (
        "further metadata",
        file([], spelled='{"__metadata__":{"record":"[[\\"\\",\\"record\\",0]]","more":"x"}}'),
    )
    yield "spaces in the header", file([], spelled='{"__metadata__": {"record":"[[\\"\\",\\"record\\",0]]"}}')
    yield "spaces in the fields", file([], spelled='{"__metadata__":{"record":"[[\\"\\", \\"record\\",0]]"}}')
    yield "padding of another length", _padded(16)
    yield "no fields", file([])
    yield "it begins with no record", file([["", "tensors", 0]])
    yield "fewer fields than announced", file([["", "record", 2], ["a", "none", ""]])
    yield "more fields than announced", file([["", "record", 0], ["a", "none", ""]])
    yield "a name twice", file([["", "record", 2], ["a", "none", ""], ["a", "none", ""]])
    yield "a name that is reserved", file([["", "record", 1], ["keys", "none", ""]])
    yield "a name of 513 characters", file([["", "record", 1], ["a" * 513, "none", ""]])
    yield "a text of 4097 characters", file([["", "record", 1], ["a", "str", "b" * 4097]])
    yield "an unknown kind", file([["", "record", 1], ["a", "object", "x"]])
    yield "a kind of the language's", file([["", "record", 1], ["a", "constructor", "x"]])
    yield "a whole number with zeros before it", file([["", "record", 1], ["a", "int", "0x00"]])
    yield "a whole number in decimals", file([["", "record", 1], ["a", "int", "1"]])
    yield "minus zero", file([["", "record", 1], ["a", "int", "-0x0"]])
    yield "a number in decimals", file([["", "record", 1], ["a", "float", "1.5"]])
    yield "a number cut short", file([["", "record", 1], ["a", "float", "0x1.8p+0"]])
    yield "another truth", file([["", "record", 1], ["a", "bool", "True"]])
    yield "nothing that is something", file([["", "record", 1], ["a", "none", "x"]])
    yield "a number in place of text", file([["", "record", 1], ["a", "str", 1]])
    yield "a field of four parts", file([["", "record", 1], ["a", "none", "", ""]])
    yield "a number among tensors", file([["", "record", 1], ["t", "tensors", 1], ["a", "int", "0x1"]])
    yield "a record among tensors", file([["", "record", 1], ["t", "tensors", 1], ["a", "record", 0]])
    yield "deeper than 16 levels", file([["", "record", 1], *[["a", "record", 1]] * 16, ["a", "record", 0]])
    yield "a tensor that the table lacks", file(one, data=eight)
    yield "a tensor that the record lacks", file([["", "record", 0]], {"0": entry}, eight)
    yield "another type in the table", file(one, {"0": {**entry, "dtype": "I32"}}, eight)
    yield "another shape in the table", file(one, {"0": {**entry, "shape": [1, 2]}}, eight)
    yield "another place in the table", file(one, {"0": {**entry, "data_offsets": [8, 16]}}, bytes(16))
    yield (
        "keys of the table in another order",
        file(one, {"0": {"shape": [2], "dtype": "F32", "data_offsets": [0, 8]}}, eight),
    )
    yield (
        "an unknown type",
        file(
            [["", "record", 1], ["a", "F8", [8]]],
            {"0": {"dtype": "F8", "shape": [8], "data_offsets": [0, 8]}},
            eight,
        ),
    )
    yield (
        "a length below zero",
        file([["", "record", 1], ["a", "F32", [-2]]], {"0": {**entry, "shape": [-2]}}),
    )
    yield (
        "a broken length",
        file([["", "record", 1], ["a", "F32", [2.0]]], {"0": {**entry, "shape": [2.0]}}, eight),
    )
    yield (
        "more numbers than fit",
        file(
            [["", "record", 1], ["a", "F32", [1 << 40, 1 << 40]]],
            {"0": {**entry, "shape": [1 << 40, 1 << 40]}},
        ),
    )
    yield "17 dimensions", file([["", "record", 1], ["a", "U8", [1] * 17]], {
        "0": {"dtype": "U8", "shape": [1] * 17, "data_offsets": [0, 1]}
    }, b"\1")  # fmt: skip
    yield "a truth value of 2", file([["", "record", 1], ["a", "BOOL", [1]]], {
        "0": {"dtype": "BOOL", "shape": [1], "data_offsets": [0, 1]}
    }, b"\2")  # fmt: skip
    yield "narrow numbers before wide ones", file([["", "record", 2], ["a", "U8", [8]], ["b", "F32", [2]]], {
        "0": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]},
        "1": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]},
    }, bytes(16))  # fmt: skip


def _padded(width: int) -> bytes:
    good = encode(Record())
    text = good[8:].rstrip(b" ")
    text += b" " * (-len(text) % width)
    text += b" " * (8 if len(text) == len(good) - 8 else 0)
    return len(text).to_bytes(8, "little") + text


# --- messages ---------------------------------------------------------------------------------------------------

HASH = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"
PLAN = wire.Plan(
    method="fedavg",
    hyper={
        "lr": 0.5, "epochs": 2, "steps": None, "batch_size": None, "optimizer": "sgd", "momentum": 0.0,
        "nesterov": False, "weight_decay": 0.0, "clip": 0.0, "schedule": "constant", "partial_work": False,
    },
    model="mlp:3", loss=None, metrics=None, augment=None, channel=None, dp_sgd=None, seed=7, engine="loop",
    data={"label": "kind", "classes": 2}, validation=0, test="auto", rounds=1, cohort=None,
)  # fmt: skip
FORM = wire.DataForm(
    inputs=(wire.Field(name="", dtype="F32", shape=(4,)),),
    targets=wire.Field(name="", dtype="I64", shape=()),
    classes=2,
    train=100,
    test=25,
)
TASK = wire.Task(id="3-0-0", round=3, program="train", shared=wire.Blob(sha256=HASH, size=1520), most=1051616)
MESSAGES: list[wire.Message] = [
    wire.Problem(problem="unjoined", message="ann has not joined"),
    wire.Problem(problem="session", message="ann has joined anew, or must", hint="join again"),
    wire.Hello(protocols=(1,), software="atoll 0.1.0", run="00112233aabbccdd", name="ann", role="node"),
    wire.Hello(protocols=(1, 2), software="atoll 0.1.0", run="00112233aabbccdd"),
    wire.Joining(protocols=(1,), software="mine 1", session="0123456789abcdef"),
    wire.Joining(protocols=(1,), software="mine 1", session="0123456789abcdef", ed25519=HASH, certificate="PEM"),
    wire.Joined(protocol=1, run="00112233aabbccdd", number=0, plan=PLAN, known=False),
    FORM,
    TASK,
    wire.Task(
        id="4-1-0", round=4, program="evaluate on validation", shared=TASK.shared, own=wire.Blob(sha256=HASH, size=9),
        memory="3-0-0", epochs=1, limit=10, seconds=12.5, cohort=4, most=4096,
    ),
    wire.Task(id="3-1-0-keys", round=3, program="keys", shared=TASK.shared, own=TASK.shared, kind="secagg", of="3-0-0"),
    wire.Registry(members=(wire.Member(name="ann", ed25519=HASH), wire.Member(name="bob", ed25519=HASH))),
    wire.Answered(offset=1048576),
    wire.Answered(offset=1520, done=True, refused="its weight is nan"),
    wire.Verdict(problem="stale", round=5),
    wire.Beat(task="3-0-0", done=0.25),
    wire.Beat(),
    wire.Beaten(wanted=True, round=3, state="round 3: 1 of 4 answers (train)"),
    wire.Failure(kind="refused", reason="this client has no program of that name"),
]  # fmt: skip


def misspelled() -> Iterator[tuple[str, str, str]]:
    """(message, text, why it is refused)."""
    form = json.loads(wire.pack(FORM))
    yield "Joining", "", "no JSON"
    yield (
        "Joining",
        '{"protocols":[1],"software":"mine","session":"short"}',
        "a session has 16 characters at least",
    )
    yield "Joining", '{"protocols":[1],"software":"mine"}', "a session is missing"
    yield "Joining", '{"protocols":1,"software":"mine","session":"0123456789abcdef"}', "protocols are a list"
    yield "Joining", '{"protocols":[1],"software":"m","session":"0123456789abcdef","x":1}', "x is unknown"
    yield "Beat", '{"task":"3"}', "that names no task"
    yield "Beat", '{"task":"../../3-0-0"}', "that names no task"
    yield "Failure", '{"kind":"bored","reason":""}', "there is no such kind"
    yield (
        "Failure",
        json.dumps({"kind": "raised", "reason": "x" * 4097}),
        "a reason has 4096 characters at most",
    )
    yield "DataForm", json.dumps({**form, "train": -1}), "counts are not negative"
    yield "DataForm", json.dumps({**form, "train": 1.5}), "counts are whole"
    yield "DataForm", json.dumps({**form, "inputs": []}), "there is at least one input"
    yield "DataForm", json.dumps({**form, "classes": 0}), "there is at least one class"


# --- all of it --------------------------------------------------------------------------------------------------


def content() -> dict[str, Any]:
    """What stands in the files that are the same wherever they are made."""
    return {
        "records.json": [
            {"name": name, "bytes": encode(record).hex(), "record": described(record)}
            for name, record in records().items()
        ],
        "refused.json": [{"name": name, "bytes": blob.hex()} for name, blob in refused()],
        "messages.json": {
            "accepted": [
                {"message": type(each).__name__, "text": wire.pack(each).decode()} for each in MESSAGES
            ],
            "refused": [{"message": kind, "text": text, "why": why} for kind, text, why in misspelled()],
        },
    }


def written(value: Any) -> str:
    """As it stands in a file: a line a part, so that changes can be seen."""
    return json.dumps(value, indent=1, ensure_ascii=True) + "\n"


if __name__ == "__main__":
    from tests.network.vectors.exchange import exchange

    for name, value in {**content(), "exchange.json": exchange()}.items():
        (PLACE / name).write_text(written(value), "utf-8")
