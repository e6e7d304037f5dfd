"""A node's data are what a simulation of all clients gives to the client at its place, to the bit."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from atoll.codec import encode
from atoll.contract import Order, Population
from atoll.data import FederatedData, from_arrays, from_clients, from_frame, load
from atoll.engines.client import Client
from atoll.engines.sequential import Sequential
from atoll.errors import AtollError, ConfigError, DataError
from atoll.methods import FedAvg
from atoll.network.elsewhere import alike, form_of
from atoll.network.here import Here, describe
from atoll.network.reading import asked
from atoll.network.wire import Plan, pack, unpack
from atoll.networks import architectures, networks
from tests.data.test_media import tone, write

ROOT = Path(os.environ.get("ATOLL_DATA", "absent"))
CPU = torch.device("cpu")
METHOD = FedAvg(epochs=2, batch_size=8, momentum=0.5)
SPLITS = ("train", "validation", "test")


def has(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not (ROOT / name).exists(), reason=f"ATOLL_DATA has no {name}")


def plan(**changes: Any) -> Plan:
    """A plan as it comes over the wire."""
    given = Plan(
        method="fedavg", hyper={}, model="mlp:8", loss=None, metrics=None, augment=None, channel=None, dp_sgd=None,
        seed=3, engine="processes", data={}, validation=0.2, test="auto", rounds=10, cohort=None,
    )  # fmt: skip
    return unpack(pack(msgspec.structs.replace(given, **changes)), Plan)


def answers(data: FederatedData, client: int, runner: type[Client], model: str, seed: int) -> list[bytes]:
    """What a client answers in a round, and of the next; and what it says of the model."""
    tasks = architectures(networks(model, data), data, METHOD, seed, None, None)
    worker = runner(tasks[0], data, CPU)
    state = METHOD.setup(tasks[0], Population(10, tasks, data.example().inputs[:1], None, seed))
    work, memory, found = METHOD.broadcast(state, [client]), None, []
    for number, name in ((1, "train"), (2, "train"), (2, "evaluate")):
        if name == "evaluate" and data.held(client, "test") is None:
            continue
        order = Order(client, number, seed, name, work.received(client))
        answer, memory = worker.answer(order, METHOD.program(name), memory)
        found.append(encode(answer.to_record()))
    return found


def check(
    sources: Mapping[str, Any],
    sent: Plan,
    numbers: tuple[int, ...],
    runner: type[Client] = Client,
    source_of: Callable[[str], str] = str,
    model: str = "mlp:8",
) -> list[Here]:
    """Some nodes' data against the simulation of all."""
    given = {key: value for key, value in sent.data.items() if value is not None}
    whole = from_clients(sources, test=sent.test, validation=sent.validation, seed=sent.seed, **given)
    whole = whole if sent.augment is None else whole.augment(sent.augment)
    made = []
    for number in numbers:
        name = list(sources)[number]
        here = Here.load(source_of(str(sources[name])), number, name, sent)
        assert (here.names[number], here.classes, here.size(number)) == (
            name,
            whole.classes,
            whole.size(number),
        )
        for split in SPLITS:
            one, other = here.samples(number, split), whole.samples(number, split)
            assert here.held(number, split) == whole.held(number, split)
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                assert torch.equal(one.inputs, other.inputs)
                assert torch.equal(one.targets, other.targets)
        assert alike(form_of(whole, number), form_of(here, number)) is None
        assert answers(here, number, runner, model, sent.seed) == answers(
            whole, number, runner, model, sent.seed
        )
        made.append(here)
    return made


# --- tables ---------------------------------------------------------------------------------------------------------

_SEX = ("male", "female")


@pytest.fixture
def tables(tmp_path: Path) -> dict[str, Path]:
    """Clients whose columns stand in another order, lack values of a category, a class, and have gaps of their own."""
    rng, found = np.random.default_rng(0), {}
    for at, count in enumerate((23, 40, 9)):
        rows = [
            (
                str(rng.integers(20, 90)),
                "" if at == 1 and row == 3 else f"{rng.normal():.3f}",
                _SEX[rng.integers(0, 2)] if at != 2 else "male",
                "yes" if at != 2 and rng.random() < 0.4 else "no",
            )
            for row in range(count)
        ]
        columns, order = ("age", "bp", "sex", "ill"), np.roll(np.arange(4), at)
        lines = [
            ",".join(columns[k] for k in order),
            *(",".join(each) for each in ([row[k] for k in order] for row in rows)),
        ]
        found[f"site-{at}"] = tmp_path / f"site-{at}.csv"
        found[f"site-{at}"].write_text("\n".join(lines) + "\n")
    return found


STATED = {
    "label": "ill",
    "features": "age,bp,sex",
    "categorical": "sex:male|female",
    "classes": "no,yes",
    "missing": "zero",
    "scale": "age:50:15",
}


@pytest.mark.parametrize("runner", [Client, Sequential])
def test_tables(tables: dict[str, Path], runner: type[Client]) -> None:
    nodes = check(tables, plan(data=STATED), (0, 1, 2), runner)
    assert nodes[2].classes == 2  # though nobody is ill there
    assert describe(nodes[2]) == [
        "samples: 6 to train on, 1 to validate on, 2 to test on",
        "inputs: of shape 4, from age, bp, sex; to predict: ill",
        "classes: no 100 %, yes 0 %",
    ]


def test_what_is_drawn_follows_from_the_place(tables: dict[str, Path]) -> None:
    source = str(tables["site-1"])
    first, second = (Here.load(source, number, "a", plan(data=STATED)).samples(number) for number in (0, 1))
    assert first is not None
    assert second is not None
    assert not torch.equal(first.inputs, second.inputs)


@pytest.mark.parametrize(
    "changes",
    [
        {"test": 0.5, "validation": 3},
        {"test": None, "validation": 0},
        {"augment": "noise:0.1"},
        {"data": {**STATED, "missing": "drop", "features": ["sex", "age", "bp"]}},
        {"data": {**STATED, "label": "bp", "features": "age", "classes": "regression", "categorical": None}},
    ],
)
def test_plans(tables: dict[str, Path], changes: dict[str, Any]) -> None:
    if "data" in changes and changes["data"]["label"] == "bp":
        changes["data"]["missing"] = "drop"
    check(tables, plan(**{"data": STATED, **changes}), (1,))


def test_a_coordinators_own_samples_are_all_there_to_train_on(tables: dict[str, Path]) -> None:
    """As they are: what a plan keeps of nodes' for tests, and how it varies theirs, is nodes' affair."""
    sent = plan(data=STATED, test=0.5, validation=3, augment="noise:0.1")
    root = Here.of_root(str(tables["site-1"]), sent)
    node = Here.load(str(tables["site-1"]), 0, "node", sent)
    assert node.size(0) < root.size(root.number) == 40
    assert not root.held(root.number, "test") and not root.held(root.number, "validation")
    assert root.augmentation is None and node.augmentation is not None


def test_a_folder_with_a_test_file(tables: dict[str, Path], tmp_path: Path) -> None:
    folders = {}
    for name, path in tables.items():
        folders[name] = tmp_path / name
        folders[name].mkdir()
        for split in ("train", "test"):
            (folders[name] / f"{split}.csv").write_bytes(path.read_bytes())
    sources = {
        name: {split: folder / f"{split}.csv" for split in ("train", "test")}
        for name, folder in folders.items()
    }
    by_text = {str(value): str(folders[name]) for name, value in sources.items()}
    check(sources, plan(data=STATED), (1,), source_of=by_text.__getitem__)
    (folders["site-1"] / "more.csv").write_text("a\n1\n")
    with pytest.raises(DataError, match="is not one client's data"):
        Here.load(str(folders["site-1"]), 1, "site-1", plan(data=STATED))


@pytest.fixture
def recordings(tmp_path: Path) -> dict[str, Path]:
    """Clients with a folder for each class, of rates and lengths of their own; the last lacks a class."""
    for at, (name, rate) in enumerate((("ann", 8000), ("bob", 11025), ("cat", 8000))):
        for label in ("no", "yes")[: 2 - at // 2]:
            for take in range(5):
                write(tmp_path / name / label / f"{take}.wav", tone(take + 10 * at, 500 + 40 * at), rate)
    return {name: tmp_path / name for name in ("ann", "bob", "cat")}


SOUND = {"rate": 8000, "seconds": 0.06, "classes": "no,yes"}


def test_folders_of_recordings(recordings: dict[str, Path]) -> None:
    nodes = check(recordings, plan(data=SOUND), (0, 1, 2))
    assert nodes[1].columns == ("audio",)
    assert describe(nodes[1])[1] == (
        "inputs: of shape 32x2, from recordings; to predict: the class whose folder they are in"
    )
    waves = check(recordings, plan(data={**SOUND, "waves": True}), (1,))
    assert waves[0].example().inputs.shape[1:] == (1, 480)


def test_what_no_folder_of_recordings_can_know_is_refused(recordings: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"rate recordings are read.*how long a recording") as caught:
        Here.load(str(recordings["ann"]), 0, "ann", plan(data={"classes": "no,yes"}))
    assert "rate = 16000" in str(caught.value.hint) and "seconds = 1" in str(caught.value.hint)
    for data, message in (
        ({**SOUND, "label": "ill"}, "a folder of recordings has no option 'label'"),
        ({**SOUND, "pixels": 8}, "a folder of recordings has no option 'pixels'"),
        ({**SOUND, "classes": 2}, "have names: no, yes"),
        ({**SOUND, "rate": 0}, "int` >= 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            Here.load(str(recordings["ann"]), 0, "ann", plan(data=data))


def test_recordings_are_asked_for_where_there_are_none(tables: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="has no option 'rate'"):
        Here.load(str(tables["site-1"]), 1, "b", plan(data={**STATED, "rate": 8000}))


def test_folders_of_pictures(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for at, name in enumerate(("ann", "bob")):
        for label in ("a", "b"):
            for take in range(4):
                (folder := tmp_path / name / label).mkdir(parents=True, exist_ok=True)
                values = np.random.default_rng([at, take]).integers(0, 255, (9 + at, 8, 3), np.uint8)
                image.fromarray(values).save(folder / f"{take}.png")
    sources = {name: tmp_path / name for name in ("ann", "bob")}
    data = {"pixels": "6x5", "classes": "a,b"}
    (bob,) = check(sources, plan(data=data), (1,))
    assert bob.example().inputs.shape[1:] == (3, 6, 5)
    with pytest.raises(ConfigError, match="which size pictures have"):
        Here.load(str(sources["ann"]), 0, "ann", plan(data={"classes": "a,b"}))


def test_own_code(
    tables: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "own_patients.py").write_text(
        "import numpy as np\n"
        "def array():\n    return np.arange(40, dtype='float32').reshape(20, 2), np.arange(20) % 3\n"
        "def broken():\n    raise KeyError('rows')\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    request.addfinalizer(lambda: sys.modules.pop("own_patients", None))
    x, y = np.arange(40, dtype="float32").reshape(20, 2), np.arange(20) % 3
    sent = plan(data={"classes": 3})
    check({"a": (x[:9], y[:9]), "b": (x, y)}, sent, (1,), source_of=lambda _: "own_patients:array")
    for name, message in {
        "broken": "raised KeyError",
        "number": "is a int, and no function",
        "absent": "has no absent",
    }.items():
        with pytest.raises(AtollError, match=message):
            Here.load(f"own_patients:{name}", 0, "a", sent)


# --- what the plan must say -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("classes", None, 'which classes there are(.|\n)*classes = "no,yes"'),
        ("features", None, 'differ from site to site(.|\n)*features = "age,bp,sex"'),
        ("label", None, "to be predicted(.|\n)*label = one of ill, age, bp, sex"),
        ("categorical", "sex", 'differ from site to site(.|\n)*categorical = "sex:no|yes"'),
        ("categorical", "text", "which values each column of text has"),
        ("missing", "mark", 'have gaps(.|\n)*missing = "zero"'),
        ("scale", "federated", 'sums over nodes(.|\n)*scale = "age:50:15"'),
        ("scale", ["federated"], "sums over nodes"),
        ("featurs", "age", "did you mean 'features'"),
        ("features", 5, "Expected `str | array | null`"),
        ("missing", "fill", "Invalid enum value"),
    ],
)
def test_what_no_site_can_know_is_refused(
    tables: dict[str, Path], key: str, value: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Here.load(str(tables["site-1"]), 1, "b", plan(data={**STATED, key: value}))


def test_all_that_is_missing_is_said_at_once(tables: dict[str, Path]) -> None:
    with pytest.raises(ConfigError) as caught:
        Here.load(str(tables["site-0"]), 0, "a", plan())
    assert caught.value.hint is not None
    for key in ("classes", "label", "features"):
        assert f"{key} = " in caught.value.hint


def test_a_category_in_a_column_with_a_colon(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("sex:m|f,y\nm,0\nf,1\nm,1\n")
    data = {"label": "y", "features": ["sex:m|f"], "categorical": ["sex:m|f"], "classes": 2}
    with pytest.raises(ConfigError, match="which values sex:m"):
        Here.load(str(path), 0, "a", plan(data=data))


def test_values_that_were_not_stated_are_refused(tables: dict[str, Path]) -> None:
    for key, value in {"categorical": "sex:male|other", "classes": "no,maybe"}.items():
        with pytest.raises(
            DataError, match=r"site-0.csv, client 'a'.*(outside its categories|not in classes)"
        ):
            Here.load(str(tables["site-0"]), 0, "a", plan(data={**STATED, key: value}))


def _made(monkeypatch: pytest.MonkeyPatch, value: Any) -> str:
    """Code that returns this."""
    monkeypatch.setitem(sys.modules, "made_here", SimpleNamespace(give=lambda: value))
    return "made_here:give"


def test_datasets_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = {"age": [30, 40, 50.0, 60], "sex": ["m", "f", "m", "m"], "ill": [0, 1, 0, 1]}
    data = {
        "label": "ill",
        "features": "age,sex",
        "categorical": "sex:m|f",
        "classes": 2,
        "missing": None,
        "scale": None,
    }
    alike_made = from_frame(frame, "ill", categorical={"sex": ["m", "f"]}, classes=2)
    assert Here.load(_made(monkeypatch, alike_made), 0, "a", plan(data=data)).size(0) > 0
    turned = from_frame(frame, "ill", ["sex", "age"], categorical={"sex": ["m", "f"]}, classes=2)
    with pytest.raises(ConfigError, match="inputs called sex=m, sex=f, age, and the coordinator"):
        Here.load(_made(monkeypatch, turned), 0, "a", plan(data=data))
    scaled = from_frame(frame, "ill", "age", scale="federated", classes=2)
    with pytest.raises(ConfigError, match="scaled by sums over the clients"):
        Here.load(_made(monkeypatch, scaled), 0, "a", plan(data=data))
    pandas = pytest.importorskip("pandas")
    pair = (pandas.DataFrame({"age": [1.0, 2.0, 3.0]}), np.array([0, 1, 0]))
    with pytest.raises(ConfigError, match="in which order columns stand"):
        Here.load(_made(monkeypatch, pair), 0, "a", plan(data={"classes": 2}))


def test_classes_of_datasets_are_the_stated_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(12, 3)
    made = [
        from_arrays(x, torch.arange(12) % 2),
        from_arrays(x, torch.arange(12) % 3),
    ]
    whole = from_clients({"a": made[0], "b": made[1]}, classes=4)
    here = Here.load(_made(monkeypatch, made[0]), 0, "a", plan(data={"classes": 4}))
    assert whole.classes == here.classes == 4
    for classes, message in (
        (2, "3 classes, and the coordinator's file says 2"),
        ("regression", "3 classes"),
    ):
        with pytest.raises(ConfigError, match=message):
            Here.load(_made(monkeypatch, made[1]), 0, "a", plan(data={"classes": classes}))


# --- whose data they are --------------------------------------------------------------------------------------------


def test_nobody_else_is_here(tables: dict[str, Path]) -> None:
    here = Here.load(str(tables["site-1"]), 1, "b", plan(data=STATED))
    for ask in (here.size, here.samples, here.rows, here.held):
        with pytest.raises(DataError, match="order for client 0, and client 1 is here"):
            ask(0)
    with pytest.raises(ConfigError, match="nobody to choose from"):
        here.choose([1])
    assert not here.listed
    assert here.own.names == ["b"]
    assert "1 looked at" in str(here.report())


def test_columns_are_known_before_anything_is_read() -> None:
    assert asked("absent.csv", plan(data=STATED)) == ["age", "bp", "sex", "ill"]
    assert asked("absent.npz", plan(data={"classes": 2})) == ["x", "y"]
    with pytest.raises(DataError, match=r"no file absent\.csv"):
        Here.load("absent.csv", 0, "a", plan(data=STATED))


# --- real tables ----------------------------------------------------------------------------------------------------

HEART = "age,sex,cp,trestbps,chol,fbs,restecg,thalach,exang,oldpeak,slope,ca,thal"


@has("heart")
@pytest.mark.parametrize("runner", [Client, Sequential])
def test_heart_disease(tmp_path: Path, runner: type[Client]) -> None:
    sources = {}
    for site in ("cleveland", "hungarian", "switzerland", "va"):
        sources[site] = tmp_path / f"{site}.csv"
        sources[site].write_text(
            f"{HEART},num\n{(ROOT / 'heart' / f'processed.{site}.data').read_text().strip()}\n"
        )
    stated = {
        "label": "num", "features": HEART, "classes": 5, "missing": "zero", "categorical": "cp:1|2|3|4,thal:3|6|7",
        "scale": "age:50:15,trestbps:130:20,chol:240:60,thalach:140:25",
    }  # fmt: skip
    check(sources, plan(data=stated), (0, 2, 3), runner)


@has("credit-default")
def test_credit_card_holders(tmp_path: Path) -> None:
    import lzma

    with lzma.open(ROOT / "credit-default" / "UCI_Credit_Card.csv.xz", "rt") as file:
        lines = [next(file).rstrip() for _ in range(601)]
    sources = {}
    for at in range(3):
        sources[f"bank-{at}"] = tmp_path / f"bank-{at}.csv"
        sources[f"bank-{at}"].write_text("\n".join([lines[0], *lines[1 + at :: 3]]) + "\n")
    label = "default.payment.next.month"
    features = [each for each in lines[0].replace('"', "").split(",") if each not in ("ID", label)]
    stated = {"label": label, "features": features, "classes": 2, "categorical": "SEX:1|2"}
    check(sources, plan(data=stated), (0, 2))


@has("har")
@pytest.mark.slow
def test_activities_of_subjects(tmp_path: Path) -> None:
    stored = dict(np.load(ROOT / "har" / "har_inertial.npz"))
    planes = stored["planes"].reshape(9, 4, -1, 64)  # bytes of numbers, apart

    def half(windows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return planes[:, :, windows].transpose(2, 0, 3, 1).copy().view("<f4")[..., 0]

    sources = {}
    for subject in (3, 7, 11):
        rows = np.flatnonzero(stored["subject"] == subject)[:40]
        pairs = stored["window"][rows]
        x = np.concatenate([half(pairs[:, 0]), half(pairs[:, 1])], -1)
        sources[f"s{subject}"] = tmp_path / f"s{subject}.npz"
        np.savez(sources[f"s{subject}"], x=x, y=stored["y"][rows].astype(np.int64) - stored["y"].min())
    check(sources, plan(data={"classes": 6}), (0, 2), model="conv1d")


def test_digits(tmp_path: Path) -> None:
    whole = load("digits").partition("dirichlet:0.3", clients=4, seed=1, test=None)
    sources = {}
    for client in range(4):
        samples = whole.samples(client)
        assert samples is not None
        sources[f"c{client}"] = tmp_path / f"c{client}.npz"
        np.savez(sources[f"c{client}"], x=samples.inputs[:60].numpy(), y=samples.targets[:60].numpy())
    stated = {"classes": 10}
    check(sources, plan(data=stated, augment="noise:0.1"), (1, 3), Sequential)
    with pytest.raises(ConfigError, match="which classes there are"):
        Here.load(str(sources["c1"]), 1, "c1", plan())


def test_clients_may_begin_elsewhere() -> None:
    x, y = torch.randn(30, 2), torch.arange(30) % 2
    parts = {name: (x[at::3], y[at::3]) for at, name in enumerate("abc")}
    whole = from_clients(parts, seed=5)
    tail = from_clients({name: parts[name] for name in "bc"}, seed=5, start=1)
    for at in (0, 1):
        one, other = tail.samples(at), whole.samples(at + 1)
        assert one is not None
        assert other is not None
        assert torch.equal(one.inputs, other.inputs)
