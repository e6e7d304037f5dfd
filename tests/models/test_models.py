"""Reference networks: sizes, shapes, and what their names mean."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from atoll.errors import ConfigError
from atoll.models import MODELS, build, cnn, conv1d, gpt, lenet, logistic, lstm, m5, mlp, two_nn, vgg
from atoll.task import Task
from atoll.tensors import Tensors


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def linears(module: nn.Module) -> list[tuple[int, int]]:
    return [(m.in_features, m.out_features) for m in module.modules() if isinstance(m, nn.Linear)]


def test_mcmahans_networks_have_the_published_sizes() -> None:
    assert size(two_nn()) == 199_210
    assert size(cnn()) == 1_663_370
    assert linears(two_nn()) == [(784, 200), (200, 200), (200, 10)]


def test_mlp() -> None:
    module = mlp(12, 5, 3)
    assert linears(module) == [(12, 5), (5, 3)]
    assert [type(layer) for layer in module] == [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear]
    assert module(torch.randn(2, 3, 4)).shape == (2, 3)
    assert linears(logistic(7, 4)) == [(7, 4)]
    for sizes in ((4,), (4, 0), ()):
        with pytest.raises(ConfigError, match="mlp"):
            mlp(*sizes)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 17, 30)])
def test_image_networks_fit_any_image(shape: tuple[int, ...]) -> None:
    images = torch.randn(2, *shape)
    assert cnn(shape, 7)(images).shape == (2, 7)
    assert lenet(shape, 7)(images).shape == (2, 7)
    assert vgg(shape, 7, width=2)(images).shape == (2, 7)


def channels(module: nn.Module) -> list[int]:
    return [m.out_channels for m in module.modules() if isinstance(m, nn.Conv2d)]


def test_vgg_is_that_of_fedma_in_any_width() -> None:
    assert size(vgg()) == 3_491_530
    assert channels(vgg()) == [32, 64, 128, 128, 256, 256]
    assert linears(vgg()) == [(256 * 4 * 4, 512), (512, 512), (512, 10)]
    narrow = build("vgg:4", (1, 28, 28), 7)
    assert channels(narrow) == [4, 8, 16, 16, 32, 32]
    assert linears(narrow) == [(32 * 3 * 3, 64), (64, 64), (64, 7)]
    images = torch.randn(16, 3, 32, 32)
    with torch.no_grad():
        first, last = (vgg(width=8)[:end](images).std() for end in (1, -2))
    assert 0.2 < float(last / first) < 5  # nine layers neither fade nor blow up


def test_lenet_and_conv1d_layers() -> None:
    assert linears(lenet((3, 32, 32), 10)) == [(32 * 5 * 5, 120), (120, 84), (84, 10)]
    assert conv1d((9, 128), 6)(torch.randn(2, 9, 128)).shape == (2, 6)
    assert conv1d((3, 7), 4)(torch.randn(2, 3, 7)).shape == (2, 4)


def test_lstm_predicts_a_token_at_each_position_from_those_before() -> None:
    module = lstm(11, hidden=16)
    tokens = torch.arange(10).view(2, 5)
    logits = module(tokens)
    assert logits.shape == (2, 5, 11)
    changed = tokens.clone()
    changed[:, 3] = 10
    other = module(changed)
    torch.testing.assert_close(other[:, :3], logits[:, :3])
    assert not torch.allclose(other[:, 3:], logits[:, 3:])
    assert lstm().lstm.num_layers == 2
    assert lstm().lstm.hidden_size == 256


@pytest.mark.parametrize(
    ("text", "shape", "wanted"),
    [
        ("2nn", (1, 28, 28), [(784, 200), (200, 200), (200, 10)]),
        ("mlp", (64,), [(64, 128), (128, 10)]),
        ("mlp:32,16", (8, 8), [(64, 32), (32, 16), (16, 10)]),
        ("mlp:5", (3,), [(3, 5), (5, 10)]),
        ("logistic", (2, 3), [(6, 10)]),
        ("auto", (64,), [(64, 128), (128, 10)]),
        ("auto", (1, 8, 8), [(64, 128), (128, 10)]),
    ],
)
def test_names_of_dense_networks(text: str, shape: tuple[int, ...], wanted: list[tuple[int, int]]) -> None:
    assert linears(build(text, shape, 10)) == wanted


def test_auto_follows_the_shape() -> None:
    assert size(build("auto", (1, 28, 28), 10)) == size(lenet((1, 28, 28), 10))
    assert size(build("auto", (9, 128), 6)) == size(conv1d((9, 128), 6))
    assert size(build("auto", (32, 39), 10)) == size(conv1d((32, 39), 10)) == 90_602
    assert size(build("auto", (1, 5120), 10)) == size(build("auto", (1, 16000), 10)) == 84_074
    assert m5((2, 256), 3)(torch.randn(2, 2, 256)).shape == (2, 3)
    assert size(build("cnn", (1, 28, 28), 10)) == 1_663_370
    assert size(build("lstm", (80,), 90)) == size(lstm(90))


@pytest.mark.parametrize(
    ("text", "shape", "words"),
    [
        ("lnet", (1, 28, 28), "did you mean 'lenet'"),
        ("resnet-1000", (1, 28, 28), "unknown model"),
        ("cnn:3", (1, 28, 28), "takes no arguments"),
        ("vgg:", (3, 32, 32), "width is empty"),
        ("vgg:8,16", (3, 32, 32), "at most 1"),
        ("vgg:0", (3, 32, 32), "at least 1"),
        ("vgg:8", (1, 7, 9), "at least 8"),
        ("mlp:", (4,), "widths is empty"),
        ("mlp:8,x", (4,), "'x' is not a whole number"),
        ("mlp:0", (4,), "at least 1"),
        ("cnn", (64,), "height"),
        ("lenet", (1, 8, 8), "at least 16"),
        ("conv1d", (64,), r"\[channels, time\]"),
        ("m5", (1, 255), "at least 256 time steps"),
    ],
)
def test_names_that_mean_nothing_are_clear_errors(text: str, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(text, shape, 10)


SHAPES = {
    "cnn": (1, 12, 12),
    "lenet": (1, 16, 16),
    "vgg": (1, 8, 8),
    "conv1d": (3, 16),
    "m5": (1, 256),
    "lstm": (6,),
    "gpt": (6,),
    "llama": (6,),
}


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("hf", "fused")])
def test_every_model_can_be_a_task(name: str) -> None:
    shape, classes = SHAPES.get(name, (12,)), 5
    task = Task(build(name, shape, classes))
    if name in ("lstm", "gpt", "llama"):
        inputs, targets = torch.randint(classes, (3, *shape)), torch.randint(classes, (3, *shape))
    else:
        inputs, targets = torch.randn(3, *shape), torch.randint(classes, (3,))
    task.check(inputs, targets, classes)
    params, buffers = task.initial()
    assert buffers == Tensors()
    loss = task.measure(params, buffers, inputs, targets).loss
    assert loss.shape == (3,)
    assert 0.5 < float(loss.mean()) < 4  # near log 5 before training


@pytest.mark.parametrize(("text", "layers"), [("mlp-bn:32,16", 2), ("lenet-bn", 4), ("logistic-bn", 0)])
def test_batchnorm_between_the_layers(text: str, layers: int) -> None:
    model = build(text, (1, 28, 28), 10)
    norms = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == layers
    assert not isinstance(list(model.modules())[-1], nn.modules.batchnorm._BatchNorm)
    assert model(torch.zeros(3, 1, 28, 28)).shape == (3, 10)
    with pytest.raises(ConfigError, match="BatchNorm cannot be put into CharacterLSTM"):
        build("lstm-bn", (80,), 65)


def test_gpt_predicts_a_token_at_each_position_from_those_before() -> None:
    module = gpt(11, context=6, layers=2, width=16, heads=2).eval()
    tokens = torch.randint(0, 11, (3, 6))
    other = tokens.clone()
    other[:, 4:] = (other[:, 4:] + 1) % 11
    logits, changed = module(tokens), module(other)
    assert logits.shape == (3, 6, 11)
    assert torch.allclose(logits[:, :4], changed[:, :4], atol=1e-6)
    assert not torch.allclose(logits[:, 4:], changed[:, 4:], atol=1e-3)
    assert module(tokens[:, :3]).shape == (3, 3, 11)
    assert 0.85e6 < sum(p.numel() for p in gpt().parameters()) < 0.9e6
    with pytest.raises(ConfigError, match="divided among 3 heads"):
        build("gpt:2,16,3", (6,), 11)
