"""The server's half, a state machine: it hands messages around, and in the end knows a sum and nothing else.

It has no clock. `deliver` takes what comes, `awaited` says who is missing, and `close` ends a stage when all have
answered or whoever drives it has waited long enough: who has not answered by then has dropped out. Masked updates are
added as they come, so that memory does not grow with the clients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from atoll.channel.secagg import keys, masks, shamir
from atoll.channel.secagg.encoding import Total
from atoll.channel.secagg.errors import AbortedError, RejectedError
from atoll.channel.secagg.messages import (
    Boxes,
    Confirmation,
    Confirmations,
    FromClient,
    FromServer,
    Inbox,
    Invitation,
    Keys,
    Masked,
    Roster,
    Shares,
    Survivors,
    membership,
)  # fmt: skip
from atoll.channel.secagg.terms import Terms
from atoll.errors import ConfigError

__all__ = ["Server"]

_STAGES: Mapping[type[FromClient], str] = {
    Keys: "keys",
    Boxes: "shares",
    Masked: "masked",
    Confirmation: "consistency",
    Shares: "unmask",
}


class Server:
    """One attempt, from `open` to `total`.

    Args:
        terms: what is proposed. Raises ConfigError where they cannot work.
        registry: the public keys of all nodes.
    """

    def __init__(self, terms: Terms, registry: Mapping[str, bytes]) -> None:
        terms.check()
        if strangers := [node for node in terms.nodes if node not in registry]:
            raise ConfigError(f"node {strangers[0]!r} is not in the registry")
        self.terms, self.sid = terms, terms.sid
        self._registry = registry
        graph = terms.graph
        self._holders = [graph.holders(client) for client in range(len(terms.nodes))]
        self._number = {node: client for client, node in enumerate(terms.nodes)}
        self._due: type[FromClient] | None = None
        self._here: frozenset[int] = frozenset(range(len(terms.nodes)))  # who may answer in this stage
        self._answers: dict[int, FromClient] = {}
        self._keys: dict[int, Keys] = {}
        self._boxes: dict[int, dict[int, bytes]] = {}
        self._alive: frozenset[int] = frozenset()
        self._members = b""
        self._sum = np.zeros(terms.encoding.size + 1, dtype=np.uint32)
        self._total: Total | None = None

    def open(self) -> Invitation:
        """The invitation, for every node. Raises ConfigError the second time."""
        if self._due is not None or self._total is not None:
            raise ConfigError("this attempt is open already", hint="another attempt has other terms")
        self._due = Keys
        return Invitation(self.sid, self.terms)

    @property
    def stage(self) -> str:
        """keys, shares, masked, consistency or unmask; empty before it is open and after its end."""
        return _STAGES[self._due] if self._due else ""

    @property
    def awaited(self) -> tuple[str, ...]:
        """Who has not answered in this stage."""
        return (
            tuple(self.terms.nodes[client] for client in sorted(self._here - self._answers.keys()))
            if self._due
            else ()
        )

    @property
    def total(self) -> Total:
        """The sum. Raises ConfigError before the last stage is closed."""
        if self._total is None:
            raise ConfigError("there is no sum yet", hint="close the stage 'unmask' first")
        return self._total

    def deliver(self, node: str, message: FromClient) -> bool:
        """Take a message that the transport says is of that node.

        Returns whether it counts: what comes again, too late or too early does not. Raises RejectedError for one that
        is not sound; the node may send a better one.
        """
        client = self._number.get(node)
        if client is None or message.sid != self.sid:
            raise RejectedError(f"a message of {node!r} is of another attempt, or of nobody who was asked")
        if type(message) is not self._due or client in self._answers or client not in self._here:
            return False
        if wrong := self._wrong(client, message):
            raise RejectedError(f"{type(message).__name__} of {node!r}: {wrong}")
        if isinstance(message, Masked):
            self._sum += np.frombuffer(message.values, dtype="<u4")
            message = Masked(self.sid, b"")  # it came; what it held is in the sum
        self._answers[client] = message
        return True

    def _wrong(self, client: int, message: FromClient) -> str:
        """What is wrong with a message; nothing of it has been used yet."""
        holders = set(self._holders[client])
        if isinstance(message, Keys):
            signed = keys.advertised(self.sid, client, message.box, message.mask)
            if message.client != client or not keys.verify(
                self._registry[self.terms.nodes[client]], message.signature, signed
            ):
                return "it is not signed by this node"
            if message.box == message.mask or not (keys.sound(message.box) and keys.sound(message.mask)):
                return "its keys are no two sound keys"
        elif isinstance(message, Boxes):
            if message.boxes.keys() != holders & self._keys.keys() - {client}:
                return "there must be a box for each neighbour, and no other"
            if any(len(box) != keys.BOX for box in message.boxes.values()):
                return f"a box has {keys.BOX} bytes"
        elif isinstance(message, Masked):
            if len(message.values) != 4 * len(self._sum):
                return f"it has {len(message.values)} bytes, and should have {4 * len(self._sum)}"
        elif isinstance(message, Confirmation):
            signed = keys.survived(self.sid, self._members)
            if not keys.verify(self._registry[self.terms.nodes[client]], message.signature, signed):
                return "it does not confirm who survived"
        else:
            held = holders & self._boxes.keys()
            if message.survived.keys() != held & self._alive or message.lost.keys() != held - self._alive:
                return "there must be one share of each client whose shares it holds, of the kind that is due"
            shares = (*message.survived.values(), *message.lost.values())
            if any(len(share) != 32 or int.from_bytes(share, "big") >= shamir.P for share in shares):
                return "a share is no number below p"
        return ""

    def close(self) -> dict[str, FromServer]:
        """End the stage: what each node that is still there is to be sent, by node; nothing after the last stage.

        Raises AbortedError where too few have answered, or the sum cannot be one. The attempt is over then.
        """
        due, answers = self._due, self._answers
        self._due, self._answers = None, {}
        if due is None:
            raise ConfigError("there is no stage to close", hint="open the attempt first; it ends once")
        stage = _STAGES[due]
        self._here = frozenset(answers)
        if due is Shares:
            self._total = self._unmask(answers)
            return {}
        self._enough(stage, self._here if due in (Keys, Boxes) else self._boxes.keys())
        if due is Keys:
            self._keys = {c: a for c, a in answers.items() if isinstance(a, Keys)}
            self._due = Boxes
            return self._each(lambda c: Roster(self.sid, tuple(self._keys[v] for v in self._around(c))))
        if due is Boxes:
            self._boxes = {c: a.boxes for c, a in answers.items() if isinstance(a, Boxes)}
            self._due = Masked
            return self._each(
                lambda c: Inbox(self.sid, {v: self._boxes[v].pop(c) for v in self._around(c) if v != c})
            )
        if due is Masked:
            self._alive = self._here
            self._members = membership(self._alive, len(self.terms.nodes))
            self._due = Confirmation if self.terms.active else Shares
            return self._each(lambda _: Survivors(self.sid, self._members))
        signed = {c: a.signature for c, a in answers.items() if isinstance(a, Confirmation)}
        self._due = Shares
        return self._each(lambda c: Confirmations(self.sid, {v: signed[v] for v in self._around(c)}))

    def _around(self, client: int) -> list[int]:
        """Those of a client's holders that are still here, in ascending order."""
        return [v for v in self._holders[client] if v in self._here]

    def _each(self, make: Callable[[int], FromServer]) -> dict[str, FromServer]:
        return {self.terms.nodes[client]: make(client) for client in sorted(self._here)}

    def _enough(self, stage: str, of: Iterable[int]) -> None:
        """Raises AbortedError unless each of these has as many holders here as give back its secrets."""
        needed, why = self.terms.threshold, ""
        if len(self._here) < needed:
            why = f"{len(self._here)} clients are left, and {needed} are needed"
        for client in sorted(of):
            if not why and (here := len(self._around(client))) < needed:
                node, all_of_them = self.terms.nodes[client], len(self._holders[client])
                why = f"of the {all_of_them} holders of {node!r} {here} are left, and {needed} are needed"
        if why:
            raise AbortedError(
                stage, why, hint="make another attempt; or ask more clients, or plan for more losses"
            )

    def _unmask(self, answers: Mapping[int, FromClient]) -> Total:
        """Give back one secret of each client that shared any, and take its masks from the sum."""
        self._enough("unmask", self._boxes)
        given = {c: {**a.survived, **a.lost} for c, a in answers.items() if isinstance(a, Shares)}
        plus: list[bytes] = []
        minus: list[bytes] = []
        for client in sorted(self._boxes):
            shares = [(x, given[v][client]) for x, v in enumerate(self._holders[client], 1) if v in given]
            pairs = [(x, int.from_bytes(share, "big")) for x, share in shares[: self.terms.threshold]]
            secret = shamir.combine(pairs).to_bytes(32, "big")
            if client in self._alive:
                minus.append(keys.self_seed(secret, self.sid))
                continue
            key = keys.Private(secret)
            if key.public != self._keys[client].mask:
                raise AbortedError(
                    "unmask", f"the shares of {self.terms.nodes[client]!r} do not give its key"
                )
            for v in self._holders[client]:
                if v in self._alive:
                    seed = keys.mask_seed(key.agree(self._keys[v].mask), self.sid)
                    (minus if v < client else plus).append(seed)
        masks.apply(self._sum, plus, minus)
        total = self.terms.encoding.total(self._sum, tuple(self.terms.nodes[c] for c in sorted(self._alive)))
        if total is None:
            raise AbortedError(
                "unmask", "what is left is no sum of updates: a mask, a share or an update was wrong"
            )
        return total
