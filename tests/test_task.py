"""Pure functions of a module: masks, streams, buffers, losses."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap

from atoll.errors import ConfigError
from atoll.purity import as_batched
from atoll.task import Batch, Task
from atoll.tensors import Tensors


def batch(inputs: Tensor, classes: int = 3, mask: Tensor | None = None, key: int = 5) -> Batch:
    targets = torch.arange(len(inputs)) % classes
    return Batch(inputs, targets, torch.ones(len(inputs)) if mask is None else mask, torch.tensor(key))


def padded(b: Batch, rows: int) -> Batch:
    extra = rows - len(b.mask)
    junk = torch.full((extra, *b.inputs.shape[1:]), 7.0)
    return Batch(
        torch.cat([b.inputs, junk]), torch.cat([b.targets, b.targets.new_zeros(extra)]),
        torch.cat([b.mask, torch.zeros(extra)]), b.key,
    )  # fmt: skip


class Norms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4, momentum=0.2)
        self.drop = nn.Dropout2d(0.3)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(4 * 16, 8), nn.BatchNorm1d(8), nn.Dropout(0.4), nn.Linear(8, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(torch.relu(self.norm(self.convolution(x)))))  # type: ignore[no-any-return]


def test_padding_is_in_no_total() -> None:
    off = {"off": lambda o, t: (o.argmax(1) - t).abs().float()}
    for metrics in (off, "auc, mae, macro_f1"):
        task = Task(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), metrics=metrics)
        b = batch(torch.randn(5, 4))
        short, long = (task.totals(*task.initial(), each) for each in (b, padded(b, 8)))
        assert short["count"] == long["count"] == 5
        for name in ("loss", *(part for part in short if part != "loss")):
            torch.testing.assert_close(long[name].nansum(), short[name].nansum())
        for name, metric in task.metrics.items():
            one, other = (
                metric.value([{n: v.numpy() for n, v in each.items()}], name) for each in (short, long)
            )
            assert one == pytest.approx(other, rel=1e-6)


@pytest.mark.parametrize("batched", [False, True])
def test_padding_changes_nothing(batched: bool) -> None:
    task = Task(Norms())
    params, buffers = task.initial()
    b = batch(torch.randn(5, 2, 4, 4))
    gradient, loss, new = task.gradient(params, buffers, b)
    if batched:
        stacked = [t.unsqueeze(0) for t in padded(b, 8)]
        with as_batched():
            more = vmap(lambda *x: task.gradient(params, buffers, Batch(*x)))(*stacked)
        gradient2, loss2, new2 = (
            Tensors({n: t[0] for n, t in more[0].items()}),
            more[1][0],
            Tensors({n: t[0] for n, t in more[2].items()}),
        )
    else:
        gradient2, loss2, new2 = task.gradient(params, buffers, padded(b, 8))
    torch.testing.assert_close(loss, loss2)
    torch.testing.assert_close(gradient.flat(), gradient2.flat(), rtol=1e-4, atol=1e-6)
    for name, value in new.items():
        torch.testing.assert_close(value, new2[name])


def test_batchnorm_is_torchs_own_on_full_batches() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    task = Task(module)
    params, buffers = task.initial()
    x = torch.randn(9, 3)
    loss, new = task.loss(params, buffers, batch(x))
    module.train()
    want = nn.functional.cross_entropy(module(x), torch.arange(9) % 3)
    torch.testing.assert_close(loss, want)
    for name, value in module.named_buffers():
        torch.testing.assert_close(new[name], value)
    assert int(buffers["1.num_batches_tracked"]) == 0  # what came in is left alone


def test_batchnorm_survives_a_single_sample() -> None:
    task = Task(nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)))
    params, buffers = task.initial()
    gradient, loss, new = task.gradient(params, buffers, batch(torch.randn(1, 3)))
    assert torch.isfinite(gradient.flat()).all() and torch.isfinite(loss)
    assert torch.equal(new["1.running_var"], buffers["1.running_var"])


def test_dropout_is_a_function_of_the_key() -> None:
    task = Task(nn.Sequential(nn.Dropout(0.25), nn.Identity(), nn.Dropout(0.25)))
    task.module.register_parameter("unused", nn.Parameter(torch.zeros(1)))
    empty = Tensors()
    x = torch.ones(200, 50)
    one, _ = task.predict(empty, empty, x, batch=batch(x, key=1))
    same, _ = task.predict(empty, empty, x, batch=batch(x, key=1))
    other, _ = task.predict(empty, empty, x, batch=batch(x, key=2))
    still, _ = task.predict(empty, empty, x)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(still, x)
    assert float((one == 0).float().mean()) == pytest.approx(
        1 - 0.75**2, abs=0.02
    )  # the two layers draw apart
    assert float(one.mean()) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_plain_recurrent_layers_are_torchs(kind: str, bidirectional: bool, bias: bool) -> None:
    options = {"num_layers": 2, "batch_first": True, "bidirectional": bidirectional, "bias": bias}
    if kind.startswith("rnn"):
        layer: nn.RNNBase = nn.RNN(4, 5, nonlinearity=kind.removeprefix("rnn_"), **options)  # type: ignore[arg-type]
    else:
        layer = {"lstm": nn.LSTM, "gru": nn.GRU}[kind](4, 5, **options)

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            outputs, hidden = self.layer(x)
            return torch.cat(
                [
                    outputs[:, -1],
                    outputs[:, 0],
                    (hidden[0] if kind == "lstm" else hidden).movedim(1, 0).flatten(1),
                ],
                1,
            )

    task = Task(Last(), "mse")
    params, buffers = task.initial()
    x = torch.randn(3, 6, 4)
    want, _ = task.predict(params, buffers, x)
    with as_batched():
        got, _ = task.predict(params, buffers, x)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_attention_dropout_zero_is_torchs_and_one_spelt_out_is_close_in_mean() -> None:
    torch.manual_seed(0)

    class Attend(nn.Module):
        def __init__(self, dropout: float) -> None:
            super().__init__()
            self.layer = nn.MultiheadAttention(8, 2, dropout=dropout, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            mask = torch.ones(6, 6, dtype=torch.bool).triu(1)
            return self.layer(x, x, x, attn_mask=mask, need_weights=False)[0]  # type: ignore[no-any-return]

    exact, dropped = Task(Attend(0.0)), Task(Attend(1e-9))
    params, buffers = exact.initial()
    x = torch.randn(4, 6, 8)
    want, _ = exact.predict(params, buffers, x, batch=batch(x))
    got, _ = dropped.predict(params, buffers, x, batch=batch(x))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("loss", "outputs", "targets", "want"),
    [
        ("cross_entropy", torch.zeros(2, 3), torch.tensor([0, 2]), [1.0986, 1.0986]),
        (
            "cross_entropy",
            torch.zeros(2, 5, 3),
            torch.tensor([[0, 1, -1, -1, -1], [2, 2, 2, 2, 2]]),
            [1.0986, 1.0986],
        ),
        ("cross_entropy", torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64), [1.0986, 1.0986]),
        ("bce", torch.zeros(2, 1), torch.tensor([0.0, 1.0]), [0.6931, 0.6931]),
        ("mse", torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 4.0], [3.0, 4.0]]), [2.0, 0.0]),
        ("l1", torch.tensor([1.0, 2.0]), torch.tensor([[2.0], [4.0]]), [1.0, 2.0]),
    ],
)
def test_losses_are_per_sample(loss: str, outputs: Tensor, targets: Tensor, want: list[float]) -> None:
    module = nn.Linear(1, 1)
    assert Task(module, loss).loss_function(outputs, targets).tolist() == pytest.approx(want, abs=1e-3)


def test_own_metrics_are_measured_beside_the_loss() -> None:
    task = Task(
        nn.Linear(2, 3), metrics={"top2": lambda o, t: (o.topk(2).indices == t[:, None]).any(1).float()}
    )
    params, buffers = task.initial()
    measured = task.measure(params, buffers, torch.randn(6, 2), torch.arange(6) % 3)
    assert set(measured) == {"loss", "accuracy", "top2"}
    assert measured.top2.shape == (6,)


def test_models_without_anything_to_train_are_refused() -> None:
    model = nn.Linear(2, 2)
    for p in model.parameters():
        p.requires_grad_(False)
    with pytest.raises(ConfigError, match="no trainable"):
        Task(model).initial()


@pytest.mark.parametrize(
    ("outputs", "targets", "shapes"), [((1,), (), r"\(2, 1\).*\(2,\)"), ((), (1,), r"\(2,\).*\(2, 1\)")]
)
def test_losses_that_broadcast_are_refused(
    outputs: tuple[int, ...], targets: tuple[int, ...], shapes: str
) -> None:
    model = nn.Sequential(nn.Linear(3, 1), *([] if outputs else [nn.Flatten(0)]))
    inputs, wanted = torch.randn(1, 3), torch.randn(1, *targets)
    for loss in (
        nn.HuberLoss(reduction="none"),
        nn.MSELoss(reduction="none"),
        lambda o, t: (o - t).square().reshape(len(t), -1).mean(1),
    ):
        with pytest.raises(
            ConfigError, match=f"compares every output with every target: .*{shapes}"
        ) as caught:
            Task(model, loss).check(inputs, wanted, None)
        assert "nn.Flatten(0)" in str(caught.value.hint)

    def off(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).abs().reshape(len(targets), -1).amax(1)

    with pytest.raises(ConfigError, match="off compares"):
        Task(model, "mse", {"off": off}).check(inputs, wanted, None)
    Task(model, lambda o, t: (o.flatten() - t.flatten()).square()).check(inputs, wanted, None)
    Task(model, "mse").check(inputs, wanted, None)
    Task(model, nn.HuberLoss(reduction="none")).check(inputs, wanted.reshape(1, *outputs), None)


def test_losses_and_metrics_that_fail_are_named() -> None:
    model, inputs, labels = nn.Linear(3, 4), torch.randn(1, 3), torch.tensor([[1, 0, 1, 0]])
    logits = nn.BCEWithLogitsLoss(reduction="none")
    with pytest.raises(
        ConfigError, match=r"the loss cannot .* \(1, 4\) float32 .* \(1, 4\) int64: RuntimeError"
    ) as caught:
        Task(model, logits).check(inputs, labels, 2)
    assert "targets.float()" in str(caught.value.hint)
    Task(model, lambda o, t: logits(o, t.float())).check(inputs, labels, 2)
    with pytest.raises(ConfigError, match="the metric top cannot compare"):
        Task(model, "bce", {"top": lambda o, t: o.gather(1, t + 9)}).check(inputs, labels, 2)
    with pytest.raises(ConfigError, match="for labels of shape") as caught:
        Task(model).check(inputs, labels, 2)
    assert caught.value.hint == 'several yes-or-no labels a sample are for loss="bce"'


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_packed_sequences_train_as_torch_trains_them(kind: type[nn.RNNBase]) -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 3)
            self.layer = kind(3, 4, num_layers=2, batch_first=True, bidirectional=True)
            self.head = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            lengths = (x[:, :, 0] != 0).sum(1)
            packed = nn.utils.rnn.pack_padded_sequence(
                self.first(x), lengths, batch_first=True, enforce_sorted=False
            )
            outputs, hidden = self.layer(packed)
            last = (hidden[0] if kind is nn.LSTM else hidden).movedim(0, 1).flatten(1)
            assert isinstance(last, Tensor)
            return self.head(last) + outputs.data.mean()  # type: ignore[no-any-return]

    torch.manual_seed(0)
    module = Packed()
    task = Task(module)
    x = torch.randn(5, 6, 3)
    for row, length in enumerate((6, 2, 4, 2, 1)):
        x[row, length:] = 0
    params, buffers = task.initial()
    gradient, loss, _ = task.gradient(params, buffers, batch(x))
    wanted = nn.functional.cross_entropy(module(x), torch.arange(5) % 3)
    wanted.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss, wanted.detach())
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(gradient[name], parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "width"),
    [(nn.Conv2d(1, 5, (3, 4), (1, stride)), width) for width in (4, 5, 6, 7) for stride in (1, 2, 3)]
    + [(nn.Conv2d(4, 12, (3, 1), (3, 2), (1, 1), (1, 2), groups=2), 1)],
)
def test_narrow_images(layer: nn.Module, width: int) -> None:
    """With channels last oneDNN reads beside images or outputs of one column: garbage, or a segmentation fault."""
    torch.manual_seed(0)
    network = nn.Sequential(copy.deepcopy(layer), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3))
    b = batch(torch.randn(6, layer.in_channels, 6, width))  # type: ignore[arg-type]
    network(b.inputs)
    task = Task(network)
    got, loss, _ = task.gradient(*task.initial(), b)
    network.double().zero_grad()
    value = nn.functional.cross_entropy(network(b.inputs.double()), b.targets)
    value.backward()
    torch.testing.assert_close(loss, value.float())
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad.float())  # type: ignore[union-attr]


def test_checks_leave_the_initial_model_as_it_is() -> None:
    """Also where a forward writes into what it is called with."""

    class Counting(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 2)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen += 1
            self.weight.data.mul_(0.5)
            return super().forward(x)

    module = Counting()
    task = Task(module)
    task.check(torch.randn(1, 3), torch.tensor([1]), 2)
    params, buffers = task.initial()
    assert torch.equal(params["weight"], module.weight) and float(buffers["seen"]) == 0


def test_a_layer_with_two_names_keeps_its_parameters() -> None:
    layer = nn.Linear(4, 4)
    task = Task(nn.Sequential(layer, nn.Tanh(), layer))
    inputs = torch.randn(3, 4)
    wanted = task.module(inputs)
    params, buffers = task.initial()
    assert list(params) == ["0.weight", "0.bias"]
    outputs, _ = task.predict(params, buffers, inputs)
    torch.testing.assert_close(outputs, wanted)
    assert isinstance(task.module[0].weight, nn.Parameter) and task.module[0].weight.requires_grad


def test_a_tensor_that_two_layers_share_is_one_in_both() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    task = Task(nn.Sequential(first, second))
    params, buffers = task.initial()
    doubled = Tensors({**params, "0.weight": params["0.weight"] * 2})
    inputs = torch.randn(3, 4)
    outputs, _ = task.predict(doubled, buffers, inputs)
    hidden = inputs @ doubled["0.weight"].T + params["0.bias"]
    torch.testing.assert_close(outputs, hidden @ doubled["0.weight"].T + params["1.bias"])
