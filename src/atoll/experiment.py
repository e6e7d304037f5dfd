"""One typed description of a run behind three doors: Python keywords, a TOML file, and ``key=value`` text."""

from __future__ import annotations

import dataclasses
import math
import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta
from torch import nn

from atoll import data as sources
from atoll import methods, models
from atoll.data import Dataset
from atoll.errors import AtollError, ConfigError, suggest
from atoll.federation import Callback, Federation, Run

__all__ = ["Experiment", "accepted", "described", "run", "run_settings"]

T = TypeVar("T")
Count = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(gt=0, lt=1)]
_FILES = (".csv", ".npz", ".parquet")
_NOTHING = {"batch_size": ("full", "all", "inf", "none")}  # words for None, by key


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A run in words and numbers: what `atoll run` reads, and what repeats it.

    `settings` holds the method's hyper-parameters, all of them; in a file and on the command line they stand beside
    the other keys. Everything else is a key of its own, described in its annotation.

    Raises ConfigError where a value is out of range.
    """

    data: Annotated[str, Meta(description="a dataset's name (`atoll data list`), or a csv, npz or parquet file")] = "digits"
    label: Annotated[str | None, Meta(description="of a data file: the column to predict")] = None
    client: Annotated[str | None, Meta(description="of a data file: the column that names the client")] = None
    partition: Annotated[
        str, Meta(description='how data is divided: "dirichlet:0.3", "iid", "natural" ...; auto takes natural clients')
    ] = "auto"
    clients: Annotated[Count | None, Meta(description="how many clients the data is divided among")] = None
    test: Annotated[
        Literal["auto"] | Share | None, Meta(description="share of a client's samples kept for its test; auto, none")
    ] = "auto"
    validation: Annotated[
        Annotated[int, Meta(ge=0)] | Share, Meta(description="share or number of a client's samples for validation")
    ] = 0
    model: Annotated[str, Meta(description='"auto", "mlp:128,64", "2nn", "cnn", "lenet", "logistic" ...')] = "auto"
    loss: Annotated[
        Literal["cross_entropy", "bce", "mse", "l1"] | None, Meta(description="by default it follows from the labels")
    ] = None
    method: Annotated[str, Meta(description="a method's name (`atoll methods`)")] = "fedavg"
    rounds: Annotated[Count, Meta(description="rounds to play")] = 30
    cohort: Annotated[
        Count | Share | None, Meta(description="clients a round, a number or a share; by default at most 10")
    ] = None
    seed: Annotated[Annotated[int, Meta(ge=0)], Meta(description="everything random follows from it")] = 0
    stragglers: Annotated[
        Annotated[float, Meta(ge=0, le=1)], Meta(description="share of a cohort that manages only some local epochs")
    ] = 0.0
    target: Annotated[str | None, Meta(description='stop once reached, such as "accuracy:0.97"')] = None
    eval_every: Annotated[Annotated[int, Meta(ge=0)], Meta(description="rounds between evaluations; 0 only at the end")] = 1
    eval_clients: Annotated[Count | None, Meta(description="judge at most so many clients")] = None
    engine: Annotated[
        Literal["auto", "batched", "processes", "loop"], Meta(description="where clients' work runs; auto tries them")
    ] = "auto"
    workers: Annotated[Count | None, Meta(description="threads or processes of the engine; by default one a core")] = None
    device: Annotated[str, Meta(description='"auto", "cpu", "cuda", "cuda:1" ...')] = "auto"
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        try:
            method = methods.get(self.method)(**self.settings)
        except ConfigError as error:
            hint = error.hint or f"atoll methods {self.method} lists its settings"
            raise ConfigError(error.message, hint=hint) from None
        own = {each.name: getattr(method, each.name) for each in dataclasses.fields(method)}  # type: ignore[arg-type]
        object.__setattr__(self, "settings", own)
        for key in ("label", "client"):
            if getattr(self, key) is not None and not self.from_file:
                raise ConfigError(f"{key} is for data files, and data = {self.data!r} is a name", hint=f"leave {key} out")

    # --- the three doors --------------------------------------------------------------------------------------

    @staticmethod
    def read(file: str | Path | None = None, sets: Sequence[str] = (), **overrides: Any) -> Experiment:
        """An experiment from a TOML file, then ``key=value`` texts, then keywords; the later ones win.

        Raises ConfigError for a file that is not TOML, an unknown key, or a value of the wrong type or out of range,
        and says where it stands.
        """
        given: dict[str, tuple[Any, str]] = {}
        if file is not None:
            given |= {key: (value, f"in {file}") for key, value in _parse(Path(file)).items()}
        for text in sets:
            key, equals, value = text.partition("=")
            if not equals or not key.strip():
                raise ConfigError(f"--set {text!r} is not KEY=VALUE", hint="for example --set lr=0.05")
            given[key.strip()] = (value.strip(), f"in --set {text}")
        given |= {key: (value, "") for key, value in overrides.items()}
        return _build(given)

    def to_dict(self) -> dict[str, Any]:
        """All keys, the method's settings among them, as they stand in a file."""
        run = {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.name != "settings"}
        return {**run, **self.settings}

    def to_toml(self) -> str:
        """Every key with its value, defaults included: a file that repeats the run."""
        usual = {each.name: each.default for each in dataclasses.fields(self)}
        usual |= {each.name: each.default for each in methods.fields(methods.get(self.method))}
        lines = []
        for key, value in self.to_dict().items():
            if value is not None:
                lines.append(f"{key} = {_toml(value)}")
            elif usual[key] is not None:
                lines.append(f'{key} = "{"full" if key == "batch_size" else "none"}"')
        return "\n".join(lines) + "\n"

    # --- what it describes ------------------------------------------------------------------------------------

    @property
    def from_file(self) -> bool:
        """Whether `data` is a file."""
        return self.data.endswith(_FILES)

    def load(self) -> Dataset:
        """The data, undivided.  Raises ConfigError for an unknown name, DataError where it cannot be read."""
        if not self.from_file:
            return sources.load(self.data)
        return sources.from_file(self.data, label=self.label, client=self.client)

    def build(self, callbacks: Sequence[Callback] = ()) -> Federation:
        """Load and divide the data, and set up everything.  Raises ConfigError or DataError where parts do not fit."""
        dataset = self.load()
        partition, clients = self._division(dataset)
        divided = dataset.partition(
            partition, clients=clients, seed=self.seed, test=self.test, validation=self.validation
        )
        example = divided.example()
        outputs = divided.classes or (math.prod(example.targets.shape[1:]) or 1)
        shape = tuple(example.inputs.shape[1:])

        def model() -> nn.Module:
            return models.build(self.model, shape, outputs)

        return Federation(
            model,
            divided,
            self.method,
            rounds=self.rounds,
            cohort=self.cohort,
            loss=self.loss,
            seed=self.seed,
            engine=self.engine,
            workers=self.workers,
            device=self.device,
            eval_every=self.eval_every,
            eval_clients=self.eval_clients,
            target=self.target,
            stragglers=self.stragglers,
            callbacks=callbacks,
            **self.settings,
        )

    def named(self, run: Run) -> Run:
        """The run under the names of this experiment."""
        partition = run.partition if self.partition == "auto" else self.partition
        return dataclasses.replace(run, method=self.method, data=self.data, partition=partition)

    def _division(self, dataset: Dataset) -> tuple[str, int | None]:
        """The partition, and how many clients it makes where it does not know that itself."""
        partition = self.partition
        if partition == "auto":
            natural = dataset.natural is not None and self.clients is None
            partition = "natural" if natural else "iid" if dataset.classes is None else "dirichlet:0.3"
        if self.clients is None and partition.partition(":")[0] not in ("natural", "by"):
            return partition, max(2, min(30, dataset.train.count // 20))
        return partition, self.clients


def run(
    file: str | Path | None = None, *, sets: Sequence[str] = (), callbacks: Sequence[Callback] = (), **keywords: Any
) -> Run:
    """Run what a TOML file or keywords describe: ``atoll.run(data="digits", method="fedprox", mu=0.1)``.

    The keys are those of `Experiment` and the method's own settings. For a model, data or method of your own, use
    `Federation`. Raises ConfigError, DataError or RunError.
    """
    experiment = Experiment.read(file, sets, **keywords)
    return experiment.named(experiment.build(callbacks).fit())


def run_settings() -> dict[str, Any]:
    """The keys of a run that are not its method's, with their annotated types."""
    hints = get_type_hints(Experiment, include_extras=True)
    return {each.name: hints[each.name] for each in dataclasses.fields(Experiment) if each.name != "settings"}


# --- reading --------------------------------------------------------------------------------------------------------


def _parse(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"cannot read {file}: {reason}", hint="give a TOML file, or leave it out") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is not TOML: {error}", hint='lines read key = value, with text in "quotes"') from None


def _build(given: Mapping[str, tuple[Any, str]]) -> Experiment:
    kinds = run_settings()
    name = "fedavg"
    if "method" in given:
        name = _value("method", *given["method"], kinds["method"])
    method = _located(lambda: methods.get(name), given.get("method", ("", ""))[1])
    hints = get_type_hints(method)
    own = {each.name: hints[each.name] for each in dataclasses.fields(method)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for key, (value, where) in given.items():
        if key in kinds:
            values[key] = _value(key, value, where, kinds[key])
        elif key in own:
            settings[key] = _value(key, value, where, own[key])
        else:
            raise _unknown(key, value, where, name, [*kinds, *own])
    return Experiment(**values, settings=settings)


def _located(action: Callable[[], T], where: str) -> T:
    """Do it, and say in its error where the cause stands."""
    try:
        return action()
    except AtollError as error:
        raise type(error)(f"{error.message} {where}".rstrip(), hint=error.hint) from None


def _value(key: str, value: Any, where: str, kind: Any) -> Any:
    """The value as the type that the key asks for; text is read as the type wants."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str) and value.lower() in _NOTHING.get(key, ("none",)) and NoneType in _members(kind):
        return None
    try:
        return msgspec.convert(value, kind, strict=not isinstance(value, str))
    except msgspec.ValidationError:
        plain = value is None or isinstance(value, (str, int, float, list, dict))
        hint = f"{key} takes {accepted(key, kind)}" if plain else "objects go to atoll.Federation(model, data, method)"
        shown = f"{key} = {value!r:.60}".rstrip()
        raise ConfigError(f"{shown} {where}".rstrip() + ", which it cannot be", hint=hint) from None


def _unknown(key: str, value: Any, where: str, method: str, known: Sequence[str]) -> ConfigError:
    message = f"unknown key {key!r} {where}".rstrip()
    if isinstance(value, dict):
        return ConfigError(message, hint="there are no tables: all keys stand at the top level")
    owners = [name for name, each in methods.METHODS.items() if key in {s.name for s in methods.fields(each)}]
    if owners:
        shown = ", ".join(owners)
        return ConfigError(f"{message}: {key} is a setting of {shown}; method is {method}", hint=f"--set method={owners[0]}")
    return ConfigError(message, hint=f"{suggest(key, known)} (all: atoll methods {method})")


def _toml(value: Any) -> str:
    if isinstance(value, str):
        return msgspec.json.encode(value).decode()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    return repr(value)


# --- what a key takes, in words -------------------------------------------------------------------------------------


def described(kind: Any) -> tuple[Any, str]:
    """A key's type, and its meaning where the type is annotated with one."""
    if get_origin(kind) is Annotated and kind.__metadata__[0].description:
        return kind.__origin__, kind.__metadata__[0].description
    return kind, ""


def accepted(key: str, kind: Any) -> str:
    """What a key takes, in words."""
    words = [_words(each) for each in _members(kind) if each is not NoneType]
    if NoneType in _members(kind):
        words.append(_NOTHING.get(key, ("none",))[0])
    return " or ".join(words)


def _members(kind: Any) -> tuple[Any, ...]:
    kind, _ = described(kind)
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(map(str, get_args(kind)))
    bounds = []
    if get_origin(kind) is Annotated:
        meta = kind.__metadata__[0]
        signs = (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below"))
        bounds = [f"{word} {getattr(meta, name):g}" for name, word in signs if getattr(meta, name) is not None]
        kind = kind.__origin__
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return " ".join([names.get(kind, str(kind)), " and ".join(bounds)]).rstrip()
