"""Federated methods, one file each, and the registry that finds them by name."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any, NamedTuple

from atoll import own
from atoll.contract import Method
from atoll.errors import ConfigError, suggest
from atoll.methods.adapt.adabn import AdaBN
from atoll.methods.adapt.fada import FADA
from atoll.methods.adapt.fedcoral import FedCORAL
from atoll.methods.adapt.fedmmd import FedMMD
from atoll.methods.adapt.shot import SHOT
from atoll.methods.adapters.fedex import FedEx
from atoll.methods.adapters.fedit import FedIT
from atoll.methods.adapters.fedkseed import FedKSeed
from atoll.methods.adapters.fedsa import FedSA
from atoll.methods.adapters.ffa import FFA
from atoll.methods.adapters.flexlora import FlexLoRA
from atoll.methods.adapters.flora import FLoRA
from atoll.methods.adapters.hetlora import HetLoRA
from atoll.methods.adapters.rolora import RoLoRA
from atoll.methods.crossmodal import CrossModal
from atoll.methods.distilled import FedDF, FedMD
from atoll.methods.fedavg import FedAvg
from atoll.methods.feddyn import FedDyn
from atoll.methods.fednova import FedNova
from atoll.methods.fedopt import FedAdagrad, FedAdam, FedAvgM, FedOpt, FedYogi
from atoll.methods.fedprox import FedProx
from atoll.methods.fedsgd import FedSGD
from atoll.methods.finetune import FineTune
from atoll.methods.heterofl import HeteroFL
from atoll.methods.local import Local
from atoll.methods.matched import PFNM, FedMA
from atoll.methods.moon import Moon
from atoll.methods.neighbours import (
    ADPSGD,
    D2,
    DPSGD,
    Choco,
    Decentralised,
    DiLoCo,
    Gossip,
    Moshpit,
    PushSum,
    Tracking,
)
from atoll.methods.parts.shared import PartlyShared
from atoll.methods.personal.apfl import APFL
from atoll.methods.personal.cfl import CFL
from atoll.methods.personal.ditto import Ditto
from atoll.methods.personal.fedala import FedALA
from atoll.methods.personal.fedamp import FedAMP, HeurFedAMP
from atoll.methods.personal.fedbabu import FedBABU
from atoll.methods.personal.fedbn import FedBN
from atoll.methods.personal.fedfomo import FedFomo
from atoll.methods.personal.fedora import Fedora
from atoll.methods.personal.fedper import FedPer
from atoll.methods.personal.fedphp import FedPHP
from atoll.methods.personal.fedproto import FedProto
from atoll.methods.personal.fedrep import FedRep
from atoll.methods.personal.ifca import IFCA
from atoll.methods.personal.knnper import KNNPer
from atoll.methods.personal.lgfedavg import LGFedAvg
from atoll.methods.personal.perfedavg import PerFedAvg
from atoll.methods.personal.pfedhn import PFedHN, PFedHNPC
from atoll.methods.personal.pfedme import PFedMe
from atoll.methods.qfedavg import QFedAvg
from atoll.methods.scaffold import Scaffold

__all__ = [
    "ADPSGD",
    "APFL",
    "CFL",
    "D2",
    "DPSGD",
    "FADA",
    "FFA",
    "IFCA",
    "METHODS",
    "PFNM",
    "SHOT",
    "AdaBN",
    "Choco",
    "CrossModal",
    "Decentralised",
    "Description",
    "DiLoCo",
    "Ditto",
    "FLoRA",
    "FedALA",
    "FedAMP",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedBABU",
    "FedBN",
    "FedCORAL",
    "FedDF",
    "FedDyn",
    "FedEx",
    "FedFomo",
    "FedIT",
    "FedKSeed",
    "FedMA",
    "FedMD",
    "FedMMD",
    "FedNova",
    "FedOpt",
    "FedPHP",
    "FedPer",
    "FedProto",
    "FedProx",
    "FedRep",
    "FedSA",
    "FedSGD",
    "FedYogi",
    "Fedora",
    "FineTune",
    "FlexLoRA",
    "Gossip",
    "HetLoRA",
    "HeteroFL",
    "HeurFedAMP",
    "KNNPer",
    "LGFedAvg",
    "Local",
    "Moon",
    "Moshpit",
    "PFedHN",
    "PFedHNPC",
    "PFedMe",
    "PartlyShared",
    "PerFedAvg",
    "PushSum",
    "QFedAvg",
    "RoLoRA",
    "Scaffold",
    "Setting",
    "Tracking",
    "describe",
    "fields",
    "get",
]

METHODS: dict[str, type[Method]] = {
    "fedsgd": FedSGD,
    "fedavg": FedAvg,
    "fedopt": FedOpt,
    "fedavgm": FedAvgM,
    "fedprox": FedProx,
    "fedadagrad": FedAdagrad,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "scaffold": Scaffold,
    "fednova": FedNova,
    "feddyn": FedDyn,
    "qfedavg": QFedAvg,
    "moon": Moon,
    "crossmodal": CrossModal,
    "heterofl": HeteroFL,
    "pfnm": PFNM,
    "fedma": FedMA,
    "local": Local,
    "fedavg-ft": FineTune,
    "fedora": Fedora,
    "pfedhn": PFedHN,
    "pfedhn-pc": PFedHNPC,
    "ditto": Ditto,
    "apfl": APFL,
    "pfedme": PFedMe,
    "per-fedavg": PerFedAvg,
    "fedala": FedALA,
    "fedphp": FedPHP,
    "fedper": FedPer,
    "lg-fedavg": LGFedAvg,
    "fedbn": FedBN,
    "fedrep": FedRep,
    "fedbabu": FedBABU,
    "fedproto": FedProto,
    "knn-per": KNNPer,
    "fedamp": FedAMP,
    "heurfedamp": HeurFedAMP,
    "ifca": IFCA,
    "cfl": CFL,
    "fedfomo": FedFomo,
    "fedmd": FedMD,
    "feddf": FedDF,
    "fedcoral": FedCORAL,
    "fedmmd": FedMMD,
    "fada": FADA,
    "adabn": AdaBN,
    "shot": SHOT,
    "fedit": FedIT,
    "ffa": FFA,
    "rolora": RoLoRA,
    "flora": FLoRA,
    "fedex": FedEx,
    "flexlora": FlexLoRA,
    "hetlora": HetLoRA,
    "fedsa": FedSA,
    "fedkseed": FedKSeed,
    "dpsgd": DPSGD,
    "adpsgd": ADPSGD,
    "pushsum": PushSum,
    "gossip": Gossip,
    "tracking": Tracking,
    "d2": D2,
    "choco": Choco,
    "moshpit": Moshpit,
    "diloco": DiLoCo,
}
"""Methods by the name they have in a configuration file and on the command line."""


class Setting(NamedTuple):
    """A hyper-parameter of a method, as its class declares and documents it."""

    name: str
    type: str
    default: Any
    help: str


class Description(NamedTuple):
    """A method in a line."""

    name: str
    paper: str
    cost: str
    line: str
    exact: bool | None


def get(name: str) -> type[Method]:
    """The method of that name, or the user's own (see `atoll.own`).  Raises ConfigError, with the nearest names."""
    if name not in METHODS and own.named(name):
        kind: type[Method] = own.found(name, "method")
        sound = isinstance(kind, type) and issubclass(kind, Method) and dataclasses.is_dataclass(kind)
        if not sound:
            raise ConfigError(
                f"method = {name!r} is no method",
                hint="name a subclass of atoll.Method (or of another method) that is a frozen dataclass",
            )
        return kind
    if name not in METHODS:
        raise ConfigError(f"unknown method {name!r}", hint=suggest(name, METHODS))
    return METHODS[name]


def fields(method: type[Method]) -> list[Setting]:
    """The hyper-parameters of a method, own and inherited, each with what the docstrings say of it."""
    helps: dict[str, str] = {}
    for kind in reversed(method.__mro__):
        helps |= _arguments(inspect.cleandoc(kind.__dict__.get("__doc__") or ""))
    return [
        Setting(field.name, str(field.type), field.default, helps.get(field.name, ""))
        for field in dataclasses.fields(method)  # type: ignore[arg-type]
    ]


def describe() -> list[Description]:
    """All methods, a line each."""
    rows = []
    for name, method in METHODS.items():
        first = inspect.cleandoc(method.__doc__ or "").split("\n")[0]
        rows.append(Description(name, method.paper, method.cost, first.split("   ")[0], method.exact))
    return rows


def _arguments(text: str) -> dict[str, str]:
    """The entries of the Args section of a docstring: ``name, other: text``, continued on deeper lines."""
    _, _, section = text.partition("\nArgs:\n")
    helps: dict[str, str] = {}
    names: list[str] = []
    for line in section.split("\n"):
        if not line.startswith("    "):
            break
        entry = re.match(r" {4}(\w+(?:, \w+)*): (.*)", line)
        if entry:
            names = entry[1].split(", ")
        for name in names:
            helps[name] = f"{helps[name]} {line.strip()}" if entry is None else entry[2]
    return helps
