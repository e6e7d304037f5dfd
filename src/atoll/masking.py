"""Masked language modelling: some tokens are hidden, and are to be predicted from all others.   Devlin et al. 2019"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from atoll import seeds, spec
from atoll.errors import ConfigError
from atoll.parts import Inputs, Parts

__all__ = ["Masking"]

_TEXT = "input_ids"
_JUDGED = 0x6D61736B
"""The stream of texts that are judged, which are hidden alike each time."""


@dataclass(frozen=True)
class Masking:
    """What is hidden of a text, and what is then to be predicted.

    Of the tokens chosen, eight of ten become `token`, one becomes another token of the same text, and one stays. Which
    ones follows from a stream and from the text itself, wherever it stands in a batch; of a text at least one is.

    Args:
        share: of the tokens.
        token: the one that stands for what is hidden; of bytes 0, of a tokenizer its own.
    """

    share: float
    token: int = 0

    @staticmethod
    def parse(text: str) -> Masking | None:
        """The masking of "masked:0.15" or "masked:0.15,103"; None of a loss that hides nothing.  Raises ConfigError."""
        call = spec.parse(text, "loss")
        if call.name != "masked":
            return None
        share = spec.number("share", above=0, below=1)
        return Masking(**call.read({"masked": (share, spec.whole("token", optional=True, at_least=0))}))

    @property
    def text(self) -> str:
        """How it is written."""
        return f"masked:{self.share:g},{self.token}"

    def __call__(self, inputs: Inputs, targets: Tensor, key: Tensor | None = None) -> tuple[Inputs, Tensor]:
        """Inputs in which tokens are hidden, and targets [b, t]: the hidden ones, -1 elsewhere.

        Args:
            inputs: whole numbers [b, t], alone or the part `input_ids`.
            targets: the next token at each place, negative where there is none: what is filled up is not hidden.
            key: the stream of a training batch; None for what is judged.

        Raises ConfigError where the inputs are no texts.
        """
        tokens = self._tokens(inputs, targets)
        length = tokens.shape[1]
        places = torch.arange(length, device=tokens.device)
        own = seeds.fold(seeds.fold(torch.full_like(places, _JUDGED), places), tokens).sum(1)  # of each text
        stream = seeds.fold(torch.full_like(own, _JUDGED) if key is None else key, own)

        def drawn(what: int) -> Tensor:
            bits = seeds.fold(seeds.fold(stream, what).unsqueeze(1), places)
            return (bits & 0xFFFFFF).to(torch.float32) * (1.0 / (1 << 24))

        real = torch.cat([torch.ones_like(targets[:, :1]), targets[:, :-1]], 1) >= 0
        chance = torch.where(real, drawn(0), torch.full_like(tokens, 2, dtype=torch.float32))
        chosen = (chance < self.share) | (real & (chance == chance.amin(1, keepdim=True)))
        becomes, other = drawn(1), (drawn(2) * length).long().clamp(max=length - 1)
        hidden = torch.where(becomes < 0.8, torch.full_like(tokens, self.token), tokens)
        hidden = torch.where(becomes >= 0.9, tokens.gather(1, other), hidden)
        shown = torch.where(chosen, hidden, tokens)
        wanted = torch.where(chosen, tokens, torch.full_like(tokens, -1))
        if not isinstance(inputs, Parts):
            return shown, wanted
        return Parts({str(name): shown if name == _TEXT else part for name, part in inputs.items()}), wanted

    def _tokens(self, inputs: Inputs, targets: Tensor) -> Tensor:
        parts = dict(inputs.items()) if isinstance(inputs, Parts) else {_TEXT: inputs}
        found = parts.get(_TEXT)
        if found is None or found.is_floating_point() or found.shape != targets.shape or found.ndim != 2:
            raise ConfigError(
                f"loss = {self.text!r} hides tokens of texts, and these are none that it can read",
                hint="inputs are whole numbers [samples, tokens] with a label each, as of data = text:PATH",
            )
        return found
