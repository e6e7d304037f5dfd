"""Roles that talk by links, without a server: in one process, or a process for each over TLS (`docs/vertical.md`)."""

from __future__ import annotations

from atoll.parties.kind import Field, Kind
from atoll.parties.link import Link, PartyError
from atoll.parties.stage import Played, play
from atoll.parties.transcript import Count, Transcript

__all__ = ["Count", "Field", "Kind", "Link", "PartyError", "Played", "Transcript", "play"]
