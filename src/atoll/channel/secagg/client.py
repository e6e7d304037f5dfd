"""The client's half, a state machine: messages in, messages out, and secrets that do not outlive their use.

Bonawitz et al., CCS 2017, on the graph of Bell et al., CCS 2020. A client u hides its update x_u behind a mask of its
own and one for each neighbour,

    y_u = x_u + PRG(b_u) + sum over neighbours v of (+ if u < v else -) PRG(s_uv)   mod 2^32,

and gives shares of b_u and of its mask key to its neighbours and itself. Masks of pairs cancel in the sum. In the end
each client hands out one share of each neighbour: of b where its update is in the sum, of the mask key where not.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping

from atoll.channel.secagg import keys, masks, shamir
from atoll.channel.secagg.encoding import Ints
from atoll.channel.secagg.errors import OutOfTurnError, RefusedError, SpentError
from atoll.channel.secagg.floors import Floors, Marks, once_a_round
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
    members,
    membership,
)  # fmt: skip
from atoll.channel.secagg.terms import Terms
from atoll.errors import ConfigError

__all__ = ["Client"]


class Client:
    """One client in one attempt.

    `receive` takes what the server sends and gives the answer to it; `contribute` must come before the inbox does. A
    client that refuses has erased its secrets and takes no further part.

    Args:
        node: its name among the nodes.
        sign: signs bytes with its identity (Ed25519).
        registry: the public keys (32 bytes) of all nodes, from where the server cannot change them.
        floors: what it insists on.
        marks: what it has done before, kept where a restart does not lose it.
        model: hash of the model that it has.
        beacon: public randomness that it knows of by itself, for graphs that are not complete.
        entropy: n secret uniform bytes; the operating system's.
    """

    def __init__(
        self,
        node: str,
        sign: Callable[[bytes], bytes],
        registry: Mapping[str, bytes],
        floors: Floors,
        marks: Marks,
        model: bytes = b"",
        beacon: bytes | None = None,
        entropy: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self.node = node
        self.terms: Terms | None = None
        self.due: type[FromServer] | None = Invitation
        self._sign, self._registry, self._floors, self._marks = sign, registry, floors, marks
        self._model, self._beacon, self._entropy = model, beacon, entropy
        self._self_secret, self._mask_secret = bytearray(32), bytearray(32)
        self._forget()

    def _erase(self) -> None:
        """Drop its own secrets, and overwrite those that are this object's alone, as far as Python lets one."""
        for secret in (self._self_secret, self._mask_secret):
            secret[:] = bytes(len(secret))
        self._box_key: keys.Private | None = None
        self._shared: dict[int, bytes] = {}  # by client: the secret for boxes, both ways
        self._mask_key: keys.Private | None = None
        self._values: Ints | None = None

    def _forget(self) -> None:
        """Drop all secrets, others' shares too."""
        self._erase()
        self._held: dict[int, bytes] = {}  # by client: its shares of b and of the mask key, behind each other

    def abandon(self) -> None:
        """Take no further part, and drop all secrets: another attempt has begun."""
        self.due = None
        self._forget()

    def contribute(self, values: Ints) -> None:
        """The update, as `encoding` of the terms encodes it: uint32 [d + 1]. It is not changed.

        Raises ConfigError for a second one, or where it comes too late.
        """
        if self.due not in (Invitation, Roster, Inbox) or self._values is not None:
            raise ConfigError("an update is contributed once, and before the inbox comes")
        self._values = values

    def receive(self, message: FromServer) -> FromClient:
        """The answer to a message.

        Raises OutOfTurnError, without a change, for what is not due; RefusedError for what breaks protocol or floors.
        """
        if self.due is None or type(message) is not self.due:
            raise OutOfTurnError(f"{self.node!r} was sent {type(message).__name__}, which is not due")
        if not isinstance(message, Invitation) and message.sid != self._sid:
            raise OutOfTurnError(f"{self.node!r} was sent {type(message).__name__} of another attempt")
        answer: FromClient
        try:
            if isinstance(message, Invitation):
                answer, self.due = self._advertise(message), Roster
            elif isinstance(message, Roster):
                answer, self.due = self._share(message), Inbox
            elif isinstance(message, Inbox):
                answer, self.due = self._mask(message), Survivors
            elif isinstance(message, Survivors):
                answer, self.due = self._survivors(message)
            else:
                answer, self.due = self._confirmed(message), None
        except BaseException:
            self.due = None
            self._forget()
            raise
        if self.due is None:
            self._forget()
        return answer

    def _refuse(self, why: str) -> RefusedError:
        return RefusedError(f"{self.node!r} takes no part: {why}")

    def _advertise(self, message: Invitation) -> Keys:
        terms = message.terms
        self._floors.check(terms, self._model, self._beacon)
        sid = terms.sid
        if message.sid != sid or self.node not in terms.nodes:
            raise self._refuse("the invitation is not for it, or has another sid than its terms")
        if strangers := [node for node in terms.nodes if node not in self._registry]:
            raise self._refuse(f"nobody knows {strangers[0]!r}")
        if not self._marks.once("joined", sid):
            raise self._refuse("it was in this attempt before, with other keys")
        self.terms, self._sid, self._me = terms, sid, terms.nodes.index(self.node)
        self._holders = terms.graph.holders(self._me)
        self._mask_secret = bytearray(shamir.below(self._entropy).to_bytes(32, "big"))
        self._self_secret = bytearray(shamir.below(self._entropy).to_bytes(32, "big"))
        self._box_key = keys.Private(self._entropy(32))
        self._mask_key = keys.Private(bytes(self._mask_secret))
        box, mask = self._box_key.public, self._mask_key.public
        signature = self._sign(keys.advertised(self._sid, self._me, box, mask))
        self._own = Keys(self._sid, self._me, box, mask, signature)
        return self._own

    def _share(self, message: Roster) -> Boxes:
        terms, box_key = self.terms, self._box_key
        assert terms and box_key
        known = {each.client: each for each in message.keys}
        if len(known) != len(message.keys) or not known.keys() <= set(self._holders):
            raise self._refuse("the roster names somebody twice, or somebody who is no neighbour")
        if known.get(self._me) != self._own:
            raise self._refuse("the roster changes its own keys")
        if len(known) < terms.threshold:
            raise self._refuse(f"{len(known)} holders are there, and {terms.threshold} are needed")
        public = [key for each in known.values() for key in (each.box, each.mask)]
        if len(set(public)) != len(public):
            raise self._refuse("two keys of the roster are the same")
        for client, each in known.items():
            signed = keys.advertised(self._sid, client, each.box, each.mask)
            if each.sid != self._sid or not keys.verify(
                self._registry[terms.nodes[client]], each.signature, signed
            ):
                raise self._refuse(f"the keys of {terms.nodes[client]!r} are not signed by it")
        t, count = terms.threshold, len(self._holders)
        first = shamir.split(int.from_bytes(self._self_secret, "big"), t, count, self._entropy)
        second = shamir.split(int.from_bytes(self._mask_secret, "big"), t, count, self._entropy)
        boxes = {}
        for holder, b, s in zip(self._holders, first, second, strict=True):
            pair = b.to_bytes(32, "big") + s.to_bytes(32, "big")
            if holder == self._me:
                self._held[holder] = pair
            elif holder in known:
                self._shared[holder] = shared = self._agreed(box_key, known[holder].box, holder)
                boxes[holder] = keys.seal(shared, pair, self._sid, self._me, holder)
        self._known, self._box_key = known, None
        return Boxes(self._sid, boxes)

    def _agreed(self, key: keys.Private, public: bytes, client: int) -> bytes:
        try:
            return key.agree(public)
        except ValueError:
            raise self._refuse(f"client {client} has a key that gives no secret") from None

    def _mask(self, message: Inbox) -> Masked:
        terms, mask_key, values = self.terms, self._mask_key, self._values
        assert terms and mask_key
        senders = message.boxes.keys()
        if not senders <= self._known.keys() - {self._me}:
            raise self._refuse("the inbox has a box of somebody who is not on the roster")
        if len(senders) + 1 < terms.threshold:
            raise self._refuse(f"{len(senders) + 1} holders are there, and {terms.threshold} are needed")
        if values is None:
            raise self._refuse("it has no update to contribute")
        if not terms.encoding.fits(values):
            raise self._refuse(
                "its update is not encoded as the terms say: numbers or weight are too large, or too many"
            )
        plus = [keys.self_seed(bytes(self._self_secret), self._sid)]
        minus: list[bytes] = []
        for sender, box in message.boxes.items():
            try:
                pair = keys.unseal(self._shared[sender], box, self._sid, sender, self._me)
            except ValueError as error:
                raise self._refuse(f"the box of {terms.nodes[sender]!r}: {error}") from None
            shared = self._agreed(mask_key, self._known[sender].mask, sender)
            if len(pair) != 64:
                raise self._refuse(f"the box of {terms.nodes[sender]!r}: no two shares are in it")
            self._held[sender] = pair
            (plus if self._me < sender else minus).append(keys.mask_seed(shared, self._sid))
        self._given = hashlib.sha256(values.astype("<u4").tobytes()).digest()
        masked = values.astype("<u4")
        masks.apply(masked, plus, minus)
        self._erase()
        return Masked(self._sid, masked.tobytes())

    def _survivors(self, message: Survivors) -> tuple[FromClient, type[FromServer] | None]:
        terms = self.terms
        assert terms
        try:
            self._alive = members(message.members, len(terms.nodes))
        except ValueError as error:
            raise self._refuse(str(error)) from None
        here = self._alive & set(self._holders)
        if self._me not in here:
            raise self._refuse("the server says that it dropped out, and it did not")
        if not here <= self._held.keys():
            raise self._refuse("a neighbour is said to have survived that never shared its keys")
        if len(here) < terms.threshold:
            raise self._refuse(f"{len(here)} of its holders survive, and {terms.threshold} are needed")
        if len(self._alive) < self._floors.cohort:
            raise self._refuse(
                f"a sum of {len(self._alive)} clients, and this client's floor is {self._floors.cohort}"
            )
        self._bind(terms)
        if terms.active:
            return Confirmation(
                self._sid, self._sign(keys.survived(self._sid, message.members))
            ), Confirmations
        return self._unmask(), None

    def _bind(self, terms: Terms) -> None:
        """Bind the update of this round to these survivors, for good: what it says from here on may unmask their sum.

        Who is asked for a sum of others, or has another update by now, has to refuse. An attempt that was unmasked had
        more than two thirds of its clients agree; those who did not, and know of no sum, are too few for a
        difference to come down to any one.
        """
        names = "\n".join(terms.nodes[client] for client in sorted(self._alive)).encode()
        value = hashlib.sha256(self._given + names).digest()
        if not self._marks.only("agreed", once_a_round(terms), value) and not self._floors.repeats:
            raise SpentError(
                f"{self.node!r} takes no part: its update of this round may be in another sum, of other clients"
            )

    def _confirmed(self, message: Confirmations) -> Shares:
        terms = self.terms
        assert terms
        given = message.signatures
        if not given.keys() <= self._alive & set(self._holders):
            raise self._refuse("somebody confirms who is no neighbour, or did not survive")
        if len(given) < terms.threshold:
            raise self._refuse(f"{len(given)} confirm who survived, and {terms.threshold} are needed")
        signed = keys.survived(self._sid, membership(self._alive, len(terms.nodes)))
        for client, signature in given.items():
            if not keys.verify(self._registry[terms.nodes[client]], signature, signed):
                raise self._refuse(f"{terms.nodes[client]!r} has not confirmed the same survivors")
        return self._unmask()

    def _unmask(self) -> Shares:
        """Exactly one of the two shares of each, and the only answer of this kind in this attempt, ever."""
        if not self._marks.once("answered", self._sid):
            raise self._refuse("it has handed out shares in this attempt before")
        survived = {client: pair[:32] for client, pair in self._held.items() if client in self._alive}
        lost = {client: pair[32:] for client, pair in self._held.items() if client not in self._alive}
        return Shares(self._sid, survived, lost)
