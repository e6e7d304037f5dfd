"""Inputs of several parts, outputs that are more than a tensor: from a person's data to every engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import atoll
from atoll import calling
from atoll.data import FederatedData
from atoll.errors import ConfigError, DataError
from atoll.parts import Parts

ENGINES = ("loop", "batched", "processes")


@dataclass
class Output:
    loss: Tensor | None
    logits: Tensor


class Reader(nn.Module):
    """Reads tokens and their mask as Hugging Face's models do, and answers with an object."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> Output:
        real = attention_mask.unsqueeze(-1).to(self.embed.weight.dtype)
        mean = (self.embed(input_ids) * real).sum(1) / real.sum(1)
        return Output(None, self.head(mean))


class Sentences(Dataset[dict[str, Any]]):
    """Of different lengths; the label says whether token 1 occurs."""

    def __init__(self, count: int = 90, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.tokens = [
            torch.randint(1, 6, (int(torch.randint(3, 9, (1,), generator=generator)),), generator=generator)
            for _ in range(count)
        ]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Any]:
        tokens = self.tokens[index]
        return {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
            "labels": int((tokens == 1).any()),
        }


KEYS = (("input_ids", "attention_mask"), "labels")


@pytest.fixture(scope="module")
def sentences() -> FederatedData:
    data = atoll.data.from_torch(Sentences(), keys=KEYS, pad=0)
    return data.partition("dirichlet:1", clients=5, validation=0.2, public=12)


def fitted(data: FederatedData, model: Any, method: str = "fedavg", **settings: Any) -> atoll.Run:
    settings = {"rounds": 2, "cohort": 3, "lr": 0.5, "batch_size": 8, **settings}
    return atoll.Federation(model, data, method, **settings).fit(progress=False)


SLOW = ("fedper", "fedproto", "fedora", "per-fedavg", "feddf", "fedmd", "pfedhn")


@pytest.mark.parametrize(
    "method", ["fedavg", "moon", "knn-per", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_every_engine_reads_parts_alike(sentences: FederatedData, method: str) -> None:
    runs = [fitted(sentences, Reader, method, engine=engine, seed=1) for engine in ENGINES]
    first = runs[0].evaluation
    assert first is not None
    for run in runs[1:]:
        other = run.evaluation
        assert other is not None
        assert other.overall == pytest.approx(first.overall, rel=1e-4)
        if first.personal:
            assert other.personal["loss"].mean == pytest.approx(first.personal["loss"].mean, rel=1e-4)


def test_parts_are_what_one_tensor_of_them_would_be(sentences: FederatedData) -> None:
    class Stacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Reader()

        def forward(self, both: Tensor) -> Tensor:
            return self.inner(both[:, 0], both[:, 1]).logits

    whole = sentences.pool()
    assert whole is not None
    assert isinstance(whole.inputs, Parts)
    data = atoll.data.from_torch(Sentences(), keys=KEYS, pad=0)
    assert isinstance(data.train.inputs, Parts)
    stacked = torch.stack(data.train.inputs.values(), 1)
    one = atoll.data.from_arrays(stacked, data.train.targets)
    divided = one.partition("dirichlet:1", clients=5, validation=0.2, public=12)
    runs = [fitted(sentences, Reader), fitted(divided, Stacked)]
    assert runs[0].history("loss") == runs[1].history("loss")


def test_a_loader_puts_its_items_together_itself() -> None:
    def collate(items: list[dict[str, Any]]) -> dict[str, Tensor]:
        tokens = nn.utils.rnn.pad_sequence([each["input_ids"] for each in items], batch_first=True)
        labels = torch.tensor([each["labels"] for each in items])
        return {"input_ids": tokens, "attention_mask": (tokens != 0).long(), "labels": labels}

    loader = DataLoader(Sentences(), 4, collate_fn=collate)
    one = atoll.data.from_torch(loader, keys=KEYS).train
    other = atoll.data.from_torch(Sentences(), keys=KEYS, pad=0).train
    assert isinstance(one.inputs, Parts)
    assert isinstance(other.inputs, Parts)
    for a, b in zip(one.inputs.values(), other.inputs.values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("dataset", "hint"),
    [
        (Sentences(), "keys=(('input_ids', 'attention_mask'), 'labels')"),
        (TensorDataset(torch.zeros(6, 2), torch.arange(6) % 2, torch.zeros(6)), "keys=(0, 1)"),
    ],
)
def test_fields_that_leave_it_open_are_asked_for(dataset: Any, hint: str) -> None:
    with pytest.raises(DataError, match="which are the inputs, and which is the target") as caught:
        atoll.data.from_torch(dataset)
    assert hint in str(caught.value.hint)
    keys = eval(hint.removeprefix("keys="))
    assert atoll.data.from_torch(dataset, keys=keys, pad=0).classes == 2


class Triples(Dataset[tuple[Tensor, int, str]]):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[Tensor, int, str]:
        return torch.full((2,), float(index)), index % 2, "somewhere"


def test_items_of_three_parts_by_position() -> None:
    data = atoll.data.from_torch(Triples(), keys=(0, 1))
    assert isinstance(data.train.inputs, Tensor)
    assert data.train.inputs[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(DataError, match="has no field 5"):
        atoll.data.from_torch(Triples(), keys=(0, 5))


# --- shapes ---------------------------------------------------------------------------------------------------------


def test_samples_of_different_shapes_are_filled_up_on_request() -> None:
    graphs = [({"x": torch.ones(n, 2), "adj": torch.ones(n, n)}, n % 2) for n in (2, 4, 3)]
    with pytest.raises(DataError, match=r"inputs 'x' of different samples differ in shape .*") as caught:
        atoll.data.from_torch(graphs)
    assert "pad=0" in str(caught.value.hint)
    inputs = atoll.data.from_torch(graphs, pad={"x": 0, "adj": -1}).train.inputs
    assert isinstance(inputs, Parts)
    x, adjacent = inputs.values()
    assert x.shape == (3, 4, 2)
    assert x[0, :, 0].tolist() == [1, 1, 0, 0]
    assert adjacent[2].tolist() == [[1, 1, 1, -1]] * 3 + [[-1, -1, -1, -1]]


def test_all_clients_and_both_splits_get_one_shape() -> None:
    def some(length: int) -> tuple[list[Tensor], list[int]]:
        return [torch.arange(1, length + 1), torch.tensor([7])], [0, 1]

    data = atoll.data.from_clients(
        {"a": {"train": some(2), "test": some(5)}, "b": {"train": some(3), "test": some(1)}}, pad=0
    )
    found = [data.samples(k, split) for k in (0, 1) for split in ("train", "test")]
    assert [each.inputs.shape for each in found if each is not None and isinstance(each.inputs, Tensor)] == [
        (2, 5)
    ] * 4
    assert found[0] is not None
    assert isinstance(found[0].inputs, Tensor)
    assert found[0].inputs.tolist() == [[1, 2, 0, 0, 0], [7, 0, 0, 0, 0]]


def test_targets_of_different_lengths_are_filled_up_with_labels_that_do_not_count() -> None:
    words = [torch.tensor([3, 4, 5]), torch.tensor([6])]
    data = atoll.data.from_arrays(words, [[0, 1, 2], [1]], pad=0)
    assert data.train.targets.tolist() == [[0, 1, 2], [1, -1, -1]]
    assert data.classes == 3


def test_lists_of_tokens() -> None:
    data = atoll.data.from_arrays([[3, 4, 5], [6]], [0, 1], pad=0)
    assert isinstance(data.train.inputs, Tensor)
    assert data.train.inputs.tolist() == [[3, 4, 5], [6, 0, 0]]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ({"a": torch.zeros(3, 2), "b": torch.zeros(2, 2)}, "2 inputs 'b' but 3 targets"),
        (
            {"a": torch.tensor([[1.0], [float("nan")], [0.0]])},
            r"the inputs 'a' hold NaN or infinite values in row 1",
        ),
        ({"a": ["x", "y", "z"]}, "the inputs 'a' are"),
        ({}, "a mapping without anything in it"),
    ],
)
def test_what_is_wrong_with_a_part_is_said_of_it(x: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        atoll.data.from_arrays(x, [0, 1, 0])


# --- calling --------------------------------------------------------------------------------------------------------


class Named(nn.Module):
    def forward(self, a: Tensor, *, b: Tensor) -> Tensor:
        return a - b


class Whole(nn.Module):
    def forward(self, both: Any) -> Tensor:
        a, b = both.values() if isinstance(both, dict) else both
        return a - b


class Two(nn.Module):
    def forward(self, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        return a - b


class Any_(nn.Module):
    def forward(self, *parts: Tensor, **named: Tensor) -> Tensor:
        a, b = parts or named.values()
        return a - b


@pytest.mark.parametrize(
    ("module", "parts"),
    [
        (Named(), {"b": 1, "a": 3}),
        (Whole(), {"x": 3, "y": 1}),
        (Whole(), [3, 1]),
        (Two(), [3, 1]),
        (Two(), {"b": 1, "a": 3}),
        (Any_(), [3, 1]),
        (Any_(), {"x": 3, "y": 1}),
    ],
)
def test_how_a_forward_gets_its_parts(module: nn.Module, parts: Any) -> None:
    tensors = {n: torch.tensor([v]) for n, v in parts.items()} if isinstance(parts, dict) else None
    places, names = calling.arguments(module, Parts(tensors or [torch.tensor([v]) for v in parts]))
    assert module(*places, **names).tolist() == [2]


def test_a_model_that_does_not_take_the_parts_is_told_which_there_are(sentences: FederatedData) -> None:
    with pytest.raises(ConfigError, match=r"inputs of the parts input_ids 8, attention_mask 8 gave"):
        atoll.Federation(nn.Linear(8, 2), sentences)


# --- outputs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("give", "loss"),
    [
        (lambda z: z, lambda out, y: F.cross_entropy(out, y, reduction="none")),
        (lambda z: (z, "more"), lambda out, y: F.cross_entropy(out[0], y, reduction="none")),
        (lambda z: {"logits": z}, lambda out, y: F.cross_entropy(out["logits"], y, reduction="none")),
        (lambda z: Output(None, z), lambda out, y: F.cross_entropy(out.logits, y, reduction="none")),
    ],
)
@pytest.mark.parametrize("method", ["fedavg", "knn-per"])
def test_outputs_of_any_kind_and_losses_that_get_all_of_them(give: Any, loss: Any, method: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Any:
            return give(self.head(torch.tanh(self.body(x))))

    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    data = atoll.data.from_arrays(x, (x[:, 0] > 0).long()).partition("iid", clients=3, validation=0.2)
    own = fitted(data, Model, method, loss=loss, metrics="auc", engine="loop").evaluation
    usual = fitted(data, Model, method, metrics="auc, accuracy", engine="loop").evaluation
    assert own is not None
    assert usual is not None
    assert own.overall == pytest.approx({name: usual.overall[name] for name in own.overall})


def test_metrics_of_ones_own_get_all_that_a_model_gives(sentences: FederatedData) -> None:
    def empty(out: Output, y: Tensor) -> Tensor:
        return torch.full((len(y),), 0.25 if out.loss is None else 0.75) + 0 * out.logits[:, 0]

    for metrics in ({"empty": empty}, {"empty": atoll.Metric(empty, better="lower")}):
        evaluation = fitted(sentences, Reader, metrics=metrics, rounds=1, engine="loop").evaluation
        assert evaluation is not None
        assert evaluation.overall["empty"] == 0.25


def test_outputs_without_logits_are_refused_by_name(sentences: FederatedData) -> None:
    class Odd(Reader):
        def forward(self, *args: Any, **named: Any) -> Any:
            return {"score": super().forward(*args, **named).logits}

    with pytest.raises(ConfigError, match="gives a dict, in which nothing is called logits"):
        atoll.Federation(Odd, sentences)


# --- what data can do -----------------------------------------------------------------------------------------------


def test_parts_are_saved_divided_and_published(sentences: FederatedData, tmp_path: Any) -> None:
    again = FederatedData.load(sentences.save(tmp_path / "data.npz"))
    for data in (again, sentences.choose([3, 0]).choose([1])):
        one, other = data.samples(0), sentences.samples(0)
        assert one is not None
        assert other is not None
        assert isinstance(one.inputs, Parts)
        assert isinstance(other.inputs, Parts)
        assert dict(one.inputs.items()).keys() == dict(other.inputs.items()).keys()
        assert all(torch.equal(a, b) for a, b in zip(one.inputs.values(), other.inputs.values(), strict=True))
    assert again.public is not None
    assert len(again.public.inputs) == 12
    with pytest.raises(DataError, match="3 public inputs are of shape"):
        sentences.publish(torch.zeros(3, 8))


def test_partitions_that_change_pictures_want_pictures() -> None:
    data = atoll.data.from_arrays((torch.zeros(40, 5), torch.zeros(40, 3)), torch.arange(40) % 2)
    assert repr(data) == "<Dataset arrays: 40 train, inputs 0 5, 1 3, 2 classes>"
    with pytest.raises(ConfigError, match="noise needs inputs that are one tensor"):
        data.partition("noise:0.1", clients=4)


def test_attention_is_captured_and_batched() -> None:
    """Its kernels could drop units, and draw for that; the fast path of evaluation has no batching rules."""

    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True)
            self.embed, self.encoder = nn.Embedding(20, 8), nn.TransformerEncoder(layer, 1)
            self.head = nn.Linear(8, 2)

        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            return self.head(self.encoder(self.embed(ids), src_key_padding_mask=~mask).mean(1))

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 20, (40, 5), generator=generator)
    mask = torch.rand(40, 5, generator=generator) < 0.8
    mask[:, 0] = True
    data = atoll.data.from_arrays((ids, mask), (ids == 1).any(1).long()).partition("iid", clients=3)
    losses = [
        fitted(data, Attends, "fedper", engine=engine, rounds=1, batch_size=None, lr=0.1).evaluation
        for engine in ENGINES
    ]
    values = [each.personal["loss"].mean for each in losses if each is not None]
    assert values[1:] == pytest.approx([values[0]] * 2, rel=1e-5)
