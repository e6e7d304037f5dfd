"""`atoll predict`: what a model that came of a run between machines says of rows of a file."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from atoll.cli.given import code
from atoll.cli.predictions import write
from atoll.deployed import plan_of, stand_in
from atoll.errors import ConfigError, DataError
from atoll.experiment import Experiment
from atoll.network.predicting import at_node, inputs_of, saved
from atoll.parts import shapes
from atoll.schema import parse

__all__ = ["Wish", "command"]


@dataclass(frozen=True)
class Wish:
    """What the command line asks for."""

    data: str
    place: str | None = None
    model: str | None = None
    plan: str | None = None
    out: str | None = None
    json: bool = False
    code: list[str] = field(default_factory=list)


def command(wish: Wish) -> None:
    """Predict, and write it as CSV or JSON; which model it was goes to stderr."""
    path = Path(wish.data)
    if not path.is_file():
        raise DataError(f"there is no file {path}", hint="a .csv, .tsv, .parquet or .npz file")
    if (wish.place is None) == (wish.model is None) or (wish.model is None) != (wish.plan is None):
        raise ConfigError(
            "which model is to predict?",
            hint="at a node --place DIR, that of `atoll join`; elsewhere --model FILE.safetensors --plan RUN.toml",
        )
    if wish.place is not None:
        predictor, kept, example = at_node(Path(wish.place), code(wish.code, "data"))
        inputs = inputs_of(path, kept.plan)
        if shapes(inputs) != shapes(example) or inputs.dtype != example.dtype:
            raise DataError(
                f"{path}: rows are {inputs.dtype} of shape {shapes(inputs)}, the run's {example.dtype} of"
                f" {shapes(example)}",
                hint="give rows with the columns, or the array, that the node has trained on",
            )
    else:
        assert wish.model is not None and wish.plan is not None
        for text in wish.code:
            raise ConfigError(f"--code {text} is for nodes", hint="RUN.toml names the code that it needs")
        data = stand_in(parse(Path(wish.plan)).get("data"))
        plan = plan_of(Experiment.read(wish.plan, data=data), {})
        inputs = inputs_of(path, plan)
        predictor = saved(Path(wish.model), plan, inputs)
    rows = [(each.row, each.value, each.shares) for each in predictor(inputs)]
    print(predictor.about, file=sys.stderr)
    write(rows, "row", wish.json, wish.out)
