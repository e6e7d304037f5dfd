"""The public face: names, signatures, and that importing the package is free."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys

import pytest

import atoll

NAMES = [
    "ADPSGD",
    "APFL",
    "AdaBN",
    "AtollError",
    "Batch",
    "CFL",
    "Callback",
    "Change",
    "Choco",
    "CrossModal",
    "ClientData",
    "ConfigError",
    "D2",
    "DPSGD",
    "DataError",
    "Decentralised",
    "DiLoCo",
    "Ditto",
    "DivergedError",
    "EngineError",
    "Evaluation",
    "Experiment",
    "FADA",
    "FFA",
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
    "IFCA",
    "KNNPer",
    "LGFedAvg",
    "Local",
    "Method",
    "Metric",
    "MissingExtraError",
    "Moon",
    "Moshpit",
    "PFNM",
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
    "SHOT",
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

PARAMETERS = {
    "Federation": "model data method loss metrics public channel log callbacks nodes rounds cohort newcomers adapt"
    " joins leaves seed base adapter dp_sgd stragglers down aggregate by_part attackers attack epsilon delta sampling"
    " choose devices pace concurrency deadline over_select quorum late retry exclude adaptive target patience"
    " tokens eval_every eval_clients engine workers ray_address ray_gpus silo device precision accumulate recompute"
    " runs checkpoint keep settings",
    "Settings": "rounds cohort newcomers adapt joins leaves seed base adapter dp_sgd stragglers channel down aggregate"
    " by_part attackers attack epsilon delta sampling choose devices pace concurrency deadline over_select quorum"
    " late retry exclude adaptive target patience tokens eval_every eval_clients engine workers ray_address"
    " ray_gpus silo device precision accumulate recompute runs checkpoint keep",
    "Experiment": "rounds cohort newcomers adapt joins leaves seed base adapter dp_sgd stragglers channel down"
    " aggregate by_part attackers attack epsilon delta sampling choose devices pace concurrency deadline"
    " over_select quorum late retry exclude adaptive target patience tokens eval_every eval_clients engine workers"
    " ray_address ray_gpus silo device precision accumulate recompute runs checkpoint keep data label client features"
    " categorical classes missing scale ignore tokenizer window packed rate seconds waves pixels item liked"
    " partition clients test validation public root mix"
    " missing_parts augment weights model fusion loss metrics method log settings",
    "Run": "method data partition engine rounds seconds target_round model folder source better tested names"
    " privacy reason trained",
    "Round": "number cohort dropped refused loss bytes_up bytes_down seconds evaluation clients clock spent tokens",
    "Evaluation": "overall clients personal newcomers each only confusion validation consensus",
    "Task": "module loss metrics augment shares",
    "Plan": "epochs steps batch_size poisson",
    "run": "file sets resume callbacks progress keywords",
    "FedAvg": "lr epochs steps batch_size optimizer momentum nesterov weight_decay clip schedule"
    " partial_work",
}


def test_names() -> None:
    assert sorted(atoll.__all__) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_there_and_explained(name: str) -> None:
    thing = getattr(atoll, name)
    assert name in dir(atoll)
    if name != "__version__":
        assert inspect.getdoc(thing)


@pytest.mark.parametrize("name", PARAMETERS)
def test_signatures(name: str) -> None:
    assert list(inspect.signature(getattr(atoll, name)).parameters) == PARAMETERS[name].split()


def test_every_method_is_public() -> None:
    for name, kind in atoll.methods.METHODS.items():
        assert getattr(atoll, kind.__name__) is kind, name
        assert dataclasses.is_dataclass(kind)


def test_no_setting_of_a_method_has_the_name_of_a_runs_own() -> None:
    """They stand beside each other in files and on the command line."""
    run = set(PARAMETERS["Experiment"].split())
    for name, kind in atoll.methods.METHODS.items():
        assert not run & {each.name for each in atoll.methods.fields(kind)}, name


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'FedNothing'"):
        atoll.FedNothing  # noqa: B018


@pytest.mark.parametrize(
    "code", ["import atoll", "from atoll.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"]
)
def test_nothing_heavy_is_imported_before_it_is_needed(code: str) -> None:
    check = "import sys\nassert not {'torch', 'numpy', 'msgspec'} & sys.modules.keys(), 'imported'"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{check}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
