"""One typed description of a run behind three doors: Python keywords, a TOML file, and ``key=value`` text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from msgspec import Meta

from atoll import methods, own, spec
from atoll.assembly import Nodes
from atoll.callbacks import Callback
from atoll.data import Dataset, FederatedData, lacking
from atoll.data.wishes import read_names
from atoll.engines import ALIKE
from atoll.errors import ConfigError
from atoll.federation import Federation
from atoll.guarding import stated
from atoll.keys import for_method, told_apart
from atoll.losses import LOSSES
from atoll.masking import Masking
from atoll.models import MODELS
from atoll.networks import networks
from atoll.origin import SUFFIXES, Names, Origin
from atoll.results import Run
from atoll.runs.folder import RunFolder, default_place
from atoll.runs.settings import AFTER_PAUSE, FREE, paused
from atoll.schema import parse, toml_line
from atoll.settings import Count, Place, Rounds, Settings, Share

__all__ = ["Experiment", "prepare", "run", "run_settings"]

Tell = Callable[[str], object]


def _nobody(text: str) -> None:
    """Who hears what takes a moment, where nobody asked."""


@dataclass(frozen=True, kw_only=True)
class Experiment(Origin, Settings):
    """A run in words and numbers: what `atoll run` reads, and what repeats it.

    `settings` holds the method's hyper-parameters, all of them; in a file and on the command line they stand
    beside the other keys. Everything else is a key of its own, described in its annotation.

    Raises ConfigError where a value is out of range.
    """

    partition: Annotated[
        str,
        Meta(
            description='how to divide: "dirichlet:0.3", "iid" ...; auto: by natural clients if there are any'
        ),
    ] = "auto"
    clients: Annotated[Count | None, Meta(description="how many clients the data is divided among")] = None
    test: Annotated[
        Literal["auto"] | Share | None,
        Meta(description="share of a client's samples kept for its test; auto, none"),
    ] = "auto"
    validation: Annotated[
        Annotated[int, Meta(ge=0)] | Share,
        Meta(description="share or number of a client's samples for validation"),
    ] = 0
    public: Annotated[
        Annotated[int, Meta(ge=0)] | Share,
        Meta(description="share or number of training samples that everybody knows, without their labels"),
    ] = 0
    root: Annotated[
        Annotated[int, Meta(ge=0)] | Share,
        Meta(
            description='share or number of training samples that are the server\'s, for aggregate = "fltrust"'
        ),
    ] = 0
    mix: Annotated[
        str | None,
        Meta(
            description='what the sources of a client\'s samples count for in its batches: "equal", "temperature:2",'
            ' "hamlet:2, romeo:0.5"; by default their samples'
        ),
    ] = None
    missing_parts: Annotated[
        Annotated[float, Meta(ge=0, le=1)],
        Meta(
            description="share of the clients that hold one part of their samples alone, where these have several"
        ),
    ] = 0.0
    augment: Annotated[
        str | None,
        Meta(
            description='change training batches anew each time: "flip", "crop:4", "shift:4 + time-mask:8"'
            " (`atoll explain augment`), or your own, module:function"
        ),
    ] = None
    weights: Annotated[
        Names,
        Meta(
            description='what clients count for in averages: "equal", "site a:2, site b:0.5" (the others 1), or a'
            " number each; by default as the method says, most often their samples"
        ),
    ] = None
    model: Annotated[
        str,
        Meta(
            description='"auto", "mlp:128,64", "cnn" ... (`atoll models`), or your own, module:Name;'
            ' "cnn + mlp:64" gives clients different ones, in turns'
        ),
    ] = "auto"
    fusion: Annotated[
        Literal["late", "attention"] | None,
        Meta(
            description="how parts of a sample become one prediction: model = fused:late or fused:attention"
        ),
    ] = None
    loss: Annotated[
        str | None,
        Meta(
            description="cross_entropy, bce, mse, l1, listwise, rated (lists of items), masked:0.15 (hidden tokens of"
            " texts), module:function; by default it follows from the labels"
        ),
    ] = None
    metrics: Annotated[
        str | None,
        Meta(
            description='what to measure beside the loss: "auc, f1, macro_f1, mae" ..., or your own,'
            " module:function, with commas"
        ),
    ] = None
    method: Annotated[
        str, Meta(description="a method's name (`atoll methods`), or your own class: module:Name")
    ] = "fedavg"
    rounds: Rounds = 60
    runs: Place = "auto"
    log: Annotated[
        str | None, Meta(description='further readers of the events: "tensorboard", "mlflow", with commas')
    ] = None
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        try:
            method = methods.get(self.method)(**self.settings)
        except ConfigError as error:
            hint = error.hint or f"atoll methods {self.method} lists its settings"
            raise ConfigError(error.message, hint=hint) from None
        values = {each.name: getattr(method, each.name) for each in dataclasses.fields(method)}  # type: ignore[arg-type]
        object.__setattr__(self, "settings", values)
        if self.loss is not None and not (
            self.loss in LOSSES or own.named(self.loss) or Masking.parse(self.loss)
        ):
            known = f"known: {', '.join(LOSSES)}, masked:SHARE, or a function of your own, module:function"
            raise ConfigError(f"unknown loss {self.loss!r}", hint=known)
        if self.fusion is not None:
            if self.model not in ("auto", "fused", model := f"fused:{self.fusion}"):
                raise ConfigError(
                    f"fusion = {self.fusion!r} is of the model fused, and model is {self.model!r}",
                    hint="leave one of them out",
                )
            object.__setattr__(self, "model", model)
        self.check_data()
        for key, value in self.usual().items():
            if getattr(self, key) in (None, "auto"):
                object.__setattr__(self, key, value)
        if self.weights is not None:
            object.__setattr__(self, "weights", tuple(read_names(self.weights, "weights")))

    # --- the three doors ------------------------------------------------------------------------------------

    @staticmethod
    def read(
        file: str | Path | None = None, sets: Sequence[str] = (), *, foreign: bool = False, **overrides: Any
    ) -> Experiment:
        """An experiment from a TOML file, then ``key=value`` texts, then keywords; the later ones win.

        A table named after a method (``[ditto]``) holds settings for it alone; they count only where it is the method,
        and before those at the top of the file.

        Code of the user's own (``model = "nets:Small"``) is imported; of a `foreign` file, as one that a run has
        written, only what texts or keywords name as well.

        Raises ConfigError for a file that is not TOML, an unknown key, or a value of the wrong type or out of
        range, and says where it stands.
        """
        if file is not None and SUFFIXES & {suffix.lower() for suffix in Path(file).suffixes}:
            raise ConfigError(
                f"{file} is data, and no file of settings",
                hint=f"atoll run --set data={file} --set label=COLUMN",
            )
        given: dict[str, tuple[Any, str]] = {}
        for text in sets:
            key, value = spec.assignment(text, "--set")
            given[key] = (value, f"(--set {text})")
        given |= {key: (value, "") for key, value in overrides.items()}
        if file is not None:
            content = parse(Path(file))
            for table in (
                "network",
                "peers",
            ):  # who stands where is no matter of the run (`atoll serve`, `peer`)
                content.pop(table, None)
            method = given["method"][0] if "method" in given else content.get("method", Experiment.method)
            content = for_method(content, str(method).strip())
            given = {**{key: (value, f"({file})") for key, value in content.items()}, **given}
            foreign = foreign or "about" in content
        for key in own.KEYS:
            value, where = given.get(key, (None, ""))
            for name in own.named(value, MODELS if key == "model" else ()):
                if not foreign or where != f"({file})":
                    own.admit(name, key)
        values, settings = told_apart(given, run_settings())
        return Experiment(**values, settings=settings)

    def to_dict(self) -> dict[str, Any]:
        """All keys, the method's settings among them, as they stand in a file."""
        return {**{key: getattr(self, key) for key in run_settings()}, **self.settings}

    def to_toml(self) -> str:
        """Every key with its value, defaults included: a file that repeats the run."""
        return "".join(f"{toml_line(key, value)}\n" for key, value in self.to_dict().items())

    # --- what it describes ----------------------------------------------------------------------------------

    def of_clients(self) -> dict[str, Any]:
        return {"test": self.test, "validation": self.validation, "seed": self.seed}

    def divide(self, dataset: Dataset | FederatedData) -> FederatedData:
        """The data divided among clients, where it is not, and what is wished for it."""
        if isinstance(dataset, FederatedData):
            self._undivided()
            divided = dataset
        else:
            partition, clients = self._division(dataset)
            divided = dataset.partition(
                partition,
                clients=clients,
                seed=self.seed,
                test=self.test,
                validation=self.validation,
                public=self.public,
                root=self.root,
                mix=self.mix,
            )
        divided = lacking(divided, self.missing_parts, self.seed) if self.missing_parts else divided
        divided = divided if self.augment is None else divided.augment(self.augment)
        return divided if self.weights is None else divided.weigh(self.weights)

    @staticmethod
    def of_run(folder: RunFolder, sets: Sequence[str] = (), **overrides: Any) -> Experiment:
        """The experiment of a run, with other `rounds`, `target` and the like (what does not change its rounds).

        Raises ConfigError for a key that may not change, and for a run of objects made in Python.
        """
        known = folder.config()
        if known.get("about", {}).get("custom"):
            raise ConfigError(
                f"{folder.path} was made in Python, with its own model or data",
                hint="go on in Python: Federation(...).resume(path).fit()",
            )
        changes = {**dict(spec.assignment(text, "--set") for text in sets), **overrides}
        for key, value in changes.items():
            repeated = key in own.KEYS and own.named(value) and known.get(key) == value
            after = key in AFTER_PAUSE and paused(folder.log().events)
            alike = key == "engine" and {str(value), str(known.get(key))} <= {*ALIKE}
            if key in known and key not in FREE and not (repeated or after or alike):
                later = (
                    f"; {', '.join(AFTER_PAUSE)} once it has paused (exit code 5)"
                    if key in AFTER_PAUSE
                    else ""
                )
                raise ConfigError(
                    f"{key} cannot change when a run is resumed",
                    hint=f"what may change: {', '.join(FREE)}{later}",
                )
        return Experiment.read(folder.path / "config.toml", sets, foreign=True, **overrides)

    def build(self, callbacks: Sequence[Callback] = (), tell: Tell = _nobody) -> Federation:
        """Load and divide the data, and set up everything; `tell` hears what takes a moment.

        Raises ConfigError or DataError where the parts do not fit.
        """
        tell(f"loading {self.data}")
        dataset = self.load()
        tell(f"dividing {self.data}")
        divided = self.divide(dataset)
        return self.federate(divided, callbacks, tell)

    def federate(
        self,
        divided: FederatedData,
        callbacks: Sequence[Callback] = (),
        tell: Tell = _nobody,
        nodes: Nodes | None = None,
    ) -> Federation:
        """The federation of this data, or of clients on `nodes`.  Raises ConfigError where the parts do not fit."""
        tell("setting up the model")
        architectures = networks(self.model, divided)
        conduct = {key: value for key, value in Settings.to_dict(self).items() if key != "runs"}
        federation = Federation(
            architectures if len(architectures) > 1 else architectures[0],
            divided,
            self.method,
            loss=own.found(self.loss, "loss") if self.loss and own.named(self.loss) else self.loss,
            metrics=self.metrics,
            log=self.log or (),
            callbacks=callbacks,
            nodes=nodes,
            runs=default_place() if self.runs == "auto" else self.runs,
            **conduct,
            **self.settings,
        )
        asked = {"channel": stated(self.channel)[1], "dp_sgd": self.dp_sgd}
        found = {key: value for key in asked if (value := getattr(federation.settings, key)) != asked[key]}
        federation.keeper.config = {**self.to_dict(), **found}  # with the noise that a budget asked for
        federation.keeper.usual = {each.name: each.default for each in dataclasses.fields(self)}
        partition = divided.partition if self.partition == "auto" else self.partition
        federation.keeper.labels |= {
            "method": own.short(self.method),
            "data": self.data,
            "partition": partition,
            "model": self.model,
        }
        return federation

    def _undivided(self) -> None:
        """Raise ConfigError for a setting that divides data, where they are clients already."""
        usual: dict[str, tuple[Any, ...]] = {
            "partition": ("auto", "natural"),
            "clients": (None,),
            "public": (0,),
            "root": (0,),
            "mix": (None,),
        }
        for key, values in usual.items():
            if getattr(self, key) not in values:
                raise ConfigError(
                    f"{key} is for data that are to be divided, and those of {self.data} are clients already",
                    hint=f"leave {key} out",
                )

    def _division(self, dataset: Dataset) -> tuple[str, int | None]:
        """The partition, and how many clients it makes where it does not know that itself."""
        partition = self.partition
        if partition == "auto":
            natural = dataset.natural is not None and self.clients is None
            labelled = dataset.classes is not None and dataset.train.targets.ndim == 1
            partition = "natural" if natural else "dirichlet:0.3" if labelled else "iid"
        if self.clients is None and spec.parse(partition, "partition").name not in ("natural", "by"):
            return partition, max(2, min(30, dataset.train.count // 20))
        return partition, self.clients


def run(
    file: str | Path | None = None,
    *,
    sets: Sequence[str] = (),
    resume: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool | None = None,
    **keywords: Any,
) -> Run:
    """Run what a TOML file or keywords describe: ``atoll.run(data="digits", method="fedprox", mu=0.1)``.

    The keys are those of `Experiment` and the method's own settings. With `resume`, a run's folder or name or "last",
    that run goes on, to the same result as if it had never stopped. It is shown in a terminal and in a notebook, with
    `progress` always or never. For a model, data or method of your own, use `Federation`. Raises ConfigError, DataError
    or RunError.
    """
    return prepare(file, sets, resume, callbacks, **keywords).fit(progress=progress)


def prepare(
    file: str | Path | None = None,
    sets: Sequence[str] = (),
    resume: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    tell: Tell = _nobody,
    **keywords: Any,
) -> Federation:
    """The federation that `run` fits; `tell` hears what takes a moment."""
    if resume is None:
        return Experiment.read(file, sets, **keywords).build(callbacks, tell)
    if file is not None:
        raise ConfigError(
            f"a run is resumed with its own settings, and {file} was given too", hint="leave it out"
        )
    place = keywords.pop("runs", None)
    folder = RunFolder.find(resume, place)
    federation = Experiment.of_run(folder, sets, **keywords).build(callbacks, tell)
    tell(f"reading {folder.path}")
    return federation.resume(folder.path)


def run_settings() -> dict[str, Any]:
    """The keys of a run that are not its method's, with their annotated types: what is run, and then how."""
    hints = get_type_hints(Experiment, include_extras=True)
    keys = [each.name for each in dataclasses.fields(Experiment) if each.name != "settings"]
    shared = Settings.kinds()
    return {key: hints[key] for key in (*(key for key in keys if key not in shared), *shared)}
