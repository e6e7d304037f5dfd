"""Every method between machines: the table of `docs/deploy-methods.md` is what these runs come to.

`python -m tests.network.test_methods` writes it anew.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atoll.errors import ConfigError, DataError
from atoll.methods import METHODS
from atoll.network.rows import arrays, packed
from atoll.network.worker import Begin, _Work
from tests.network.onethread import OneThread, clients

PAGE = Path(__file__).parents[2] / "docs" / "deploy-methods.md"
BEGIN, END = "<!-- the table: python -m tests.network.test_methods -->", "<!-- end of the table -->"
QUICK = ("fedmd", "feddf")

NEEDS: dict[str, tuple[dict[str, Any], str]] = {
    "fedora": ({"validation": 0.2}, "`validation`"),
    "knn-per": ({"validation": 0.2}, "`validation`, or `lam`"),
    "fedfomo": ({"validation": 0.2}, "`validation`"),
    "fedbn": ({"model": "mlp-bn:8"}, "a model with normalisation"),
    "heterofl": ({"model": "mlp-bn:8"}, "a model with hidden layers"),
    "fedmd": ({}, "`[network] public`"),
    "fedkseed": ({"steps": 6, "seeds": 64}, ""),
    **{name: ({"adapter": "lora:2"}, "`adapter`") for name, kind in METHODS.items() if kind.low_rank},
    "feddf": ({}, "`[network] public`"),
}
"""Settings without which a method does not begin, here as in a simulation; and how the table calls them."""


def played(name: str, place: Path) -> tuple[bool, str]:
    """Whether a method goes between machines as it does in a simulation, and why not."""
    settings, network = {"method": name, **NEEDS.get(name, ({}, ""))[0]}, {}
    if METHODS[name]().distils:
        np.savez(place / "public.npz", x=np.random.default_rng(1).normal(size=(20, 6)).astype(np.float32))
        network = {"public": str(place / "public.npz")}
    try:
        made = OneThread(place, settings, network=network).play()
    except ConfigError as error:
        return False, error.message
    refused = [why for round in made.federation.history for why in round.refused.values()]
    return (False, refused[0]) if refused else (made.same(), "not the simulation's bits")


def table(found: dict[str, tuple[bool, str]]) -> str:
    """The table, a line for each method."""
    lines = ["| method | deployed | needs | why not |", "|---|---|---|---|"]
    for name, (works, why) in found.items():
        needs = NEEDS.get(name, ({}, ""))[1]
        lines.append(f"| `{name}` | {'yes' if works else 'no'} | {needs} | {'' if works else why} |")
    return "\n".join(lines)


def written() -> dict[str, str]:
    """What the page says, by method."""
    text = PAGE.read_text("utf-8").partition(BEGIN)[2].partition(END)[0]
    return {said[1]: line for line in text.splitlines() if (said := re.match(r"\| `([\w-]+)` \|", line))}


def test_the_page_has_every_method() -> None:
    """Nobody adds a method without saying whether it goes between machines."""
    assert list(written()) == list(METHODS)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in METHODS]
)
def test_a_method_is_what_the_page_says(name: str, tmp_path: Path) -> None:
    """A coordinator and three nodes play it, and its model is the simulation's to the bit, or it is not."""
    assert table({name: played(name, tmp_path)}).splitlines()[-1] == written()[name]


@pytest.mark.slow
def test_optimisers_that_are_kept_stay_at_their_nodes(tmp_path: Path) -> None:
    """DiLoCo: what a node's AdamW knows goes on in the next round, as in a simulation, to the bit."""
    settings = {
        "method": "fedopt", "optimizer": "adamw", "keep_optimizer": True, "server_optimizer": "nesterov:0.9",
        "steps": 3,
    }  # fmt: skip
    kept = OneThread(tmp_path / "kept", settings).play()
    assert kept.same()
    assert kept.federation.number > 1
    update, state = [kept.federation.method.expects(kept.federation.state)], kept.federation.state
    assert "optimizer" not in update[0] and "optimizer" not in state  # nobody but the node has it


# --- public data ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["feddf", "fedmd"])
def test_public_data_are_asked_for_before_anybody_comes(name: str, tmp_path: Path) -> None:
    """Whether clients read them, or the server alone."""
    made = OneThread(tmp_path, {"method": name})
    with pytest.raises(ConfigError, match="distils on public data") as raised:
        made.play()
    assert "[network]" in str(raised.value.hint) and not made.nodes


def test_public_data_that_nobody_reads_are_refused(tmp_path: Path) -> None:
    """All nodes would get them for nothing."""
    np.savez(tmp_path / "public.npz", x=np.zeros((4, 6), np.float32))
    with pytest.raises(ConfigError, match="no use for public data"):
        OneThread(tmp_path, {"method": "fedavg"}, network={"public": str(tmp_path / "public.npz")}).play()


def test_labels_of_public_data_are_left_alone(tmp_path: Path) -> None:
    """What nodes get is x and nothing else, for as long as the run lasts."""
    inputs = np.random.default_rng(1).normal(size=(20, 6)).astype(np.float32)
    np.savez(tmp_path / "public.npz", x=inputs, y=np.arange(20))
    network = {"public": str(tmp_path / "public.npz")}
    made = OneThread(
        tmp_path / "run", {"method": "fedmd", "rounds": 5, "checkpoint": 1}, network=network
    ).play()
    public = made.coordinator.plan.public
    assert public is not None and made.coordinator.blobs.whole(public.sha256)
    known = made.nodes["ann"].work.data.public
    assert known is not None and np.array_equal(known.inputs.numpy(), inputs)
    assert "makes of 20 inputs that everybody knows" in made.nodes["ann"].work.text
    assert public.size < inputs.nbytes + 400


def test_public_data_of_another_form_are_refused_at_a_node(tmp_path: Path) -> None:
    """They are inputs like the clients'."""
    np.savez(tmp_path / "public.npz", x=np.zeros((4, 5), np.float32))
    made = OneThread(tmp_path / "run", {"eval_every": 0, "rounds": 1}, clients()).play()
    (tmp_path / "body").write_bytes(packed(arrays(tmp_path / "public.npz")))
    source = str(tmp_path / "run" / "ann.npz")
    with pytest.raises(DataError, match="public inputs are of shape"):
        _Work(Begin(made.coordinator.plan, source, 0, "ann", str(tmp_path), str(tmp_path / "body")))


if __name__ == "__main__":
    found = {}
    for each in METHODS:
        with tempfile.TemporaryDirectory() as place:
            found[each] = played(each, Path(place))
    head, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n{table(found)}\n{END}{rest.partition(END)[2]}", "utf-8")
