"""What stands within events, field by field, and how fields say what they mean. `kinds` has the events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, TypeAlias, TypeVar

from msgspec import UNSET, Meta, Struct, UnsetType

__all__ = [
    "Clock",
    "Columns",
    "Evaluation",
    "Features",
    "Link",
    "Maybe",
    "Number",
    "Report",
    "Said",
    "Spent",
    "Spread",
    "Work",
    "says",
]

T = TypeVar("T")
Maybe: TypeAlias = T | UnsetType
"""A field that a run without such a thing leaves out."""

Number = float | None
Spreads = Mapping[str, "Spread"]


def says(text: str) -> Meta:
    """What a field means."""
    return Meta(description=text)


class Report(Struct, kw_only=True, forbid_unknown_fields=True):
    """How clients' data differ, of at most 200 clients evenly spaced."""

    dataset: Annotated[str, says("its name")]
    partition: Annotated[str, says("how it is divided")]
    population: Annotated[int, says("how many clients there are in all")]
    names: Annotated[Sequence[str], says("of the clients looked at")]
    gini: Annotated[Number, says("how unequal their numbers of samples are, from 0 to 1")]
    sizes: Annotated[Sequence[int], says("their training samples")]
    counts: Annotated[Sequence[Sequence[int]] | None, says("[client][class] samples; null without classes")]
    emd: Annotated[Sequence[Number] | None, says("distance of each client's labels to all, from 0 to 2")]
    js: Annotated[Sequence[Number] | None, says("Jensen-Shannon divergence of each client's labels, in bits")]
    effective: Annotated[Sequence[Number] | None, says("effective number of classes of each client")]


class Spread(Struct, kw_only=True, forbid_unknown_fields=True):
    """How a measure is distributed over clients, each of which counts once."""

    mean: Annotated[Number, says("mean over clients")]
    std: Annotated[Number, says("standard deviation")]
    min: Annotated[Number, says("the least")]
    p10: Annotated[Number, says("10th percentile")]
    median: Annotated[Number, says("the middle")]
    p90: Annotated[Number, says("90th percentile")]
    max: Annotated[Number, says("the greatest")]
    pooled: Annotated[Number, says("of all samples together")]
    clients: Annotated[int, says("how many were judged")]
    undefined: Annotated[Maybe[int], says("how many more have no value, and are left out")] = UNSET


class Evaluation(Struct, kw_only=True, forbid_unknown_fields=True):
    """How good models are, measure by measure."""

    overall: Annotated[Mapping[str, Number], says("the global model on the global test set; {} without one")]
    clients: Annotated[Maybe[Spreads], says("the global model over clients' own test data")] = UNSET
    personal: Annotated[
        Maybe[Spreads], says("each client's own model there; {} unless the method personalises")
    ] = UNSET
    newcomers: Annotated[
        Maybe[Spreads], says("what clients that never took part would use; {} where `newcomers` is 0")
    ] = UNSET
    validation: Annotated[
        Maybe[Spreads],
        says("what clients would use, on their validation data; where a target or `patience` asks"),
    ] = UNSET
    consensus: Annotated[
        Maybe[Number],
        says(
            "how far peers' models are apart, root of the mean squared distance to their mean; without a server"
        ),
    ] = UNSET
    confusion: Annotated[
        Maybe[Mapping[Literal["overall", "own"], Sequence[Sequence[int]]]],
        says(
            "counts [label][predicted class]: of the global model on the global test set, and of what clients would "
            "use on all their test data; where `metrics` has it"
        ),
    ] = UNSET
    each: Annotated[
        Maybe[Mapping[Literal["clients", "personal"], Mapping[str, Sequence[Number]]]],
        says("the clients' values in the order of `judged`, null where missing, five significant digits"),
    ] = UNSET


class Columns(Struct, kw_only=True, forbid_unknown_fields=True):
    """What is known of each client of a cohort, in its order, null where unknown. Left out where nothing is."""

    loss: Annotated[Maybe[Sequence[Number]], says("training loss")] = UNSET
    samples: Annotated[Maybe[Sequence[Number]], says("samples used")] = UNSET
    work: Annotated[
        Maybe[Sequence[Number]], says("share of the planned local epochs, in a round with stragglers")
    ] = UNSET
    start: Annotated[
        Maybe[Sequence[Number]], says("when the engine began its work, in seconds of the round")
    ] = UNSET
    end: Annotated[Maybe[Sequence[Number]], says("when the engine had done it, likewise")] = UNSET
    began: Annotated[
        Maybe[Sequence[Number]], says("virtual seconds: when it was asked; on a virtual clock")
    ] = UNSET
    download: Annotated[Maybe[Sequence[Number]], says("likewise, how long it received")] = UNSET
    compute: Annotated[Maybe[Sequence[Number]], says("likewise, how long it trained")] = UNSET
    upload: Annotated[Maybe[Sequence[Number]], says("likewise, how long it sent")] = UNSET
    done: Annotated[
        Maybe[Sequence[Number]], says("likewise, when its reply came, its work broke off or the round ended")
    ] = UNSET
    staleness: Annotated[
        Maybe[Sequence[Number]], says("steps of the server since it was sent its model; on a virtual clock")
    ] = UNSET
    norm: Annotated[Maybe[Sequence[Number]], says("norm of its update")] = UNSET
    cosine: Annotated[Maybe[Sequence[Number]], says("cosine of its update to the mean update")] = UNSET
    kept: Annotated[
        Maybe[Sequence[Number]],
        says("what a robust rule counted its update for: 0 left out, 1 as in a mean; behind `aggregate`"),
    ] = UNSET


class Link(Struct, kw_only=True, forbid_unknown_fields=True):
    """What a peer and another one said to each other in a round (`atoll peer`)."""

    sent: Annotated[int, says("bytes of models to the other one")]
    received: Annotated[int, says("and from it")]
    heard: Annotated[int, says("the last round of which its model came; 0 where none has")]
    gone: Annotated[bool, says("whether it was given up")]


class Clock(Struct, kw_only=True, forbid_unknown_fields=True):
    """A round on the virtual clock, in virtual seconds since the run began."""

    began: Annotated[float, says("when it began")]
    ended: Annotated[float, says("when it ended")]
    spent: Annotated[float, says("client-seconds of the orders that ended in it")]
    wasted: Annotated[float, says("those of them whose replies were not used")]
    energy: Annotated[float, says("joules of all of them")]
    staleness: Annotated[float, says("mean over the replies used")]
    late: Annotated[Sequence[int], says("whose replies came after the end")]
    failed: Annotated[Sequence[int], says("whose work broke off")]
    used: Annotated[int, says("replies used")]
    came: Annotated[
        Maybe[Sequence[int]],
        says("who came by the clock since the round before had ended; left out where nobody did"),
    ] = UNSET
    left: Annotated[Maybe[Sequence[int]], says("who left, likewise")] = UNSET


class Spent(Struct, kw_only=True):
    """Privacy after a round."""

    level: Annotated[str, says('whose: "user", all that a client has, or "record", one sample')]
    epsilon: Annotated[Number, says("at most what all rounds so far have spent")]
    delta: Annotated[float, says("the chance with which that may fail")]
    noise: Annotated[float, says("deviation of the noise over the bound on one contribution")]
    private: Annotated[bool, says("false where noise followed from a seed: then nothing is promised")]
    clipped: Annotated[Maybe[Number], says("share of updates that were shortened, seen by a simulation")] = (
        UNSET
    )
    samples_epsilon: Annotated[Maybe[Number], says("of single samples, where dp_sgd hides them beside")] = (
        UNSET
    )
    samples_delta: Annotated[Maybe[Number], says("likewise")] = UNSET


class Work(Struct, kw_only=True, forbid_unknown_fields=True):
    """What several workers that train one model did between two reports (`atoll train`)."""

    steps: Annotated[int, says("of the optimiser, since the run began")]
    samples: Annotated[int, says("that all workers read")]
    bytes: Annotated[float, says("that a worker sent, the most of all of them")]
    waiting: Annotated[
        Maybe[float],
        says(
            "seconds in which a worker waited for others or sent, likewise, where it does nothing meanwhile"
        ),
    ] = UNSET
    memory: Annotated[float, says("bytes of a worker at its peak, the most of all of them")]
    staleness: Annotated[
        Maybe[Number],
        says("steps that others took between a worker's reading of the model and its own, mean"),
    ] = UNSET
    stale: Annotated[
        Maybe[Sequence[int]],
        says(
            "updates of a parameter server by their staleness: of 0, 1, 2 ... steps, the last of 32 and more"
        ),
    ] = UNSET
    bubble: Annotated[
        Maybe[Number], says("share of a step in which a stage of a pipeline waits, by its schedule")
    ] = UNSET


class Said(Struct, kw_only=True, forbid_unknown_fields=True):
    """What one party said to another, of one kind."""

    sender: Annotated[str, says("who")]
    receiver: Annotated[str, says("to whom")]
    kind: Annotated[str, says("what")]
    tells: Annotated[str, says("what its receiver can learn from it")]
    under: Annotated[str | None, says("the cipher, with its bits; null for what was sent open")]
    messages: Annotated[int, says("how many")]
    nbytes: Annotated[int, says("bytes of what was in them")]
    framing: Annotated[int, says("bytes around it")]
    ciphertexts: Annotated[int, says("how many")]


class Features(Struct, kw_only=True, forbid_unknown_fields=True):
    """What one party knows of columns in the end, its own by their names and others' by numbers."""

    party: Annotated[str, says("who")]
    columns: Annotated[Sequence[str], says("of others such as host.2")]
    figures: Annotated[
        Mapping[str, Sequence[Number]],
        says("by name, one for each column: gain, splits, weight, iv, vif; null for one that is infinite"),
    ]
    correlations: Annotated[
        Maybe[Sequence[Sequence[Number]]], says("[i][j], in the order of `columns`, of at most 100 columns")
    ] = UNSET
