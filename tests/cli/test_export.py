"""`atoll export`: the model of a run that is there, global or a client's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import atoll as package

from .conftest import Atoll

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # it says so of itself


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a run of a method that gives clients models of their own."""
    place = tmp_path_factory.mktemp("runs")
    package.run(
        method="ditto", clients=4, partition="iid", model="logistic", rounds=2, engine="loop", runs=str(place)
    )
    return place


def test_the_model_of_a_run_and_of_a_client(atoll: Atoll, place: Path, tmp_path: Path) -> None:
    given = ("export", "last", "--to", "torchscript", "--runs", str(place))
    code, out, err = atoll(*given, "--out", str(tmp_path / "model.pt"))
    assert code == 0, err
    assert out.startswith("the global model after round 2, ") and out.endswith(f"{tmp_path / 'model.pt'}\n")
    code, out, err = atoll(*given, "--client", "3")
    assert code == 0, err
    own = next(place.glob("*/client-3.pt"))
    assert out.strip().endswith(str(own))
    inputs = torch.randn(5, 64)
    one, other = (torch.jit.load(str(path))(inputs) for path in (tmp_path / "model.pt", own))
    assert not torch.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--to", "onx"], "there is no format 'onx'\n hint: did you mean 'onnx'?"),
        (
            ["--to", "torchscript", "--client", "bob"],
            "there is no client 'bob' among the 4\n hint: known: 0, 1, 2, 3",
        ),
        (["--to", "torchscript", "--out", "nowhere/model.pt"], "there is no directory nowhere"),
    ],
)
def test_what_is_wrong_is_said(atoll: Atoll, place: Path, options: list[str], said: str) -> None:
    code, _, err = atoll("export", "last", "--runs", str(place), *options)
    assert code == 2
    assert said in err


def test_a_run_that_is_not_there(atoll: Atoll, tmp_path: Path) -> None:
    code, _, err = atoll("export", "last", "--runs", str(tmp_path), "--to", "torchscript")
    assert code == 2
    assert "hint: atoll run makes one" in err
