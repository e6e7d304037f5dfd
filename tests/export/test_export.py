"""Exported models compute what they did: with their own runtimes, on all test samples, in batches of any size."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import atoll
from atoll import adapters, models
from atoll.calling import main
from atoll.export import FORMATS, Trained, write
from atoll.export.onnx import FACTS as PROPERTY
from atoll.export.torchscript import FACTS as FILE
from atoll.parts import Parts
from atoll.seeds import scoped

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # it says so of itself

ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "mlp": (lambda: models.mlp(64, 32, 10), lambda: torch.randn(70, 64)),
    "lenet": (lambda: models.build("lenet-bn", (1, 28, 28), 10), lambda: torch.randn(70, 1, 28, 28)),
    "conv1d": (lambda: models.build("conv1d", (9, 128), 6), lambda: torch.randn(70, 9, 128)),
    "lstm": (lambda: models.lstm(65, 8, 32), lambda: torch.randint(0, 65, (70, 20))),
    "gpt": (lambda: models.gpt(65, 20, 2, 32, 2), lambda: torch.randint(0, 65, (70, 20))),
}


def samples(name: str) -> tuple[nn.Module, Tensor]:
    with scoped(3):
        make, draw = ARCHITECTURES[name]
        return make(), draw()


def agrees(to: str, path: Path, module: nn.Module, inputs: Any) -> None:
    """The file's outputs are the module's, however many samples there are."""
    run = FORMATS[to].runner(path)
    module.eval()
    for rows in (1, 7, len(inputs)):
        some = inputs[:rows]
        tensors = some.values() if isinstance(some, Parts) else (some,)
        with torch.no_grad():
            expected = module(*tensors)
        assert torch.allclose(run(tensors), main(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_torchscript_computes_what_the_model_does(tmp_path: Path, name: str) -> None:
    module, inputs = samples(name)
    path = write("torchscript", Trained(module, inputs[:4], {"of": "everybody"}), tmp_path / "model.pt")
    agrees("torchscript", path, module, inputs)
    assert [each.name for each in tmp_path.iterdir()] == ["model.pt"]


@pytest.mark.parametrize(
    "name", ["mlp", *(pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES if name != "mlp")]
)
def test_onnx_computes_what_the_model_does(tmp_path: Path, name: str) -> None:
    pytest.importorskip("onnxscript")
    onnx = pytest.importorskip("onnx")
    module, inputs = samples(name)
    path = write("onnx", Trained(module, inputs[:4], {"of": "everybody"}), tmp_path / "model.onnx")
    agrees("onnx", path, module, inputs)
    known = {each.key: each.value for each in onnx.load(path).metadata_props}
    about = json.loads(known[PROPERTY])
    assert about["of"] == "everybody"
    assert about["inputs"]["input"]["shape"] == [None, *inputs.shape[1:]]
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "lenet", "conv1d", "gpt"])
def test_executorch_computes_what_the_model_does(tmp_path: Path, name: str) -> None:
    pytest.importorskip("executorch")
    module, inputs = samples(name)
    path = write("executorch", Trained(module, inputs[:4], {"of": "everybody"}), tmp_path / "model.pte")
    agrees("executorch", path, module, inputs)


def test_factors_of_adapters_are_merged(tmp_path: Path) -> None:
    module, inputs = samples("gpt")
    adapted = adapters.apply(module, "lora:2,4")
    with scoped(5), torch.no_grad():
        for each in adapted.parameters():
            if each.requires_grad:
                each.normal_(0, 0.1)
    path = write("torchscript", Trained(adapted, inputs[:4], {}), tmp_path / "model.pt")
    agrees("torchscript", path, adapted, inputs)
    with torch.no_grad():
        assert not torch.allclose(adapted(inputs), module.eval()(inputs), atol=1e-2)
    assert ".lora" not in torch.jit.load(str(path)).code
    assert adapters.pairs(adapted)  # the module given stays as it is


class Two(nn.Module):
    """Two parts by name, and more than a tensor out."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.table = nn.Linear(6, 3), nn.Linear(2, 3)

    def forward(self, image: Tensor, table: Tensor) -> dict[str, Tensor]:
        return {"logits": self.image(image.flatten(1)) + self.table(table)}


def test_parts_are_inputs_by_name(tmp_path: Path) -> None:
    inputs = Parts({"image": torch.randn(9, 2, 3), "table": torch.randn(9, 2)})
    trained = Trained(Two(), inputs[:3], {})
    path = write("torchscript", trained, tmp_path / "model.pt")
    agrees("torchscript", path, trained.module, inputs)
    more = {FILE: ""}
    torch.jit.load(str(path), _extra_files=more)
    assert json.loads(more[FILE])["inputs"]["image"] == {"shape": [None, 2, 3], "dtype": "float32"}
    assert trained.plain().names == ["image", "table"]


# --- runs -----------------------------------------------------------------------------------------------------------


def federation(**settings: Any) -> atoll.Federation:
    data = atoll.data.load("digits").partition("dirichlet:0.3", clients=4, seed=0)
    given = {"rounds": 2, "lr": 0.1, "runs": None, "engine": "loop", **settings}
    return atoll.Federation(lambda: models.mlp(64, 10), data, "ditto", **given)


def test_a_run_exports_its_model_and_those_of_clients(tmp_path: Path) -> None:
    played = federation()
    run = played.fit(progress=False)
    test = played.data.test_set
    assert test is not None and isinstance(test.inputs, Tensor)
    agrees("torchscript", run.export("torchscript", tmp_path / "all.pt"), run.model, test.inputs)
    path = run.export("torchscript", tmp_path / "own.pt", client=3)
    agrees("torchscript", path, played.personal(3), test.inputs)
    more = {FILE: ""}
    torch.jit.load(str(path), _extra_files=more)
    about = json.loads(more[FILE])
    assert about["of"] == "3" and about["rounds"] == 2 and about["classes"] == 10
    apart = [FORMATS["torchscript"].runner(tmp_path / each)((test.inputs,)) for each in ("all.pt", "own.pt")]
    assert not torch.allclose(*apart, atol=1e-3)


def test_what_cannot_be_exported_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    played = federation()
    with pytest.raises(atoll.ConfigError, match="nothing to export"):
        played.run().export("torchscript", tmp_path / "model.pt")
    run = played.fit(progress=False)
    for wrong, said in (
        ({"to": "onx"}, "no format 'onx'"),
        ({"client": "nobody"}, "no client 'nobody'"),
        ({"client": 4}, "no client 4"),
        ({"path": tmp_path / "nowhere" / "model.pt"}, "no directory"),
        ({"path": tmp_path}, "is a directory"),
    ):
        with pytest.raises(atoll.ConfigError, match=said) as caught:
            run.export(**{"to": "torchscript", "path": tmp_path / "model.pt", **wrong})  # type: ignore[arg-type]
        assert caught.value.hint
    for to, package in (("onnx", "onnxscript"), ("executorch", "executorch.exir")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(atoll.MissingExtraError, match=f"atoll.{to}"):
            run.export(to, tmp_path / "model")
    assert not list(tmp_path.iterdir())


class Branches(nn.Module):
    """What it computes depends on the values of its inputs, which a trace does not see."""

    def forward(self, x: Tensor) -> Tensor:
        return x if bool(x.sum() > 0) else -x


def test_a_file_that_computes_something_else_is_not_kept(tmp_path: Path) -> None:
    inputs = torch.cat([torch.ones(2, 3), -torch.ones(6, 3)])
    with pytest.raises(atoll.RunError, match="differ from the model's"):
        write("torchscript", Trained(Branches(), inputs, {}), tmp_path / "model.pt")
    assert not list(tmp_path.iterdir())


class Narrows(nn.Module):
    """The shape of what it gives depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 0 if bool(x.sum() > 0) else x[:, :1] * 0


def test_outputs_of_another_shape_are_not_the_models(tmp_path: Path) -> None:
    inputs = torch.cat([torch.ones(2, 3), -torch.ones(6, 3)])
    with pytest.raises(atoll.RunError, match=r"shape \(8, 3\), the model \(8, 1\)"):
        write("torchscript", Trained(Narrows(), inputs, {}), tmp_path / "model.pt")
    assert not list(tmp_path.iterdir())


LEARNED: dict[str, dict[str, Any]] = {
    "mlp": {"data": "digits", "model": "mlp:32", "clients": 5, "rounds": 3, "lr": 0.1},
    "lenet": {"data": "mnist", "model": "lenet", "clients": 50, "cohort": 2, "rounds": 2, "lr": 0.05},
    "conv1d": {"data": "har", "model": "conv1d", "cohort": 5, "rounds": 2, "lr": 0.05},
    "lstm": {"data": "shakespeare:bytes,32,20", "model": "lstm", "cohort": 1, "rounds": 1, "lr": 0.5},
    "gpt": {"data": "shakespeare:bytes,64,20", "model": "gpt:2,32", "cohort": 2, "rounds": 1, "lr": 0.1},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNED)
def test_what_a_run_has_learned_is_exported_to_the_whole_of_its_test_set(tmp_path: Path, name: str) -> None:
    pytest.importorskip("onnxscript")
    if name != "mlp" and "ATOLL_DATA" not in os.environ:
        pytest.skip("ATOLL_DATA does not name a folder with the real data")
    settings = {**LEARNED[name], "engine": "loop", "eval_every": 0, "runs": None, "seed": 1}
    federation = atoll.Experiment.read(**settings).build()
    run, test = federation.fit(progress=False), federation.data.test_set
    assert test is not None and isinstance(test.inputs, Tensor)
    for to in ("onnx", "torchscript"):
        path = run.export(to, tmp_path / f"model{FORMATS[to].ending}")
        computed, module = FORMATS[to].runner(path), run.model.eval()
        for rows in torch.split(test.inputs, 500):
            with torch.no_grad():
                expected = main(module(rows))
            assert torch.allclose(computed((rows,)), expected, rtol=0, atol=1e-5)
