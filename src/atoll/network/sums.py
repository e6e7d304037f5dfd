"""Secure sums between nodes: the coordinator plays the server of the protocol, and learns a sum and nothing else."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from atoll.channel import Chain
from atoll.channel.robust import Grouped
from atoll.channel.secagg import AbortedError, RejectedError, from_client, pack, proposed
from atoll.channel.secagg.messages import Boxes, Confirmation, FromClient, FromServer, Keys, Masked, Shares
from atoll.channel.sums import Together
from atoll.channel.transform import Setting, Vector
from atoll.contract import Channel, Job, Outcome, Reducer, inmost, refilled
from atoll.errors import CodecError, ConfigError, RunError
from atoll.network.blobs import Blobs
from atoll.network.desk import Arrival, Desk, Posted, key_of
from atoll.network.wire import Blob, Member, Registry, Task
from atoll.network.wire import pack as packed
from atoll.tensors import Record

__all__ = ["Later", "Sums", "announced", "between", "chain_of", "hidden", "whole"]

_ROOM = 1 << 20
"""Bytes that a node's message may have beside its numbers."""

_KINDS: Mapping[str, type[FromClient]] = {
    "keys": Keys, "shares": Boxes, "masked": Masked, "consistency": Confirmation, "unmask": Shares,
}  # fmt: skip


def whole(channel: str | None) -> str | None:
    """A channel as it is between machines: secure aggregation is the whole protocol there.

    >>> whole("clip:0.5 | secagg:16")
    'clip:0.5 | secagg:16,how=protocol'
    """
    parts = [] if channel is None else [part.strip() for part in channel.split("|")]
    for at, part in enumerate(parts):
        name, _, given = (each.strip() for each in part.partition(":"))
        if name == "secagg":
            words = [each.strip().replace("ideal", "protocol") for each in given.split(",") if each]
            if not any("protocol" in each for each in words):
                words.append("how=protocol")
            parts[at] = f"{name}:{','.join(words)}"
    return " | ".join(parts) or None


def hidden(job: Job) -> bool:
    """Whether the clients of a job keep their updates until these are asked for under masks."""
    return job.channel is not None and job.channel.hides and job.work.program == "train"


def chain_of(channel: Channel | None) -> Chain | None:
    """The chain of a channel, if there is one: by itself, or inside of others."""
    inner = inmost(channel)
    return inner if isinstance(inner, Chain) else None


def announced(job: Job) -> Job:
    """The job as its answers are screened: nothing of an update may be in them."""
    return replace(job, expected=Record(), work=replace(job.work, forms={})) if hidden(job) else job


@dataclass
class Later:
    """Memories of clients that count once it is known whose update does."""

    kept: dict[int, Record] = field(default_factory=dict)

    def get(self, client: int) -> Record | None:
        return self.kept.get(client)

    def put(self, client: int, memory: Record) -> None:
        self.kept[client] = memory


@dataclass
class _Attempt:
    """What became of an attempt: why nodes took no part, and whether one must not, as it may be in a sum already."""

    number: int
    reasons: dict[int, str] = field(default_factory=dict)
    spent: bool = False


class Sums:
    """Plays secure aggregation with nodes that have trained.

    Each stage's messages go out as tasks, and are waited for while anybody who is asked gives signs of life. An attempt
    that fails is followed by another one, with new keys and a new sid, among those who are there then: `retry` times at
    most. What has come of it is written down; an attempt that was under way when the coordinator ended is abandoned.

    Args:
        names: of the nodes, by client.
    """

    def __init__(self, desk: Desk, blobs: Blobs, names: Sequence[str]) -> None:
        self.desk, self.blobs, self.names = desk, blobs, names

    def reduced(
        self, job: Job, posted: Mapping[int, Posted], outcomes: Sequence[Outcome]
    ) -> tuple[Reducer, list[Outcome], list[int]]:
        """The reducer with the sum over those who have trained, outcomes, and whose work counts.

        Raises RunError where no attempt has come to a sum.
        """
        reducer, place = job.reducer(), next(iter(posted.values())).key.rpartition("/")[0]
        weights = {each.client: each.weight for each in outcomes if each.refused is None}
        reasons: dict[int, str] = {}
        if isinstance(reducer, Grouped):
            counts, size = set(), 0
            for at, group in enumerate(reducer.parts):
                part, of = reducer.reducer(), {k: w for k, w in weights.items() if k in group}
                assert isinstance(part, Together)
                size = 4 * part.size
                key = f"{place}/sum/{at}"
                if self._taken(job, part, posted, of, key, reasons, self.desk.absent) and part.clients:
                    reducer.put(part)
                    counts |= {*part.clients}
        else:
            assert isinstance(reducer, Together)
            if not self._taken(job, reducer, posted, weights, f"{place}/sum", reasons):
                return reducer, [], []  # nobody's work counts, and nobody is to blame
            size = 4 * reducer.size
            idle = {client for client, weight in weights.items() if weight == 0}
            counts = {*reducer.clients} | idle
        found = [
            replace(each, refused=each.refused or reasons.get(each.client), nbytes=size)
            for each in outcomes
            if each.refused is not None or each.client in counts or each.client in reasons
        ]
        return reducer, found, sorted(counts)

    def _taken(
        self,
        job: Job,
        reducer: Together,
        posted: Mapping[int, Posted],
        weights: Mapping[int, float],
        key: str,
        reasons: dict[int, str],
        patience: float = math.inf,
    ) -> bool:
        """Have a reducer take the sum over these clients; False where it was given up.

        Where too few have something to add, nothing is taken. Why others took no part goes into `reasons`; `patience`
        is how many seconds it waits for those who are not there.
        """
        able = [client for client, weight in weights.items() if weight > 0]
        idle = [client for client, weight in weights.items() if weight == 0]
        if len(able) < reducer.floor:
            return True
        clients, vector, found = self._played(job, reducer, posted, able, key, patience)
        reasons |= found
        if clients:
            reducer.summed([*clients, *idle], sum(weights[client] for client in clients), vector)
        return bool(clients)

    # --- attempts ---------------------------------------------------------------------------------------------

    def _played(
        self,
        job: Job,
        reducer: Together,
        posted: Mapping[int, Posted],
        able: Sequence[int],
        key: str,
        patience: float,
    ) -> tuple[list[int], Vector, dict[int, str]]:
        """Whose updates are in the sum, the sum, why others took no part; written down as `key`."""
        journal = self.desk.journal
        known = journal.get(key)
        if known is not None and self.blobs.whole(known["sha256"]):
            vector = np.frombuffer(self.blobs.path(known["sha256"]).read_bytes(), "<i8").astype(np.int64)
            return known["clients"], vector, {int(k): why for k, why in known["reasons"].items()}
        spent, last = False, ""
        for _ in range(1 + self.desk.retry):
            attempt = _Attempt(int(journal.get("secagg/attempts", 0)) + 1)
            journal.put("secagg/attempts", attempt.number)
            here = self._here(job, able, reducer.floor, patience)
            if not here:  # the others' sums are not to wait for ever for a group's
                journal.put(key, {"clients": [], "sha256": self.blobs.put(b""), "reasons": {}})
                return [], np.zeros(0, np.int64), {}
            try:
                clients, vector = self._attempt(job, reducer, posted, here, attempt)
            except AbortedError as error:
                spent = spent or attempt.spent
                why = "; ".join(dict.fromkeys(attempt.reasons.values()))
                last = error.message + (f" ({why})" if why else "")
                self.desk.state = f"secure aggregation, round {job.round}: {last}"
                continue
            reasons = {str(client): why for client, why in attempt.reasons.items() if client not in clients}
            sha256 = self.blobs.put(vector.astype("<i8").tobytes())
            journal.put(key, {"clients": clients, "sha256": sha256, "reasons": reasons})
            return clients, vector, {int(client): why for client, why in reasons.items()}
        if (
            spent
        ):  # another attempt will not do either: the round's updates may have been summed, and are given up
            self.desk.state = f"secure aggregation, round {job.round}: the round counts without a sum; {last}"
            journal.put(key, {"clients": [], "sha256": self.blobs.put(b""), "reasons": {}})
            return [], np.zeros(0, np.int64), {}
        raise RunError(f"round {job.round}: {last}")

    def _here(self, job: Job, able: Sequence[int], floor: int, patience: float) -> list[int]:
        """Clients who have trained and are there; waits until they are enough, or so long: then nobody."""
        members, until = self._members(), time.monotonic() + patience
        with self.desk.changed:
            while True:
                here = [
                    client for client in able if self.desk.there(client) and self.names[client] in members
                ]
                if len(here) >= floor:
                    return here
                self.desk.state = (
                    f"round {job.round}: secure aggregation is waiting for nodes, {len(here)} of {floor}"
                )
                if (left := until - time.monotonic()) <= 0:
                    return []
                self.desk.wait(None if left == math.inf else left)

    def _members(self) -> dict[str, Member]:
        facts = self.desk.journal.items("key/")
        return {
            key.partition("/")[2]: Member(name=key.partition("/")[2], **fact) for key, fact in facts.items()
        }

    def _attempt(
        self,
        job: Job,
        reducer: Together,
        posted: Mapping[int, Posted],
        here: Sequence[int],
        attempt: _Attempt,
    ) -> tuple[list[int], Vector]:
        """One attempt, to its end.  Raises AbortedError."""
        from atoll.channel.secagg.server import Server

        chain = chain_of(job.channel)
        assert chain is not None and chain.protocol is not None
        members, client_of = self._members(), {self.names[client]: client for client in here}
        names = tuple(sorted(client_of))
        first = posted[here[0]].task
        terms = proposed(
            str(self.desk.journal.get("run/id")), job.round, attempt.number, names,
            chain.protocol.encoding(reducer.size), bytes.fromhex(first.model),
        )  # fmt: skip
        server = Server(terms, {name: bytes.fromhex(members[name].ed25519) for name in names})
        registry = self._kept(packed(Registry(members=tuple(members[name] for name in names))))
        invitation: FromServer = server.open()
        sent: Mapping[str, FromServer] = dict.fromkeys(names, invitation)
        while stage := server.stage:
            check = _Sound(_KINDS[stage], server.sid)
            asked = []
            for name, message in sent.items():
                task = Task(
                    id=f"{first.id.rpartition('-')[0]}-{attempt.number}-{stage}", round=job.round, program=stage,
                    shared=self._kept(pack(message)), own=registry if stage == "keys" else None, cohort=len(here),
                    most=4 * reducer.size + _ROOM, kind="secagg", of=posted[client_of[name]].task.id,
                )  # fmt: skip
                client = client_of[name]
                asked.append(Posted(client, task, key_of(task.id, client), check))
            self._stage(server, asked, attempt)
            sent = server.close()
        total = server.total
        return sorted(client_of[name] for name in total.nodes), total.sums.astype(np.int64)

    def _kept(self, blob: bytes) -> Blob:
        return Blob(sha256=self.blobs.put(blob), size=len(blob))

    # --- one stage --------------------------------------------------------------------------------------------

    def _stage(self, server: Any, asked: Sequence[Posted], attempt: _Attempt) -> None:
        """Ask, and take answers as they come, until nobody is left to wait for."""
        desk, since, waiting = self.desk, time.monotonic(), list(asked)
        desk.post(asked)
        try:
            while waiting:
                with desk.changed:
                    desk.state = (
                        f"round {asked[0].task.round}: secure aggregation, attempt {attempt.number},"
                        f" stage {server.stage}, {len(asked) - len(waiting)} of {len(asked)} answers"
                    )
                    came = [each for each in waiting if desk.arrived(each.key) is not None]
                    if not came:
                        late = time.monotonic() - since > desk.absent
                        if late and not any(desk.there(each.client) for each in waiting):
                            return
                        desk.wait()
                        continue
                for each in came:
                    arrival = desk.arrived(each.key)
                    assert arrival is not None
                    self._take(server, each, arrival, attempt)
                    waiting.remove(each)
        finally:
            desk.withdraw(asked)

    def _take(self, server: Any, posted: Posted, arrival: Arrival, attempt: _Attempt) -> None:
        client = posted.client
        if arrival.sha256 is None:
            attempt.reasons[client] = f"secure aggregation: {arrival.refused}"
            attempt.spent = attempt.spent or any(each.startswith("spent") for each in posted.failures)
            return
        try:
            server.deliver(self.names[client], from_client(self.blobs.path(arrival.sha256).read_bytes()))
        except RejectedError as error:
            attempt.reasons[client] = f"secure aggregation: {error.message}"


class _Sound:
    """Looks at a node's message before it is accepted: one of the kind that is due, of this attempt."""

    def __init__(self, kind: type[FromClient], sid: bytes) -> None:
        self.kind, self.sid = kind, sid

    def __call__(self, blob: Any) -> str | None:
        try:
            message = from_client(bytes(blob))
        except CodecError as error:
            return error.message
        if type(message) is not self.kind or message.sid != self.sid:
            return f"a {type(message).__name__} of some attempt, and {self.kind.__name__} of this one is due"
        return None


def between(channel: Channel | None, secret: bool) -> Channel | None:
    """The channel of a run between machines; `secret` says that all nodes draw from secrets of their own.

    Raises ConfigError for what hides updates in a way that nodes do not play.
    """
    chain = chain_of(channel)
    if chain is None:
        return channel
    if chain.hides and chain.protocol is None:
        raise ConfigError(
            f"channel = {chain.text!r}: between machines updates are hidden by secure aggregation alone",
            hint="write secagg:16 in its place",
        )
    chain = Chain(chain.transforms, replace(chain.setting or Setting(), secret=secret))
    assert channel is not None
    return refilled(channel, chain)
