"""A run between machines, of what stands in a file: what nodes are told, and the federation of those that are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from atoll import own
from atoll.assembly import budgeted, build_method
from atoll.data.corpus import KINDS as TEXTS
from atoll.data.corpus import kind_of
from atoll.data.tokens import tokenizer
from atoll.data.weights import weights_of
from atoll.errors import ConfigError
from atoll.experiment import Experiment
from atoll.federation import Federation
from atoll.guarding import stated
from atoll.network.backing import backed
from atoll.network.base import remembered
from atoll.network.coordinator import Deployment, Office
from atoll.network.elsewhere import Elsewhere
from atoll.network.here import Here
from atoll.network.reading import Reading
from atoll.network.rows import arrays, packed
from atoll.network.suitable import check, check_model, check_public, check_trusted
from atoll.network.sums import between, whole
from atoll.network.wire import NAME, DataForm, Field, Plan
from atoll.networks import architectures, networks
from atoll.rounds.membership import Membership
from atoll.settings import Count

__all__ = ["KINDS", "base_at", "federated", "office_of", "places_of", "plan_of", "prepared", "stand_in"]

_INSTEAD = {
    "public": 'write public = "public.npz" into [network]: inputs x, which all nodes get',
    "root": 'write root = "root.npz" into [network]: samples like a node\'s, which stay here',
}
_UNKNOWN = DataForm(
    inputs=(Field(name="", dtype="F32", shape=(1,)),), targets=Field(name="", dtype="F32", shape=()), classes=None,
    train=0,
)  # fmt: skip
"""The form of data that nobody has yet."""

KINDS: dict[str, Any] = {
    "min_clients": Count,
    "nodes": tuple[str, ...],
    "absent": Annotated[float, Meta(gt=0)],
    "place": str,
    "public": Annotated[str, Meta(description="an .npz file with inputs x that all nodes get, to distil on")],
    "root": Annotated[
        str,
        Meta(
            description="samples of the coordinator's own, a file like a node's, for aggregate = \"fltrust\""
        ),
    ],
    "repeatable_noise": Annotated[
        bool, Meta(description="noise of nodes may follow from the seed: never private")
    ],
}
"""How nodes are met, whatever carries what is said."""

_KEEP = "last:2, best"
"""Checkpoints that stay unless somebody says otherwise: should the newest be damaged, there is the one before."""


def prepared(experiment: Experiment, given: dict[str, Any]) -> Experiment:
    """The run as it can be between machines; how these are met is `given`, as a file's table [network] has it.

    Raises ConfigError for what is not to be had there, as far as it is known before nodes are there.
    """
    place = str(Path(given["place"]) / "runs")
    experiment = replace(experiment, channel=whole(experiment.channel), runs=place)
    method = build_method(experiment.method, experiment.settings)
    check(experiment, method)
    check_model(experiment.model, method)
    check_public(method, bool(given.get("public")))
    check_trusted(experiment, bool(given.get("root")))
    channel, _ = stated(experiment.channel)
    between(channel, secret=True)
    for key in ("partition", "client", "public", "root", "mix", "missing_parts"):
        if getattr(experiment, key) != getattr(Experiment, key):
            raise ConfigError(
                f"{key} = {getattr(experiment, key)!r} divides data, and nodes have theirs",
                hint=_INSTEAD.get(key, f"leave {key} out"),
            )
    if experiment.weights not in (None, ("equal",)):
        raise ConfigError("weights of single nodes are not known here", hint='set weights="equal"')
    empty = Elsewhere(places_of(experiment, given), _UNKNOWN)
    Membership(empty, experiment.seed, experiment.newcomers)
    _, settled = budgeted(
        channel, experiment, empty, experiment.choose
    )  # nodes are told how much noise it takes
    kept = _KEEP if experiment.keep == Experiment.keep else experiment.keep
    return replace(experiment, channel=settled.channel, keep=kept)


def federated(
    experiment: Experiment, data: Elsewhere, nodes: Deployment, callbacks: Sequence[Any]
) -> Federation:
    """The federation of nodes that are there."""
    if experiment.weights is not None:
        data.weights = np.asarray(weights_of(data.names, "equal"))
    federation = experiment.federate(data, callbacks, nodes=nodes)
    federation.keeper.labels |= {"data": "nodes", "partition": "by node"}
    return federation


def stand_in(data: object) -> str:
    """What stands for the data of nodes, where a file says `data`: texts ("text", or "text:PATH"), or rows."""
    kind = data if data in TEXTS else (kind_of(data) or (None,))[0] if isinstance(data, str) else None
    return "nodes.csv" if kind is None else f"{kind}:nodes"


def _read_as(experiment: Experiment) -> dict[str, Any]:
    """How nodes read their data."""
    found = {key: getattr(experiment, key, None) for key in Reading.__struct_fields__}
    if (texts := kind_of(experiment.data)) is not None:
        found |= {"texts": texts[0], "tokenizer": tokenizer(experiment.tokenizer).sha256}
    return {key: value for key, value in found.items() if value is not None and value is not False}


def _folder(experiment: Experiment) -> str | None:
    """The folder of the tokenizer on this machine."""
    return None if experiment.tokenizer in (None, "bytes") else experiment.tokenizer


def places_of(experiment: Experiment, given: dict[str, Any]) -> int:
    """How many clients there may be.  Raises ConfigError where nobody has said."""
    found = experiment.clients or len(given.get("nodes") or ()) or given.get("min_clients")
    if not found:
        raise ConfigError(
            "nobody has said how many nodes the run needs", hint="--min-clients 4, or [network] nodes"
        )
    return int(found)


def office_of(experiment: Experiment, given: dict[str, Any]) -> Office:
    """How the coordinator is set.  Raises ConfigError."""
    nodes, places = given.get("nodes"), places_of(experiment, given)
    for name in nodes or ():
        if not NAME.fullmatch(name):
            raise ConfigError(f"nodes: {name!r} is no name of a node", hint="small letters, digits and -")
    least = given.get("min_clients") or (len(nodes) if nodes else places)
    if places < least:
        raise ConfigError(
            f"min_clients = {least}, but there are only {places} places (clients)",
            hint="raise clients, or lower min_clients",
        )
    plan = plan_of(experiment, given)
    public = packed(arrays(Path(given["public"]))) if given.get("public") else None
    place = Path(given["place"])
    base = partial(base_at, experiment, place)
    root = Here.of_root(given["root"], plan, _folder(experiment)) if given.get("root") else None
    return Office(place, plan, places, least, nodes, given["absent"], public, base, root)


def base_at(experiment: Experiment, place: Path, form: DataForm) -> str | None:
    """The hash of what the run's model does not train, for data of this form."""
    data, method = Elsewhere(1, form), build_method(experiment.method, experiment.settings)
    loss: Any = experiment.loss
    loss = own.found(loss, "loss") if loss and own.named(loss) else loss
    with backed(place):
        made = architectures(
            networks(experiment.model, data), data, method, experiment.seed, loss, experiment.metrics,
            experiment.adapter, experiment.base,
        )  # fmt: skip
    return remembered(made, experiment.base, [experiment.model, experiment.adapter], place)


def plan_of(experiment: Experiment, given: dict[str, Any]) -> Plan:
    """What nodes are told."""
    return Plan(
        method=experiment.method,
        hyper=dict(experiment.settings),
        model=experiment.model,
        loss=experiment.loss,
        metrics=experiment.metrics,
        augment=experiment.augment,
        channel=experiment.channel,
        dp_sgd=experiment.dp_sgd,
        down=experiment.down,
        adapter=experiment.adapter,
        seed=experiment.seed,
        engine="loop" if experiment.engine == "loop" else "processes",
        data=_read_as(experiment),
        validation=experiment.validation,
        test=experiment.test,
        rounds=experiment.rounds,
        cohort=experiment.cohort,
        repeatable=given.get("repeatable_noise", False),
    )
