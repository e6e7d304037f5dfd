"""How a run between parties is set: one schema behind keywords, TOML files and `--set`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_type_hints

from msgspec import Meta

from atoll import spec
from atoll.errors import ConfigError, suggest
from atoll.schema import convert, parse, toml_line
from atoll.settings import Place
from atoll.vertical.alignment.group import ECDH
from atoll.vertical.features import steps
from atoll.vertical.protocol import Apart, Case, Protocol, Task
from atoll.vertical.protocols import PROTOCOLS

__all__ = ["Vertical", "Where"]

Whole = Annotated[int, Meta(ge=0)]
Above = Annotated[float, Meta(gt=0)]


@dataclass(frozen=True, kw_only=True)
class Where:
    """What stands in a party's table: `[party.NAME]`."""

    data: Annotated[
        str | None, Meta(description="its file; at its own machine, where each party has one")
    ] = None
    columns: Annotated[
        str | tuple[str, ...] | None, Meta(description="those to learn from; by default all but id and label")
    ] = None
    id: Annotated[str | None, Meta(description="its column of ids, where it has another name there")] = None
    onehot: Annotated[tuple[str, ...], Meta(description="its columns that the step onehot spreads")] = ()
    edges: Annotated[
        Mapping[str, tuple[float, ...]],
        Meta(description="edges of bins by column, where they are no quantiles"),
    ] = field(default_factory=dict)
    address: Annotated[str | None, Meta(description="HOST:PORT where it listens, between machines")] = None


@dataclass(frozen=True, kw_only=True)
class Vertical:
    """A run between parties, in words and numbers: what `atoll vertical run` reads.

    `party` has the parties by name, of which "guest" has the label and "arbiter" no data; all others are hosts.
    `given` are the settings of the protocol, which stand in a table of its name; `features` are the steps before it, in
    the table `[features]`.

    Raises ConfigError where a value is out of range, or parts do not fit.
    """

    protocol: Annotated[
        str, Meta(description='"psi", "features", "glm", "secureboost", "splitnn", "splitlora" or "ftl"')
    ] = "secureboost"
    crypto: Annotated[
        str,
        Meta(
            description='"none", "ou", "paillier" or "ckks", with bits as in "ou-3072"; auto: the protocol\'s own'
        ),
    ] = "auto"
    id: Annotated[str, Meta(description="the column of ids")] = "id"
    label: Annotated[str, Meta(description="the guest's column to predict")] = "y"
    task: Annotated[Task, Meta(description="what is learned")] = "binary"
    exposure: Annotated[str | None, Meta(description="the guest's column of spans, for counts")] = None
    test: Annotated[
        Annotated[float, Meta(ge=0, lt=1)],
        Meta(description="share of the common rows that are only judged on"),
    ] = 0.2
    reveal: Annotated[
        Literal["both", "guest", "count"], Meta(description="who learns the common ids, with protocol = psi")
    ] = "both"
    ecdh: Annotated[
        ECDH, Meta(description="who blinds ids: x25519; nacl, in constant time, needs the extra nacl")
    ] = "x25519"
    seed: Annotated[Whole, Meta(description="of what all parties draw alike")] = 0
    timeout: Annotated[Above, Meta(description="seconds to wait for another party's message")] = 600.0
    runs: Place = "auto"
    checkpoint: Annotated[
        Whole, Meta(description="trees or epochs between checkpoints; 0 only at the end")
    ] = 1
    keep: Annotated[str, Meta(description='checkpoints that stay: "last:2", "best", "all"')] = "last:2"
    party: Mapping[str, Where] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)
    features: str = ""

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS and self.protocol != "psi":
            raise ConfigError(
                f"unknown protocol {self.protocol!r}", hint=suggest(self.protocol, ["psi", *PROTOCOLS])
            )
        if "guest" not in self.party or not self.hosts:
            have = ", ".join(self.party) or "none"
            raise ConfigError(f"the parties are {have}, and there must be a guest and a host",
                              hint='add [party.guest] and [party.host], each with data = "FILE"')  # fmt: skip
        if self.protocol != "psi":
            self.made().check(self.case())
            steps.check(self.features, self.case(), {name: self.own(name) for name in self.party})
        elif self.features:
            raise ConfigError("features: protocol = 'psi' looks at ids alone", hint="leave the steps out")
        if self.protocol != "psi" and isinstance(self.made(), Apart):
            self._check_apart()
        if "arbiter" in self.party and (self.protocol == "psi" or not self.made().needs_arbiter):
            raise ConfigError(
                f"protocol = {self.protocol!r} with these settings has no arbiter",
                hint="leave [party.arbiter] out",
            )

    def _check_apart(self) -> None:
        """Refuse what is for rows in common, where there are none."""
        for_rows = ("id", "label", "task", "exposure", "reveal", "ecdh", "features")
        odd = next((key for key in for_rows if getattr(self, key) != getattr(Vertical, key)), None)
        if odd is not None:
            raise ConfigError(
                f"{odd} = {getattr(self, odd)!r} is for tables, and protocol = {self.protocol!r} reads texts",
                hint=f"leave {odd} out",
            )
        for name, where in self.party.items():
            if where.columns or where.id or where.onehot or where.edges:
                raise ConfigError(f"[party.{name}] names columns, and texts have none", hint="leave them out")
        if self.party["guest"].data is not None:
            raise ConfigError(
                "[party.guest] has data, and the guest is a server without any",
                hint="every host has a text of its own",
            )

    # --- what follows from it -----------------------------------------------------------------------------------

    @property
    def hosts(self) -> tuple[str, ...]:
        """Who has columns and no label."""
        return tuple(name for name in self.party if name not in ("guest", "arbiter"))

    @property
    def names(self) -> tuple[str, ...]:
        """All parties, the guest first."""
        arbiter = ("arbiter",) if "arbiter" in self.party else ()
        return ("guest", *self.hosts, *arbiter)

    def made(self) -> Protocol:
        """The protocol with its settings.  Raises ConfigError."""
        return PROTOCOLS[self.protocol](**self.given)

    @property
    def cipher(self) -> str:
        """The cipher's name: as asked for, or the protocol's own."""
        if self.crypto != "auto":
            return self.crypto
        return "none" if self.protocol == "psi" else self.made().usual

    def own(self, name: str) -> steps.Own:
        """What a party's table says of its columns."""
        where = self.party[name]
        return steps.Own(where.onehot, where.edges)

    @property
    def adding(self) -> str:
        """The cipher of steps that need the label: the run's where it adds whole numbers and is asked for, else ou."""
        cipher = self.cipher if self.crypto != "auto" or self.cipher != "none" else "ou"
        return "ou" if cipher.startswith("ckks") else cipher

    def case(self, classes: int | None = None) -> Case:
        """What all parties know, before classes were counted or after."""
        usual = {"binary": 2, "multiclass": 3}.get(self.task, 1)
        arbiter = "arbiter" if "arbiter" in self.party else None
        return Case(self.task, classes or usual, self.cipher, self.seed, "guest", self.hosts, arbiter)

    def fingerprint(self) -> str:
        """Of what all parties must have alike, as 64 hexadecimal digits."""
        alike = {
            "protocol": self.protocol, "crypto": self.cipher, "task": self.task, "test": self.test, "seed": self.seed,
            "reveal": self.reveal, "parties": self.names, "features": self.features, "ecdh": self.ecdh,
            "given": dict(sorted(self.given.items())),
        }  # fmt: skip
        return sha256(json.dumps(alike, default=str).encode()).hexdigest()

    # --- the three doors ----------------------------------------------------------------------------------------

    @classmethod
    def kinds(cls) -> dict[str, Any]:
        """The annotated type of every key that is no table."""
        return _kinds(cls, "party", "given", "features")

    @classmethod
    def read(cls, file: str | Path | None = None, sets: Sequence[str] = (), **overrides: Any) -> Self:
        """A run from a TOML file, then ``key=value`` texts (``secureboost.trees=5``), then keywords; the later win.

        Raises ConfigError for a file that is not TOML, an unknown key or table, or a value that does not fit.
        """
        content = {} if file is None else parse(Path(file))
        where = f"({file})"
        given: dict[str, tuple[Any, str]] = {}
        tables: dict[str, dict[str, tuple[Any, str]]] = {}
        parties: dict[str, dict[str, tuple[Any, str]]] = {}
        for key, value in content.items():
            if key == "party":
                for name, table in _table(value, "party", where).items():
                    parties[name] = {k: (v, where) for k, v in _table(table, f"party.{name}", where).items()}
            elif isinstance(value, Mapping):
                if key != "about":
                    tables[key] = {k: (v, where) for k, v in value.items()}
            else:
                given[key] = (value, where)
        for text in sets:
            key, value = spec.assignment(text, "--set")
            table, _, rest = key.rpartition(".")
            if table.startswith("party."):
                parties.setdefault(table.removeprefix("party."), {})[rest] = (value, f"(--set {text})")
            elif table:
                tables.setdefault(table, {})[rest] = (value, f"(--set {text})")
            else:
                given[key] = (value, f"(--set {text})")
        given |= {key: (value, "") for key, value in overrides.items() if value is not None}
        found = _converted(given, cls.kinds(), "")
        protocol = found.get("protocol", cls.protocol)
        features, where = tables.get("features", {}).pop("steps", ("", ""))
        for name in tables:
            if name != protocol and name not in (*PROTOCOLS, "psi"):
                raise ConfigError(
                    f"unknown table [{name}] ({file})", hint=suggest(name, ["party", *PROTOCOLS])
                )
        for key, (_, place) in tables.get("features", {}).items() if protocol != "features" else ():
            raise ConfigError(
                f"unknown key 'features.{key}' {place}", hint="before a protocol there are steps"
            )
        own = _kinds(PROTOCOLS[protocol]) if protocol in PROTOCOLS else {}
        return cls(
            **found,
            party={
                name: Where(**_converted(table, _kinds(Where), f"party.{name}."))
                for name, table in parties.items()
            },
            given=_converted(tables.get(protocol, {}), own, f"{protocol}."),
            features=convert("features.steps", features, where, str),
        )

    def to_dict(self) -> dict[str, Any]:
        """All keys that are no tables, and the protocol's settings as one."""
        plain = {key: getattr(self, key) for key in self.kinds()}
        settings = dataclasses.asdict(self.made()) if self.protocol != "psi" else {}
        before = {"features.steps": self.features} if self.features else {}
        return {**plain, **before, **{f"{self.protocol}.{key}": value for key, value in settings.items()}}

    def to_toml(self) -> str:
        """A file that repeats the run."""
        lines = [toml_line(key, getattr(self, key)) for key in self.kinds()]
        for name, where in self.party.items():
            lines += ["", f"[party.{name}]"]
            lines += [
                toml_line(key, value)
                for key, value in dataclasses.asdict(where).items()
                if value not in (None, (), {})
            ]
        before = {"steps": self.features} if self.features else {}
        tables = {"features": before, self.protocol: dict(self.given)}
        if self.protocol == "features":
            tables = {"features": {**before, **self.given}}
        for name, table in tables.items():
            if table:
                lines += ["", f"[{name}]", *(toml_line(key, value) for key, value in table.items())]
        return "\n".join(lines) + "\n"


def _kinds(kind: type, *but: str) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {each.name: hints[each.name] for each in dataclasses.fields(kind) if each.name not in but}


def _table(value: Any, name: str, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"{name} is no table {where}", hint="write [party.guest] and what belongs to it below"
        )
    return value


def _converted(given: Mapping[str, tuple[Any, str]], kinds: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    found = {}
    for key, (value, where) in given.items():
        if key not in kinds:
            raise ConfigError(f"unknown key {prefix + key!r} {where}".rstrip(), hint=suggest(key, kinds))
        found[key] = convert(prefix + key, value, where, kinds[key])
    return found
