"""Topologies by name: who hears whom in which round, a function of the text, the number of peers and the seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from atoll import seeds, spec
from atoll.errors import ConfigError
from atoll.topology import finite, graphs
from atoll.topology.given import Link, read_file, weighted
from atoll.topology.graphs import Graph
from atoll.topology.weights import Sums, Weights

__all__ = ["TOPOLOGIES", "Topology", "read", "related", "topologies", "topology"]

_K = spec.whole("k", at_least=1)

TOPOLOGIES: dict[str, tuple[str, tuple[spec.Parameter, ...]]] = {
    "ring": ("everybody has two neighbours", ()),
    "torus": ("a grid whose rows and columns close: four neighbours", ()),
    "complete": ("everybody has everybody", ()),
    "star": ("a hub, peer 0, takes the mean and gives it to all: FedAvg", ()),
    "erdos": ("each pair is linked by chance p", (spec.number("p", above=0, at_most=1),)),
    "smallworld": (
        "a ring with the k nearest, links led elsewhere by chance p",
        (spec.whole("k", at_least=2), spec.number("p", at_least=0, at_most=1)),
    ),
    "regular": ("k neighbours each, at random", (_K,)),
    "exponential": ("those 1, 2, 4 ... steps on", ()),
    "one-peer": ("one of these a round, in turn: exact after log2 n where n is a power of two", ()),
    "base": ("at most k a round, exact after one period for any n", (_K,)),
    "equitopo": (
        "random circulants, log2 n by default: a gap that n does not change",
        (spec.whole("most", at_least=1, optional=True),),
    ),
    "grid": ("one axis of a grid a round, all of a line take their mean", (spec.whole("dimensions", at_least=1),)),
    "related": (
        "the k whose data are most like its own, by sketches (to so many coordinates, with noise)",
        (_K, spec.whole("dim", at_least=1, optional=True), spec.number("noise", at_least=0, optional=True)),
    ),
    "epidemic": ("every round each sends to k others at random: links go one way", (_K,)),
    "file": ("a CSV file of links, from,to or from,to,weight", (spec.rest("path"),)),
    "arrows": ("the same, and links go one way", (spec.rest("path"),)),
}  # fmt: skip
"""What there is by name: what it is, and what it takes."""


def topologies() -> list[tuple[str, str]]:
    """How each is written, and what it is."""
    return [(spec.usage(name, takes), line) for name, (line, takes) in TOPOLOGIES.items()]


_SIMPLE: dict[str, Callable[..., Graph]] = {
    "ring": lambda n, seed: graphs.ring(n),
    "torus": lambda n, seed: graphs.torus(*graphs.sides(n)),
    "erdos": lambda n, seed, p: graphs.erdos(n, p, seed),
    "smallworld": lambda n, seed, k, p: graphs.smallworld(n, k, p, seed),
    "regular": lambda n, seed, k: graphs.regular(n, k, seed),
}

_PERIODS: dict[str, Callable[..., list[Weights]]] = {
    "complete": lambda n, seed: [Weights.means([range(n)], n)],
    "exponential": lambda n, seed: [finite.exponential(n)],
    "one-peer": lambda n, seed: finite.one_peer(n),
    "base": lambda n, seed, k: finite.base(n, k),
    "equitopo": lambda n, seed, most=None: [finite.equitopo(n, most, seed)],
    "grid": lambda n, seed, dimensions: finite.grid(n, dimensions),
}


@dataclass(frozen=True)
class Topology:
    """Who hears whom in which round.

    Args:
        text: how it is written.
        peers: how many there are.
        seed: draws what is random.
        links: those of a user's file, or between related peers, as far as they are known.

    Made by `topology`.
    """

    text: str
    peers: int
    seed: int = 0
    links: tuple[Link, ...] = field(default=(), repr=False)

    @cached_property
    def _call(self) -> spec.Call:
        return spec.parse(self.text, "topology")

    @property
    def name(self) -> str:
        return self._call.name

    @cached_property
    def _arguments(self) -> dict[str, float]:
        return self._call.read({name: takes for name, (_, takes) in TOPOLOGIES.items()})

    @property
    def one_way(self) -> bool:
        """Whether somebody hears peers that do not hear it, with weights that do not make up for it."""
        return self.name in ("epidemic", "arrows")

    @cached_property
    def graph(self) -> Graph | None:
        """Neighbours, where links go both ways and are the same in all rounds; None elsewhere."""
        if self.name in _SIMPLE:
            return _SIMPLE[self.name](self.peers, self.seed, **self._arguments)
        if self.name in ("file", "related"):
            return graphs.joined(((each.source, each.to) for each in self.links), self.peers)
        return None

    @cached_property
    def _period(self) -> list[Weights]:
        """The exchanges of the rounds of one period, where links go both ways."""
        if self.peers == 1:
            return [Weights.means([], 1)]
        if self.graph is not None and not self._weighted:
            return [graphs.metropolis(self.graph)]
        if self._weighted:
            return [weighted(self.links, self.peers)]
        return _PERIODS[self.name](self.peers, self.seed, **self._arguments) or [
            Weights.means([], self.peers)
        ]

    @property
    def _weighted(self) -> bool:
        return bool(self.links) and self.links[0].weight is not None

    @property
    def period(self) -> int | None:
        """After how many rounds the graphs begin again; None: never."""
        if self.name == "epidemic":
            return None
        return 1 if self.name in ("star", "arrows") else len(self._period)

    def exchanges(self, round: int, sums: Sums = "both") -> tuple[Weights, ...]:
        """The exchanges of a round (from 0), in order: one, but two of a star.

        Raises ConfigError where the weights cannot have these sums.
        """
        what = f"topology = {self.text}"
        if self.one_way and not self._weighted:
            if sums == "both":
                raise ConfigError(
                    f"{what}: its links go one way, and a mean of models needs weights whose rows and columns sum to 1",
                    hint="take method = pushsum or gossip, or another topology",
                )
            sends = self._sends(round)
            return (graphs.by_degree(sends) if sums == "columns" else graphs.by_links(sends),)
        if self._weighted:
            return (self._period[0].check(sums, what),)
        if self.name == "star" and self.peers > 1:
            if sums == "columns":
                raise ConfigError(
                    f"{what}: its hub gives all the same, and push-sum keeps masses by columns that sum to 1",
                    hint="take topology = complete, or method = dpsgd",
                )
            return tuple(finite.star(self.peers))
        return (self._period[round % len(self._period)],)

    def _sends(self, round: int) -> Graph:
        if self.name == "epidemic":
            return finite.epidemic(self.peers, int(self._arguments["k"]), self.seed, round)
        sends: Graph = [[] for _ in range(self.peers)]
        for link in self.links:
            if link.source != link.to:
                sends[link.source].append(link.to)
        return sends

    def walks(self, round: int, there: Sequence[int]) -> Weights:
        """Everybody sends to one neighbour at random, among these peers (numbered anew, in their order); what is heard
        and the own count alike."""
        sends = self._sends(round) if self.one_way else self.neighbours(round)
        place = {int(peer): at for at, peer in enumerate(there)}
        found: Graph = []
        for peer in place:
            to = [place[other] for other in sends[peer] if other in place]
            draw = seeds.rng(self.seed, "walk", round, peer)
            found.append([to[int(draw.integers(len(to)))]] if to else [])
        return graphs.by_links(found)

    def pairs(self, round: int) -> Weights:
        """Pairs of neighbours at random, who take their means (AD-PSGD).  Raises ConfigError where links go one way."""
        graph = self.neighbours(round)
        return Weights.means(graphs.matching(graph, self.seed, round), self.peers)

    def neighbours(self, round: int) -> Graph:
        """Neighbours in a round, where links are used both ways, whatever the weights; of a star all with the hub.

        Raises ConfigError where links go one way.
        """
        if self.one_way:
            raise ConfigError(
                f"topology = {self.text}: its links go one way, and pairs need both",
                hint="take another topology, or method = pushsum or gossip",
            )
        if self.graph is not None:
            return self.graph
        if self.name == "star":
            return graphs.joined(((0, at) for at in range(1, self.peers)), self.peers)
        return _both_ways(self._period[round % len(self._period)])


@lru_cache(maxsize=64)
def _both_ways(weights: Weights) -> Graph:
    i, j, _ = weights.entries
    return graphs.joined(zip(i.tolist(), j.tolist(), strict=True), weights.peers)


def read(text: str) -> spec.Call:
    """The name and the arguments of a text.  Raises ConfigError for what no topology is, whatever the peers."""
    call = spec.parse(text, "topology")
    call.read({name: takes for name, (_, takes) in TOPOLOGIES.items()})
    return call


def related(text: str) -> dict[str, Any] | None:
    """What a topology of related peers goes by; None for others.  Raises ConfigError."""
    call = read(text)
    if call.name != "related":
        return None
    found = call.read({name: takes for name, (_, takes) in TOPOLOGIES.items()})
    if "noise" in found and "dim" not in found:
        raise ConfigError(f"topology = {text}: noise needs few coordinates", hint="write related:2,16,0.01")
    return found


@lru_cache(maxsize=64)
def topology(
    text: str, peers: int, seed: int = 0, names: tuple[object, ...] = (), links: tuple[Link, ...] = ()
) -> Topology:
    """The topology of that text among so many peers, tried and found whole.

    Args:
        names: what peers may be called in a file.
        links: those of a file that was read before, which is not read again; or between related peers.

    Raises ConfigError for what is unknown, for peers that are not there, and for graphs that fall apart.
    """
    call = read(text)
    if call.name in ("file", "arrows") and not links:
        links = read_file(Path(call.given or ""), peers, names)
    found = Topology(text, peers, seed, links)
    if call.name == "related" and found._arguments["k"] >= peers > 1:
        raise ConfigError(
            f"topology = {text}: {peers} peers cannot have {found._arguments['k']} others each",
            hint="k is below the number of peers",
        )
    if call.name == "file" or (call.name == "arrows" and not found._weighted):
        _whole(found)
    if not found.one_way or found._weighted:
        _ = found._period if found.name != "star" else None
    return found


def _whole(found: Topology) -> None:
    """Raises ConfigError where there is no way from some peer to some other."""
    there: Graph = [[] for _ in range(found.peers)]
    back: Graph = [[] for _ in range(found.peers)]
    for link in found.links:
        there[link.source].append(link.to)
        back[link.to].append(link.source)
        if found.name == "file" and link.weight is None:
            there[link.to].append(link.source)
            back[link.source].append(link.to)
    for way in (there, back):
        reached, seen = [0], {0}
        for one in reached:
            for other in way[one]:
                if other not in seen:
                    seen.add(other)
                    reached.append(other)
        if len(seen) < found.peers:
            lost = next(peer for peer in range(found.peers) if peer not in seen)
            raise ConfigError(
                f"topology = {found.text}: the graph is not connected: "
                + ("nothing that peer 0 knows gets to" if way is there else "peer 0 never learns of")
                + f" peer {lost}",
                hint="add a link that joins the parts",
            )
