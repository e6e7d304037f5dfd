"""Every topology: weights that sum to 1, gaps that are known, consensus where it is promised, errors where not."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.errors import ConfigError
from atoll.topology import exact_after, figures, gap, topology
from atoll.topology.topology import TOPOLOGIES

BOTH_WAYS = [
    "ring", "torus", "complete", "star", "erdos:0.4", "smallworld:4,0.2", "regular:4", "exponential", "one-peer",
    "base:1", "base:3", "equitopo", "grid:2", "grid:3",
]  # fmt: skip


def test_all_are_tried_here() -> None:
    named = {each.partition(":")[0] for each in BOTH_WAYS}
    assert named | {"epidemic", "file", "arrows", "related"} == set(TOPOLOGIES)


@pytest.mark.parametrize("peers", [2, 12, 16, 25])
@pytest.mark.parametrize("text", BOTH_WAYS)
def test_rows_and_columns_sum_to_one_in_every_round(text: str, peers: int) -> None:
    if peers == 2 and text.partition(":")[0] in ("smallworld", "regular"):
        with pytest.raises(ConfigError):
            topology(text, peers)
        return
    found = topology(text, peers, seed=1)
    assert found.period is not None
    for round in range(found.period):
        product = np.eye(peers)
        for each in found.exchanges(round):
            assert np.abs(each.sums()[0] - 1).max() < 1e-12
            assert min(w for row in each.rows for w in row.weights) >= 0
            product = each.dense() @ product
        assert np.abs(product.sum(0) - 1).max() < 1e-12


@settings(max_examples=25, deadline=None)
@given(peers=st.integers(2, 40), seed=st.integers(0, 99), degree=st.integers(1, 4))
def test_columns_of_links_that_go_one_way_sum_to_one(peers: int, seed: int, degree: int) -> None:
    found = topology(f"epidemic:{min(degree, peers - 1)}", peers, seed)
    (pushed,), (heard,) = found.exchanges(seed, "columns"), found.exchanges(seed, "rows")
    assert np.abs(pushed.sums()[1] - 1).max() < 1e-12
    assert np.abs(heard.sums()[0] - 1).max() < 1e-12
    assert pushed.links == heard.links == peers * min(degree, peers - 1)


@pytest.mark.parametrize(
    ("peers", "ring", "torus", "exponential"),
    [(16, 0.05075, 0.40000, 0.40000), (64, 0.00321, 0.11716, 0.28571), (256, 0.00020, 0.03045, 0.22222)],
)
def test_spectral_gaps(peers: int, ring: float, torus: float, exponential: float) -> None:
    for text, known in (("ring", ring), ("torus", torus), ("exponential", exponential)):
        found = figures(topology(text, peers)).gap
        assert found is not None and round(found, 5) == known
    assert gap(topology("exponential", peers).exchanges(0)) == pytest.approx(2 / (math.log2(peers) + 1))
    assert gap(topology("ring", peers).exchanges(0)) == pytest.approx(
        2 / 3 * (1 - math.cos(2 * math.pi / peers))
    )


def test_gaps_of_many_peers_need_no_dense_matrix() -> None:
    peers = 1500
    found = gap(topology("exponential", peers).exchanges(0))
    assert found == pytest.approx(2 / (math.ceil(math.log2(peers)) + 1), rel=1e-3)


@pytest.mark.parametrize("peers", [2, 4, 8, 16, 64])
def test_one_peer_is_exact_after_log2_of_a_power_of_two(peers: int) -> None:
    product = np.eye(peers)
    for round in range(int(math.log2(peers))):
        product = topology("one-peer", peers).exchanges(round)[0].dense() @ product
    assert (product == 1 / peers).all()
    assert exact_after(topology("one-peer", peers)) == int(math.log2(peers))


def test_one_peer_is_not_exact_elsewhere() -> None:
    assert exact_after(topology("one-peer", 12)) is None


@settings(max_examples=40, deadline=None)
@given(peers=st.integers(1, 80), k=st.integers(1, 5))
def test_base_graphs_are_exact_after_one_period_for_any_number(peers: int, k: int) -> None:
    found, product = topology(f"base:{k}", peers), np.eye(peers)
    assert found.period is not None
    for round in range(found.period):
        (weights,) = found.exchanges(round)
        assert weights.degree <= k
        assert weights.symmetric
        product = weights.dense() @ product
    assert np.abs(product - 1 / peers).max() < 1e-12
    assert found.period <= 2 * math.log(peers, k + 1) + 2 if peers > 1 else found.period == 1


@pytest.mark.parametrize(("text", "after"), [("complete", 1), ("star", 1), ("grid:2", 2), ("grid:4", 4)])
def test_consensus_is_told(text: str, after: int) -> None:
    assert figures(topology(text, 16)).exact_after == after


def test_what_is_random_follows_from_the_seed() -> None:
    for text in ("erdos:0.4", "smallworld:4,0.2", "regular:4", "equitopo"):
        one, same, other = (topology(text, 16, seed).exchanges(0)[0].dense() for seed in (1, 1, 2))
        assert (one == same).all() and (one != other).any()
    for round in range(3):
        drawn = topology("ring", 9, 4).pairs(round)
        assert all(len(row.peers) <= 2 for row in drawn.rows) and drawn.symmetric
        assert (
            drawn.links >= 6
        )  # a matching of a ring of 9 that nothing can be added to has three pairs or four


@pytest.mark.parametrize("text", ["regular:3", "erdos:0.3", "smallworld:4,0.3"])
def test_neighbours_at_random(text: str) -> None:
    graph = topology(text, 20, 2).graph
    assert graph is not None
    assert all(one in graph[other] for one, others in enumerate(graph) for other in others)
    if text.startswith("regular"):
        assert {len(others) for others in graph} == {3}
    if text.startswith("smallworld"):
        assert sum(map(len, graph)) == 20 * 4


@pytest.mark.parametrize(
    ("text", "peers", "says"),
    [
        ("rong", 8, "did you mean"),
        ("regular", 8, "regular:K"),
        ("torus", 13, "another number of peers"),
        ("regular:3", 7, "one of the two is even"),
        ("smallworld:3,0.1", 8, "even number"),
        ("erdos:0.01", 30, "0.113"),
        ("epidemic:8", 8, "smaller k"),
        ("file:nowhere.csv", 8, "from,to"),
    ],
)
def test_what_cannot_be_is_said(text: str, peers: int, says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        topology(text, peers).exchanges(0, "columns")
    assert says in str(raised.value)


# --- files ----------------------------------------------------------------------------------------------------------


def written(place: Path, text: str) -> str:
    place.write_text(text)
    return f"file:{place}"


def test_links_of_a_file_by_name_and_number(tmp_path: Path) -> None:
    text = written(tmp_path / "links.csv", "from,to\nann,bob\n1,2\n\n2,3\n")
    found = topology(text, 4, names=("ann", "bob", "cy", "di"))
    assert found.graph == [[1], [0, 2], [1, 3], [2]]
    assert found.exchanges(0)[0].symmetric


def test_weights_of_a_file(tmp_path: Path) -> None:
    text = written(tmp_path / "w.csv", "from,to,weight\n0,1,0.25\n1,2,0.25\n2,0,0.25\n")
    (weights,) = topology(text, 3).exchanges(0)
    assert (weights.dense() == [[0.75, 0, 0.25], [0.25, 0.75, 0], [0, 0.25, 0.75]]).all()


def test_arrows_are_for_push_sum(tmp_path: Path) -> None:
    text = written(tmp_path / "a.csv", "from,to\n0,1\n1,2\n2,0\n0,2\n").replace("file:", "arrows:")
    (weights,) = topology(text, 3).exchanges(0, "columns")
    assert weights.dense()[:, 0] == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    with pytest.raises(ConfigError, match="one way"):
        topology(text, 3).exchanges(0)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("from,to\n0,1\n2,3\n", "not connected"),
        ("from,to\n0,1\n1,7\n", "line 3: there is no peer '7'"),
        ("from,to\n0,1\n0,1\n", "says again"),
        ("from,to,weight\n0,1,0.9\n1,2,0.5\n2,3,0.5\n3,0,0.5\n1,3,0.5\n", "not stochastic"),
        ("from,to,weight\n0,1,2\n", "no share"),
        ("a,b\n0,1\n", "first line is from,to"),
        ("from,to\n0,1,2\n", "3 cells"),
        ("from,to\n", "no links"),
    ],
)
def test_files_that_are_wrong(lines: str, says: str, tmp_path: Path) -> None:
    text = written(tmp_path / "x.csv", lines)
    with pytest.raises(ConfigError, match="topology") as raised:
        topology(text, 4).exchanges(0)
    assert says in str(raised.value) and raised.value.exit_code == 2 and raised.value.hint


def test_arrows_that_lead_nowhere(tmp_path: Path) -> None:
    text = written(tmp_path / "a.csv", "from,to\n0,1\n1,0\n2,0\n").replace("file:", "arrows:")
    with pytest.raises(ConfigError, match="nothing that peer 0 knows gets to peer 2"):
        topology(text, 3)
