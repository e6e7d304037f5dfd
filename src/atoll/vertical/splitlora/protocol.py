"""SplitLoRA as a protocol."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from atoll import adapters
from atoll.errors import ConfigError
from atoll.optimizers import optimizer
from atoll.parties import Kind, Link
from atoll.tensors import Record
from atoll.vertical.protocol import Apart, Case, Progress
from atoll.vertical.splitlora.client import Client
from atoll.vertical.splitlora.cutting import base_of, joined
from atoll.vertical.splitlora.messages import CUT, KINDS
from atoll.vertical.splitlora.server import Server
from atoll.vertical.splitlora.texts import Text
from atoll.vertical.splitnn.embeddings import spent
from atoll.vertical.splitnn.messages import Wire

__all__ = ["SplitLoRA"]


@dataclass(frozen=True)
class SplitLoRA(Apart):
    """Fine-tune a language model that is cut between devices and a server.   Lin et al. 2024, arXiv 2407.00952

    client k:  h_k = embedding and first blocks, with adapters, of its own text  ->  server:  the rest, with adapters
    server:    a step of its adapters against the mean loss of all;  d loss_k / d h_k  ->  client k:  a step of its own
    every `average` rounds:  clients' adapters <- their mean, weighed by their windows

    The base stays as it is, and everybody has the own part of it. With one client a step is the uncut model's. With
    several, a client's gradient is that of its own mean loss, so that one plain step of each and a mean are the uncut
    model's step on all their batches, where these are of one size.

    Each step sends 2 B T d numbers a client (Wire.codec says in how many bytes), and its B T targets, of a byte each.
    The targets are the text. What activations tell beyond them, and by themselves, `attacks` measures.

    Args:
        model: a chain of blocks, "gpt:4,128".
        adapter: on both sides, "lora:8,16".
        base: a .safetensors file with the model's weights, at every party under this name; none draws them.
        cut: blocks at the clients, after the embedding.
        window: T, tokens (bytes) that the model sees.
        rounds: after each of which a checkpoint may be written.
        batches: of each client in a round, and steps with them.
        batch: B, windows of a client in a step.
        optimizer, lr: of adapters on both sides; optimiser as `atoll.optimizers` has it.
        average: rounds between two means of clients' adapters; 0 leaves each its own.
        codec: what makes activations and gradients smaller: bf16, fp16, int8, int4, topk:SHARE.
        clip: C, the most length of a token's activation.
        noise: deviation of the noise on each number of an activation, in clips.
        delta: that epsilon is told at; windows^-1.1 where none is given.
        noise_seed: of all noise, for experiments; None takes it from the operating system.
    """

    model: str = "gpt:4,128"
    adapter: str = "lora:8,16"
    base: str | None = None
    cut: int = 1
    window: int = 80
    rounds: int = 10
    batches: int = 10
    batch: int = 8
    optimizer: str = "adamw"
    lr: float = 1e-3
    average: int = 1
    codec: str | None = None
    clip: float | None = None
    noise: float = 0.0
    delta: float | None = None
    noise_seed: int | None = None

    name: ClassVar[str] = "splitlora"
    says: ClassVar[str] = (
        "a language model's first blocks where the text is, the rest at a server, adapters on both"
    )
    kinds: ClassVar[tuple[Kind, ...]] = KINDS

    def __post_init__(self) -> None:
        for name in ("cut", "window", "rounds", "batches", "batch"):
            self._require(name, getattr(self, name) >= 1, "must be 1 or more")
        self._require("average", self.average >= 0, "must be 0 or more")
        self._require("lr", 0 < self.lr < math.inf, "must be above 0")
        self._require("clip", self.clip is None or 0 < self.clip < math.inf, "must be above 0")
        self._require("noise", 0 <= self.noise < math.inf, "must be 0 or more")
        self._require(
            "noise", not self.noise or self.clip is not None, "is in clips, and there is no clip", "set clip"
        )
        self._require("delta", self.delta is None or 0 < self.delta < 1, "must lie between 0 and 1")
        optimizer(self.optimizer)
        adapters.parse(self.adapter)
        Wire.of(self.codec, CUT)

    def _require(self, name: str, holds: bool, problem: str, hint: str | None = None) -> None:
        if not holds:
            raise ConfigError(f"{name} = {getattr(self, name)!r} {problem}", hint=hint)

    @property
    def steps(self) -> int:
        return self.rounds

    # --- what roles ask -----------------------------------------------------------------------------------------

    def terms(self, case: Case) -> str:
        """What all parties must have alike, in words: the settings, and which base."""
        numbers = (
            f"{self.model} cut={self.cut} adapter={self.adapter} window={self.window} rounds={self.rounds}"
        )
        more = (
            f"batches={self.batches} batch={self.batch} average={self.average} codec={self.codec or 'none'}"
        )
        return f"{numbers} {more} seed={case.seed} base={base_of(self.base, case.seed)}"

    def epsilon(self, windows: int, times: int) -> float:
        """The epsilon of one window among so many, each of which is sent at most so many times.

        Neighbours differ in a window, which moves the activations of all its T tokens: together by as much as one
        embedding of a clip sqrt(T) times as long.
        """
        return spent(self.noise / math.sqrt(self.window), windows, times, self.delta)

    def joined(self, seed: int, client: Record, server: Record) -> nn.Module:
        """The model that a client's half and the server's come to, with its adapters (see `atoll.adapters.merged`).

        Args:
            seed: the run's.
            client, server: `half.model` of their halves, as `Fitted.halves` has them.
        """
        parts = [client.part.params, server.part.params]
        return joined(self.model, self.window, self.adapter, self.base, seed, parts)

    # --- roles --------------------------------------------------------------------------------------------------

    def read(self, source: Any) -> Text:
        return Text.of(source)

    async def server(self, link: Link, case: Case, progress: Progress) -> tuple[Record, Mapping[str, float]]:
        return await Server(self, link, case, progress.half).learn(progress)

    async def client(self, link: Link, data: Text, case: Case, share: float, progress: Progress) -> Record:
        return await Client(self, link, data, case, share, progress.half).learn(progress)
