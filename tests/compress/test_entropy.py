"""Without loss: it comes back, a simulation knows how long it was, and nobody is made to open too much."""

from __future__ import annotations

import math
import struct
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from atoll.channel import Shrink, channel
from atoll.channel.down import Down
from atoll.compress import CODECS, Codec, Same, parse
from atoll.compress.entropy import needed, squeezed, unsqueezed
from atoll.errors import CodecError, ConfigError, MissingExtraError
from atoll.tensors import Record

NONE = torch.zeros((), dtype=torch.int64)
CODED: tuple[Codec, ...] = (Same(), *(parse(text) for text in ("bf16", "fp16", "int8", "int4")))


def like_updates(size: int, seed: int = 0) -> Tensor:
    """Normal numbers, a tenth of them and all of a short stretch near nothing."""
    generator = torch.Generator().manual_seed(seed)
    found = 1e-2 * torch.randn(size, generator=generator)
    return found * (torch.rand(size, generator=generator) > 0.1)


@pytest.mark.parametrize("codec", CODED, ids=lambda each: each.text)
@pytest.mark.parametrize("size", [1, 255, 4096, 5001])
def test_what_was_sent_comes_back_to_the_bit(codec: Codec, size: int) -> None:
    sent = codec.encode(like_updates(size), NONE)
    back = unsqueezed(squeezed(sent), codec.form((size,)))
    codec.check(back, (size,))
    for name, part in sent.items():
        assert torch.equal(part.view(torch.uint8), back[name].view(torch.uint8))


@pytest.mark.parametrize(
    ("codec", "least"), [(Same(), 1.1), (parse("bf16"), 1.3), (parse("int8"), 1.1), (parse("int4"), 1.1)]
)
def test_it_is_shorter(codec: Codec, least: float) -> None:
    sent = codec.encode(like_updates(50_000), NONE)
    assert codec.nbytes((50_000,)) / len(squeezed(sent).zstd) > least


def test_what_has_no_pattern_is_hardly_longer() -> None:
    noise = Record(numbers=torch.randint(0, 256, (10_000,), dtype=torch.uint8))
    assert len(squeezed(noise).zstd) <= 10_000 + 64


@pytest.mark.parametrize("text", [text for text in ("bf16", "fp16", "int8", "int4") if parse(text).again])
@given(
    parts=st.lists(
        st.one_of(
            st.floats(-(2.0**62), 2.0**62, width=32),
            st.floats(-(2.0**-120), 2.0**-120, width=32),
            st.sampled_from([0.0, 1.0, -1.0, 1e-45, 127.0]),
        ),
        min_size=1,
        max_size=40,
    )
)
@settings(max_examples=150, deadline=None)
def test_what_came_back_is_packed_to_the_same_again(text: str, parts: list[float]) -> None:
    """By which a simulation counts. (fp16 has no numbers above 65504, and no reply may have them.)"""
    codec, value = parse(text), torch.tensor(parts, dtype=torch.float32)
    value = value.clamp(-65504, 65504) if text == "fp16" else value
    first = codec.encode(value, NONE)
    again = codec.encode(codec.through(value, NONE), NONE)
    for name in first:
        assert torch.equal(first[name], again[name]), name


def test_codecs_of_which_that_is_not_true_do_not_say_so() -> None:
    value = like_updates(5000)
    needs = {"topk": "0.1", "randk": "0.1", "qsgd": "7", "eden": "2", "powersgd": "1", "sketch": "4"}
    for name in CODECS:
        codec = parse(f"{name}:{needs[name]}" if name in needs else name)
        first, again = codec.encode(value, NONE), codec.encode(codec.through(value, NONE), NONE)
        if not all(torch.equal(first[each], again[each]) for each in first):
            assert not codec.again, name


# --- what is refused ------------------------------------------------------------------------------------------------

FORM = parse("int8").form((5000,))


def frame(content: bytes) -> Record:
    made = needed().ZstdCompressor().compress(content)
    return Record(zstd=torch.frombuffer(bytearray(made), dtype=torch.uint8))


def test_bombs_are_refused() -> None:
    """A hundred megabytes of nothing take some kilobytes; what they say of themselves, or hide, makes no difference."""
    size = sum(math.prod(shape) * dtype.itemsize for dtype, shape in FORM.values())
    bomb = frame(bytes(100_000_000))
    assert len(bomb.zstd) < 2 * size + 5000
    with pytest.raises(CodecError, match="bytes"):
        unsqueezed(bomb, FORM)
    with pytest.raises(CodecError, match=f"{size} are due"):
        unsqueezed(frame(bytes(size + 1)), FORM)
    with pytest.raises(CodecError, match="are due"):
        unsqueezed(frame(bytes(size - 1)), FORM)
    assert unsqueezed(frame(bytes(size)), FORM).keys() == FORM.keys()
    compressor = needed().ZstdCompressor(write_content_size=False)
    unsaid = torch.frombuffer(bytearray(compressor.compress(bytes(10_000_000))), dtype=torch.uint8)
    with pytest.raises(CodecError, match="are due"):
        unsqueezed(Record(zstd=unsaid), FORM)


def test_a_frame_that_lies_about_its_length_gives_no_more() -> None:
    """The header says what is due, and far more is behind it."""
    size = sum(math.prod(shape) * dtype.itemsize for dtype, shape in FORM.values())
    honest, large = (needed().ZstdCompressor().compress(bytes(many)) for many in (size, 60_000))
    assert honest[4] >> 6 == large[4] >> 6 == 1  # lengths of two bytes
    at = 5 if honest[4] & 32 else 6
    lying = bytearray(large)
    lying[at : at + 2] = struct.pack("<H", size - 256)
    assert needed().get_frame_parameters(bytes(lying)).content_size == size
    with pytest.raises(CodecError, match="cannot be opened"):
        unsqueezed(Record(zstd=torch.frombuffer(lying, dtype=torch.uint8)), FORM)


def test_nobody_is_made_to_keep_more_than_is_usual_of_what_came_before() -> None:
    """A frame that says the right length, breaks off, and asks for 32 MB to look back in: what is whole needs none."""
    content = bytes(range(250)) * 2
    form = {"numbers": (torch.uint8, (len(content),))}

    def framed(window: int, end: int | None = None) -> Record:
        head = b"\x28\xb5\x2f\xfd" + bytes([1 << 6, window - 10 << 3]) + struct.pack("<H", len(content) - 256)
        block = (len(content) << 3 | 1).to_bytes(3, "little") + content  # the last one, as it is
        return Record(zstd=torch.frombuffer(bytearray((head + block)[:end]), dtype=torch.uint8))

    assert bytes(unsqueezed(framed(23), form).numbers.tolist()) == content
    with pytest.raises(CodecError, match="too much memory"):
        unsqueezed(framed(25, end=-3), form)
    with pytest.raises(CodecError, match="cannot be opened"):
        unsqueezed(framed(23, end=-3), form)


def test_what_is_damaged_is_refused() -> None:
    sent = squeezed(parse("int8").encode(like_updates(5000), NONE))
    wrong = (
        Record(), Record(zstd=3), Record(zstd=sent.zstd.float()), Record(zstd=sent.zstd[:0]),
        Record(zstd=sent.zstd[:-3]), Record(zstd=sent.zstd[None]), Record(zstd=torch.cat([sent.zstd, sent.zstd])),
        sent.replace(more=sent.zstd), Record(zstd=torch.zeros(100, dtype=torch.uint8)),
        Record(zstd=torch.cat([sent.zstd, sent.zstd[:20]])), sent.zstd,
    )  # fmt: skip
    for each in wrong:
        with pytest.raises(CodecError):
            unsqueezed(each, FORM)
    unsqueezed(sent, FORM)


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("drive + zstd", "next to nothing", "bf16"),
        ("topk:0.1 + zstd", "next to nothing", "zstd"),
        ("int8 / bf16 + zstd", "who takes which", "one codec"),
        ("clip:1 + zstd", "clip is none", "bf16 + zstd"),
        ("auto:0.1 + zstd", "auto is none", "bf16 + zstd"),
        ("zstd + feedback", "loses nothing", "feedback out"),
        ("int8 + zstd + zstd", "unknown channel 'zstd'", None),
        ("int8 + zst", "unknown channel 'zst'", "zstd"),
    ],
)
def test_where_it_cannot_stand(text: str, says: str, hint: str | None) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        channel(text)
    assert hint is None or hint in str(error.value.hint)


@pytest.mark.parametrize("text", ["int8 + zstd + feedback", "drive + zstd", "zstd + feedback", "int8 + zst"])
def test_where_it_cannot_stand_on_the_way_down(text: str) -> None:
    with pytest.raises(ConfigError, match="down"):
        Down.parse(text)
    assert Down.parse("bf16 + zstd").text == "bf16 + zstd"
    assert Down.parse("zstd").text == "zstd"


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    for made in (
        lambda: channel("bf16 + zstd"),
        lambda: Down.parse("zstd"),
        lambda: Shrink(Same(), zstd=True),
    ):
        with pytest.raises(MissingExtraError, match="zstandard, which is not installed") as error:
            made()
        assert error.value.hint == 'pip install "atoll[zstd]"'
    channel("bf16")
