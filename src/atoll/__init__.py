"""Atoll: federated and distributed learning for PyTorch.

Everything in `__all__` is loaded when it is first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atoll import adapters, attacks, channel, data, methods, models, robust, vertical
    from atoll.callbacks import Callback
    from atoll.contract import Change, ClientData, Method, Plan, Population, Program, Replies, Reply, Work
    from atoll.data import FederatedData
    from atoll.distributed import Trained, Training, train
    from atoll.errors import (
        AtollError,
        ConfigError,
        DataError,
        DivergedError,
        EngineError,
        MissingExtraError,
        RunError,
    )
    from atoll.experiment import Experiment, run
    from atoll.federation import Federation
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
    from atoll.methods.distilled.feddf import FedDF
    from atoll.methods.distilled.fedmd import FedMD
    from atoll.methods.fedavg import FedAvg
    from atoll.methods.feddyn import FedDyn
    from atoll.methods.fednova import FedNova
    from atoll.methods.fedopt import FedAdagrad, FedAdam, FedAvgM, FedOpt, FedYogi
    from atoll.methods.fedprox import FedProx
    from atoll.methods.fedsgd import FedSGD
    from atoll.methods.finetune import FineTune
    from atoll.methods.heterofl import HeteroFL
    from atoll.methods.local import Local
    from atoll.methods.matched.fedma import PFNM, FedMA
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
    from atoll.metrics import Metric
    from atoll.parts import Parts
    from atoll.results import Run
    from atoll.rounds.evaluation import Evaluation, Spread
    from atoll.rounds.history import Round
    from atoll.runs.folder import RunFolder
    from atoll.runs.readers import Reader
    from atoll.settings import Settings
    from atoll.task import Batch, Task
    from atoll.tensors import Record, Tensors
    from atoll.trials import compare, sweep

__version__ = "0.1.0"

_HOMES = {
    "data": ("FederatedData",),
    "distributed": ("Trained", "Training", "train"),
    "errors": (
        "AtollError",
        "ConfigError",
        "DataError",
        "DivergedError",
        "EngineError",
        "MissingExtraError",
        "RunError",
    ),
    "callbacks": ("Callback",),
    "rounds.evaluation": ("Evaluation", "Spread"),
    "rounds.history": ("Round",),
    "experiment": ("Experiment", "run"),
    "federation": ("Federation",),
    "results": ("Run",),
    "contract": (
        "Change",
        "ClientData",
        "Method",
        "Plan",
        "Population",
        "Program",
        "Replies",
        "Reply",
        "Work",
    ),
    "methods": (
        "ADPSGD",
        "APFL",
        "AdaBN",
        "CFL",
        "Choco",
        "CrossModal",
        "D2",
        "DPSGD",
        "Decentralised",
        "DiLoCo",
        "Ditto",
        "FADA",
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
        "FedFomo",
        "FedIT",
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
        "FedSGD",
        "FedYogi",
        "Fedora",
        "FineTune",
        "Gossip",
        "HeteroFL",
        "HeurFedAMP",
        "IFCA",
        "KNNPer",
        "LGFedAvg",
        "Local",
        "Moon",
        "Moshpit",
        "PFNM",
        "PFedHN",
        "PFedHNPC",
        "PFedMe",
        "PartlyShared",
        "PerFedAvg",
        "PushSum",
        "QFedAvg",
        "SHOT",
        "Scaffold",
        "Tracking",
        "FFA",
        "RoLoRA",
        "FLoRA",
        "FedEx",
        "FlexLoRA",
        "HetLoRA",
        "FedKSeed",
        "FedSA",
        "FedIT",
    ),
    "metrics": ("Metric",),
    "parts": ("Parts",),
    "task": ("Batch", "Task"),
    "settings": ("Settings",),
    "runs.folder": ("RunFolder",),
    "runs.readers": ("Reader",),
    "tensors": ("Record", "Tensors"),
    "trials": ("compare", "sweep"),
}
_HOME = {name: f"atoll.{home}" for home, names in _HOMES.items() for name in names}
_ROOMS = ("adapters", "attacks", "channel", "data", "methods", "models", "robust", "testing", "vertical")

__all__ = [
    "ADPSGD",
    "APFL",
    "CFL",
    "D2",
    "DPSGD",
    "FADA",
    "FFA",
    "IFCA",
    "PFNM",
    "SHOT",
    "AdaBN",
    "AtollError",
    "Batch",
    "Callback",
    "Change",
    "Choco",
    "ClientData",
    "ConfigError",
    "CrossModal",
    "DataError",
    "Decentralised",
    "DiLoCo",
    "Ditto",
    "DivergedError",
    "EngineError",
    "Evaluation",
    "Experiment",
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
    "FederatedData",
    "Federation",
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
    "Method",
    "Metric",
    "MissingExtraError",
    "Moon",
    "Moshpit",
    "PFedHN",
    "PFedHNPC",
    "PFedMe",
    "PartlyShared",
    "Parts",
    "PerFedAvg",
    "Plan",
    "Population",
    "Program",
    "PushSum",
    "QFedAvg",
    "Reader",
    "Record",
    "Replies",
    "Reply",
    "RoLoRA",
    "Round",
    "Run",
    "RunError",
    "RunFolder",
    "Scaffold",
    "Settings",
    "Spread",
    "Task",
    "Tensors",
    "Tracking",
    "Trained",
    "Training",
    "Work",
    "__version__",
    "adapters",
    "attacks",
    "channel",
    "compare",
    "data",
    "methods",
    "models",
    "robust",
    "run",
    "sweep",
    "train",
    "vertical",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"atoll.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'atoll' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
