"""Results in files: the same numbers in the same order, in memory that the system can take back."""

from __future__ import annotations

import copy
import gc
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from atoll.errors import RunError
from atoll.mapped import Mapped, mapping
from atoll.optimizers import SGD, Adam
from atoll.rooms import blank
from atoll.tensors import Record, Tensors, leaves
from tests.network.faults.test_fault_machine import small

KIB = 1 << 10


def filed(value: Tensor) -> bool:
    return value.untyped_storage().filename is not None


def anonymous() -> int:
    """Bytes of this process that no file stands behind."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.split("RssAnon:")[1].split()[0])


A, B = torch.linspace(-3, 5, 600).reshape(20, 30), torch.linspace(0.5, 2, 600).reshape(20, 30)

MADE: dict[str, Callable[[], Tensor]] = {
    "product": lambda: A * 0.3,
    "sum": lambda: A + B,
    "scaled sum": lambda: torch.add(A, B, alpha=0.7),
    "with a row": lambda: A / B[0],
    "turned": lambda: A.t() - B.t(),
    "turned and not": lambda: A.t().contiguous() * B.reshape(30, 20),
    "whole and not": lambda: torch.arange(600) * 0.5,
    "compared": lambda: A > B,
    "chosen": lambda: torch.where(A > 0, A, B),
    "root": lambda: B.sqrt(),
    "largest": lambda: torch.maximum(A, B),
    "ways": lambda: B.lerp(A, 0.25),
    "copy": lambda: A.clone(),
    "turned copy": lambda: A.t().clone(),
    "half": lambda: A.bfloat16().float(),
    "matrix": lambda: A @ B.t(),
    "outer": lambda: A[0][:, None] * B[0][None],
    "joined": lambda: torch.cat([A, B]),
    "zeros": lambda: torch.zeros(30, 20),
    "ones": lambda: torch.ones(600, dtype=torch.float64),
    "full": lambda: torch.full((600,), 7),
    "full like": lambda: torch.full_like(A.t(), 0.5),
    "zeros like": lambda: torch.zeros_like(A, dtype=torch.int64),
    "new": lambda: A.new_full((600,), 2.5),
    "sorted": lambda: A.flatten().sort(descending=True)[0],
}


@pytest.mark.parametrize("name", MADE)
def test_the_same_in_a_file(name: str, tmp_path: Path) -> None:
    due = MADE[name]()
    with Mapped(tmp_path, KIB // 2):
        found = MADE[name]()
    assert torch.equal(found, due) and found.dtype == due.dtype and found.stride() == due.stride()
    assert filed(found) and found.untyped_storage().data_ptr() % 64 == 0
    assert not filed(due) and not list(tmp_path.iterdir())


def test_small_results_views_and_what_is_written_into_stay_where_they_are(tmp_path: Path) -> None:
    here = A.clone()
    with Mapped(tmp_path, KIB) as inside:
        assert mapping() is inside
        part, seen, moved = A[0] * 2.0, here.view(600), here.add_(1.0)
        flat = here.t().reshape(30, 20)
    assert mapping() is None
    assert not filed(part) and seen.data_ptr() == moved.data_ptr() == flat.data_ptr() == here.data_ptr()


def test_what_is_to_lie_elsewhere_lies_there(tmp_path: Path) -> None:
    """On a device that is no memory, sparse, or in an order of its own."""
    picture = torch.arange(600.0).reshape(1, 3, 20, 10)
    last = torch.channels_last
    with Mapped(tmp_path, KIB // 2):
        nowhere = [
            torch.zeros(600, device="meta"),
            torch.ones_like(A, device="meta"),
            A.to("meta"),
            A.to("meta") * 2,
        ]
        turned = [picture.clone(memory_format=last), picture.to(memory_format=last)]
        sparse = [A.to_sparse(), A.to_sparse() * 2.0]
    assert {each.device.type for each in nowhere} == {"meta"}
    for each in turned:
        assert torch.equal(each, picture) and each.is_contiguous(memory_format=last)
    assert all(each.is_sparse for each in sparse) and torch.equal(sparse[1].to_dense(), A * 2.0)


def test_a_module_is_born_and_copied_there(tmp_path: Path) -> None:
    def made() -> nn.Module:
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(40, 50), nn.BatchNorm1d(50), nn.Linear(50, 40))

    due = made()
    with Mapped(tmp_path, KIB):
        found = copy.deepcopy(made())
    for one, other in zip(due.state_dict().values(), found.state_dict().values(), strict=True):
        assert torch.equal(one, other)
        assert filed(other) == (other.nbytes >= KIB)


@pytest.mark.parametrize("solver", [SGD(0.9, nesterov=True), Adam()])
def test_optimisers_give_the_same_bits(solver: SGD | Adam, tmp_path: Path) -> None:
    def stepped() -> tuple[Tensors, Record]:
        params, gradient = Tensors(w=A.clone(), b=A[0].clone()), Tensors(w=B.clone(), b=B[0].clone())
        state = solver.init(params)
        for _ in range(3):
            params, state = solver.update(gradient, state, params, 0.1)
        return params, state

    due = stepped()
    with Mapped(tmp_path, KIB):
        found = stepped()
    for one, other in zip(leaves(due), leaves(found), strict=True):
        assert torch.equal(one, other)
    assert filed(found[0]["w"])


def test_no_anonymous_memory_and_no_file_stays(tmp_path: Path) -> None:
    before = anonymous()
    with Mapped(tmp_path):
        first = Tensors(w=torch.ones(1 << 25))  # 128 MB
        second = first * 2.0 + first.zeros()
        module = nn.Linear(1 << 13, 1 << 12)
        large = blank(first["w"])
    assert anonymous() - before < 32 << 20
    assert float(second["w"].sum()) == 1 << 26 and filed(module.weight) and filed(large)
    assert not list(tmp_path.iterdir())
    files = Path("/proc/self/maps").read_text().count(str(tmp_path))
    del first, second, module, large
    gc.collect()
    assert files and str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_other_threads_are_outside(tmp_path: Path) -> None:
    found: list[Tensor] = []
    with Mapped(tmp_path, KIB):
        thread = threading.Thread(target=lambda: found.append(A * 2.0))
        thread.start()
        thread.join()
    assert not filed(found[0])


def test_no_room_is_said(tmp_path: Path) -> None:
    with (
        small(tmp_path / "disk", "1m"),
        pytest.raises(RunError, match="no space left"),
        Mapped(tmp_path / "disk"),
    ):
        torch.ones(1 << 23)
    with pytest.raises(RunError, match="no such file"), Mapped(tmp_path / "nowhere"):
        torch.ones(1 << 23)
