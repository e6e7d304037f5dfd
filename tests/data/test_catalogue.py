"""The catalogue: what it promises is what is loaded; downloads are checked and leave nothing half-done."""

import gzip
import hashlib
import http.server
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from atoll.data import Entry, catalogue, fetch, load, synthetic
from atoll.errors import ConfigError, DataError
from atoll.parts import tensors

NAMES = [entry.name for entry in catalogue()]


OFTEN_ABSENT = ("fashion-mnist",)  # it comes with its Debian package


@pytest.mark.parametrize("entry", catalogue(), ids=NAMES)
def test_entry_keeps_its_promise(entry: Entry, request: pytest.FixtureRequest) -> None:
    if not entry.embedded:
        root = request.getfixturevalue("real")
        if not all((root / path).is_file() for path in entry.files):
            wanting = entry.name in OFTEN_ABSENT
            pytest.skip(f"{entry.name} is not at hand" if wanting else f"ATOLL_DATA has no {entry.name}")
    if entry.name == "cifar10":
        pytest.importorskip("PIL")
    data = load(entry.name)
    assert data.name == entry.name
    assert (data.train.count, data.test.count if data.test else 0) == entry.samples
    parts = tensors([data.train.inputs])
    assert tuple(parts[0].shape[1:]) == entry.shape
    assert data.classes == entry.classes
    assert data.natural == entry.natural
    assert data.train.targets.dtype == torch.int64
    assert int(data.train.targets.max()) == entry.classes - 1
    assert all(bool(torch.isfinite(part.float()).all()) for part in parts)
    assert data.license == entry.license
    assert entry.name in repr(data)
    fed = data.partition("natural" if entry.natural else "iid", clients=None if entry.natural else 5)
    assert fed.size(0) > 0
    assert fed.test_set is not None


def test_embedded_data_is_what_it_says() -> None:
    digits, heart = load("digits"), load("heart")
    assert digits.test is not None
    assert float(digits.train.inputs.min()) == 0.0
    assert float(digits.train.inputs.max()) == 1.0
    assert torch.bincount(digits.test.targets).min() >= 34
    fed = heart.partition("natural", test=None)
    assert list(fed.names) == ["cleveland", "hungarian", "switzerland", "va"]
    assert [fed.size(client) for client in range(4)] == [303, 261, 46, 130]
    assert set(heart.train.inputs[:, 2:6].sum(1).tolist()) == {1.0}
    again = load("digits")
    assert torch.equal(again.train.inputs, digits.train.inputs)


def test_natural_clients_of_real_data(real: Path) -> None:
    assert len(load("mnist-by-writer").partition("natural")) == 333
    shakespeare = load("shakespeare")
    assert len(shakespeare.partition("natural")) == 141
    assert torch.equal(shakespeare.train.inputs[:, 1:], shakespeare.train.targets[:, :-1])
    har = load("har").partition("natural")
    assert len(har) == 30
    example = har.example().inputs[0]
    assert 0.5 < float(example[6:9].mean(1).norm()) < 1.5  # gravity, in g


def test_mnist_pixels_and_shards(real: Path) -> None:
    data = load("mnist")
    assert float(data.train.inputs.max()) == 1.0
    fed = data.partition("shards:2", clients=100)
    assert {fed.size(client) for client in range(100)} == {600}


def test_options_are_checked(real: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'window'"):
        load("shakespeare", windows=10)
    assert load("shakespeare", window=20).train.inputs.shape[1] == 20
    with pytest.raises(ConfigError, match="it has none"):
        load("digits", window=20)


def test_absent_and_damaged_data_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATOLL_DATA", str(tmp_path / "a"))
    monkeypatch.setenv("ATOLL_HOME", str(tmp_path / "home"))
    with pytest.raises(
        DataError, match=r"mnist.npz is not in .*a or .*home(.|\n)*ATOLL_DATA(.|\n)*data get mnist"
    ):
        load("mnist")
    with pytest.raises(ConfigError, match="did you mean 'mnist'"):
        load("mnits")
    (tmp_path / "home" / "data" / "mnist").mkdir(parents=True)
    (tmp_path / "home" / "data" / "mnist" / "mnist.npz").write_bytes(b"PK\x03\x04damaged")
    with pytest.raises(DataError, match=r"cannot be read(.|\n)*damaged"):
        load("mnist")
    np.savez(tmp_path / "home" / "data" / "mnist" / "mnist.npz", other=np.zeros(3))
    with pytest.raises(DataError, match="cannot be read"):
        load("mnist", root=tmp_path / "home" / "data")


# --- synthetic ----------------------------------------------------------------------------------------------


def test_synthetic_is_seeded_and_divided_nine_to_one() -> None:
    fed = synthetic(1, 1, seed=3)
    assert len(fed) == 30
    assert fed.dataset == "synthetic:1,1"
    sizes = np.array([fed.size(client) for client in range(30)])
    tests = np.array([fed.samples(client, "test").count for client in range(30)])  # type: ignore[union-attr]
    assert (sizes + tests >= 50).all()
    assert np.abs(tests - 0.1 * (sizes + tests)).max() <= 0.5
    assert fed.example().inputs.shape == (1, 60)
    again, other = synthetic(1, 1, seed=3), synthetic(1, 1, seed=4)
    assert torch.equal(fed.pool().inputs, again.pool().inputs)  # type: ignore[union-attr]
    assert not torch.equal(fed.example().inputs, other.example().inputs)
    loaded = load("synthetic:1,1", seed=3).partition("natural", seed=3)
    assert torch.equal(loaded.pool().inputs, fed.pool().inputs)  # type: ignore[union-attr]
    assert np.array_equal(loaded.rows(5), fed.rows(5))  # type: ignore[arg-type]


def test_synthetic_heterogeneity() -> None:
    """With one model for all, devices agree in their labels; alpha and beta drive them apart."""
    alike, apart = synthetic(0, 0, iid=True).report(), synthetic(1, 1).report()
    assert alike.emd is not None
    assert apart.emd is not None
    assert alike.emd.mean() < 0.6 < apart.emd.mean()
    inputs = synthetic(0, 0, iid=True).pool()
    assert inputs is not None
    variance = inputs.inputs.var(0)
    assert float(variance[0]) == pytest.approx(1.0, rel=0.1)
    assert float(variance[59]) == pytest.approx(60**-1.2, rel=0.1)


def test_synthetic_mistakes() -> None:
    with pytest.raises(ConfigError, match="synthetic needs beta"):
        load("synthetic:1")
    with pytest.raises(DataError, match="negative"):
        synthetic(-1, 1)
    with pytest.raises(DataError, match="clients"):
        synthetic(1, 1, clients=0)


def test_what_files_must_hold_is_told_of_every_dataset() -> None:
    for item in catalogue():
        assert item.embedded or item.form, item.name
        assert item.form in item.origin()


# --- downloads ----------------------------------------------------------------------------------------------

CONTENT = {"toy/a.bin": b"first" * 100_000, "toy/b.bin": b"second"}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Entry:
    files = {path: hashlib.sha256(content).hexdigest() for path, content in CONTENT.items()}
    item = Entry("toy", "a toy", "table", (1, 0), (1,), 2, None, "none", "the toy shop", files=files)
    monkeypatch.setitem(import_module("atoll.data.catalogue")._BY_NAME, "toy", item)
    monkeypatch.delenv("ATOLL_DATA_URL", raising=False)
    return item


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    folder = tmp_path / "mirror"
    for path, content in CONTENT.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    server.server_close()
    thread.join()


def files_below(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_fetch_downloads_checks_and_skips(toy: Entry, mirror: tuple[str, Path], tmp_path: Path) -> None:
    url, folder = mirror
    seen: list[tuple[str, int, int | None]] = []
    root = fetch("toy", url + "/", tmp_path / "out", lambda *step: seen.append(step))
    assert root == tmp_path / "out"
    assert files_below(root) == ["toy/a.bin", "toy/b.bin"]
    assert (root / "toy/a.bin").read_bytes() == CONTENT["toy/a.bin"]
    assert seen[-1] == ("toy/b.bin", 6, 6)
    assert [done for path, done, _ in seen if path == "toy/a.bin"][-1] == 500_000
    (folder / "toy/a.bin").unlink()
    (folder / "toy/b.bin").unlink()
    assert fetch("toy", url, root) == root  # nothing to download any more


def test_fetch_uses_the_environment(
    toy: Entry, mirror: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATOLL_DATA_URL", mirror[0])
    monkeypatch.delenv("ATOLL_DATA", raising=False)
    monkeypatch.setenv("ATOLL_HOME", str(tmp_path / "home"))
    assert fetch("toy") == tmp_path / "home" / "data"


@pytest.mark.parametrize("damage", ["wrong", "short", "absent"])
def test_fetch_refuses_and_leaves_nothing(
    toy: Entry, mirror: tuple[str, Path], tmp_path: Path, damage: str
) -> None:
    url, folder = mirror
    if damage == "absent":
        (folder / "toy/b.bin").unlink()
    else:
        (folder / "toy/b.bin").write_bytes(b"secund" if damage == "wrong" else b"sec")
    with pytest.raises(DataError, match="cannot be downloaded" if damage == "absent" else "checksum"):
        fetch("toy", url, tmp_path / "out")
    assert files_below(tmp_path / "out") == ["toy/a.bin"]


def test_fetch_replaces_a_damaged_file(toy: Entry, mirror: tuple[str, Path], tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "b.bin").write_bytes(b"half")
    fetch("toy", mirror[0], tmp_path)
    assert (tmp_path / "toy" / "b.bin").read_bytes() == b"second"


def test_what_is_missing_is_described_to_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATOLL_DATA_URL", raising=False)
    for ask in (lambda: load("mnist", root=tmp_path), lambda: fetch("mnist", root=tmp_path)):
        with pytest.raises(DataError) as caught:
            ask()
        for told in (
            "mnist/mnist.npz",
            "x_train (60000, 28, 28)",
            "y_train",
            "x_test",
            "y_test",
            "yann.lecun.com",
        ):
            assert told in caught.value.message
        assert "--from URL" in str(caught.value.hint)
    (tmp_path / "mnist").mkdir()
    x, y = np.arange(4 * 784, dtype=np.uint8).reshape(4, 28, 28), np.array([3, 1, 4, 1])
    np.savez(tmp_path / "mnist" / "mnist.npz", x_train=x, y_train=y, x_test=x[:1], y_test=y[:1])  # saved anew
    assert load("mnist", root=tmp_path).train.targets.tolist() == [3, 1, 4, 1]


def test_files_of_a_package_are_read_where_it_puts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = import_module("atoll.data.catalogue")
    item = replace(
        module.entry("fashion-mnist"), package=("dataset-fashion-mnist", str(tmp_path / "packages"))
    )
    monkeypatch.setitem(module._BY_NAME, "fashion-mnist", item)
    monkeypatch.setenv("ATOLL_DATA", str(tmp_path))
    monkeypatch.setenv("ATOLL_HOME", str(tmp_path / "home"))
    with pytest.raises(DataError, match="hint: apt install dataset-fashion-mnist, or"):
        load("fashion-mnist")
    folder = tmp_path / "packages" / "fashion-mnist"
    folder.mkdir(parents=True)
    for part, count in (("train", 3), ("t10k", 2)):
        pictures = b"\0\0\x08\3" + np.array([count, 28, 28], ">u4").tobytes() + bytes(range(count)) * 784
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(pictures))
        labels = b"\0\0\x08\1" + np.array([count], ">u4").tobytes() + bytes([9, 0, 2][:count])
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    data = load("fashion-mnist")
    assert data.train.targets.tolist() == [9, 0, 2]
    assert data.train.inputs.shape == (3, 1, 28, 28)
    assert data.train.inputs.flatten()[:3].tolist() == pytest.approx([0, 1 / 255, 2 / 255])
    assert fetch("fashion-mnist") == tmp_path / "packages"
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"no labels"))
    with pytest.raises(DataError, match="is no IDX file"):
        load("fashion-mnist")


def test_fetch_without_a_mirror_tells_the_origin(toy: Entry, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Original source: the toy shop(.|\n)*toy/a.bin, toy/b.bin"):
        fetch("toy", root=tmp_path)
    with pytest.raises(DataError, match="not a web address"):
        fetch("toy", "ftp://somewhere", tmp_path)
    with pytest.raises(DataError, match="cannot be downloaded"):
        fetch("toy", "http://127.0.0.1:1", tmp_path)
    with pytest.raises(ConfigError, match="did you mean"):
        fetch("digit", root=tmp_path)
    assert fetch("digits", root=tmp_path) == tmp_path
    assert files_below(tmp_path) == []
