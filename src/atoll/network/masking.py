"""A node's part in secure sums: its key for signatures, whose keys it trusts, and its client in the present attempt."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np

from atoll.channel.secagg import Floors, RefusedError, SpentError, from_server, lottery, pack
from atoll.channel.secagg.messages import Invitation
from atoll.errors import AtollError, CodecError, MissingExtraError
from atoll.network.marks import MarksOnDisk
from atoll.network.shelf import Shelf
from atoll.network.signing import Signer
from atoll.network.wire import Failure, Member, Registry, Task, unpack

try:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    from atoll.channel.secagg.client import Client
except ImportError:
    raise MissingExtraError("cryptography", "network", "a node") from None

__all__ = ["Masking", "Trusts", "certified", "told"]

Trusts = Callable[[Member], bytes]
"""The key (32 bytes) under which a node's signatures count here.  Raises RefusedError where it is not to be trusted."""


def told(member: Member) -> bytes:
    """Whatever the coordinator tells: without certificates nobody else says whose key is whose.

    A coordinator that lies may then be all of a node's neighbours. So plain text is for one machine and for trials.
    """
    return bytes.fromhex(member.ed25519)


def certified(authority: bytes) -> Trusts:
    """Keys that a certificate of this authority (PEM) names, for a node of that name, within its dates."""
    issuer = x509.load_pem_x509_certificate(authority)

    def trusts(member: Member) -> bytes:
        try:
            certificate = x509.load_pem_x509_certificate((member.certificate or "").encode())
            certificate.verify_directly_issued_by(issuer)
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            words = names.get_values_for_type(x509.UniformResourceIdentifier)
        except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
            raise RefusedError(f"the key of {member.name!r} has no certificate of this federation") from None
        if not certificate.not_valid_before_utc <= datetime.now(UTC) <= certificate.not_valid_after_utc:
            raise RefusedError(f"the certificate of {member.name!r} is out of its dates")
        due = {f"atoll:node:{member.name}", "atoll:role:node", f"atoll:ed25519:{member.ed25519}"}
        if len(words) != len(due) or {*words} != due:
            raise RefusedError(f"the certificate that came for {member.name!r} names somebody else")
        return bytes.fromhex(member.ed25519)

    return trusts


class Masking:
    """A node in the secure sums of a run.

    Secrets are in memory only: a node that was restarted has dropped out of the attempt that was under way. What must
    not be done twice is on the disk (`MarksOnDisk`) before it is done.

    Args:
        name: the node's.
        run: the run's id.
        shelf: where its updates are.
        signer: its key.
        trusts: whose keys count.
        smallest: of how many nodes a sum must be; never fewer than three.
    """

    def __init__(
        self, name: str, run: str, shelf: Shelf, signer: Signer, trusts: Trusts, smallest: int = 0
    ) -> None:
        self.name, self.run, self.shelf, self.signer, self.trusts = name, run, shelf, signer, trusts
        floor = Floors()
        self.floors = Floors(cohort=max(floor.cohort, smallest))
        self.marks = MarksOnDisk(shelf.place / "marks")
        self._client: Client | None = None

    def answer(self, task: Task, message: bytes, registry: bytes = b"") -> bytes | Failure:
        """What the client says to a message of the server, or why it takes no part."""
        try:
            said = from_server(message)
            if isinstance(said, Invitation):
                self._begin(task, said, unpack(registry, Registry))
            if self._client is None:
                raise RefusedError(f"{self.name!r} has been restarted since, and has dropped out")
            return pack(self._client.receive(said))
        except SpentError as error:
            return Failure(kind="spent", reason=error.message)
        except (RefusedError, CodecError) as error:
            return Failure(kind="refused", reason=error.message)
        except (AtollError, OSError) as error:
            return Failure(kind="raised", reason=str(error))

    def _begin(self, task: Task, said: Invitation, registry: Registry) -> None:
        """A client for a new attempt.  Raises RefusedError."""
        if self._client is not None:
            self._client.abandon()
            self._client = None
        terms = said.terms
        if task.of is None or not (update := self.shelf.vector(task.of, terms.model.hex())).is_file():
            raise RefusedError(f"{self.name!r} has no update of task {task.of} with that model")
        if terms.run != self.run or terms.round != int(task.of.partition("-")[0]):
            raise RefusedError(f"the terms are those of another round than task {task.of} was of")
        keys = {each.name: self.trusts(each) for each in registry.members if each.name in terms.nodes}
        if keys.get(self.name) != self.signer.public:
            raise RefusedError(f"the registry has another key of {self.name!r} than its own")
        client = Client(
            self.name, self.signer.sign, keys, self.floors, self.marks,
            terms.model, lottery(terms.run, terms.round),
        )  # fmt: skip
        client.contribute(np.fromfile(update, "<u4"))
        self._client = client
