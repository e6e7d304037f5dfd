"""Every kind of event that a run writes, field by field; `parts` has what stands within them. Both make the tables of
docs/runs.md.

A run of any sort uses the same kinds. What may be left out (`Maybe`) is what not every run has: one without clients has
no cohorts, say. Fields are written in the order in which they stand here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from msgspec import UNSET, Struct, field

from atoll.runs.events.parts import (
    Clock,
    Columns,
    Evaluation,
    Features,
    Link,
    Maybe,
    Number,
    Report,
    Said,
    Spent,
    Spread,
    Work,
    says,
)  # fmt: skip

__all__ = [
    "KINDS",
    "SCHEMA",
    "Affinity",
    "Begin",
    "Checkpoint",
    "Clock",
    "Columns",
    "Crypto",
    "Engine",
    "Error",
    "Evaluation",
    "Features",
    "Link",
    "Maybe",
    "Partition",
    "Problem",
    "Reason",
    "Report",
    "Result",
    "Resume",
    "Round",
    "Said",
    "Spent",
    "Spread",
    "Start",
    "Work",
    "Written",
]

SCHEMA = 1
Reason = Literal["rounds", "target", "patience", "budget", "tokens", "stopped"]


class Written(Struct, kw_only=True, tag_field="event", tag=str.lower, forbid_unknown_fields=True):
    """An event as it is written: strict, and of a known kind."""

    time: Annotated[float, says("when, in Unix seconds")] = field(
        default_factory=lambda: round(time.time(), 3)
    )


# --- the beginning --------------------------------------------------------------------------------------------------


class Start(Written, kw_only=True):
    """The run begins. A run that goes on has no second one."""

    schema: Annotated[int, says("1; rises only when a field changes its meaning")] = SCHEMA
    run: Annotated[str, says("the folder's name")] = ""
    path: Annotated[Maybe[str], says("where the folder was when the run began, as `atoll` was told")] = UNSET
    method: Annotated[str, says("what is run")]
    data: Annotated[Maybe[str], says("the dataset")] = UNSET
    partition: Annotated[Maybe[str], says("how it is divided among clients")] = UNSET
    model: Annotated[Maybe[str], says("the model")] = UNSET
    seed: Annotated[int, says("everything random follows from it")]
    rounds: Annotated[int, says("rounds planned")]
    cohort: Annotated[Maybe[int], says("clients a round")] = UNSET
    clients: Annotated[Maybe[int], says("clients in the population")] = UNSET
    parameters: Annotated[Maybe[int], says("numbers in the model")] = UNSET
    classes: Annotated[Maybe[int | None], says("classes; null for a regression")] = UNSET
    measure: Annotated[Maybe[Literal["accuracy", "loss"]], says("the measure to look at first")] = UNSET
    metrics: Annotated[
        Maybe[Mapping[str, Literal["higher", "lower"] | None]],
        says("what is measured beside the loss, and which values are better; null where nobody says"),
    ] = UNSET
    personalised: Annotated[Maybe[bool], says("whether clients have models of their own")] = UNSET
    target: Annotated[Maybe[str | None], says("where the run may stop, such as accuracy:0.97")] = UNSET
    device: Annotated[Maybe[str], says("where it computes")] = UNSET
    engine: Annotated[Maybe[str], says("the engine asked for")] = UNSET
    workers: Annotated[Maybe[int], says("that train one model (`atoll train`); a round is then a report")] = (
        UNSET
    )
    parties: Annotated[
        Maybe[Sequence[str]],
        says("with different columns, in their order (`atoll vertical`); a round is then a step"),
    ] = UNSET
    peers: Annotated[
        Maybe[Sequence[str]], says("that learn without a server, in their order (`atoll peer`)")
    ] = UNSET
    peer: Annotated[
        Maybe[str], says("which of them wrote this; figures are of its own model and test data")
    ] = UNSET
    config: Annotated[Mapping[str, Any], says("all settings")]
    changed: Annotated[Maybe[Sequence[str]], says("those that are not their defaults")] = UNSET
    versions: Annotated[Mapping[str, str], says("of atoll, python, torch, numpy")] = {}
    command: Annotated[str | None, says("the command line that began it")] = None
    commit: Annotated[str | None, says("the git commit of the working directory")] = None


class Partition(Written, kw_only=True):
    """Who the clients are. Clients are positions in the population, from 0."""

    names: Annotated[Sequence[str] | None, says("of all clients; null where there are more than 10,000")]
    sizes: Annotated[Sequence[int] | None, says("their training samples; null likewise")]
    weights: Annotated[
        Maybe[Sequence[float]],
        says("what they count for in averages, 1 on average, where it was given; of 10,000 clients at most"),
    ] = UNSET
    judged: Annotated[Sequence[int], says("whom evaluations judge while they are there, in this order")]
    tested: Annotated[Maybe[Sequence[int]], says("their test samples, in the order of `judged`")] = UNSET
    joins: Annotated[Mapping[str, int], says("client -> the first round with it")]
    leaves: Annotated[Mapping[str, int], says("client -> the first round without it")]
    newcomers: Annotated[
        Maybe[Sequence[int]], says("who never takes part, and is judged apart; not of more than 10,000")
    ] = UNSET
    attackers: Annotated[
        Maybe[Sequence[int]], says("who lies, in a simulation of that; not of more than 10,000")
    ] = UNSET
    report: Annotated[Report, says("how their data differ")]


# --- rounds ---------------------------------------------------------------------------------------------------------


class Begin(Written, kw_only=True):
    """These clients now work."""

    round: Annotated[int, says("its number, from 1")]
    cohort: Annotated[Maybe[Sequence[int]], says("who takes part, ascending")] = UNSET


class Engine(Written, kw_only=True):
    """What the engine settled on."""

    round: Annotated[int, says("since which round")]
    name: Annotated[str, says("its name")]
    workers: Annotated[int | None, says("threads or processes")]
    text: Annotated[str, says("how it is set and why, in words")]


class Round(Written, kw_only=True):
    """A round was played and counts; where workers train one model, a report of so many steps."""

    round: Annotated[int, says("its number")]
    cohort: Annotated[Maybe[Sequence[int]], says("who took part, ascending")] = UNSET
    dropped: Annotated[Maybe[Sequence[int]], says("sampled, but slower than the method accepts")] = UNSET
    refused: Annotated[Maybe[Mapping[str, str]], says("client -> why its reply could not be used")] = UNSET
    loss: Annotated[Maybe[Number], says("mean training loss over the cohort's samples")] = UNSET
    bytes_up: Annotated[Maybe[int], says("sent by all clients together")] = UNSET
    bytes_down: Annotated[Maybe[int], says("sent to all clients together")] = UNSET
    tokens: Annotated[
        Maybe[int], says("that clients read for the replies that counted, where samples are sequences")
    ] = UNSET
    seconds: Annotated[float, says("of the round without its evaluation")]
    clients: Annotated[Maybe[Columns], says("about the cohort, column by column")] = UNSET
    evaluation: Annotated[Maybe[Evaluation | None], says("null in a round that was not evaluated")] = UNSET
    clock: Annotated[Maybe[Clock], says("what it was on the virtual clock, where there is one")] = UNSET
    spent: Annotated[Maybe[Spent], says("privacy, where updates are blurred")] = UNSET
    work: Annotated[Maybe[Work], says("where workers train one model")] = UNSET
    links: Annotated[Maybe[Mapping[str, Link]], says("of a peer, to the others that it has to do with")] = (
        UNSET
    )


class Affinity(Written, kw_only=True):
    """How clients are related, beside a checkpoint."""

    round: Annotated[int, says("after which round")]
    of: Annotated[str, says('what the numbers are: "update cosine", or what the method relates clients by')]
    clients: Annotated[Sequence[int], says("at most 64")]
    matrix: Annotated[Sequence[Sequence[Number]], says("[i][j], in the order of `clients`")]


class Crypto(Written, kw_only=True):
    """The crypto audit of a run between parties: all that was said, before the result."""

    said: Annotated[Sequence[Said], says("kind by kind")]


class Checkpoint(Written, kw_only=True):
    """A checkpoint was written."""

    round: Annotated[int, says("the last round in it")]
    path: Annotated[str, says("inside the folder")]


class Resume(Written, kw_only=True):
    """The run goes on. Events above this line about later rounds, and endings, are void."""

    round: Annotated[int, says("after which round")]
    rounds: Annotated[int, says("rounds planned now")]
    versions: Annotated[Mapping[str, str], says("as in `start`")]
    changed: Annotated[
        Maybe[Mapping[str, Any]], says("settings that are others than before a pause, with what they are now")
    ] = UNSET


class Problem(Written, kw_only=True):
    """Something beside the training failed (a reader, a callback), or it learns nothing; the run went on."""

    where: Annotated[str, says("what failed, or what is wrong")]
    message: Annotated[str, says("how")]


# --- the end --------------------------------------------------------------------------------------------------------


class Result(Written, kw_only=True):
    """The run is over."""

    reason: Annotated[
        Reason,
        says(
            "why: all played, reached, no better on validation data for long, privacy spent, tokens read, or told to"
        ),
    ]
    method: Annotated[str, says("what was run")]
    data: Annotated[Maybe[str], says("on which data")] = UNSET
    partition: Annotated[Maybe[str], says("divided how")] = UNSET
    engine: Annotated[Maybe[str], says("the engine in words")] = UNSET
    rounds: Annotated[int, says("rounds played")]
    seconds: Annotated[float, says("of the whole run, its evaluations included")]
    seconds_per_round: Annotated[Maybe[float], says("median without evaluation, the first two left out")] = (
        UNSET
    )
    bytes_up: Annotated[Maybe[int], says("sent by all clients together")] = UNSET
    bytes_down: Annotated[Maybe[int], says("sent to all clients together")] = UNSET
    tokens: Annotated[Maybe[int], says("that clients have read, where samples are sequences")] = UNSET
    accuracy: Annotated[Maybe[Number], says("of the global model on the global test set")] = UNSET
    loss: Annotated[Maybe[Number], says("likewise")] = UNSET
    perplexity: Annotated[
        Maybe[Number], says("of texts: of the global model on all tokens of the test set, or of the clients")
    ] = UNSET
    attack_success: Annotated[
        Maybe[Number], says("share of test samples that the model takes for what attackers want")
    ] = UNSET
    accuracy_by_parts: Annotated[
        Maybe[Mapping[str, Number]],
        says("of samples of several parts: the accuracy where they have each part alone, and all"),
    ] = UNSET
    metrics: Annotated[
        Maybe[Mapping[str, Number]],
        says(
            "further measures by name: of the global model on the global test set, else the mean over clients"
        ),
    ] = UNSET
    target_round: Annotated[Maybe[int | None], says("the first round at the target")] = UNSET
    best_round: Annotated[
        Maybe[int | None],
        says("the round with the best models on validation data, where they are judged there"),
    ] = UNSET
    refused: Annotated[Maybe[int], says("replies that could not be used")] = UNSET
    dropped: Annotated[Maybe[int], says("clients that were too slow")] = UNSET
    participation: Annotated[
        Maybe[Number],
        says("how evenly clients took part: Jain's index of their rounds, 1 where all had as many"),
    ] = UNSET
    consensus: Annotated[
        Maybe[Number], says("how far peers' models are apart at the end; without a server")
    ] = UNSET
    epsilon: Annotated[Maybe[Number], says("privacy that was spent")] = UNSET
    delta: Annotated[Maybe[float], says("the chance with which that may fail")] = UNSET
    private: Annotated[Maybe[bool], says("false where noise followed from a seed: nothing is promised")] = (
        UNSET
    )
    privacy: Annotated[Maybe[str], says("the same in a sentence, or two")] = UNSET
    samples_epsilon: Annotated[Maybe[Number], says("of single samples, where dp_sgd hides them beside")] = (
        UNSET
    )
    samples_delta: Annotated[Maybe[Number], says("likewise")] = UNSET
    robust: Annotated[
        Maybe[Mapping[str, float]],
        says(
            "behind a robust rule: `updates`, how many it `left_out`, the `least` that a client counted for, on average"
        ),
    ] = UNSET
    virtual_seconds: Annotated[Maybe[float], says("of the run, on the virtual clock")] = UNSET
    target_virtual_seconds: Annotated[
        Maybe[Number], says("likewise, when the target was reached; null where it was not")
    ] = UNSET
    energy: Annotated[Maybe[float], says("joules of all clients, likewise")] = UNSET
    wasted: Annotated[Maybe[float], says("share of client-seconds whose replies were not used, likewise")] = (
        UNSET
    )
    staleness: Annotated[
        Maybe[float],
        says("steps of the server since clients were sent their model, mean over replies, likewise"),
    ] = UNSET
    stale: Annotated[Maybe[Sequence[int]], says("updates of a parameter server by their staleness")] = UNSET
    workers: Annotated[Maybe[int], says("that trained one model")] = UNSET
    steps: Annotated[Maybe[int], says("of the optimiser, likewise")] = UNSET
    steps_per_second: Annotated[Maybe[float], says("likewise, without evaluations and the first report")] = (
        UNSET
    )
    bytes: Annotated[
        Maybe[float | Mapping[str, int]],
        says("that a worker sent, the most of all of them; between parties, of all messages by their kind"),
    ] = UNSET
    common: Annotated[Maybe[int], says("rows that all parties have")] = UNSET
    ciphertexts: Annotated[Maybe[int], says("that parties sent each other")] = UNSET
    auc: Annotated[Maybe[Number], says("of a model of several parties, on the test rows")] = UNSET
    rmse: Annotated[Maybe[Number], says("likewise")] = UNSET
    train: Annotated[Maybe[Mapping[str, Number]], says("likewise, all figures on the training rows")] = UNSET
    test: Annotated[Maybe[Mapping[str, Number]], says("and on the test rows")] = UNSET
    features: Annotated[Maybe[Sequence[Features]], says("what the parties that are here know of columns")] = (
        UNSET
    )
    waiting: Annotated[Maybe[float], says("share of the time in which a worker waited or sent, likewise")] = (
        UNSET
    )
    memory: Annotated[Maybe[float], says("bytes of a worker at its peak, likewise")] = UNSET
    bubble: Annotated[
        Maybe[Number], says("share of a step in which a stage of a pipeline waits, by its schedule")
    ] = UNSET
    missing: Annotated[
        Maybe[Mapping[str, Sequence[int]]],
        says("of a peer: others, and the rounds in which nothing came of them"),
    ] = UNSET
    clients: Annotated[Maybe[Spread | None], says("the main measure of the models clients would use")] = UNSET
    evaluation: Annotated[Maybe[Evaluation | None], says("the last one, without `each`")] = UNSET


class Error(Written, kw_only=True):
    """The run is over, and may be resumed."""

    kind: Annotated[str, says('its class; "Interrupted" or "Terminated" where someone stopped the run')]
    message: Annotated[str, says("what went wrong")]
    hint: Annotated[str | None, says("what to do about it")]
    exit_code: Annotated[int, says("what the command ends with")]
    round: Annotated[int, says("the last one that counts")]


KINDS: Mapping[str, type[Written]] = {
    kind.__name__.lower(): kind
    for kind in (
        Start, Partition, Begin, Engine, Round, Affinity, Checkpoint, Resume, Problem, Crypto, Result, Error,
    )
}  # fmt: skip
"""The kinds by name, in the order in which a run writes them."""
