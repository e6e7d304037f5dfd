"""Masks between neighbours: one share says nothing, all of them say their sum, and nobody tells two of one round."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from atoll import codec
from atoll.channel.secagg import MarksInMemory
from atoll.channel.secagg.keys import Private
from atoll.network.marks import MarksOnDisk
from atoll.peer.masks import Masks
from atoll.peer.others import Other
from atoll.peer.sayings import WithheldError
from atoll.tensors import Record

NAMES = ["ann", "bea", "cat", "dan"]
KEYS = {name: Private(bytes([at + 1]) * 32) for at, name in enumerate(NAMES)}


def masks(name: str, marks: Any = None, run: str = "r", there: Sequence[str] = (), **keys: bytes) -> Masks:
    """Those of one peer that has met the others, of whom it can reach these."""

    async def reaches(name: str) -> bool:
        return name in there

    others = {each: Other(key=keys.get(each, KEYS[each].public)) for each in NAMES if each != name}
    return Masks(name, run, KEYS[name], MarksInMemory() if marks is None else marks, others, reaches)


def question(names: Sequence[str], asker: str = "dan", **keys: Any) -> bytes:
    return masks(asker, **keys).asked(names)


def told(
    one: Masks, share: Tensor, names: Sequence[str] = NAMES[:3], number: int = 1, asker: str = "dan"
) -> Tensor:
    """What the asker gets of one, whose share this is."""
    hidden = one.hidden(number, Record(), lambda name, others: share.clone(), lambda name: NAMES[:3])
    body = asyncio.run(hidden.to(asker, True, question(names, asker)))
    return codec.decode(body)["share"]  # type: ignore[no-any-return]


def drawn(seed: int, size: int = 5000) -> Tensor:
    return torch.randint(-(2**29), 2**29, (size,), generator=torch.Generator().manual_seed(seed)).to(
        torch.int32
    )


@pytest.mark.parametrize("names", [NAMES[:2], NAMES[:3]])
def test_all_shares_are_their_sum_to_the_bit(names: list[str]) -> None:
    shares = {name: drawn(at) for at, name in enumerate(names)}
    total = torch.zeros(5000, dtype=torch.int32)
    for name, share in shares.items():
        total.add_(told(masks(name), share, names))
    assert torch.equal(total, torch.stack([*shares.values()]).sum(0).to(torch.int32))


def test_one_share_is_the_same_mask_over_whatever_it_hides() -> None:
    """What is heard of one is a mask that does not depend on its model, plus its model, modulo 2^32; and the mask is
    like 160,000 coins: so of any model one hears the same."""
    size = 5000
    nothing = torch.zeros(size, dtype=torch.int32)
    mask = told(masks("ann"), nothing)
    for share in (drawn(1), torch.full((size,), 2**30, dtype=torch.int32)):
        found = told(masks("ann"), share)
        assert torch.equal(found - share, mask)
    bits = torch.stack([(mask >> at) & 1 for at in range(32)]).double()
    assert abs(float(bits.mean()) - 0.5) < 5 * 0.5 / bits.numel() ** 0.5
    assert (bits.mean(1) - 0.5).abs().max() < 5 * 0.5 / size**0.5


def test_of_three_any_two_are_hidden_by_the_third() -> None:
    some = told(masks("ann"), drawn(0)) + told(masks("bea"), drawn(1))
    apart = some - (drawn(0) + drawn(1))
    assert len(set(apart.tolist())) > 4900  # what masks with the third leave is in every number


@pytest.mark.parametrize("other", ["number", "asker", "set", "run"])
def test_masks_are_of_one_sum(other: str) -> None:
    share = torch.zeros(100, dtype=torch.int32)
    first = told(masks("ann"), share)
    second = {
        "number": lambda: told(masks("ann"), share, number=2),
        "asker": lambda: told(masks("ann"), share, ["ann", "bea", "dan"], asker="cat"),
        "set": lambda: told(masks("ann"), share, ["ann", "bea"]),
        "run": lambda: told(masks("ann", run="s"), share),
    }[other]()
    assert (first != second).sum() > 95


def test_nobody_is_told_two_shares_of_a_round(tmp_path: Path) -> None:
    """Neither for another set nor of another model, also after a restart; the same one as often as it is asked for."""
    share = drawn(0)
    first = told(masks("ann", MarksOnDisk(tmp_path / "told")), share)
    again = masks("ann", MarksOnDisk(tmp_path / "told"))
    assert torch.equal(told(again, share), first)
    with pytest.raises(WithheldError, match="already"):
        told(again, share, ["ann", "bea"])
    with pytest.raises(WithheldError, match="already"):
        told(again, share + 1)
    with pytest.raises(WithheldError, match="already"):
        told(masks("ann", MarksOnDisk(tmp_path / "told")), share, ["ann", "cat"])
    told(again, share, ["ann", "bea"], number=2)
    told(again, share, ["ann", "bea"], asker="cat")


def test_keys_are_those_that_were_told_here() -> None:
    ann, nobody = masks("ann"), bytes(32)

    def asked(body: bytes, one: Masks = ann) -> bytes:
        hidden = one.hidden(1, Record(), lambda name, others: drawn(0), lambda name: NAMES[:3])
        return asyncio.run(hidden.to("dan", True, body))

    with pytest.raises(WithheldError, match="another key of bea"):
        asked(question(["ann", "bea"], bea=KEYS["cat"].public))
    with pytest.raises(WithheldError, match="share of another"):
        asked(question(["bea", "cat"]))
    with pytest.raises(WithheldError, match="share of another"):
        asked(question(["ann", "bea"], ann=KEYS["cat"].public))
    with pytest.raises(WithheldError, match="share of another"):
        asked(masks("bea").asked(["ann", "cat", "dan"]))  # who asks is no part of it
    dan = masks("dan")
    dan._others["eve"] = Other(key=KEYS["cat"].public)  # type: ignore[index]
    with pytest.raises(WithheldError, match="no peer of this run"):
        asked(dan.asked(["ann", "eve"]))
    with pytest.raises(WithheldError, match="is none"):
        asked(question(["ann", "bea"], bea=nobody), masks("ann", bea=nobody))
    with pytest.raises(WithheldError, match="cannot be read"):
        asked(b"{}")
    with pytest.raises(WithheldError, match="was not met yet") as found:
        asked(question(["ann", "bea"]), masks("ann", bea=b""))
    assert found.value.until == ("bea",)
    asked(question(["ann", "bea"]))


def test_who_asks_cannot_leave_out_somebody_who_is_there() -> None:
    share = drawn(0)
    one = masks("ann", there=["cat"])
    with pytest.raises(WithheldError, match="cat is there, and is left out"):
        told(one, share, ["ann", "bea"])
    told(one, share, ["ann", "bea", "cat"])
    one._others["cat"].begins = 3  # it is back, and takes part from then on
    told(one, share, ["ann", "bea"], number=2)
    with pytest.raises(WithheldError, match="left out"):
        told(one, share, ["ann", "bea"], number=3)
