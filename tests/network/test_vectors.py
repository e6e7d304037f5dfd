"""The vectors of the wire: they are current, and Python and JavaScript read, write and refuse the same."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from functools import cache, partial
from typing import Annotated, Any

import msgspec
import pytest
import torch

from atoll.codec import decode, encode
from atoll.errors import CodecError
from atoll.network import wire
from atoll.tensors import Record, named_tensors
from tests.network.vectors.exchange import exchange
from tests.network.vectors.make import PLACE, content, described, records, written

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(not NODE, reason="there is no Node.js here: apt-get install nodejs")


def read(name: str) -> Any:
    return json.loads((PLACE / name).read_text("utf-8"))


def refusal(action: Callable[[], object]) -> str | None:
    """Why it is refused, None where it is not."""
    try:
        action()
    except CodecError as error:
        return error.message
    return None


@cache
def javascript() -> dict[str, Any]:
    """What the JavaScript client makes of the vectors."""
    done = subprocess.run(
        [str(NODE), str(PLACE / "check.mjs")], capture_output=True, text=True, timeout=60, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


# --- Python ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", content())
def test_the_files_are_current(name: str) -> None:
    assert (PLACE / name).read_text("utf-8") == written(content()[name])


def test_records_come_back_from_their_bytes() -> None:
    for vector, record in zip(read("records.json"), records().values(), strict=True):
        blob = bytes.fromhex(vector["bytes"])
        assert encode(record) == blob, vector["name"]
        assert described(decode(blob)) == vector["record"], vector["name"]
        assert encode(decode(blob)) == blob, vector["name"]


def test_what_is_no_record_is_refused() -> None:
    vectors = read("refused.json")
    assert len(vectors) > 40
    for vector in vectors:
        assert refusal(partial(decode, bytes.fromhex(vector["bytes"]))), vector["name"]


def test_messages_are_accepted_and_refused_as_the_vectors_say() -> None:
    vectors = read("messages.json")
    for vector in vectors["accepted"]:
        found = wire.unpack(vector["text"].encode(), getattr(wire, vector["message"]))
        assert wire.pack(found).decode() == vector["text"]
    kinds = {vector["message"] for vector in vectors["accepted"]}
    spoken = {name for name in wire.__all__ if isinstance(getattr(wire, name), type)}
    spoken -= {"Blob", "Field", "Member", "Plan"}  # parts of others
    assert spoken <= kinds, "every message has a vector"
    for vector in vectors["refused"]:
        kind = getattr(wire, vector["message"])
        assert refusal(partial(wire.unpack, vector["text"].encode(), kind)), vector


def test_the_exchange_is_what_a_coordinator_says_today() -> None:
    """But for last bits of numbers, the hashes that follow from them, and the moment of what the run is doing."""
    told, now = read("exchange.json"), exchange()
    assert told["data"] == now["data"]
    assert [step["what"] for step in told["steps"]] == [step["what"] for step in now["steps"]]
    for one, other in zip(told["steps"], now["steps"], strict=True):
        assert one["request"]["method"] == other["request"]["method"]
        assert (
            one["request"]["path"].split("/")[:4] == other["request"]["path"].split("/")[:4]
            or "blob" in one["request"]["path"]
        )
        assert one["response"]["status"] == other["response"]["status"], one["what"]
        assert one["response"].keys() == other["response"].keys(), one["what"]
        if one["what"] == "its body":
            close(blob(one["response"]), blob(other["response"]))
        elif one["what"] in ("a part of the answer", "the figures"):
            assert len(blob(one["request"])) == len(blob(other["request"]))
        if "text" in one["response"]:
            assert said(one) == said(other), one["what"]


def said(step: dict[str, Any]) -> Any:
    """What was answered, without what differs from time to time."""
    found = json.loads(step["response"]["text"])
    found.pop("state", None)
    found.pop("software", None)
    for body in ("shared", "own"):
        if found.get(body):
            found[body].pop("sha256")
    return found


def blob(part: dict[str, Any]) -> bytes:
    return bytes.fromhex(part["bytes"])


def close(one: bytes, other: bytes) -> None:
    """The same record, up to rounding."""
    mine, yours = decode(one), decode(other)
    assert shapes(mine) == shapes(yours)
    for (name, value), (_, due) in zip(named_tensors(mine), named_tensors(yours), strict=True):
        torch.testing.assert_close(
            value, due, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )  # type: ignore[misc]


def shapes(record: Record) -> list[Any]:
    """Names, kinds and shapes, level by level."""
    found = described(record)
    stack, seen = [("", found)], []
    while stack:
        name, each = stack.pop()
        seen.append((name, each["kind"], each.get("shape"), each.get("value")))
        stack += [(key, below) for key, below in each.get("fields", [])]
    return seen


# --- JavaScript -----------------------------------------------------------------------------------------------------


@needs_node
def test_javascript_reads_and_writes_the_same_bytes() -> None:
    for vector, (again, built) in zip(read("records.json"), javascript()["records"], strict=True):
        assert again == vector["bytes"], vector["name"]
        assert built == vector["bytes"], vector["name"]


@needs_node
def test_javascript_refuses_the_same_bytes() -> None:
    for vector, refusal in zip(read("refused.json"), javascript()["refused"], strict=True):
        assert refusal and "another error" not in refusal, f"{vector['name']}: {refusal}"


@needs_node
def test_javascript_answers_as_python_does() -> None:
    """With all samples in one batch there is one order, and the same update to the rounding of 32 bits."""
    steps = {step["what"]: step["request"] for step in read("exchange.json")["steps"]}
    trained = blob(steps["a part of the answer"]) + blob(steps["the rest"])
    answers = [trained, blob(steps["the figures"])]
    for mine, yours in zip(javascript()["answers"], answers, strict=True):
        close(bytes.fromhex(mine), yours)
    query = dict(part.split("=") for part in steps["the rest"]["path"].partition("?")[2].split("&"))
    assert hashlib.sha256(trained).hexdigest() == query["sha256"]
    assert len(trained) == int(query["size"])


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (wire.Hash, "0" * 64),
        (wire.Id, "1-2-3"),
        (wire.Id, "1-2-3-train"),
        (Annotated[str, wire.whole("[a-z]{1,8}(:[0-9]{1,3})?")], "cuda:0"),
    ],
)
def test_a_text_ends_where_its_pattern_does(kind: Any, text: str) -> None:
    """Also before a line break, which "$" lets pass in Python."""
    assert msgspec.json.decode(msgspec.json.encode(text), type=kind) == text
    for wrong in (f"{text}\n", f"\n{text}", f"{text} ", text[:-1] + "\n"):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(msgspec.json.encode(wrong), type=kind)
