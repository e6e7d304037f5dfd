"""Codecs: what comes back, how far it is off, and how many bytes travel."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import vmap

from atoll import compress, seeds
from atoll.codec import decode, encode
from atoll.compress import NF4, Codec, PowerSGD, Whole, packing, parse
from atoll.compress.nf4 import levels
from atoll.compress.rotated import CENTROIDS, hadamard
from atoll.errors import CodecError, ConfigError
from atoll.tensors import Record, nbytes

TEXTS = (
    "bf16", "fp16", "int8", "int4", "topk:0.05", "topk:1", "randk:0.1", "sign", "qsgd:1", "qsgd:7", "qsgd:127", "drive",
    "nf4", "nf4:100", "drive:unbiased", "eden:2", "eden:3", "eden:4,unbiased", "powersgd:2",
    "sketch:4", "sketch:2,1",
)  # fmt: skip
SIZES = (1, 2, 7, 511, 4096, 4097, 9000)


def normal(size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def key(number: int = 1) -> Tensor:
    return torch.tensor(number * 0x9E3779B97F4A7 % (1 << 62))


def nmse(codec: Codec, value: Tensor, at: Tensor) -> float:
    return float((codec.through(value, at) - value).square().sum() / value.square().sum())


# --- for all of them ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
def test_a_codec_reads_as_it_is_written(text: str) -> None:
    assert parse(text).text == text
    assert parse(text) == parse(text)
    assert hash(parse(text)) == hash(parse(text))


def test_every_codec_is_tried_here() -> None:
    assert {text.partition(":")[0] for text in TEXTS} == {*compress.CODECS}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("size", SIZES)
def test_what_travels_is_as_long_as_it_says_and_gives_the_same_bits(text: str, size: int) -> None:
    codec, value = parse(text), normal(size)
    sent = codec.encode(value, key())
    codec.check(sent, value.shape)
    payload = b"".join(part.reshape(-1).view(torch.uint8).numpy().tobytes() for part in sent.values())
    assert len(payload) == codec.nbytes(value.shape) == nbytes(sent)
    assert torch.equal(codec.decode(sent, value.shape), codec.through(value, key()))
    assert torch.equal(codec.decode(decode(encode(sent)), value.shape), codec.decode(sent, value.shape))


@pytest.mark.parametrize("text", TEXTS)
def test_many_at_once_are_one_after_the_other(text: str) -> None:
    codec, values = parse(text), torch.stack([normal(5000, seed) for seed in range(3)])
    keys = torch.stack([key(1 + k) for k in range(3)])
    together = vmap(codec.through)(values, keys)
    for at in range(3):
        torch.testing.assert_close(together[at], codec.through(values[at], keys[at]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("text", TEXTS)
def test_shapes_and_zeros_come_back(text: str) -> None:
    codec = parse(text)
    assert codec.through(normal(3 * 5 * 4).reshape(3, 5, 4), key()).shape == (3, 5, 4)
    assert torch.equal(codec.through(torch.zeros(700), key()), torch.zeros(700))


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_so(text: str, wrong: float) -> None:
    """A reply that is to be refused must not come out of it as one that may be used."""
    value = normal(5000)
    value[4321] = wrong
    assert not bool(torch.isfinite(parse(text).through(value, key())).all())


@pytest.mark.parametrize("text", TEXTS)
def test_what_does_not_fit_is_refused_before_it_is_read(text: str) -> None:
    codec = parse(text)
    sent = codec.encode(normal(5000), key())
    for name, part in sent.items():
        for other in (part.double(), part[:-1] if part.ndim else part[None], 3):
            with pytest.raises(CodecError, match=name):
                codec.check(sent.replace(**{name: other}), (5000,))
    for wrong in (Record(), sent.replace(more=torch.zeros(1)), torch.zeros(5000)):
        with pytest.raises(CodecError):
            codec.check(wrong, (5000,))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("int9", "unknown codec 'int9'"), ("topk", "needs share"), ("topk:0", "share = 0"), ("topk:1.5", "share = 1.5"),
        ("eden:5", "bits = 5"), ("qsgd:0", "levels = 0"), ("qsgd:200", "levels = 200"), ("powersgd:0", "rank = 0"),
        ("nf4:0", "block = 0"), ("nf4:1048577", "block = 1048577"), ("sketch:inf", "times = inf"),
        ("sketch:2,-1", "rows = -1"), ("drive:often", '"unbiased"'), ("int8:3", "no arguments"),
        ("randk:-1", "share = -1"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse(text)


# --- how far it is off ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["randk:0.1", "qsgd:1", "qsgd:7", "drive:unbiased", "sketch:4,3"])
def test_the_mean_over_keys_is_right(text: str) -> None:
    """Of 10,000 decodings: the farthest of all numbers by no more than 5 standard errors, on average by one.

    Numbers that are seldom anything but 0 have no more than a few chances: errors are told against a tenth of the usual
    one at least. (A rotation of 512 numbers is not quite uniform: the largest of them come out a little short.)
    """
    codec, value = parse(text), normal(2048 if text.startswith("drive") else 256)
    assert codec.unbiased
    keys = seeds.fold(torch.tensor(7), torch.arange(10_000))
    found = vmap(codec.through, in_dims=(None, 0), chunk_size=500)(value, keys).double()
    usual = found.std(0) / 100
    error = (found.mean(0) - value) / usual.clamp(min=float(usual.mean()) / 10)
    assert float(error.abs().max()) < 5
    assert 0.8 < float(error.square().mean()) < 1.2


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("drive", 0.36, 0.363 * 1.02), ("drive:unbiased", 0.56, 0.571 * 1.02), ("eden:2", 0.115, 0.1175 * 1.05),
        ("eden:3", 0.033, 0.0345 * 1.05), ("eden:4", 0.009, 0.0095 * 1.05), ("int8", 0, 3e-4), ("int4", 0, 0.1),
        ("bf16", 0, 2.0**-16), ("fp16", 0, 2.0**-22), ("sign", 0.36, 0.37), ("randk:0.1", 8, 10),
        ("topk:0.1", 0.4, 0.7), ("nf4", 0.008, 0.0092),
        ("sketch:10", 9.8, 10.2), ("sketch:4,1", 3.9, 4.1),
    ],
)  # fmt: skip
def test_errors_on_normal_numbers(text: str, least: float, most: float) -> None:
    codec = parse(text)
    found = sum(nmse(codec, normal(1 << 15, seed), key(seed + 1)) for seed in range(8)) / 8
    assert least <= found <= most


@given(
    parts=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=80),
    text=st.sampled_from([text for text in TEXTS if parse(text).contracts]),
)
@settings(max_examples=150, deadline=None)
def test_what_contracts_brings_nearer(parts: list[float], text: str) -> None:
    value, codec = torch.tensor(parts), parse(text)
    before = float(value.double().square().sum())
    after = float((codec.through(value, key()).double() - value.double()).square().sum())
    share = codec.share if isinstance(codec, compress.TopK) else 0.0
    many = max(1, round(share * len(parts)))
    assert after <= before * (1 - (many / len(parts) if share else 0)) * (1 + 1e-5) + 1e-6


@pytest.mark.parametrize("bits", [8, 4])
def test_no_number_moves_by_more_than_half_a_step(bits: int) -> None:
    value = normal(9000) * torch.linspace(0.001, 100, 9000)
    codec = Whole(bits)  # type: ignore[arg-type]
    moved = (codec.through(value, key()) - value).abs()
    for start in range(0, 9000, 2048):
        part = slice(start, start + 2048)
        assert float(moved[part].max()) <= float(value[part].abs().max()) / codec.top / 2 * (1 + 1e-5)


def test_normal_floats_have_the_levels_of_the_paper() -> None:
    """Dettmers et al. 2023, appendix E, in which they stand as float32."""
    paper = [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]  # fmt: skip
    assert levels() == pytest.approx(paper, abs=2e-7)


@pytest.mark.parametrize("block", [1, 7, 64])
def test_normal_floats_are_the_nearest_times_the_largest_of_their_block(block: int) -> None:
    value = torch.cat(
        [normal(500) * torch.linspace(1e-3, 50, 500), torch.zeros(130), torch.tensor([3.0, -4.0])]
    )
    found = NF4(block).through(value, key())
    for start in range(0, len(value), block):
        part, back = value[start : start + block].double(), found[start : start + block].double()
        most = part.abs().max()
        due = min_over(part, most * torch.tensor(levels(), dtype=torch.float64))
        torch.testing.assert_close(back, due, rtol=1e-6, atol=0)
        assert back[part == 0].eq(0).all() and back.abs().max() == most


def min_over(values: Tensor, choices: Tensor) -> Tensor:
    """The nearest of the choices to each value."""
    return choices[(values[:, None] - choices).abs().argmin(1)]


@pytest.mark.parametrize("text", ["bf16", "fp16", "topk:0.05", "int8", "int4", "nf4", "sign"])
def test_what_came_back_once_comes_back_the_same(text: str) -> None:
    codec = parse(text)
    once = codec.through(normal(5000), key())
    torch.testing.assert_close(codec.through(once, key(2)), once, rtol=1e-6, atol=0)


@pytest.mark.parametrize("text", [text for text in TEXTS if parse(text).linear])
def test_of_linear_ones_sums_may_be_taken_of_what_travels(text: str) -> None:
    """Where the key is one."""
    codec, one, two = parse(text), normal(5000, 1), normal(5000, 2)
    parts = [codec.encode(each, key()) for each in (one, two)]
    total = Record({name: parts[0][name] + parts[1][name] for name in parts[0] if name != "key"}, key=key())
    due = codec.through(one, key()) + codec.through(two, key())
    torch.testing.assert_close(codec.decode(total, one.shape), due, rtol=1e-5, atol=1e-5)


def test_ratios() -> None:
    size = 1 << 18
    found = {text: 4 * size / parse(text).nbytes((size,)) for text in TEXTS}
    assert found["int8"] == pytest.approx(3.99, abs=0.01)
    assert found["int4"] == pytest.approx(7.97, abs=0.01)
    assert found["nf4"] == pytest.approx(1 / 0.140625)  # 14.06 % of the bytes
    assert found["drive"] == pytest.approx(31.75, abs=0.01)
    assert found["eden:2"] == pytest.approx(15.94, abs=0.01)
    assert found["sign"] == pytest.approx(31.75, abs=0.01)
    assert found["qsgd:7"] == pytest.approx(7.88, abs=0.01)
    assert parse("topk:0.01").ratio((size,)) == pytest.approx(66.6, abs=0.1)


# --- one by one -----------------------------------------------------------------------------------------------------


@given(
    st.integers(1, 8).flatmap(
        lambda b: st.tuples(st.just(b), st.lists(st.integers(0, 2**b - 1), max_size=40))
    )
)
def test_whole_numbers_are_packed_without_gaps(given: tuple[int, list[int]]) -> None:
    bits, numbers = given
    found = packing.packed(torch.tensor(numbers, dtype=torch.int64), bits)
    text = "".join(f"{number:0{bits}b}"[::-1] for number in numbers)
    due = bytes(int(text[at : at + 8][::-1], 2) for at in range(0, len(text), 8))
    assert bytes(found.tolist()) == due
    assert packing.unpacked(found, len(numbers), bits).tolist() == numbers


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_a_matrix_of_that_rank_comes_back_whole(rank: int) -> None:
    generator = torch.Generator().manual_seed(rank)
    matrix = torch.randn(40, rank, generator=generator) @ torch.randn(rank, 30, generator=generator)
    for more in (0, 2):  # a rank to spare changes nothing
        found = PowerSGD(rank + more).through(matrix, key())
        torch.testing.assert_close(found, matrix, rtol=1e-4, atol=1e-4)
    if rank > 1:
        assert float((PowerSGD(rank - 1).through(matrix, key()) - matrix).norm()) > 0.1


def test_centroids_are_where_lloyd_and_max_have_them() -> None:
    """Each is the mean of the normal numbers that are nearest to it."""
    for known in CENTROIDS.values():
        bounds = [0.0, *((a + b) / 2 for a, b in pairwise(known)), math.inf]
        for level, low, high in zip(known, bounds, bounds[1:], strict=False):
            share = (math.erf(high / math.sqrt(2)) - math.erf(low / math.sqrt(2))) / 2
            density = [math.exp(-each * each / 2) / math.sqrt(2 * math.pi) for each in (low, high)]
            assert (density[0] - density[1]) / share == pytest.approx(level, abs=1e-8)


def test_the_hadamard_matrix_is_its_own_inverse() -> None:
    rows = normal(3 * 64).reshape(3, 64)
    torch.testing.assert_close(hadamard(hadamard(rows)), rows)
    due = torch.tensor([[(-1.0) ** bin(a & b).count("1") for a in range(64)] for b in range(64)]) / 8
    torch.testing.assert_close(hadamard(rows), rows @ due)


@pytest.mark.parametrize("what", ["counts", "order", "end"])
def test_places_that_cannot_be_are_refused(what: str) -> None:
    codec = parse("topk:0.01")
    sent = codec.encode(normal(100_000), key())
    if what == "counts":
        wrong = sent.replace(counts=sent.counts + torch.tensor([1, 0], dtype=torch.int32))
    elif what == "order":
        wrong = sent.replace(places=sent.places.flip(0))
    else:
        places = sent.places.clone()
        places[-1] = 32767
        wrong = sent.replace(places=places)
    codec.check(wrong, (100_000,))
    with pytest.raises(CodecError):
        codec.decode(wrong, (100_000,))


def test_draws_differ_from_key_to_key() -> None:
    value = normal(2000)
    for text in ("randk:0.1", "qsgd:2", "drive", "eden:2"):
        codec = parse(text)
        assert torch.equal(codec.through(value, key(1)), codec.through(value, key(1)))
        assert not torch.equal(codec.through(value, key(1)), codec.through(value, key(2)))


def test_nothing_but_the_ground_floor_is_imported() -> None:
    """Sums between workers use codecs, too, and have no channel."""
    place = Path(compress.__file__).parent
    words = {"atoll.channel", "atoll.contract", "atoll.engines", "atoll.task"}
    assert not [
        word for file in place.glob("*.py") for word in words if f"from {word}" in file.read_text("utf-8")
    ]


def test_a_sketch_tells_the_largest_numbers() -> None:
    """Five of twenty thousand, from a tenth as many sums; the mean of rows is farther off."""
    codec, value = compress.Sketch(10), 0.02 * normal(20_000)
    places = torch.randperm(20_000, generator=torch.Generator().manual_seed(1))[:5]
    value[places] = torch.tensor([4.0, -5.0, 6.0, -7.0, 8.0])
    told = codec.median(codec.sums(value, key()), key(), 20_000)
    assert {*told.abs().topk(5).indices.tolist()} == {*places.tolist()}
    assert float((told[places] - value[places]).abs().max()) < 0.5
    mean = codec.through(value, key())
    assert float((told - value).norm()) < 0.5 * float((mean - value).norm())


def test_sketches_keep_lengths_and_angles() -> None:
    codec, one, two = compress.Sketch(4), normal(20_000, 1), normal(20_000, 2) + 0.5 * normal(20_000, 1)
    sums = [codec.sums(each, key()).flatten() for each in (one, two)]
    assert float(sums[0].norm() / one.norm()) == pytest.approx(1, abs=0.03)
    found, due = (float(torch.cosine_similarity(a, b, dim=0)) for a, b in (sums, (one, two)))
    assert found == pytest.approx(due, abs=0.05)


def test_a_sketch_is_linear() -> None:
    codec, one, two = compress.Sketch(4), normal(5000, 1), normal(5000, 2)
    found = 0.3 * codec.sums(one, key()) - 2 * codec.sums(two, key())
    torch.testing.assert_close(codec.sums(0.3 * one - 2 * two, key()), found, rtol=1e-6, atol=1e-5)
