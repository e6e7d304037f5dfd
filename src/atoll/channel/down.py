"""The broadcast in fewer bytes: what the server sends to clients goes through a codec as well."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from atoll import seeds, spec
from atoll.channel.shrink import Shrink
from atoll.channel.transform import Update
from atoll.codec import pieces
from atoll.compress import Codec, Same
from atoll.compress.entropy import needed
from atoll.compress.parse import CODECS, read
from atoll.contract import Work
from atoll.errors import CodecError, ConfigError
from atoll.tensors import Record, Tensors, map_leaves, nbytes

__all__ = ["Down", "name_of"]


@dataclass(frozen=True)
class Down:
    """What a method says is the model in its broadcast (`Method.broadcasts`), through a codec.

    Clients get what decoding gives, and train from that; the server goes on from its own numbers. By itself the model
    is sent whole, c(w), whatever a client has: the codec must bring nearly all of it back. With `feedback` what travels
    is how it differs from what clients hold:   EF21-P: Gruntkowska et al., ICML 2023

    d = c(w - h);  h <- h + d,  so that what was lost of one round is in w - h of the next.

    h is one reference for all. A client that has been away takes the differences since it was there, or h as it is,
    whichever is less; its first time it takes h. They are sums in one order, so that all hold the same bits.

    Args:
        codec: see `atoll.compress`.
        feedback: whether differences are sent.
        zstd: whether what travels is packed once more, without loss.
        apart: whether clients are on machines of their own, and keep h there: differences are then in the server's
            state, for those that were away, as far as they are less than h (see `Work.differs`).
    """

    codec: Codec
    feedback: bool = False
    zstd: bool = False
    apart: bool = False

    def __post_init__(self) -> None:
        what = f"down = {self.text!r}"
        if self.feedback and not self.codec.contracts:
            raise ConfigError(
                f"{what}: what {self.codec.text} loses may be longer than what it is given, and would grow",
                hint='take another codec: down = "drive + feedback"',
            )
        if self.feedback and self.zstd:
            raise ConfigError(
                f"{what}: a client that was away takes all differences since, and how long they were nobody keeps",
                hint="leave one of the two out",
            )
        if self.zstd and not self.codec.again:
            raise ConfigError(
                f"{what}: what {self.codec.text} sends looks drawn by lot, and zstd finds next to nothing in it",
                hint='leave + zstd out; it goes with bf16, fp16, int8, int4, and alone: down = "zstd"',
            )
        if self.zstd:
            needed()
        if not self.feedback and not self.codec.close:
            raise ConfigError(
                f"{what}: {self.codec.text} brings too little back of a model that is sent whole",
                hint=f'send differences: down = "{self.codec.text} + feedback"'
                if self.codec.contracts
                else 'take a finer codec: down = "int8"',
            )

    @staticmethod
    def parse(text: str) -> Down:
        """From "int8", "bf16 + zstd" or "drive + feedback".  Raises ConfigError."""
        first, *more = spec.chain(text, "down", "+")
        words = [each.name for each in more]
        for at, each in enumerate(more):
            known = each.name in ("zstd", "feedback") and each.given is None
            if not known or each.name in words[:at]:
                raise spec.unknown("down", each.name, ["zstd", "feedback"], text)
        if first.name == "zstd" and first.given is None and "zstd" not in words:
            return Down(Same(), "feedback" in words, zstd=True)
        if first.name not in CODECS:
            raise spec.unknown("down", first.name, [*CODECS, "zstd"], text)
        return Down(read(first), "feedback" in words, "zstd" in words)

    @property
    def text(self) -> str:
        """How it is written."""
        behind = self.zstd and not isinstance(self.codec, Same)
        return self.codec.text + " + zstd" * behind + " + feedback" * self.feedback

    # --- the server's half ------------------------------------------------------------------------------------

    def sent(
        self, work: Work, fields: Sequence[str], clients: Sequence[int], seed: int, number: int, state: Record
    ) -> tuple[Work, Record]:
        """The work of a round as it is sent to these clients, and the state after it.

        Args:
            fields: of `Work.shared`, that are the model.
            seed, number: the run's and the round's, the address of what is drawn.
            state: after the round before; empty before the first.
        """
        model = Record({name: work.shared[name] for name in fields})
        key = torch.tensor(seeds.address(seed, "down", number) >> 2)
        rest = Record({name: part for name, part in work.shared.items() if name not in fields})
        if not self.feedback:
            packed, opened = self._packed(model, key)
            form = map_leaves(
                lambda v: v.new_empty((0, *v.shape)), model
            )  # names, types and shapes, and no number
            travels = rest.replace(down=packed.replace(form=form))
            return replace(work, shared=work.shared.replace(**opened), travels=travels), state
        whole, step, packed = nbytes(model), 0, Record()
        if state:
            held = state.reference
            differ = Record({name: model[name] - held[name] for name in fields})
            packed, back = self._packed(differ, key)
            model = Record({name: held[name] + back[name] for name in fields})
            step = nbytes(packed)
        else:
            state = Record(
                clients=torch.empty(0, dtype=torch.int64), held=torch.empty(0, dtype=torch.int64), number=0
            )
        now = state.number + 1
        since = dict(zip(state.clients.tolist(), state.held.tolist(), strict=True))
        missed = {client: now - since[client] for client in clients if client in since}
        lengths = {
            k: nbytes(rest) + (min(missed[k] * step, whole) if k in missed else whole) for k in clients
        }
        work = replace(work, shared=work.shared.replace(**model), lengths=lengths)
        state = state.replace(reference=model, number=now)
        return self._between(work, rest, missed, packed, state, whole) if self.apart else (work, state)

    @staticmethod
    def _between(
        work: Work, rest: Record, missed: Mapping[int, int], packed: Record, state: Record, whole: int
    ) -> tuple[Work, Record]:
        """The work for clients that keep references, and the state with the difference that is the newest."""
        now, name = state.number, name_of(state.reference)
        step = nbytes(packed)
        useful = min((whole - 1) // step, now) if step else 0  # so many are less than all of it
        steps = {**state.get("steps", {}), **({str(now): packed} if step else {})}
        names = {
            **state.get("names", {}),
            str(now): torch.tensor(list(bytes.fromhex(name)), dtype=torch.uint8),
        }
        steps = {key: part for key, part in steps.items() if int(key) > now - useful}
        names = {key: part for key, part in names.items() if int(key) >= now - useful}
        told = {
            count: (
                bytes(names[str(now - count)].tolist()).hex(),
                rest.replace(down=Record({str(k): steps[str(k)] for k in range(now - count + 1, now + 1)})),
            )
            for count in {*missed.values()}
            if all(str(k) in steps for k in range(now - count + 1, now + 1))
        }
        differs = {client: told[count] for client, count in missed.items() if count in told}
        return replace(work, differs=differs, keep=name), state.replace(
            steps=Record(steps), names=Record(names)
        )

    def heard(self, state: Record, clients: Sequence[int]) -> Record:
        """The state once these clients have answered: they hold what was sent last."""
        if not self.feedback or not state or not clients:
            return state
        since = dict(zip(state.clients.tolist(), state.held.tolist(), strict=True))
        since |= dict.fromkeys(clients, state.number)
        return state.replace(
            clients=torch.tensor(sorted(since)), held=torch.tensor([since[k] for k in sorted(since)])
        )

    def _packed(self, values: Record, key: Tensor) -> tuple[Record, Record]:
        """(what travels of these values, what comes of it)."""
        update = Update(values, torch.ones(()), Record(), Record())
        shrink = Shrink(self.codec, zstd=self.zstd, packs=True)
        sent = shrink.send(update, Record(), Record(), key)[0].values
        return sent, shrink.opened(sent, values)

    # --- the client's -----------------------------------------------------------------------------------------

    def opened(self, received: Record, held: Record | None = None) -> Record:
        """What a client receives, of what travelled; `held` is what differences are told from.  Raises CodecError."""
        packed = received.get("down")
        if packed is None:  # what is no training is sent as it is
            return received
        rest = Record({name: part for name, part in received.items() if name != "down"})
        if self.feedback:
            return rest.replace(**self._followed(packed, held))
        form = packed.get("form") if isinstance(packed, Record) else None
        if not isinstance(form, Record) or not all(
            isinstance(part, Record | Tensors) for part in form.values()
        ):
            raise CodecError(
                f"this is nothing that {self.text} sends", hint="both sides must have one version"
            )
        due = map_leaves(lambda v: torch.empty(v.shape[1:], dtype=v.dtype, device="meta"), form)
        sent = Record({name: part for name, part in packed.items() if name != "form"})
        return rest.replace(**Shrink(self.codec, zstd=self.zstd).opened(sent, due))

    def _followed(self, steps: Any, held: Record | None) -> Record:
        """The reference after these differences, in their order."""
        if (
            held is None
            or not isinstance(steps, Record)
            or not all(isinstance(s, Record) for s in steps.values())
        ):
            raise CodecError("differences came, and nothing that they are told from is here")
        for packed in steps.values():
            back = Shrink(self.codec).opened(packed, held)
            held = Record({name: part + back[name] for name, part in held.items()})
        return held


def name_of(reference: Record) -> str:
    """What a reference goes by: the SHA-256 of its encoding, in hexadecimal digits."""
    total = hashlib.sha256()
    for piece in pieces(reference):
        total.update(piece)
    return total.hexdigest()
